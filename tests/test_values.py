"""Whether a value is of a type, and how an error shows it."""

import decimal
import fractions
import math
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from plaudit.values import brief, finite_number, shown, wanted_instead


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, bool),
        (3, int),
        (np.int64(3), int),
        (3, float),
        (0.5, float),
        (np.float32(0.5), float),
        (math.nan, float),
        ("x", str),
        (Path("x"), str),
        (None, str | None),
        ("red", Color | str),
        (Color.RED, Color | str),
        (["a"], list[str]),
        ([], list[str] | None),
        (("a", "b"), tuple[str, ...]),
        ({"a": 1}, dict[str, Any] | str),
        (False, Literal[False] | None),
        (object(), Any),
    ],
)
def test_a_value_of_the_type_is_taken(value, hint):
    assert wanted_instead(value, hint) is None


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ("yes", bool, "True or False"),
        (1, bool, "True or False"),
        (True, int, "a whole number"),
        (3.0, int, "a whole number"),
        ("3", float | None, "a number or None"),
        (decimal.Decimal("1"), float, "a number"),
        (3, str, "text"),
        (b"x", str, "text"),
        ("green", Color | str, "one of 'red', 'blue'"),
        (["a", 3], list[str] | None, "a list, each text or None"),
        ("a", list[str], "a list, each text"),
        ([1], dict[str, Any], "a dict"),
        (0, Literal[False], "False"),
    ],
)
def test_another_value_is_answered_with_what_is_taken(value, hint, said):
    assert wanted_instead(value, hint) == said


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3.0),
        (fractions.Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (True, None),
        ("3", None),
        (math.nan, None),
        (-math.inf, None),
        (10**400, None),
        (decimal.Decimal("1"), None),
    ],
)
def test_a_finite_number_is_a_real_one_that_a_float_can_hold(value, number):
    assert finite_number(value) == number


def test_a_value_is_shown_short_and_with_its_type():
    assert shown("a" * 100) == f"str '{'a' * 56}..."
    assert brief(3) == "3"


@pytest.mark.parametrize("value", [10**5000, Unshowable()], ids=["digits", "object"])
def test_a_value_that_cannot_be_shown_is_named_by_its_type(value):
    assert brief(value) == f"a {type(value).__name__} that cannot be shown"


def test_a_list_that_holds_itself_many_times_over_can_be_shown():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert "list" in shown(deep)
