"""From what is to be scored to token ids: those of training, and cut as asked, never in silence."""

import pytest
from conftest import CHAT_TEMPLATE, make_tokenizer

from plaudit import tokens
from plaudit.rendering import Renderer
from plaudit.scorable import Scorable

BOS = "<|bos|>"
THINKING = "{% if thinking %}think {{ thinking }}.{% endif %}" + CHAT_TEMPLATE
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
SYSTEM = {"role": "system", "content": "Be short."}


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def scorables(*contents, group=None, **options):
    """One scorable a content, each alone or, with `group`, all answers to one prompt."""
    return [
        Scorable(content, f"row {number}", number if group is None else group, **options)
        for number, content in enumerate(contents)
    ]


@pytest.fixture
def render():
    """A renderer whose ids go up to 999."""
    return Renderer(make_tokenizer(THINKING), {}, 1000)


@pytest.fixture
def render_with_bos():
    return Renderer(make_tokenizer(THINKING, bos=BOS), {}, 1000)


def text_of(render, ids):
    return render.tokenizer.decode(ids)


def test_texts_conversations_and_ids_in_any_mixture_come_in_the_order_given(render):
    text, talk, ids = "The sky is green.", turns("Hello", "A cat."), [7, 8, 9]
    sequences = render(scorables(text, ids, talk, text), "error", None).sequences
    assert [text_of(render, one) for one in sequences] == [
        f"{text}<|eos|>",
        text_of(render, ids),
        "<|user|>Hello<|end|><|assistant|>A cat.<|end|>",
        f"{text}<|eos|>",
    ]
    assert sequences[1] == ids


def test_the_ids_are_those_that_training_is_given(render_with_bos):
    tokenizer, talk = render_with_bos.tokenizer, turns("Hello", "A cat.")
    sequences = render_with_bos(scorables("A dog.", f"{BOS}A dog.", talk), "error", None).sequences
    assert sequences[:2] == tokens.encode_texts(tokenizer, ["A dog."]) * 2
    assert sequences[2:] == tokens.encode_conversations(tokenizer, [talk], [None], [{}], str)
    assert sequences[0].count(tokenizer.bos_token_id) == 1


def test_a_row_renders_with_its_own_template_variables_before_the_recorded_ones():
    render = Renderer(make_tokenizer(THINKING), {"thinking": "long"}, None)
    talk = turns("Hello", "A cat.")
    own = Scorable(talk, "row 1", 1, template_kwargs={"thinking": "short"})
    sequences = render([*scorables(talk), own], "error", None).sequences
    assert [text_of(render, ids).partition("<|user|>")[0] for ids in sequences] == ["think long.", "think short."]


def test_tools_are_rendered_with_the_conversation_that_has_them(render):
    talk = turns("Hello", "A cat.")
    with_tools, without = render([*scorables(talk, tools=TOOLS), *scorables(talk)], "error", None).sequences
    assert "get_weather" in text_of(render, with_tools)
    assert "get_weather" not in text_of(render, without)


def test_a_generation_prompt_is_rendered_only_where_it_was_recorded():
    talk = turns("Hello", "A cat.")
    ends = [
        Renderer(make_tokenizer(), kwargs, None)(scorables(talk), "error", None).sequences[0][-3:]
        for kwargs in ({}, {"add_generation_prompt": False}, {"add_generation_prompt": True})
    ]
    assert ends[0] == ends[1] != ends[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", r"this reward model has no tokenizer, so it scores token ids only: score\(input_ids=...\)"),
        (turns("Hello", "A cat."), "this reward model has no tokenizer"),
    ],
)
def test_without_a_tokenizer_ids_alone_are_rendered(content, message):
    render = Renderer(None, {}, 10)
    assert render(scorables([1, 2], [3]), "left", 1).sequences == [[2], [3]]
    with pytest.raises(ValueError, match=message):
        render(scorables([1, 2], content), "error", None)


def test_an_id_outside_the_vocabulary_is_an_error_and_the_last_one_inside_is_none(render):
    assert render(scorables([999]), "error", None).sequences == [[999]]
    with pytest.raises(
        ValueError, match="row 1: token id 1000 is outside the model's vocabulary of 1,000; tokenize with"
    ):
        render(scorables([999], [5, 1000, 6]), "error", None)
    unknown = Renderer(render.tokenizer, {}, None)
    assert unknown(scorables([1000]), "error", None).sequences == [[1000]]
    small = Renderer(render.tokenizer, {}, 3)
    with pytest.raises(ValueError, match="row 0: token id .* is outside the model's vocabulary of 3"):
        small(scorables("A dog."), "error", None)


def test_a_conversation_of_which_the_template_writes_nothing_is_an_error_that_names_its_row():
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    render = Renderer(make_tokenizer(template), {}, None)
    with pytest.raises(ValueError, match="row 1: no token is left after tokenizing; give it something to score"):
        render(scorables(turns("", "A cat."), turns("", "")), "error", None)


def test_a_conversation_without_a_chat_template_or_refused_by_it_is_an_error_that_names_its_row():
    talk = turns("Hello", "A cat.")
    with pytest.raises(
        ValueError, match="conversations are to be scored, but the tokenizer .* has no chat template; give texts"
    ):
        Renderer(make_tokenizer(None), {}, None)(scorables("text", talk), "error", None)
    refusing = "{% if messages | length > 2 %}{{ raise_exception('too many') }}{% endif %}x"
    with pytest.raises(ValueError, match="row 2: the chat template refuses this conversation .*too many"):
        Renderer(make_tokenizer(refusing), {}, None)(scorables("text", talk, talk * 2), "error", None)


@pytest.mark.parametrize("truncation", ["right", "", None, "LEFT"])
def test_an_unknown_truncation_is_an_error_also_where_nothing_is_too_long(render, truncation):
    with pytest.raises(
        ValueError, match=f"truncation is {truncation!r}; it must be one of 'error', 'left', 'drop_turns'"
    ):
        render(scorables([1]), truncation, 10)


@pytest.mark.parametrize("truncation", ["error", "left", "drop_turns"])
def test_what_fits_exactly_or_has_no_limit_is_not_cut(render, truncation):
    found = scorables([1, 2, 3], [1, 2])
    for limit in (3, None):
        assert render(found, truncation, limit) == ([[1, 2, 3], [1, 2]], [False, False])


def test_too_long_a_sequence_is_an_error_with_its_length_the_limit_and_how_many_there_are(render):
    with pytest.raises(
        ValueError,
        match=r"row 1: 1,200 tokens are more than max_length 1,000 \(2 of 3 sequences are too long\); shorten it, or "
        "choose truncation='left' or 'drop_turns'",
    ):
        render(scorables([1], [1] * 1200, [1] * 1001), "error", 1000)


def test_left_keeps_the_end_of_what_is_too_long_and_counts_it(render):
    found = scorables(list(range(1, 10)), [5, 6], [7] * 5)
    assert render(found, "left", 4) == ([[6, 7, 8, 9], [5, 6], [7] * 4], [True, False, True])
    assert [one.content for one in found] == [list(range(1, 10)), [5, 6], [7] * 5], "what came in is as it was"


def test_left_keeps_the_bos_unless_there_is_room_for_one_token_only(render_with_bos):
    bos = render_with_bos.tokenizer.bos_token_id
    long = [bos, 11, 12, 13, 14]
    assert render_with_bos(scorables(long), "left", 3).sequences == [[bos, 13, 14]]
    assert render_with_bos(scorables(long), "left", 2).sequences == [[bos, 14]]
    assert render_with_bos(scorables(long), "left", 1).sequences == [[14]]
    assert render_with_bos(scorables(long[1:]), "left", 3).sequences == [[12, 13, 14]], "no BOS is put where none was"
    assert render_with_bos(scorables([11, bos, 12, 13]), "left", 2).sequences == [[12, 13]]


def test_left_keeps_the_cls_of_an_encoder():
    tokenizer = make_tokenizer()
    tokenizer.cls_token = "<|end|>"
    cls = tokenizer.cls_token_id
    render = Renderer(tokenizer, {}, None)
    assert render(scorables([cls, 11, 12, 13]), "left", 3).sequences == [[cls, 12, 13]]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_token_is_an_error(render, limit):
    with pytest.raises(
        ValueError, match=f"max_length is {limit}; it must be a whole number from 1, or None for the model's own"
    ):
        render(scorables([1]), "left", limit)


@pytest.mark.parametrize(
    ("answers", "limit", "expected", "num_truncated"),
    [
        # The longest is four over, so four of what all share go, also from the one that fits.
        ([[1, 2, 3, 4, 5, 20], [1, 2, 3, 4, 5, 30, 31, 32, 33]], 5, [[5, 20], [5, 30, 31, 32, 33]], 2),
        # All that they share is not enough.
        ([[1, 2, 20], [1, 2, 30, 31, 32, 33]], 3, [[20], [31, 32, 33]], 2),
        # None is too long.
        ([[1, 2, 20], [1, 2, 30]], 3, [[1, 2, 20], [1, 2, 30]], 0),
        # They share nothing.
        ([[1, 2, 20], [3, 2, 20, 21]], 3, [[1, 2, 20], [2, 20, 21]], 1),
        # One is the beginning of the other: something of it stays.
        ([[1, 2, 3], [1, 2, 3, 4, 5, 6, 7]], 4, [[3], [4, 5, 6, 7]], 2),
        ([[1, 2, 3, 4]] * 2, 3, [[2, 3, 4]] * 2, 2),
    ],
)
def test_left_cuts_answers_to_one_prompt_at_the_same_place(render, answers, limit, expected, num_truncated):
    for given, wanted in ((answers, expected), (answers[::-1], expected[::-1])):
        fitted = render(scorables(*given, group=0), "left", limit)
        assert fitted.sequences == wanted
        assert fitted.truncated == [new != old for new, old in zip(wanted, given, strict=True)]
        assert fitted.num_truncated == num_truncated


@pytest.mark.parametrize(
    ("answers", "limit", "expected"),
    [
        ([[11, 12, 13, 20], [11, 12, 13, 30, 31]], 4, [[13, 20], [13, 30, 31]]),
        ([[11, 12, 20], [11, 12, 30, 31, 32]], 3, [[20], [31, 32]]),
        ([[11], [11, 12, 13]], 2, [[11], [13]]),
    ],
)
def test_left_keeps_the_bos_of_every_answer_to_one_prompt(render_with_bos, answers, limit, expected):
    bos = render_with_bos.tokenizer.bos_token_id
    found = render_with_bos(scorables(*([bos, *ids] for ids in answers), group=0), "left", limit).sequences
    assert found == [[bos, *ids] for ids in expected]


def test_left_keeps_no_bos_where_not_every_answer_has_one(render_with_bos):
    bos = render_with_bos.tokenizer.bos_token_id
    found = render_with_bos(scorables([bos, 11, 12, 13], [11, 12, 13], group=0), "left", 2).sequences
    assert found == [[12, 13], [12, 13]]


def test_only_the_answers_to_a_prompt_with_too_long_ones_are_cut(render):
    first = scorables([1, 2, 3, 20], [1, 2, 3, 30, 31], group=0)
    second = scorables([1, 2, 3, 20], [1, 2, 3, 30], group=1)
    found = [first[0], second[0], first[1], second[1]]
    sequences, truncated = render(found, "left", 4)
    assert sequences == [[2, 3, 20], [1, 2, 3, 20], [2, 3, 30, 31], [1, 2, 3, 30]]
    assert truncated == [True, False, True, False]


TALK = turns("What color is the sky?", "It is blue.", "And the grass?", "Green.", "And at night?", "It is black.")


def limit_of(render, *talks, **options):
    """The number of tokens of the longest of these conversations."""
    return max(map(len, render(scorables(*talks, **options), "error", None).sequences))


@pytest.mark.parametrize("system", [[], [SYSTEM], [SYSTEM, {"role": "developer", "content": "Be kind."}]])
@pytest.mark.parametrize("start", [2, 4])
def test_drop_turns_leaves_out_the_fewest_of_the_oldest_turns_and_no_system_turn(render, system, start):
    kept = [*system, *TALK[start:]]
    expected = render(scorables(kept), "error", None).sequences
    found = scorables([*system, *TALK])
    assert render(found, "drop_turns", limit_of(render, kept)) == (expected, [True])
    # One token more is not enough for another turn, one token less costs one.
    assert render(found, "drop_turns", limit_of(render, kept) + 1).sequences == expected
    if start == 2:
        assert render(found, "drop_turns", limit_of(render, kept) - 1).sequences != expected


def test_drop_turns_starts_with_a_users_turn_so_that_no_answer_of_a_tool_is_left_alone(render):
    tool = [*turns("Weather?", "I ask."), {"role": "tool", "content": "Sun."}, {"role": "assistant", "content": "Sun."}]
    last = turns("And at night?", "It is black.")
    limit = limit_of(render, [*tool[2:], *last])
    assert render(scorables([*tool, *last]), "drop_turns", limit).sequences == render.encode(scorables(last))


def test_drop_turns_drops_the_same_turns_of_all_answers_to_one_prompt(render):
    long = [*TALK[:5], {"role": "assistant", "content": "It is as black as a story about a cat. " * 4}]
    limit = limit_of(render, long[2:])
    assert limit_of(render, TALK) <= limit, "the short answer fits"
    sequences, truncated = render(scorables(TALK, long, group=0), "drop_turns", limit)
    assert sequences == render.encode(scorables(TALK[2:], long[2:]))
    assert truncated == [True, True]
    assert render(scorables(TALK, long), "drop_turns", limit).sequences == render.encode(scorables(TALK, long[2:]))


def test_drop_turns_keeps_the_tools_and_template_variables_of_what_it_shortens(render):
    options = {"tools": TOOLS, "template_kwargs": {"thinking": "long"}}
    limit = limit_of(render, TALK[4:], **options)
    (ids,) = render(scorables(TALK, **options), "drop_turns", limit).sequences
    assert text_of(render, ids).startswith("think long.<|system|>tools:")
    assert [ids] == render.encode(scorables(TALK[4:], **options))


def test_drop_turns_keeps_the_recorded_template_variables():
    render = Renderer(make_tokenizer(THINKING), {"thinking": "long"}, None)
    (ids,) = render(scorables(TALK), "drop_turns", limit_of(render, TALK[4:])).sequences
    assert [ids] == render.encode(scorables(TALK[4:]))
    assert text_of(render, ids).startswith("think long.")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([[1] * 50], "row 0: truncation='drop_turns' needs a message list, and this is ids; use 'left'"),
        (
            ["The sky is green. " * 9],
            "row 0: truncation='drop_turns' needs a message list, and this is text; use 'left'",
        ),
        (
            [turns("a", "b"), [*TALK[:5], {"role": "assistant", "content": "Black. " * 9}]],
            "row 1: even its last turn alone is longer than max_length 20 tokens; use truncation='left', or raise",
        ),
        ([[SYSTEM, {"role": "assistant", "content": "Black. " * 9}]], "row 0: even its last turn alone is longer"),
        ([[SYSTEM, {"role": "user", "content": "Black. " * 9}, TALK[1]]], "row 0: even its last turn alone is longer"),
    ],
)
def test_drop_turns_that_cannot_help_is_an_error_that_names_the_row(render, contents, message):
    with pytest.raises(ValueError, match=message):
        render(scorables(*contents), "drop_turns", 20)


def test_drop_turns_that_cannot_help_answers_to_one_prompt_names_the_longest(render):
    with pytest.raises(ValueError, match="row 1: even its last turn alone is longer than max_length 20"):
        render(scorables(turns("a", "b"), turns("a", "Black. " * 9), turns("a", "c"), group=0), "drop_turns", 20)
