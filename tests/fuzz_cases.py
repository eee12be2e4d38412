"""A target of the fuzzing: an entrance of data or options, what it is fed with, and what must hold after."""

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import make_tokenizer
from fuzzing import (
    Refused,
    deadline,
    same,
)


@dataclass(frozen=True)
class Target:
    """An entrance. inputs: what it is fed with. check: feeds it, and raises Refused or AssertionError. share: of the cases."""

    name: str
    inputs: Any
    check: Callable[[Any], None]
    share: int


TARGETS: dict[str, Target] = {}


def target(inputs: Any, share: int = 10) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Add a function to TARGETS under its name. share: how many of the cases it gets, beside the others' shares."""

    def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
        TARGETS[check.__name__] = Target(check.__name__, inputs, check, share)
        return check

    return add


@contextlib.contextmanager
def unchanged(*values: Any) -> Iterator[None]:
    """Hold that the values are, at the end, what they were; those too deep to be copied are taken on trust."""
    try:
        before = copy.deepcopy(values)
    except Exception:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(RecursionError):
            assert same(before, values), "the caller's input was changed"


@functools.cache
def tokenizer(chat_template: str | None = None) -> Any:
    made = make_tokenizer()
    if chat_template is not None:
        made.chat_template = chat_template
    return made


@functools.cache
def folder() -> Path:
    """Return a directory for files of this process, which goes with it."""
    kept = tempfile.TemporaryDirectory(prefix="fuzz-")
    folder.kept = kept  # type: ignore[attr-defined]
    return Path(kept.name)


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


def run_case(one: Target, case: Any) -> str:
    """Run a case within its time; return "accepted" or "refused". AssertionError or TooSlow for what must not be."""
    with deadline():
        try:
            one.check(case)
        except Refused:
            return "refused"
    return "accepted"
