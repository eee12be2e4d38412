"""Which strata a benchmark's overall figure and its sections are means of, and by what weights."""

import numpy as np
import pytest

from plaudit import suites
from plaudit.composites import RM_BENCH_CELLS, overall_of, sections_of
from plaudit.score_rows import ScoredRow
from plaudit.sheet import sheet_of
from plaudit.strata import weighted_mean


def sheet(benchmark, *subsets, rewards=(1.0, 0.0), labels=(1, 0), **options):
    rows = [ScoredRow(benchmark, str(n), subset, rewards, labels) for n, subset in enumerate(subsets)]
    return sheet_of(rows, **options)


def test_each_section_of_rewardbench_has_one_share_of_the_overall_figure():
    strata, weights = overall_of(sheet("rewardbench", "donotanswer", "hep-go", "math-prm", "math-prm"))
    assert list(strata) == ["donotanswer", "math-prm", "hep-go"]
    assert weights == pytest.approx({"donotanswer": 1.0, "hep-go": 164 / 1148, "math-prm": 984 / 1148})


def test_a_section_without_rows_is_there_as_nothing():
    found = sections_of(sheet("rewardbench", "donotanswer"))
    assert [name for name, section in found.items() if section is None] == ["Chat", "Chat Hard", "Reasoning"]
    assert found["Safety"][1] == {"donotanswer": 136}
    assert sections_of(sheet("judgebench", "livebench-math"))["Coding"] is None


def test_older_weights_exchange_the_two_xstest_sets():
    subsets = ("xstest-should-refuse", "xstest-should-respond")
    now, then = (
        sections_of(sheet("rewardbench", *subsets, weights=one))["Safety"][1] for one in suites.REWARDBENCH_WEIGHTS
    )
    assert (now[subsets[0]], now[subsets[1]]) == (then[subsets[1]], then[subsets[0]]) == (154, 250)


def test_prior_sets_are_a_section_and_no_part_of_the_overall_figure():
    mixed = sheet("rewardbench", "shp", "hep-go")
    assert list(overall_of(mixed)[0]) == ["hep-go"]
    assert list(sections_of(mixed)["Prior Sets"][0]) == ["shp"]
    assert list(overall_of(sheet("rewardbench", "shp"))[0]) == ["all"], "alone they are plain pairs"


def test_hard_is_where_the_rejected_answer_is_the_more_elaborate():
    # The plain right answer loses to the two more elaborate wrong ones, and wins everything else.
    one = sheet("rm-bench", "chat", rewards=(1, 4, 5, 0, 2, 3), labels=(1, 1, 1, 0, 0, 0))
    means = {name: weighted_mean(*found) for name, found in sections_of(one).items() if found}
    assert means == pytest.approx({"chat": 7 / 9, "hard": 1 / 3, "normal": 1.0, "easy": 1.0})
    assert sum(RM_BENCH_CELLS.values()).tolist() == np.ones((3, 3)).tolist()


def test_pairs_and_best_of_n_of_rmb_are_two_sections():
    rows = [ScoredRow("rmb", "1", "x", [1, 0], [1, 0]), ScoredRow("rmb", "2", "x", [0, 1, 2], [1, 0, 0])]
    means = {name: weighted_mean(*found) for name, found in sections_of(sheet_of(rows)).items()}
    assert means == {"pairwise": 1.0, "best-of-n": 0.0}


def test_rows_of_ones_own_have_one_figure_over_all_rows_and_no_sections():
    own = sheet("mine", "x", "y", "y")
    assert (list(overall_of(own)[0]), sections_of(own)) == (["all"], {})
    assert overall_of(own)[0]["all"].num_rows == 3
