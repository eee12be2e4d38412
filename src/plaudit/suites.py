"""What each benchmark consists of: names and their spellings, subsets, sections, weights and row counts; plain data."""

import re
from collections.abc import Mapping

# The kinds that are no benchmark of their own: their figures suit whatever rows there are.
GENERIC = ("best-of-n", "pairs")
KINDS = (
    "rewardbench",
    "rewardbench2",
    "rm-bench",
    "judgebench",
    "ppe-correctness",
    "ppe-human",
    "rmb",
    "rewardmath",
    *GENERIC,
)

# RewardBench: the subsets of each section with their rows in the `filtered` split.
REWARDBENCH = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 447,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
# Where a subset's weight in its section is not its number of rows. The older papers had the two xstest sets exchanged.
REWARDBENCH_WEIGHTS: dict[str, dict[str, float]] = {
    "current": {"math-prm": 984},
    "pre-2024-09-10": {"math-prm": 984, "xstest-should-refuse": 250, "xstest-should-respond": 154},
}
# The preference test sets that older tables count as a fifth section, with half the weight of the others.
REWARDBENCH_PRIOR = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")

REWARDBENCH2 = {"Factuality": 475, "Focus": 495, "Math": 183, "Precise IF": 160, "Safety": 450, "Ties": 102}

# Published RM-Bench scores are whole numbers of comparisons for exactly these counts; safety is refuse and response.
RM_BENCH = {"chat": 129, "math": 529, "code": 228, "safety": 441}
RM_BENCH_STYLES = ("concise", "detailed plain", "detailed markdown")

# JudgeBench: the category by the start of `source`; its rows in the set of GPT-4o's answers; those of Claude's in all.
JUDGEBENCH_SOURCES = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
JUDGEBENCH_GPT = {"Knowledge": 154, "Reasoning": 98, "Math": 56, "Coding": 42}
JUDGEBENCH_CLAUDE = 270

PPE_SETS = ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")


def plain_spelling(text: str) -> str:
    """Return a name without case, dashes, underscores, slashes, dots and spaces: what two spellings have in common."""
    return re.sub(r"[-_/.\s]+", "", text.lower())


_PPE_NAMES = {plain_spelling(name): name for name in PPE_SETS} | {"mbpp": "MBPP-Plus", "mmlu": "MMLU-Pro"}
_SPELLINGS = {
    **dict.fromkeys(("rewardbench", "rewardbench1", "rewardbenchv1"), "rewardbench"),
    **dict.fromkeys(("rewardbench2", "rewardbenchv2"), "rewardbench2"),
    "rmbench": "rm-bench",
    **dict.fromkeys(
        ("judgebench", "judgebenchgpt", "judgebenchgpt4o", "judgebenchclaude", "judgebenchclaude35sonnet"), "judgebench"
    ),
    **dict.fromkeys(("ppe", "ppecorrectness", "ppebestofk"), "ppe-correctness"),
    **{
        spelling: "ppe-correctness"
        for name in map(plain_spelling, PPE_SETS)
        for spelling in (f"ppe{name}", f"ppe{name}bestofk", f"{name}bestofk", f"ppecorrectness{name}")
    },
    **dict.fromkeys(
        ("ppehuman", "ppehumanpreference", "ppehumanpreferencev1", "humanpreferencev1", "ppepreference"), "ppe-human"
    ),
    **dict.fromkeys(("rmb", "rmbpairs", "rmbpairwise", "rmbbon", "rmbbestofn", "rmbrewardmodelbenchmark"), "rmb"),
    **dict.fromkeys(("rewardmath", "rewardmathbench"), "rewardmath"),
    **dict.fromkeys(("bestofn", "bon", "bestofk"), "best-of-n"),
    **dict.fromkeys(("pairs", "pair", "plain", "plainpairs", "pairwise", "preferences"), "pairs"),
}


def kind_of(name: str) -> str | None:
    """Return the kind of benchmark that a name means in any usual spelling, with or without its Hub owner, or None."""
    # A trailing slash is a folder's, not an owner's.
    last = name.rstrip("/").rpartition("/")[2]
    return _SPELLINGS.get(plain_spelling(name)) or _SPELLINGS.get(plain_spelling(last))


def canonical_subset(kind: str, name: str | None) -> str | None:
    """Return the benchmark's own name of the part that a row's subset belongs to; None where it has no such part.

    RewardBench and RewardBench 2: the subset. RM-Bench: the domain, safety-refuse and safety-response being safety.
    JudgeBench: the category, from `source`, from the category's name or from its first letter. PPE correctness: the set.
    """
    if name is None:
        return None
    plain = plain_spelling(name)
    if kind == "judgebench":
        return _judgebench_category(plain)
    if kind == "rm-bench" and plain.startswith("safety"):
        return "safety"
    if kind == "ppe-correctness":
        return _ppe_set(plain)
    return _PARTS.get(kind, {}).get(plain)


def _judgebench_category(plain: str) -> str | None:
    for start, category in JUDGEBENCH_SOURCES.items():
        if plain.startswith(plain_spelling(start)) or plain in (category.lower(), category[0].lower()):
            return category
    return None


def _ppe_set(plain: str) -> str | None:
    # The name may be a whole benchmark's, as in lmarena-ai/PPE-MATH-Best-of-K.
    core = re.sub(r"^.*ppe(correctness)?|bestofk$", "", plain)
    return _PPE_NAMES.get(core)


_REWARDBENCH_ROWS = {subset: rows for section in REWARDBENCH.values() for subset, rows in section.items()}
_PARTS = {
    "rewardbench": {plain_spelling(name): name for name in (*_REWARDBENCH_ROWS, *REWARDBENCH_PRIOR)},
    "rewardbench2": {plain_spelling(name): name for name in REWARDBENCH2},
    "rm-bench": {plain_spelling(name): name for name in RM_BENCH},
}
_ROWS = {"rewardbench": _REWARDBENCH_ROWS, "rewardbench2": REWARDBENCH2, "rm-bench": RM_BENCH}


def rows_of(kind: str) -> Mapping[str, int]:
    """Return the rows of each part of a complete benchmark; empty for a kind whose size is not fixed."""
    return _ROWS.get(kind, {})


def missing_of(kind: str, counts: Mapping[str | None, int]) -> str | None:
    """Return in words, with numbers, what keeps rows from being the whole benchmark; None where nothing does.

    counts: rows by canonical part; under None the rows of no part that the benchmark has.
    """
    given = sum(counts.values())
    if kind == "ppe-correctness":
        absent = [name for name in PPE_SETS if not counts.get(name)]
        given_sets = f"{len(PPE_SETS) - len(absent)} of {len(PPE_SETS)} sets"
        return f"{given_sets}: {', '.join(absent)} missing" if absent else None
    if kind == "judgebench":
        return _judgebench_missing(counts, given)
    if kind == "rm-bench":
        return _rm_bench_missing(counts, given)
    expected = rows_of(kind)
    if not expected:
        return None
    wrong = [
        f"{name} {counts.get(name, 0):,} of {rows:,}" for name, rows in expected.items() if counts.get(name, 0) != rows
    ]
    prior = sum(counts.get(name, 0) for name in REWARDBENCH_PRIOR)
    others = [f"{counts[None]:,} rows of no subset that it has"] if counts.get(None) else []
    if not (wrong or others):
        return None
    shown = wrong[:6] + ([f"and {len(wrong) - 6} other parts"] if len(wrong) > 6 else []) + others
    return f"{given - prior:,} of {sum(expected.values()):,} rows: {', '.join(shown)}"


def _judgebench_missing(counts: Mapping[str | None, int], given: int) -> str | None:
    gpt, claude = sum(JUDGEBENCH_GPT.values()), JUDGEBENCH_CLAUDE
    if given in (gpt, claude, gpt + claude):
        if counts.get(None) == given:
            # The figure is a mean over rows, whose sources scores need not name.
            return None
        # How many rows of each the other set has is not known.
        fewest = JUDGEBENCH_GPT if given != claude else dict.fromkeys(JUDGEBENCH_GPT, 1)
        wrong = [
            f"{name} {counts.get(name, 0):,} of {rows:,}" for name, rows in fewest.items() if counts.get(name, 0) < rows
        ]
        others = [f"{counts[None]:,} rows of no source that it has"] if counts.get(None) else []
        return f"{given:,} rows, but {', '.join(wrong + others)}" if wrong or others else None
    return (
        f"{given:,} rows, where the set of GPT-4o's answers has {gpt}, that of Claude's {claude}, and both have "
        f"{gpt + claude}"
    )


def _rm_bench_missing(counts: Mapping[str | None, int], given: int) -> str | None:
    expected = sum(RM_BENCH.values())
    if given == expected and not counts.get(None) and all(counts.get(name) for name in RM_BENCH):
        return None
    parts = [f"{name} {counts.get(name, 0):,} of {rows:,}" for name, rows in RM_BENCH.items()]
    others = [f"{counts[None]:,} rows of no domain that it has"] if counts.get(None) else []
    return f"{given:,} of {expected:,} rows: {', '.join(parts + others)}"
