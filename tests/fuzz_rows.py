"""What is fuzzed of rows: records of every format, token ids, chat templates, and what is handed in to be scored."""

import contextlib
import copy
import functools
import json
import math
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
from fuzz_cases import target, tokenizer, unchanged
from fuzzing import (
    NUMBERS,
    TEXTS,
    Refused,
    anything,
    attempt,
    broken,
    broken_text,
    examples_of_the_page,
    leaves,
    odd,
    one_of_these,
    refusal,
    same,
    small_texts,
)
from hypothesis import strategies as st

from plaudit import (
    compat,
    formats,
    records,
    rendering,
    scorable,
    tokens,
)
from plaudit.converters import CONVERTERS, Dropped
from plaudit.prepare import EncodePairs, Rules
from plaudit.records import SIDES, Layout

# Rows of data.

RECORDS = examples_of_the_page("formats.md")
CONVERTED = [row for row in RECORDS if any(converter.recognises(row) for converter in CONVERTERS.values())]
PAIRS = [row for row in RECORDS if row not in CONVERTED]
TOOLS = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
EXTRAS = st.dictionaries(
    one_of_these(["margin", "tools", "chat_template_kwargs", "prompt", "id", "messages", "system", records.ROW]),
    st.one_of(anything, st.just(TOOLS), st.just({"tools": None}), st.just({"enable_thinking": True}), st.floats(-3, 3)),
    max_size=2,
)
NO_EXTRAS = st.just({})


def _row(examples: list[dict[str, Any]]) -> Any:
    return st.builds(
        lambda row, extras: {**row, **extras}, broken(one_of_these(examples)), st.one_of(NO_EXTRAS, NO_EXTRAS, EXTRAS)
    )


def _said(messages: Any) -> list[Any]:
    """Return what messages say, by the plainest reading of either way to write them."""
    return [
        message.get("value" if message.get("role") is None and message.get("from") is not None else "content")
        for message in messages
        if not (message.get("from") == "function_call" and message.get("role") is None)
    ]


def _check_pair(pair: Mapping[str, Any], row: Mapping[str, Any], layout: Layout) -> None:
    """Hold that a canonical pair says what its row says."""
    names = layout.columns
    if "margin" in names:
        assert type(pair["margin"]) is float
        assert pair["margin"] == row[names["margin"]]
    if layout.kind == "standard":
        prompt = row[names["prompt"]] if "prompt" in names else ""
        assert {side: pair[side] for side in SIDES} == {side: prompt + row[side] for side in SIDES}
    elif layout.kind == "tokenized":
        for side in SIDES:
            ids, mask = row[names[f"{side}_ids"]], row.get(names.get(f"{side}_mask"))
            kept = list(ids) if mask is None else [token for token, one in zip(ids, mask, strict=True) if one]
            assert pair[f"{side}_ids"] == kept
    else:
        for side in SIDES:
            said, wanted = _said(pair[side]), _said(row[names[side]])
            before = said[: len(said) - len(wanted)]
            ends = [text or "" if isinstance(text, str) or text is None else None for text in wanted]
            got = [text if isinstance(text, str) else None for text in said[len(before) :]]
            assert got == ends or any(message.get("from") == "function_call" for message in row[names[side]]), (
                "a side does not say what its row says"
            )


@st.composite
def _alike(draw: Any, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a few rows of one format, as data sets have them, or, seldom, of several."""
    used = examples if draw(st.integers(0, 4)) == 0 else [draw(one_of_these(examples))]
    return [draw(_row(used) if draw(st.booleans()) else one_of_these(used)) for _ in range(draw(st.integers(1, 3)))]


@target(_alike(PAIRS), 12)
def pairs(rows: list[dict[str, Any]]) -> None:
    """Rows of preference pairs: recognised, brought to the canonical form, and each as if it were alone."""
    with unchanged(rows):
        first = rows[0]
        if attempt(lambda: formats.recognise(list(first), first, "fuzz"), "fuzz") is not None:
            return
        layout = attempt(lambda: formats.layout_of(list(first), first, "fuzz"), "fuzz")
        for number, row in enumerate(rows):
            where = f"fuzz row {number}"
            pair = attempt(lambda row=row, where=where: records.canonical(row, layout, where), where)
            _check_pair(pair, row, layout)
            assert same(pair, records.canonical(row, layout, where)), "the same row twice, two results"


def _converter_of(row: Mapping[str, Any]) -> list[str | None]:
    fitting = [name for name, one in CONVERTERS.items() if all(any(n in row for n in names) for names in one.columns)]
    return [*fitting, *fitting, *fitting, *fitting, None, *CONVERTERS]


@st.composite
def rows_of_formats(draw: Any) -> tuple[str | None, bool, dict[str, Any]]:
    example = draw(one_of_these([*CONVERTED * 3, *PAIRS[:9]]))
    return draw(one_of_these(_converter_of(example))), draw(st.booleans()), draw(_row([example]))


@target(rows_of_formats(), 12)
def conversions(case: tuple[str | None, bool, dict[str, Any]]) -> None:
    """Rows of every other format, by each converter's name: pairs of the row's own texts, or dropped with a reason."""
    name, margins, row = case
    with unchanged(row):
        if name is None:
            converter = attempt(lambda: formats.recognise(list(row), row, "fuzz"), "fuzz")
        else:
            converter = attempt(lambda: formats._by_name(name, row, "fuzz"), "fuzz")
        if converter is None:
            return
        found = attempt(lambda: list(formats._pairs(row, converter, margins, "fuzz row 7")), "fuzz row 7")
        for pair in found:
            if isinstance(pair, Dropped):
                assert pair.reason
                continue
            assert list(pair) == list(found[0]) or any(isinstance(one, Dropped) for one in found)
            if margins and "margin" in pair and "margin" not in row:
                assert pair["margin"] > 0
                assert math.isfinite(pair["margin"])
            _check_own_texts(pair, row)
        if converter.name in ("ratings", "ultrafeedback") and "completions" in row:
            count = len(row["completions"])
            assert len(found) == max(1, count * (count - 1) // 2), "pairs were lost without a count"


def _check_own_texts(pair: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Hold that every text of a pair is in the row that it was made of."""
    with contextlib.suppress(RecursionError):
        own = " ".join(map(_flat, row.values()))
        for side in SIDES:
            for message in pair[side]:
                said = message.get("content", message.get("value"))
                if isinstance(said, str) and "function_call" not in own:
                    assert (
                        said in own
                        or json.dumps(said)[1:-1] in own
                        or json.dumps(said, ensure_ascii=False)[1:-1] in own
                    )


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " ".join(map(_flat, value.values()))
    return " ".join(map(_flat, value)) if isinstance(value, (list, tuple)) else ""


# Columns that become token ids.

RULES = st.builds(Rules, one_of_these([None, 1, 8, 64]), one_of_these([None, 5, 400]), one_of_these([None, 0, 7]))


def _encoded(rows: list[dict[str, Any]], layout: Layout, rules: Rules, drop: bool) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    encode = EncodePairs(None if layout.kind == "tokenized" else tokenizer(), layout, "fuzz", rules, drop)
    out = encode({name: [row.get(name) for row in rows] for name in names}, list(range(len(rows))))
    return [{name: out[name][i] for name in out} for i in range(len(rows))]


def _check_encoded(rows: list[dict[str, Any]], rules: Rules, drop: bool) -> None:
    rows = [{name: value for name, value in row.items() if name not in (records.ROW, formats.DROPPED)} for row in rows]
    first = rows[0]
    if attempt(lambda: formats.recognise(list(first), first, "fuzz"), "fuzz") is not None:
        return
    layout = attempt(lambda: formats.layout_of(list(first), first, "fuzz"), "fuzz")
    together = refusal(lambda: _encoded(rows, layout, rules, drop), "fuzz row", "chat template")
    alone = []
    for number, row in enumerate(rows):
        row = {**dict.fromkeys(name for one in rows for name in one), **row}
        with contextlib.suppress(Refused):
            alone += attempt(lambda row=row: _encoded([row], layout, rules, drop), "fuzz row", "chat template")
            alone[-1][records.ROW] = number
    assert (together is None) == (len(alone) == len(rows)), "a row is refused in one batch and not in another"
    if together is not None:
        raise Refused(together)
    assert _encoded(rows, layout, rules, drop) == alone, "a batch of rows is not its rows one by one"
    for one in alone:
        _check_row(one, rules, drop)


def _check_row(one: Mapping[str, Any], rules: Rules, drop: bool) -> None:
    ids = [one["chosen_ids"], one["rejected_ids"]]
    assert all(type(token) is int and token >= 0 for side in ids for token in side)
    if rules.vocabulary_size is not None:
        assert all(token < rules.vocabulary_size for side in ids for token in side)
    is_long = rules.max_length is not None and max(map(len, ids)) > rules.max_length
    expected = drop and (is_long or ids[0] == ids[1])
    assert (one[formats.DROPPED] is not None) == expected, "kept or dropped without a reason"


good_ids = st.lists(st.integers(0, 12), min_size=1, max_size=8)
token_ids = st.one_of(
    good_ids,
    good_ids,
    good_ids,
    st.lists(st.integers(0, 12), max_size=8),
    st.lists(st.one_of(st.integers(-3, 500), one_of_these(NUMBERS), st.none(), odd), max_size=4),
    one_of_these([np.array([1, 2, 3]), np.array([1.0, 2.0]), np.array([[1, 2]]), (1, 2), [], "12", [[1, 2]], [True]]),
    anything,
)
masks = st.one_of(st.lists(one_of_these([0, 1, True, False, 2, -1, 0.5, None]), max_size=8), token_ids)


@st.composite
def tokenized_row(draw: Any, names: Mapping[str, str | None], has_masks: bool, has_margin: bool) -> dict[str, Any]:
    row = {}
    for side in SIDES:
        ids = draw(good_ids if draw(st.integers(0, 3)) else token_ids)
        row[str(names[f"{side}_ids"])] = ids
        if has_masks and names[f"{side}_mask"]:
            fitting = [1] * len(ids) if isinstance(ids, (list, tuple)) else ids
            row[str(names[f"{side}_mask"])] = draw(masks) if draw(st.integers(0, 3)) == 0 else fitting
    if has_margin:
        row["margin"] = draw(st.floats(-3, 3) if draw(st.integers(0, 3)) else leaves)
    return row


@st.composite
def tokenized_rows(draw: Any) -> list[dict[str, Any]]:
    names = draw(one_of_these(compat.TOKEN_COLUMNS))
    one = tokenized_row(names, draw(st.booleans()), draw(st.booleans()))
    return [draw(one) for _ in range(draw(st.integers(1, 3)))]


@target(st.tuples(tokenized_rows(), RULES, st.booleans()), 12)
def token_rows(case: tuple[list[dict[str, Any]], Rules, bool]) -> None:
    """Tokenized rows of all generations of names, with and without masks and margins."""
    rows, rules, drop = case
    with unchanged(rows):
        _check_encoded(rows, rules, drop)


@target(st.tuples(_alike(PAIRS), RULES, st.booleans()), 6)
def prepared_rows(case: tuple[list[dict[str, Any]], Rules, bool]) -> None:
    """Rows of texts and messages on their way to token ids: each as if it were alone, dropped with a reason."""
    rows, rules, drop = case
    with unchanged(rows):
        _check_encoded(rows, rules, drop)


# Chat templates.

TEMPLATES = [
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}",
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
    "{{ messages[0].content }}",
    "{{ messages[-1]['content'] }}",
    "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ messages[0].content }}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m.content }}{% endfor %}",
    "{% macro turn(m) %}{{ m.role }}: {{ m.content }}{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "{{ tools | tojson }}{{ bos_token }}{{ messages }}",
]
BOMBS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{{ 10**10**10**10**10**10**10**10**10 }}",
    "{{ 'x' * 1000000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ (messages|length + 9) ** 99999999999 }}",
]
PIECES = [
    "{{",
    "{%",
    "%}",
    "{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[99].content }}",
    "{{ message.content.missing.deeper }}",
    "{{ 1 / 0 }}",
    "{{ [] | first }}",
    "{{ 'x' | nosuch }}",
    "{{ nosuch() }}",
    "{{ messages | tojson }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum() }}",
    "{{ raise_exception({}) }}",
    "{{ raise_exception() }}",
    "{{ strftime_now(3) }}",
    "{{ range(999999999) | list }}",
    "{{ 'ab' * 1000 }}",
    "{{ 'ab' | int }}",
    "{% break %}",
    "{# ",
    "{{ self }}",
    "{{ caller() }}",
    "\ud800",
    "{{ '\\ud800' }}",
    "{{ '%s' | format }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ joiner | list }}",
    "{% raw %}",
    "{{ namespace(_a=1) }}",
    "{{ dict(a=1).b }}",
    "{{ messages | sort }}",
    "{{ messages | groupby('role') }}",
    "{% set x = x + 1 %}",
    "{{ loop.index }}",
]
CONVERSATIONS = [
    [{"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": "It is blue."}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": "y"}],
    [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}],
    [{"role": "alien", "content": "<|eos|>"}],
]


@target(
    st.tuples(
        st.one_of(broken_text(one_of_these(TEMPLATES), one_of_these([*PIECES, *TEXTS])), small_texts),
        st.lists(broken(one_of_these(CONVERSATIONS), most=1), min_size=1, max_size=2),
        one_of_these([None, json.loads(TOOLS)]),
    ),
    8,
)
def templates(case: tuple[str, list[Any], Any]) -> None:
    """Chat templates that are broken, raise, forbid or drop, over conversations: the ids of what they render, or one error."""
    template, found, tools = case
    conversations = []
    for messages in found:
        with contextlib.suppress(Refused):
            row = {"chosen": messages, "rejected": messages}
            layout = Layout("conversational", {"chosen": "chosen", "rejected": "rejected"})
            pair = attempt(lambda row=row, layout=layout: records.canonical(row, layout, "it"), "it")
            conversations.append(pair["chosen"])
    if not conversations:
        return
    _render_all(template, conversations, tools)


def _render_all(template: str, conversations: list[Any], tools: Any) -> None:
    own = copy.copy(tokenizer())
    own.chat_template = template
    kwargs: list[dict] = [{} for _ in conversations]
    with unchanged(conversations):
        ids = attempt(
            lambda: tokens.encode_conversations(
                own, conversations, [tools] * len(kwargs), kwargs, lambda i: f"row {i}"
            ),
            "row ",
            "chat template",
        )
    assert len(ids) == len(conversations)
    if not any(word in template for word in ("strftime_now", "random", "lipsum", "self", "cycler", "joiner", "nosuch")):
        for one, messages in zip(ids, conversations, strict=True):
            wanted = own(tokens.render(own, messages, tools), add_special_tokens=False)["input_ids"]
            assert one == wanted, "the ids are not those of what the template renders"


@target(st.tuples(one_of_these(BOMBS), one_of_these(CONVERSATIONS[:2])), 0)
def template_bombs(case: tuple[str, Any]) -> None:
    """Chat templates that would not end: an error within the time that a conversation may take."""
    with contextlib.suppress(Refused), mock.patch.object(tokens, "TEMPLATE_SECONDS", 0.5):
        _render_all(case[0], [case[1]], None)
        raise AssertionError("a template that cannot end has ended")


# What can be scored.

SCORABLES = [
    *PAIRS,
    {"text": "The sky is blue."},
    {"prompt": "What?", "response": "That."},
    {"prompt": "What?", "responses": ["That.", "This."]},
    {"messages": CONVERSATIONS[0]},
    {"input_ids": [1, 2, 3], "attention_mask": [1, 1, 0]},
    {"prompt": CONVERSATIONS[0][:1], "completions": [{"response": "a"}, {"response": "b"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
]


@functools.cache
def renderer() -> rendering.Renderer:
    return rendering.Renderer(tokenizer(), {}, 400)


def _check_scorables(found: list[scorable.Scorable], limit: int | None, truncation: str) -> None:
    fitted = attempt(lambda: renderer()(found, truncation, limit), "row", "prompt", "chat template")
    assert len(fitted.sequences) == len(found)
    for one, ids, is_cut in zip(found, fitted.sequences, fitted.truncated, strict=True):
        assert ids
        assert limit is None or len(ids) <= limit
        whole = renderer().encode([one])[0]
        assert is_cut == (ids != whole), "cut without a count"


LIMITS = st.tuples(one_of_these([None, 1, 5, 30]), one_of_these(scorable.TRUNCATIONS))


@target(st.tuples(_alike(SCORABLES), st.booleans(), LIMITS), 8)
def rows_to_score(case: tuple[list[dict[str, Any]], bool, tuple[int | None, str]]) -> None:
    """Rows of `plaudit score`: their kind by the first one, and what of each is scored."""
    rows, as_turns, limits = case
    with unchanged(rows):
        kind = attempt(lambda: scorable.row_kind(rows[0], "fuzz"), "fuzz")
        for number, row in enumerate(rows):
            where = f"fuzz row {number}"
            found = attempt(
                lambda row=row, where=where, n=number: scorable.of_row(row, kind, where, n, as_turns), where
            )
            assert kind.shape == "answers" or len(found) in {"single": (1,), "pair": (0, 2)}[kind.shape]
            if found:
                _check_scorables(found, *limits)


@target(st.tuples(st.one_of(anything, _row(SCORABLES), st.lists(_row(SCORABLES), max_size=2)), st.booleans()), 6)
def items_to_score(case: tuple[Any, bool]) -> None:
    """Whatever is handed to RewardModel.score."""
    items, as_turns = case
    with unchanged(items):
        found = attempt(lambda: scorable.of_items(items, {}, as_turns))
        _check_scorables(found, None, "error")


GOOD_PROMPTS = one_of_these(["What?", CONVERSATIONS[0][:1], CONVERSATIONS[1][:2]])
GOOD_ANSWERS = st.lists(
    one_of_these(["That.", "This.", {"role": "assistant", "content": "x"}, CONVERSATIONS[0]]), max_size=3
)


@target(st.tuples(st.one_of(GOOD_PROMPTS, GOOD_PROMPTS, anything), st.one_of(GOOD_ANSWERS, broken(GOOD_ANSWERS), anything), st.dictionaries(one_of_these(["tools", "chat_template_kwargs"]), anything), st.booleans()), 4)  # fmt: skip
def answers_to_score(case: tuple[Any, Any, dict[str, Any], bool]) -> None:
    """Whatever is handed to RewardModel.score as a prompt and its answers."""
    prompt, responses, extras, as_turns = case
    with unchanged(prompt, responses, extras):
        found = attempt(lambda: scorable.of_answers(prompt, responses, "fuzz", 0, extras, as_turns), "fuzz")
        assert len(found) == len(responses)


@target(st.tuples(st.one_of(st.lists(GOOD_PROMPTS, max_size=2), anything), st.one_of(st.lists(GOOD_ANSWERS, max_size=2), anything), st.booleans()), 3)  # fmt: skip
def prompts_to_score(case: tuple[Any, Any, bool]) -> None:
    """Whatever is handed to RewardModel.score as several prompts, each with its answers."""
    prompts, responses, as_turns = case
    with unchanged(prompts, responses):
        found = attempt(lambda: scorable.of_prompts(prompts, responses, {}, as_turns))
        assert len(found) == len(prompts) == len(responses)


@target(st.tuples(st.one_of(token_ids, st.lists(token_ids, max_size=3)), st.one_of(st.none(), masks, st.lists(masks, max_size=3)), one_of_these([None, 0, 7])), 6)  # fmt: skip
def ids_to_score(case: tuple[Any, Any, int | None]) -> None:
    """Whatever is handed to RewardModel.score as token ids and masks."""
    ids, mask, pad_token_id = case
    with unchanged(ids, mask):
        found = attempt(lambda: scorable.of_ids(ids, mask, pad_token_id))
        for one in found:
            assert one.content
            assert all(type(token) is int and token >= 0 for token in one.content)
