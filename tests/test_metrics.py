"""Figures worked out by hand."""

import numpy as np
import pytest

from plaudit import metrics
from plaudit.metrics import pair_metrics, wilson_interval

CHOSEN, REJECTED = [2.0, 1.0, -1.0, 0.5], [1.0, 1.0, 3.0, -0.5]
BY_HAND = {
    "min_reward": -1.0,
    "mean_reward": 7 / 8,
    "max_reward": 3.0,
    "accuracy": 0.5,
    "ties": 0.25,
    "margin": (1 + 0 - 4 + 1) / 4,
}


def test_figures_of_a_set_are_those_worked_out_by_hand_and_a_tie_is_wrong():
    assert pair_metrics(np.array(CHOSEN), np.array(REJECTED)) == pytest.approx(BY_HAND)


def test_figures_of_a_set_are_plain_numbers_of_full_precision():
    found = pair_metrics(np.full(3, 0.1, np.float32), np.zeros(3, np.float32))
    assert {type(value) for value in found.values()} == {float}
    assert found["margin"] == pytest.approx(float(np.float32(0.1)), rel=1e-15)


# 81 of 263 is the worked example of Newcombe (1998), Statistics in Medicine 17, table I: 0.2553 to 0.3662.
@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(0, 10, 0.0, 0.277533), (5, 10, 0.236593, 0.763407), (10, 10, 0.722467, 1.0), (81, 263, 0.255289, 0.366210)],
)
def test_the_interval_is_wilsons(successes, total, low, high):
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-5)


def test_more_trials_and_less_confidence_make_a_narrower_interval():
    def width(*args):
        low, high = wilson_interval(*args)
        return high - low

    assert width(50, 100) > width(500, 1000)
    assert width(50, 100) > width(50, 100, 1.0)


def test_an_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one trial, but total is 0"):
        wilson_interval(0, 0)


def test_the_mean_loss_is_over_evaluation_sets_and_nothing_else():
    assert metrics.mean_loss({"eval_a_loss": 1.0, "eval_b_loss": 2.0, "eval_a_num_tokens": 999}) == 1.5


def test_a_number_that_is_not_finite_is_named_with_its_step():
    metrics.require_finite({"loss": 0.5, "step": 3}, 3)
    with pytest.raises(FloatingPointError, match=r"^loss is nan at step 3: .*lower learning_rate"):
        metrics.require_finite({"accuracy": 1.0, "loss": float("nan")}, 3)


def test_equal_values_share_the_mean_of_their_ranks():
    assert metrics.average_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_auc_is_the_share_of_right_wrong_pairs_in_order():
    generator = np.random.default_rng(0)
    scores, is_right = generator.integers(0, 5, 40), generator.integers(0, 2, 40).astype(bool)
    wins = [(a > b) + 0.5 * (a == b) for a in scores[is_right] for b in scores[~is_right]]
    assert metrics.roc_auc(scores, is_right) == pytest.approx(np.mean(wins))
    assert metrics.roc_auc(scores, np.ones(40)) is None


def test_rank_correlations_are_those_worked_out_by_hand():
    first, second = np.array([1, 2, 3, 4, 5]), np.array([2, 1, 4, 3, 5])
    assert metrics.spearman(first, second) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert metrics.kendall(first, second) == pytest.approx((8 - 2) / 10)
    assert metrics.spearman(first, -first) == metrics.kendall(first, -first) == -1.0
    # Ties: of three pairs one is tied on the left, one on the right, one in order.
    assert metrics.kendall([1, 1, 2], [1, 2, 2]) == pytest.approx(1 / 2)
    assert metrics.spearman([1, 1, 2], [1, 2, 2]) == pytest.approx(1 / 2)
    assert metrics.spearman(first, np.ones(5)) is metrics.kendall(np.ones(5), first) is None
