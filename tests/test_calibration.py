"""Calibration worked out by hand, at the edges of floats, and against a search."""

import math

import numpy as np
import pytest

from plaudit import calibration
from plaudit.calibration import best_temperature, brier, ece, held_out_nll, nll, reliability, sigmoid


def test_knowing_nothing_costs_ln_2():
    assert nll(np.zeros(5)) == pytest.approx(math.log(2))
    assert brier(np.zeros(5)) == 0.25
    assert ece(np.zeros(5)) == 0.0, "half right with confidence one half"


def test_figures_are_those_worked_out_by_hand():
    gaps = np.array([math.log(3), -math.log(3)])  # chances 3/4 and 1/4 for the right answer
    assert nll(gaps) == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert brier(gaps) == pytest.approx((1 / 16 + 9 / 16) / 2)
    assert ece(gaps) == pytest.approx(0.25), "confidence 0.75, half right"
    assert nll(gaps, np.array([3.0, 1.0])) == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    assert ece(gaps, np.array([3.0, 1.0])) == pytest.approx(0.0)


def test_bins_are_ten_of_equal_width_and_the_last_is_closed():
    gaps = np.array([0.0, -0.3, 1e6, -1e6, 50.0])
    bins = reliability(gaps)
    assert [round(bin["low"], 10) for bin in bins] == [round(0.5 + 0.05 * place, 10) for place in range(10)]
    assert [bin["n"] for bin in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert bins[0] == {"low": 0.5, "high": 0.55, "n": 1.0, "confidence": 0.5, "accuracy": 0.5}
    assert bins[1]["accuracy"] == 0.0
    assert (bins[9]["confidence"], bins[9]["accuracy"]) == (pytest.approx(1.0), pytest.approx(2 / 3))
    assert (bins[5]["confidence"], bins[5]["accuracy"]) == (None, None)


def test_a_confidence_on_an_edge_is_in_the_bin_above_it():
    gap = math.log(0.75 / 0.25)
    assert sigmoid(np.array([gap]))[0] == 0.75
    assert next(bin["low"] for bin in reliability(np.array([gap])) if bin["n"]) == 0.75


def test_huge_differences_neither_overflow_nor_warn():
    gaps = np.array([1e6, -1e6, 1e300, 0.0])
    with np.errstate(all="raise", under="ignore"):
        assert nll(gaps[:2]) == 5e5
        assert brier(gaps[:2]) == 0.5
        assert sigmoid(gaps).tolist() == [1.0, 0.0, 1.0, 0.5]
        assert math.isfinite(best_temperature(gaps))
        assert calibration.calibration(gaps[:2])["nll"] == 5e5


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 1e3, 1e9])
def test_the_temperature_is_the_one_that_a_search_finds(scale):
    generator = np.random.default_rng(0)
    gaps = scale * (generator.normal(1, 2, 400))
    grid = scale * np.exp(np.linspace(-3, 4, 2001))
    searched = grid[np.argmin([nll(gaps / temperature) for temperature in grid])]
    assert best_temperature(gaps) == pytest.approx(searched, rel=0.005)


def test_the_temperature_recovers_the_one_that_made_the_rewards():
    generator = np.random.default_rng(0)
    true = generator.normal(0, 2, 40_000)
    right = generator.random(40_000) < sigmoid(true)
    gaps = 7 * np.where(right, true, -true)
    assert best_temperature(gaps) == pytest.approx(7, rel=0.03)
    found = calibration.calibration(gaps)
    assert found["ece"] > 0.1
    assert ece(gaps / found["temperature"]) < 0.01
    assert found["nll_at_temperature"] < found["nll"]
    assert found["nll_at_temperature"] == pytest.approx(nll(gaps / found["temperature"]), abs=1e-4)


def test_weights_count_like_copies():
    gaps, weights = np.array([2.0, -1.0, 0.5, 0.0]), np.array([3.0, 1.0, 2.0, 1.0])
    copies = np.repeat(gaps, weights.astype(int))
    assert best_temperature(gaps, weights) == pytest.approx(best_temperature(copies))
    for figure in (nll, brier, ece):
        assert figure(gaps, weights) == pytest.approx(figure(copies))


def test_pairs_that_are_all_right_have_a_finite_temperature_and_a_sane_held_out_loss():
    gaps = np.random.default_rng(0).random(100) + 0.5
    assert 0 < best_temperature(gaps) < 1
    one_wrong = np.append(gaps, -0.5)
    held_out = held_out_nll(one_wrong, np.ones(101), np.arange(101))
    assert 0 < held_out < 0.5, "a fold fitted on right pairs only must not be ruined by one wrong pair"


def test_rewards_that_point_the_wrong_way_are_flattened():
    gaps = -np.abs(np.random.default_rng(0).normal(0, 1, 50))
    found = calibration.calibration(gaps)
    assert found["temperature"] == pytest.approx(1e4 * np.abs(gaps).mean())
    assert found["nll_at_temperature"] == pytest.approx(math.log(2), abs=1e-3)


def test_equal_rewards_have_no_scale():
    assert best_temperature(np.zeros(3)) == 1.0


def test_the_held_out_loss_never_sees_its_own_fold():
    """With the prompts known to be right or wrong as wholes, the held-out loss of two is that of the other's fit."""
    gaps, groups = np.array([1.0, 1.0, -1.0, 3.0, 3.0, -3.0]), np.array([0, 0, 0, 1, 1, 1])
    first, second = best_temperature(gaps[:3]), best_temperature(gaps[3:])
    wanted = (3 * nll(gaps[:3] / second) + 3 * nll(gaps[3:] / first)) / 6
    assert held_out_nll(gaps, np.ones(6), groups) == pytest.approx(wanted)
    assert held_out_nll(gaps, np.ones(6), np.zeros(6)) is None, "one prompt cannot be held out of itself"
