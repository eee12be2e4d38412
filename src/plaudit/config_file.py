"""A config file in YAML, key by key: the word that was written and what YAML makes of it, and no more than can be read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Options take a few kilobytes: a larger file is a data set, or a mistake.
LARGEST_BYTES = 1 << 20
# An alias stands for all that it names, and an alias of aliases for as many times that.
MOST_VALUES = 10_000
_PLAIN = "null bool int float str timestamp seq map".split()
_TAG = "tag:yaml.org,2002:"


class Entry(NamedTuple):
    """One key of the file. word: its value as it was written, in texts; value: as YAML has it."""

    key: str
    word: Any
    value: Any


def read_config(file: Path) -> list[Entry]:
    """Return the keys of a config file in their order, none for an empty one.

    FileNotFoundError, and ValueError that names the file, and the key where one is wrong: for what is no mapping of
    plain values, for a key given twice in one mapping, whose first value YAML would drop in silence, for a merge, and for
    aliases that hold themselves or stand for thousands of values.
    """
    place = f"config file {str(file)!r}"
    node = _composed(file, place)
    if node is None or (node.id == "scalar" and node.tag == f"{_TAG}null"):
        return []
    if node.id != "mapping":
        found = {"sequence": "list"}.get(node.id, "text")
        raise ValueError(f"{place} holds a {found}, but must hold 'option: value' lines")
    try:
        _count(node, {}, place)
        return [_entry(key, value, place) for key, value in node.value]
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply; options are no more than a few levels") from None


def _composed(file: Path, place: str) -> Any:
    import yaml

    if file.is_dir():
        raise ValueError(f"{place} is a directory; name the .yaml file in it")
    try:
        size = file.stat().st_size
        if size > LARGEST_BYTES:
            raise ValueError(
                f"{place} has {size:,} bytes, and options take a few thousand; name the file of the options"
            )
        return yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except FileNotFoundError:
        raise FileNotFoundError(f"{place} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{place} is not YAML: {_problem(error)}") from None
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply; options are no more than a few levels") from None


def _problem(error: Exception) -> str:
    """Return what is wrong with a YAML file and where, without the line itself, on which an access token may stand."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return (
        f"{getattr(error, 'problem', None) or 'it cannot be parsed'} (line {mark.line + 1}, column {mark.column + 1})"
    )


def _count(node: Any, counted: dict[int, int], place: str) -> int:
    """Return how many values a node stands for, aliases written out; ValueError for too many, and for what is not plain."""
    if id(node) in counted:
        if not counted[id(node)]:
            raise ValueError(
                f"{place}, line {node.start_mark.line + 1}: an alias stands inside what it names; write it out"
            )
        return counted[id(node)]
    counted[id(node)] = 0
    if node.tag not in {_TAG + name for name in _PLAIN}:
        known = node.tag.replace(_TAG, "!!")
        raise ValueError(
            f"{place}, line {node.start_mark.line + 1}: {known} is not for options; write a plain value, or a text in quotes"
        )
    total = 1 + sum(_count(each, counted, place) for each in _inside(node, place))
    if total > MOST_VALUES:
        raise ValueError(f"{place}: written out, its aliases are more than {MOST_VALUES:,} values; write them out")
    counted[id(node)] = total
    return total


def _inside(node: Any, place: str) -> Iterator[Any]:
    """Yield the nodes inside a node. ValueError for a key that is no text, or that is there twice."""
    if node.id == "sequence":
        yield from node.value
    seen: set[str] = set()
    for key, value in node.value if node.id == "mapping" else ():
        where = f"{place}, line {key.start_mark.line + 1}"
        if key.id != "scalar":
            raise ValueError(f"{where}: a key must be one word, not a {key.id}")
        if key.tag == f"{_TAG}merge":
            raise ValueError(f"{where}: '<<' merges nothing here; write the options out")
        name = key.value.replace("-", "_")
        if name in seen:
            raise ValueError(f"{place}: key {name!r} is there twice; leave one out")
        seen.add(name)
        yield value


def _entry(key: Any, node: Any, place: str) -> Entry:
    import yaml

    # What YAML makes of a plain word, such as a date that does not exist, may fail in many ways.
    failures = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
    try:
        value = _made(yaml.SafeLoader, node)
        word = _made(yaml.BaseLoader, node)
    except failures as error:
        raise ValueError(
            f"{place}: {key.value}: YAML cannot read its value ({_problem(error)}); write it in quotes"
        ) from None
    return Entry(key.value, word, value)


def _made(loader: Any, node: Any) -> Any:
    """Return what a loader makes of a node that is parsed already."""
    reader = loader("")
    try:
        return reader.construct_document(node)
    finally:
        reader.dispose()
