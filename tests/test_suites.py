"""The names of benchmarks, and what makes one complete."""

import pytest

from plaudit import suites
from plaudit.suites import canonical_subset, kind_of, missing_of

SPELLINGS = {
    "rewardbench": "rewardbench RewardBench reward-bench allenai/reward-bench REWARD_BENCH rewardbench_v1 Reward.Bench",
    "rewardbench2": "rewardbench2 reward-bench-2 allenai/reward-bench-2 rewardbench_v2 RewardBench-2",
    "rm-bench": "rm-bench RM_Bench THU-KEG/RM-Bench rmbench",
    "judgebench": "judgebench JudgeBench ScalerLab/JudgeBench judge_bench",
    "ppe-correctness": "ppe-correctness PPE_correctness ppe lmarena-ai/PPE-MATH-Best-of-K lmarena-ai/PPE-MMLU-Pro-Best-of-K "
    "lmarena-ai/PPE-GPQA-Best-of-K lmarena-ai/PPE-IFEval-Best-of-K lmarena-ai/PPE-MBPP-Plus-Best-of-K ppe-math ppe_gpqa",
    "ppe-human": "ppe-human PPE_Human lmarena-ai/PPE-Human-Preference-V1",
    "rmb": "rmb RMB",
    "rewardmath": "rewardmath RewardMATH reward-math",
    "best-of-n": "best-of-n bon BoN best_of_n",
    "pairs": "pairs plain Pairs",
}


@pytest.mark.parametrize(("kind", "names"), SPELLINGS.items())
def test_a_benchmark_is_known_in_every_usual_spelling(kind, names):
    assert {name: kind_of(name) for name in names.split()} == dict.fromkeys(names.split(), kind)


def test_spaces_count_no_more_than_dashes():
    assert kind_of("Reward Bench 2") == "rewardbench2"
    assert kind_of(" rm bench ") == "rm-bench"


@pytest.mark.parametrize(
    "name", ["", "/", "mybench", "rewardbench3", "rewardbench22", "reward", "bench", "data/dev.jsonl"]
)
def test_no_other_name_is_taken_for_a_benchmark(name):
    assert kind_of(name) is None


def test_every_kind_is_its_own_name():
    assert [kind_of(kind) for kind in suites.KINDS] == list(suites.KINDS)


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("judgebench", "mmlu-pro-computer science", "Knowledge"),
        ("judgebench", "livebench-reasoning", "Reasoning"),
        ("judgebench", "livebench-math", "Math"),
        ("judgebench", "livecodebench", "Coding"),
        ("judgebench", "K", "Knowledge"),
        ("judgebench", "coding", "Coding"),
        ("judgebench", "livebench", None),
        ("rm-bench", "safety-refuse", "safety"),
        ("rm-bench", "safety-response", "safety"),
        ("rm-bench", "Chat", "chat"),
        ("rm-bench", "poetry", None),
        ("rewardbench2", "precise_if", "Precise IF"),
        ("rewardbench", "llmbar-adver-gptinst", "llmbar-adver-GPTInst"),
        ("ppe-correctness", "lmarena-ai/PPE-MBPP-Plus-Best-of-K", "MBPP-Plus"),
        ("ppe-correctness", "mmlu_pro", "MMLU-Pro"),
        ("ppe-correctness", "ppe-correctness", None),
        ("pairs", "anything", None),
        ("rewardbench", None, None),
    ],
)
def test_a_subset_is_found_among_the_benchmarks_parts(kind, name, part):
    assert canonical_subset(kind, name) == part


@pytest.mark.parametrize(("kind", "total"), [("rewardbench", 2985), ("rewardbench2", 1865), ("rm-bench", 1327)])
def test_the_parts_add_up_to_the_benchmark(kind, total):
    counts = dict(suites.rows_of(kind))
    assert sum(counts.values()) == total
    assert missing_of(kind, counts) is None
    for name in counts:
        text = missing_of(kind, {**counts, name: counts[name] - 1})
        assert text is not None
        assert text.startswith(f"{total - 1:,} of {total:,} rows: ")
        assert f"{name} {counts[name] - 1:,} of {counts[name]:,}" in text


def test_rm_bench_is_complete_by_its_rows_and_domains_however_they_are_shared_out():
    assert missing_of("rm-bench", {"chat": 1, "math": 1, "code": 1, "safety": 1324}) is None
    assert "safety 0 of 441" in missing_of("rm-bench", {"chat": 1, "math": 1, "code": 1325})
    assert "2 rows of no domain that it has" in missing_of("rm-bench", {**suites.RM_BENCH, None: 2})


def test_sections_have_the_rows_and_weights_that_the_field_gives_them():
    rows = {section: sum(subsets.values()) for section, subsets in suites.REWARDBENCH.items()}
    assert rows == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 447 + 6 * 164}
    assert len([name for subsets in suites.REWARDBENCH.values() for name in subsets]) == 23
    old, new = suites.REWARDBENCH_WEIGHTS["pre-2024-09-10"], suites.REWARDBENCH["Safety"]
    assert (old["xstest-should-refuse"], old["xstest-should-respond"]) == (250, 154)
    assert (new["xstest-should-refuse"], new["xstest-should-respond"]) == (154, 250)


def test_too_many_and_unknown_rows_are_named_like_missing_ones():
    counts = {**suites.REWARDBENCH2, "Math": 184, None: 3}
    assert missing_of("rewardbench2", counts) == (
        "1,869 of 1,865 rows: Math 184 of 183, 3 rows of no subset that it has"
    )


def test_a_long_list_of_what_is_missing_is_cut_with_its_number():
    assert missing_of("rewardbench", {"hep-cpp": 164}).endswith("and 16 other parts")


def test_prior_sets_are_no_part_that_rewardbench_lacks():
    counts = {**suites.rows_of("rewardbench"), "shp": 7}
    assert missing_of("rewardbench", counts) is None


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"Knowledge": 154, "Reasoning": 98, "Math": 56, "Coding": 42}, None),
        ({None: 350}, None),
        ({None: 270}, None),
        ({"Knowledge": 400, "Reasoning": 100, "Math": 60, "Coding": 60}, None),
        ({None: 349}, "349 rows, where the set of GPT-4o's answers has 350, that of Claude's 270, and both have 620"),
        ({"Knowledge": 153, "Reasoning": 99, "Math": 56, "Coding": 42}, "350 rows, but Knowledge 153 of 154"),
        ({"Knowledge": 350}, "350 rows, but Reasoning 0 of 98, Math 0 of 56, Coding 0 of 42"),
        ({"Knowledge": 200, "Reasoning": 50, "Math": 10, "Coding": 10}, None),
        ({"Knowledge": 270}, "270 rows, but Reasoning 0 of 1, Math 0 of 1, Coding 0 of 1"),
        ({"Knowledge": 154, "Reasoning": 98, "Math": 56, None: 42}, "Coding 0 of 42, 42 rows of no source that it has"),
    ],
)
def test_judgebench_is_complete_as_either_of_its_sets_or_both(counts, text):
    found = missing_of("judgebench", counts)
    assert found == text or (text and text in found)


def test_ppe_needs_its_five_sets_whatever_their_size():
    counts = dict.fromkeys(suites.PPE_SETS, 3)
    assert missing_of("ppe-correctness", counts) is None
    del counts["GPQA"], counts["MATH"]
    assert missing_of("ppe-correctness", counts) == "3 of 5 sets: MATH, GPQA missing"


@pytest.mark.parametrize("kind", ["pairs", "best-of-n", "rewardmath", "rmb", "ppe-human"])
def test_kinds_of_no_fixed_size_are_never_incomplete(kind):
    assert missing_of(kind, {None: 1}) is None
