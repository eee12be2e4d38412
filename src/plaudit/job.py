"""A scoring job: what is scored, with what, where it goes, and whose the files are that are there."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from plaudit import loading
from plaudit.options import check_fields, option
from plaudit.scorable import BAD_ROWS, TRUNCATIONS
from plaudit.values import brief, finite_number

FORMATS = ("jsonl", "parquet")
# Of a file of a job's own that cannot be read.
CURE = "give --overwrite to begin anew, or name another output"
# What decides the rows that are written; the model's fingerprint and the data's are added.
DECISIVE = ("config", "split", "truncation", "max_length", "normalise", "keep", "bad_rows", "dtype", "rows_per_part")


@dataclass(frozen=True)
class Job:
    """What is scored, with what, and where it goes; the options of `plaudit score`. ValueError for impossible ones."""

    model: str = field(metadata={"help": "Reward model: a directory or a Hub id.", "also": "--model_name_or_path"})
    data: str = field(
        metadata={"help": "Rows: a Hub id, a directory or a file, as for plaudit train.", "also": "--dataset_name"}
    )
    output: str = field(metadata={"help": "A .jsonl or .parquet file, or a directory that the parts stay in."})
    config: str | None = option("Configuration (subset) of the data set.", also="--dataset_config")
    split: str | None = option("Split to score; the only one, or 'train', unless given.")
    format: str | None = option("Form of the parts in a directory; jsonl unless given.", choices=FORMATS)
    truncation: str = option("What to do with a sequence that is too long.", "error", choices=TRUNCATIONS)
    max_length: int | None = option("Longest sequence in tokens; the model's own limit unless given.")
    normalise: bool = option("Write rewards normalised by the mean and scale in the model's record.", False)
    keep: str | float | None = option(
        "Keep each row's best answer (top1), or what reaches a reward, or for pairs a margin, of X (threshold X).",
        nargs="+",
        metavar=("top1 | threshold", "X"),
    )
    bad_rows: str = option(
        "What to do with a row that cannot be scored: stop, or write null.", "error", choices=BAD_ROWS
    )
    shard: str = option("Score one of n shards, for n machines, as i/n; i counts from 0.", "0/1")
    num_processes: int = option("Processes, each with a model of its own, on as many GPUs as there are.", 1)
    rows_per_part: int = option("Rows that are scored and kept together: at most these are scored twice.", 1000)
    device: str | None = option("Where to score, such as cuda:1; chosen by what is there unless given.")
    max_batch_tokens: int | None = option("Tokens computed at a time; by the device unless given.")
    dtype: str | None = option("Precision of the weights; as they are stored unless given.")
    strict: bool = option(
        "Score also with a model that does not give its recorded rewards.",
        True,
        flag="--no_strict",
    )
    trust_remote_code: bool = option("Run the model's own Python code.", False)
    overwrite: bool = option("Begin anew, without what an earlier start has left at the output.", False)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_processes", "rows_per_part", "max_length", "max_batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be 1 or more")
        if self.keep not in (None, "top1") and finite_number(self.keep) is None:
            raise ValueError(f"keep is {brief(self.keep)}, but must be 'top1' or a number, the least reward")
        parsed = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if parsed is None or int(parsed[1]) >= int(parsed[2]):
            raise ValueError(
                f"shard is {self.shard!r}, but must be i/n with i from 0 to n-1: shards count from 0, so that the last of 4 is 3/4"
            )
        suffix = self.path.suffix
        if suffix.lower() in {*loading.READER_OF_SUFFIX, ".gz"} and suffix[1:] not in FORMATS:
            raise ValueError(f"output is {self.output!r}, but must end in .jsonl or .parquet, or be a directory")
        if self.is_file and self.format not in (None, suffix[1:]):
            raise ValueError(
                f"format is {self.format!r}, but output {self.output!r} says {suffix[1:]!r}; leave one out"
            )

    @property
    def path(self) -> Path:
        """The output's path. One that ends in a dot or nothing is that of its directory's name."""
        path = Path(self.output).expanduser()
        return path if path.name else path.resolve()

    @property
    def shard_and_shards(self) -> tuple[int, int]:
        """Which shard of how many."""
        shard, shards = self.shard.split("/")
        return int(shard), int(shards)

    @property
    def is_file(self) -> bool:
        """Whether the parts are joined into one file."""
        return self.path.suffix[1:] in FORMATS

    @property
    def written_as(self) -> str:
        """The form of the rows: "jsonl" or "parquet"."""
        return self.path.suffix[1:] if self.is_file else self.format or FORMATS[0]


class Places:
    """Where a job's files are. The parts hold the rows; the state is what a restart needs, and goes at the end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.shard, self.shards = job.shard_and_shards
        mark = f"-{self.shard:05d}-of-{self.shards:05d}" if self.shards > 1 else ""
        given = job.path
        self.stem = given.with_suffix("") if job.is_file else given
        self.output = given.with_name(f"{self.stem.name}{mark}{given.suffix}") if job.is_file else given
        # Beside a directory of parts, because a data loader would take it for one of them.
        self.manifest = given.with_name(f"{self.stem.name}{mark}{given.suffix if job.is_file else ''}.manifest.json")
        self.parts = self.output.with_name(f"{self.output.name}.parts") if job.is_file else given
        # Data loaders pass over what begins with a dot, so that a directory of parts can be loaded as it is.
        self.state = self.parts if job.is_file else given / f".plaudit{mark}"

    def part(self, block: int) -> Path:
        """Where a block's rows go."""
        return self.parts / f"part-{block:08d}.{self.job.written_as}"

    def counts(self, block: int) -> Path:
        """Where a block's counts go."""
        return self.state / f"part-{block:08d}.json"

    def has(self, block: int) -> bool:
        """Return whether a block is done. Its counts are written first, so that with the part they are there."""
        return self.part(block).exists() and self.counts(block).exists()

    def clear(self, everything: bool) -> None:
        """Remove what belongs to no job, or everything that an earlier start of this shard left.

        A finished file stays until the new one replaces it.
        """
        if not (self.state / "job.json").exists():
            # What a kill left of another job's state, whose parts would be taken for this one's.
            for file in self.state.glob("part-*"):
                file.unlink()
        if not everything:
            return
        shutil.rmtree(self.state, ignore_errors=True)
        self.manifest.unlink(missing_ok=True)
        for file in self.output.glob("part-*.*") if not self.job.is_file else ():
            number = re.fullmatch(r"part-(\d+)\.(jsonl|parquet)", file.name)
            if number and int(number[1]) % self.shards == self.shard:
                file.unlink()

    def _records(self) -> Iterator[tuple[Path, bool]]:
        """Give each file there that says what job is here, and whether that is this shard's own."""
        stem, folder = glob.escape(self.stem.name), self.manifest.parent
        own = [self.state / "job.json", self.manifest]
        suffix = self.output.suffix if self.job.is_file else ""
        others = [*folder.glob(f"{stem}-?????-of-?????{suffix}.manifest.json")] if self.shards > 1 or not suffix else []
        if self.job.is_file:
            others += folder.glob(f"{stem}-?????-of-?????{suffix}.parts/job.json") if self.shards > 1 else []
        else:
            # Shards of any number share the directory.
            others += [*self.output.glob(".plaudit*/job.json"), self.stem.with_name(f"{self.stem.name}.manifest.json")]
        yield from ((file, True) for file in own if file.exists())
        yield from ((file, False) for file in sorted({*others} - {*own}) if file.exists())

    def require_apart(self, data: Path) -> None:
        """ValueError where the output would be in the data, or the other way round."""
        output = self.output.resolve()
        if data.exists() and (output.is_relative_to(data) or data.is_relative_to(output)):
            raise ValueError(f"output {str(self.output)!r} and data set {self.job.data!r} overlap; name another output")

    def require_ours(self, wanted: dict[str, Any]) -> None:
        """ValueError where the output is not this job's, or has nothing to do with us at all."""
        self._require_place()
        records = list(self._records())
        for file, is_own in records:
            require_same(file, is_own, wanted)
        is_taken = self.output.is_file() if self.job.is_file else any(self.output.glob("[!.]*"))
        if is_taken and not records and not self.job.overwrite:
            raise ValueError(
                f"output {str(self.output)!r} is there already, from something else; name another, or give --overwrite"
            )

    def _require_place(self) -> None:
        """Raise ValueError, before anything is scored, where the output cannot be what its name says."""
        if self.output.exists() and self.output.is_dir() == self.job.is_file:
            found, cure = ("a directory", "name a file in it") if self.job.is_file else ("a file", "name a directory")
            raise ValueError(f"output {str(self.output)!r} is {found}; {cure}, or another output")
        if self.state.is_symlink():
            raise ValueError(
                f"{str(self.state)!r} is a link, so that parts would be written elsewhere; remove the link"
            )
        there = next(folder for folder in self.output.resolve().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ValueError(
                f"output {str(self.output)!r} cannot be written: {str(there)!r} is no directory to write to"
            )

    def claim(self, wanted: dict[str, Any]) -> None:
        """Write down what job is here, the model's fingerprint included; ValueError where it is another."""
        self.require_ours(wanted)
        self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state / "job.json").exists():
            self.write_json(self.state / "job.json", wanted)

    @contextlib.contextmanager
    def written_whole(self, path: Path) -> Iterator[IO[bytes]]:
        """Give a file to write to, which is at `path` once it is whole and on the disk, and not before."""
        # With the process's number, because a restart may overlap with the end of a process that lost its parent.
        aside = self.state / f"{path.name}.{os.getpid()}.tmp"
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write values to a file that is complete or absent."""
        with self.written_whole(path) as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")


def read_json(file: Path) -> dict[str, Any]:
    """Return what Places.write_json wrote."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); {CURE}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged (it holds no object); {CURE}")
    return values


def identity_of(job: Job) -> dict[str, Any]:
    """Return what must not change between a job's starts, but for the model, which is not loaded yet.

    A name on the Hub has no fingerprint.
    """
    path = Path(job.data).expanduser()
    return {
        "data": str(path.resolve()) if path.exists() else job.data,
        "data_fingerprint": _fingerprint(path) if path.exists() else None,
        "format": job.written_as,
        "shards": job.shard_and_shards[1],
        **{name: getattr(job, name) for name in DECISIVE},
    }


def _fingerprint(path: Path) -> str:
    """Return a hash of the size and the time of change of a file, or of all of a directory's."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def require_same(file: Path, is_own: bool, wanted: dict[str, Any]) -> None:
    """Raise ValueError where a job.json or a manifest is of another job, naming what differs."""
    found = read_json(file)
    found = found.get("job", found)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged ('job' is no object); {CURE}")
    differing = [
        f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in wanted if found.get(name) != wanted[name]
    ]
    if differing:
        cure = "give --overwrite to begin anew" if is_own else "remove what the other shards left"
        raise ValueError(f"{file} is of a job with {', '.join(differing)}; {cure}, or name another output")
