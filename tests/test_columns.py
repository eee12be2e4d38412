"""Whole columns of pairs: the same as row by row, or left to that where a row needs a look."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from planted_pairs import conversational, planted, prompted, texts, transcripts

from plaudit import columns, sides


def found_in(rows):
    data = Dataset.from_list(rows)
    reading = sides.reading_of(data, "train")
    return columns.texts_of(data.with_format("arrow")[:], reading.layout, reading.is_transcript)


def test_columns_and_rows_looked_at_one_by_one_give_the_same_batches(tmp_path):
    pairs = planted(6)
    rows = conversational(pairs)
    for row in rows[::9]:
        row["chosen"][-1]["role"] = row["rejected"][-1]["role"] = "tool"
    forms = [
        (conversational, rows),
        (prompted, prompted(pairs)),
        (texts, texts(pairs)),
        (transcripts, transcripts(pairs)),
    ]
    for _, each in forms:
        data = Dataset.from_list(each)
        reading = sides.reading_of(data, "train")
        table = data.with_format("arrow")[:]
        assert columns.texts_of(table, reading.layout, reading.is_transcript) is not None, "the fast path must be taken"
        fast = sides.batch_of(table, 0, reading)
        slow = sides._slow_batch(table, np.arange(len(table)), reading)
        assert pa.Table.from_batches([fast]).equals(pa.Table.from_batches([slow]))


def said(role, content, **others):
    return {"role": role, "content": content, **others}


ASKED, ANSWERED = said("user", "q"), said("assistant", "a")


@pytest.mark.parametrize(
    "second",
    [
        {"chosen": [ASKED], "rejected": [ASKED, ANSWERED]},
        {"chosen": [], "rejected": [ASKED, ANSWERED]},
        {"chosen": None, "rejected": [ASKED, ANSWERED]},
        {"chosen": [ASKED, said("assistant", None)], "rejected": [ASKED, ANSWERED]},
        {"chosen": [ASKED, said("", "a")], "rejected": [ASKED, ANSWERED]},
        {"chosen": [ASKED, said("assistant", "a", name="x")], "rejected": [ASKED, ANSWERED]},
    ],
)
def test_messages_that_need_a_look_are_left_to_it(second):
    plain = {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED]}
    assert found_in([plain, plain]) is not None
    assert found_in([plain, second]) is None


@pytest.mark.parametrize("prompt", [[ANSWERED], [said("system", "s"), ANSWERED]])
def test_a_prompt_that_a_side_may_repeat_is_left_to_a_look(prompt):
    rows = [{"prompt": one, "chosen": [ANSWERED], "rejected": [ANSWERED]} for one in ([ASKED], prompt)]
    assert found_in(rows) is None
    assert found_in(rows[:1]) is not None
    assert found_in([{**rows[0], "chosen": [ASKED, ANSWERED]}]) is None


@pytest.mark.parametrize("text", ["no turns", "\n\nHuman: q\n\nAssistant: a\n\nHuman: more"])
def test_a_transcript_that_does_not_end_with_an_answer_is_left_to_a_look(text):
    whole = "\n\nHuman: q\n\nAssistant: a"
    rows = [{"chosen": whole, "rejected": one} for one in (whole, text)]
    assert found_in(rows[:1]) is not None
    assert found_in(rows) is None


@pytest.mark.parametrize("ids", [[1, -1], [1, 2**31]])
def test_ids_that_no_vocabulary_has_are_left_to_a_look(ids):
    rows = [{"chosen_ids": [1], "rejected_ids": one} for one in ([2, 3], ids)]
    assert found_in(rows[:1])["rejected"].to_pylist() == [np.array([2, 3], "<i4").tobytes()]
    assert found_in(rows) is None


def test_the_bytes_of_a_slice_are_its_own():
    column = pa.array(["ab", "", "é", "xyz"], pa.large_string())
    for start, stop in ((0, 4), (1, 3), (2, 2)):
        data, offsets = columns.flat_bytes(column[start:stop])
        values = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]
        assert values == column[start:stop].to_pylist()
    assert columns.flat_bytes(pa.array(["ab"]))[0].tobytes() == b"ab"


def test_texts_are_joined_element_by_element():
    first, second = (pa.array(one, pa.large_string()) for one in (["a", "b"], ["x", None]))
    assert columns.joined("<", first, "-", second, ">").to_pylist() == ["<a-x>", None]
