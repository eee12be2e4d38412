"""Scored rows to results: from a file of scores with no model, written as files, and as text for a terminal."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plaudit import __version__, comparison, figures, report, suites
from plaudit.options import option
from plaudit.readable import one_line
from plaudit.resampling import NUM_RESAMPLES
from plaudit.say import say
from plaudit.score_rows import NONFINITE, ScoredRow, read_rows, written_whole
from plaudit.sheet import own_kind, part_of

ON_NONFINITE = "What a NaN or infinite reward of the file is: an error, or wrong, as the benchmarks' own code has it."
SCORES, RESULTS, MISTAKES = "scores.jsonl", "results.json", "mistakes.jsonl"


def recompute(
    scores: str | os.PathLike[str],
    benchmark: str | Sequence[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    weights: str = "current",
    on_nonfinite: str = "error",
    with_report: bool = True,
) -> dict[str, Any]:
    """Return the results that a file of scores gives, with no model: every number of `evaluate`, by the same functions.

    scores: a scores.jsonl. benchmark: the one or several to compute, in any usual spelling, under which name its results
    go; all that the file holds unless given. "pairs" and "best-of-n" apply to whatever rows there are. output_dir: where
    results.json and, with_report, report.html go. on_nonfinite: as in figures.results_of. Other arguments as in `evaluate`.
    Raises ValueError for a file that cannot be read, and, naming what is there, where it has no rows of the benchmark.
    """
    path = scores_file(scores)
    names = [benchmark] if isinstance(benchmark, str) else list(benchmark or [])
    folder = None if output_dir is None else made_folder(output_dir)
    rows = read_rows(path, on_nonfinite=on_nonfinite)
    options: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    options |= {"weights": weights, "on_nonfinite": on_nonfinite}
    parts = {name: _rows_named(name, rows, path) for name in names} if names else _by_benchmark(rows, _stem(path))
    origin = {
        "scores": path.name,
        "scores_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "plaudit": __version__,
    }
    results = {}
    for name, part in parts.items():
        entry = figures.results_of(part, _kind_asked_for(name, part), **options)
        results[name] = entry | {"provenance": {**origin, "data": {"rows": len(part)}}}
    say_incomplete(results)
    if folder is not None:
        _part_from_older(folder, path, rows)
        write_results(results, folder, with_report)
    return results


def _part_from_older(folder: Path, scores: Path, rows: Sequence[ScoredRow]) -> None:
    """Remove the mistakes that a folder holds of other scores, which a page would show beside these; say what was there."""
    own, mistakes = folder / SCORES, folder / MISTAKES
    others = [SCORES] if own.is_file() and own.read_bytes() != scores.read_bytes() else []
    removed = ""
    if mistakes.is_file() and not _are_of(mistakes, rows):
        mistakes.unlink()
        removed = f"; {MISTAKES}, which was not of these scores, is removed"
    if others or removed:
        kept = f", and {SCORES} there is of another evaluation" if others else ""
        say(f"{folder}: {RESULTS} is now of {scores}{kept}{removed}")


def _are_of(mistakes: Path, rows: Sequence[ScoredRow]) -> bool:
    """Whether a file of mistakes was made of these rows: each is there with the same rewards."""
    rewards = {row.key: list(row.rewards) for row in rows}
    try:
        found = [json.loads(line) for line in mistakes.read_text(encoding="utf-8").split("\n") if line]
        keys = [(one["benchmark"], one["subset"], one["id"]) for one in found]
        given = [[side["reward"] for side in one["candidates"]] for one in found]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return all(rewards.get(key) == values for key, values in zip(keys, given, strict=True))


def scores_file(place: str | os.PathLike[str]) -> Path:
    """Return the file of scores at a path, which may also be that of a directory of results."""
    path = Path(place).expanduser()
    return path / SCORES if path.is_dir() else path


# Which rows of a file of scores are a benchmark's.


def _rows_named(name: str, rows: Sequence[ScoredRow], path: Path) -> list[ScoredRow]:
    """Return the rows that a name means: those of that very name, else of that kind; and those without any name."""
    kind = suites.kind_of(name)
    is_meant = [row.benchmark == name for row in rows]
    if not any(is_meant) and kind is not None:
        is_meant = [kind in (suites.kind_of(row.benchmark), own_kind(row)) for row in rows]
        one_set = suites.canonical_subset(kind, name) if kind == "ppe-correctness" else None
        if one_set is not None:
            is_meant = [meant and part_of(kind, row) == one_set for meant, row in zip(is_meant, rows, strict=True)]
    found = [row for row, meant in zip(rows, is_meant, strict=True) if meant or not row.benchmark]
    if not found and kind in suites.GENERIC:
        found = list(rows)
    if not found:
        there = ", ".join(repr(each) for each in dict.fromkeys(row.benchmark for row in rows))
        raise ValueError(
            f"{path} has no rows of benchmark {name!r}; it holds {there}; name one of them, or 'pairs' or 'best-of-n' for "
            "figures that suit any rows"
        )
    return found


def _by_benchmark(rows: Sequence[ScoredRow], unnamed: str) -> dict[str, list[ScoredRow]]:
    parts: dict[str, list[ScoredRow]] = {}
    for row in rows:
        parts.setdefault(row.benchmark or unnamed, []).append(row)
    return parts


def _kind_asked_for(name: str, rows: Sequence[ScoredRow]) -> str | None:
    """Return which figures apply: of rows of this very name as they say themselves, else by the name; None for neither."""
    told = next((row.extra["kind"] for row in rows if row.benchmark == name and "kind" in row.extra), None)
    return suites.kind_of(name) if told is None else told


def _stem(path: Path) -> str:
    return re.sub(r"(\.jsonl|\.json)?(\.gz)?$", "", path.name)


def _run_name(path: Path) -> str:
    """Return what a file of scores is called in a comparison: of those that evaluations leave, their folder."""
    return path.resolve().parent.name if path.name == SCORES else _stem(path)


def flat_figures(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of one benchmark's results by short names, for a trainer's log.

    `accuracy` (the official figure) and `half_credit` are over the rows that there are; `overall` is there only where
    the benchmark is complete. Then a figure each for its sections and subsets, such as `chat_hard`, and the benchmark's
    other numbers, such as `mrr`.
    """
    overall = entry.get("overall")
    whole = overall or entry.get("of_given") or {}
    found: dict[str, Any] = {"accuracy": whole.get("official"), "half_credit": whole.get("half_credit")}
    if overall:
        found["overall"] = overall.get("official")
    for group in ("sections", "subsets"):
        for name, part in (entry.get(group) or {}).items():
            found.setdefault(snake(name), part.get("official") if isinstance(part, Mapping) else part)
    for name, value in (entry.get("figures") or {}).items():
        found.setdefault(snake(name), value)
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def snake(name: str) -> str:
    """Return a name as figures are logged under: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


# What is written.


def made_folder(output_dir: str | os.PathLike[str]) -> Path:
    """Return a directory that is there to be written to. ValueError, before anything is scored, where it cannot be."""
    folder = Path(output_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {str(folder)!r} is a file; name a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Asking for the right to write is not enough: a disk may be mounted for reading alone.
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as problem:
        raise ValueError(
            f"output_dir {str(folder)!r} cannot be written to ({problem.strerror}); name another directory"
        ) from None


def say_incomplete(results: Mapping[str, Any]) -> None:
    """Say once of each incomplete benchmark what it lacks."""
    for name, entry in results.items():
        if entry.get("incomplete"):
            say(f"benchmark {name!r} is incomplete, so it gets no overall figure: {entry['incomplete']}", once=True)


def write_results(results: Mapping[str, Any], folder: Path, with_report: bool) -> None:
    """Write results.json and, with_report, report.html."""
    _write_json(folder / RESULTS, results)
    # One of older results would pass for the page of these where none can be made.
    (folder / report.PAGE).unlink(missing_ok=True)
    if with_report:
        report.try_report(folder)


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write a JSONL file that is complete or absent."""
    _write(path, "".join(json.dumps(value, ensure_ascii=False, default=str) + "\n" for value in values))


def _write(path: Path, text: str) -> None:
    with written_whole(path) as aside:
        # Half a surrogate pair, which JSON may hold and UTF-8 may not, is written as JSON's escape for it.
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def describe(results: Mapping[str, Any]) -> str:
    """Return results as text for a terminal: per benchmark a table of its figures, and what to know of them."""
    return "\n\n".join(_described(name, entry) for name, entry in results.items())


def _described(name: str, entry: Mapping[str, Any]) -> str:
    baselines = entry.get("baselines") or {}
    longer, whole = baselines.get("overall") or {}, entry.get("overall")
    lines: list[tuple[str, ...]] = [("", "official", "95 % interval", "half credit", "rows", "ties", "longer wins")]
    if whole:
        lines.append(_line("overall", whole, longer))
    elif entry.get("of_given"):
        lines.append(_line("of what is given", entry["of_given"], longer))
    sections, subsets = entry.get("sections") or {}, entry.get("subsets") or {}
    # A section of one subset of its name is one line.
    for part, value in [*sections.items(), *((part, value) for part, value in subsets.items() if part not in sections)]:
        if value is not None:
            lines.append(_line(part, value, (baselines.get("subsets") or {}).get(part) or {}))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    return "\n".join(
        [f"{one_line(name)} ({entry.get('kind')})", *(f"  {line}".rstrip() for line in table), *_remarks(entry)]
    )


def _line(name: str, figure: Mapping[str, Any], baselines: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = figure.get("interval") or (None, None)
    interval = "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"
    counts = ["" if figure.get(key) is None else f"{figure[key]:,}" for key in ("n", "ties")]
    shares = [_percent(figure.get("official")), interval, _percent(figure.get("half_credit"))]
    # A name is data: one with line breaks or codes for a terminal stays a name.
    return one_line(name, 60), *shares, *counts, _percent(baselines.get("longer_wins"))


def _percent(share: Any) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _remarks(entry: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the table has to know: what is missing, cut, identical or not finite."""
    counts = entry.get("counts") or {}
    what = {
        "n_truncated": "rows with a sequence that was cut",
        "n_identical_texts": "rows with the same text as right and as wrong answer",
        "n_nonfinite": "rows with a reward that is not finite",
        "n_template_missing": "rows scored without a chat template",
    }
    found = [
        f"{counts[key]:,} {words if counts[key] != 1 else words.replace('rows', 'row', 1)}"
        for key, words in what.items()
        if counts.get(key)
    ]
    remarks = [f"  no overall figure: {entry['incomplete']}"] if entry.get("incomplete") else []
    return remarks + ([f"  note: {'; '.join(found)}"] if found else [])


@dataclass(frozen=True)
class Comparing:
    """Which files of scores are compared; the options of `plaudit compare`."""

    first: str = field(
        metadata={"help": "The first scores.jsonl, or its directory.", "positional": True, "metavar": "A"}
    )
    second: str = field(
        metadata={"help": "The second; differences are the first minus the second.", "positional": True, "metavar": "B"}
    )
    output_dir: str | None = option("Where comparison.json and comparison.html go; nowhere unless given.")
    num_resamples: int = option("Resamples of the paired bootstrap.", NUM_RESAMPLES)
    seed: int = option("Of the bootstrap.", 0)
    on_nonfinite: str = option(ON_NONFINITE, "error", choices=NONFINITE)


def compare_files(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    on_nonfinite: str = "error",
) -> dict[str, Any]:
    """Return how two files of scores differ, as `comparison.compare` does; with output_dir, also as a file and a page."""
    one, other = scores_file(first), scores_file(second)
    names = _run_name(one), _run_name(other)
    folder = None if output_dir is None else made_folder(output_dir)
    rows_one, rows_other = (read_rows(path, benchmark="unnamed", on_nonfinite=on_nonfinite) for path in (one, other))
    options: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed, "on_nonfinite": on_nonfinite}
    found = comparison.compare(rows_one, rows_other, names, **options)
    if folder is not None:
        _write_json(folder / "comparison.json", found)
        try:
            report.write_comparison(found, folder / report.COMPARISON_PAGE)
        except ImportError as error:
            say(f"no page of the comparison: {error}")
    return found
