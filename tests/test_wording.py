"""The sentences of a report: right in what they claim, and cautious where the rows are few."""

import made_results as made
import pytest

from plaudit import wording
from plaudit.wording import (
    certainty,
    decimal,
    failings,
    interval,
    length_rule,
    number,
    opening,
    parts_of,
    percent,
    points,
    reward,
)


def plain(text):
    return text.replace("\u00a0", " ").replace("\N{MINUS SIGN}", "-")


def said(entry):
    return {point.about: plain(point.text) for point in failings(entry)}


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (percent, 0.7344, "73.4 %"),
        (percent, 1, "100.0 %"),
        (percent, None, "\N{EN DASH}"),
        (percent, float("nan"), "\N{EN DASH}"),
        (percent, -0.01, "-1.0 %"),
        (number, 1234, "1,234"),
        (number, True, "\N{EN DASH}"),
        (interval, [0.712, 0.755], "71.2 to 75.5 %"),
        (interval, None, "\N{EN DASH}"),
        (interval, [None, 1], "\N{EN DASH}"),
        (points, 0.018, "1.8 points"),
        (decimal, 1e-5, "1e-05"),
        (decimal, 0.6421, "0.642"),
        (decimal, 18250.4, "18250.40"),
        (reward, -2.75, "-2.75"),
        (reward, 0.0123, "0.012"),
        (reward, 1e9, "1e+09"),
    ],
)
def test_numbers_are_written_one_way(show, value, text):
    assert plain(show(value)) == text


def test_the_opening_says_how_good_the_model_is_against_chance_and_length():
    assert plain(opening("hh", made.pairs_entry())) == (
        "On hh, the better answer gets the higher reward in 73.4 % of 2,312 pairs (95 % interval 71.6 to 75.2 %). "
        "Choosing blindly would give 50.0 %, and always choosing the shorter answer would give 55.5 %."
    )
    assert plain(opening("RM", made.rm_bench_entry())).startswith("It reaches 70.3 % on RM: the mean over its domains")
    assert plain(opening("x", {"kind": "pairs", "overall": None})) == "There is no figure for x."


def test_how_sure_it_is_depends_on_the_interval():
    few, many = made.pairs_entry(40), made.pairs_entry(40_000)
    assert "only roughly" in certainty(few)
    assert "tightly" in certainty(many)
    assert "better than either by more than chance explains" in certainty(many)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.51, "It cannot be told from blind choice"),
        (0.3, "It is worse than blind choice and always choosing the shorter answer"),
        (
            0.51,
            "It is worse than always choosing the shorter answer, by more than chance explains. It cannot be told from blind choice",
        ),
        (0.55, "It cannot be told from always choosing the shorter answer"),
    ],
)
def test_a_model_no_better_than_a_rival_is_called_that(share, words):
    entry = {**made.pairs_entry(), "overall": made.figure(share, 2312)}
    assert words in certainty(entry)
    assert "better than either" not in certainty(entry)


def test_ties_that_count_as_wrong_do_not_make_a_model_worse_than_blind_choice():
    figure = {**made.figure(0.42, 2000), "half_credit": 0.50, "ties": 320}
    text = plain(certainty({**made.pairs_entry(), "baselines": {"overall": None, "subsets": {}}, "overall": figure}))
    assert "Ties count as wrong in it; as half, which is fairer to compare by, it is 50.0 %." in text
    assert "It cannot be told from blind choice" in text
    assert "worse" not in text
    untied = {**figure, "half_credit": figure["official"]}
    text = plain(certainty({**made.pairs_entry(), "baselines": {"overall": None, "subsets": {}}, "overall": untied}))
    assert "It is worse than blind choice" in text
    assert "Ties" not in text


def test_only_subsets_surely_below_the_whole_are_called_weakest():
    assert said(made.pairs_entry())["Weakest"].startswith("red-team-hard 57.4 %")
    few = made.pairs_entry()
    few["subsets"] = {"a": made.figure(0.70, 30), "b": made.figure(0.9, 30), "tiny": made.figure(0.01, 3)}
    assert "Weakest" not in said(few)
    assert said(few)["Lowest"].startswith("a 70.0 %")
    assert "this may be chance" in said(few)["Lowest"]


def test_a_length_bias_is_named_with_its_side_unless_rows_are_few():
    assert "Leans to long answers" in said(made.pairs_entry())
    turned = made.pairs_entry()
    turned["baselines"] = {"overall": made.baselines(0.44, 0.6, 0.8)}
    assert "Leans to short answers" in said(turned)
    assert "too few rows" in said(made.pairs_entry(16))["Length"]
    alike = made.pairs_entry()
    alike["baselines"] = {"overall": made.baselines(0.44, 0.72, 0.74)}
    assert "No length bias to speak of" in said(alike)


def test_a_side_of_one_row_is_no_length_bias_however_wrong_it_is():
    entry = {"kind": "pairs", "overall": made.figure(0.75, 12), "lengths": [1]}
    habits = made.baselines(0.84, 0.8, 0.0)
    entry["baselines"] = {"overall": habits | {"correct_is_longer": 10 / 12, "correct_is_shorter": 1 / 12}}
    assert "right in 80.0 % where the right answer is the longer one, in 0.0 %" in said(entry)["Length"]
    # Rows of equal length are on neither side.
    entry["overall"], few = made.figure(0.75, 120), {"correct_is_longer": 0.5, "correct_is_shorter": 1 / 120}
    entry["baselines"] = {"overall": made.baselines(0.5, 0.8, 0.2) | few}
    assert "Length" in said(entry)
    entry["baselines"]["overall"]["correct_is_shorter"] = 0.5
    assert "Leans to long answers" in said(entry)


def test_a_model_without_faults_has_its_wrong_rows_counted():
    good = {"kind": "pairs", "overall": made.figure(0.99, 1000), "lengths": [1], "worst": made.worst(["a"], 10)}
    assert said(good)["Nowhere in particular"] == "10 of 1,000 pairs are wrong; the worst of them stand below."
    assert said({**good, "overall": made.figure(1.0, 1000)})["Nowhere"] == "all 1,000 pairs are right."
    assert "Nowhere in particular" not in said(made.pairs_entry())


def test_calibration_is_called_by_its_side_and_names_the_cure():
    text = said(made.pairs_entry())["Too sure of itself"]
    assert "Dividing the rewards by 1.83 would take the loss per pair from 0.642 to 0.587 nats" in text
    modest = made.pairs_entry()
    for one in modest["calibration"]["bins"]:
        one["accuracy"] = min(1.0, one["confidence"] + 0.15)
    modest["calibration"] |= {"temperature": 0.5, "ece": 0.15}
    assert "Multiplying the rewards by 2 would" in said(modest)["Not sure enough of itself"]
    good = made.pairs_entry()
    good["calibration"]["ece"] = 0.01
    assert "Knows how sure to be" in said(good)
    assert "too few rows" in said(made.pairs_entry(30))["Confidence"]


def test_an_incomplete_benchmark_is_said_first_and_has_its_parts():
    entry = made.incomplete_entry()
    assert failings(entry)[0].about == "Incomplete"
    assert "2,900 of 2,985" in failings(entry)[0].text
    assert parts_of(entry)[""][0].name == "Over the rows given"
    assert "80.1" in opening("RewardBench", entry)


def test_spoilt_rows_are_counted_and_only_many_of_them_are_faults():
    points_of = {point.about: point for point in failings(made.pairs_entry())}
    assert points_of["Cut texts"].is_fault
    assert not points_of["Ties"].is_fault
    assert "14 rows (0.6" in points_of["Ties"].text
    assert "Rewards that are no numbers" not in points_of


def test_what_was_not_measured_is_not_called_faultless():
    assert said({"kind": "pairs", "overall": made.figure(0.9, 100)}).keys() == {"Not looked at"}


def test_sections_with_a_subsets_name_stand_once_with_its_baselines():
    entry = made.rm_bench_entry()
    entry["sections"] = {"chat": entry["subsets"]["chat"], "easy": 0.8, "absent": None}
    entry["baselines"]["subsets"] = {"chat": made.baselines(0.3, 0.8, 0.7)}
    groups = parts_of(entry)
    assert [part.name for part in groups["Sections"]] == ["chat", "easy"]
    assert "chat" not in [part.name for part in groups["Subsets"]]
    assert groups["Sections"][0].baselines["longer_wins"] == 0.3


def test_null_figures_make_no_sentence_fail():
    nothing = dict.fromkeys(("official", "half_credit", "n", "ties", "interval"))
    entry = {
        "kind": "pairs",
        "overall": nothing,
        "subsets": {"a": None, "b": nothing},
        "baselines": {"overall": None, "subsets": {}},
    }
    assert opening("x", entry)
    assert certainty(entry) == ""
    assert failings(entry)
    assert wording.chance_of(entry) is None


def test_the_rule_of_length_is_the_one_that_goes_further_and_none_where_lengths_tell_nothing():
    longer = {
        "longer_wins": 0.6,
        "longer_wins_half_credit": 0.65,
        "shorter_wins": 0.3,
        "shorter_wins_half_credit": 0.35,
    }
    equal = {"longer_wins": 0.0, "longer_wins_half_credit": 0.5, "shorter_wins": 0.0, "shorter_wins_half_credit": 0.5}
    entry = {"chance": 0.5, "baselines": {"overall": longer}}
    assert length_rule(entry) == ("longer", 0.65)
    swapped = {
        name.replace("longer", "x").replace("shorter", "longer").replace("x", "shorter"): value
        for name, value in longer.items()
    }
    assert length_rule(entry | {"baselines": {"overall": swapped}}) == ("shorter", 0.65)
    assert length_rule(entry | {"baselines": {"overall": equal}}) is None
    assert length_rule({"baselines": {"longer_wins": 0.4}}) == ("longer", 0.4)
    assert length_rule({}) is None
