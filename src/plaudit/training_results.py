"""What a training's last evaluations found, as a directory of results: scored rows, figures, the worst mistakes, the page."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from plaudit import caches, evaluation, schemas, setup, tokens
from plaudit.benchmarks import Benchmark, benchmark_of
from plaudit.formats import DROPPED
from plaudit.prepare import ORIGINS, SIDES, pair_lengths
from plaudit.proof import library_versions
from plaudit.schemas import BenchmarkRow
from plaudit.score_rows import ScoredRow
from plaudit.sequences import Scores, scored_rows


def write_training_results(
    trainer: Any, output_dir: str | os.PathLike[str], with_report: bool = True, name: str = "eval"
) -> dict[str, Any]:
    """Write scores.jsonl, mistakes.jsonl, results.json and report.html of a trainer's newest evaluations; return the results.

    name: what the one evaluation set without a name is called. The trainer must have evaluated; of several processes, the
    first one writes.
    """
    sets, rows = [], {}
    tokenizer = setup.tokenizer_of(trainer.processing_class)
    for prefix, (prepared, rewards) in trainer.newest_rewards.items():
        if prepared is None or prepared is not _own_set(trainer, prefix):
            continue  # a prediction, or an evaluation of other data
        called = prefix.removeprefix("eval_") if prefix != "eval" else name
        one, lengths = _as_benchmark(called, trainer.raw_eval_sets[prefix], prepared, tokenizer)
        sets.append(one)
        rows[one.name] = _rows(one, lengths, rewards)
    if trainer.BENCHMARKS in trainer.newest_rewards:
        sets += trainer.benchmark_sets.benchmarks
        rows |= trainer.benchmark_sets.rows(trainer.newest_rewards[trainer.BENCHMARKS][1])
    return evaluation.conclude(sets, rows, _made_by(trainer, tokenizer), Path(output_dir), with_report=with_report)


def _own_set(trainer: Any, prefix: str) -> Any:
    """Return the prepared evaluation set that is evaluated under a prefix, None where there is none."""
    sets = trainer.eval_dataset
    return sets.get(prefix.removeprefix("eval_")) if isinstance(sets, dict) else sets if prefix == "eval" else None


def _as_benchmark(name: str, raw: Any, prepared: Any, tokenizer: Any) -> tuple[Benchmark, np.ndarray | None]:
    """Return an evaluation set as a benchmark of pairs that holds those that were scored, and their lengths in tokens.

    raw: what the user gave; prepared: its pairs as token ids, which are decoded where the rows cannot be looked up.
    """
    origins = getattr(prepared, ORIGINS, None)
    lengths = pair_lengths(prepared) if isinstance(prepared, Dataset) else None
    if origins is None or raw.format["type"] == "custom":
        rows = list(_decoded(prepared, tokenizer))
        return Benchmark(name, "pairs", rows, {"rows": len(rows)}), lengths
    if DROPPED in raw.column_names:
        with caches.beside(raw):
            raw = raw.filter(lambda reason: reason is None, input_columns=DROPPED).remove_columns(DROPPED)
    whole = benchmark_of(raw, name, f"evaluation set {name!r}")
    rows = [whole.rows[place] for place in origins.places]
    if tokenizer is not None and isinstance(rows[0].answers[0][0], int):
        rows = [replace(row, answers=tokenizer.batch_decode(row.answers)) for row in rows]
    left_out = {"rows_left_out": len(whole.rows) - len(rows)}
    return Benchmark(name, "pairs", rows, {**whole.provenance, "rows": len(rows), **left_out}), lengths


def _decoded(prepared: Any, tokenizer: Any) -> Iterator[BenchmarkRow]:
    """Give prepared pairs as text again, or as token ids where there is no tokenizer."""
    for number, pair in enumerate(prepared):
        ids = [pair[side] for side in SIDES]
        yield BenchmarkRow(str(number), None, None, ids if tokenizer is None else tokenizer.batch_decode(ids), [1, 0])


def _rows(one: Benchmark, lengths: np.ndarray | None, rewards: np.ndarray) -> list[ScoredRow]:
    places = [[2 * number, 2 * number + 1] for number in range(len(one.rows))]
    counts = None if lengths is None else lengths.reshape(-1).tolist()
    return scored_rows(one, places, Scores(rewards.reshape(-1).astype(float).tolist(), counts))


def _made_by(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Return what a reader needs to know of how the rewards were made."""
    template = getattr(tokenizer, "chat_template", None)
    timed = [entry for entry in trainer.state.log_history if "eval_num_tokens" in entry][-1:]
    seconds = sum(entry["eval_runtime"] for entry in timed)
    return {
        "model": os.path.basename(os.path.normpath(trainer.args.output_dir)),
        "tokenizer_fingerprint": tokenizer and schemas.digest([tokens.fingerprint(tokenizer)]),
        "template_sha256": schemas.digest(str(template)) if template else None,
        "dtype": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
        "mixed_precision": trainer.accelerator.mixed_precision,
        "max_length": trainer.args.max_length,
        "optimizer_steps": trainer.state.global_step,
        "seconds": seconds or None,
        "tokens_per_second": timed[0]["eval_num_tokens"] / seconds if seconds else None,
        "versions": library_versions(),
    }
