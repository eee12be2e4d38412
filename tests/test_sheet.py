"""How rows are sorted into a benchmark's parts, and judged by its rule."""

import numpy as np
import pytest

from plaudit.score_rows import ScoredRow
from plaudit.sheet import kind_of_rows, sheet_of


def row(name, subset, rewards=(1, 0), labels=(1, 0), benchmark="rewardbench", **extra):
    return ScoredRow(benchmark, name, subset, list(rewards), list(labels), None, extra)


def test_subsets_have_the_benchmarks_own_names_where_each_is_one_part():
    sheet = sheet_of([row("1", "HEP_GO"), row("2", "hep-go"), row("3", "poems"), row("4", None)])
    assert {name: index.tolist() for name, index in sheet.subsets.items()} == {"hep-go": [0, 1], "poems": [2]}
    assert (list(sheet.parts), sheet.others) == (["hep-go"], 2)


def test_several_subsets_may_be_one_part():
    rows = [
        row("1", "mmlu-pro-law", benchmark="judgebench"),
        row("2", "mmlu-pro-math", benchmark="judgebench"),
        row("3", None, benchmark="judgebench", source="livecodebench"),
    ]
    sheet = sheet_of(rows)
    assert list(sheet.subsets) == ["mmlu-pro-law", "mmlu-pro-math", "Coding"]
    assert {name: index.tolist() for name, index in sheet.parts.items()} == {"Knowledge": [0, 1], "Coding": [2]}


def test_rows_left_out_are_in_no_part():
    sheet = sheet_of([row("1", "hep-go"), row("2", "hep-go"), row("3", "hep-js")])
    only = sheet.only(np.array([False, True, False]))
    assert {name: index.tolist() for name, index in only.parts.items()} == {"hep-go": [1]}
    assert list(only.subsets) == ["hep-go"]
    assert only.whole().tolist() == [1]


def test_a_row_of_ties_is_right_where_every_right_answer_beats_every_wrong_one():
    rows = [
        row("tied:1", "Ties", (3, 1, 2), (1, 1, 0), "rewardbench2"),
        row("ref:1", "Ties", (3, 2), (1, 0), "rewardbench2"),
        row("1", "Math", (3, 1, 0, 0), (1, 0, 0, 0), "rewardbench2"),
    ]
    outcomes = sheet_of(rows).outcomes
    assert outcomes.is_right.tolist() == [False, True, True]
    assert outcomes.margin.tolist() == [-1, 1, 2]


@pytest.mark.parametrize("benchmark", ["rewardbench", "judgebench", "ppe-human"])
def test_benchmarks_of_pairs_have_two_candidates(benchmark):
    with pytest.raises(ValueError, match="a row of this benchmark has two candidates; mend the row, or give the kind"):
        sheet_of([row("1", "hep-go", (1, 2, 3), (1, 0, 0), benchmark)])


def test_outside_ties_a_row_of_rewardbench_2_has_one_right_candidate():
    with pytest.raises(ValueError, match="outside Ties has exactly one right candidate"):
        sheet_of([row("1", "Math", (1, 2, 3), (1, 1, 0), "rewardbench2")])


def test_rows_of_an_unknown_benchmark_are_judged_by_their_shape():
    assert kind_of_rows([row("1", None, benchmark="dev")]) == "pairs"
    assert kind_of_rows([row("1", None, (1, 2, 3), (1, 0, 0), "dev"), row("2", None, benchmark="dev")]) == "best-of-n"
