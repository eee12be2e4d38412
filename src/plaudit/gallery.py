"""Which pictures a set of results gives, each with what it shows in words and with its table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit import plots
from plaudit.metrics import LN_2
from plaudit.plots import Line
from plaudit.readable import one_line
from plaudit.wording import decimal, interval, is_number, number, percent

# A table holds at most so many rows, evenly chosen: a long training logs thousands.
LONGEST_TABLE = 120
# A curve is drawn through at most so many points.
LONGEST_CURVE = 400


@dataclass(frozen=True)
class Picture:
    """A picture for the page. svg: safe markup. columns, rows: its table, as texts; note: what the table leaves out."""

    title: str
    svg: str
    caption: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    note: str = ""


def benchmark_pictures(entry: Mapping[str, Any], key: str) -> list[Picture]:
    """Return the pictures of one benchmark. key: different for each benchmark of a page."""
    made = (
        _reliability(entry, key),
        _histogram(entry, key),
        _ridges(entry, key),
        _lengths(entry, key),
        _matrices(entry, key),
        _best_of(entry, key),
    )
    return [picture for picture in made if picture is not None]


def _reliability(entry: Mapping[str, Any], key: str) -> Picture | None:
    bins = [one for one in (entry.get("calibration") or {}).get("bins") or [] if one.get("n")]
    if not bins:
        return None
    rows = [
        (
            f"{percent(one['low'])} to {percent(one['high'])}",
            number(one["n"]),
            percent(one["confidence"]),
            percent(one["accuracy"]),
        )
        for one in bins
    ]
    calibration = entry["calibration"]
    alt = f"Reliability diagram: accuracy by confidence in {len(bins)} bins; calibration error {percent(calibration.get('ece'))}."
    return Picture(
        "Does it know how sure to be?",
        plots.reliability(bins, f"{key}-reliability", alt),
        "Points on the dashed line: right as often as the reward difference says. Below it the model is too sure, above it "
        "not sure enough. The grey bars show how many comparisons stand behind each point.",
        ("Confidence", "Comparisons", "Mean confidence", "Right"),
        rows,
        f"Loss {decimal(calibration.get('nll'))} nats a pair, Brier score {decimal(calibration.get('brier'))}, calibration error "
        f"{percent(calibration.get('ece'))}; fitted temperature {decimal(calibration.get('temperature'))}, loss at it "
        f"{decimal(calibration.get('nll_at_temperature'))}.",
    )


def _histogram(entry: Mapping[str, Any], key: str) -> Picture | None:
    found = _distributions(entry)
    if "all" not in found:
        return None
    one = found["all"]
    rows = [
        (f"{decimal(low)} to {decimal(high)}", number(chosen), number(rejected))
        for low, high, chosen, rejected in zip(
            one["edges"], one["edges"][1:], one["chosen"], one["rejected"], strict=False
        )
    ]
    alt = "Histogram of rewards: right answers filled, wrong answers outlined with dashes."
    return Picture(
        "Rewards of right and wrong answers",
        plots.histogram(one, f"{key}-rewards", alt),
        "The less the two shapes overlap, the easier the model tells them apart. Rewards of different prompts need not be "
        "comparable, so some overlap is usual.",
        ("Reward", "Right answers", "Wrong answers"),
        rows,
    )


def _ridges(entry: Mapping[str, Any], key: str) -> Picture | None:
    found = {name: one for name, one in _distributions(entry).items() if name != "all"}
    if len(found) < 2:
        return None
    columns = ("Subset", "Middle of right answers", "Middle of wrong answers", "Right answers", "Wrong answers")
    rows = [
        (
            one_line(name),
            _middle_bin(one["edges"], one["chosen"]),
            _middle_bin(one["edges"], one["rejected"]),
            number(sum(one["chosen"])),
            number(sum(one["rejected"])),
        )
        for name, one in found.items()
    ]
    alt = f"Histograms of rewards for {len(found)} subsets, right answers above each line, wrong answers below."
    return Picture(
        "The same, subset by subset",
        plots.ridges(found, f"{key}-subsets", alt),
        "Where the shape above a line and the one below stand at the same place, the model cannot tell that subset's right "
        "answers from its wrong ones.",
        columns,
        rows,
        "Each row has its own height. The middle is the bin that holds the median.",
    )


def _distributions(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = entry.get("distributions") or {}
    return {name: one for name, one in found.items() if one and len(one.get("edges") or []) > 1}


def _middle_bin(edges: Sequence[float], counts: Sequence[float]) -> str:
    """Return the bin that holds the median, as a text."""
    half, seen = sum(counts) / 2, 0.0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        seen += count
        if count and seen >= half:
            return f"{decimal(low)} to {decimal(high)}"
    return decimal(None)


def _lengths(entry: Mapping[str, Any], key: str) -> Picture | None:
    found: Any = entry.get("lengths") or {}
    bins = [one for one in (found.get("bins") if isinstance(found, Mapping) else found) or [] if one.get("n")]
    bins = [one for one in bins if is_number(one.get("reward_difference"))]
    if len(bins) < 2:
        return None
    unit = found.get("unit") or "characters" if isinstance(found, Mapping) else "characters"
    rows = [
        (
            f"{number(one['low'])} to {number(one['high'])}",
            number(one["n"]),
            decimal(one["reward_difference"]),
            percent(one.get("accuracy")),
        )
        for one in bins
    ]
    alt = f"Mean reward difference and accuracy in {len(bins)} bins of the length difference, in {unit}."
    return Picture(
        "Does length sway it?",
        plots.lengths(bins, unit, f"{key}-lengths", alt),
        "Above: the mean reward of right minus wrong answers. Below: how often it is right. Where they rise to the right, "
        "the model likes long answers; where they fall, short ones.",
        (f"Right answer longer by ({unit})", "Comparisons", "Mean reward difference", "Right"),
        rows,
    )


def _matrices(entry: Mapping[str, Any], key: str) -> Picture | None:
    if not entry.get("matrix"):
        return None
    domains = entry.get("matrices") or {}
    # Of one domain the mean over the domains is the same again.
    cells = {"mean": entry["matrix"], **domains} if len(domains) > 1 else domains or {"all": entry["matrix"]}
    styles = tuple(style.removeprefix("detailed ") for style in entry.get("styles") or ("concise", "plain", "markdown"))
    rows = [
        (one_line(domain), style, *(percent(share) for share in row))
        for domain, matrix in cells.items()
        for style, row in zip(styles, matrix, strict=True)
    ]
    alt = f"Heat maps, three by three styles, for {one_line(', '.join(cells))}: the table gives each number."
    return Picture(
        "Style against substance",
        plots.matrices(cells, styles, f"{key}-matrix", alt),
        "How often (%) a right answer in the row's style beats a wrong one in the column's. The upper right corner is hard: "
        "there the wrong answer has the richer style.",
        ("Domain", "Right answer's style", *(f"Wrong: {style}" for style in styles)),
        rows,
    )


def _best_of(entry: Mapping[str, Any], key: str) -> Picture | None:
    curves = {name: points for name, points in curves_of(entry).items() if len(points) > 1}
    if not curves:
        return None
    lines = [
        Line(name, [one["kl"] for one in points], [one["value"] for one in points]) for name, points in curves.items()
    ]
    first = next(iter(curves.values()))
    band = None
    if len(curves) == 1:
        # Of several sets the bands and best possible curves would hide the curves.
        if all(is_number(one.get("oracle")) for one in first):
            lines.append(Line("a perfect choice", lines[0].x, [one["oracle"] for one in first], "mark"))
        if all(one.get("interval") for one in first):
            band = [one["interval"] for one in first]
    ks = {one["kl"]: one["k"] for one in first if one["k"] & (one["k"] - 1) == 0 or one is first[-1]}
    rows = [
        (
            name,
            number(one["k"]),
            decimal(one["kl"]),
            percent(one["value"]),
            interval(one.get("interval")),
            percent(one.get("oracle")),
        )
        for name, points in curves.items()
        for one in points
    ]
    alt = f"Share of right answers when the best of k by reward is taken, up to k = {first[-1]['k']}."
    return Picture(
        "Taking the best of k",
        plots.best_of(lines, ks, f"{key}-best-of", alt, band),
        "The share of chosen answers that are right when the model picks one of k. Further right the choice is pushed harder; "
        "a curve that falls means that the model is being fooled.",
        ("Curve", "k", "KL, nats", "Right", "95 % interval", "A perfect choice"),
        rows,
    )


def curves_of(entry: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the best-of-k curves by name: one, or one a set; points with k, kl, value, and perhaps interval and oracle."""
    curve = entry.get("curve")
    named = curve if isinstance(curve, Mapping) else {"this model": curve}
    found = {}
    for name, points in named.items():
        points = points.get("curve") if isinstance(points, Mapping) else points
        usable = [one for one in points or [] if is_number(one.get("kl")) and is_number(one.get("value"))]
        if usable:
            found[one_line(name, 30)] = usable
    return found


def training_pictures(log_history: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Return the curves of a training: loss, accuracy, margin and learning rate, in training and in evaluation."""
    wanted = (
        ("loss", "Loss", "Below the dashed line the model does better than guessing.", (LN_2, "ln 2: guessing")),
        ("accuracy", "Accuracy", "Share of pairs whose better answer gets the higher reward.", None),
        ("margin", "Margin", "Mean reward of the better answers minus that of the others.", None),
        ("learning_rate", "Learning rate", "As the schedule gave it.", None),
    )
    made = []
    for name, title, caption, mark in wanted:
        lines = _logged(log_history, name)
        if not lines:
            continue
        ends = "; ".join(f"{line.name} from {decimal(line.y[0])} to {decimal(line.y[-1])}" for line in lines)
        is_share = name == "accuracy"
        thin = [
            Line(line.name, _spread(line.x, LONGEST_CURVE), _spread(line.y, LONGEST_CURVE), line.style)
            for line in lines
        ]
        svg = plots.course(thin, f"training-{name}", f"{title} by step: {ends}.", mark=mark, share=is_share)
        rows = [
            (line.name, number(x), percent(y) if is_share else decimal(y))
            for line in lines
            for x, y in zip(_spread(line.x, LONGEST_TABLE), _spread(line.y, LONGEST_TABLE), strict=True)
        ]
        longest = max(len(line.x) for line in lines)
        note = (
            f"Every {math.ceil(longest / LONGEST_TABLE)}th of {number(longest)} points."
            if longest > LONGEST_TABLE
            else ""
        )
        made.append(Picture(title, svg, caption, ("Curve", "Step", title), rows, note))
    return made


def _logged(log_history: Iterable[Mapping[str, Any]], name: str) -> list[Line]:
    """Return the curves of one logged number: that of training, and one a set that was evaluated."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in log_history:
        for key, value in record.items():
            curve = _curve_name(key, name)
            if curve is None or not is_number(value) or not is_number(record.get("step")):
                continue
            xs, ys = found.setdefault(curve, ([], []))
            xs.append(record["step"])
            ys.append(value)
    order = sorted(found, key=lambda curve: (curve != "training", curve))
    return [Line(curve, *found[curve], "train" if curve == "training" else "eval") for curve in order]


def _curve_name(key: str, name: str) -> str | None:
    """Return which curve a logged key belongs to: "eval_loss" and "eval_<set>_loss" are curves of "loss"."""
    if key == name:
        return "training"
    if key == f"eval_{name}":
        return "evaluation"
    if key.startswith("eval_") and key.endswith(f"_{name}"):
        return one_line(key[len("eval_") : -len(name) - 1], 40)
    return None


def _spread(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the values, evenly chosen, the last always among them."""
    step = math.ceil(len(values) / most)
    return [*values[:-1:step], values[-1]] if len(values) else []
