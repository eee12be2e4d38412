"""One row in, its canonical pair or an error with a cure out."""

import copy
import re
import warnings

import numpy as np
import pytest

from plaudit import compat, formats, records


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


TEXTS = {"chosen": "good", "rejected": "bad"}
TALKS = {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}
ANSWERS = {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}


def canonical(row, first=None, where="train row 17"):
    first = first or row
    return records.canonical(row, formats.layout_of(list(first), first, "train"), where)


def refused(row, message, first=None):
    with pytest.raises(ValueError, match="^train row 17: .*" + re.escape(message)):
        canonical(row, first)


# Text


def test_a_text_prompt_is_joined_as_it_is():
    assert canonical({"prompt": "The sky is", "chosen": " blue", "rejected": " green"}) == {
        "chosen": "The sky is blue",
        "rejected": "The sky is green",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "'chosen' is None; drop the row or fill it"),
        ({"rejected": 3}, "'rejected' must be text, not int 3"),
        ({"chosen": ""}, "'chosen' is empty, so there is no answer to score"),
        ({"chosen": " \n"}, "'chosen' is empty"),
        ({"chosen": TALKS["chosen"]}, "'chosen' is a message list, but the first row's answers are text"),
        ({"prompt": None}, "'prompt' is None; drop the row"),
        ({"prompt": ["p"]}, "'prompt' must be text, not list"),
        ({"prompt": [user("p")]}, "'prompt' is a message list, but 'chosen' and 'rejected' are text; make each answer"),
    ],
)
def test_a_bad_text_is_an_error_that_names_the_row_and_the_column(change, message):
    first = {"prompt": "p", **TEXTS}
    refused(first | change, message, first)


def test_a_blank_text_without_a_prompt_is_an_error():
    refused(TEXTS | {"rejected": "\n"}, "'rejected' is empty", TEXTS)


# Margin


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "'margin' is missing"),
        (float("nan"), "'margin' must be a finite number, not float nan"),
        (float("-inf"), "not float -inf"),
        (True, "not bool True"),
        ("1", "not str '1'"),
    ],
)
@pytest.mark.parametrize("row", [TEXTS, TALKS, {"chosen_ids": [1], "rejected_ids": [2]}])
def test_a_bad_margin_is_an_error_that_names_the_row_and_the_value(row, value, message):
    refused(row | {"margin": value}, message, row | {"margin": 1.0})


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2)])
def test_a_margin_becomes_a_float(value):
    margin = canonical(TEXTS | {"margin": value})["margin"]
    assert margin == 2.0
    assert type(margin) is float


# Token ids


@pytest.mark.parametrize("names", compat.TOKEN_COLUMNS, ids=lambda names: names["chosen_ids"])
def test_every_generation_of_token_columns_gives_the_same_ids(names):
    row = {names["chosen_ids"]: [5, 6, 7], names["rejected_ids"]: [5, 8]}
    if names["chosen_mask"]:
        row = {
            names["chosen_ids"]: [5, 6, 7, 0],
            names["chosen_mask"]: [1, 1, 1, 0],
            names["rejected_ids"]: [0, 5, 8],
            names["rejected_mask"]: [0, 1, 1],
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert formats.recognise(list(row), row, "train") is None
        assert canonical(row) == {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}


def test_chosen_input_ids_warn_once_that_v1_will_not_take_them(monkeypatch):
    monkeypatch.setattr(compat, "_warned_columns", set())
    row = {"chosen_input_ids": [1], "rejected_input_ids": [2]}
    with pytest.warns(FutureWarning, match="will not be supported in v1"):
        canonical(row)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canonical(row)


def test_tokens_win_over_texts_beside_them_but_identifiers_do_not():
    row = TEXTS | {"chosen_ids": [1], "rejected_ids": [2]}
    assert canonical(row) == {"chosen_ids": [1], "rejected_ids": [2]}
    row = TEXTS | {"chosen_ids": "user-1", "rejected_ids": "user-2"}
    assert canonical(row) == TEXTS


def test_arrays_are_lists_of_integers_too():
    assert canonical({"chosen_ids": np.array([1, 2]), "rejected_ids": np.array([3])})["chosen_ids"] == [1, 2]


MASKED = {
    "input_ids_chosen": [1, 2],
    "attention_mask_chosen": [1, 1],
    "input_ids_rejected": [1, 3],
    "attention_mask_rejected": [1, 1],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids_chosen": None}, "'input_ids_chosen' is None"),
        ({"input_ids_chosen": [], "attention_mask_chosen": []}, "'input_ids_chosen' has no token"),
        ({"input_ids_chosen": [1.0, 2.0]}, "'input_ids_chosen' must be a list of integers"),
        ({"input_ids_chosen": [1, None]}, "'input_ids_chosen' must be a list of integers"),
        ({"input_ids_chosen": [1, True]}, "'input_ids_chosen' must be a list of integers"),
        ({"input_ids_chosen": "12"}, "'input_ids_chosen' must be a list of integers, not str '12'"),
        ({"input_ids_rejected": [1, -100]}, "'input_ids_rejected' has the negative id -100"),
        ({"attention_mask_chosen": [1]}, "'attention_mask_chosen' has 1 entries for the 2 ids of 'input_ids_chosen'"),
        ({"attention_mask_chosen": None}, "'attention_mask_chosen' is None"),
        ({"attention_mask_chosen": [0, 0]}, "'input_ids_chosen' has no token that 'attention_mask_chosen' attends to"),
    ],
)
def test_bad_token_ids_are_an_error_that_names_the_row(change, message):
    refused(MASKED | change, message, MASKED)


def test_an_empty_sequence_of_ids_is_an_error():
    refused({"chosen_ids": [1], "rejected_ids": []}, "'rejected_ids' is empty")


# Messages


def test_message_prompts_are_put_before_both_answers():
    made = canonical(ANSWERS)
    assert made == TALKS | {"tools": None, "chat_template_kwargs": {}}


def test_canonical_changes_nothing_that_it_is_given():
    row = {
        "prompt": [{"from": "human", "value": "q", "role": None}],
        "chosen": [assistant(None, tool_calls=[{"function": {"name": "f", "arguments": {"a": None}}}])],
        "rejected": [assistant("bad", tool_calls=None)],
        "tools": [{"type": "function", "x": None}],
    }
    before = copy.deepcopy(row)
    canonical(row)
    assert row == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": []}, "'chosen' is an empty message list"),
        ({"chosen": None}, "'chosen' is None"),
        ({"chosen": "text"}, "'chosen' is text, but the first row's answers are message lists"),
        ({"chosen": assistant("a")}, "'chosen' is one message, not a list; wrap it"),
        ({"chosen": [assistant("a"), "b"]}, "message 1 of 'chosen' must be {\"role\""),
        ({"chosen": [{"content": "a"}]}, "message 0 of 'chosen' has no 'role'"),
        ({"chosen": [{"role": "assistant"}]}, "message 0 of 'chosen' has no 'content'"),
        ({"chosen": [user(None), assistant("a")]}, "message 0 of 'chosen' has no 'content'"),
        (
            {"chosen": [user(7), assistant("a")]},
            "message 0 of 'chosen' has a 'content' that is neither text nor a list",
        ),
        ({"chosen": [user([]), assistant("a")]}, "message 0 of 'chosen' has a 'content' that is neither"),
        ({"chosen": [user(["x"]), assistant("a")]}, "message 0 of 'chosen' has a 'content' that is neither"),
        ({"rejected": [user("q")]}, "'rejected' ends with a user turn, so there is no answer to score; drop the turn"),
        ({"rejected": [assistant("a"), {"role": "system", "content": "s"}]}, "'rejected' ends with a system turn"),
        (
            {"rejected": [assistant("a"), {"role": "developer", "content": "s"}]},
            "'rejected' ends with a developer turn",
        ),
        ({"rejected": [user("q"), assistant(" ")]}, "'rejected' ends with an empty answer"),
        ({"rejected": [assistant([{"type": "text", "text": ""}])]}, "'rejected' ends with an empty answer"),
        ({"rejected": [assistant("", tool_calls=[])]}, "'rejected' ends with an empty answer"),
        ({"rejected": [assistant("a", tool_calls="f()")]}, "message 0 of 'rejected' has 'tool_calls' that are no list"),
    ],
)
def test_a_bad_message_is_an_error_that_names_the_row_and_the_message(change, message):
    refused(TALKS | change, message, TALKS)


@pytest.mark.parametrize("content", [None, "", {}])
def test_a_tool_call_needs_no_content(content):
    message = {"role": "assistant", "content": content, "tool_calls": [{"function": {"name": "f"}}]}
    if content == {}:
        del message["content"]
    row = {"chosen": [user("q"), message], "rejected": TALKS["rejected"]}
    assert canonical(row)["chosen"][1] == message | {"content": ""}


def test_an_empty_list_of_tool_calls_is_none_at_all():
    row = TALKS | {"chosen": [user("q"), assistant("good", tool_calls=[])]}
    assert canonical(row)["chosen"] == TALKS["chosen"]


def test_other_roles_and_content_blocks_are_passed_on():
    blocks = [{"type": "text", "text": "q"}, {"type": "image", "url": "x"}]
    turns = [user(blocks), {"role": "critic", "content": "hm"}, {"role": "tool", "content": ""}, assistant("good")]
    assert canonical(TALKS | {"chosen": turns})["chosen"] == turns


def test_none_is_stripped_from_messages_and_tools():
    calls = [{"function": {"name": "f", "arguments": {"city": "Oslo", "unit": None}}, "id": None}]
    row = {
        "chosen": [user("q") | {"tool_calls": None}, assistant("good", tool_calls=calls)],
        "rejected": TALKS["rejected"],
        "tools": [{"function": {"name": "f", "parameters": {"a": {"enum": ["x", None]}, "b": None}}}],
        "chat_template_kwargs": {"thinking": True, "budget": None},
    }
    made = canonical(row)
    assert made["chosen"] == [
        user("q"),
        assistant("good", tool_calls=[{"function": {"name": "f", "arguments": {"city": "Oslo"}}}]),
    ]
    assert made["tools"] == [{"function": {"name": "f", "parameters": {"a": {"enum": ["x", None]}}}}]
    assert made["chat_template_kwargs"] == {"thinking": True}


def test_from_value_messages_are_converted_and_said_once(caplog):
    row = {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
        "rejected": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad"}],
    }
    assert formats.recognise(list(row), row, "train") is None
    for _ in range(2):
        assert canonical(row)["chosen"] == TALKS["chosen"]
    assert caplog.text.count("'from' and 'value' are read as 'role' and 'content'") == 1


# Prompts that answers repeat


def test_a_text_prompt_that_is_the_first_user_turn_is_used_once():
    system = {"role": "system", "content": "s"}
    row = {"prompt": "q", "chosen": [system, *TALKS["chosen"]], "rejected": [system, *TALKS["rejected"]]}
    assert canonical(row)["chosen"] == [system, *TALKS["chosen"]]


@pytest.mark.parametrize("row", [ANSWERS | {"prompt": "q"}, TALKS | {"prompt": "other"}])
def test_a_text_prompt_of_message_answers_is_an_error_that_says_which_column_to_change(row):
    refused(row, 'make \'prompt\' a message list [{"role": "user", "content": ...}]')


def test_a_message_prompt_that_both_answers_repeat_is_never_doubled():
    assert canonical(TALKS | {"prompt": [user("q")]})["chosen"] == TALKS["chosen"]


def test_a_system_message_in_the_prompt_alone_is_kept_when_the_answers_repeat_the_rest():
    system = {"role": "system", "content": "s"}
    row = TALKS | {"prompt": [system, user("q")]}
    assert canonical(row)["chosen"] == [system, *TALKS["chosen"]]
    row = {side: [system, *TALKS[side]] for side in TALKS} | {"prompt": [user("q")]}
    assert canonical(row)["chosen"] == [system, *TALKS["chosen"]]


def test_one_side_repeating_the_prompt_is_an_error():
    refused(ANSWERS | {"rejected": TALKS["rejected"]}, "only 'rejected' repeats the messages of 'prompt'")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "'prompt' is None"),
        ([], "'prompt' is an empty message list"),
        ([{"role": "user"}], "message 0 of 'prompt'"),
    ],
)
def test_a_bad_message_prompt_is_an_error(prompt, message):
    refused(ANSWERS | {"prompt": prompt}, message, ANSWERS)


# Tools and template arguments


@pytest.mark.parametrize("tools", [None, "", [], "[]", "null"])
def test_no_tools_are_none(tools):
    assert canonical(TALKS | {"tools": tools})["tools"] is None


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f", "x": null}]', ['{"name": "f"}']])
def test_tools_are_schemas_or_their_json(tools):
    assert canonical(TALKS | {"tools": tools})["tools"] == [{"name": "f"}]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("[{", "'tools' is not JSON"),
        ('{"name": "f"}', "'tools' must be a list of JSON schemas, or the JSON of one, not dict"),
        (3, "'tools' must be a list of JSON schemas"),
        ([3], "'tools' must hold JSON schemas as dicts, not int 3"),
        (["{"], "'tools' is not JSON"),
    ],
)
def test_bad_tools_are_an_error_that_names_the_row(tools, message):
    refused(TALKS | {"tools": tools}, message)


def test_template_arguments_are_a_dict_or_none():
    assert canonical(TALKS | {"chat_template_kwargs": None})["chat_template_kwargs"] == {}
    refused(TALKS | {"chat_template_kwargs": "x"}, "'chat_template_kwargs' must be a dict, not str 'x'")


@pytest.mark.parametrize("name", ["add_generation_prompt", "chat_template", "tokenize", "continue_final_message"])
def test_template_variables_cannot_replace_how_a_row_is_rendered(name):
    refused(TALKS | {"chat_template_kwargs": {name: True}}, f"'chat_template_kwargs' sets {name!r}")


def test_a_mask_holds_only_ones_and_zeros():
    row = {"input_ids_chosen": [5, 6], "attention_mask_chosen": [1, 7]}
    row |= {"input_ids_rejected": [5], "attention_mask_rejected": [1]}
    refused(row, "'attention_mask_chosen' holds [1, 7]")


def test_half_a_surrogate_pair_is_an_error_in_texts_and_messages():
    refused({"chosen": "bad \ud800", "rejected": "b"}, "'chosen' holds half of a surrogate pair")
    refused({"chosen": [user("q"), assistant("\ud800")], "rejected": TALKS["rejected"]}, "half of a surrogate pair")


def test_a_margin_that_float32_cannot_hold_is_an_error():
    refused(TEXTS | {"margin": 1e39}, "'margin' must be a finite number, not float 1e+39")


def test_a_margin_that_no_float_can_hold_is_an_error():
    refused(TEXTS | {"margin": 10**400}, "'margin' must be a finite number, not int 1000000000")


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_a_value_nested_too_deeply_is_an_error_that_names_the_row():
    deep = [user("q"), assistant("a") | {"extra": nested(20_000)}]
    refused({"chosen": deep, "rejected": TALKS["rejected"]}, "a value in the row is nested too deeply")


def test_a_message_that_holds_itself_is_an_error_that_names_the_row():
    endless = assistant("a")
    endless["extra"] = endless
    refused({"chosen": [user("q"), endless], "rejected": TALKS["rejected"]}, "is nested too deeply, or holds itself")


def test_tools_whose_json_has_too_many_levels_are_an_error():
    refused(TALKS | {"tools": "[" * 100_000}, "'tools' is JSON of too many levels: '[[[[")


def test_tools_that_are_an_empty_array_are_an_error_of_their_column():
    refused(TALKS | {"tools": np.array([])}, "'tools' must be a list of JSON schemas")


def test_numbers_of_thousands_of_digits_are_refused_and_not_shown():
    row = {"input_ids_chosen": [5, 6], "attention_mask_chosen": [1, 10**5000]}
    row |= {"input_ids_rejected": [5], "attention_mask_rejected": [1]}
    refused(row, "'attention_mask_chosen' holds a list that cannot be shown")
