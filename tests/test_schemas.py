"""Rows of each benchmark's own columns: what they give, and what is said of those that are not as they should be."""

import gzip
import json
from pathlib import Path

import pytest
import rows_of_benchmarks as made

from plaudit import formats
from plaudit.schemas import kind_of_row, pair_row, read_row

DATA = Path(__file__).parents[2] / "shared" / "data"
FIRST = {
    "rewardbench": made.rewardbench({"mt-bench-easy": 1})[0],
    "rewardbench2": made.rewardbench2({"Focus": 1})[0],
    "rm-bench": made.rm_bench({"chat": 1})[0],
    "judgebench": made.judgebench({"livebench-math": 2})[1],
    "ppe-correctness": made.ppe_correctness(1)[0],
    "ppe-human": made.ppe_human()[0],
    "rmb": made.rmb_pairs(1)[0],
    "best-of-n": made.best_of_n(1)[0],
}


def changed(kind, **columns):
    """The kind's row with other columns; one that is given as `...` is left out."""
    row = {**FIRST[kind], **columns}
    return {name: value for name, value in row.items() if value is not ...}


@pytest.mark.parametrize("kind", FIRST)
def test_a_benchmark_is_recognised_by_its_columns(kind):
    assert kind_of_row(FIRST[kind]) == kind


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "x", "id": 1},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": [], "subset": "x"},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
        {"chosen_ids": [1], "rejected_ids": [2]},
    ],
)
def test_other_columns_are_plain_pairs(row):
    assert kind_of_row(row) == "pairs"


def test_best_of_n_of_rmb_is_recognised_too():
    assert kind_of_row(made.rmb_best(1)[0]) == "rmb"


QUESTION = [{"role": "user", "content": "Question 0 of x?"}]


def test_a_row_of_rewardbench_is_a_pair_with_its_subset():
    row = read_row("rewardbench", FIRST["rewardbench"], "row 0")
    assert (row.id, row.subset, row.labels) == ("0", "mt-bench-easy", [1, 0])
    assert row.prompt == [{"role": "user", "content": "Question 0 of mt-bench-easy?"}]
    assert row.contents()[1] == [*row.prompt, {"role": "assistant", "content": "Wrong 0."}]
    assert row.extra["characters"] == [len(row.answers[0]), len("Wrong 0.")]


def test_a_row_of_ties_has_its_right_answers_first():
    row = read_row("rewardbench2", made.rewardbench2({"Ties": 2})[1], "row 1")
    assert (row.id, row.labels) == ("tied:0", [1, 1, 1, 0, 0, 0])
    assert row.answers[2:4] == ["Right Ties 1 c", "Wrong Ties 1 a"]


def test_a_row_of_rm_bench_has_three_styles_of_each_side_and_its_domain():
    row = read_row("rm-bench", FIRST["rm-bench"], "row 0")
    assert (row.subset, row.labels) == ("chat", [1, 1, 1, 0, 0, 0])
    assert row.answers == [*FIRST["rm-bench"]["chosen"], *FIRST["rm-bench"]["rejected"]]
    assert read_row("rm-bench", changed("rm-bench", domain=...), "row 0", "math").subset == "math"
    assert read_row("rm-bench", changed("rm-bench", domain=..., subset="code"), "row 0", "math").subset == "code"


@pytest.mark.parametrize(("label", "labels"), [("A>B", [1, 0]), ("B>A", [0, 1])])
def test_the_label_of_judgebench_says_which_is_right_and_the_order_stays(label, labels):
    row = read_row("judgebench", changed("judgebench", label=label), "row 0")
    assert (row.labels, row.extra["label"], row.subset) == (labels, label, "livebench-math")
    assert row.answers[0].startswith("A to")


def test_a_row_of_ppe_correctness_has_32_answers_and_its_sampled_pairs():
    row = read_row("ppe-correctness", FIRST["ppe-correctness"], "row 0", "MATH")
    assert len(row.answers) == 32
    assert row.answers[9] == "MATH 0 answer 10"
    assert row.labels == [int(k % 3 == 0) for k in range(32)]
    assert row.extra["sampled_conflict_pairs"] == [[0, 1], [2, 3], [4, 6]]
    assert row.subset == "MATH"


@pytest.mark.parametrize(
    ("winner", "labels"), [("model_a", [1, 0]), ("model_b", [0, 1]), ("tie", [0, 0]), ("tie (bothbad)", [0, 0])]
)
def test_a_vote_of_people_names_winner_and_models(winner, labels):
    row = read_row("ppe-human", changed("ppe-human", winner=winner), "row 0")
    assert (row.labels, row.extra["winner"], row.extra["models"]) == (labels, winner, ["one", "two"])


def test_rmb_keeps_every_turn_of_its_conversations_the_systems_too():
    system = {"role": "system", "content": "Be kind."}
    row = read_row("rmb", changed("rmb", conversation_input=[system, *FIRST["rmb"]["conversation_input"]]), "row 0")
    assert [message["role"] for message in row.contents()[0]] == ["system", "user", "assistant", "user", "assistant"]
    assert (row.id, row.subset, row.labels) == ("p0", "Helpfulness/Chat", [1, 0])
    best = read_row("rmb", made.rmb_best(1)[0], "row 0")
    assert best.labels == [1, 0, 0, 0]
    assert best.answers == ["Best 0", "Loser 0 0", "Loser 0 1", "Loser 0 2"]


def test_best_of_n_takes_the_labels_as_they_are():
    assert read_row("best-of-n", FIRST["best-of-n"], "row 0").labels == [0, 0, 1, 0]
    assert read_row("rewardmath", changed("best-of-n", correct=[1, 0, 0, 0]), "row 0").labels == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("rewardbench", {"subset": ...}, "the column 'subset' of a rewardbench row is missing .*; add what is missing"),
        ("rewardbench", {"chosen": None}, "'chosen' must be a text, not NoneType None; mend the row"),
        ("rewardbench", {"subset": " "}, "'subset' is ' ', and must not be empty; mend the row"),
        ("rewardbench2", {"total_completions": 5}, "'total_completions' is 5, but there are 1 chosen and 3 rejected answers"),
        ("rewardbench2", {"num_correct": 2}, "'num_correct' is 2, but .* so it should be 1; mend the row"),
        ("rewardbench2", {"num_incorrect": 4}, "'num_incorrect' is 4, but .* so it should be 3"),
        ("rewardbench2", {"num_correct": "1"}, "'num_correct' must be a whole number, not str '1'"),
        (
            "rewardbench2",
            {"chosen": ["a", "b"], "num_correct": 2, "total_completions": 5},
            "outside Ties a row has 1 chosen and 3 rejected answers, but this one of 'Focus' has 2 and 3",
        ),
        ("rewardbench2", {"subset": "Ties", "id": "7"}, "'id' of a row of Ties must be 'ref:NUMBER' or 'tied:NUMBER', not '7'"),
        ("rewardbench2", {"chosen": "a"}, "'chosen' must be a list of texts, not str 'a'"),
        ("rm-bench", {"rejected": ["a", "b"]}, r"'rejected' must hold three answers \(concise, .*\), not 2; mend the row"),
        ("rm-bench", {"chosen": ["a", None, "c"]}, "entry 1 of 'chosen' must be a text, not NoneType None"),
        ("rm-bench", {"domain": ...}, "there is no 'domain'; add the column, or name the file by its domain"),
        ("judgebench", {"label": "A=B"}, "'label' must be 'A>B' or 'B>A', not str 'A=B'; mend the row"),
        ("judgebench", {"response_B": 3}, "'response_B' must be a text, not int 3"),
        ("ppe-correctness", {"response_32": ...}, r"'response_32' is missing \(1 of the 32 answers are\)"),
        ("ppe-correctness", {"scores": [True] * 31}, "'scores' must say true or false of each of the 32 answers, but has 31"),
        ("ppe-correctness", {"scores": [0.5] * 32}, "entry 0 of 'scores' must be true or false, not float 0.5"),
        ("ppe-correctness", {"sampled_conflict_pairs": [[0, 32]]}, r"holds list \[0, 32\], which is no pair of numbers from 0 to 31"),
        ("ppe-correctness", {"sampled_conflict_pairs": [[0, 3]]}, r"holds list \[0, 3\], of which both answers are scored True"),
        ("ppe-correctness", {"sampled_conflict_pairs": None}, "'sampled_conflict_pairs' must be a list of pairs of numbers"),
        ("ppe-human", {"winner": "model_c"}, "'winner' must be 'model_a', 'model_b' or 'tie…', not str 'model_c'"),
        ("rmb", {"chosen": "good"}, "'chosen' must be .*answer.*, not str 'good'"),
        ("rmb", {"reject": ...}, "the column 'reject' of a rmb row is missing"),
        (
            "rmb",
            {"conversation_input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "'conversation_input' ends with a turn of 'assistant', but a prompt ends with the user's",
        ),
        ("best-of-n", {"correct": [True]}, "'correct' must say true or false of each of the 4 answers, but has 1 entries"),
        ("best-of-n", {"responses": ["a"], "correct": [True]}, "'responses' holds one answer, so there is nothing to choose"),
        ("best-of-n", {"correct": ...}, "the column 'correct' of a best-of-n row is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_with_row_column_value_and_cure(kind, change, message):
    with pytest.raises(ValueError, match=f"^benchmark 'x' row 7: .*{message}"):
        read_row(kind, changed(kind, **change), "benchmark 'x' row 7")


def test_one_text_as_right_and_as_wrong_answer_is_marked():
    row = read_row("rewardbench", changed("rewardbench", rejected=FIRST["rewardbench"]["chosen"]), "row 0")
    assert row.extra["identical"] is True
    assert "identical" not in read_row("rewardbench", FIRST["rewardbench"], "row 0").extra
    # Styles of one side may be equal.
    assert "identical" not in read_row("rm-bench", changed("rm-bench", chosen=["a", "a", "a"]), "row 0").extra


def test_rows_of_one_prompt_share_its_hash_and_others_do_not():
    one, two = (read_row("best-of-n", row, "row") for row in made.best_of_n(2))
    again = read_row("best-of-n", changed("best-of-n", responses=["x", "y", "z", "w"]), "row")
    assert one.extra["prompt"] == again.extra["prompt"] != two.extra["prompt"]


# Plain pairs.


def pair(row):
    return pair_row(row, formats.layout_of(list(row), row, "x"), "x row 0")


def test_a_text_prompt_is_a_turn_or_the_beginning_of_the_text():
    row = pair({"prompt": "Why? ", "chosen": "So.", "rejected": "No.", "subset": "a", "id": 3})
    assert (row.id, row.subset, row.labels, row.extra["characters"]) == ("3", "a", [1, 0], [3, 3])
    assert row.contents(as_turns=True)[0] == [
        {"role": "user", "content": "Why? "},
        {"role": "assistant", "content": "So."},
    ]
    assert row.contents(as_turns=False) == ["Why? So.", "Why? No."]


def test_texts_without_a_prompt_stay_texts():
    row = pair({"chosen": "The sky is blue.", "rejected": "Sky the blue is."})
    assert row.contents(as_turns=True) == ["The sky is blue.", "Sky the blue is."]
    assert row.prompt is None


def test_the_answer_of_a_transcript_is_what_follows_its_last_mark():
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    row = pair({"chosen": f"{start} So.", "rejected": f"{start} I do not know."})
    assert row.prompt == start
    assert row.answers == [" So.", " I do not know."]
    assert row.contents()[0] == f"{start} So."
    assert row.extra["characters"] == [4, 15]


def test_transcripts_that_part_before_the_last_turn_are_kept_and_marked():
    sides = ["\n\nHuman: a\n\nAssistant: one", "\n\nHuman: b\n\nAssistant: three"]
    row = pair(dict(zip(("chosen", "rejected"), sides, strict=True)))
    assert row.contents() == sides
    assert row.extra["prefix_differs"] is True
    assert row.extra["characters"] == [len(" one"), len(" three")]


def test_conversations_share_their_prompt_and_those_that_part_are_marked():
    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    sides = [[*asked, {"role": "assistant", "content": text}] for text in ("So.", "No idea.")]
    row = pair({"chosen": sides[0], "rejected": sides[1]})
    assert (row.prompt, row.answers) == (asked, ["So.", "No idea."])
    assert row.contents() == sides
    other = [asked[0], {"role": "user", "content": "How?"}, sides[1][-1]]
    parted = pair({"chosen": sides[0], "rejected": other})
    assert parted.contents() == [sides[0], other]
    assert parted.extra["prefix_differs"] is True
    assert "prefix_differs" not in row.extra


def test_an_answer_with_tool_calls_stays_a_message():
    asked = [{"role": "user", "content": "Weather?"}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = pair(
        {"prompt": asked, "chosen": [call], "rejected": [{"role": "assistant", "content": "Sun."}], "tools": "[{}]"}
    )
    assert row.contents()[0] == [*asked, call]
    assert row.contents()[1] == [*asked, {"role": "assistant", "content": "Sun."}]
    assert row.tools == [{}]


def test_token_ids_are_scored_as_they_are():
    row = pair({"chosen_ids": [1, 2], "rejected_ids": [1, 3]})
    assert row.contents() == [[1, 2], [1, 3]]
    assert "characters" not in row.extra


def test_a_bad_pair_is_named_with_row_and_column():
    with pytest.raises(ValueError, match="x row 0: 'rejected' is empty, so there is no answer to score"):
        pair({"chosen": "a", "rejected": " "})
    with pytest.raises(ValueError, match="x row 0: 'subset' must be a text, not int 3"):
        pair({"chosen": "a", "rejected": "b", "subset": 3})


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_lengths_of_the_real_transcripts_are_the_known_ones():
    with gzip.open(DATA / "hh_harmless_test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    found = [pair(row) for row in rows]
    lengths = [row.extra["characters"] for row in found]
    longer = sum(chosen > rejected for chosen, rejected in lengths)
    equal = sum(chosen == rejected for chosen, rejected in lengths)
    assert (len(rows), longer, equal) == (2312, 1023, 11)
    assert [number for number, row in enumerate(found) if "prefix_differs" in row.extra] == [
        1254,
        1688,
        1950,
        1952,
        2036,
    ]


def test_a_label_that_is_a_list_is_an_error_of_its_column():
    row = {
        "question": "q",
        "response_A": "a",
        "response_B": "b",
        "label": ["A>B"],
        "source": "mmlu-pro",
        "pair_id": "1",
    }
    with pytest.raises(ValueError, match=r"here: 'label' must be 'A>B' or 'B>A', not list \['A>B'\]"):
        read_row("judgebench", row, "here")


def test_a_message_nested_too_deeply_is_an_error_that_names_the_row():
    deep = "x"
    for _ in range(20_000):
        deep = [deep]
    row = {"conversation_input": [{"role": "user", "content": "p", "more": deep}], "pair_uid": "u"}
    row |= {"chosen": {"answer": "a"}, "reject": {"answer": "b"}}
    with pytest.raises(ValueError, match="here: a value in the row is nested too deeply"):
        read_row("rmb", row, "here")


@pytest.mark.parametrize(
    "value", [{"a": 1}, [1], True, b"x", 10**5000], ids=["dict", "list", "flag", "bytes", "digits"]
)
def test_an_id_is_text_or_a_number(value):
    row = {"conversation_input": "p", "chosen": {"answer": "a"}, "reject": {"answer": "b"}, "pair_uid": value}
    with pytest.raises(ValueError, match="here: the row's id must be text or a number, not "):
        read_row("rmb", row, "here")


def test_a_plain_pair_whose_id_is_no_name_is_refused_by_its_row():
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "id": {"tools": None}}
    layout = formats.layout_of(list(row), row, "x")
    with pytest.raises(ValueError, match="row 3: the row's id must be text or a number, not dict"):
        pair_row(row, layout, "row 3")
