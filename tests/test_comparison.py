"""Two models on the same rows."""

import json

import numpy as np
import pytest

from plaudit import suites
from plaudit.comparison import compare, describe, verdict
from plaudit.score_rows import ScoredRow


def rows_of(gaps, benchmark="pairs", subset=None, **extra):
    return [
        ScoredRow(benchmark, str(number), subset, [float(gap), 0.0], [1, 0], None, extra)
        for number, gap in enumerate(gaps)
    ]


def compared(*args, **options):
    found = compare(*args, **{"num_resamples": 2000, **options})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_the_table_counts_each_row_once_and_its_test_is_exact():
    found = compared(rows_of([1, 1, 1, 1, -1, -1, 1]), rows_of([1, -1, -1, -1, 1, -1, 0]))["benchmarks"]["pairs"]
    assert found["mcnemar"] == {"both_right": 1, "only_a": 4, "only_b": 1, "both_wrong": 1, "p": pytest.approx(12 / 32)}
    assert found["overall"]["difference"] == pytest.approx(3 / 7)
    assert (found["overall"]["a"]["official"], found["overall"]["b"]["official"]) == (5 / 7, 2 / 7)


def test_a_difference_is_the_first_minus_the_second_and_turns_its_sign_with_the_files():
    generator = np.random.default_rng(0)
    a, b = rows_of(generator.normal(1, 1, 300)), rows_of(generator.normal(0.3, 1, 300))
    one, other = (compared(*rows)["benchmarks"]["pairs"]["overall"] for rows in ((a, b), (b, a)))
    assert one["difference"] > 0.1
    assert other["difference"] == -one["difference"]
    assert one["interval"][0] > 0
    assert other["interval"] == pytest.approx([-end for end in one["interval"][::-1]], abs=0.02)
    assert "A is better by" in verdict(one)
    assert "B is better by" in verdict(other)


def test_the_paired_interval_is_the_one_of_the_differences_and_narrower_than_two_apart():
    generator = np.random.default_rng(1)
    shared = generator.normal(0.5, 1, 1000)
    a, b = shared + generator.normal(0, 0.1, 1000), shared + generator.normal(0, 0.1, 1000)
    found = compared(rows_of(a), rows_of(b), num_resamples=10_000)["benchmarks"]["pairs"]["overall"]
    differences = (a > 0).astype(float) - (b > 0)
    half = 1.96 * differences.std() / np.sqrt(1000)
    low, high = found["interval"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    apart = found["a"]["interval"]
    assert high - low < (apart[1] - apart[0]) / 2


def test_a_model_compared_with_itself_is_equal_and_sure():
    rows = rows_of(np.random.default_rng(0).normal(0.5, 1, 50))
    found = compared(rows, rows, ("same", "same"))
    one = found["benchmarks"]["pairs"]
    assert (one["overall"]["difference"], one["overall"]["interval"], one["overall"]["p"]) == (0.0, [0.0, 0.0], 1.0)
    assert (one["mcnemar"]["p"], one["rank_correlation"], one["differ"]) == (1.0, 1.0, [])
    assert found["names"] == ["same (first)", "same (second)"]
    assert "A and B are equal" in describe(found)


def test_too_few_rows_claim_no_certainty():
    found = compared(rows_of([1]), rows_of([-1]))["benchmarks"]["pairs"]["overall"]
    assert (found["difference"], found["interval"], found["p"]) == (1.0, None, None)
    assert verdict(found) == "A is better by 100.0 points; too few rows to say how sure that is."


def test_rows_that_differ_come_strongest_first_in_units_of_each_models_spread():
    a, b = rows_of([10, 1, -20, 5]), rows_of([-0.1, -2, 1, 3])
    differ = compared(a, b, ("new", "old"))["benchmarks"]["pairs"]["differ"]
    assert [row["id"] for row in differ] == ["2", "1", "0"]
    assert [row["right"] for row in differ] == ["old", "new", "new"]
    spread_a, spread_b = np.sqrt(np.mean(np.square([10, 1, -20, 5]))), np.sqrt(np.mean(np.square([-0.1, -2, 1, 3])))
    assert differ[0]["strength"] == pytest.approx(20 / spread_a + 1 / spread_b)
    assert differ[0]["rewards_a"] == [-20.0, 0.0]
    assert (differ[0]["margin_a"], differ[0]["margin_b"]) == (-20.0, 1.0)


def test_margins_are_ranked_against_each_other():
    found = compared(rows_of([1, 2, 3, 4]), rows_of([10, 200, 3000, 1]))["benchmarks"]["pairs"]
    assert found["rank_correlation"] == pytest.approx(-0.2)


def test_rows_are_matched_by_key_in_any_order_and_the_rest_is_named():
    a, b = rows_of([1, -1, 1]), rows_of([-1, 1, 1, 1])[:0:-1]
    found = compared(a, b, ("a", "b"))
    assert found["benchmarks"]["pairs"]["n"] == 2
    assert found["benchmarks"]["pairs"]["mcnemar"]["only_b"] == 1
    assert found["only_a"] == [{"benchmark": "pairs", "subset": None, "id": "0"}]
    assert found["only_b"] == [{"benchmark": "pairs", "subset": None, "id": "3"}]
    assert "1 row is only in a and left out: 0" in describe(found)


def test_files_that_share_no_row_or_disagree_on_what_is_right_are_refused():
    a = rows_of([1])
    with pytest.raises(ValueError, match=r"no row of A is in B: .*\('pairs', None, '0'\).*\('other', None, '0'\)"):
        compare(a, rows_of([1], "other"))
    turned = [ScoredRow("pairs", "0", None, [1, 0], [0, 1])]
    with pytest.raises(ValueError, match=r"row '0': the labels are \[1, 0\] in A and \[0, 1\] in B"):
        compare(a, turned)
    with pytest.raises(ValueError, match="the row is there twice"):
        compare([*a, *a], a)
    with pytest.raises(ValueError, match="the row is there twice"):
        compare(a, [*a, *a])


def test_a_composite_is_compared_with_its_own_weights():
    def rows(right):
        return [
            ScoredRow("rewardbench", str(number), subset, [float(right(subset)), 0.5], [1, 0])
            for subset, count in suites.rows_of("rewardbench").items()
            for number in range(count)
        ]

    found = compared(rows(lambda subset: True), rows(lambda subset: subset != "math-prm"))["benchmarks"]["rewardbench"]
    assert found["overall"]["difference"] == pytest.approx(0.5 / 4)
    assert found["sections"]["Reasoning"]["difference"] == pytest.approx(984 / 1968)
    assert found["subsets"]["math-prm"]["mcnemar"]["only_a"] == 447
    assert len(found["differ"]) == 447


def test_an_incomplete_benchmark_is_compared_over_what_is_there():
    found = compared(rows_of([1, 1], "rewardbench2x"), rows_of([1, -1], "rewardbench2x"))
    assert found["benchmarks"]["rewardbench2x"]["overall"] is not None
    rows = [
        [ScoredRow("rewardbench2", str(n), "Math", [gap, 0, 0, 0], [1, 0, 0, 0]) for n, gap in enumerate(gaps)]
        for gaps in ([1, 1, 1], [1, -1, -1])
    ]
    found = compared(*rows)
    one = found["benchmarks"]["rewardbench2"]
    assert (one["overall"], one["of_given"]["difference"]) == (None, pytest.approx(2 / 3))
    assert "incomplete, so without an overall figure: 3 of 1,865 rows" in describe(found)


def test_the_text_says_signs_figures_and_the_first_rows():
    generator = np.random.default_rng(0)
    a = rows_of(generator.normal(1, 1, 200), subset="x") + rows_of(generator.normal(1, 1, 10), subset="y")
    b = rows_of(generator.normal(0, 1, 200), subset="x") + rows_of(generator.normal(1, 1, 10), subset="y")
    found = compared(a, b, ("new", "old"))
    text = describe(found)
    assert text.startswith("A is new, B is old; differences are A minus B: above 0, A is better.")
    table = found["benchmarks"]["pairs"]["mcnemar"]
    assert f"only A {table['only_a']:,}, only B {table['only_b']:,}" in text
    assert sum("is right; margin A" in line for line in text.splitlines()) == 20 < table["only_a"] + table["only_b"]
    assert max(map(len, text.splitlines())) < 200


def test_both_are_judged_on_the_first_files_pairs():
    a = ScoredRow("ppe-math", "1", None, [3, 2, 1, 0], [1, 0, 1, 0], None, {"sampled_conflict_pairs": [[0, 1]]})
    b = ScoredRow("ppe-math", "1", None, [0, 2, 1, 3], [1, 0, 1, 0], None, {})
    assert compared([a], [b])["benchmarks"]["ppe-math"]["overall"]["difference"] == 1.0


def test_ties_of_rewardbench_2_are_compared_by_their_own_score():
    def rows(spread):
        given = [("ref:1", [2, 0], [1, 0]), ("tied:1", [2, 2 + spread, 0], [1, 1, 0])]
        return [ScoredRow("rewardbench2", name, "Ties", rewards, labels) for name, rewards, labels in given]

    found = compared(rows(0), rows(4))["benchmarks"]["rewardbench2"]["subsets"]["Ties"]
    assert found["a"]["official"] == pytest.approx(1.01)
    assert found["difference"] == pytest.approx(0.4 + 0.01 * (1 - np.tanh(-0.5)))


def test_prompts_that_only_the_first_file_names_are_resampled_for_both():
    def rows(offset, **extra):
        gaps = [1 if (number // 4 + offset) % 3 else -1 for number in range(120)]
        found = rows_of(gaps, "rewardmath")
        return [
            ScoredRow(
                row.benchmark, row.id, None, row.rewards, row.labels, None, {name: int(row.id) // 4 for name in extra}
            )
            for row in found
        ]

    named = compared(rows(0, prompt=1), rows(1, prompt=1))["benchmarks"]["rewardmath"]["overall"]
    assert compared(rows(0, prompt=1), rows(1))["benchmarks"]["rewardmath"]["overall"] == named
    bare = compared(rows(0), rows(1))["benchmarks"]["rewardmath"]["overall"]["interval"]
    assert (named["interval"][1] - named["interval"][0]) / (bare[1] - bare[0]) == pytest.approx(2, rel=0.15)
    # A first file without prompts is resampled by row, and so is the second then.
    assert compared(rows(0), rows(1, prompt=1))["benchmarks"]["rewardmath"]["overall"]["interval"] == bare
