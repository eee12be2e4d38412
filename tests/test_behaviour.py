"""Length, spread and the worst mistakes, worked out by hand."""

import numpy as np
import pytest

from plaudit import behaviour
from plaudit.outcomes import RowArrays, all_comparisons, choice_outcomes, pair_outcomes
from plaudit.score_rows import ScoredRow


def row(name, rewards, characters=None, **extra):
    labels = [1] + [0] * (len(rewards) - 1)
    return ScoredRow("b", name, None, rewards, labels, None, extra | ({"characters": characters} if characters else {}))


def habits(rows):
    comparisons = all_comparisons(RowArrays(rows))
    return behaviour.length_habits(comparisons, np.arange(len(comparisons.row)))


def test_length_habits_of_pairs():
    rows = [
        row("1", [2, 1], [9, 1]),  # right longer, chosen
        row("2", [0, 1], [9, 1]),  # right longer, not chosen
        row("3", [2, 1], [1, 9]),  # right shorter, chosen
        row("4", [1, 1], [1, 9]),  # right shorter, a tie: no choice, and wrong
        row("5", [2, 1], [5, 5]),
        row("6", [2, 1]),  # of unknown length
    ]
    assert habits(rows) == {
        "chooses_longer": 1 / 3,
        "correct_is_longer": 2 / 5,
        "correct_is_shorter": 2 / 5,
        "accuracy_correct_longer": 1 / 2,
        "accuracy_correct_shorter": 1 / 2,
    }


def test_a_row_of_many_candidates_counts_once():
    rows = [row("1", [2, 1], [1, 9]), row("2", [5, 4, 3, 2, 1], [9, 1, 1, 1, 10])]
    assert habits(rows)["chooses_longer"] == pytest.approx((0 + 3 / 4) / 2)


def test_lengths_of_one_kind_leave_no_figure_over_nothing():
    for characters in ([5, 5], None):
        found = habits([row("1", [2, 1], characters)])
        assert (found["chooses_longer"], found["accuracy_correct_longer"]) == (None, None)


def test_length_bins_hold_every_comparison_once_and_part_no_equal_lengths():
    generator = np.random.default_rng(0)
    rows = [row(str(n), generator.normal(0, 1, 2).tolist(), generator.integers(1, 40, 2).tolist()) for n in range(500)]
    comparisons = all_comparisons(RowArrays(rows))
    found = behaviour.length_bins(comparisons)
    assert found["unit"] == "characters"
    assert sum(bin["n"] for bin in found["bins"]) == 500
    assert 6 < len(found["bins"]) <= 12
    for before, after in zip(found["bins"], found["bins"][1:], strict=False):
        assert before["high"] < after["low"]
    first = found["bins"][0]
    inside = comparisons.longer <= first["high"]
    assert first["reward_difference"] == pytest.approx(comparisons.gap[inside].mean())
    assert first["accuracy"] == pytest.approx(comparisons.won[inside].mean())


def test_equal_lengths_are_one_bin_and_unknown_ones_none():
    assert len(behaviour.length_bins(all_comparisons(RowArrays([row("1", [1, 0], [3, 3])])))["bins"]) == 1
    assert behaviour.length_bins(all_comparisons(RowArrays([row("1", [1, 0])]))) is None


def test_distributions_count_every_candidate_also_beyond_the_edges():
    generator = np.random.default_rng(0)
    rows = [row(str(n), [*generator.normal(0, 1, 3)]) for n in range(300)] + [row("far", [1e9, -1e9, 0])]
    arrays = RowArrays(rows)
    found = behaviour.distributions(arrays, {"few": np.array([0, 1])})
    assert (sum(found["all"]["chosen"]), sum(found["all"]["rejected"])) == (301, 602)
    assert (sum(found["few"]["chosen"]), sum(found["few"]["rejected"])) == (2, 4)
    assert found["few"]["edges"] == found["all"]["edges"]
    assert len(found["all"]["edges"]) == len(found["all"]["chosen"]) + 1
    assert max(map(abs, found["all"]["edges"])) < 10, "two far ones do not squeeze the rest into one bin"
    assert found["all"]["chosen"][-1] >= 1


def test_the_largest_floats_have_finite_edges():
    found = behaviour.distributions(RowArrays([row("1", [1e308, -1e308])]), {})["all"]
    assert np.isfinite(found["edges"]).all()
    assert (found["chosen"][-1], found["rejected"][0]) == (1, 1)


@pytest.mark.parametrize("reward", [0.0, 1e17, -3.5])
def test_equal_rewards_have_edges_that_rise(reward):
    found = behaviour.distributions(RowArrays([row("1", [reward, reward])]), {})["all"]
    assert (np.diff(found["edges"]) > 0).all()
    assert sum(found["chosen"]) == sum(found["rejected"]) == 1


def test_the_worst_rows_are_wrong_and_the_worst_first():
    arrays = RowArrays([row(str(n), [0, n]) for n in range(40)] + [row("right", [99, 0])])
    worst = behaviour.worst_rows(arrays, pair_outcomes(all_comparisons(arrays)))
    assert [one["margin"] for one in worst] == [-float(n) for n in range(39, 19, -1)]
    arrays = RowArrays([row("1", [3, 3, 1]), row("2", [3, 2, 1])])
    assert [one["id"] for one in behaviour.worst_rows(arrays, choice_outcomes(arrays))] == ["1"]


def test_calibration_counts_each_row_once():
    arrays = RowArrays([row("1", [1, 0]), row("2", [0, 1, 1, 1])])
    found = behaviour.calibrate(all_comparisons(arrays), 0)
    assert found["nll"] == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2)


def test_cut_rows_are_known_only_where_somebody_recorded_them():
    assert behaviour.is_cut(RowArrays([row("1", [1, 0])])) is None
    rows = [row("1", [1, 0], truncated=[False, True]), row("2", [1, 0]), row("3", [1, 0], truncated=[False, False])]
    assert behaviour.is_cut(RowArrays(rows)).tolist() == [True, False, False]
