"""Rows as arrays, and what each row earns, against loops."""

import numpy as np
import pytest

from plaudit.outcomes import RowArrays, all_comparisons, choice_outcomes, pair_outcomes, sampled_comparisons
from plaudit.score_rows import ScoredRow


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    found = []
    for number in range(80):
        size = int(generator.integers(2, 7))
        labels = generator.integers(0, 2, size)
        labels[:2] = number % 2, 1 - number % 2
        found.append(ScoredRow("b", str(number), None, generator.integers(0, 4, size).tolist(), labels.tolist()))
    return found


def split(row):
    pairs = list(zip(row.rewards, row.labels, strict=True))
    return [reward for reward, label in pairs if label], [reward for reward, label in pairs if not label]


def test_extremes_of_each_row_are_those_of_its_own_candidates(rows):
    arrays = RowArrays(rows)
    for place, row in enumerate(rows):
        right, wrong = split(row)
        assert (arrays.best_right[place], arrays.worst_right[place]) == (max(right), min(right))
        assert (arrays.best_wrong[place], arrays.num_right[place]) == (max(wrong), len(right))


def test_comparisons_are_all_right_against_all_wrong_in_order(rows):
    comparisons = all_comparisons(RowArrays(rows))
    arrays = comparisons.arrays
    wanted = [
        (place, right, wrong) for place, row in enumerate(rows) for right in split(row)[0] for wrong in split(row)[1]
    ]
    found = zip(comparisons.row, arrays.rewards[comparisons.right], arrays.rewards[comparisons.wrong], strict=True)
    assert list(found) == wanted
    assert comparisons.per_row(comparisons.weight) == pytest.approx(np.ones(len(rows)))


def test_pairs_earn_their_share_of_comparisons(rows):
    outcomes = pair_outcomes(all_comparisons(RowArrays(rows)))
    for place, row in enumerate(rows):
        right, wrong = split(row)
        gaps = [one - other for one in right for other in wrong]
        won, tied = sum(gap > 0 for gap in gaps), sum(gap == 0 for gap in gaps)
        assert outcomes.official[place] == pytest.approx(won / len(gaps))
        assert outcomes.half[place] == pytest.approx((won + tied / 2) / len(gaps))
        assert outcomes.is_right[place] == (won == len(gaps))
        assert outcomes.ties[place] == (tied > 0)
        assert outcomes.margin[place] == min(gaps)
    assert 0 < outcomes.is_right.sum() < len(rows)


@pytest.mark.parametrize("splits_ties", [True, False])
def test_choices_earn_what_the_top_earns(rows, splits_ties):
    outcomes = choice_outcomes(RowArrays(rows), splits_ties=splits_ties, counts_candidates=True)
    for place, row in enumerate(rows):
        right, wrong = split(row)
        top = max(row.rewards)
        expected = right.count(top) / (right.count(top) + wrong.count(top))
        strict = max(right) > max(wrong)
        assert outcomes.half[place] == pytest.approx(expected)
        assert outcomes.official[place] == pytest.approx(expected if splits_ties else float(strict))
        assert outcomes.is_right[place] == strict
        assert outcomes.ties[place] == wrong.count(max(right))
        assert outcomes.margin[place] == max(right) - max(wrong)


def test_ties_can_be_counted_as_rows():
    arrays = RowArrays([ScoredRow("b", "1", None, [2, 2, 2], [1, 0, 0])])
    assert choice_outcomes(arrays).ties.tolist() == [1]
    assert choice_outcomes(arrays, counts_candidates=True).ties.tolist() == [2]


def test_sampled_pairs_go_by_labels_and_not_by_places():
    rows = [
        ScoredRow("b", "1", None, [3, 2, 1], [0, 1, 1], None, {"sampled_conflict_pairs": [[0, 1], [2, 0]]}),
        ScoredRow("b", "2", None, [3, 2], [1, 1], None, {"sampled_conflict_pairs": []}),
    ]
    comparisons = sampled_comparisons(RowArrays(rows))
    assert (comparisons.right.tolist(), comparisons.wrong.tolist()) == ([1, 2], [0, 0])
    outcomes = pair_outcomes(comparisons, counts_comparisons=True)
    assert (outcomes.official.tolist(), outcomes.weight.tolist()) == ([0, 0], [2, 0])
    assert outcomes.is_right.tolist() == [False, False]


def test_rows_of_one_prompt_share_a_cluster_and_rows_without_stand_alone():
    extras = [{"prompt": "a"}, {}, {"prompt": "a"}, {}, {"prompt": "b"}]
    rows = [ScoredRow("b", str(number), None, [1, 0], [1, 0], None, extra) for number, extra in enumerate(extras)]
    assert RowArrays(rows).clusters.tolist() == [0, 1, 0, 2, 3]


def test_lengths_are_characters_before_tokens_and_unknown_without_either():
    rows = [
        ScoredRow("b", "1", None, [1, 0], [1, 0], [5, 6], {"characters": [50, 60]}),
        ScoredRow("b", "2", None, np.array([1, 0]), np.array([1, 0]), np.array([5, 6])),
        ScoredRow("b", "3", None, [1, 0], [1, 0]),
    ]
    assert RowArrays(rows).lengths.tolist()[:4] == [50, 60, 5, 6]
    assert np.isnan(RowArrays(rows).lengths[4:]).all()


def test_rewards_that_are_no_numbers_are_named_by_row():
    rows = [ScoredRow("b", "1", None, [1, 0], [1, 0]), ScoredRow("b", "2", None, [1, "x"], [1, 0])]
    with pytest.raises(
        ValueError, match=r"benchmark 'b', row '2': rewards must be one number a candidate, not \[1, 'x'\]"
    ):
        RowArrays(rows)
