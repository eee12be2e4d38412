"""Best-of-k curves against all subsets, one by one."""

import math
from itertools import combinations

import numpy as np
import pytest

from plaudit.best_of import best_of_curves, curve_points, curves_of, kl_of_best, oracle_curves, subset_chances
from plaudit.outcomes import RowArrays
from plaudit.score_rows import ScoredRow


def by_enumeration(rewards, is_right, k):
    """The mean over all subsets of k, answers tied at the top picked at random."""
    picked = []
    for places in combinations(range(len(rewards)), k):
        best = max(rewards[place] for place in places)
        top = [is_right[place] for place in places if rewards[place] == best]
        picked.append(sum(top) / len(top))
    return sum(picked) / len(picked)


@pytest.mark.parametrize("num_values", [2, 3, 100])
def test_the_curve_is_the_mean_over_all_subsets(num_values):
    generator = np.random.default_rng(num_values)
    rewards = generator.integers(0, num_values, (12, 7)).astype(float)
    is_right = generator.random((12, 7)) < 0.4
    found = best_of_curves(rewards, is_right)
    wanted = [
        [by_enumeration(*row, k) for k in range(1, 8)] for row in zip(rewards.tolist(), is_right.tolist(), strict=True)
    ]
    assert found == pytest.approx(np.array(wanted), abs=1e-12)


def test_the_oracle_is_the_chance_that_a_subset_has_a_right_one():
    is_right = np.random.default_rng(0).random((12, 6)) < 0.3
    for row, found in zip(is_right.tolist(), oracle_curves(is_right), strict=True):
        wanted = [np.mean([any(row[i] for i in places) for places in combinations(range(6), k)]) for k in range(1, 7)]
        assert found == pytest.approx(wanted, abs=1e-12)


def test_the_ends_of_the_curve_are_chance_and_the_top():
    rewards, is_right = np.array([[1.0, 3.0, 3.0, 0.0]]), np.array([[True, True, False, False]])
    curve = best_of_curves(rewards, is_right)[0]
    assert curve[0] == 0.5
    assert curve[-1] == 0.5, "two tied at the top, one of them right"


def test_chances_are_ratios_of_binomials_up_to_many_candidates():
    for size in (1, 5, 32):
        wanted = [[math.comb(low, k) / math.comb(size, k) for k in range(1, size + 1)] for low in range(size + 1)]
        assert subset_chances(size) == pytest.approx(np.array(wanted), rel=1e-12, abs=0)
    assert subset_chances(2000)[2000] == pytest.approx(np.ones(2000))


def test_no_number_counts_as_the_lowest_reward():
    is_right = np.array([[True, False, False]])
    assert best_of_curves(np.array([[np.nan, 0.0, 1.0]]), is_right) == pytest.approx(
        best_of_curves(np.array([[-5.0, 0.0, 1.0]]), is_right)
    )


def test_kl_is_in_nats():
    assert kl_of_best(np.array([1, 2, 4])) == pytest.approx([0, math.log(2) - 0.5, math.log(4) - 0.75])


def test_rows_of_several_sizes_share_the_shortest_curve():
    rows = [
        ScoredRow("b", "1", None, [1, 2, 3], [0, 0, 1]),
        ScoredRow("b", "2", None, [5, 4], [0, 1]),
        ScoredRow("b", "3", None, [0, 1, 2, 3], [1, 1, 0, 0]),
    ]
    curve, oracle = curves_of(RowArrays(rows), np.array([2, 0, 1]))
    assert curve == pytest.approx(np.array([[1 / 2, 1 / 6], [1 / 3, 2 / 3], [1 / 2, 0]]))
    assert oracle == pytest.approx(np.array([[1 / 2, 5 / 6], [1 / 3, 2 / 3], [1 / 2, 1]]))


def test_the_interval_of_equal_values_has_their_mean_in_it():
    values = np.full(483, 0.1)
    mean = sum(values) / len(values)
    assert mean != 0.1, "rounding has moved the mean, or there is nothing to see here"
    assert curve_points([mean], np.array([[0.1], [0.1]]), [1.0])[0]["interval"] == sorted([0.1, mean])


def test_points_are_plain_data():
    points = curve_points([0.5, 0.6], np.array([[0.4, 0.5], [0.6, 0.7]]), [0.5, 0.8])
    assert points[1] == {"k": 2, "kl": math.log(2) - 0.5, "value": 0.6, "interval": [0.5, 0.7], "oracle": 0.8}
