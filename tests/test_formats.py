"""Which format a dataset is in, and whole datasets converted."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from test_records import ANSWERS, TALKS, TEXTS, assistant, canonical, user

from plaudit import compat, formats
from plaudit.formats import DROPPED, Layout

ROOT = Path(__file__).parents[1]
RATED = {"prompt": "q", "responses": ["low", "high"], "scores": [1, 2]}


# Which layout


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (TEXTS, "standard"),
        (TALKS, "conversational"),
        (ANSWERS, "conversational"),
        ({"prompt": "p", **TEXTS}, "standard"),
    ],
)
def test_the_types_of_chosen_and_rejected_decide_whatever_else_is_there(row, kind):
    extras = {"messages": [user("x")], "conversations": [user("x")], "responses": ["a"], "scores": [1], "chosen_ids": 3}
    for columns in (row, row | extras, extras | row):
        assert formats.recognise(list(columns), columns, "train") is None
        assert formats.layout_of(list(columns), columns, "train").kind == kind
        assert canonical(columns) == canonical(row)


def test_one_side_text_and_the_other_messages_is_an_error():
    row = {"chosen": "good", "rejected": TALKS["rejected"]}
    with pytest.raises(ValueError, match="train row 0: one side is text, the other messages: 'chosen' is text"):
        formats.layout_of(list(row), row, "train")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "train row 0: 'rejected' is None; drop the row"),
        (5, "train row 0: 'rejected' must be text or a message list, not int 5"),
        ([1, 2], "train row 0: 'rejected' holds token ids; rename the column to 'rejected_ids'"),
        (["a"], "train row 0: 'rejected' must be text or a message list, not list"),
        (assistant("bad"), "train row 0: 'rejected' is one message, not a list"),
    ],
)
def test_a_side_that_is_neither_text_nor_messages_is_an_error(value, message):
    row = {"chosen": TALKS["chosen"], "rejected": value}
    assert formats.recognise(list(row), row, "train") is None
    with pytest.raises(ValueError, match=message):
        formats.layout_of(list(row), row, "train")


def test_unknown_columns_list_what_was_found_what_is_alike_and_the_nearest_format():
    row = {"prompt": "p", "chosen_response": "a", "rejected_response": "b"}
    with pytest.raises(ValueError, match=r"^eval: no preference pairs in columns 'prompt', 'chosen_resp") as error:
        formats.recognise(list(row), row, "eval")
    assert "expected 'chosen' and 'rejected'" in str(error.value)
    assert "'chosen_response' looks like 'chosen', 'rejected_response' looks like 'rejected'" in str(error.value)
    arena = {"prompt": "p", "response_a": "a", "response_b": "b", "winner_a": 1, "winner_b": 0}
    with pytest.raises(ValueError, match="nearest other format is 'arena' with columns 'prompt', 'response_a'"):
        formats.recognise(list(arena), arena, "eval")


def test_a_missing_rejected_column_is_named():
    with pytest.raises(ValueError, match=r"in columns 'chosen', 'rejectd'.*'rejectd' looks like 'rejected'"):
        formats.recognise(["chosen", "rejectd"], {"chosen": "a", "rejectd": "b"}, "train")


def test_transcripts_stay_text_and_one_line_offers_the_conversion(caplog):
    row = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    for _ in range(2):
        assert formats.recognise(list(row), row, "train") is None
    assert canonical(row) == row
    assert caplog.text.count('formats.convert(dataset, "transcript")') == 1


def test_answers_without_the_conversation_beside_them_are_pointed_out(caplog):
    row = {"conversations": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert formats.recognise(list(row), row, "train") is None
    assert "'conversations' is not read" in caplog.text


# Whole datasets


def test_convert_counts_what_it_drops_names_the_format_and_leaves_the_source_alone(caplog):
    source = Dataset.from_list([RATED, RATED | {"scores": [2, 2]}, RATED | {"prompt": "second"}])
    before = (source.column_names, source[:], source._fingerprint)
    made = formats.convert(source)
    assert made.column_names == ["prompt", "chosen", "rejected"]
    assert [row["prompt"][0]["content"] for row in made] == ["q", "second"]
    assert 'read as rated answers (format \'ratings\'), for example prompt "q", chosen "high"' in caplog.text
    assert "dropped 1 of 3 rows of train: 1 tied" in caplog.text
    assert (source.column_names, source[:], source._fingerprint) == before


def test_kept_dropped_rows_stay_in_place_with_their_reason():
    source = Dataset.from_list([RATED | {"scores": [2, 2]}, RATED])
    made = formats.convert(source, "ratings", keep_dropped=True)
    assert made[DROPPED] == ["tied", None]
    assert made[0]["chosen"] is None
    assert made[1]["rejected"] == [assistant("low")]


def test_a_stream_is_converted_as_it_is_read():
    read = []

    def rows():
        for number in range(500):
            read.append(number)
            yield RATED | {"scores": [2, 2 - number % 2]}

    made = formats.convert(IterableDataset.from_generator(rows), margins=True)
    assert isinstance(made, IterableDataset)
    read.clear()
    assert next(iter(made))["margin"] == 1.0
    assert len(read) < 100
    whole = list(made)
    assert len(whole) == 250
    assert list(whole[0]) == ["prompt", "chosen", "rejected", "margin"]
    marked = formats.convert(IterableDataset.from_generator(rows), keep_dropped=True)
    assert [row[DROPPED] for row in marked][:3] == ["tied", None, "tied"]


def test_a_first_batch_of_dropped_rows_breaks_no_types():
    dropped, good = RATED | {"scores": [2, 2]}, RATED | {"responses": ["low", "high"]}
    made = formats.convert(Dataset.from_list([dropped] * 1500 + [good, dropped, good] + [dropped] * 1500))
    assert len(made) == 2
    assert made[1]["chosen"] == [assistant("high")]


def test_messages_with_tool_calls_in_some_rows_keep_their_own_keys():
    def call(arguments):
        value = json.dumps({"name": "f", "arguments": arguments})
        return {"chosen": {"from": "function_call", "value": value}, "rejected": {"from": "gpt", "value": "no"}}

    plain = {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    rows = [plain] * 1000 + [call({"city": "Oslo"}), call({"days": 3})]
    made = formats.convert(Dataset.from_list([{"conversations": [{"from": "human", "value": "q"}], **r} for r in rows]))
    assert made[1000]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert made[1001]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"days": 3}
    assert made[0]["chosen"] == [assistant("a")]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_inside_the_pass_names_the_true_row(streamed):
    source = Dataset.from_list([RATED] * 1500 + [RATED | {"scores": [1, float("nan")]}])
    source = source.to_iterable_dataset() if streamed else source
    with pytest.raises(
        ValueError, match=r"^eval row 1500: the score of answer 1 must be a finite number, not float nan"
    ):
        list(formats.convert(source, split="eval"))


def test_a_converted_pair_is_checked_under_the_row_it_came_from():
    prompt = [{"from": "human", "value": "q"}]
    good = {"conversations": prompt, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}
    bad = good | {"chosen": {"from": "gpt", "value": ""}}
    with pytest.raises(ValueError, match=r"^train row 1: 'chosen' ends with an empty answer"):
        formats.convert(Dataset.from_list([good, bad]))


def test_a_changed_converter_does_not_find_the_old_cache(monkeypatch):
    source = Dataset.from_list([RATED])
    before = formats.convert(source)._fingerprint
    assert formats.convert(source)._fingerprint == before
    monkeypatch.setattr(formats, "source_checksum", lambda *files: 1)
    assert formats.convert(source)._fingerprint != before


def test_a_converted_dataset_whose_first_row_was_dropped_is_taken_for_pairs():
    made = formats.convert(Dataset.from_list([RATED | {"scores": [2, 2]}, RATED]), keep_dropped=True)
    assert formats.recognise(made.column_names, made[0], "train") is None


def test_nothing_left_is_an_error_with_the_reasons():
    source = Dataset.from_list([RATED | {"scores": [2, 2]}] * 3)
    with pytest.raises(ValueError, match=r"train: no pair is left of the 3 rows read \(3 tied\); check that"):
        formats.convert(source)


def test_pairs_come_back_as_they_are():
    source = Dataset.from_list([TEXTS])
    assert formats.convert(source) is source


def test_columns_for_the_template_and_the_loss_are_kept():
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
        "tools": '[{"name": "f"}]',
        "margin": 2,
        "id": 7,
    }
    made = formats.convert(Dataset.from_list([row]))[0]
    assert (made["tools"], made["margin"]) == ('[{"name": "f"}]', 2.0)
    assert "id" not in made


def test_an_unknown_name_lists_the_formats():
    with pytest.raises(ValueError, match="'arenas' is unknown; the formats are transcript, arena, sharegpt"):
        formats.convert(Dataset.from_list([TEXTS]), "arenas")


def test_a_format_by_name_says_which_columns_it_needs():
    with pytest.raises(ValueError, match=r"train: format 'arena' needs columns 'prompt', 'response_a'.*found 'chosen'"):
        formats.convert(Dataset.from_list([TEXTS]), "arena")


def test_other_types_are_a_type_error_that_names_them():
    for data, message in (
        ([TEXTS], r"dataset: expected a .* got builtins.list; datasets.Dataset.from_list"),
        (DatasetDict({"train": 1}), r"got datasets.DatasetDict; did you mean dataset\['train'\]\?"),
        (DatasetDict({"test": 1}), r"did you mean dataset\['test'\]\?"),
    ):
        with pytest.raises(TypeError, match=message):
            formats.convert(data)


def test_an_empty_dataset_is_an_error():
    with pytest.raises(ValueError, match="eval: the dataset is empty"):
        formats.convert(Dataset.from_list([]), split="eval")


def test_every_converter_gives_message_lists_with_the_same_keys_for_every_pair():
    row = {"prompt": "q", "response_1": "one", "response_2": "two", "preference_strength": -2}
    for converter, rows in (("ratings", [RATED]), ("helpsteer", [row, row | {"preference_strength": 1}])):
        for margins in (False, True):
            made = formats.convert(Dataset.from_list(rows), converter, margins=margins)
            assert ("margin" in made.column_names) == margins


def test_importing_formats_loads_neither_torch_nor_datasets():
    code = "import sys, plaudit.formats; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


# The page that shows every record

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def section_of(example):
    """Return the name in the last `### `name`` heading above an example, where it is a converter's."""
    names = re.findall(r"^##+ `?(\w+)`?$", PAGE[: PAGE.index(example)], re.MULTILINE)
    return names[-1] if names and names[-1] in formats.CONVERTERS else None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_of_the_page_is_accepted(text):
    row = json.loads(text)
    name = section_of(text)
    recognised = formats.CONVERTERS[name].recognises(row) if name else False
    if name is None or recognised:
        found = formats.recognise(list(row), row, "train")
        assert (found.name if found else None) == name
    if name is None:
        pair = canonical(row)
    else:
        converted = formats.convert(Dataset.from_list([row]), name)[0]
        pair = formats.canonical(converted, Layout("conversational", {column: column for column in converted}), "row")
    chosen, rejected = (pair.get(side, pair.get(f"{side}_ids")) for side in ("chosen", "rejected"))
    assert chosen
    assert rejected
    assert chosen != rejected


def test_the_page_shows_every_converter_and_every_generation_of_token_columns():
    assert {section_of(text) for text in EXAMPLES} == {None, *formats.CONVERTERS}
    for names in compat.TOKEN_COLUMNS:
        assert any(f'"{names["chosen_ids"]}"' in text for text in EXAMPLES)


@pytest.mark.parametrize("name", ["chosen_ids", "rejected_input_ids", "input_ids_chosen"])
def test_one_side_of_tokens_alone_names_the_missing_column(name):
    with pytest.raises(ValueError, match=r"the rows are tokenized, but the column '.*' is missing; give both"):
        formats.recognise([name], {name: [1]}, "train")


def test_one_mask_alone_is_an_error():
    row = {"input_ids_chosen": [1], "attention_mask_chosen": [1], "input_ids_rejected": [1]}
    with pytest.raises(ValueError, match="'attention_mask_rejected' is missing"):
        formats.layout_of(list(row), row, "train")


def test_many_columns_are_not_all_listed():
    with pytest.raises(ValueError, match="and 188 more;"):
        formats.recognise([f"column{i}" for i in range(200)], {}, "train")


def test_what_rows_could_have_been_meant_for_is_offered_once_for_all_splits(caplog):
    rows = [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}]
    for split in ("train", "eval"):
        formats.recognise(list(rows[0]), rows[0], split)
    assert [record.message.split(":")[0] for record in caplog.records] == ["train"]


def test_a_column_name_of_a_million_characters_is_told_without_comparing_it():
    row = {"a" * 1_000_000: "x", "chosen_text": "y"}
    with pytest.raises(ValueError, match="'chosen_text' looks like 'chosen'"):
        formats.recognise(list(row), row, "train")


def test_rows_recognised_by_their_answers_but_without_a_question_are_an_error_that_names_the_column():
    rows = [{"responses": ["a", "b"], "scores": [1, 2]}]
    with pytest.raises(ValueError, match="train row 0: there is no column 'prompt' or 'instruction' or 'question'"):
        formats.convert(Dataset.from_list(rows))
