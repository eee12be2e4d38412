"""A data set of preference pairs looked through before anybody trains on it: its faults, shortcuts, leaks and costs."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from plaudit import census, loading, measures, overlap, sides, tables, token_sample
from plaudit.audit_text import describe, summarise
from plaudit.census import Census
from plaudit.conditions import Condition
from plaudit.options import check_fields, option
from plaudit.overlap import Index
from plaudit.say import say
from plaudit.score_rows import written_whole
from plaudit.sides import Reading
from plaudit.tables import Unreadable

FORMATS = ("text", "json")
BATCH_SIZE = 8
PART_BYTES = 1 << 25
# What the paragraph before a training reads, so that it takes seconds whatever the data's size.
SUMMARY_ROWS, SUMMARY_STREAM_ROWS = 50_000, 1_000


@dataclass(frozen=True)
class Audit:
    """What is audited, beside what, and what makes it fail; the options of `plaudit audit`. ValueError for impossible ones."""

    data: str = option(
        "Pairs: a Hub id, a directory or a file, as for plaudit train.", MISSING, positional=True, metavar="DATA"
    )
    config: str | None = option("Configuration (subset) of the data set.", also="--dataset_config")
    split: str | None = option("Split to audit; the only one, or 'train', unless given.")
    test_split: str | None = option("Split whose prompts are looked for; 'test', where there is one, unless given.")
    test_data: str | None = option("Another data set whose prompts are looked for, instead of a split.")
    benchmarks: tuple[str, ...] | None = option(
        f"Benchmark files whose texts are looked for, by runs of {overlap.WORDS_OF_A_RUN} words.",
        None,
        also="--benchmark",
        nargs="+",
        metavar="FILE",
    )
    tokenizer: str | None = option("Also count in tokens of this model: a directory or a Hub id.", also="--model")
    chat_template: str | None = option("Chat template to count with, as train's chat_template_path.")
    trust_remote_code: bool = option("Run the tokenizer's own Python code.", False)
    max_length: int | None = option("Count what is longer than this, in tokens. Needs a tokenizer, or token ids.")
    batch_size: int = option("Pairs in a batch, for what the layouts cost.", BATCH_SIZE)
    sample: int = option("How many rows to count the tokens of; 0 for all.", 8_000)
    source: str | None = option("Column to count by; 'source', 'subset' or such, where there is one, unless given.")
    threads: int | None = option("Threads; as many as there are processors unless given.")
    fail_on: tuple[str, ...] | None = option(
        "Exit with 1 if one of these holds, such as contradictory, duplicates>1%% or longer_wins>70%%.",
        None,
        nargs="+",
        metavar="CONDITION",
    )
    format: str = option("How to print it.", "text", choices=FORMATS)
    output: str | None = option("File to write it to as JSON, or a directory, for its audit.json.")

    def __post_init__(self) -> None:
        for name in ("benchmarks", "fail_on"):
            value = getattr(self, name)
            if value is None or isinstance(value, (str, list)):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value or ()))
        check_fields(self)
        for name in ("max_length", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be 1 or more")
        if self.sample < 0:
            raise ValueError(f"sample is {self.sample}, but must be a number of rows, or 0 for all")
        if not self.data:
            raise ValueError("no data set is named; give a file, a directory or a Hub id")
        if self.test_data is not None and self.test_split is not None:
            raise ValueError(
                f"test_data {self.test_data!r} and test_split {self.test_split!r} are both given; leave one out"
            )
        # Read here, so that one that makes no sense is an error at once.
        _ = self.conditions

    @property
    def conditions(self) -> list[Condition]:
        """What makes the audit fail."""
        return [Condition.of(text) for text in self.fail_on or ()]


def audit(data: str, **options: Any) -> dict[str, Any]:
    """Return everything found in a data set, as values that JSON can hold. options: the fields of Audit.

    ValueError where the data cannot be read or is in no known form, where it has no pair, or where an option has no
    meaning for it. Shares are 0 to 1; rows are numbered from zero, as in errors; see docs/audit.md for each figure.
    """
    return _audit(Audit(data, **options))


def run(**given: Any) -> tuple[str, int]:
    """Return what `plaudit audit` prints, and its exit code: 1 where a condition of fail_on holds."""
    asked = Audit(**given)
    output = None if asked.output is None else _output_file(asked.output)
    found = _audit(asked)
    failed = [line for condition in asked.conditions for line in condition.lines(found)]
    if asked.conditions:
        found["failed"] = failed
    as_json = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(output) as aside:
            aside.write_text(as_json + "\n", encoding="utf-8")
    text = as_json if asked.format == "json" else "\n".join([describe(found), *(f"failed: {line}" for line in failed)])
    return text, 1 if failed else 0


def _output_file(output: str) -> Path:
    """Return the file to write to; ValueError, before anything is read, where there can be none."""
    path = Path(output).expanduser()
    path = path if path.suffix == ".json" else path / "audit.json"
    there = next(folder for folder in path.resolve().parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(
            f"output {output!r} cannot be written; name a .json file, or a directory that can be written to"
        )
    return path


def summarise_dataset(train: Any, test: Any = None, max_length: int | None = None) -> str:
    """Return one paragraph on data about to be trained on, raw or tokenized, from so many rows that it takes seconds.

    train, test: each a Dataset or an IterableDataset. max_length: in tokens; used where the rows hold token ids. Without
    DuckDB the paragraph says what is missing.
    """
    try:
        return summarise(_summary(train, test, max_length))
    except ImportError as error:
        return f"the data was not looked through: {error}"


def say_summary(train: Any, test: Any, max_length: int | None) -> None:
    """Say the summary before a training, which it never stops. train, test, max_length: as of summarise_dataset."""
    try:
        summary = summarise_dataset(train, test, max_length)
    # The rows are good enough to be trained on, whatever the audit makes of them.
    except Exception as error:
        summary = f"the data was not looked through: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    say(f"audit: {summary}", once=True)


def _summary(train: Any, test: Any, max_length: int | None) -> dict[str, Any]:
    reading = sides.reading_of(train, "train")
    limit = SUMMARY_ROWS if hasattr(train, "__len__") else SUMMARY_STREAM_ROWS
    held = {} if test is None or reading.is_tokenized else {"test": test}
    with Census(_threads(None)) as table:
        with_said = bool(held) and reading.has_prompts
        num_rows = _fill(table, "pairs", tables.tables(train, limit), reading, with_said=with_said)
        found = {"split": "train", **census.figures(table, reading, BATCH_SIZE)}
        whole = len(train) if hasattr(train, "__len__") else None
        if whole is None or whole > num_rows:
            found["of_rows"] = whole
        if with_said:
            test_reading = sides.reading_of(test, "test")
            _fill(table, "tests", tables.tables(test, limit), test_reading, with_said=True)
            found["test_overlap"] = census.overlap(table)
        if reading.is_tokenized and max_length is not None and found["pairs"]:
            found["over"] = census.over(table, max_length, found["pairs"])
    return found


def _threads(threads: int | None) -> int:
    if threads is not None:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _audit(asked: Audit) -> dict[str, Any]:
    """Return the audit, of files read in place, or, where that stumbles, as training reads them, which may say why."""
    try:
        return _audit_rows(asked, in_place=True)
    except Unreadable as error:
        try:
            return _audit_rows(asked, in_place=False)
        except Unreadable:
            raise ValueError(f"data set {asked.data!r} cannot be read: {error}") from error


def _audit_rows(asked: Audit, in_place: bool) -> dict[str, Any]:
    splits = tables.open_rows(asked.data, asked.config, in_place=in_place)
    split = _split_of(asked, splits)
    reading = sides.reading_of(splits[split], split, asked.source)
    tests, test_name = _tests(asked, splits, split, in_place)
    _check(asked, reading, tests is not None)
    index = _index(asked) if asked.benchmarks else None
    parts, sample = tables.tables(splits[split]), None
    if asked.tokenizer is not None:
        tokenizer = token_sample.load_tokenizer(asked.tokenizer, asked.chat_template, asked.trust_remote_code)
        sample = token_sample.Sample(asked.sample or sys.maxsize, asked.batch_size)
        parts = sample.past(parts)
    with Census(_threads(asked.threads)) as table:
        with_said = tests is not None and reading.has_prompts
        _fill(table, "pairs", parts, reading, with_said=with_said, index=index)
        found: dict[str, Any] = {"data": asked.data, "split": split, **census.figures(table, reading, asked.batch_size)}
        if not found["pairs"]:
            problem = found["malformed"]["problem"] or ", ".join(found["dropped"])
            raise ValueError(
                f"data set {asked.data!r}: none of its {found['rows']:,} rows of {split} is a pair ({problem})"
            )
        if with_said:
            _fill(table, "tests", tables.tables(tests), sides.reading_of(tests, test_name), with_said=True)
            found["test_overlap"] = {"test": test_name, **census.overlap(table)}
        if reading.is_tokenized and asked.max_length is not None:
            found["over"] = census.over(table, asked.max_length, found["pairs"])
    if index is not None:
        found["benchmark_overlap"] = index.figures()
    if sample is not None:
        found["tokens"] = {
            "tokenizer": asked.tokenizer,
            **token_sample.figures(sample, reading, tokenizer, asked.max_length),
        }
    return {"summary": summarise(found), **found}


def _split_of(asked: Audit, splits: Mapping[str, Any]) -> str:
    wanted = asked.split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(
            f"data set {asked.data!r} has no split {wanted!r}; found: {', '.join(splits)}; choose with split (--split)"
        )
    return wanted


def _tests(asked: Audit, splits: Mapping[str, Any], split: str, in_place: bool) -> tuple[Any, str]:
    """Return the rows whose prompts are looked for, if there are any, and their name."""
    if asked.test_data is not None:
        others = tables.open_rows(asked.test_data, in_place=in_place)
        name = "test" if "test" in others else next(iter(others))
        return others[name], f"{asked.test_data} {name}"
    name = asked.test_split or "test"
    if asked.test_split is not None and (name not in splits or name == split):
        raise ValueError(
            f"data set {asked.data!r} has no split {name!r} beside {split!r}; found: {', '.join(splits)}; choose with test_split (--test_split)"
        )
    return (splits[name], name) if name in splits and name != split else (None, name)


def _check(asked: Audit, reading: Reading, has_tests: bool) -> None:
    """Raise ValueError, before the rows are read, for what the data has no answer to."""
    ids = reading.is_tokenized
    if asked.max_length is not None and asked.tokenizer is None and not ids:
        raise ValueError(
            f"max_length {asked.max_length} is in tokens, and the rows are texts; give --tokenizer MODEL as well"
        )
    for name in ("tokenizer", "benchmarks"):
        if ids and getattr(asked, name):
            raise ValueError(
                f"{name} {getattr(asked, name)!r} needs texts, but the rows hold token ids; audit the data as it was before"
            )
    if (asked.test_data or asked.test_split) and not reading.has_prompts:
        raise ValueError(
            "the rows have no prompts apart from their answers, so none can be looked for; give them a 'prompt' column, or "
            "leave out test_data and test_split"
        )
    there = {
        "test_overlap": has_tests and reading.has_prompts,
        "benchmark_overlap": bool(asked.benchmarks),
        "over_max_length": asked.max_length is not None,
        "prompts_differ": reading.has_prompts,
        "markdown_wins": not ids,
        "first_word_wins": not ids,
    }
    for condition in asked.conditions:
        if not any(there.get(name, True) for name in condition.figures):
            needs = _NEEDS[condition.figures[0]]
            raise ValueError(f"fail_on {condition.text!r} cannot be judged: it needs {needs}")


_NEEDS = {
    "test_overlap": "a test split or --test_data, and prompts, and benchmarks for an overlap with those",
    "benchmark_overlap": "--benchmarks",
    "over_max_length": "--max_length, with --tokenizer where the rows are texts",
    "prompts_differ": "rows whose prompts can be told from their answers",
    "markdown_wins": "texts, and the rows hold token ids",
    "first_word_wins": "texts, and the rows hold token ids",
}


def _index(asked: Audit) -> Index:
    read, names = [], []
    for path in asked.benchmarks or ():
        stem = Path(path).name or path
        name = path if stem in names else stem
        if name in names:
            raise ValueError(f"benchmark {path!r} is given twice; leave one out")
        names.append(name)
        read.append(overlap.read_benchmark(name, loading.load_splits(path)))
    return Index(read)


def _fill(
    table: Census,
    name: str,
    parts: Iterable[Any],
    reading: Reading,
    *,
    with_said: bool = False,
    index: Index | None = None,
) -> int:
    """Add rows, given as tables, to a table of the census; return how many there were."""
    table.create(name)

    def add(part: Any, first_row: int) -> None:
        batch = sides.batch_of(part, first_row, reading)
        for column in ("prompt_text", "chosen", "rejected") if index is not None else ():
            there = batch.filter(batch[column].is_valid())
            index.look(there[column], there["row"].to_numpy())  # type: ignore[union-attr]
        table.add(name, measures.measured(batch, reading.is_tokenized, with_said))

    count = 0
    with census.workers(table.threads) as submit:
        for part in parts:
            # Long texts go in smaller parts, because what is measured takes several times the texts' size.
            step = max(1, len(part) * PART_BYTES // max(part.nbytes, 1))
            for start in range(0, len(part), step):
                submit(add, part.slice(start, step), count + start)
            count += len(part)
    return count
