"""The scores of a benchmark, one line a row: what every figure is computed from."""

import contextlib
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from plaudit.converters import is_unicode
from plaudit.values import shown

Key = tuple[str, str | None, str]
_NUMBERS = {float, int}
# What a reward that is not finite is: an error, or, as in the benchmarks' own code, one that beats and ties with nothing.
NONFINITE = ("error", "official")


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One row of a benchmark: a reward and a label for each candidate, the label 1 where the candidate is right.

    tokens: each candidate's length in tokens. extra: what else the figures need; all of these may be missing:
    `characters` (each answer's length), `truncated` (each candidate's, true or false), `identical` (two candidates of
    different labels are the same text), `identical_when_cut` (are so once cut), `template_missing`, `kind`, `prompt` (a hash: rows of one prompt are
    resampled together) and the benchmark's own columns (`sampled_conflict_pairs`, `winner`, `models`, `label`).
    """

    benchmark: str
    id: str
    subset: str | None
    rewards: Sequence[float]
    labels: Sequence[int]
    tokens: Sequence[int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What a row is known by: ids repeat across subsets."""
        return self.benchmark, self.subset, self.id

    @property
    def where(self) -> str:
        """The row as a message names it."""
        subset = "" if self.subset is None else f" of subset {self.subset!r}"
        return f"benchmark {self.benchmark!r}, row {self.id!r}{subset}"


def read_rows(path: str | os.PathLike[str], *, benchmark: str = "", on_nonfinite: str = "error") -> list[ScoredRow]:
    """Return the rows of a JSONL file of scores (.gz too), checked.

    benchmark: the name of rows that have none. on_nonfinite: "official" lets NaN and infinities pass, and null as NaN.
    Raises ValueError naming file, line, field, value and cure.
    """
    check_choice("on_nonfinite", on_nonfinite, NONFINITE)
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of scores; give the scores.jsonl of an evaluation")
    rows: list[ScoredRow] = []
    lines: dict[Key, int] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = _row(_json(line), benchmark, on_nonfinite == "official")
            if row.key in lines:
                raise ValueError(
                    f"'id' {row.id!r} is also that of line {lines[row.key]} (benchmark {row.benchmark!r}, subset "
                    f"{row.subset!r}); score each row once, or give the rows different ids"
                )
        except ValueError as problem:
            raise ValueError(f"{path}, line {number}: {problem}") from None
        lines[row.key] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file has no rows; give a file of scores, one JSON object a line")
    return rows


def write_rows(path: str | os.PathLike[str], rows: Iterable[ScoredRow]) -> None:
    """Write rows as JSONL (.gz too), rewards at full precision; the file appears whole or not at all."""
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    with written_whole(path) as aside, opened(aside, "wt", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which is at `path` once it is whole, and not before."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _line(row: ScoredRow) -> str:
    record = {
        "benchmark": row.benchmark,
        "id": row.id,
        "subset": row.subset,
        "rewards": [float(reward) for reward in row.rewards],
        "labels": [int(label) for label in row.labels],
        "tokens": None if row.tokens is None else [int(count) for count in row.tokens],
        "extra": dict(row.extra),
    }
    line = json.dumps(record, ensure_ascii=False)
    # Half of a surrogate pair is only to be had escaped.
    return (line if is_unicode(line) else json.dumps(record)) + "\n"


def _lines(path: Path) -> Iterable[str]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            yield from file
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as problem:
        raise ValueError(f"{path}: cannot be read as text ({problem}); give JSONL, one object a line") from None


def _json(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as problem:
        raise ValueError(f"no JSON ({problem.msg} at column {problem.colno}); write one JSON object a line") from None
    except RecursionError:
        raise ValueError("JSON of too many levels; write one flat object a line") from None
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, not {shown(record)}; write one object a line")
    return record


def _row(record: dict[str, Any], benchmark: str, lets_nonfinite: bool) -> ScoredRow:
    for name in ("id", "rewards", "labels"):
        if record.get(name) is None:
            raise ValueError(f"{name!r} is missing; a row of scores has 'id', 'rewards' and 'labels'")
    for column in ("benchmark", "subset"):
        if not isinstance(record.get(column), (str, type(None))):
            raise ValueError(f"{column!r} must be text or null, not {shown(record[column])}; mend the line")
    if isinstance(record["id"], bool) or not isinstance(record["id"], (str, int)):
        raise ValueError(f"'id' must be text or an integer, not {shown(record['id'])}; mend the line")
    rewards = _rewards(record["rewards"], lets_nonfinite)
    extra = record.get("extra")
    if extra is not None and not isinstance(extra, dict):
        raise ValueError(f"'extra' must be an object or null, not {shown(extra)}; mend the line")
    return ScoredRow(
        benchmark if record.get("benchmark") is None else record["benchmark"],
        str(record["id"]),
        record.get("subset"),
        rewards,
        _labels(record["labels"], len(rewards)),
        _tokens(record.get("tokens"), len(rewards)),
        extra or {},
    )


def _rewards(value: Any, lets_nonfinite: bool) -> list[float]:
    if not isinstance(value, list):
        raise ValueError(f"'rewards' must be a list of numbers, not {shown(value)}; mend the line")
    if len(value) < 2:
        raise ValueError(f"'rewards' has {len(value)} entries, but nothing can be compared with fewer than two")
    if set(map(type, value)) == {list}:
        # One output a candidate, as a model with one label gives it.
        if set(map(len, value)) != {1}:
            raise ValueError(f"'rewards' must hold one number a candidate, not {shown(value)}; mend the line")
        value = list(chain.from_iterable(value))
    if lets_nonfinite:
        value = [math.nan if number is None else number for number in value]
    if not set(map(type, value)) <= _NUMBERS:
        wrong = next(item for item in value if type(item) not in _NUMBERS)
        raise ValueError(
            f"'rewards' must be finite numbers, but holds {shown(wrong)}; score the row again, or read the file with "
            "on_nonfinite='official' (--on_nonfinite official) where it is null"
        )
    try:
        rewards = list(map(float, value))
    except OverflowError:
        raise ValueError("'rewards' holds an integer that no float can hold; score the row again") from None
    if not lets_nonfinite and not all(map(math.isfinite, rewards)):
        wrong = next(number for number in rewards if not math.isfinite(number))
        raise ValueError(
            f"'rewards' must be finite numbers, but holds {wrong}; score the row again, or read the file with "
            "on_nonfinite='official' (--on_nonfinite official), where a comparison with it counts as wrong"
        )
    return rewards


def _labels(value: Any, num_candidates: int) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(label, (int, float)) and label in (0, 1) for label in value):
        raise ValueError(f"'labels' must be a list of 0 and 1 (1: right), not {shown(value)}; mend the line")
    if len(value) != num_candidates:
        raise ValueError(f"'labels' has {len(value)} entries for {num_candidates} rewards; give each reward its label")
    return list(map(int, value))


def _tokens(value: Any, num_candidates: int) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(count) is int and count >= 0 for count in value):
        raise ValueError(f"'tokens' must be a list of counts or null, not {shown(value)}; mend the line")
    if len(value) != num_candidates:
        raise ValueError(f"'tokens' has {len(value)} entries for {num_candidates} rewards; give each reward its count")
    return value


def require_unique(rows: Iterable[ScoredRow]) -> None:
    """Raise ValueError, naming it, for a row that is there twice."""
    seen: set[Key] = set()
    for row in rows:
        if row.key in seen:
            raise ValueError(
                f"{row.where}: the row is there twice; score each row once, or give the rows different ids"
            )
        seen.add(row.key)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError for a word that is none of an option's words."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(map(repr, choices))}")
