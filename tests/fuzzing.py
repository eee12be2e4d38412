"""What fuzzing is made of: whose an error is, values that nobody should send, and good inputs with something broken in them."""

import contextlib
import copy
import datetime
import decimal
import dis
import fractions
import json
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import plaudit

SOURCE = Path(plaudit.__file__).parent
DOCS = SOURCE.parents[1] / "docs"
# One case may take so long, in seconds, on a machine that does other things too.
PATIENCE = 20
# No error is longer than this, whatever it shows: column names of the user's own may be long.
LONGEST_MESSAGE = 1_000_000
RAISES = dis.opmap["RAISE_VARARGS"]


class Refused(Exception):
    """The input was refused as it should be: by an error of ours, which says where."""


class NotOurs(AssertionError):
    """An error that no user should see: another library's or Python's own, or one that does not say where."""


class TooSlow(BaseException):
    """A case that does not end. No code that catches exceptions may catch this one."""


def attempt(call: Callable[[], Any], *places: str, also: tuple[type[BaseException], ...] = ()) -> Any:
    """Return what the call returns; Refused where it raises an error of ours, NotOurs for any other.

    places: words of which the message must hold one. also: further exceptions that we may raise here.
    """
    try:
        return call()
    except (TooSlow, Refused):
        raise
    except BaseException as error:
        problem = _what_is_wrong(error, places, (ValueError, TypeError, *also))
        if problem:
            raise NotOurs(f"{problem}: {type(error).__name__}: {str(error)[:1000]}") from error
        raise Refused(str(error)) from None


def refusal(call: Callable[[], Any], *places: str) -> str | None:
    """Return the message of the refusal, None where the call returns."""
    try:
        attempt(call, *places)
    except Refused as refused:
        return str(refused)
    return None


def _what_is_wrong(error: BaseException, places: tuple[str, ...], kinds: tuple[type[BaseException], ...]) -> str:
    if not any(type(error) is kind for kind in kinds) and not _is_subclass_of_ours(error, kinds):
        return "another exception than ours"
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    if Path(code.co_filename).parent != SOURCE:
        return f"raised in {code.co_filename}"
    # An operation that fails in our file is not an error that we have written.
    if code.co_code[trace.tb_lasti] != RAISES:
        return f"not raised by a raise statement ({Path(code.co_filename).name}, line {trace.tb_lineno})"
    message = str(error)
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message):,} characters"
    if not message.strip() or (places and not any(place in message for place in places)):
        return f"a message without any of {places}"
    return ""


def _is_subclass_of_ours(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    return isinstance(error, kinds) and type(error).__module__.split(".")[0] == "plaudit"


@contextlib.contextmanager
def deadline(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise TooSlow in a case that takes longer. In the main thread only."""

    def ring(*_: Any) -> None:
        raise TooSlow(f"the case did not end within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def same(first: Any, second: Any) -> bool:
    """Tell whether two values are equal in value and type, NaN equal to itself, arrays by their elements."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Mapping):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    if type(first) in (str, int, float, bool, bytes):
        return first == second
    # What is left are objects, which may not be comparable.
    return showable(first) == showable(second)


# Values.


class Strange:
    """An object that nothing knows."""

    def __repr__(self) -> str:
        return "<strange>"


class Unshowable:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def nested(levels: int, value: Any = 1, kind: type = list) -> Any:
    """Return a value in so many lists or dicts."""
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


def _endless() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


TEXTS = (
    "",
    " ",
    "\n\t ",
    "\ufeff",
    "\u200b\u200d\u2060",
    "\ud800",
    "x\udfffy",
    "\x00",
    "\u202eabc",
    "e\u0301\u0327",
    "👩‍👩‍👧‍👦",
    "None",
    "nan",
    "1e400",
    "[]",
    "{}",
    "[[1]]",
    '["a", null]',
    '[{"role": "user", "content": "x"}]',
    '{"name": "f", "arguments": {}}',
    "{{ 7 * 7 }}{% for %}",
    "\n\nHuman: a\n\nAssistant: b",
    "\n\nAssistant:",
    "<|eos|>",
    "<|padding|><|eos|><|eos|>",
    "[" * 100_000,
    '{"a":' * 50_000,
    "9" * 5_000,
    "a" * 20_000,
    "../../x",
    "%s %(x)s {x}",
    "true",
    "yes",
    "auto",
    "cpu",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    100,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    -(10**400),
    10**5_000,
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.5,
    1e-320,
    1e308,
    3.4e38,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
)
ODD = (
    None,
    b"bytes",
    b"\xff\xfe",
    1j,
    decimal.Decimal("1.5"),
    decimal.Decimal("NaN"),
    decimal.Decimal("sNaN"),
    fractions.Fraction(1, 3),
    datetime.date(2020, 1, 1),
    datetime.datetime(2020, 1, 1),
    datetime.timedelta(1),
    np.int64(3),
    np.float32(1.5),
    np.float64("nan"),
    np.bool_(True),
    np.str_("text"),
    np.array([1, 2, 3]),
    np.array([[1.5, 2.5]]),
    np.array(["a", None], dtype=object),
    np.array(1),
    np.array([], dtype=np.int32),
    set(),
    {1, 2},
    frozenset({"a"}),
    range(3),
    (),
    (1, 2),
    [],
    [[]],
    [None],
    [None, "a"],
    {},
    {"": None},
    {1: 2, None: 3},
    {("a",): "b"},
    {"role": "user"},
    {"role": None, "content": None},
    {"role": 3, "content": "x"},
    {"role": ["user"], "content": "x"},
    {"role": "alien", "content": "x"},
    {"role": "assistant", "content": [{"type": "text", "text": "block"}]},
    {"role": "assistant", "content": [{"type": "image", "image": "x"}]},
    {"role": "assistant", "content": [{"type": {}, "text": None}]},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": None}}]},
    {"role": "assistant", "content": "", "tool_calls": "x"},
    {"role": "assistant", "content": "x", "tool_calls": [None, 3]},
    {"role": "tool", "content": "result", "name": "f"},
    {"from": "gpt", "value": None},
    {"from": ["gpt"], "value": "x"},
    {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
    {"from": "function_call", "value": "[" * 50_000},
    {"from": "function_call", "value": b'{"name": "f"}'},
    {"answer": "text"},
    {"answer": None},
    {"text": "x", "score": 1},
    nested(3),
    nested(200),
    nested(5_000),
    nested(5_000, kind=dict),
    nested(5_000, {"role": "assistant", "content": "x"}, dict),
    _endless(),
    Strange(),
    Unshowable(),
    print,
    int,
    ...,
)
BIG_LISTS = ([1] * 5_000, ["a"] * 5_000, [{"role": "user", "content": "x"}] * 2_000)


def _containers(values: Sequence[Any]) -> dict[int, Any]:
    """Return the lists and dicts inside values, however deep, by their identity."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, dict)) and id(value) not in found:
            found[id(value)] = value
            waiting += value.values() if isinstance(value, dict) else value
    return found


# They stay as they are, so that the same draws make the same input.
SHARED = _containers((*ODD, *BIG_LISTS))


def one_of_these(values: Sequence[Any]) -> Any:
    """Give one of the values, as they are: some cannot even be shown, as hypothesis would show those that it samples."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


def showable(value: Any, levels: int = 12) -> str:
    """Return a value as text, cut where it is long, whatever it is."""
    if levels == 0:
        return "…"
    if type(value) is dict:
        return f"{{{', '.join(f'{showable(key, levels - 1)}: {showable(item, levels - 1)}' for key, item in list(value.items())[:50])}}}"
    if type(value) in (list, tuple):
        items = ", ".join(showable(item, levels - 1) for item in value[:50]) + (
            f", … {len(value)} in all" * (len(value) > 50)
        )
        return f"[{items}]" if type(value) is list else f"({items},)"
    try:
        text = repr(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return text if len(text) <= 3_000 else f"{text[:3_000]}… ({len(text):,} characters)"


texts = st.one_of(
    one_of_these(TEXTS), st.text(max_size=12), st.text(st.characters(min_codepoint=0xD7FE, max_codepoint=0xE002))
)
small_texts = st.text("ab \n<|>:{}[]\"'\\%é", max_size=12)
numbers = st.one_of(one_of_these(NUMBERS), st.integers(), st.floats())
odd = one_of_these((*ODD, *BIG_LISTS)).map(lambda value: value)
leaves = st.one_of(texts, small_texts, numbers, odd)
anything = st.one_of(
    leaves,
    st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    ),
)
# As one choice beside others, however many choices it is made of.
anything = anything.map(lambda value: value)
json_leaves = st.one_of(texts, small_texts, numbers, st.none())
json_values = st.one_of(
    json_leaves,
    one_of_these([*(value for value in ODD if isinstance(value, (list, dict))), *BIG_LISTS]),
    st.recursive(
        json_leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    ),
).map(lambda value: value)


def encodable(value: Any) -> str:
    """Return a value as JSON text, as far as it can be; what cannot, as Python shows it."""
    try:
        return json.dumps(value, default=lambda other: "?", skipkeys=True)
    except (ValueError, RecursionError, TypeError):
        return "[" * 30_000


# Good inputs with something broken in them.


class Place(NamedTuple):
    """A value's place: the dict or list that holds it, and its key there."""

    holder: Any
    key: Any


def places_in(value: Any, most: int = 60) -> list[Place]:
    """Return the places of the values inside a value, the outer ones first."""
    found: list[Place] = []
    waiting = [value]
    while waiting and len(found) < most:
        holder = waiting.pop(0)
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append(Place(holder, key))
            if id(holder[key]) not in SHARED:
                waiting.append(holder[key])
    return found[:most]


@st.composite
def broken(draw: Any, examples: Any, values: Any = anything, most: int = 3) -> Any:
    """Give one of the examples, with up to so many of its values replaced, removed, doubled, renamed or nested."""
    value = copy.deepcopy(draw(examples))
    for _ in range(min(most, draw(st.sampled_from([0, 1, 1, 2, 3])))):
        known = places_in(value)
        if not known:
            break
        _break(draw, draw(st.sampled_from(known)), known, values)
    return value


def _break(draw: Any, place: Place, known: list[Place], values: Any) -> None:
    holder, key = place
    way = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "rename", "wrap", "swap", "add"]))
    if way == "replace":
        holder[key] = draw(values)
    elif way == "remove":
        del holder[key]
    elif way == "double":
        if isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[f"{key}_2"] = holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[draw(st.one_of(texts, st.sampled_from([place.key for place in known if isinstance(place.key, str)] or ["x"])))] = holder.pop(key)  # fmt: skip
    elif way == "wrap":
        holder[key] = draw(st.sampled_from([[holder[key]], {"x": holder[key]}, {"text": holder[key]}]))
    elif way == "swap":
        other = draw(st.sampled_from(known))
        holder[key] = copy.copy(other.holder[other.key])
    elif way == "add":
        if isinstance(holder, dict):
            holder[draw(texts)] = draw(values)
        else:
            holder.append(draw(values))


@st.composite
def broken_text(draw: Any, examples: Any, pieces: Any = texts, most: int = 3) -> str:
    """Give one of the texts, with up to so many pieces cut out, repeated or put in."""
    text = draw(examples)
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 20)))
        way = draw(st.sampled_from(["cut", "repeat", "put", "put"]))
        middle = {"cut": "", "repeat": text[start:stop] * 3, "put": draw(pieces) if way == "put" else ""}[way]
        text = text[:start] + middle + text[stop if way == "cut" else start :]
    return text


def examples_of_the_page(name: str) -> list[dict[str, Any]]:
    """Return the JSON rows that a page of docs/ shows."""
    return [
        json.loads(block) for block in re.findall(r"```json\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
    ]
