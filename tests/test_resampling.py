"""Intervals and tests: against exact sums, against all resamples, and against the normal approximation."""

import math
from itertools import product

import numpy as np
import pytest

from plaudit.resampling import (
    cluster_sums,
    mcnemar_exact,
    percentile_interval,
    ratio,
    resampled_sums,
    two_sided_chance,
)


def exact_p(only_first, only_second):
    """The two-sided binomial test in whole numbers."""
    total = only_first + only_second
    tail = term = 1
    for count in range(min(only_first, only_second)):
        term = term * (total - count) // (count + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)


def test_mcnemar_is_the_exact_binomial_sum_for_every_small_table():
    for first, second in product(range(25), repeat=2):
        assert mcnemar_exact(first, second) == pytest.approx(exact_p(first, second), rel=1e-12), (first, second)


@pytest.mark.parametrize(("first", "second"), [(450, 550), (4_000, 4_200), (3, 1_500), (9_800, 10_200)])
def test_mcnemar_is_exact_for_large_counts(first, second):
    assert mcnemar_exact(first, second) == pytest.approx(exact_p(first, second), rel=1e-8)


def test_mcnemar_by_hand():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(7, 7) == 1.0
    assert mcnemar_exact(0, 100_000) == 0.0
    with pytest.raises(ValueError, match="counts cannot be below 0, but are -1 and 2"):
        mcnemar_exact(-1, 2)


@pytest.mark.parametrize("num_kinds", [2, 40])
def test_resampled_shares_have_the_spread_that_theory_gives(num_kinds):
    """Few kinds of clusters take the multinomial way, many the drawn one."""
    generator = np.random.default_rng(1)
    values = generator.integers(0, num_kinds, (200, 1)).astype(float) / (num_kinds - 1)
    means = resampled_sums(values, 20_000, 0)[:, 0] / 200
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(200 * 20_000))
    assert means.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.03)
    low, high = percentile_interval(means)
    half = 1.959964 * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08 * half)


@pytest.mark.parametrize("num_copies", [1, 8])
def test_both_ways_of_resampling_draw_from_all_resamples_alike(num_copies):
    """Three clusters have 27 equally likely resamples; eight copies of each are resampled by kind."""
    values = np.repeat([[0.0, 1.0], [1.0, 2.0], [5.0, 1.0]], num_copies, axis=0)
    drawn = resampled_sums(values, 60_000, 3)
    assert drawn.mean(axis=0) == pytest.approx(values.sum(axis=0), rel=0.01)
    spread = len(values) * np.cov(values.T, bias=True)
    assert np.cov(drawn.T) == pytest.approx(spread, rel=0.05, abs=0.05)
    if num_copies == 1:
        every = [sum(values[place, 0] for place in places) for places in product(range(3), repeat=3)]
        for total in set(every):
            assert (drawn[:, 0] == total).mean() == pytest.approx(every.count(total) / 27, abs=0.01)


def test_the_same_seed_gives_the_same_draws_whatever_the_order_of_clusters():
    for kinds in (2, 1000):
        values = np.random.default_rng(0).integers(0, kinds, (60, 2)).astype(float)
        assert (resampled_sums(values, 50, 7) == resampled_sums(values[::-1], 50, 7)).all()
        assert not (resampled_sums(values, 50, 7) == resampled_sums(values, 50, 8)).all()


def test_draws_in_many_chunks_are_all_made(monkeypatch):
    monkeypatch.setattr("plaudit.resampling._DRAWS", 100)
    values = np.random.default_rng(0).random((30, 1))
    drawn = resampled_sums(values, 100, 0)
    assert drawn.shape == (100, 1)
    assert len(np.unique(drawn)) == 100
    assert drawn.mean() == pytest.approx(values.sum(), rel=0.05)


def test_rows_of_a_cluster_are_added_up():
    values = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    assert cluster_sums(values, np.array([9, 2, 9])).tolist() == [[2.0, 1.0], [5.0, 2.0]]
    assert cluster_sums(values, np.array([0, 1, 2])).tolist() == values.tolist()


def test_rows_of_a_prompt_that_stand_or_fall_together_make_a_wider_interval():
    right = np.repeat(np.random.default_rng(0).integers(0, 2, 50), 4)
    values = np.column_stack([right, np.ones(200)]).astype(float)
    widths = []
    for clusters in (np.arange(200), np.repeat(np.arange(50), 4)):
        drawn = resampled_sums(cluster_sums(values, clusters), 5_000, 0)
        low, high = percentile_interval(drawn[:, 0] / drawn[:, 1])
        widths.append(high - low)
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.1), "four equal rows are one: the square root of 4"


def test_a_ratio_over_nothing_is_nothing():
    assert ratio(np.array([1.0, 3.0]), np.array([0.0, 2.0])).tolist() == [0.0, 1.5]


def test_the_chance_of_a_difference_is_two_sided_and_never_nothing():
    assert two_sided_chance(np.array([1.0] * 999)) == pytest.approx(2 / 1000)
    assert two_sided_chance(np.array([-1.0] * 999)) == pytest.approx(2 / 1000)
    assert two_sided_chance(np.array([1.0] * 97 + [-1.0] * 2)) == pytest.approx(6 / 100)
    assert two_sided_chance(np.zeros(10)) == 1.0
