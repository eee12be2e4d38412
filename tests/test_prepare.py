"""Whole data sets to token pairs: every kind of bad row, what is dropped and counted, and the cache."""

import copy
import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import CHAT_TEMPLATE, conversations, make_tokenizer, text_pairs
from datasets import Dataset, IterableDataset, load_dataset
from test_records import ANSWERS, TALKS, TEXTS, assistant, user
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from plaudit import formats, prepare, records, tokens
from plaudit.prepare import Rules

TOKENIZER = make_tokenizer()
VOCABULARY, PAD = len(TOKENIZER), TOKENIZER.pad_token_id
RATED = {"prompt": "q", "responses": ["low", "high"], "scores": [1, 2]}
IDS = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}


def rules(max_length=1024, vocabulary_size=VOCABULARY, pad_token_id=PAD):
    return Rules(max_length, vocabulary_size, pad_token_id)


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def prepared(data, split="train", tokenizer=TOKENIZER, num_proc=None, drop=True, **changes):
    data = Dataset.from_list(data) if isinstance(data, list) else data
    return prepare.prepare(data, split, tokenizer, rules(**changes), num_proc, drop)[0]


def from_file(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))


def refused(rows, message, **changes):
    """Expect the same error of the rows as a data set, where Arrow can hold them at all, and as a stream."""
    try:
        kinds = [Dataset.from_list(rows)]
    except Exception:
        kinds = []
    for data in (*kinds, stream(rows)):
        with pytest.raises(ValueError, match=message):
            prepared(data, **changes)


# What comes out


@pytest.mark.parametrize("rows", [text_pairs(8), conversations(8)], ids=["texts", "conversations"])
def test_a_data_set_and_a_stream_give_the_same_token_pairs_and_nothing_else(rows):
    rows = [row | {"id": 3, "messages": "x"} for row in rows]
    made = prepared(rows)
    assert made.column_names == ["chosen_ids", "rejected_ids"]
    assert list(prepared(stream(rows))) == list(made)
    if isinstance(rows[0]["chosen"], str):
        expected = tokens.encode_texts(TOKENIZER, [row["prompt"] + row["chosen"] for row in rows])
    else:
        texts = [tokens.render(TOKENIZER, row["prompt"] + row["chosen"]) for row in rows]
        expected = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    assert made["chosen_ids"][:] == expected


def test_margins_are_kept_as_they_were():
    made = prepared([TEXTS | {"margin": 2}, TEXTS | {"margin": -1}])
    assert made.column_names == ["chosen_ids", "rejected_ids", "margin"]
    assert made["margin"][:] == [2.0, -1.0]


def test_tools_reach_the_template_of_both_sides():
    made = prepared([TALKS | {"tools": '[{"name": "get_weather"}]'}])[0]
    for side in ("chosen_ids", "rejected_ids"):
        assert '[{"name": "get_weather"}]' in TOKENIZER.decode(made[side])


def test_tokenized_rows_need_no_tokenizer_and_are_not_tokenized_again():
    row = {"input_ids_chosen": [5, 6, 0], "attention_mask_chosen": [1, 1, 0]}
    row |= {"input_ids_rejected": [5, 7, 9], "attention_mask_rejected": [1, 1, 1]}
    made, layout = prepare.prepare(Dataset.from_list([row]), "train", None, rules())
    assert made[:] == {"chosen_ids": [[5, 6]], "rejected_ids": [[5, 7, 9]]}
    assert layout.kind == "tokenized"
    assert layout.columns["chosen_mask"] == "attention_mask_chosen"


def test_texts_without_a_tokenizer_are_an_error():
    with pytest.raises(ValueError, match="train: the rows are not tokenized and there is no tokenizer; pass proc"):
        prepared([TEXTS], tokenizer=None)


def test_the_callers_data_set_is_not_changed():
    data = Dataset.from_list([row | {"margin": 1.0} for row in text_pairs(3)])
    before = (data.column_names, copy.deepcopy(data[:]), data._fingerprint)
    prepared(data)
    assert (data.column_names, data[:], data._fingerprint) == before


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas"])
def test_a_format_that_the_user_set_makes_no_difference(kind):
    rows = [row | {"margin": 0.5} for row in text_pairs(3)]
    assert list(prepared(Dataset.from_list(rows).with_format(kind))) == list(prepared(rows))
    data = Dataset.from_list([IDS]).with_format(kind)
    assert prepared(data)[:] == {name: [ids] for name, ids in IDS.items()}


def test_a_transform_that_the_user_set_is_applied():
    data = Dataset.from_list([{"a": "good", "b": "bad"}])
    data.set_transform(lambda batch: {"chosen": batch["a"], "rejected": batch["b"]})
    assert list(prepared(data)) == list(prepared([TEXTS]))


def test_more_processes_give_the_same(tmp_path):
    data = from_file(tmp_path, text_pairs(50))
    assert list(prepared(data, num_proc=2)) == list(prepared(data.select(range(50))))


def test_more_processes_name_the_true_row():
    rows = text_pairs(30)
    rows[20]["chosen"] = ""
    with pytest.raises(ValueError, match="^train row 20: 'chosen' is empty"):
        prepared(rows, num_proc=2)


# Bad input, one error each


def test_an_empty_data_set_is_an_error():
    refused([], "^eval: the dataset is empty; at least one pair is needed", split="eval")


def test_missing_columns_list_what_was_found_expected_and_alike():
    message = "^train: no preference pairs in columns 'text', 'chosen_answer'; expected 'chosen' and 'rejected'.*"
    refused([{"text": "a", "chosen_answer": "b"}], message + "'chosen_answer' looks like 'chosen'")


EXPLICIT = {"prompt": "p", **TEXTS}


@pytest.mark.parametrize(
    ("good", "change", "message"),
    [
        (EXPLICIT, {"chosen": None}, "'chosen' is None; drop the row or fill it"),
        (EXPLICIT, {"rejected": 3}, "'rejected' must be text, not int 3"),
        (EXPLICIT, {"prompt": None}, "'prompt' is None; drop the row or fill it"),
        (EXPLICIT, {"chosen": " "}, "'chosen' is empty, so there is no answer to score"),
        (EXPLICIT, {"margin": float("nan")}, "'margin' must be a finite number, not float nan"),
        (EXPLICIT, {"margin": float("inf")}, "'margin' must be a finite number, not float inf"),
        (EXPLICIT, {"margin": None}, "'margin' is missing"),
        (EXPLICIT, {"rejected": TALKS["rejected"]}, "'rejected' is a message list, but the first row's answers are te"),
        (ANSWERS, {"chosen": None}, "'chosen' is None; drop the row or fill it"),
        (ANSWERS, {"rejected": "bad"}, "'rejected' is text, but the first row's answers are message lists"),
        (ANSWERS, {"prompt": None}, "'prompt' is None; drop the row, fill it or drop the column"),
        (ANSWERS, {"prompt": "other"}, "'prompt' is text, but 'chosen' and 'rejected' are message lists .* make 'prom"),
        (ANSWERS, {"chosen": []}, "'chosen' is an empty message list"),
        (ANSWERS, {"chosen": [assistant("")]}, "'chosen' ends with an empty answer"),
        (ANSWERS, {"rejected": [assistant("a"), user("b")]}, "'rejected' ends with a user turn, so there is no answer"),
        (ANSWERS, {"tools": "[{"}, "'tools' is not JSON"),
        (IDS, {"chosen_ids": []}, "'chosen_ids' is empty"),
        (IDS, {"rejected_ids": None}, "'rejected_ids' is None"),
        (IDS, {"rejected_ids": [1, 10_000]}, "'rejected_ids': token id 10000 is outside the model's vocabulary of 400"),
    ],
)
def test_a_bad_row_is_an_error_that_names_split_row_and_column(good, change, message):
    filler = {"margin": 1.0} if "margin" in change else {"tools": None} if "tools" in change else {}
    rows = [good | filler] * 6
    rows[4] = rows[4] | change
    refused(rows, f"^train row 4[:,] {message}")


def test_ids_of_a_mask_of_another_length_are_an_error():
    row = {"input_ids_chosen": [5, 6], "attention_mask_chosen": [1], "input_ids_rejected": [5, 7]}
    row |= {"attention_mask_rejected": [1, 1]}
    refused([row], "^train row 0: 'attention_mask_chosen' has 1 entries for the 2 ids of 'input_ids_chosen'")


def test_one_side_text_and_the_other_messages_is_an_error():
    refused([{"chosen": "good", "rejected": TALKS["rejected"]}], "^train row 0: one side is text, the other messages")


def test_a_tokenizer_that_gives_ids_the_model_does_not_have_is_an_error():
    refused([TEXTS], "^train row 0, 'chosen': token id .* is outside the model's vocabulary of 60", vocabulary_size=60)


def test_a_tokenizer_with_fewer_tokens_than_its_highest_id_is_checked_by_its_ids():
    words = Tokenizer(models.WordLevel({"good": 0, "bad": 1, "zebra": 900}, unk_token="bad"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    refused(
        [TEXTS, {"chosen": "zebra", "rejected": "bad"}], "^train row 1, 'chosen': token id 900", tokenizer=tokenizer
    )


def test_content_blocks_for_a_template_that_takes_text_only_are_an_error_that_names_the_row():
    blocks = [user([{"type": "text", "text": "q"}]), assistant("a")]
    refused([TALKS | {"chosen": blocks}], "^train row 0, 'chosen': a message's content is a list of blocks")


def test_an_unknown_role_is_passed_on_if_the_template_writes_it_and_an_error_otherwise():
    row = TALKS | {"chosen": [{"role": "critic", "content": "hm"}, assistant("good")]}
    assert "<|critic|>hm" in TOKENIZER.decode(prepared([row])[0]["chosen_ids"])
    template = "{% if messages[0].role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}" + CHAT_TEMPLATE
    message = "^train row 2, 'chosen': the chat template refuses this conversation .*no critics"
    refused([TALKS, TALKS, row], message, tokenizer=make_tokenizer(chat_template=template))


def test_conversations_without_a_chat_template_are_an_error_with_the_cure():
    refused([TALKS], "^train: .* has no chat template; set chat_template_path", tokenizer=make_tokenizer(None))


# Accepted, though unusual


def test_a_prompt_that_the_answers_repeat_is_used_once():
    plain = list(prepared([TALKS]))
    for prompt in ("q", [user("q")]):
        assert list(prepared([TALKS | {"prompt": prompt}])) == plain
    assert list(prepared([ANSWERS])) == plain


def test_from_value_messages_are_the_same_and_said_once(caplog):
    def shared(text):
        return [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]

    row = {"chosen": shared("good"), "rejected": shared("bad")}
    assert list(prepared([row] * 3)) == list(prepared([TALKS] * 3))
    assert caplog.text.count("'from' and 'value'") == 1


@pytest.mark.parametrize("content", [None, ""])
def test_a_tool_call_needs_no_content(content):
    call = assistant(content, tool_calls=[{"type": "function", "function": {"name": "get_weather", "arguments": {}}}])
    made = prepared([TALKS | {"chosen": [user("q"), call]}])
    assert "<|assistant|> call get_weather {}" in TOKENIZER.decode(made[0]["chosen_ids"])


# Dropped and counted


def test_over_long_pairs_are_dropped_and_counted_by_side_in_one_line(caplog):
    rows = [
        {"chosen_ids": [1] * c, "rejected_ids": [2] * r} for c, r in ((3, 3), (9, 2), (9, 9), (2, 9), (9, 1), (4, 4))
    ]
    made = prepared(rows, split="eval", max_length=4)
    assert [len(ids) for ids in made["chosen_ids"]] == [3, 4]
    assert [record.message for record in caplog.records] == [
        "dropped 4 of 6 eval pairs: 4 longer than 4 tokens (chosen 3, rejected 2)"
    ]
    assert len(prepared(rows, max_length=None)) == 6


def test_identical_pairs_are_dropped_and_counted(caplog):
    same = {"chosen": "same", "rejected": "same"}
    made = prepared([TEXTS, same, TEXTS, same, TEXTS])
    assert len(made) == 3
    assert "dropped 2 of 5 train pairs: 2 whose two sides are identical" in caplog.text


def test_rows_whose_conversion_gives_no_pair_are_dropped_and_counted_and_row_numbers_stay_true(caplog):
    rows = [RATED | {"scores": [1, 1]}, RATED, RATED | {"responses": ["same", "same"]}, RATED]
    for data in (Dataset.from_list(rows), formats.convert(Dataset.from_list(rows), keep_dropped=True)):
        caplog.clear()
        assert len(prepared(data)) == 2
        assert "dropped 2 of 4 train pairs: 1 tied, 1 whose two sides are identical" in caplog.text
    message = "the chat template refuses this conversation"
    template = "{% if messages[1].content == 'x' %}{{ raise_exception('no x') }}{% endif %}" + CHAT_TEMPLATE
    refused(
        [*rows, RATED | {"responses": ["low", "x"]}],
        f"^train row 4, 'chosen': {message}",
        tokenizer=make_tokenizer(template),
    )


def test_nothing_left_after_conversion_is_an_error():
    refused([RATED | {"scores": [1, 1]}] * 3, "^train: no pair is left of the 3 rows read")
    kept = formats.convert(Dataset.from_list([RATED | {"scores": [1, 1]}, RATED]), keep_dropped=True).select([0])
    with pytest.raises(ValueError, match="^train: none of the rows holds a pair after conversion"):
        prepared(kept)


def test_nothing_left_is_an_error_with_the_quartiles_and_the_cure():
    rows = [{"chosen_ids": [1] * length, "rejected_ids": [2]} for length in (10, 20, 30, 40, 50)]
    message = (
        r"none of the 5 pairs is left \(5 longer than 4 tokens.*quartiles of the longer side: 20, 30, 40 tokens, max"
    )
    refused(rows, "^train: " + message + "_length: 4; raise max_length", max_length=4)
    same = {"chosen": "same", "rejected": "same"}
    refused([same] * 2, r"^train: none of the 2 pairs is left \(2 whose two sides are identical\)")


def test_prediction_drops_nothing(caplog):
    same = {"chosen": "same", "rejected": "same"}
    for data in (Dataset.from_list([TEXTS, same]), stream([TEXTS, same])):
        made = prepared(data, drop=False)
        assert len(list(made)) == 2
        assert not any(row.get(prepare.DROPPED) for row in made)
    long = {"chosen_ids": [1] * 9, "rejected_ids": [2]}
    message = r"^test row 1: the pair is longer than max_length 4 \(chosen 9 tokens, rejected 1\).* raise max_length"
    refused([IDS, long], message, split="test", max_length=4, drop=False)
    assert not caplog.records


# A stream


def test_kept_rows_of_a_stream_are_those_of_the_data_set_and_are_counted():
    rows = [RATED, RATED | {"scores": [1, 1]}, RATED | {"responses": ["same", "same"]}]
    rows += [RATED | {"responses": ["low", "high " * 40]}, RATED | {"prompt": "other"}]
    made = prepared(stream(rows), max_length=40)
    counts = Counter()
    kept = list(prepare.kept_rows(made, counts))
    assert len(kept) == 2
    assert kept == list(prepared(rows, max_length=40))
    assert counts == {"rows": 5, "tied": 1, prepare.IDENTICAL: 1, "longer than 40 tokens": 1}


def test_the_first_thousand_rows_of_a_stream_are_checked_and_no_more(caplog):
    bad = TEXTS | {"chosen": ""}
    refused([*[TEXTS] * 900, bad], "^train row 900: 'chosen' is empty")
    made = prepared(stream([*[TEXTS] * 1500, bad]))
    assert not caplog.records
    with pytest.raises(ValueError, match="^train row 1500: 'chosen' is empty"):
        list(made)


# Where the reward is read


@pytest.mark.parametrize(
    ("chosen", "rejected", "position"),
    [([5, 6, PAD], [5, 6, PAD, PAD], 1), ([5, 6], [5, 6, PAD], 1), ([PAD], [PAD, PAD], 0)],
)
def test_sides_that_are_read_at_the_same_shared_token_are_refused(chosen, rejected, position):
    row = {"chosen_ids": chosen, "rejected_ids": rejected}
    read = TOKENIZER.convert_ids_to_tokens(chosen[position])
    shown = re.escape(f"`{read}` (id {chosen[position]})")
    message = f"^train row 1: chosen and rejected are read at token {position} {shown}, inside the shared prompt.*"
    message += rf"the padding token `<\|padding\|>` \(id {PAD}\); set pad_token"
    refused([IDS, row], message)
    refused([IDS, row], rf"read at token {position} \(id {chosen[position]}\), inside", tokenizer=None)
    prepared([IDS, row], pad_token_id=None)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [([5, 6, PAD], [5, 7, PAD]), ([5], [5, 6]), ([5, PAD], [5, PAD, 6]), ([5, PAD, 6], [5, PAD])],
)
def test_sides_that_are_read_at_different_tokens_are_accepted(chosen, rejected):
    row = {"chosen_ids": chosen, "rejected_ids": rejected}
    assert list(prepared([row])) == [row]


def test_the_read_out_is_the_last_id_that_is_not_padding():
    assert prepare.read_out([4, 0, 5, 0, 0], 0) == 2
    assert prepare.read_out([4, 5], None) == 1
    assert prepare.read_out([0, 0], 0) == 0


def test_lengths_are_those_of_both_sides():
    data = Dataset.from_list([{"chosen_ids": [1] * c, "rejected_ids": [1] * r} for c, r in ((1, 2), (5, 3), (4, 4))])
    assert np.array_equal(prepare.pair_lengths(data.select([2, 0])), [[4, 4], [1, 2]])


# The cache


@pytest.fixture
def encoded(monkeypatch):
    """Count the rows that are tokenized."""
    rows = Counter()
    encode = prepare.EncodePairs.__call__

    def counted(self, columns, numbers):
        rows["encoded"] += len(numbers)
        return encode(self, columns, numbers)

    monkeypatch.setattr(prepare.EncodePairs, "__call__", counted)
    return rows


def test_the_second_time_nothing_is_tokenized(tmp_path, encoded):
    data = from_file(tmp_path, text_pairs(20))
    first = prepared(data)
    assert encoded["encoded"] == 20
    TOKENIZER(["a", "b c"], padding=True)
    again = prepared(data)
    assert encoded["encoded"] == 20
    assert first.cache_files == again.cache_files


def test_the_result_is_on_disk_and_not_in_memory(tmp_path):
    made = prepared(from_file(tmp_path, text_pairs(20)))
    assert made.cache_files
    assert type(made.data).__name__ == "MemoryMappedTable" or all(
        type(block).__name__ == "MemoryMappedTable" for row in made.data.blocks for block in row
    )


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": make_tokenizer(vocab_size=300)},
        {"tokenizer": make_tokenizer(chat_template="x")},
        {"tokenizer": make_tokenizer(eos="<|end|>")},
        {"vocabulary_size": 500},
        {"split": "eval"},
        {"max_length": 512},
        {"drop": False},
    ],
    ids=["vocabulary", "template", "eos", "model", "split", "length", "prediction"],
)
def test_another_tokenizer_template_or_model_does_not_find_the_cache(tmp_path, encoded, change):
    data = from_file(tmp_path, text_pairs(20))
    prepared(data)
    prepared(data, **change)
    assert encoded["encoded"] == 40


def test_changed_code_does_not_find_the_cache(tmp_path, encoded, monkeypatch):
    data = from_file(tmp_path, text_pairs(20))
    prepared(data)
    monkeypatch.setattr(formats, "source_checksum", lambda *files: 1)
    prepared(data)
    assert encoded["encoded"] == 40


# Rows that keep the number they had in their file


def test_an_error_names_the_row_by_its_number_in_the_file():
    rows = [TEXTS | {records.ROW: 7}, TEXTS | {"chosen": "", records.ROW: 9}]
    refused(rows, "^train row 9: 'chosen' is empty")
    rated = [RATED | {records.ROW: 7}, RATED | {"scores": [1, None], records.ROW: 9}]
    refused(rated, "^train row 9: ")
    assert prepared([TEXTS | {records.ROW: 7}]).column_names == ["chosen_ids", "rejected_ids"]


def test_a_margin_that_only_later_rows_have_is_an_error():
    rows = [TEXTS, TEXTS | {"margin": 0.5}]
    with pytest.raises(ValueError, match="^train row 1: 'margin' is given here, but not in the first row"):
        list(prepared(stream(rows)))


def test_a_column_that_only_later_rows_have_does_not_come_through():
    rows = [TEXTS, TEXTS | {"extra": 1}]
    assert all(set(row) == {"chosen_ids", "rejected_ids"} for row in prepared(stream(rows)))


def test_what_a_stream_drops_is_said_when_it_has_grown_over_all_workers(caplog):
    counts = prepare.StreamCounts()
    counts.note("train", None)
    counts.note("train", {"worker": 0, "rows": 5, "tied": 1})
    counts.note("train", {"worker": 1, "rows": 4})
    counts.say()
    counts.say()
    counts.note("train", {"worker": 1, "rows": 9, "tied": 2})
    counts.say()
    assert caplog.messages == ["dropped 1 of 9 train pairs: 1 tied", "dropped 3 of 14 train pairs: 3 tied"]


# Where the prepared pairs come from


def test_prepared_pairs_say_which_rows_they_are_and_which_of_the_pairs_that_the_rows_hold():
    same = {"chosen": "same", "rejected": "same"}
    origins = getattr(prepared([same, TEXTS, same, TEXTS]), prepare.ORIGINS)
    assert (origins.rows.tolist(), origins.places.tolist()) == ([1, 3], [1, 3])
    numbered = [row | {records.ROW: number} for row, number in ((TEXTS, 7), (same, 8), (TEXTS, 9))]
    origins = getattr(prepared(numbered), prepare.ORIGINS)
    assert (origins.rows.tolist(), origins.places.tolist()) == ([7, 9], [0, 2])


def test_rows_that_hold_no_pair_have_no_place_among_the_pairs():
    rows = [RATED | {"scores": [1, 1]}, RATED, RATED | {"responses": ["same", "same"]}, RATED]
    origins = getattr(prepared(rows), prepare.ORIGINS)
    assert (origins.rows.tolist(), origins.places.tolist()) == ([1, 3], [0, 2])
    assert len(formats.convert(Dataset.from_list(rows))) == 3, "the identical pair is one that the rows hold"
