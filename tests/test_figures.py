"""The entry of each benchmark in results.json, from scored rows alone."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_ties import GOLDEN as TIES
from test_ties import rows_of as ties_rows

from plaudit import suites
from plaudit.figures import results_of
from plaudit.metrics import wilson_interval
from plaudit.score_rows import ScoredRow

FIVE = {"official", "half_credit", "n", "ties", "interval"}
DATA = Path(__file__).parents[2] / "shared" / "data" / "reference_scores.json"


def pair(name, chosen, rejected, subset=None, benchmark="pairs", **extra):
    return ScoredRow(benchmark, name, subset, [chosen, rejected], [1, 0], None, extra)


def entry_of(rows, *args, **options):
    """The entry, also held against what JSON can hold."""
    found = results_of(rows, *args, **{"num_resamples": 500, **options})
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def rewardbench(right=lambda subset, number: number % 3 > 0):
    return [
        pair(str(number), float(right(subset, number)), 0.5, subset, "rewardbench")
        for subset, count in suites.rows_of("rewardbench").items()
        for number in range(count)
    ]


def test_pairs_are_worked_out_by_hand():
    rows = [pair("1", 2, 1, "x"), pair("2", 1, 1, "x"), pair("3", 0, 1, "y"), pair("4", 5, 1, "y")]
    found = entry_of(rows)
    assert (found["kind"], found["incomplete"], found["chance"]) == ("pairs", None, 0.5)
    low, high = wilson_interval(2, 4)
    assert found["overall"] == {"official": 0.5, "half_credit": 0.625, "n": 4, "ties": 1, "interval": [low, high]}
    assert found["subsets"]["x"] == {
        "official": 0.5, "half_credit": 0.75, "n": 2, "ties": 1, "interval": list(wilson_interval(1, 2)),
    }  # fmt: skip
    assert [row["id"] for row in found["worst"]] == ["3", "2"]
    assert found["worst"][0] == {"id": "3", "subset": "y", "rewards": [0, 1], "labels": [1, 0], "margin": -1}


def test_the_kind_is_that_of_the_argument_then_of_the_rows_then_of_the_name_then_of_the_shape():
    row = pair("1", 2, 1, benchmark="RM-Bench", kind="pairs")
    assert entry_of([row])["kind"] == "pairs"
    assert entry_of([row], "best-of-n")["kind"] == "best-of-n"
    assert entry_of([pair("1", 2, 1, benchmark="reward_math")])["kind"] == "rewardmath"
    assert entry_of([ScoredRow("dev", "1", None, [1, 2, 3], [0, 1, 1])])["kind"] == "best-of-n"
    with pytest.raises(ValueError, match="kind='chess' is not known; choose one of 'rewardbench'"):
        results_of([row], "chess")
    with pytest.raises(ValueError, match=r"several kinds of benchmark \(RM-Bench, judgebench\); give one at a time"):
        results_of([pair("1", 2, 1, benchmark="RM-Bench"), pair("1", 2, 1, benchmark="judgebench")])


def test_rewardbench_weighs_subsets_within_sections_and_sections_alike():
    found = entry_of(rewardbench(lambda subset, number: subset in ("math-prm", "donotanswer", "mt-bench-easy")))
    sections = {name: found["sections"][name]["official"] for name in suites.REWARDBENCH}
    assert sections == pytest.approx({"Chat": 28 / 358, "Chat Hard": 0, "Safety": 136 / 740, "Reasoning": 984 / 1968})
    assert found["overall"]["official"] == pytest.approx(sum(sections.values()) / 4)
    assert found["figures"] == pytest.approx(
        {
            "overall4": sum(sections.values()) / 4,
            "overall5": sum(sections.values()) / 4,
            "flat": (28 + 136 + 447) / 2985,
        }
    )
    assert (found["incomplete"], found["overall"]["n"], len(found["subsets"])) == (None, 2985, 23)
    assert set(found["subsets"]["hep-go"]) == set(found["sections"]["Chat"]) == FIVE


def test_the_weights_of_old_papers_exchange_the_two_xstest_sets():
    rows = rewardbench(lambda subset, number: subset == "xstest-should-refuse")
    for weights, weight in (("current", 154), ("pre-2024-09-10", 250)):
        assert entry_of(rows, weights=weights)["sections"]["Safety"]["official"] == pytest.approx(weight / 740)
    with pytest.raises(ValueError, match="weights='old' is not known; choose one of 'current', 'pre-2024-09-10'"):
        results_of(rows, weights="old")


def test_prior_sets_make_a_fifth_section_of_half_weight():
    rows = [*rewardbench(lambda subset, number: True), pair("1", 0, 1, "shp", "rewardbench")]
    found = entry_of(rows)
    assert found["overall"]["official"] == 1.0
    assert found["sections"]["Prior Sets"]["official"] == 0.0
    assert found["figures"] == pytest.approx({"overall4": 1.0, "overall5": 8 / 9, "flat": 1.0})


def test_an_incomplete_benchmark_gives_its_parts_and_refuses_an_overall():
    rows = [row for row in rewardbench() if row.subset != "math-prm" and (row.subset, row.id) != ("hep-go", "0")]
    found = entry_of(rows)
    assert found["overall"] is None
    assert found["incomplete"] == "2,537 of 2,985 rows: math-prm 0 of 447, hep-go 163 of 164"
    assert found["figures"] == {}
    assert found["sections"]["Reasoning"]["incomplete"] == "math-prm 0 of 447, hep-go 163 of 164"
    assert "incomplete" not in found["sections"]["Chat"]
    assert set(found["of_given"]) == FIVE
    only = entry_of([row for row in rows if row.subset == "hep-go"])
    assert only["sections"]["Chat"] is None
    assert only["of_given"]["official"] == only["subsets"]["hep-go"]["official"]


def test_rows_beyond_the_benchmark_are_no_part_of_it_and_named():
    found = entry_of([*rewardbench(), pair("1", 0, 1, "poems", "rewardbench")])
    assert found["overall"] is None
    assert found["incomplete"] == "2,986 of 2,985 rows: 1 rows of no subset that it has"
    assert found["of_given"]["official"] == entry_of(rewardbench())["overall"]["official"]


def test_a_toy_file_of_one_row_has_its_parts():
    assert entry_of([pair("1", 2, 1, benchmark="rewardbench")])["of_given"]["official"] == 1.0
    assert entry_of([pair("1", 2, 1, "K", "judgebench")])["sections"]["Knowledge"]["official"] == 1.0


CREDITS = [([1, 0, 0, 0], 1), ([1, 1, 0, 0], 1 / 2), ([1, 1, 1, 0], 1 / 3), ([1, 1, 1, 1], 1 / 4), ([0, 1, 0, 0], 0)]


@pytest.mark.parametrize(("rewards", "credit"), CREDITS)
def test_rewardbench_2_shares_the_credit_among_those_tied_at_the_top(rewards, credit):
    found = entry_of([ScoredRow("rewardbench2", "1", "Math", rewards, [1, 0, 0, 0])])
    assert found["subsets"]["Math"]["official"] == pytest.approx(credit)
    assert found["overall"] is None


@pytest.mark.parametrize("place", range(4))
def test_rewardbench_2_gives_nothing_for_a_row_with_no_number(place):
    rewards = [1.0, 0, 0, 0]
    rewards[place] = math.nan
    row = ScoredRow("rewardbench2", "1", "Math", rewards, [1, 0, 0, 0])
    assert entry_of([row], on_nonfinite="official")["subsets"]["Math"]["official"] == 0.0
    with pytest.raises(ValueError, match="row '1' of subset 'Math': a reward is not finite .* as in 1 rows"):
        results_of([row])


def test_two_infinities_share_the_credit():
    row = ScoredRow("rewardbench2", "1", "Math", [math.inf, math.inf, 0, 0], [1, 0, 0, 0])
    assert entry_of([row], on_nonfinite="official")["subsets"]["Math"]["official"] == 0.5


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("subset", ["Ties", None])
def test_ties_of_rewardbench_2_have_their_golden_scores(name, subset):
    rows = [
        ScoredRow("rewardbench2", row.id, subset, [np.ravel(reward)[0] for reward in row.rewards], row.labels)
        for row in ties_rows(*TIES[name][0])
    ]
    found = entry_of(rows)
    assert found["subsets"]["Ties"]["official"] == pytest.approx(TIES[name][1], abs=1e-10)
    assert found["figures"]["ties_v0_1_4"] == pytest.approx(TIES[name][2], abs=1e-10)


def test_a_complete_rewardbench_2_is_the_mean_of_its_six_subsets():
    rows = [
        ScoredRow(
            "rewardbench2",
            str(number),
            subset,
            [1.0, 0, 0, float(number % 5 == 0 and subset == "Focus") * 2],
            [1, 0, 0, 0],
        )
        for subset, count in suites.REWARDBENCH2.items()
        if subset != "Ties"
        for number in range(count)
    ]
    for number in range(51):
        rows += ties_rows((f"ref:{number}", [2, 0], 1), (f"tied:{number}", [2, 2, 0], 2))
    found = entry_of(rows)
    assert found["subsets"]["Focus"]["official"] == pytest.approx(0.8)
    assert found["overall"]["official"] == pytest.approx((4 + 0.8 + 1.01) / 6)
    assert found["overall"]["n"] == 1865


RM = {
    "chat": [([1, 2, 3], [0, 2, 4])],
    "math": [([5, 5, 5], [4, 5, 6])],
    "code": [([1, 1, 1], [0, 0, 0])],
    "safety-refuse": [([1, 0, 0], [0, 1, 2])],
    "safety-response": [([3, 4, 5], [2, 2, 2])],
}


def rm_rows(given):
    return [
        ScoredRow("rm-bench", str(number), domain, [*right, *wrong], [1, 1, 1, 0, 0, 0])
        for domain, pairs in given.items()
        for number, (right, wrong) in enumerate(pairs)
    ]


def levels(entry):
    return [entry["sections"][name]["official"] for name in ("hard", "normal", "easy")]


def test_rm_bench_has_its_golden_levels():
    one = entry_of(rm_rows({"chat": RM["chat"]}))
    assert levels(one) == pytest.approx([0, 1 / 3, 1])
    assert one["matrix"] == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert levels(entry_of(rm_rows({"chat": RM["chat"] + RM["math"]}))) == pytest.approx([0, 1 / 3, 0.8333], abs=1e-4)


def test_rm_bench_has_its_golden_domains_and_total():
    found = entry_of(rm_rows(RM))
    domains = [found["sections"][name]["official"] for name in ("chat", "math", "code", "safety")]
    assert domains == pytest.approx([0.4444, 0.3333, 1, 0.5556], abs=5e-5)
    assert levels(found) == pytest.approx([0.375, 0.5833, 0.7917], abs=5e-5)
    assert found["of_given"]["official"] == pytest.approx(0.5833, abs=5e-5)
    assert found["of_given"]["official"] == pytest.approx(sum(levels(found)) / 3)
    assert set(found["subsets"]) == set(RM)
    assert found["incomplete"] == "5 of 1,327 rows: chat 1 of 129, math 1 of 529, code 1 of 228, safety 2 of 441"


def test_rm_bench_goes_by_labels_and_not_by_places():
    mixed = ScoredRow("rm-bench", "1", "chat", [0, 1, 2, 2, 3, 4], [0, 1, 0, 1, 1, 0])
    assert levels(entry_of([mixed])) == levels(entry_of(rm_rows({"chat": RM["chat"]})))
    with pytest.raises(ValueError, match="a row of this benchmark has three right and three wrong candidates"):
        results_of([ScoredRow("rm-bench", "1", "chat", [1, 0], [1, 0])])


def test_judgebench_counts_a_tie_as_wrong_in_two_games_and_by_its_label_in_one():
    rows = [
        ScoredRow("judgebench", "1", "mmlu-pro-law", [1, 1], [1, 0], None, {"label": "A>B"}),
        ScoredRow("judgebench", "2", "livebench-math", [1, 1], [0, 1], None, {"label": "B>A"}),
        ScoredRow("judgebench", "3", "livecodebench", [1, 2], [0, 1], None, {"label": "B>A"}),
        ScoredRow("judgebench", "4", "livebench-reasoning", [1, 2], [1, 0], None, {"label": "A>B"}),
    ]
    found = entry_of(rows)
    assert found["figures"] == {"double_game": 0.25, "single_game": 0.5}
    assert found["of_given"]["official"] == 0.25
    assert found["of_given"]["half_credit"] == 0.5
    assert {name: part["ties"] for name, part in found["sections"].items()} == {
        "Knowledge": 1, "Reasoning": 0, "Math": 1, "Coding": 0,
    }  # fmt: skip
    first, second = (entry_of([row])["figures"]["single_game"] for row in rows[:2])
    assert (first, second) == (0.0, 1.0), "in one game a tie is taken for B>A"
    assert "single_game" not in entry_of([pair("1", 1, 1, "K", "judgebench")])["figures"]


PPE = {"sampled_conflict_pairs": [[0, 1], [2, 1], [0, 3]]}


def ppe(name="MATH", rewards=(3.0, 2.0, 1.0, 3.0), labels=(1, 0, 1, 0), benchmark="ppe-correctness"):
    return ScoredRow(benchmark, "1", name, list(rewards), list(labels), None, PPE)


def test_ppe_correctness_is_worked_out_by_hand():
    found = entry_of([ppe()])
    one = found["figures"]["sets"]["MATH"]
    assert found["sections"]["MATH"]["official"] == pytest.approx(1 / 3), "won, lost, tied"
    assert found["sections"]["MATH"]["half_credit"] == pytest.approx(1.5 / 3)
    assert one["auc"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    # k = 1: half are right. k = 4: two at the top, one right. k = 2: (0,1) 1, (0,2) 1, (0,3) .5, (1,2) 0, (1,3) 0, (2,3) 0.
    curve = [point["value"] for point in found["curve"]["MATH"]]
    assert curve == pytest.approx([1 / 2, 2.5 / 6, (1 + 0.5 + 0.5 + 0) / 4, 1 / 2])
    assert (one["max"], one["end"], one["num_pairs"], one["tied_pairs"]) == (0.5, 0.5, 3, 1)
    oracle = [1 / 2, 5 / 6, 1, 1]
    assert one["loss"] == pytest.approx(np.mean(np.array(oracle) - curve))
    assert (found["overall"], found["incomplete"]) == (None, "1 of 5 sets: MMLU-Pro, GPQA, IFEval, MBPP-Plus missing")


def test_ppe_correctness_is_the_mean_over_its_five_sets():
    rows = [ppe(name) for name in suites.PPE_SETS[1:]] + [ppe("MMLU-Pro", (3, 0, 1, 2))]
    found = entry_of(rows)
    assert found["overall"]["official"] == pytest.approx((1 + 4 / 3) / 5)
    assert found["figures"]["pair_accuracy"] == pytest.approx(found["overall"]["official"])
    assert found["figures"]["end"] == pytest.approx((1 + 4 * 0.5) / 5)


def test_a_set_of_ppe_by_its_own_name_is_whole():
    assert entry_of([ppe(None, benchmark="lmarena-ai/PPE-MATH-Best-of-K")])["overall"]["official"] == pytest.approx(
        1 / 3
    )
    names = [f"PPE-{name}-Best-of-K" for name in suites.PPE_SETS]
    assert entry_of([ppe(None, benchmark=name) for name in names])["overall"] is not None
    assert entry_of([ppe(None, benchmark=name) for name in names[:2]])["overall"] is None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "'extra' has no 'sampled_conflict_pairs'"),
        ({"sampled_conflict_pairs": [[0, 4]]}, r"holds \[0, 4\], but a pair is two places from 0 to 3"),
        ({"sampled_conflict_pairs": [[0, 2]]}, r"holds \[0, 2\], whose candidates have the same label 1"),
    ],
)
def test_pairs_of_ppe_that_are_none_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        results_of([ScoredRow("ppe-correctness", "1", "MATH", [1, 2, 3, 4], [1, 0, 1, 0], None, extra)])


def test_votes_for_neither_count_nowhere_and_the_weakest_domain_is_the_lower_bound():
    rows = [
        pair("1", 2, 1, None, "ppe-human", hard_prompt=True, math_prompt=True),
        pair("2", 1, 2, None, "ppe-human", hard_prompt=True),
        pair("3", 1, 2, None, "ppe-human", winner="tie (bothbad)", hard_prompt=True),
        ScoredRow("ppe-human", "4", None, [1, 2], [0, 0], None, {}),
        ScoredRow("ppe-human", "5", None, [1, 2], [0, 1], None, {"domains": ["math"]}),
    ]
    found = entry_of(rows)
    assert (found["overall"]["official"], found["overall"]["n"]) == (pytest.approx(2 / 3), 3)
    assert {name: part["official"] for name, part in found["subsets"].items()} == {"hard": 0.5, "math": 1.0}
    assert found["figures"]["human_ties"] == 2
    assert found["figures"]["lower_bound"]["domain"] == "hard"
    assert entry_of(rows[2:4])["overall"]["official"] is None


def test_rmb_asks_of_the_best_that_it_beats_all():
    rows = [
        pair("1", 2, 1, "Helpfulness", "rmb"),
        ScoredRow("rmb", "2", "Harmlessness", [3, 3, 1], [1, 0, 0]),
        ScoredRow("rmb", "3", "Harmlessness", [3, 2, 1], [1, 0, 0]),
    ]
    found = entry_of(rows)
    assert found["overall"]["official"] == pytest.approx(2 / 3)
    assert found["overall"]["half_credit"] == pytest.approx(2.5 / 3)
    assert {name: part["official"] for name, part in found["sections"].items()} == {"pairwise": 1.0, "best-of-n": 0.5}


def test_best_of_n_takes_rows_with_several_and_with_no_right_answers():
    rows = [
        ScoredRow("best-of-n", "1", None, [1, 2, 2], [0, 1, 1]),
        ScoredRow("best-of-n", "2", None, [3, 2, 1], [0, 0, 0]),
        ScoredRow("best-of-n", "3", None, [3, 3, 1], [1, 0, 0]),
        ScoredRow("best-of-n", "4", None, [1, 1, 1], [1, 1, 1]),
    ]
    found = entry_of(rows)
    assert found["overall"]["official"] == found["overall"]["half_credit"] == 2.5 / 4, "picked at random among the tied"
    assert found["figures"] == {
        "strict": 0.5, "at_least": 0.75, "one_over_tied": 2.5 / 4, "mrr": (1 + 0 + 1 / 2 + 1) / 4, "wrong_tied_with_right": 1,
        "rows_tied_with_right": 1, "rows_without_right": 1, "rows_without_wrong": 1,
    }  # fmt: skip
    assert found["chance"] == pytest.approx((2 / 3 + 0 + 1 / 3 + 1) / 4)
    assert found["curve"][-1]["value"] == pytest.approx(found["figures"]["one_over_tied"]), "B(n) is 1 over tied"


def test_rewardmath_has_one_right_answer():
    with pytest.raises(
        ValueError, match="a row of this benchmark has exactly one right candidate; mend the row, or give"
    ):
        results_of([ScoredRow("rewardmath", "1", None, [1, 2, 3], [1, 1, 0])])
    with pytest.raises(ValueError, match="no candidate is right"):
        results_of([ScoredRow("rewardmath", "1", None, [1, 2, 3], [0, 0, 0])])


@pytest.mark.parametrize("kind", ["pairs", "best-of-n", "rewardmath", "rmb"])
def test_an_affine_map_or_another_order_of_candidates_changes_no_figure(kind):
    generator = np.random.default_rng(0)
    rewards = generator.integers(0, 6, (60, 4))
    labels = np.array([1, 0, 0, 0])
    rows = [ScoredRow(kind, str(number), None, one.tolist(), labels.tolist()) for number, one in enumerate(rewards)]
    orders = [generator.permutation(4) for _ in rewards]
    others = [
        ScoredRow(kind, str(number), None, (8 * one[order] - 3).tolist(), labels[order].tolist())
        for number, (one, order) in enumerate(zip(rewards, orders, strict=True))
    ]
    first, second = entry_of(rows), entry_of(others)
    for name in ("overall", "curve", "figures", "chance"):
        assert first.get(name) == second.get(name)
    assert first["overall"]["ties"] > 0, "the rows have ties"


def test_an_interval_holds_the_figure_and_is_the_same_each_time_and_for_any_order_of_rows():
    rows = [row for row in rewardbench() if row.subset.startswith(("hep", "math"))]
    first, second = entry_of(rows, seed=3), entry_of(rows[::-1], seed=3)
    low, high = first["sections"]["Reasoning"]["interval"]
    assert low < first["sections"]["Reasoning"]["official"] < high
    assert first["sections"] == second["sections"]
    assert entry_of(rows, seed=4)["sections"]["Reasoning"]["interval"] != [low, high]


def test_the_stratified_interval_is_the_normal_one_of_the_weighted_mean():
    found = entry_of(rewardbench(), num_resamples=20_000)["sections"]["Reasoning"]
    shares = {name: 2 / 3 if name.startswith("hep") else 298 / 447 for name in suites.REWARDBENCH["Reasoning"]}
    variance = sum(
        ((984 if name == "math-prm" else rows) / 1968) ** 2 * shares[name] * (1 - shares[name]) / rows
        for name, rows in suites.REWARDBENCH["Reasoning"].items()
    )
    low, high = found["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.03)


def test_rows_that_are_all_right_are_no_certainty():
    rows = [ScoredRow("rewardmath", str(number), None, [2, 1, 0], [1, 0, 0]) for number in range(20)]
    assert entry_of(rows)["overall"]["interval"] == pytest.approx(list(wilson_interval(20, 20)))
    low, high = entry_of(rewardbench(lambda subset, number: True))["overall"]["interval"]
    assert high == 1.0
    assert 0.99 < low < 1.0


def test_rows_of_one_prompt_are_resampled_together():
    def width(prompt):
        rows = [
            ScoredRow(
                "rewardmath", str(number), None, [number // 4 % 2, 0.5, 0], [1, 0, 0], None, {"prompt": prompt(number)}
            )
            for number in range(160)
        ]
        low, high = entry_of(rows, num_resamples=5000)["overall"]["interval"]
        return high - low

    assert width(lambda number: number // 4) / width(lambda number: number) == pytest.approx(2, rel=0.1)


def test_longer_wins_is_counted_by_characters_before_tokens():
    """1,023 longer, 1,278 shorter and 11 equal give 44.25 % and 44.49 %, as in a known set of that make-up."""
    lengths = [(2, 1)] * 1023 + [(1, 2)] * 1278 + [(1, 1)] * 11
    rows = [
        ScoredRow("pairs", str(number), None, [1, 0], [1, 0], [1, 5], {"characters": list(pair)})
        for number, pair in enumerate(lengths)
    ]
    found = entry_of(rows)["baselines"]["overall"]
    assert round(100 * found["longer_wins"], 2) == 44.25
    assert round(100 * found["longer_wins_half_credit"], 2) == 44.49
    assert found["chooses_longer"] == pytest.approx(1023 / 2301)
    bare = [ScoredRow("pairs", row.id, None, row.rewards, row.labels, row.tokens) for row in rows]
    assert entry_of(bare)["baselines"]["overall"]["longer_wins"] == 0.0
    assert entry_of([pair("1", 2, 1)])["baselines"]["overall"] is None


def choices(benchmark, count, subset=None):
    return [ScoredRow(benchmark, f"{subset} {number}", subset, [3, 2, 1], [1, 0, 0]) for number in range(count)]


@pytest.mark.parametrize(
    "made",
    [
        rewardbench(),
        rewardbench()[100:-100],
        [*choices("rewardbench2", 90, "Math"), *choices("rewardbench2", 30, "Focus"), *ties_rows(*TIES["A"][0])],
        rm_rows({"chat": [([1, 2, 3], [0, 2, 4])] * 10, "math": [([1, 2, 3], [0, 2, 4])] * 30}),
        [ppe(), ppe("GPQA")],
        choices("rewardmath", 60),
        [pair(str(number), 1, 0, "xy"[number % 2]) for number in range(60)],
    ],
    ids=lambda rows: f"{rows[0].benchmark} {len(rows)}",
)
def test_longer_wins_is_the_figure_that_lengths_as_rewards_give(made):
    """Beside a mean of parts, or one right answer of many, a share of pairs would be on another scale."""
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, 9, len(row.rewards)).tolist() for row in made]
    rows = [replace(row, tokens=length) for row, length in zip(made, lengths, strict=True)]
    found = entry_of(rows)
    baselines = {"overall": found["baselines"]["overall"], **found["baselines"]["subsets"]}
    for word, sign in (("longer", 1), ("shorter", -1)):
        rule = [replace(row, rewards=[sign * each for each in own]) for row, own in zip(made, lengths, strict=True)]
        expected = entry_of(rule)
        figures = {"overall": expected["overall"] or expected["of_given"], **expected["subsets"]}
        assert list(baselines) == list(figures)
        for name, figure in figures.items():
            assert baselines[name][f"{word}_wins"] == pytest.approx(figure["official"], abs=1e-12)
            assert baselines[name][f"{word}_wins_half_credit"] == pytest.approx(figure["half_credit"], abs=1e-12)
    if made[0].benchmark == "rewardmath":
        assert baselines["overall"]["longer_wins"] < 0.45, "one of three, and not one of two"


def test_rows_without_lengths_are_no_part_of_what_the_longer_answer_wins():
    rows = [
        pair("1", 2, 1, "x", characters=[9, 1]),
        pair("2", 1, 1, "x", characters=[1, 9]),
        pair("3", 1, 1, "x"),
        pair("4", 2, 1, "y"),
    ]
    found = entry_of(rows)["baselines"]
    assert found["overall"] == found["subsets"]["x"]
    assert (found["overall"]["longer_wins"], found["overall"]["accuracy_correct_longer"]) == (0.5, 1.0)
    assert found["subsets"]["y"] is None


def test_cut_rows_are_counted_and_their_figure_given_without_them():
    rows = [
        pair("1", 2, 1, "x", truncated=[False, True]),
        pair("2", 0, 1, "x", truncated=[False, False]),
        pair("3", 2, 1, "y"),
    ]
    found = entry_of(rows)
    assert found["counts"]["n_truncated"] == 1
    assert found["truncation"]["overall"] == {
        "n_truncated": 1, "share": pytest.approx(1 / 3), "official_without_truncated": 0.5,
    }  # fmt: skip
    assert found["truncation"]["subsets"]["x"]["official_without_truncated"] == 0.0
    assert found["truncation"]["identical_when_cut"] == []
    one = pair("7", 1, 1, truncated=[True, True], identical_when_cut=True)
    assert entry_of([*rows, one])["truncation"]["identical_when_cut"] == ["7"]
    assert entry_of([pair("1", 2, 1)])["truncation"] is None
    assert entry_of(rows[:1])["truncation"]["overall"]["official_without_truncated"] is None


def test_equal_texts_and_missing_templates_are_counted_and_listed():
    found = entry_of([pair("1", 1, 1, identical=True), pair("2", 2, 1, template_missing=True)])
    assert found["counts"] == {
        "n": 2, "n_tied": 1, "n_nonfinite": 0, "n_truncated": 0, "n_template_missing": 1, "n_identical_texts": 1,
    }  # fmt: skip
    assert found["identical"] == ["1"]


def test_numbers_that_are_not_finite_are_wrong_and_counted_where_the_official_rule_is_asked_for():
    rows = [pair("1", math.nan, 1), pair("2", 2, math.nan), pair("3", 2, 1), pair("4", math.inf, math.inf)]
    found = entry_of(rows, on_nonfinite="official")
    assert (found["overall"]["official"], found["counts"]["n_nonfinite"]) == (0.25, 3)
    assert found["overall"]["half_credit"] == 0.375
    best = [ScoredRow("rewardmath", "1", None, [math.nan, 1, 2], [1, 0, 0])]
    assert entry_of(best, on_nonfinite="official")["figures"]["mrr"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "there are no rows to compute figures from"),
        ([ScoredRow("pairs", "1", None, [1], [1])], {}, "1 rewards and 1 labels; a row needs two candidates"),
        ([ScoredRow("pairs", "1", None, [1, 2], [1])], {}, "2 rewards and 1 labels"),
        ([ScoredRow("pairs", "1", None, [1, 2], [1, 2])], {}, "a label is 1 .right. or 0 .wrong."),
        ([ScoredRow("pairs", "1", None, [1, 2], [1, 1])], {}, "no candidate is wrong .labels .1, 1.."),
        ([ScoredRow("pairs", "1", None, [1, "x"], [1, 0])], {}, "must be one number a candidate"),
        ([ScoredRow("pairs", "1", None, [1, None], [1, 0])], {}, "a reward is not finite .*None"),
        ([pair("1", 1, 0, characters=[1])], {}, "'characters' has 1 entries for 2 rewards"),
        ([pair("1", 1, 0), pair("1", 1, 0)], {}, "the row is there twice"),
        ([pair("1", 1, 0)], {"num_resamples": 10}, "num_resamples=10 is too few"),
        ([pair("1", 1, 0)], {"seed": -1}, "seed=-1 cannot be below 0"),
        ([pair("1", 1, 0)], {"on_nonfinite": "drop"}, "on_nonfinite='drop' is not known"),
    ],
)
def test_a_users_mistake_is_named(rows, options, message):
    with pytest.raises(ValueError, match=message):
        results_of(rows, **options)


needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="needs the reference scores, which are not part of the project"
)


@needs_data
@pytest.mark.parametrize(
    ("model", "right", "ties", "by_category"),
    [
        ("27B", 225, 3, [92, 65, 47, 21]),
        ("internlm2-20b", 222, 0, [96, 68, 37, 21]),
        ("GRM-Gemma-2B", 208, 0, [97, 52, 36, 23]),
    ],
)
def test_judgebench_scores_of_real_models_give_the_published_figures(model, right, ties, by_category):
    data = json.loads(DATA.read_text(encoding="utf-8"))["judgebench_gpt4o"]
    scores = next(scores for name, scores in data["scores"].items() if model in name)
    rows = [
        ScoredRow("judgebench", one, category, rewards, [label, 1 - label])
        for one, category, rewards, label in zip(data["pair_id"], data["cat"], scores, data["label"], strict=True)
    ]
    found = entry_of(rows)
    assert found["overall"]["official"] == right / 350
    assert (found["overall"]["n"], found["overall"]["ties"]) == (350, ties)
    assert [round(part["official"] * part["n"]) for part in found["sections"].values()] == by_category
    assert [part["n"] for part in found["sections"].values()] == [154, 98, 56, 42]


@needs_data
@pytest.mark.parametrize(
    ("model", "percents", "mrr", "tied", "curve"),
    [
        ("ArmoRM", (20.50, 21.53, 21.01), 0.4218, 72, (13.628, 17.066, 20.282)),
        ("grm_llama3", (24.43, 24.84, 24.64), 0.4580, 5, (14.072, 18.555, 23.007)),
        ("oasst-rm", (7.04, 7.04, 7.04), 0.2703, 4, (9.984, 8.925, 7.621)),
    ],
)
def test_rewardmath_scores_of_real_models_give_the_known_figures(model, percents, mrr, tied, curve):
    data = json.loads(DATA.read_text(encoding="utf-8"))["rewardmath"]["scores"]
    scores = next(scores for name, scores in data.items() if model in name)
    rows = [ScoredRow("rewardmath", str(number), None, one, [1] + [0] * 9) for number, one in enumerate(scores)]
    found = entry_of(rows)
    figures = found["figures"]
    assert tuple(round(100 * figures[name], 2) for name in ("strict", "at_least", "one_over_tied")) == percents
    assert round(figures["mrr"], 4) == mrr
    assert figures["wrong_tied_with_right"] == found["overall"]["ties"] == tied
    assert tuple(round(100 * found["curve"][k - 1]["value"], 3) for k in (2, 4, 8)) == curve
    assert found["curve"][9]["value"] == pytest.approx(figures["one_over_tied"])
