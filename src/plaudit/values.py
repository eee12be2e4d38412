"""Values that users give: whether one is of the type that an option says, and how an error shows it."""

import math
import os
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def shown(value: Any) -> str:
    """Return a value as an error shows it: short, with its type."""
    return f"{type(value).__name__} {brief(value, 60)}"


def brief(value: Any, most: int = 200) -> str:
    """Return a value as it is written in Python, in no more characters than that."""
    try:
        text = repr(value)
    # Of a number with thousands of digits, a list in a list ten thousand times over, or somebody's own class.
    except Exception:
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= most else text[: most - 3] + "..."


def finite_number(value: Any) -> float | None:
    """Return a finite real number as a float; None for anything else, and for a number that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def wanted_instead(value: Any, hint: Any) -> str | None:
    """Return in words what a field of this type takes, where the value is nothing that it takes; None where it is.

    A path stands for its text, a list for a tuple, and a text of an Enum for its member.
    """
    if any(_is_of(value, each) for each in _alternatives(hint)):
        return None
    words = dict.fromkeys(_in_words(each) for each in _alternatives(hint))
    return " or ".join(words)


def _alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, without str where an Enum says which texts there are."""
    kinds = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    return [kind for kind in kinds if kind is not str] if any(map(_is_enum, kinds)) else kinds


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_of(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if kind in (None, type(None)):
        return value is None
    if _is_enum(kind):
        return isinstance(value, kind) or (isinstance(value, str) and value in {each.value for each in kind})
    if origin is Literal:
        return any(value is each for each in parts)
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    if origin in (list, tuple):
        is_list = isinstance(value, (list, tuple))
        return is_list and all(any(_is_of(item, part) for part in parts if part is not ...) for item in value)
    if origin is dict:
        return isinstance(value, Mapping)
    return isinstance(value, origin)


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if _is_enum(kind):
        return "one of " + ", ".join(repr(each.value) for each in kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (list, tuple):
        return f"a list, each {_in_words(parts[0])}" if parts else "a list"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text", dict: "a dict"}
    return "None" if kind in (None, type(None)) else words.get(origin, f"a {getattr(origin, '__name__', origin)}")
