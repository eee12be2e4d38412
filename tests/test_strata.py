"""Figures of strata, alone and as weighted means."""

import math

import numpy as np
import pytest

from plaudit.metrics import wilson_interval
from plaudit.outcomes import Outcomes
from plaudit.strata import Sampler, Stratum, stratum_of, weighted_mean


def stratum(key, values, **options):
    values = np.asarray(values, float)
    outcomes = Outcomes(values, values, np.ones(len(values)), values > 0, np.zeros(len(values), int), values)
    return stratum_of(key, outcomes, np.arange(len(values)), np.arange(len(values)), **options)


def test_a_share_has_wilsons_interval_and_no_draws(monkeypatch):
    monkeypatch.setattr("plaudit.strata.resampled_sums", None)
    found = Sampler(100, 0).figure({"x": stratum("x", [1, 0, 1, 1], is_share=True)})
    assert found == {"official": 0.75, "half_credit": 0.75, "n": 4, "ties": 0, "interval": list(wilson_interval(3, 4))}


@pytest.mark.parametrize("value", [0, 1])
def test_wilsons_interval_reaches_a_figure_of_nothing_or_all(value):
    for rows in range(1, 60):
        found = Sampler(100, 0).figure({"x": stratum("x", [value] * rows, is_share=True)})
        assert found["interval"][value] == value


def test_a_mean_of_strata_goes_by_its_weights():
    strata = {"x": stratum("x", [1, 1]), "y": stratum("y", [0, 0, 1, 0])}
    assert weighted_mean(strata) == pytest.approx((1 + 0.25) / 2)
    assert weighted_mean(strata, {"x": 1, "y": 3}) == pytest.approx((1 + 0.75) / 4)
    assert Sampler(1000, 0).figure(strata, {"x": 1, "y": 3})["n"] == 6


def test_a_stratum_is_drawn_alike_in_every_composite():
    generator = np.random.default_rng(0)
    strata = {name: stratum(name, generator.random(50)) for name in "xyz"}
    sampler = Sampler(500, 0)
    first = sampler.samples(strata["x"])
    sampler.figure(strata)
    assert (sampler.samples(strata["x"]) == first).all()
    alone = Sampler(500, 0).figure({"x": strata["x"]})
    assert alone == sampler.figure({"x": strata["x"]})


def test_strata_of_one_size_are_not_drawn_in_step():
    values = np.arange(40) / 40
    first, second = (Sampler(2000, 0).samples(stratum(name, values)) for name in "xy")
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_a_part_of_which_nothing_counts_has_no_figure_and_neither_has_its_mean():
    empty = Outcomes(*(np.zeros(2) for _ in range(6)))
    part = stratum_of("x", empty, np.arange(2), np.arange(2))
    for strata in ({"x": part}, {"x": part, "y": stratum("y", [1, 0])}):
        found = Sampler(100, 0).figure(strata)
        assert (found["official"], found["half_credit"], found["interval"]) == (None, None, None)
    assert Sampler(100, 0).difference({"x": part}, {"x": part}) == {"difference": None, "interval": None, "p": None}


def test_equal_rows_get_the_interval_of_as_many_rows_as_have_the_same_variance():
    strata = {"x": stratum("x", [1] * 10), "y": stratum("y", [1] * 30)}
    found = Sampler(100, 0).figure(strata)
    rows = 1 / (0.25 / 10 + 0.25 / 30)
    assert found["interval"] == pytest.approx(list(wilson_interval(rows, rows)))


def test_a_score_above_one_is_within_its_interval():
    part = Stratum("t", np.ones((3, 1)), lambda sums: sums[..., 0] / 3 * 1.01, 1.01, 3, 0)
    low, high = Sampler(100, 0).figure({"t": part})["interval"]
    assert low < 1 < high
    assert high == pytest.approx(1.01)


def test_the_difference_of_two_is_drawn_from_the_same_clusters():
    values = np.random.default_rng(0).random(60)
    first, second = {"x": stratum("x", values)}, {"x": stratum("x", values - 0.25)}
    found = Sampler(500, 0).difference(first, second)
    assert found["difference"] == pytest.approx(0.25)
    assert found["interval"] is None, "the same difference in every row is drawn as one number"
    noisy = {"x": stratum("x", values - 0.25 + np.random.default_rng(1).normal(0, 0.05, 60))}
    low, high = Sampler(500, 0).difference(first, noisy)["interval"]
    assert high - low < 4.5 * 0.05 / math.sqrt(60)
