"""Results in, plain sentences out: how good a model is, how sure that is, and where it fails."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from plaudit.readable import one_line

# A space at which no line is broken, between a number and its sign or word.
TIGHT = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"

# What one row of a benchmark is called.
ROWS_ARE = {
    "pairs": "pairs",
    "rewardbench": "pairs",
    "rewardbench2": "prompts",
    "rm-bench": "prompts",
    "judgebench": "pairs",
    "ppe-correctness": "prompts",
    "ppe-human": "comparisons",
    "rmb": "prompts",
    "rewardmath": "problems",
    "best-of-n": "prompts",
}
# What happens in the share of the rows that the official figure is.
MEANINGS = {
    "pairs": "the better answer gets the higher reward",
    "judgebench": "the better answer gets the higher reward in both orders",
    "ppe-human": "the answer that people preferred gets the higher reward",
    "rmb": "the best answer gets a higher reward than every other",
    "rewardmath": "the one right solution gets the highest reward",
    "best-of-n": "a right answer gets the highest reward",
}
# The same where the figure is a mean over parts, and no share of the rows.
MEANS = {
    "rewardbench": "the mean over its sections of how often the better answer gets the higher reward",
    "rewardbench2": "the mean over its six subsets of how often a right answer gets the highest reward",
    "rm-bench": "the mean over its domains of how often a right answer beats a wrong one, whatever their styles",
    "ppe-correctness": "the mean over its five sets of how often a correct answer beats an incorrect one",
}
# From these on a fault is worth a line of the summary: points of accuracy, calibration error, shares of the rows.
LENGTH_GAP, CALIBRATION_GAP, SHARE_SAID = 0.05, 0.05, 0.01
# With fewer rows than this a subset's figure is mostly chance, so it is not called the weakest.
ROWS_TO_JUDGE = 20


class Point(NamedTuple):
    """One thing that a reader should know: what it is about, the sentence, and whether it is a fault."""

    about: str
    text: str
    is_fault: bool = True


def number(value: Any) -> str:
    """Return a count with its thousands apart, or a dash."""
    return ABSENT if not is_number(value) else f"{value:,.0f}".replace("-", MINUS)


def percent(share: Any) -> str:
    """Return a share, 0 to 1, as 73.4 %, or a dash."""
    return ABSENT if not is_number(share) else f"{100 * share:.1f}{TIGHT}%".replace("-", MINUS)


def points(difference: Any) -> str:
    """Return a difference of two shares in percentage points."""
    return ABSENT if not is_number(difference) else f"{100 * difference:.1f}{TIGHT}points".replace("-", MINUS)


def interval(ends: Any) -> str:
    """Return two shares as 71.2 to 75.5 %, or a dash."""
    if not ends or not all(is_number(end) for end in ends):
        return ABSENT
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}{TIGHT}%".replace("-", MINUS)


def decimal(value: Any) -> str:
    """Return a plain number with about four digits, or a dash."""
    if not is_number(value):
        return ABSENT
    size = abs(value)
    text = f"{value:.3g}" if size != 0 and (size < 1e-3 or size >= 1e6) else f"{value:.{3 if size < 10 else 2}f}"
    return text.replace("-", MINUS)


def reward(value: Any) -> str:
    """Return a reward or a difference of rewards to two places, or to two digits where it is small."""
    if not is_number(value):
        return ABSENT
    text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return (text if abs(value) < 1e6 else f"{value:.3g}").replace("-", MINUS)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number: what a broken run wrote as NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the benchmark's overall figure, or the one over the rows that were given where it has none."""
    return entry.get("overall") or entry.get("of_given") or {}


def chance_of(entry: Mapping[str, Any]) -> float | None:
    """Return what choosing blindly would give, where that is known."""
    return entry["chance"] if is_number(entry.get("chance")) else None


def opening(name: str, entry: Mapping[str, Any]) -> str:
    """Return the sentences that say how good the model is on a benchmark, against blind choice and the longer answer."""
    figure = figure_of(entry)
    rows = ROWS_ARE.get(str(entry.get("kind")), "rows")
    if not is_number(figure.get("official")):
        return f"There is no figure for {name}."
    kind, how_sure = str(entry.get("kind")), f"95{TIGHT}% interval {interval(figure.get('interval'))}"
    official, count = percent(figure["official"]), number(figure.get("n"))
    if kind in MEANINGS:
        text = f"On {name}, {MEANINGS[kind]} in {official} of {count} {rows} ({how_sure})."
    else:
        what = f": {MEANS[kind]}" if kind in MEANS else ""
        text = f"It reaches {official} on {name}{what} ({count} {rows}, {how_sure})."
    rule = length_rule(entry)
    rivals = [
        ("choosing blindly", chance_of(entry)),
        *([(f"always choosing the {rule.word} answer", rule.value)] if rule else []),
    ]
    known = [f"{what} would give {percent(value)}" for what, value in rivals if value is not None]
    sentence = ", and ".join(known)
    return f"{text} {sentence[0].upper()}{sentence[1:]}." if known else text


class LengthRule(NamedTuple):
    """What always choosing the longer, or the shorter, answer gives: the word, and the share with ties as half."""

    word: str
    value: float


def length_rule(entry: Mapping[str, Any]) -> LengthRule | None:
    """Return the rule of length that goes further; None where lengths are not known, or all equal and so tell nothing."""
    known = []
    for word in ("longer", "shorter"):
        strict = _baseline(entry, f"{word}_wins")
        value = _baseline(entry, f"{word}_wins_half_credit")
        value = strict if value is None else value
        # Where all lengths are equal, neither rule ever wins, and their ties give what chance does.
        if value is not None and (strict or value != chance_of(entry)):
            known.append(LengthRule(word, value))
    return max(known, key=lambda rule: rule.value) if known else None


def certainty(entry: Mapping[str, Any]) -> str:
    """Return the sentence that says how sure the figure is, or nothing where there is no interval."""
    figure = figure_of(entry)
    ends = figure.get("interval")
    if not ends or not all(is_number(end) for end in ends):
        return ""
    half, ends = (ends[1] - ends[0]) / 2, _with_ties_as_half(figure, ends)
    word = "tightly" if half <= 0.02 else "fairly well" if half <= 0.05 else "only roughly"
    rows = ROWS_ARE.get(str(entry.get("kind")), "rows")
    text = (
        f"{number(figure.get('n'))} {rows} pin this down {word}: with other {rows} of the same kind the figure could be "
        f"about {points(half)} higher or lower."
    )
    rule = length_rule(entry)
    rivals = [
        (chance_of(entry), "blind choice"),
        *([(rule.value, f"always choosing the {rule.word} answer")] if rule else []),
    ]
    within = [what for value, what in rivals if value is not None and ends[0] <= value <= ends[1]]
    below = [what for value, what in rivals if value is not None and ends[1] < value]
    if any(value is not None for value, _ in rivals) and ends[0] - figure["interval"][0] >= SHARE_SAID / 2:
        text += f" Ties count as wrong in it; as half, which is fairer to compare by, it is {percent(figure['half_credit'])}."
    if below:
        text += f" It is worse than {' and '.join(below)}, by more than chance explains."
    if within:
        text += f" It cannot be told from {' or '.join(within)}: the interval reaches that far."
    if not (within or below) and any(value is not None for value, _ in rivals):
        text += " It is better than either by more than chance explains."
    return text.replace("better than either", "better than blind choice") if rule is None else text


def _with_ties_as_half(figure: Mapping[str, Any], ends: Sequence[float]) -> tuple[float, float]:
    """Return an interval moved to where ties count as half, as they do for blind choice and for rules of length."""
    if not (is_number(figure.get("half_credit")) and is_number(figure.get("official"))):
        return ends[0], ends[1]
    shift = figure["half_credit"] - figure["official"]
    return ends[0] + shift, ends[1] + shift


def failings(entry: Mapping[str, Any]) -> list[Point]:
    """Return what a reader should know about where the model fails, the most telling first."""
    found = [
        *_missing(entry),
        *_weakest(entry),
        *_length(entry),
        *_calibration(entry),
        *_spoilt(entry),
    ]
    if not found and not any(entry.get(part) for part in ("subsets", "calibration", "lengths")):
        return [Point("Not looked at", "subsets, lengths and confidence; plaudit evaluate measures them.", False)]
    found = found or [Point("No fault found", "no subset, length, confidence or count stands out.", False)]
    return found if any(point.is_fault for point in found) else [*_mistaken(entry), *found]


def _mistaken(entry: Mapping[str, Any]) -> list[Point]:
    """How many rows are wrong, for a model of which there is no more to say; nothing where the figure is no share of rows."""
    figure, kind = figure_of(entry), str(entry.get("kind"))
    if kind not in MEANINGS or not is_number(figure.get("official")) or not is_number(figure.get("n")):
        return []
    count = round((1 - figure["official"]) * figure["n"])
    if not count:
        return [Point("Nowhere", f"all {number(figure['n'])} {ROWS_ARE[kind]} are right.", False)]
    below = "; the worst of them stand below" if entry.get("worst") else ""
    return [
        Point(
            "Nowhere in particular",
            f"{number(count)} of {number(figure['n'])} {ROWS_ARE[kind]} are wrong{below}.",
            False,
        )
    ]


def _missing(entry: Mapping[str, Any]) -> list[Point]:
    if not entry.get("incomplete"):
        return []
    reason = one_line(entry["incomplete"], 600).rstrip(".")
    return [Point("Incomplete", f"{reason}. The figures here are over what was given; they are not the benchmark's.")]


def _weakest(entry: Mapping[str, Any]) -> list[Point]:
    """The subsets whose interval lies wholly below the overall figure; else the lowest, with a word of caution."""
    overall = figure_of(entry).get("official")
    rated = [
        (name, one)
        for name, one in (entry.get("subsets") or {}).items()
        if is_number((one or {}).get("official")) and (one.get("n") or 0) >= ROWS_TO_JUDGE
    ]
    if len(rated) < 2 or overall is None:
        return []
    rated.sort(key=lambda item: item[1]["official"])
    clearly = [item for item in rated if item[1].get("interval") and item[1]["interval"][1] < overall]
    named = [
        f"{one_line(name, 60)} {percent(one['official'])} ({interval(one.get('interval'))}, n = {number(one.get('n'))})"
        for name, one in (clearly or rated[:1])[:3]
    ]
    if clearly:
        rest = len(clearly) - 3
        more = f" {rest} more of {len(rated)} {'lies' if rest == 1 else 'lie'} surely below it." if rest > 0 else ""
        return [Point("Weakest", f"{'; '.join(named)}. Overall: {percent(overall)}.{more}")]
    text = f"{named[0]}, but the interval reaches the overall figure of {percent(overall)}: this may be chance."
    return [Point("Lowest", text, False)]


def _length(entry: Mapping[str, Any]) -> list[Point]:
    longer, shorter = (_baseline(entry, f"accuracy_correct_{side}") for side in ("longer", "shorter"))
    if longer is None or shorter is None:
        return []
    often = _baseline(entry, "chooses_longer")
    habit = "" if often is None else f" It chooses the longer answer in {percent(often)} of the cases."
    text = f"right in {percent(longer)} where the right answer is the longer one, in {percent(shorter)} where it is shorter."
    if abs(longer - shorter) < LENGTH_GAP:
        return [Point("No length bias to speak of", text + habit, False)]
    rows, share = figure_of(entry).get("n") or 0, _baseline(entry, "correct_is_longer")
    share = 0.5 if share is None else share
    other = _baseline(entry, "correct_is_shorter")
    if _is_noise((longer, rows * share), (shorter, rows * (1 - share if other is None else other))):
        return [Point("Length", f"{text}{habit} There are too few rows to call that a fault.", False)]
    side = "long" if longer > shorter else "short"
    return [Point(f"Leans to {side} answers", text + habit)]


def _is_noise(*groups: tuple[float, float]) -> bool:
    """Whether the shares of two groups of rows, each with its number of rows, may be apart by chance: less than two standard
    errors. One right and one wrong row are added to each group, so that the share of a few rows, 0 or 1, is none that is
    sure. Source: Agresti and Caffo (2000), The American Statistician 54."""
    shares = [((share * rows + 1) / (rows + 2), rows + 2) for share, rows in groups]
    error = math.sqrt(sum(share * (1 - share) / rows for share, rows in shares))
    return abs(shares[0][0] - shares[1][0]) < 2 * error


def _calibration(entry: Mapping[str, Any]) -> list[Point]:
    found = entry.get("calibration") or {}
    bins = [one for one in found.get("bins") or [] if one.get("n") and is_number(one.get("confidence"))]
    total = sum(one["n"] for one in bins)
    if not total or not is_number(found.get("ece")):
        return []
    sure = sum(one["n"] * one["confidence"] for one in bins) / total
    right = sum(one["n"] * (one.get("accuracy") or 0.0) for one in bins) / total
    text = f"comparing two answers it is on average {percent(sure)} sure, and right in {percent(right)} (calibration error {percent(found['ece'])})."
    if found["ece"] < CALIBRATION_GAP:
        return [Point("Knows how sure to be", text, False)]
    # Of few rows the ten bins are off by chance alone.
    noise = 1 / math.sqrt(figure_of(entry).get("n") or 1)
    if abs(sure - right) < noise:
        return [
            Point(
                "Confidence", f"{text} There are too few rows, or too small a difference, to call that a fault.", False
            )
        ]
    temperature = found.get("temperature")
    if is_number(temperature) and temperature > 0 and is_number(found.get("nll_at_temperature")):
        scaling = (
            f"Dividing the rewards by {temperature:.3g}"
            if temperature >= 1
            else f"Multiplying the rewards by {1 / temperature:.3g}"
        )
        text += (
            f" {scaling} would take the loss per pair from {decimal(found.get('nll'))}"
            f" to {decimal(found['nll_at_temperature'])} nats; which answer is preferred stays the same."
        )
    return [Point("Too sure of itself" if sure > right else "Not sure enough of itself", text)]


def _spoilt(entry: Mapping[str, Any]) -> list[Point]:
    """Rows that could not be judged as they were meant to be."""
    counts = entry.get("counts") or {}
    total = counts.get("n") or figure_of(entry).get("n") or 0
    kinds = (
        ("n_truncated", "Cut texts", "{rows} ({share}) held a text longer than the model reads, which was cut"),
        ("n_tied", "Ties", "in {rows} ({share}) a right and a wrong answer got the same reward"),
        ("n_nonfinite", "Rewards that are no numbers", "{rows} ({share}) with an infinite or undefined reward"),
        ("n_template_missing", "No chat template", "{rows} ({share}) scored without a chat template"),
        ("n_identical_texts", "Identical answers", "in {rows} ({share}) a right and a wrong answer are the same text"),
    )
    found = []
    for key, about, text in kinds:
        count = counts.get(key)
        if not is_number(count) or not count or not total:
            continue
        rows = f"{number(count)} row{'' if count == 1 else 's'}"
        is_much = count / total >= SHARE_SAID or key in ("n_nonfinite", "n_template_missing")
        found.append(Point(about, text.format(rows=rows, share=percent(count / total)) + ".", is_much))
    return found


def baselines_of(entry: Mapping[str, Any], subset: str | None = None) -> Mapping[str, Any]:
    """Return what the length of the answers alone explains, over all rows or over one subset's."""
    found: Any = entry.get("baselines") or {}
    if subset is None:
        return found.get("overall") or found
    return (found.get("subsets") or {}).get(subset) or {}


def _baseline(entry: Mapping[str, Any], key: str) -> float | None:
    value = baselines_of(entry).get(key)
    return value if is_number(value) else None


class Part(NamedTuple):
    """A row of the table of figures."""

    name: str
    figure: Mapping[str, Any]
    baselines: Mapping[str, Any]


def parts_of(entry: Mapping[str, Any]) -> dict[str, list[Part]]:
    """Return the benchmark, its sections and its subsets, in the order in which a table shows them."""
    groups: dict[str, list[Part]] = {}
    if figure_of(entry):
        name = "Overall" if entry.get("overall") else "Over the rows given"
        groups[""] = [Part(name, figure_of(entry), baselines_of(entry))]
    sections, subsets = entry.get("sections") or {}, entry.get("subsets") or {}
    groups["Sections"] = [
        Part(name, _as_figure(one), baselines_of(entry, name)) for name, one in sections.items() if _as_figure(one)
    ]
    groups["Subsets"] = [
        Part(name, one or {}, baselines_of(entry, name)) for name, one in subsets.items() if name not in sections
    ]
    return {title: parts for title, parts in groups.items() if parts}


def _as_figure(one: Any) -> Mapping[str, Any]:
    """Return a section's figure, of which some benchmarks give the number only."""
    if is_number(one):
        return {"official": one}
    return one if isinstance(one, Mapping) and is_number(one.get("official")) else {}
