"""Pairs read from tables of every form: what is no pair keeps its place, and nothing is guessed."""

import math
import re

import pytest
from datasets import Dataset
from planted_pairs import conversational, planted, prompted, sharegpt, texts, transcripts, write

from plaudit import audit, sides


def batch_of(rows, first_row=0):
    data = Dataset.from_list(rows)
    return sides.batch_of(data.with_format("arrow")[:], first_row, sides.reading_of(data, "train"))


@pytest.mark.parametrize(
    ("written", "title", "has_prompts"),
    [
        (conversational, "conversational", True),
        (prompted, "conversational", True),
        (texts, "standard", True),
        (transcripts, "transcript", True),
        (sharegpt, "sharegpt", True),
        (lambda pairs: [{"chosen": c, "rejected": r} for *_, c, r in pairs], "standard", False),
        (lambda pairs: [{"chosen_ids": [1], "rejected_ids": [2]}], "tokenized", False),
    ],
)
def test_the_first_row_decides_how_rows_are_read(written, title, has_prompts):
    reading = sides.reading_of(Dataset.from_list(written(planted(0, 6))), "train")
    assert (reading.title, reading.has_prompts) == (title, has_prompts)
    assert reading.is_tokenized == (title == "tokenized")


def test_the_column_to_count_by_is_found_or_given_and_holds_texts():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "source": 3, "domain": "d", "other": "o"}
    data = Dataset.from_list([row])
    assert sides.reading_of(data, "train").source == "domain"
    assert sides.reading_of(data, "train", "other").source == "other"
    with pytest.raises(ValueError, match=re.escape("train: there is no column 'x' to count by; found 'prompt', ")):
        sides.reading_of(data, "train", "x")


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match=r"^dev: the data set is empty; at least one row is needed$"):
        sides.reading_of(Dataset.from_list(texts(planted(0, 6))).select([]), "dev")


def test_a_bad_row_among_good_ones_has_its_problem_and_its_number():
    rows = texts(planted(1, 6))
    rows[2]["chosen"] = None
    batch = batch_of(rows, first_row=10)
    assert batch["row"].to_pylist() == list(range(10, 16))
    assert [place for place, one in enumerate(batch["problem"].to_pylist()) if one] == [2]
    assert batch["problem"][2].as_py() == "'chosen' is None; drop the row or fill it"
    assert batch["chosen"][2].as_py() is None


def test_what_is_beside_the_texts_parts_two_answers():
    asked = {"role": "user", "content": "q"}
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    last = {"role": "assistant", "content": "a", "tool_calls": [call]}
    chosen, rejected = ([asked, one] for one in (last, {**last, "tool_calls": None}))
    batch = batch_of([{"chosen": chosen, "rejected": rejected}])
    assert batch["problem"].to_pylist() == [None]
    assert batch["chosen"][0].as_py().startswith(b"a{")
    assert batch["rejected"][0].as_py() == b"a"


def test_a_second_prompt_stands_only_where_it_differs():
    pairs = planted(2, 40)
    batch = batch_of(conversational(pairs))
    assert [one is not None for one in batch["rejected_prompt"].to_pylist()] == [b != d for b, d, *_ in pairs]


def test_rows_that_are_no_pairs_are_counted_and_named_and_keep_their_place(tmp_path):
    rows = prompted(planted(8, 30))
    rows[4]["chosen"] = rows[11]["rejected"] = []
    rows[20]["chosen"][0]["role"] = "user"
    found = audit.audit(write(rows, tmp_path))
    assert found["malformed"]["count"] == 3
    assert found["malformed"]["rows"] == [4, 11, 20]
    assert found["malformed"]["problem"] == "'chosen' is an empty message list; drop the row or fill it"
    assert found["pairs"] == 27
    assert "row 4: 'chosen' is an empty message list" in audit.describe(found)


def test_dropped_votes_and_several_pairs_a_row_are_counted(tmp_path):
    rows = [
        {"prompt": "q", "responses": ["a", "bb", "ccc"], "scores": [1.0, 2.0, 2.0]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [3.0, 3.0]},
        {"prompt": "q", "responses": ["bb", "a"], "scores": [2.0, 1.0]},
    ]
    found = audit.audit(write(rows, tmp_path))
    assert (found["rows"], found["pairs"], found["dropped"]) == (3, 3, {"tied": 2})
    assert found["faults"]["duplicates"] == {"count": 1, "share": 1 / 3, "rows": [2]}
    assert found["margins"]["median"] == 1.0


def test_arena_votes_are_read(tmp_path):
    rows = [
        {
            "prompt": '["q"]',
            "response_a": '["long answer"]',
            "response_b": '["short"]',
            "winner_model_a": w,
            "winner_model_b": 1 - w,
            "winner_tie": 0,
        }
        for w in (1, 0)
    ]
    found = audit.audit(write(rows, tmp_path))
    assert found["faults"]["contradictory"]["rows"] == [0, 1]


def test_ids_that_no_vocabulary_holds_are_no_pair():
    batch = batch_of([{"chosen_ids": [1, 2], "rejected_ids": [3]}, {"chosen_ids": [1, 2**33], "rejected_ids": [3]}])
    assert batch["problem"].to_pylist() == [
        None,
        "'chosen_ids' has the id 8589934592, and no vocabulary is that large; mend the row",
    ]


@pytest.mark.parametrize("beside", [[4], [-1]])
@pytest.mark.parametrize("names", [("chosen_ids", "rejected_ids"), ("input_ids_chosen", "input_ids_rejected")])
def test_an_answer_without_ids_is_empty_whatever_rows_are_beside_it(beside, names):
    chosen, rejected = names
    rows = [{chosen: [1], rejected: [2]}, {chosen: [], rejected: [2]}, {chosen: beside, rejected: [2]}]
    if names[0] != "chosen_ids":
        masks = {name: name.replace("input_ids", "attention_mask") for name in names}
        rows = [{**row, **{masks[name]: [1] * len(row[name]) for name in names}} for row in rows]
        # Masked as a whole, which is the same as none.
        rows[1] |= {chosen: [7], masks[chosen]: [0]}
    batch = batch_of(rows)
    assert batch["problem"].to_pylist()[:2] == [None, None]
    assert batch["chosen"].to_pylist()[:2] == [b"\x01\0\0\0", b""]


@pytest.mark.parametrize("slow", [False, True])
def test_a_margin_that_is_no_number_is_not_taken_for_a_missing_one(slow):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": margin} for margin in ("1.5", None, "high")]
    if slow:
        rows.append({"prompt": None, "chosen": "a", "rejected": "b", "margin": None})
    margins = batch_of(rows)["margin"].to_pylist()
    assert [margin is None for margin in margins[:3]] == [False, True, False]
    assert all(math.isnan(margin) for margin in margins[:3] if margin is not None)
