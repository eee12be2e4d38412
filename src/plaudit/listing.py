"""Whatever a file of results holds as tables and lists of facts, all of it text."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plaudit.readable import one_line
from plaudit.wording import ABSENT, decimal, interval, is_number, number, percent

# Figures that are shares, shown in percent, and names that are no plain words yet.
SHARES = frozenset(
    "official half_credit share strict at_least one_over_tied overall4 overall5 flat double_game single_game pair_accuracy "
    "max end ties_v0_1_4 within_pairs pairs_with_others".split()
)
FIGURE_WORDS = {
    "strict": "right answer above all wrong ones",
    "at_least": "right answer not below any wrong one",
    "one_over_tied": "one over the number tied at the top",
    "mrr": "mean reciprocal rank (ties count against it)",
    "wrong_tied_with_right": "wrong answers tied with the right one",
    "overall4": "mean of the four sections",
    "overall5": "mean with prior sets at half weight",
    "flat": "share of all rows",
    "double_game": "both orders (official: a tie is wrong)",
    "single_game": "one order (a tie is read as B>A)",
    "auc": "area under the ROC curve",
    "max": "best of k at its highest",
    "end": "best of all",
    "loss": "mean squared distance from a perfect choice",
    "ties_v0_1_4": "Ties by the rule of release 0.1.4",
    "sha256": "SHA-256",
}


class Table(NamedTuple):
    """A table for the page, all of it text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def facts_of(value: Any, key: str = "", path: str = "") -> list[tuple[str, str]]:
    """Return nested values as a flat list of names and texts, the names of what is inside others with theirs before."""
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = {str(place): one for place, one in enumerate(value, start=1)}
    if isinstance(value, Mapping):
        before = f"{path}{words(key)}, " if key else path
        return [fact for name, one in value.items() for fact in facts_of(one, str(name), before)]
    if isinstance(value, list) and value:
        text = one_line(", ".join(str(one) for one in value[:20]) + (" …" if len(value) > 20 else ""), 400)
        text = interval(value) if key == "interval" else text
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None or value == []:
        text = ABSENT
    else:
        text = shown(key, value) if isinstance(value, int | float) else one_line(value, 400)
    return [(one_line(path + figure_words(key), 160), text)]


def shown(key: str, value: Any) -> str:
    """Return a number as a figure of its name is shown."""
    if key in SHARES:
        return percent(value)
    return number(value) if is_number(value) and value == int(value) and abs(value) < 1e15 else decimal(value)


def figure_words(key: str) -> str:
    """Return a figure's name in words."""
    return FIGURE_WORDS.get(key, words(key))


def words(key: str) -> str:
    """Return a key of a file as words."""
    return key.replace("_", " ")
