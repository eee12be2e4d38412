"""Pictures: the page's colours, the same bytes for the same data, and nothing that a name could break."""

import math
import re
import warnings
import xml.etree.ElementTree as ElementTree

import made_results as made
import matplotlib
import pytest

from plaudit import plots
from plaudit.plots import Line

BINS = made.calibration()["bins"]
DISTRIBUTIONS = {"easy": made.distribution(1, -1), "hard": made.distribution(0.2, -0.1)}
LENGTHS = made.pairs_entry()["lengths"]["bins"]
CELLS = [[0.7, 0.5, None], [0.8, 0.7, 0.45], [1.0, 0.8, 0.0]]
STYLES = ("concise", "plain", "markdown")
CURVE = Line("this model", [0.0, 0.19, 0.64], [0.3, 0.4, 0.5])
DRAWN = {
    "reliability": lambda name="p": plots.reliability(BINS, name, "alt"),
    "histogram": lambda name="p": plots.histogram(DISTRIBUTIONS["easy"], name, "alt"),
    "ridges": lambda name="p": plots.ridges(DISTRIBUTIONS, name, "alt"),
    "lengths": lambda name="p": plots.lengths(LENGTHS, "characters", name, "alt"),
    "matrices": lambda name="p": plots.matrices({"chat": CELLS, "math": CELLS}, STYLES, name, "alt"),
    "best_of": lambda name="p": plots.best_of([CURVE], {0.0: 1, 0.19: 2, 0.64: 4}, name, "alt", [(0.2, 0.6)] * 3),
    "course": lambda name="p": plots.course(
        [Line("training", [1, 2], [0.7, 0.6], "train")], name, "alt", mark=(0.69, "m")
    ),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_a_picture_has_only_the_pages_colours_and_fonts(kind):
    svg = DRAWN[kind]()
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(plots.PAINT)
    assert "var(--ink)" in svg
    assert re.findall(r"#[0-9a-fA-F]{6}\b(?![^<]*\))", re.sub(r"(url\(|href=\")#[\w-]+", "", svg)) == []
    assert "font-family" not in svg
    assert "<script" not in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")


@pytest.mark.parametrize("kind", DRAWN)
def test_a_picture_is_well_formed_named_and_light(kind):
    svg = DRAWN[kind]()
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "alt"
    assert root.get("width") is None, "the page gives the width"
    assert len(svg) < 40_000


@pytest.mark.parametrize("kind", DRAWN)
def test_the_same_data_gives_the_same_bytes_and_another_name_other_ids(kind):
    assert DRAWN[kind]() == DRAWN[kind]()
    ids = [set(re.findall(r' id="([^"]+)"', DRAWN[kind](name))) for name in ("one", "two")]
    assert ids[0].isdisjoint(ids[1])


def test_a_users_settings_neither_show_nor_are_changed():
    before = DRAWN["lengths"](), DRAWN["reliability"]()
    theirs = {"axes.unicode_minus": False, "lines.dash_capstyle": "round", "svg.fonttype": "path", "font.size": 30.0}
    with matplotlib.rc_context(theirs):
        assert (DRAWN["lengths"](), DRAWN["reliability"]()) == before
        assert {name: matplotlib.rcParams[name] for name in theirs} == theirs


@pytest.mark.parametrize("name", [made.HOSTILE, "$\\frac$", "数学", "a\nb\tc", "x" * 500, ""])
def test_no_name_breaks_a_picture_or_warns(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.ridges({name: DISTRIBUTIONS["easy"], "b": DISTRIBUTIONS["hard"]}, "p", f'say "{name}" <b>')
        plots.matrices({name: CELLS}, STYLES, "p", "alt")
        plots.best_of([CURVE._replace(name=name)], {0.0: 1}, "p", "alt")
    assert "<script>" not in svg
    assert "<b>" not in svg
    assert "\x00" not in svg
    assert "x" * 30 not in re.sub("<svg[^>]*>", "", svg)


def test_values_are_where_they_belong():
    # Two counts: the right answers fill the first bin, the wrong ones the second.
    svg = plots.histogram({"edges": [0, 1, 2], "chosen": [9, 0], "rejected": [0, 5]}, "p", "alt")
    assert "right answers" in svg
    assert "wrong answers" in svg
    assert "stroke-dasharray" in svg, "colour is not all that tells the two apart"
    numbers = re.findall(">(\\d+|\N{EN DASH})</text>", plots.matrices({"chat": CELLS}, STYLES, "p", "alt"))
    assert numbers == ["70", "50", "\N{EN DASH}", "80", "70", "45", "100", "80", "0"]


def test_pictures_of_next_to_nothing_are_drawn():
    empty = {"edges": [0.0, 1.0], "chosen": [0], "rejected": [0]}
    one_bin = [{"low": 0.95, "high": 1.0, "n": 3, "confidence": 0.99, "accuracy": 1.0}]
    assert plots.histogram(empty, "p", "alt").startswith("<svg")
    assert plots.ridges({"a": empty}, "p", "alt").startswith("<svg")
    assert plots.reliability(one_bin, "p", "alt").startswith("<svg")
    assert plots.course([Line("training", [5], [math.pi])], "p", "alt").startswith("<svg")
    assert plots.best_of([Line("m", [0.0, 0.2], [0.0, 0.0])], {}, "p", "alt").startswith("<svg")


def test_the_marks_of_steps_are_whole_numbers():
    for last in (3, 40, 7000):
        svg = plots.course([Line("training", [last / 2, last], [0.69, 0.68])], "p", "alt")
        marks = [mark.replace(",", "") for mark in re.findall(r">([\d,.]+)</text>", svg)]
        # The loss, beside the steps, is below 1.
        assert len([mark for mark in marks if float(mark) >= 1]) >= 2
        assert all(float(mark) < 1 or mark.isdigit() for mark in marks), marks


def test_many_curves_differ_in_more_than_colour_and_leave_room_for_their_names():
    curves = [CURVE._replace(name=f"set {place}") for place in range(5)]
    svg = plots.best_of(curves, {0.0: 1, 0.19: 2}, "p", "alt")
    few = plots.best_of(curves[:1], {0.0: 1, 0.19: 2}, "p", "alt")
    heights = [float(re.search(r'viewBox="0 0 \S+ (\S+)"', one)[1]) for one in (few, svg)]
    assert heights[1] == heights[0] + 32
    assert len({(look[1], str(look[2])) for look in plots.LOOKS}) == len(plots.LOOKS)
    assert "k=2" in few
    assert "k=2" not in svg
    assert all(f">set {place}<" in svg for place in range(5))
