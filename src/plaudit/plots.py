"""Pictures of results: plain data in, SVG text out, to stand inside a page whose CSS gives the colours.

Every colour is a CSS variable of the page (--ink, --muted, --grid, --first, --second), so one picture serves the light and
the dark scheme; texts keep the page's fonts. The same data gives the same bytes. matplotlib draws; nothing here computes
a figure.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

# What matplotlib draws with, each replaced by the page's variable of that name: colours that nobody else would choose.
PAINT = {"ink": "#010203", "muted": "#040506", "grid": "#070809", "first": "#0a0b0c", "second": "#0d0e0f"}
WIDTH = 400  # in units of the picture, which a phone shows at 0.9 and a desktop at 1.15 pixels
TEXT, SMALL = 11.5, 10.0
# The dashes of a line that others are held against.
HELD_AGAINST = (0, (4, 3))
# Longest subset name drawn beside a row; the table below the picture has it whole.
LONGEST_NAME = 26


class Line(NamedTuple):
    """A named curve. style: "train" (thin), "eval" (thick, with markers) or "mark" (what others are held against)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "eval"


def reliability(bins: Sequence[Mapping[str, Any]], name: str, alt: str) -> str:
    """Return the reliability diagram: how often the model is right where it says how sure it is; shares 0 to 1.

    bins: as results.json has them: low, high, n, confidence, accuracy; empty ones are left out. The bars at the foot, and
    the size of the points, show how many comparisons each bin holds.
    """
    filled = [one for one in bins if one["n"] and one["confidence"] is not None and one["accuracy"] is not None]
    with drawing(name) as picture:
        axes = picture.axes(height=290, left=46)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(0, 1.04)
        _percent_ticks(axes.set_xticks, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        _percent_ticks(axes.set_yticks, [0, 0.25, 0.5, 0.75, 1.0])
        largest = max((one["n"] for one in filled), default=1)
        axes.bar(
            [(one["low"] + one["high"]) / 2 for one in filled],
            [0.2 * one["n"] / largest for one in filled],
            [0.92 * (one["high"] - one["low"]) for one in filled],
            color=PAINT["muted"],
            alpha=0.28,
        )
        axes.plot([0.5, 1], [0.5, 1], color=PAINT["muted"], linewidth=1.2, linestyle=HELD_AGAINST)
        sure, right = [one["confidence"] for one in filled], [one["accuracy"] for one in filled]
        axes.plot(sure, right, color=PAINT["first"], linewidth=1.5, alpha=0.7)
        # A point that few comparisons stand behind is a small one.
        sizes = [12 + 58 * one["n"] / largest for one in filled]
        axes.scatter(sure, right, sizes, color=PAINT["first"], zorder=3, linewidths=0)
        picture.label(axes, "how sure the model is", "how often it is right")
        return picture.svg(alt)


def histogram(distribution: Mapping[str, Any], name: str, alt: str) -> str:
    """Return one histogram of the rewards of right answers (filled) over those of wrong ones (outlined, dashed).

    distribution: edges (one more than counts), chosen and rejected (counts).
    """
    edges = distribution["edges"]
    with drawing(name) as picture:
        axes = picture.axes(height=250, left=14)
        shares = {side: _shares(distribution[side]) for side in ("chosen", "rejected")}
        axes.stairs(shares["chosen"], edges, fill=True, color=PAINT["first"], alpha=0.3, linewidth=0)
        axes.stairs(shares["chosen"], edges, color=PAINT["first"], linewidth=1.8, label="right answers")
        look = {"color": PAINT["second"], "linewidth": 1.8, "linestyle": (0, (4, 2)), "label": "wrong answers"}
        axes.stairs(shares["rejected"], edges, **look)
        axes.set_yticks([])
        axes.set_ylim(0, 1.06 * max([*shares["chosen"], *shares["rejected"], 1e-9]))
        axes.spines["left"].set_visible(False)
        picture.label(axes, "reward", None)
        picture.legend(axes)
        return picture.svg(alt)


def ridges(distributions: Mapping[str, Mapping[str, Any]], name: str, alt: str) -> str:
    """Return a row a subset: rewards of right answers above its line, of wrong ones below (dashed outline)."""
    step = 34
    names = [_short(one) for one in distributions]
    with drawing(name) as picture:
        left = 16 + 6.2 * max(map(len, names))
        axes = picture.axes(height=len(distributions) * step + 74, left=left)
        for row, one in enumerate(distributions.values()):
            axes.axhline(-row, color=PAINT["grid"], linewidth=1)
            shares = {side: _shares(one[side]) for side in ("chosen", "rejected")}
            scale = 0.44 / max([*shares["chosen"], *shares["rejected"], 1e-9])
            for side, up, paint, alpha, dashes, label in (
                ("chosen", scale, "first", 0.35, "-", "right answers, above the line"),
                ("rejected", -scale, "second", 0.16, (0, (3, 1.5)), "wrong answers, below"),
            ):
                ends = [up * share - row for share in shares[side]]
                shape = {"values": ends, "edges": one["edges"], "baseline": -row, "color": PAINT[paint]}
                axes.stairs(**shape, fill=True, alpha=alpha, linewidth=0)
                axes.stairs(**shape, linewidth=1.2, linestyle=dashes, label=None if row else label)
        axes.set_ylim(-len(distributions) + 0.45, 0.55)
        axes.set_yticks([-row for row in range(len(distributions))], names)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        picture.label(axes, "reward", None)
        picture.legend(axes, left=-left / (WIDTH - left - 12))
        return picture.svg(alt)


def lengths(bins: Sequence[Mapping[str, Any]], unit: str, name: str, alt: str) -> str:
    """Return how the reward difference (above) and the accuracy (below) go with the difference in length.

    bins: in order, each with low, high (right answer's length minus wrong answer's, in `unit`), n, reward_difference (mean)
    and accuracy (0 to 1). The bins stand at equal distances: their labels are their middles.
    """
    filled = [one for one in bins if one["n"] and one["reward_difference"] is not None]
    places = list(range(len(filled)))
    with drawing(name) as picture:
        above = picture.axes(height=330, left=50, bottom=176)
        below = picture.axes(height=330, left=50, top=190)
        drawn = [one["reward_difference"] for one in filled]
        above.axhline(0, color=PAINT["muted"], linewidth=1.2)
        above.bar(places, drawn, 0.72, color=PAINT["first"], alpha=0.55)
        below.axhline(0.5, color=PAINT["muted"], linewidth=1.2, linestyle=HELD_AGAINST)
        rated = [(place, one["accuracy"]) for place, one in enumerate(filled) if one["accuracy"] is not None]
        below.plot(
            [place for place, _ in rated],
            [accuracy for _, accuracy in rated],
            color=PAINT["second"],
            marker="s",
            markersize=5,
            linewidth=1.8,
        )
        below.set_ylim(0, 1.05)
        _percent_ticks(below.set_yticks, [0, 0.5, 1.0])
        for axes in (above, below):
            axes.set_xlim(-0.6, len(filled) - 0.4)
            axes.grid(visible=False, axis="x")
        middles = [one.get("length_difference", _middle(one)) for one in filled]
        every = max(1, math.ceil(len(filled) / 7))
        above.set_xticks([])
        below.set_xticks(places[::every], [_signed(middle) for middle in middles][::every])
        picture.label(above, None, "mean reward gap")
        picture.label(below, f"right answer longer by, in {unit}", "how often it is right")
        return picture.svg(alt)


def matrices(cells: Mapping[str, Sequence[Sequence[float | None]]], styles: Sequence[str], name: str, alt: str) -> str:
    """Return a heat map a domain: how often a right answer in the row's style beats a wrong one in the column's.

    cells: shares 0 to 1, three rows of three, in the order of the three styles.
    """
    across, size = 3, 31
    down = math.ceil(len(cells) / across)
    with drawing(name) as picture:
        height = down * 158 + 6
        for number, (domain, rows) in enumerate(cells.items()):
            column, line = number % across, number // across
            left = 62 + column * 113
            axes = picture.axes(
                height=height,
                left=left,
                right=WIDTH - left - 3 * size,
                top=24 + line * 158,
                bottom=height - (24 + line * 158 + 3 * size),
            )
            _draw_squares(axes, rows)
            axes.set_title(_short(domain, 19), fontsize=TEXT, color=PAINT["ink"], pad=6, parse_math=False)
            axes.set_yticks([0.5, 1.5, 2.5], styles if column == 0 else ["", "", ""])
            axes.set_xticks([0.5, 1.5, 2.5], styles, rotation=38, ha="right", rotation_mode="anchor")
            axes.tick_params(labelsize=SMALL, pad=2)
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        return picture.svg(alt)


def _draw_squares(axes: Any, rows: Sequence[Sequence[float | None]]) -> None:
    """Draw a table of shares, each a square with its percentage, from its upper left corner."""
    from matplotlib.patches import Rectangle

    axes.set_xlim(0, 3)
    axes.set_ylim(3, 0)
    for i, row in enumerate(rows):
        for j, share in enumerate(row):
            # From a faint tint at one half to a strong one at 1; below one half, the other colour.
            paint = PAINT["first"] if share is None or share >= 0.5 else PAINT["second"]
            strength = 0.0 if share is None else 0.06 + 0.9 * abs(share - 0.5)
            axes.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, color=paint, alpha=strength, linewidth=0))
            text = "\N{EN DASH}" if share is None else f"{100 * share:.0f}"
            axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", fontsize=TEXT, color=PAINT["ink"])


def best_of(
    curves: Sequence[Line],
    ks: Mapping[float, int],
    name: str,
    alt: str,
    band: Sequence[tuple[float, float]] | None = None,
) -> str:
    """Return the share of right answers among those chosen from k, against the KL divergence from the policy, in nats.

    curves: x in nats, y 0 to 1. ks: which k stands at which x, for the marks that carry a label. band: the interval of
    each point of the first curve.
    """
    with drawing(name) as picture:
        axes = picture.axes(height=270, left=46, names=len(curves))
        if band is not None:
            lower, upper = zip(*band, strict=True)
            axes.fill_between(curves[0].x, lower, upper, color=PAINT["second"], alpha=0.16, linewidth=0)
        # A mark where k doubles: one at every k would be a blot.
        _draw_lines(axes, curves, marks=[place for place, x in enumerate(curves[0].x) if x in ks])
        highest = max((y for curve in curves for y in curve.y), default=1.0)
        lowest = min((y for curve in curves for y in curve.y), default=0.0)
        room = max(0.02, highest - lowest)
        axes.set_ylim(max(0.0, lowest - 0.25 * room), min(1.02, highest + 0.25 * room))
        _percent_axis(axes.yaxis)
        drawn = [curve for curve in curves if curve.style != "mark"]
        # Of several curves the labels would lie on each other.
        for x, y in zip(drawn[0].x, drawn[0].y, strict=True) if len(drawn) == 1 else ():
            if x in ks:
                look = {"ha": "center", "fontsize": SMALL, "color": PAINT["ink"]}
                axes.annotate(f"k={ks[x]}", (x, y), (0, 8), textcoords="offset points", **look)
        axes.margins(x=0.06)
        largest = max(ks.values(), default=1)
        picture.label(axes, f"KL divergence from the policy, nats (k = 1 to {largest})", None)
        picture.legend(axes)
        return picture.svg(alt)


def course(
    lines: Sequence[Line], name: str, alt: str, *, mark: tuple[float, str] | None = None, share: bool = False
) -> str:
    """Return how a logged number went over the steps of a training.

    mark: a value to draw as a dashed line, and its name. share: whether the values are shares, 0 to 1, to show in percent.
    """
    with drawing(name) as picture:
        axes = picture.axes(height=230, left=52, names=len(lines))
        _draw_lines(axes, lines)
        if mark is not None:
            axes.axhline(mark[0], color=PAINT["muted"], linewidth=1.2, linestyle=HELD_AGAINST)
            axes.annotate(
                mark[1],
                (1, mark[0]),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=SMALL,
                color=PAINT["muted"],
            )
        if share:
            _percent_axis(axes.yaxis)
        # Half a step is none.
        axes.xaxis.get_major_locator().set_params(integer=True)
        picture.label(axes, "step", None)
        if len(lines) > 1 or lines[0].name not in ("", "training"):
            picture.legend(axes)
        return picture.svg(alt)


# How curves look that are not of training: each differs in its marker and dashes, not only in its colour.
LOOKS = (
    ("second", "o", "-"),
    ("first", "s", (0, (5, 2))),
    ("ink", "^", (0, (1, 1.5))),
    ("muted", "D", "-."),
    ("second", "v", (0, (2, 2))),
    ("first", "P", (0, (8, 2, 1, 2))),
    ("ink", "X", "-"),
)


def _draw_lines(axes: Any, lines: Sequence[Line], marks: Sequence[int] | None = None) -> None:
    """Draw curves by their style. marks: which points carry a marker; all unless given, or none of very many."""
    evals = 0
    for line in lines:
        label = _short(line.name, 30) or None
        if line.style == "train":
            axes.plot(line.x, line.y, color=PAINT["first"], linewidth=1.4, label=label)
            continue
        if line.style == "mark":
            axes.plot(line.x, line.y, color=PAINT["muted"], linewidth=1.4, linestyle=HELD_AGAINST, label=label)
            continue
        paint, marker, dashes = LOOKS[evals % len(LOOKS)]
        evals += 1
        # Above some forty points the markers would hide the line.
        places = marks if marks is not None or len(line.x) <= 40 else []
        look = {"linewidth": 2, "marker": marker, "markersize": 4.5, "markevery": places}
        axes.plot(line.x, line.y, color=PAINT[paint], linestyle=dashes, label=label, **look)


class Picture:
    """One picture in the making: its figure, and how its parts look."""

    def __init__(self, name: str) -> None:
        from matplotlib.figure import Figure

        self.name = name
        self.figure = Figure(frameon=False)

    def axes(
        self, height: float, left: float, *, right: float = 12, top: float = 28, bottom: float = 46, names: int = 1
    ) -> Any:
        """Return axes with these margins in a picture of this height, all in the picture's units.

        names: how many a legend will hold, two a row: what needs more than one row makes the picture higher.
        """
        more = 16 * (math.ceil(names / 2) - 1)
        height, top = height + more, top + more
        self.figure.set_size_inches(WIDTH / 72, height / 72)
        place = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
        axes = self.figure.add_axes(place, frameon=True)
        axes.patch.set_visible(False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(PAINT["grid"])
        axes.tick_params(length=0, labelsize=SMALL + 0.5, labelcolor=PAINT["ink"], pad=5)
        axes.tick_params(axis="x", pad=7)
        axes.grid(visible=True, color=PAINT["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def label(self, axes: Any, x: str | None, y: str | None) -> None:
        """Name the axes; the upright one's name stands level above it, where it can be read."""
        if x:
            axes.set_xlabel(x, fontsize=TEXT, color=PAINT["ink"], labelpad=6)
        if y:
            axes.set_title(y, fontsize=TEXT, color=PAINT["ink"], loc="left", x=-0.02, pad=9)

    def legend(self, axes: Any, left: float = -0.02) -> None:
        """Name the curves, those that have a name, in a row above the axes."""
        if not axes.get_legend_handles_labels()[1]:
            return
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(left, 1.0),
            ncols=2,
            frameon=False,
            fontsize=SMALL + 0.5,
            labelcolor=PAINT["ink"],
            handlelength=2.2,
            columnspacing=1.4,
            borderaxespad=0.2,
        )

    def svg(self, alt: str) -> str:
        """Return the drawn picture as an <svg> element. alt: what somebody who cannot see it is told."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        written = io.StringIO()
        with warnings.catch_warnings():
            # A name in a script that matplotlib's own font lacks is drawn by the page's fonts.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            FigureCanvasSVG(self.figure).print_svg(written)
        return _inline(written.getvalue(), alt)


@contextmanager
def drawing(name: str) -> Iterator[Picture]:
    """Give a picture to draw under matplotlib's own defaults, whatever the user's settings are, which come back after.

    name: different for each picture of a page, for the ids within.
    """
    import matplotlib

    ours: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": TEXT}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(ours)
        yield Picture(name)


def _inline(document: str, alt: str) -> str:
    """Return the <svg> element of an SVG document: no fonts, fixed colours, size, or ids that nothing refers to."""
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    wanted = set(re.findall(r'(?:url\(|href=")#([\w-]+)', body))
    variable_of = {value: f"var(--{name})" for name, value in PAINT.items()}

    def lighten(match: re.Match[str]) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in wanted else "", match[0])
        tag = re.sub(r"font-family: [^;\"]*;? ?|font: (?=[^;\"]*;)", "", tag).replace("xlink:href", "href")
        tag = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", tag)
        return re.sub("|".join(variable_of), lambda found: variable_of[found[0]], tag)

    # Within tags only: what a text says stays as it is.
    body = re.sub(r"<[^>]+>", lighten, body)
    body = re.sub(r"\n\s*", "\n", re.sub(r"<defs>\s*</defs>|<g>\s*</g>", "", body))
    box = re.search(r'viewBox="[^"]*"', body)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg class="plot" role="img" aria-label="{_attribute(alt)}" {box[0]}>'
    return opening + body[body.index(">") + 1 :].strip()


def _attribute(text: str) -> str:
    return _printable(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _short(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name fit to stand in a picture: one line, and not so long that it would leave it."""
    name = _printable(name)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _signed(number: float) -> str:
    return f"{number:+,.0f}".replace("-", "\N{MINUS SIGN}") if round(number) else "0"


def _middle(one: Mapping[str, Any]) -> float:
    """Return where a bin is; an open one is at its closed end."""
    ends = [one[end] for end in ("low", "high") if one[end] is not None]
    return sum(ends) / len(ends) if ends else 0.0


def _percent_ticks(set_ticks: Callable[..., Any], shares: Sequence[float]) -> None:
    set_ticks(shares, [f"{100 * share:.0f} %" for share in shares])


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
