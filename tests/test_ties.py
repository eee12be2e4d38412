"""The Ties score on vectors whose values are known."""

import math

import numpy as np
import pytest

from plaudit.outcomes import RowArrays
from plaudit.score_rows import ScoredRow
from plaudit.ties import COLUMNS, is_ties_id, ties_score, ties_sums


def rows_of(*given):
    """Rows from (id, rewards, number of right ones, which come first)."""
    return [
        ScoredRow("rewardbench2", name, "Ties", rewards, [1] * right + [0] * (len(rewards) - right))
        for name, rewards, right in given
    ]


def score_of(rows, version="head"):
    sums = ties_sums(RowArrays(rows), np.arange(len(rows)), version)
    return float(ties_score(sums.sum(axis=0), version))


A = [("ref:1", [3, 1, 0], 1), ("tied:1", [5, 4.5, 1, 0], 2), ("ref:2", [0, 1, -1], 1), ("tied:2", [2, 0, 1, -3], 2)]
GOLDEN = {
    "A": (A, 0.5004495325, 0.5004495325),
    "B": ([("ref:1", [2, 0], 1), ("tied:1", [2, 2, 0], 2)], 1.01, 1.0),
    "C": ([("ref:1", [1, 1], 1), ("tied:1", [1, 1, 1], 2)], 0.0, 0.0),
    "D": ([("ref:1", [0, 1], 1), ("tied:1", [0, 0, 1], 2)], -0.01, 0.0),
    "G": (
        [("ref:1", [3, 1, 0], 1), ("tied:1", [5, 4.5, 1, 0], 2), ("ref:3", [2, 0], 1), ("tied:3", [2, 2, 0], 2)],
        1.0099752738,
        1.0099505475,
    ),
    "J": ([("ref:1", [3, 1], 1), ("tied:1", [4, 2, 0], 2)], 0.6, 0.6),
    "K": ([("ref:1", [[3], [1]], 1), ("tied:1", [[4], [3.5], [0]], 2)], 1.0099505475, 1.0099505475),
}


def test_without_a_prompt_of_both_rows_only_the_older_version_has_a_score():
    rows = rows_of(("tied:1", [4, 3, 0], 2))
    assert math.isnan(score_of(rows))
    assert score_of(rows, "v0.1.4") == pytest.approx(0.3)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(("version", "place"), [("head", 1), ("v0.1.4", 2)])
def test_golden_vectors_have_their_scores(name, version, place):
    assert score_of(rows_of(*GOLDEN[name][0]), version) == pytest.approx(GOLDEN[name][place], abs=1e-10)


def test_the_order_of_rows_and_candidates_does_not_matter():
    rows = [
        ScoredRow(row.benchmark, row.id, row.subset, row.rewards[::-1], row.labels[::-1])
        for row in reversed(rows_of(*A))
    ]
    assert score_of(rows) == score_of(rows_of(*A))


def test_an_affine_map_of_the_rewards_does_not_change_the_score():
    moved = [(name, [4 * reward - 8 for reward in rewards], right) for name, rewards, right in A]
    assert score_of(rows_of(*moved)) == pytest.approx(score_of(rows_of(*A)))


def test_all_rows_count_in_the_accuracies_but_only_whole_prompts_in_the_rest():
    rows = rows_of(*A, ("ref:9", [1, 0], 1), ("ref:8", [1, 0], 1))
    sums = ties_sums(RowArrays(rows), np.arange(6))
    total = dict(zip(COLUMNS, sums.sum(axis=0), strict=True))
    assert (total["references"], total["reference_accurate"], total["tied"], total["both"]) == (4, 3, 2, 2)
    assert len(sums) == 4, "a row of sums each for prompts 1, 2, 8 and 9"
    assert score_of(rows) - score_of(rows_of(*A)) == pytest.approx(0.3 * (3 / 4 - 1 / 2))


def test_without_a_prompt_that_has_both_rows_there_is_no_score():
    assert math.isnan(score_of(rows_of(("tied:1", [2, 2, 0], 2))))
    assert math.isnan(score_of(rows_of(("tied:1", [2, 2, 0], 2), ("ref:2", [1, 0], 1))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("tied:1", [1, 0], 1), "row 'tied:1' of subset 'Ties': a tied row needs several right candidates"),
        (("ref:1", [1, 2, 0], 2), "a ref row has one right candidate"),
        (("tied:1", [1, 2], 2), "no candidate is wrong, so it has no margin"),
        (("ref:1", [1, 2], 0), "no candidate is right"),
        (("tied:1", [1, math.nan, 0], 2), "a reward is not finite, for which the Ties score is not defined"),
        (("1", [1, 0], 1), "a row of Ties has the id 'ref:<integer>' or 'tied:<integer>'"),
        (("ref:x", [1, 0], 1), "a row of Ties has the id"),
    ],
)
def test_rows_that_the_score_is_not_defined_for_are_refused_by_name(row, message):
    with pytest.raises(ValueError, match="benchmark 'rewardbench2', row") as caught:
        score_of(rows_of(row))
    assert message in str(caught.value)


def test_an_id_of_ties_is_known_by_its_form():
    assert [is_ties_id(name) for name in ("ref:1", "tied:20", "tied:", "1", "xref:1")] == [
        True,
        True,
        False,
        False,
        False,
    ]
