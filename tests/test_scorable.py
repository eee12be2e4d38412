"""What can be scored: every form it comes in brought to one, and errors that name the row, the answer and the cure."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import conversations

from plaudit.converters import CONVERTERS
from plaudit.scorable import (
    RowKind,
    Scorable,
    of_answers,
    of_ids,
    of_items,
    of_prompts,
    of_row,
    row_kind,
    say_how_texts_are_read,
)

USER = {"role": "user", "content": "What color is the sky?"}
ANSWER = {"role": "assistant", "content": "It is blue."}
TALK = [USER, ANSWER]
SYSTEM = {"role": "system", "content": "Be short."}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"required": ["city"]}}}]
HALF = "\ud83d"
NOTHING = {"tools": None, "chat_template_kwargs": None}


def contents(found):
    return [one.content for one in found]


def as_read_from_arrow(rows):
    """The rows as Ray Data and pandas hand them out: every list in them, however deep, is a NumPy array."""
    table = pa.Table.from_pylist(rows)
    columns = [table[name].to_numpy() for name in table.column_names]
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def test_a_scorable_knows_whether_it_is_a_text_a_conversation_or_ids():
    assert [Scorable(content, "row 0", 0).kind for content in ("a", TALK, [7, 8])] == ["text", "conversation", "ids"]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ("a text", ["a text"]),
        (["one", "two"], ["one", "two"]),
        (("one", "two"), ["one", "two"]),
        ((text for text in ("one", "two")), ["one", "two"]),
        (np.array(["one", "two"]), ["one", "two"]),
        (TALK, [TALK]),
        ([TALK, [ANSWER]], [TALK, [ANSWER]]),
        ([np.array(TALK)], [TALK]),
        (["one", TALK, {"text": "two"}], ["one", TALK, "two"]),
        ({"text": "one"}, ["one"]),
        ({"content": "one"}, ["one"]),
        ({"messages": TALK}, [TALK]),
        ({"conversation": TALK}, [TALK]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, None),
        ({"prompt": USER["content"], "response": ANSWER["content"]}, [TALK]),
        ({"input_ids": [5, 6]}, [[5, 6]]),
        ([], []),
    ],
)
def test_texts_conversations_and_rows_of_them_alone_or_in_any_sequence_are_taken_in_order(items, expected):
    found = of_items(items, NOTHING, True)
    assert contents(found) == (
        [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]] if expected is None else expected
    )
    assert [one.where for one in found] == [f"row {number}" for number in range(len(found))]
    assert len({one.group for one in found}) == len(found), "none of them are answers to one prompt"


def test_tools_and_template_variables_of_the_call_go_to_every_conversation_that_brings_none():
    extras = {"tools": TOOLS, "chat_template_kwargs": {"thinking": True}}
    own = {"messages": TALK, "tools": [{"name": "own"}], "chat_template_kwargs": {"thinking": False}}
    given, brought, partly = of_items([TALK, own, {"messages": TALK, "tools": [{"name": "own"}]}], extras, True)
    assert (given.tools, given.template_kwargs) == (TOOLS, {"thinking": True})
    assert (brought.tools, brought.template_kwargs) == ([{"name": "own"}], {"thinking": False})
    assert (partly.tools, partly.template_kwargs) == ([{"name": "own"}], {"thinking": True})


def test_an_empty_answer_can_be_scored_and_an_empty_text_cannot():
    empty = [USER, {"role": "assistant", "content": ""}]
    assert contents(of_items([empty], NOTHING, True)) == [empty]
    assert contents(of_answers(USER["content"], [""], "the prompt", 0, NOTHING, True)) == [empty]
    assert contents(of_answers("a", [""], "the prompt", 0, NOTHING, False)) == ["a"]
    with pytest.raises(ValueError, match="row 1: the text is empty; give it something to score"):
        of_items(["a", ""], NOTHING, True)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "row 1: 'the conversation' must be text or a message list, not int 5"),
        (None, "row 1: 'the conversation' is None"),
        ([], "row 1: 'the conversation' is an empty message list"),
        (ANSWER, r"row 1: 'the conversation' is one message, not a list; wrap it as \[message\]"),
        ([7, 8], r"row 1: holds token ids; give them as score\(input_ids=...\)"),
        (np.array([7, 8]), r"row 1: holds token ids; give them as score\(input_ids=...\)"),
        ([USER], "row 1: 'the conversation' ends with a user turn, so there is no answer to score"),
        ([{"role": "assistant"}], "row 1: message 0 of 'the conversation' has no 'content'"),
        (HALF, "row 1: the text holds half of a surrogate pair"),
        ({"chosen": "a", "rejected": "b"}, "row 1: holds 2 answers; give them as prompt= and responses=, or one a row"),
        ({"prompt": "a", "responses": ["b", "c", "d"]}, "row 1: holds 3 answers"),
        ({"messages": TALK, "tools": 7}, "row 1: 'tools' must be a list of JSON schemas"),
        ({"messages": TALK, "chat_template_kwargs": 7}, "row 1: 'chat_template_kwargs' must be a dict"),
        ({"messages": [USER]}, "row 1: 'messages' ends with a user turn"),
        ({"colour": "blue"}, "row 1: .*colour.*; to be scored, a row may also hold 'messages', 'text', 'input_ids'"),
    ],
)
def test_what_cannot_be_scored_is_an_error_that_names_its_row(item, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        of_items([TALK, item], NOTHING, True)


@pytest.mark.parametrize("items", [5, 0.5, object()])
def test_what_is_no_sequence_is_a_type_error(items):
    with pytest.raises(TypeError, match=f"expected texts or conversations to score, got {type(items).__name__}"):
        of_items(items, NOTHING, True)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (USER["content"], ANSWER["content"]),
        (USER["content"], [ANSWER]),
        (USER["content"], TALK),
        (USER["content"], np.array(TALK)),
        ([USER], ANSWER["content"]),
        (np.array([USER]), ANSWER["content"]),
        ([USER], [ANSWER]),
        ([USER], TALK),
        ([], TALK),
    ],
)
@pytest.mark.parametrize("as_turns", [True, False])
def test_prompt_and_answer_make_one_conversation_in_which_nothing_is_twice(prompt, response, as_turns):
    found = of_answers(prompt, [response], "the prompt", 0, NOTHING, as_turns)
    is_texts = isinstance(prompt, str) and isinstance(response, str)
    assert contents(found) == ([USER["content"] + ANSWER["content"]] if is_texts and not as_turns else [TALK])


def test_the_system_turn_of_a_prompt_is_kept_beside_an_answer_that_repeats_the_rest():
    answers = [TALK, [SYSTEM, *TALK], [ANSWER], ANSWER, ANSWER["content"]]
    found = of_answers([SYSTEM, USER], answers, "the prompt", 0, NOTHING, True)
    assert contents(found) == [[SYSTEM, *TALK]] * 5


def test_an_answer_that_holds_the_whole_talk_before_the_prompts_text_stays_as_it_is():
    whole = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, *TALK]
    assert contents(of_answers(USER["content"], [whole], "the prompt", 0, NOTHING, True)) == [whole]


def test_answers_to_one_prompt_are_one_group_with_its_tools_and_are_named_by_prompt_and_response():
    extras = {"tools": TOOLS, "chat_template_kwargs": {"thinking": True}}
    found = of_answers(USER["content"], ["one", "two"], "prompt 7", 7, extras, True)
    assert [(one.where, one.group) for one in found] == [("prompt 7, response 0", 7), ("prompt 7, response 1", 7)]
    assert [one.tools for one in found] == [TOOLS, TOOLS]
    assert [one.template_kwargs for one in found] == [{"thinking": True}] * 2
    assert of_answers(USER["content"], [], "prompt 7", 7, extras, True) == []
    assert of_answers("a", np.array(["b", "c"]), "the prompt", 0, NOTHING, False) == of_answers(
        "a", ["b", "c"], "the prompt", 0, NOTHING, False
    )


@pytest.mark.parametrize(
    ("prompt", "responses", "message"),
    [
        ("a", "b", r"the prompt: responses must be a list of answers, not str 'b'; wrap it as \[response\]"),
        ("a", [ANSWER], "the prompt: responses must be a list of answers"),
        ("a", TALK, "the prompt: responses must be a list of answers"),
        ("a", 7, "the prompt: responses must be a list of answers, not int 7"),
        (7, ["b"], "the prompt, response 0: the prompt must be text or a message list, not int 7"),
        ("a", ["b", 7], "the prompt, response 1: the response must be text or a message list, not int 7"),
        ("a", ["b", None], "the prompt, response 1: the response must be text or a message list, not None"),
        ("a", [[]], "the prompt, response 0: the response is an empty message list; give it an answer"),
        ("a", [[USER]], "the prompt, response 0: 'the conversation' ends with a user turn"),
        ([{"role": "user"}], ["b"], "the prompt, response 0: message 0 of 'the prompt' has no 'content'"),
        ("a", [[{"role": "assistant"}]], "the prompt, response 0: message 0 of 'the response' has no 'content'"),
        (HALF, ["b"], "the prompt, response 0: the prompt holds half of a surrogate pair"),
        ("a", [HALF], "the prompt, response 0: the response holds half of a surrogate pair"),
    ],
)
def test_an_answer_that_cannot_be_scored_is_an_error_that_names_it(prompt, responses, message):
    with pytest.raises(ValueError, match=message):
        of_answers(prompt, responses, "the prompt", 0, NOTHING, True)


def test_the_answers_to_each_prompt_are_a_group_of_their_own():
    found = of_prompts(["a", "b"], [["c", "d"], "e"], NOTHING, False)
    assert [contents(each) for each in found] == [["ac", "ad"], ["be"]]
    assert [[one.group for one in each] for each in found] == [[0, 0], [1]]
    assert found[1][0].where == "prompt 1, response 0"


@pytest.mark.parametrize("prompts", ["a", [USER], {"role": "user", "content": "a"}])
def test_one_prompt_where_several_belong_is_an_error(prompts):
    with pytest.raises(
        ValueError, match=r"prompts is one prompt; give it as prompt=, or wrap it as \[prompt\] with one"
    ):
        of_prompts(prompts, ["b"], NOTHING, True)


@pytest.mark.parametrize("half", [(HALF, "b"), ("a", HALF)])
def test_half_a_surrogate_pair_in_joined_texts_is_an_error(half):
    with pytest.raises(ValueError, match="response 0: the prompt with its response holds half of a surrogate pair"):
        of_answers(half[0], [half[1]], "the prompt", 0, NOTHING, False)
    with pytest.raises(ValueError, match="response 0: the prompt with its response is empty"):
        of_answers("", [""], "the prompt", 0, NOTHING, False)


@pytest.mark.parametrize(
    ("input_ids", "mask", "expected"),
    [
        ([5, 6, 7], None, [[5, 6, 7]]),
        ([5, 6, 7], [0, 1, 1], [[6, 7]]),
        ([[5, 6, 7], [8]], None, [[5, 6, 7], [8]]),
        ([[5, 6, 0], [8]], None, [[5, 6, 0], [8]]),
        ([[0, 6, 7], [5, 6, 0]], [[0, 1, 1], [True, True, False]], [[6, 7], [5, 6]]),
        (np.array([5, 6, 0]), None, [[5, 6, 0]]),
        (np.array([[5, 6, 0]]), None, [[5, 6]]),
        (np.array([[5, 6, 7, 8], [5, 0, 7, 8], [5, 6, 0, 0]]), None, [[5, 6, 7, 8], [5, 0, 7, 8], [5, 6]]),
        (np.array([[0, 0, 7], [5, 6, 7]]), np.array([[0, 0, 1], [1, 1, 1]]), [[7], [5, 6, 7]]),
        (np.array([[0, 0, 7], [5, 6, 7]]), np.array([[1, 1, 1], [1, 1, 1]]), [[0, 0, 7], [5, 6, 7]]),
        (torch.tensor([[0, 7], [5, 6]]), torch.tensor([[0, 1], [1, 1]]), [[7], [5, 6]]),
        ([torch.tensor([5, 6]), np.array([7])], None, [[5, 6], [7]]),
        ([], None, []),
    ],
)
def test_ids_come_without_what_the_mask_or_trailing_padding_hides(input_ids, mask, expected):
    found = of_ids(input_ids, mask, 0)
    assert contents(found) == expected
    assert {one.kind for one in found} <= {"ids"}
    assert len({one.group for one in found}) == len(found)


def test_without_a_padding_id_no_id_is_taken_for_padding():
    assert contents(of_ids(np.array([[0, 5, 0], [7, 8, 0]]))) == [[0, 5, 0], [7, 8, 0]]


@pytest.mark.parametrize(
    ("input_ids", "mask", "message"),
    [
        ([[5], []], None, "row 1: input_ids is empty; give it at least one token"),
        (np.zeros((2, 0), int), None, "row 0: input_ids is empty"),
        ([[5], [6]], [[1], [0]], "row 1: input_ids is empty"),
        ([[5], [-100, 6]], None, "row 1: input_ids holds the negative id -100; leave padding and label ids out"),
        ([[5], [0.5]], None, "row 1: 'input_ids' must be a list of integers"),
        (["ab", "cd"], None, "row 0: 'input_ids' must be a list of integers"),
        ([[5], [6, 7]], [[1], [1]], "row 1: attention_mask has 1 entries for 2 ids, of the values .1.; give 1 for"),
        (
            [[5], [6]],
            [[1], [-1]],
            r"row 1: attention_mask has 1 entries for 1 ids, of the values \[-1\]; give 1 for each token and 0 for padding",
        ),
        ([[5], [6]], [[1]], "attention_mask has 1 rows and input_ids 2; give both one shape"),
        ([[5], [6]], [[1], ["1"]], "row 1: 'attention_mask' must be a list of integers"),
        (np.array([[5, 6], [0, 6]]), None, "row 1: input_ids begins with padding; give the attention_mask too"),
        (np.array([[5, 6, 0], [0, 6, 0]]), None, "row 1: input_ids begins with padding; give the attention_mask too"),
    ],
)
def test_ids_that_cannot_be_scored_are_an_error_that_names_the_row(input_ids, mask, message):
    with pytest.raises(ValueError, match=message):
        of_ids(input_ids, mask, 0)


KINDS = [
    ({"messages": TALK}, "single", [TALK]),
    ({"conversation": TALK}, "single", [TALK]),
    ({"messages": [USER], "response": ANSWER["content"]}, "single", [TALK]),
    ({"messages": [USER], "responses": [ANSWER["content"], "No."]}, "answers", None),
    ({"text": "a"}, "single", ["a"]),
    ({"text": None, "content": "a"}, "single", ["a"]),
    ({"input_ids": [5, 6]}, "single", [[5, 6]]),
    ({"input_ids": [0, 6], "attention_mask": [0, 1]}, "single", [[6]]),
    ({"prompt": USER["content"], "response": ANSWER["content"]}, "single", [TALK]),
    ({"question": USER["content"], "answer": ANSWER["content"]}, "single", [TALK]),
    ({"instruction": USER["content"], "output": ANSWER["content"]}, "single", [TALK]),
    ({"query": [USER], "completion": [ANSWER]}, "single", [TALK]),
    ({"prompt": USER["content"], "responses": [ANSWER["content"], "No."]}, "answers", None),
    ({"prompt": USER["content"], "completions": [{"response": ANSWER["content"]}, {"content": "No."}]}, "answers", None),
    ({"question": [USER], "answers": [[ANSWER], [{"role": "assistant", "content": "No."}]]}, "answers", None),
    ({"query": [USER], "candidates": [{"text": ANSWER["content"]}, {"completion": "No."}]}, "answers", None),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]}, "pair", None),
    ({"chosen": TALK, "rejected": [USER, {"role": "assistant", "content": "No."}]}, "pair", None),
    ({"chosen": "a", "rejected": "b"}, "pair", ["a", "b"]),
    ({"prompt": "p", "chosen": "a", "rejected": "b"}, "pair", [[{"role": "user", "content": "p"}, {"role": "assistant", "content": each}] for each in "ab"]),
    # Not the prompt with one answer: what a pair brings beside its sides is no reason to score one answer only.
    ({"prompt": "p", "response": "x", "chosen": "a", "rejected": "b"}, "pair", [[{"role": "user", "content": "p"}, {"role": "assistant", "content": each}] for each in "ab"]),
    ({"chosen_ids": [5], "rejected_ids": [6, 7]}, "pair", [[5], [6, 7]]),
    (
        {
            "conversations": [{"from": "human", "value": USER["content"]}],
            "chosen": {"from": "gpt", "value": ANSWER["content"]},
            "rejected": {"from": "gpt", "value": "No."},
        },
        "pair",
        None,
    ),
    ({"prompt": USER["content"], "response_1": "No.", "response_2": ANSWER["content"], "preference_strength": 2}, "pair", None),
]  # fmt: skip
BOTH = [TALK, [USER, {"role": "assistant", "content": "No."}]]
COLUMNS = {"single": ("reward",), "pair": ("reward_chosen", "reward_rejected"), "answers": ("rewards",)}


@pytest.mark.parametrize(("row", "shape", "expected"), KINDS)
def test_each_kind_of_row_gives_what_is_in_it_under_the_reward_columns_of_its_shape(row, shape, expected):
    kind = row_kind(row)
    found = of_row(row, kind, "row 3", 9, True)
    assert (kind.shape, kind.reward_columns) == (shape, COLUMNS[shape])
    assert contents(found) == (BOTH if expected is None else expected)
    assert {one.group for one in found} == {9}
    wheres = {
        "single": ["row 3"],
        "answers": ["row 3, response 0", "row 3, response 1"],
        "pair": ["row 3, 'chosen'", "row 3, 'rejected'"],
    }
    assert [one.where for one in found] == wheres[shape]


@pytest.mark.parametrize(("row", "shape", "expected"), KINDS)
def test_rows_as_arrow_hands_them_out_give_the_same_as_rows_of_lists(row, shape, expected):
    (arrays,) = as_read_from_arrow([row])
    (lists,) = pa.Table.from_pylist([row]).to_pylist()
    assert of_row(arrays, row_kind(arrays), "row 0", 0, True) == of_row(lists, row_kind(lists), "row 0", 0, True)


@pytest.mark.parametrize("column", ["messages", "chosen"])
def test_arrays_deep_in_tools_and_tool_calls_become_lists(column):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": ["b"]}}}]}
    row = {"messages": [USER, call]} if column == "messages" else {"chosen": [USER, call], "rejected": TALK}
    row |= {"tools": TOOLS, "chat_template_kwargs": {"documents": ["one", "two"]}}
    (arrays,) = as_read_from_arrow([row])
    found = of_row(arrays, row_kind(arrays), "row 0", 0, True)[0]
    assert isinstance(arrays["tools"], np.ndarray)
    assert found.content == [USER, call]
    assert found.tools == TOOLS
    assert found.template_kwargs == {"documents": ["one", "two"]}


def test_a_text_prompt_of_a_row_is_joined_to_its_answers_for_a_model_of_texts():
    for row, expected in (
        ({"prompt": "p", "response": "a"}, ["pa"]),
        ({"prompt": "p", "responses": ["a", "b"]}, ["pa", "pb"]),
    ):
        assert contents(of_row(row, row_kind(row), "row 0", 0, as_turns=False)) == expected


def test_the_tools_and_template_variables_of_a_row_go_to_all_that_it_holds():
    for row in (
        {"messages": TALK},
        {"prompt": "p", "response": "a"},
        {"prompt": "p", "responses": ["a", "b"]},
        {"chosen": TALK, "rejected": TALK},
        {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 1},
    ):
        row = {**row, "tools": TOOLS, "chat_template_kwargs": {"thinking": True}}
        found = of_row(row, row_kind(row), "row 0", 0, True)
        assert found
        assert all((one.tools, one.template_kwargs) == (TOOLS, {"thinking": True}) for one in found), row


def test_a_vote_without_a_preference_gives_nothing_and_rated_answers_must_be_given_as_responses():
    tied = {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 0}
    assert of_row(tied, row_kind(tied), "row 0", 0, True) == []
    rated = {"prompt": "p", "responses": None, "answers": None, "completions": ["a", "b", "c"], "scores": [1, 2, 3]}
    kind = RowKind("pair", converter=CONVERTERS["ratings"])
    with pytest.raises(
        ValueError, match="row 4: holds 3 pairs; give its answers as a list in 'responses' beside 'prompt'"
    ):
        of_row({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}, kind, "row 4", 4, True)
    assert row_kind(rated).columns == {"prompt": "prompt", "answers": "completions"}


@pytest.mark.parametrize("part", ["input", "system", "context"])
def test_text_beside_a_prompt_that_may_belong_to_it_is_an_error_and_none_of_it_is_none(part):
    row = {"instruction": "Translate.", "output": "Blau.", part: "  "}
    kind = row_kind(row)
    assert contents(of_row(row, kind, "row 4", 4, True)) == [
        [{"role": "user", "content": "Translate."}, {"role": "assistant", "content": "Blau."}]
    ]
    with pytest.raises(
        ValueError, match=f"row 4: '{part}' holds text beside 'instruction', and is not read; write it into"
    ):
        of_row({**row, part: "blue"}, kind, "row 4", 4, True)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, "'text'"),
        ({"prompt": "p", "response": "a"}, "'prompt' and 'response'"),
        ({"chosen": "a", "rejected": "b"}, "'chosen' and 'rejected'"),
        (
            {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 1},
            "the pair that they hold as ",
        ),
    ],
)
def test_what_of_a_row_is_scored_can_be_said(row, expected):
    assert row_kind(row).described.startswith(expected)


def test_columns_that_hold_nothing_to_score_are_an_error_that_tells_what_could_be_scored():
    with pytest.raises(ValueError, match=r"data: .*'prompt' with 'response', or 'prompt' with the list 'responses'"):
        row_kind({"prompt": "alone", "colour": "blue"})
    with pytest.raises(ValueError, match=r"my rows.*to be scored, a row may also hold 'messages'"):
        row_kind({"colour": "blue"}, "my rows")


FIRST = {
    "messages": {"messages": TALK},
    "text": {"text": "a"},
    "input_ids": {"input_ids": [5]},
    "response": {"prompt": "p", "response": "a"},
    "responses": {"prompt": "p", "responses": ["a"]},
    "chosen": {"chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize(
    ("first", "row", "message"),
    [
        ("messages", {"messages": None}, "row 4: 'messages' is None"),
        ("messages", {"messages": []}, "row 4: 'messages' is an empty message list"),
        ("messages", {"messages": [USER]}, "row 4: 'messages' ends with a user turn"),
        ("text", {"text": None}, "row 4: 'text' is None; drop the row or fill it"),
        ("text", {"text": 7}, "row 4: 'text' must be text, as in the first row, not int 7; mend the row"),
        ("text", {"text": ""}, "row 4: 'text' is empty"),
        ("text", {"text": HALF}, "row 4: 'text' holds half of a surrogate pair"),
        ("input_ids", {"input_ids": None}, "row 4: 'input_ids' is None"),
        ("input_ids", {"input_ids": []}, "row 4: input_ids is empty"),
        ("input_ids", {"input_ids": [5], "attention_mask": [1, 1]}, "row 4: attention_mask has 2 entries for 1 ids"),
        ("response", {"prompt": None, "response": "a"}, "row 4: 'prompt' is None; drop the row or fill it"),
        ("response", {"prompt": "p", "response": None}, "row 4: 'response' is None; drop the row or fill it"),
        (
            "response",
            {"prompt": "p", "response": 7},
            "row 4: 'response' must be text or a list, as in the first row, not int 7",
        ),
        (
            "responses",
            {"prompt": "p", "responses": []},
            "row 4: 'responses' is an empty list; give the row at least one",
        ),
        (
            "responses",
            {"prompt": "p", "responses": "a"},
            "row 4: 'responses' must be a list, as in the first row, not str",
        ),
        ("responses", {"prompt": "p", "responses": None}, "row 4: 'responses' is None"),
        ("responses", {"prompt": "p", "responses": ["a", 7]}, "row 4, response 1: the response must be text or"),
        (
            "responses",
            {"prompt": "p", "responses": [{"reply": "a", "score": 1}]},
            r"row 4: an answer has none of 'response', 'content', 'text', 'completion', 'answer', but \['reply', 'score'\]",
        ),
        ("chosen", {"chosen": "a", "rejected": None}, "row 4: 'rejected' is None"),
        ("chosen", {"chosen": "a", "rejected": TALK}, "row 4: 'rejected' is a message list"),
    ],
)
def test_a_row_unlike_the_first_is_an_error_that_names_it(first, row, message):
    with pytest.raises(ValueError, match=message):
        of_row(row, row_kind(FIRST[first]), "row 4", 4, True)


def test_texts_for_a_model_of_conversations_and_conversations_for_one_of_texts_are_said_once(caplog):
    texts, talks, ids = (
        of_items(["a", "b"], NOTHING, True),
        of_items([row["prompt"] + row["chosen"] for row in conversations(2)], NOTHING, True),
        of_ids([[5]]),
    )
    for kind, found in (("conversational", talks), ("standard", texts), ("tokenized", [*texts, *talks]), (None, texts)):
        say_how_texts_are_read(kind, [*found, *ids])
    assert not caplog.records
    for _ in range(2):
        say_how_texts_are_read("conversational", [*talks, *texts])
        say_how_texts_are_read("standard", [*texts, *talks])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("texts are scored as they are, with the end token after them, but this model was trained")
    assert said[1].startswith("conversations are rendered by the chat template, but this model was trained on plain")


def test_a_pairs_texts_are_joined_in_a_model_of_texts():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert contents(of_row(row, row_kind(row), "row 0", 0, False)) == ["pa", "pb"]


def test_what_only_a_later_pair_has_belongs_to_it_all_the_same():
    kind = row_kind({"chosen": TALK, "rejected": TALK})
    tools = [{"type": "function", "function": {"name": "f"}}]
    later = {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER], "tools": tools}
    found = of_row(later, kind, "row 1", 1, True)
    assert contents(found) == [[USER, ANSWER], [USER, ANSWER]]
    assert [one.tools for one in found] == [tools, tools]


def test_a_system_text_beside_a_conversation_is_an_error():
    row = {"system": "Be kind.", "messages": TALK}
    with pytest.raises(ValueError, match="row 2: 'system' holds text beside 'messages', and is not read"):
        of_row(row, row_kind(row), "row 2", 2, True)


def test_encoded_texts_given_whole_are_an_error_that_says_what_to_give():
    with pytest.raises(ValueError, match=r"input_ids holds the columns .*; give input_ids=encoded\['input_ids'\]"):
        of_ids({"input_ids": [[1]], "attention_mask": [[1]]})


def deep(levels=20_000):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_nested_too_deeply_is_an_error_that_names_its_place():
    with pytest.raises(ValueError, match="row 0: a value in the row is nested too deeply"):
        of_items([{"messages": deep()}], {}, True)
    with pytest.raises(ValueError, match="data, first row: a value in the row is nested too deeply"):
        row_kind({"messages": deep()})
    with pytest.raises(ValueError, match="here, response 0: a value in the row is nested too deeply"):
        of_answers("q", [deep()], "here", 0, {}, True)
    with pytest.raises(ValueError, match="input_ids: a value in the row is nested too deeply"):
        of_ids(deep())


@pytest.mark.parametrize("ids", [{1, 2}, np.array(3), iter([1])], ids=["set", "scalar", "iterator"])
def test_what_is_no_list_of_ids_is_an_error_that_says_what_it_is(ids):
    with pytest.raises(TypeError, match="input_ids: expected lists of token ids, got"):
        of_ids(ids)


def test_a_mask_that_is_a_number_is_an_error():
    with pytest.raises(ValueError, match=r"attention_mask has no rows \(int 1\) and input_ids 1"):
        of_ids([[1, 2]], 1)


def test_an_array_without_dimensions_is_nothing_to_score():
    with pytest.raises(TypeError, match="expected texts or conversations to score, got ndarray"):
        of_items(np.array(1), {}, True)


def test_a_column_whose_name_is_no_text_is_an_error():
    with pytest.raises(ValueError, match="data: a column's name must be text, not int 3"):
        row_kind({3: "x"})


def test_a_row_of_ids_that_is_a_number_is_named():
    with pytest.raises(ValueError, match="row 1: 'input_ids' must be a list of integers, not int 3"):
        of_ids([[1, 2], 3])


@pytest.mark.parametrize(("prompts", "responses"), [(3, [["a"]]), (["q"], "a"), ({"q"}, [["a"]]), (["q"], np.array(1))])
def test_several_prompts_and_their_answers_are_lists(prompts, responses):
    with pytest.raises(TypeError, match="must be a list, one entry a prompt, not"):
        of_prompts(prompts, responses, {}, True)


def test_answers_that_are_an_array_without_dimensions_are_an_error():
    with pytest.raises(ValueError, match="here: responses must be a list of answers, not ndarray"):
        of_answers("q", np.array(1), "here", 0, {}, True)


def test_columns_whose_names_cannot_be_sorted_are_shown_all_the_same():
    with pytest.raises(ValueError, match="input_ids holds the columns .'1', 'None'."):
        of_ids({1: 2, None: 3})


@pytest.mark.parametrize("depth", [500, 100_000])
def test_token_ids_that_are_nested_too_deeply_are_an_error_that_names_the_row(depth):
    deep = 0
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(ValueError, match="input_ids"):
        of_ids([0, deep])
