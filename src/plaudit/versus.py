"""A comparison of two models in, what its page shows out: who is better, by how much, how sure that is, and where."""

from collections.abc import Mapping, Sequence
from typing import Any

from plaudit.readable import one_line
from plaudit.wording import (
    ABSENT,
    MINUS,
    ROWS_ARE,
    TIGHT,
    decimal,
    figure_of,
    is_number,
    number,
    percent,
    points,
    reward,
)

# Rows that a page shows of those on which the two differ, at once and in a fold; comparison.json has them all.
ROWS_SHOWN, ROWS_FOLDED = 10, 190
# A p-value below this calls a difference more than chance, as an interval without 0 does.
LEVEL = 0.05


def comparison_context(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows, all of it text, of what `comparison.compare` returns."""
    first, second = (one_line(name, 60) for name in comparison["names"])
    counts = [(len(comparison.get(side) or []), name) for side, name in (("only_a", first), ("only_b", second))]
    alone = [
        f"{number(count)} {'row is' if count == 1 else 'rows are'} only in {name} and left out."
        for count, name in counts
        if count
    ]
    return {
        "title": one_line(f"plaudit comparison: {first} and {second}", 160),
        "first": first,
        "second": second,
        "alone": alone,
        "num_resamples": comparison.get("num_resamples"),
        "benchmarks": [
            _benchmark(name, entry, f"benchmark-{place}", (first, second))
            for place, (name, entry) in enumerate(comparison["benchmarks"].items(), start=1)
        ],
    }


def _benchmark(name: str, entry: Mapping[str, Any], key: str, models: tuple[str, str]) -> dict[str, Any]:
    whole = figure_of(entry)
    parts = [("Overall" if entry.get("overall") else "Over the rows given", whole, True)]
    sections, subsets = entry.get("sections") or {}, entry.get("subsets") or {}
    parts += [(part, found, True) for part, found in sections.items() if found]
    parts += [(part, found, False) for part, found in subsets.items() if part not in sections]
    span = _span([found for _, found, _ in parts])
    differ = [_differing(row) for row in (entry.get("differ") or [])[: ROWS_SHOWN + ROWS_FOLDED]]
    return {
        "key": key,
        "name": one_line(name, 80),
        "incomplete": one_line(entry["incomplete"], 600).rstrip(".") + "." if entry.get("incomplete") else None,
        "verdict": verdict(whole, models),
        "big": signed_points(whole.get("difference")),
        "interval": signed_interval(whole.get("interval")),
        "mark": _mark(whole, span),
        "span": f"{100 * span:.0f}",
        "rows_are": ROWS_ARE.get(str(entry.get("kind")), "rows"),
        "n": entry.get("n"),
        "rule": one_line(entry.get("rule") or "", 300),
        "correlation": decimal(entry.get("rank_correlation")) if is_number(entry.get("rank_correlation")) else None,
        "table": entry["mcnemar"],
        "mcnemar_p": p_words(entry["mcnemar"].get("p")),
        "mcnemar_words": _mcnemar_words(entry["mcnemar"], models),
        "rows": [_part(part, found, is_whole, span) for part, found, is_whole in parts],
        "num_differ": len(entry.get("differ") or []),
        "differ": differ[:ROWS_SHOWN],
        "more": differ[ROWS_SHOWN:],
    }


def verdict(figure: Mapping[str, Any], models: Sequence[str]) -> str:
    """Return in words which model is better on a figure, and whether chance alone may explain it."""
    difference, ends = figure.get("difference"), figure.get("interval")
    if not is_number(difference):
        return "There is no figure to compare."
    shares = [percent(figure[side].get("official")) for side in ("a", "b")]
    against = f"{models[0]} {shares[0]}, {models[1]} {shares[1]}{_as_half(figure, models)}"
    if difference == 0:
        text = f"The two are equal: {against}."
    else:
        better = models[0] if difference > 0 else models[1]
        text = f"{better} is ahead by {points(abs(difference))}: {against}."
    if not ends or not all(is_number(end) for end in ends):
        return f"{text} There are too few rows to say how sure that is."
    if ends[0] > 0 or ends[1] < 0:
        return f"{text} That is more than chance explains: the 95{TIGHT}% interval of the difference leaves out 0."
    return f"{text} Chance alone may explain that: the 95{TIGHT}% interval of the difference holds 0."


def _as_half(figure: Mapping[str, Any], models: Sequence[str]) -> str:
    """Return both figures with ties as half, where that makes a difference, in brackets."""
    sides = [figure[side] for side in ("a", "b")]
    halves = [side.get("half_credit") for side in sides]
    if not all(map(is_number, halves)) or all(
        percent(side["official"]) == percent(half) for side, half in zip(sides, halves, strict=True)
    ):
        return ""
    return f" (with ties as half: {models[0]} {percent(halves[0])}, {models[1]} {percent(halves[1])})"


def _mcnemar_words(table: Mapping[str, Any], models: Sequence[str]) -> str:
    """Return what the rows that one model alone got right say."""
    only_a, only_b = table["only_a"], table["only_b"]
    text = f"{models[0]} alone is right in {number(only_a)} rows, {models[1]} alone in {number(only_b)}."
    p = table.get("p")
    if not is_number(p) or not only_a + only_b:
        return text
    sure = "that is more than chance explains" if p < LEVEL else "chance alone may explain that"
    return f"{text} If neither were better, a split as uneven as this would come up with {p_words(p)}: {sure}."


def _part(name: str, found: Mapping[str, Any], is_whole: bool, span: float) -> dict[str, Any]:
    return {
        "name": one_line(name, 80),
        "is_whole": is_whole,
        "mark": _mark(found, span),
        "a": percent((found.get("a") or {}).get("official")),
        "b": percent((found.get("b") or {}).get("official")),
        "difference": signed_points(found.get("difference")),
        "interval": signed_interval(found.get("interval")),
        "p": p_value(found.get("p")),
        "n": number((found.get("a") or {}).get("n")),
    }


def _span(figures: Sequence[Mapping[str, Any]]) -> float:
    """Return how far the line of differences goes to either side: to the furthest interval, in steps of five points."""
    ends = [abs(end) for found in figures for end in (found.get("interval") or []) if is_number(end)]
    ends += [abs(found["difference"]) for found in figures if is_number(found.get("difference"))]
    return min(1.0, max(1, -(-max(ends, default=0.0) // 0.05)) * 0.05)


def _mark(found: Mapping[str, Any], span: float) -> dict[str, str] | None:
    """Return where a difference and its interval stand on a line whose middle is 0."""
    if not is_number(found.get("difference")):
        return None
    ends = found.get("interval") or [found["difference"]] * 2
    places = {"at": found["difference"], "low": ends[0], "high": ends[1]}
    return {key: f"{50 + 50 * min(1.0, max(-1.0, value / span)):.2f}%" for key, value in places.items()}


def _differing(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one_line(row.get("id", ""), 80),
        one_line(row.get("subset") or ABSENT, 60),
        one_line(row.get("right", ""), 60),
        reward(row.get("margin_a")),
        reward(row.get("margin_b")),
    )


def signed_points(difference: Any) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    if not is_number(difference):
        return ABSENT
    return f"{_signed(difference)}{TIGHT}points"


def signed_interval(ends: Any) -> str:
    """Return the ends of a difference's interval, in points with their signs."""
    if not ends or not all(is_number(end) for end in ends):
        return ABSENT
    return f"{_signed(ends[0])} to {_signed(ends[1])}"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}".replace("-", MINUS)
    return "0.0" if text[1:] == "0.0" else text


def p_value(p: Any) -> str:
    """Return a p-value to three places, and no smaller than they can show."""
    if not is_number(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_words(p: Any) -> str:
    """Return a p-value as it stands in a sentence."""
    text = p_value(p)
    return f"p{TIGHT}{text.replace(' ', TIGHT)}" if text.startswith("<") else f"p{TIGHT}={TIGHT}{text}"
