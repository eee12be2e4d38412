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
