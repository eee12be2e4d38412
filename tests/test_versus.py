"""What the page of a comparison says: the right model, the right sign, and no more certainty than there is."""

import pytest
from made_results import comparison, contrast

from plaudit.versus import comparison_context, p_value, p_words, signed_interval, signed_points, verdict


def plain(text):
    return text.replace("\u00a0", " ").replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (
            contrast(0.643, 0.594, [0.012, 0.086]),
            "X is ahead by 4.9 points: X 64.3 %, Y 59.4 %. That is more than chance explains",
        ),
        (
            contrast(0.594, 0.643, [-0.086, 0.01]),
            "Y is ahead by 4.9 points: X 59.4 %, Y 64.3 %. Chance alone may explain that",
        ),
        (contrast(0.5, 0.5, [0.0, 0.0]), "The two are equal: X 50.0 %, Y 50.0 %. Chance alone"),
        (contrast(0.6, 0.5, None), "too few rows to say"),
        (contrast(None, None, None), "There is no figure to compare."),
    ],
)
def test_the_verdict_names_the_better_model_and_how_sure_that_is(figure, words):
    assert words in plain(verdict(figure, ("X", "Y")))


def test_the_verdict_says_both_figures_with_ties_as_half_where_there_are_ties():
    figure = contrast(0.46, 0.50, [-0.05, -0.02])
    figure["a"]["half_credit"], figure["b"]["half_credit"] = 0.50, 0.50
    assert "X 46.0 %, Y 50.0 % (with ties as half: X 50.0 %, Y 50.0 %). That is" in plain(verdict(figure, ("X", "Y")))
    figure["a"]["half_credit"] = 0.46
    assert "ties" not in verdict(figure, ("X", "Y"))


def test_signs_and_small_numbers_are_written_one_way():
    assert plain(signed_points(0.049)) == "+4.9 points"
    assert plain(signed_points(-0.0001)) == "0.0 points"
    assert plain(signed_interval([-0.02, 0.42])) == "-2.0 to +42.0"
    assert p_value(1e-9) == "< 0.001"
    assert plain(p_words(1e-9)) == "p < 0.001"
    assert plain(p_words(0.0312)) == "p = 0.031"


def test_the_context_has_every_part_once_and_folds_what_is_long():
    shown = comparison_context(comparison())
    one = shown["benchmarks"][0]
    assert [row["name"] for row in one["rows"]] == ["Overall", "Math", "other"]
    assert one["rows"][2]["a"] == "\N{EN DASH}"
    assert one["rows"][2]["mark"] is None
    assert len(one["differ"]) == 10
    assert len(one["more"]) == 2
    assert shown["alone"] == ["1,500 rows are only in first and left out."]


def test_the_line_of_differences_has_zero_in_the_middle_and_room_for_every_interval():
    one = comparison_context(comparison())["benchmarks"][0]
    assert one["span"] == "45"
    assert one["mark"]["at"] == f"{50 + 50 * 0.049 / 0.45:.2f}%"
    assert one["rows"][1]["mark"]["low"] < "50%"


def test_mcnemars_test_is_told_with_its_numbers_and_no_more_than_it_shows():
    words = plain(comparison_context(comparison())["benchmarks"][0]["mcnemar_words"])
    assert words.startswith("first alone is right in 45 rows, second alone in 28.")
    assert "p = 0.060: chance alone may explain that" in words
    table = {"both_right": 5, "only_a": 0, "only_b": 0, "both_wrong": 5, "p": 1.0}
    none = comparison_context(comparison(mcnemar=table))["benchmarks"][0]["mcnemar_words"]
    assert "uneven" not in none


def test_an_incomplete_benchmark_is_compared_over_what_is_given():
    given = contrast(0.6, 0.5, [0.02, 0.18])
    one = comparison_context(comparison(overall=None, of_given=given, incomplete="10 of 350 rows"))["benchmarks"][0]
    assert one["rows"][0]["name"] == "Over the rows given"
    assert one["incomplete"] == "10 of 350 rows."
