"""Any scoring callable over benchmarks: scores first, then results as plain data, and the report."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import figures, suites
from plaudit.benchmarks import Benchmark, load_benchmarks
from plaudit.options import check_fields, option
from plaudit.resampling import NUM_RESAMPLES
from plaudit.results import (
    MISTAKES,
    ON_NONFINITE,
    RESULTS,
    SCORES,
    compare_files,
    describe,
    made_folder,
    recompute,
    say_incomplete,
    write_lines,
    write_results,
)
from plaudit.say import say
from plaudit.scorable import TRUNCATIONS
from plaudit.score_rows import NONFINITE, ScoredRow, write_rows
from plaudit.sequences import score_benchmarks

# With what results.py does without a model.
__all__ = ["Evaluation", "compare_files", "describe", "evaluate", "recompute", "run"]


def evaluate(
    score: Any,
    benchmarks: Any,
    *,
    output_dir: str | os.PathLike[str] | None = None,
    truncation: str = "left",
    max_length: int | None = None,
    template: str | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    weights: str = "current",
    with_report: bool = True,
) -> dict[str, Any]:
    """Return the results of a reward model on benchmarks, as results.json holds them: by name, fractions 0 to 1.

    score: a RewardModel, or a function from a list of conversations (message lists, or texts where rows are plain texts)
    to as many numbers. benchmarks: one or several names, paths, NAME=PATH, or what `benchmarks.load_benchmark` returned.
    output_dir: where scores.jsonl, mistakes.jsonl, results.json and, with_report, report.html go.

    truncation, max_length: of a RewardModel, as in its `score`; "left" keeps the answer. template: "raw" joins a prompt
    and its answer as texts, and a file's name is that of a chat template; the tokenizer's own unless given.
    num_resamples, seed: of the bootstrap. weights: of RewardBench's subsets, as in figures.results_of.

    Raises ValueError for rows that are not as the benchmark says, and naming the row for a reward that is not finite.
    """
    # Before anything is scored, which may take long.
    figures.check_options(num_resamples, seed, weights)
    loaded = load_benchmarks(benchmarks)
    folder = None if output_dir is None else made_folder(output_dir)
    rows, made = score_benchmarks(score, loaded, truncation=truncation, max_length=max_length, template=template)
    options = {"num_resamples": num_resamples, "seed": seed, "weights": weights}
    return conclude(loaded, rows, made, folder, with_report=with_report, **options)


def conclude(
    benchmarks: Sequence[Benchmark],
    rows: Mapping[str, list[ScoredRow]],
    made: Mapping[str, Any],
    folder: Path | None,
    *,
    with_report: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Return the results of rows that are scored, by benchmark; with a folder, write all that belongs there.

    made: what made the rewards, for the reader of the results. options: of figures.results_of.
    """
    if folder is not None:
        if (folder / SCORES).is_file():
            say(f"{folder} held the scores of an earlier evaluation; they are replaced")
        write_rows(folder / SCORES, (row for part in rows.values() for row in part))
        for stale in (RESULTS, MISTAKES):
            # An earlier evaluation's, which are not of these scores.
            (folder / stale).unlink(missing_ok=True)
    found = {}
    for one in benchmarks:
        entry = figures.results_of(rows[one.name], one.kind, **options)
        found[one.name] = entry | {"provenance": {**made, "data": one.provenance}}
    say_incomplete(found)
    if folder is not None:
        write_lines(folder / MISTAKES, _mistakes(benchmarks, rows, found))
        write_results(found, folder, with_report)
    return found


def _mistakes(
    benchmarks: Iterable[Benchmark], rows: Mapping[str, list[ScoredRow]], results: Mapping[str, Any]
) -> Iterable[dict]:
    """Give the rows with the largest wrong margins, with their texts."""
    for one in benchmarks:
        known = {(row.subset, row.id): (row, scored) for row, scored in zip(one.rows, rows[one.name], strict=True)}
        for worst in results[one.name].get("worst") or []:
            row, scored = known[worst["subset"], worst["id"]]
            candidates = zip(row.answers, scored.rewards, scored.labels, strict=True)
            yield {
                "benchmark": one.name,
                "id": row.id,
                "subset": row.subset,
                "margin": worst["margin"],
                "prompt": row.prompt,
                "candidates": [{"text": text, "reward": reward, "label": label} for text, reward, label in candidates],
            }


# The verb.


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated on what; the options of `plaudit evaluate`. ValueError for impossible ones."""

    benchmark: tuple[str, ...] | None = option(
        f"What to evaluate on: files, folders, NAME=PATH, Hub ids, or known names ({', '.join(suites.KINDS)}).",
        nargs="+",
        type=str,
    )
    model: str | None = option("Reward model: a directory or a Hub id.", also="--model_name_or_path")
    scores: str | None = option("Compute everything anew from this scores.jsonl, or its directory, with no model.")
    output_dir: str | None = option("Where scores, results and the report go.")
    revision: str | None = option(
        "Branch, tag or commit of the benchmark on the Hub; recorded at first load otherwise."
    )
    config: str | None = option("Configuration of the benchmark's data set.")
    split: str | None = option("Split of the benchmark's data set; the benchmark's own unless given.")
    format: str | None = option("Record format of plain pairs, as --dataset_format of plaudit train.")
    limit: int | None = option("Use no more rows of each benchmark than this, for a quick try.")
    model_revision: str | None = option("Branch, tag or commit of the model on the Hub.")
    truncation: str = option(
        "What to do with a sequence that is too long; left keeps the answer.", "left", choices=TRUNCATIONS
    )
    max_length: int | None = option("Longest sequence in tokens; the model's own limit unless given.")
    template: str | None = option(
        "File with a chat template, or raw for plain texts; the tokenizer's own unless given."
    )
    device: str | None = option("Where to score, such as cuda:1; chosen by what is there unless given.")
    dtype: str | None = option("Precision of the weights; as they are stored unless given.")
    max_batch_tokens: int | None = option("Tokens computed at a time; by the device unless given.")
    strict: bool = option("Evaluate also a model that does not give its recorded rewards.", True, flag="--no_strict")
    trust_remote_code: bool = option("Run the model's own Python code.", False)
    num_resamples: int = option("Resamples of the bootstrap.", NUM_RESAMPLES)
    seed: int = option("Of the bootstrap.", 0)
    on_nonfinite: str = option(ON_NONFINITE, "error", choices=NONFINITE)
    weights: str = option(
        "Weights of RewardBench's subsets: those of older papers differ.",
        "current",
        choices=tuple(suites.REWARDBENCH_WEIGHTS),
    )
    report: bool = option("Write no report.html.", True, flag="--no_report")

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.model is None) == (self.scores is None):
            raise ValueError("give either a model (--model) to score with, or scores (--scores) that are there already")
        if self.model is not None and not self.benchmark:
            raise ValueError("name at least one benchmark (--benchmark)")
        for name in _OF_MODELS if self.scores is not None else ():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name} ({getattr(self, name)!r}) has no effect on scores that are there already; leave it out"
                )
        if self.scores is None and self.on_nonfinite != "error":
            raise ValueError(
                f"on_nonfinite={self.on_nonfinite!r} is for scores that are there already (--scores); rewards of a model "
                "must be finite; leave it out"
            )
        figures.check_options(self.num_resamples, self.seed, self.weights, self.on_nonfinite)
        for name in ("limit", "max_length", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be 1 or more")

    @property
    def folder(self) -> str | None:
        """Where the output goes: as given; for a model without one, below runs, by its name."""
        if self.output_dir is not None or self.model is None:
            return self.output_dir
        return str(Path("runs") / f"evaluate-{Path(self.model).name or 'model'}")


_OF_MODELS = (
    "revision", "config", "split", "format", "limit", "model_revision", "truncation", "max_length", "template", "device",
    "dtype", "max_batch_tokens", "strict", "trust_remote_code",
)  # fmt: skip


def run(**given: Any) -> dict[str, Any]:
    """Do what the options of `Evaluation` say; return the results."""
    options = Evaluation(**given)
    common = {name: getattr(options, name) for name in ("num_resamples", "seed", "weights")}
    common["with_report"] = options.report
    if options.scores is not None:
        common["on_nonfinite"] = options.on_nonfinite
        return recompute(options.scores, options.benchmark, options.folder, **common)
    # Before the model is loaded, which may take long: what is wrong with the rows comes at once.
    names = ("revision", "config", "split", "format", "limit")
    loaded = load_benchmarks(list(options.benchmark or ()), **{name: getattr(options, name) for name in names})
    from plaudit.scoring import RewardModel

    names = ("device", "dtype", "strict", "trust_remote_code", "max_batch_tokens")
    hub: dict[str, Any] = {} if options.model_revision is None else {"revision": options.model_revision}
    hub |= {name: getattr(options, name) for name in names}
    model = RewardModel.from_pretrained(str(options.model), **hub)
    return evaluate(
        model,
        loaded,
        output_dir=options.folder,
        truncation=options.truncation,
        max_length=options.max_length,
        template=options.template,
        **common,
    )
