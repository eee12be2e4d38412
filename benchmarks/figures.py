"""How long figures take from scored rows alone: process time of reading and of everything that results.json holds."""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plaudit import suites
from plaudit.comparison import compare, describe
from plaudit.figures import results_of
from plaudit.score_rows import ScoredRow, read_rows, write_rows


def pair_rows(generator: np.random.Generator, name: str, counts: dict[str, int]) -> list[ScoredRow]:
    rows = []
    for subset, count in counts.items():
        for number, rewards in enumerate(generator.normal((1.0, 0.0), 1.2, (count, 2)).tolist()):
            lengths = generator.integers(50, 3000, 2).tolist()
            rows.append(ScoredRow(name, str(number), subset, rewards, [1, 0], lengths, {"characters": lengths}))
    return rows


def choice_rows(generator: np.random.Generator, name: str, num_rows: int, num_candidates: int) -> list[ScoredRow]:
    rewards = np.round(generator.normal(0, 1, (num_rows, num_candidates)), 3).tolist()
    labels = [1] + [0] * (num_candidates - 1)
    return [ScoredRow(name, str(number), None, one, labels) for number, one in enumerate(rewards)]


def ppe_rows(generator: np.random.Generator, rows_per_set: int = 512, num_candidates: int = 32) -> list[ScoredRow]:
    rows = []
    for name in suites.PPE_SETS:
        for number in range(rows_per_set):
            labels = (generator.random(num_candidates) < generator.beta(1, 1)).astype(int)
            labels[:2] = 0, 1
            rewards = (generator.normal(0, 1, num_candidates) + 0.5 * labels).tolist()
            right, wrong = np.flatnonzero(labels), np.flatnonzero(labels == 0)
            pairs = np.stack([generator.choice(right, 5), generator.choice(wrong, 5)], axis=1).tolist()
            extra = {"sampled_conflict_pairs": pairs}
            rows.append(ScoredRow("ppe-correctness", str(number), name, rewards, labels.tolist(), None, extra))
    return rows


def rm_bench_rows(generator: np.random.Generator) -> list[ScoredRow]:
    return [
        ScoredRow("rm-bench", str(number), name, rewards, [1, 1, 1, 0, 0, 0])
        for name, count in suites.RM_BENCH.items()
        for number, rewards in enumerate(generator.normal((0.6, 0.6, 0.6, 0, 0, 0), 1.0, (count, 6)).tolist())
    ]


def timed(name: str, function: Callable[[], object]) -> object:
    start = time.process_time()
    result = function()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<52}{time.process_time() - start:8.3f} s   peak so far {memory:5.0f} MiB")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_resamples", type=int, default=10_000)
    num_resamples = parser.parse_args().num_resamples
    generator = np.random.default_rng(0)
    pairs = pair_rows(generator, "pairs", {"one": 1500, "two": 1500})
    results_of(pairs[:10], "pairs")  # what NumPy loads on first use is not the figures' time
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("3,000 pairs", pairs), ("480 x 10", choice_rows(generator, "rewardmath", 480, 10))):
            path = Path(folder) / "scores.jsonl"
            timed(f"write {name}", lambda path=path, rows=rows: write_rows(path, rows))
            timed(f"read {name}", lambda path=path: read_rows(path))
            timed(f"figures of {name}", lambda rows=rows: results_of(rows, num_resamples=num_resamples))
    bench = {subset: count for section in suites.REWARDBENCH.values() for subset, count in section.items()}
    cases = {
        "RewardBench, 2,985 rows": pair_rows(generator, "rewardbench", bench),
        "RM-Bench, 1,327 rows": rm_bench_rows(generator),
        "PPE correctness, 5 x 512 x 32": ppe_rows(generator),
    }
    for name, rows in cases.items():
        timed(name, lambda rows=rows: results_of(rows, num_resamples=num_resamples))
    others = pair_rows(generator, "rewardbench", bench)
    timed(
        "comparison of two RewardBench files",
        lambda: describe(compare(cases["RewardBench, 2,985 rows"], others, num_resamples=num_resamples)),
    )


if __name__ == "__main__":
    main()
