"""A data set of preference pairs looked through before anybody trains on it: its faults, shortcuts, leaks and costs."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plaudit import audit_text, census, loading, measures, overlap, sides, tables, token_sample
from plaudit.census import Census
from plaudit.options import did_you_mean, option
from plaudit.overlap import Index
from plaudit.say import say
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

    data: str = field(
        metadata={
            "help": "Pairs: a Hub id, a directory or a file, as for plaudit train.",
            "positional": True,
            "metavar": "DATA",
        }
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
    max_length: int | None = option("Longest sequence in tokens; give what is longer. Needs a tokenizer, or token ids.")
    batch_size: int = option("Pairs in a batch, for what the layouts cost.", BATCH_SIZE)
    sample: int = option("How many rows to count the tokens of; 0 for all.", 8_000)
    source: str | None = option("Column to count by; 'source', 'subset' or such, where there is one, unless given.")
    threads: int | None = option("Threads; as many as there are processors unless given.")
    fail_on: tuple[str, ...] | None = option(
        "Exit with 1 if one of these holds, such as contradictory, duplicates>1%% or longer_wins>70%%.",
        None,
        also="--fail-on",
        nargs="+",
        metavar="CONDITION",
    )
    format: str = option("How to print it.", "text", choices=FORMATS)
    output: str | None = option("File to write it to as JSON, or a directory, for its audit.json.")

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be 1 or more")
        if self.sample < 0:
            raise ValueError(f"sample is {self.sample}, but must be a number of rows, or 0 for all")
        if not self.data:
            raise ValueError("no data set is named; give a file, a directory or a Hub id")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}, but must be one of {', '.join(map(repr, FORMATS))}")
        if self.test_data is not None and self.test_split is not None:
            raise ValueError(
                f"test_data {self.test_data!r} and test_split {self.test_split!r} are both given; leave one out"
            )
        for name in ("benchmarks", "fail_on"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value or ()))
        object.__setattr__(self, "_conditions", [Condition.of(text) for text in self.fail_on or ()])

    @property
    def conditions(self) -> "list[Condition]":
        """What makes the audit fail."""
        return self._conditions  # type: ignore[attr-defined, no-any-return]


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
        output.write_text(as_json + "\n", encoding="utf-8")
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


def describe(found: Mapping[str, Any]) -> str:
    """Return an audit as a text to read, a paragraph first."""
    return audit_text.describe(found)


def summarise(found: Mapping[str, Any]) -> str:
    """Return an audit as one paragraph."""
    return audit_text.summarise(found)


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
        num_rows = _fill(table, "pairs", train, reading, limit=limit, with_said=with_said)
        found = {"split": "train", **census.figures(table, reading, BATCH_SIZE)}
        whole = len(train) if hasattr(train, "__len__") else None
        if whole is None or whole > num_rows:
            found["of_rows"] = whole
        if with_said:
            test_reading = sides.reading_of(test, "test")
            _fill(table, "tests", test, test_reading, limit=limit, with_said=True)
            found["test_overlap"] = census.overlap(table)
        if reading.is_tokenized and max_length is not None and found["pairs"]:
            found["over"] = census.over(table, max_length, found["pairs"])
    return found


def _threads(threads: int | None) -> int:
    return (
        threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or os.cpu_count() or 1
    )


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
    sample = None
    if asked.tokenizer is not None:
        tokenizer = token_sample.load_tokenizer(asked.tokenizer, asked.chat_template)
        sample = token_sample.Sample(asked.sample or 2**62, asked.batch_size)
    with Census(_threads(asked.threads)) as table:
        with_said = tests is not None and reading.has_prompts
        _fill(table, "pairs", splits[split], reading, with_said=with_said, index=index, sample=sample)
        found: dict[str, Any] = {"data": asked.data, "split": split, **census.figures(table, reading, asked.batch_size)}
        if not found["pairs"]:
            problem = found["malformed"]["problem"] or ", ".join(found["dropped"])
            raise ValueError(
                f"data set {asked.data!r}: none of its {found['rows']:,} rows of {split} is a pair ({problem})"
            )
        if with_said:
            _fill(table, "tests", tests, sides.reading_of(tests, test_name), with_said=True)
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
    return found


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
    rows: Any,
    reading: Reading,
    *,
    limit: int | None = None,
    with_said: bool = False,
    index: Index | None = None,
    sample: token_sample.Sample | None = None,
) -> int:
    """Add all rows, or the first so many, to a table of the census; return how many were read."""
    table.create(name)

    def add(part: Any, first_row: int) -> None:
        batch = sides.batch_of(part, first_row, reading)
        for column in ("prompt_text", "chosen", "rejected") if index is not None else ():
            there = batch.filter(batch[column].is_valid())
            index.look(there[column], there["row"].to_numpy())  # type: ignore[union-attr]
        table.add(name, measures.measured(batch, reading.is_tokenized, with_said))

    count, parts = 0, tables.tables(rows)
    with census.workers(table.threads) as submit:
        while limit is None or count < limit:
            part = next(parts, None)
            if part is None:
                break
            part = part if limit is None else part.slice(0, limit - count)
            if sample is not None:
                sample.offer(part, count)
            # Long texts go in smaller parts, because what is measured takes several times the texts' size.
            step = max(1, len(part) * PART_BYTES // max(part.nbytes, 1))
            for start in range(0, len(part), step):
                submit(add, part.slice(start, step), count + start)
            count += len(part)
    return count


COUNTS = (
    "empty",
    "identical",
    "duplicates",
    "contradictory",
    "prompts_differ",
    "malformed",
    "dropped",
    "test_overlap",
    "benchmark_overlap",
    "over_max_length",
)
RULES = ("longer_wins", "shorter_wins", "markdown_wins", "first_word_wins")
GROUPS = {"overlap": ("test_overlap", "benchmark_overlap")}
_COMPARISONS = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}


@dataclass(frozen=True)
class Condition:
    """A condition of fail_on: a figure, a comparison and a bound, a count or a share."""

    text: str
    figures: tuple[str, ...]
    comparison: str
    bound: float
    is_share: bool

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Return a condition from its text, such as 'identical' (any at all) or 'duplicates>1%'; ValueError for others."""
        parsed = re.fullmatch(r"\s*([\w-]+)\s*(?:(>=|<=|>|<)\s*([\d.]+(?:e-?\d+)?)\s*(%?))?\s*", text)
        known = (*COUNTS, *RULES, *GROUPS)
        if parsed is None or (parsed[3] is not None and not re.fullmatch(r"\d+\.?\d*(e-?\d+)?|\.\d+", parsed[3])):
            raise ValueError(
                f"fail_on {text!r} is no condition; write a name, or a name, > or < and a number, such as duplicates>1%"
            )
        name = parsed[1].replace("-", "_")
        if name not in known:
            raise ValueError(
                f"fail_on {text!r}: unknown name {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
            )
        figures = GROUPS.get(name, (name,))
        if parsed[2] is None:
            if name in RULES:
                raise ValueError(f"fail_on {text!r} needs a bound, such as {name}>70%")
            return cls(text, figures, ">", 0.0, False)
        number, is_share = float(parsed[3]), bool(parsed[4]) or name in RULES
        bound = number / 100 if parsed[4] else number
        if is_share and bound > 1:
            raise ValueError(f"fail_on {text!r} asks for a share above 100 %; write a percentage such as {name}>70%")
        if not is_share and not number.is_integer():
            raise ValueError(
                f"fail_on {text!r} asks for a part of a pair; write a whole number, or a percentage such as {name}>1%"
            )
        return cls(text, figures, parsed[2], bound, is_share)

    def lines(self, found: Mapping[str, Any]) -> list[str]:
        """Return a line for each figure of an audit for which the condition holds."""
        return [
            f"{self.text}: {shown}"
            for figure in self.figures
            for value, shown in _values(found, figure, self.is_share)
            if _COMPARISONS[self.comparison](value, self.bound)
        ]


def _values(found: Mapping[str, Any], figure: str, is_share: bool) -> list[tuple[float, str]]:
    """Return what a condition compares, with how it is shown; nothing for what the audit did not look for."""
    if figure in RULES:
        rule = found["baselines"][figure]
        return [(rule["half_credit"], f"{100 * rule['half_credit']:.2f} % of {rule['n']:,} pairs, ties as half")]
    places = [(name, one["count"], one["share"], one.get("rows", [])) for name, one in _counted(found, figure)]
    return [
        (share if is_share else count, f"{count:,} ({100 * share:.2f} %){' ' + name if name else ''}{_rows(rows)}")
        for name, count, share, rows in places
    ]


def _rows(rows: Sequence[int]) -> str:
    return f", first in row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:5]))}" if rows else ""


def _counted(found: Mapping[str, Any], figure: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the counts of a figure, each with the name of what it is in where there may be several."""
    if figure == "malformed":
        return [("", found["malformed"])]
    if figure == "dropped":
        count = sum(found["dropped"].values())
        return [("", {"count": count, "share": count / (count + found["pairs"])})]
    if figure == "test_overlap":
        return [("test prompts", found["test_overlap"]["prompts"])] if "test_overlap" in found else []
    if figure == "benchmark_overlap":
        return [
            (f"rows of {name}", {"count": one["rows_found"], "share": one["rows_share"]})
            for name, one in found.get("benchmark_overlap", {}).items()
        ]
    if figure == "over_max_length":
        return [("", (found.get("over") or found["tokens"]["over"])["pairs"])]
    return [("", found["faults"][figure])]
