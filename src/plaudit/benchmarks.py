"""Where each benchmark comes from, and how its rows become prompts with labelled answers."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plaudit import formats, hub, loading, schemas, suites
from plaudit.converters import CONVERTERS
from plaudit.options import did_you_mean
from plaudit.records import ROW
from plaudit.redaction import require_no_secret
from plaudit.say import say
from plaudit.schemas import BenchmarkRow
from plaudit.score_rows import written_whole

# The parts that names of files and folders say, where the rows do not.
PARTS = {
    "rm-bench": ("safety-refuse", "safety-response", "chat", "math", "code"),
    "ppe-correctness": suites.PPE_SETS,
}
# The data sets of each known benchmark on the Hub, and the split that is the benchmark.
HUB = {
    "rewardbench": (("allenai/reward-bench",), "filtered"),
    "rewardbench2": (("allenai/reward-bench-2",), "test"),
    "rm-bench": (("THU-KEG/RM-Bench",), "train"),
    "judgebench": (("ScalerLab/JudgeBench",), "gpt"),
    "ppe-correctness": (tuple(f"lmarena-ai/PPE-{name}-Best-of-K" for name in suites.PPE_SETS), "train"),
    "ppe-human": (("lmarena-ai/PPE-Human-Preference-V1",), "test"),
}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's rows, ready to be scored. kind: which figures apply. provenance: source, revision, hash and counts."""

    name: str
    kind: str
    rows: list[BenchmarkRow]
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Rows that come from one file or data set. place: its name, which may say what part of the benchmark they are."""

    dataset: Any
    where: str
    place: str | None = None


def load_benchmarks(sources: Any, **options: Any) -> list[Benchmark]:
    """Return several benchmarks, each with a name of its own: files of one name are numbered. options: of load_benchmark.

    sources: one or several of what load_benchmark takes, or a Benchmark, which stays as it is.
    """
    if isinstance(sources, (str, os.PathLike, Benchmark)):
        sources = [sources]
    if not isinstance(sources, Iterable):
        raise TypeError(f"benchmarks must be one or several names, files or Benchmarks, not {type(sources).__name__}")
    found: list[Benchmark] = []
    for source in sources:
        one = source if isinstance(source, Benchmark) else load_benchmark(source, **options)
        taken = {each.name for each in found}
        number = next(number for number in range(1, len(found) + 2) if _numbered(one.name, number) not in taken)
        if number > 1:
            called = _numbered(one.name, number)
            what = one.name if isinstance(source, Benchmark) else source
            say(
                f"benchmark {str(what)!r} is called {called!r}, because there is a {one.name!r} already; NAME=PATH names it"
            )
            one = Benchmark(called, one.kind, one.rows, one.provenance)
        found.append(one)
    if not found:
        raise ValueError("there is no benchmark; give at least one name or file")
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def load_benchmark(
    source: Any,
    *,
    kind: str | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    format: str | None = None,
) -> Benchmark:
    """Return a benchmark, its rows checked. Raises ValueError naming row, column, value and cure.

    source: a known name or a Hub id, a local file, a folder of them, or NAME=PATH, where NAME may be a known one. kind:
    which benchmark's columns the rows have; recognised unless given or named. config, split: of a data set on the Hub
    or written by `save_to_disk`. revision: on the Hub; without one, the commit found at the first load is recorded and
    used from then on. limit: read no more rows than this. format: of plain pairs, as for `plaudit train`.
    """
    require_no_secret("benchmark", os.fspath(source))
    name, place, named = _place_of(os.fspath(source))
    if kind is not None and suites.kind_of(kind) is None:
        raise ValueError(f"benchmark kind {kind!r} is unknown; known: {', '.join([*schemas.SCHEMAS, 'pairs'])}")
    if format is not None and format not in CONVERTERS:
        raise ValueError(f"benchmark format {format!r} is unknown; the formats are {', '.join(CONVERTERS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1 row, or None for all")
    kind = suites.kind_of(kind) if kind is not None else named
    if place is None:
        assert kind is not None
        parts, origin = _from_hub(name, *_hub_sets(name, kind, split), config, revision)
    elif Path(place).exists():
        _refuse(name, {"revision": revision})
        parts, origin = _from_disk(name, Path(place), config, split)
    else:
        parts, origin = _from_hub(name, [place], split, config, revision)
    kind = kind or _recognised(name, parts)
    rows, dropped = _rows_of(name, kind, parts, limit, format)
    return Benchmark(name, kind, rows, _provenance(kind, rows, dropped, origin))


def benchmark_of(dataset: Any, name: str, where: str) -> Benchmark:
    """Return a data set of preference pairs in memory, of any record format, as a benchmark. where: names it in errors."""
    rows, dropped = _rows_of(name, "pairs", [_Part(dataset, where)], None, None)
    return Benchmark(name, "pairs", rows, _provenance("pairs", rows, dropped, {}))


def _place_of(source: str) -> tuple[str, str | None, str | None]:
    """Return a source's name, where its rows are (None: the known place on the Hub), and its kind where that is named."""
    if not source.strip():
        # As a path it would be the current directory.
        raise ValueError("a benchmark's name is empty; give a name, a file or a folder")
    path = Path(source).expanduser()
    before, equals, after = source.partition("=")
    is_there = _is_there(path)
    if equals and before and after and not is_there:
        if not _is_there(Path(after).expanduser()):
            raise FileNotFoundError(f"benchmark {before!r}: there is no file or folder {after!r}")
        return before, str(Path(after).expanduser()), suites.kind_of(before)
    if is_there:
        # A file's columns say what it is, and its name where they leave that open.
        return _stem(path), str(path), None
    looks_local = source.startswith((".", "/", "~")) or _is_data(path)
    if looks_local:
        raise FileNotFoundError(f"benchmark {source!r}: there is no such file or folder")
    kind = suites.kind_of(source)
    if kind in HUB and ("/" not in source or source in HUB[kind][0]):
        return source, None, kind
    if "/" in source:
        # Somebody's own copy.
        return source, source, kind
    if kind is not None:
        raise ValueError(
            f"benchmark {source!r} has no one place on the Hub that is known; give its rows as {source}=PATH, a file or a folder"
        )
    raise ValueError(
        f"benchmark {source!r} is neither a known name ({', '.join(HUB)}) nor a file, a folder or a Hub id (owner/name)"
        + did_you_mean(source, HUB)
    )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Longer than a path can be.
        return False


def _stem(path: Path) -> str:
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    if path.is_dir():
        return name
    return re.sub(r"(\.(json|jsonl|csv|parquet|arrow))?(\.gz)?$", "", name) or name


def _is_data(path: Path) -> bool:
    suffixes = path.suffixes[:-1] if path.suffix == ".gz" else path.suffixes
    return bool(suffixes) and suffixes[-1] in loading.READER_OF_SUFFIX


def _refuse(name: str, given: dict[str, Any]) -> None:
    """Raise ValueError for an option that has no effect on a local source."""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"benchmark {name!r} is local, so {option}={value!r} has no effect; leave it out")


# Local files.


def _from_disk(name: str, path: Path, config: str | None, split: str | None) -> tuple[list[_Part], dict[str, Any]]:
    origin: dict[str, Any] = {"source": path.resolve().name}
    if path.is_file():
        _refuse(name, {"config": config, "split": split})
        return [_file_part(name, path, path)], origin
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        splits = loading.load_splits(str(path), config)
        used = _split_of(name, splits, split, None)
        return [_Part(splits[used], f"benchmark {name!r}")], origin | {"split": used}
    _refuse(name, {"config": config})
    files = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file) and not _is_hidden(file, path))
    if not files:
        raise ValueError(
            f"benchmark {name!r}: the folder {str(path)!r} holds no {', '.join(loading.READER_OF_SUFFIX)} file"
        )
    return [_file_part(name, file, path) for file in _files_of_split(name, files, split)], origin


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _files_of_split(name: str, files: list[Path], split: str | None) -> list[Path]:
    """Return the files of one split, where a folder holds a data set as the Hub has it; the whole one of RM-Bench.

    A benchmark's own split is taken where no other is asked for, such as RewardBench's 'filtered' beside 'raw'.
    """
    totals = [file for file in files if _stem(file) == "total_dataset"]
    if totals and split is None:
        # Beside it are its parts, a file a domain.
        return totals
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.sub(r"-\d{5}-of-\d{5}$", "", _stem(file)), []).append(file)
    if split is not None:
        if split not in by_split:
            raise ValueError(f"benchmark {name!r} has no split {split!r}; found: {', '.join(by_split)}")
        return by_split[split]
    own = [each for _, each in HUB.values() if each in by_split and each != "train"]
    is_sharded = any(re.search(r"-\d{5}-of-\d{5}$", _stem(file)) for file in files)
    return by_split[own[0]] if is_sharded and own else files


def _file_part(name: str, file: Path, source: Path) -> _Part:
    (dataset,) = loading.load_splits(str(file)).values()
    inside = "" if file == source else f" ({file.relative_to(source).as_posix()})"
    place = file.name if file == source else f"{source.resolve().name}/{file.relative_to(source).as_posix()}"
    return _Part(dataset, f"benchmark {name!r}{inside}", place)


def _part_name(kind: str, place: str | None, name: str) -> str | None:
    """Return which part of a benchmark some rows are, by the name of their file or data set, of the folders that it is
    in, the innermost first, or of the benchmark; None where none of them says it."""
    if kind not in PARTS:
        return None if place is None else _stem(Path(place))
    found = (_named_in(word, PARTS[kind]) for word in [*reversed((place or "").split("/")), name])
    return next((part for part in found if part is not None), None)


def _named_in(word: str, names: Sequence[str]) -> str | None:
    word = suites.plain_spelling(word)
    return next((name for name in names if suites.plain_spelling(name) in word), None)


# The Hub.


def _hub_sets(name: str, kind: str, split: str | None) -> tuple[list[str], str]:
    """Return the data sets of a known benchmark, the one of PPE that the name says, and the split."""
    sets, own_split = HUB[kind]
    one = _named_in(name, suites.PPE_SETS) if kind == "ppe-correctness" else None
    return [each for each in sets if one is None or f"-{one}-" in each], split or own_split


def _from_hub(
    name: str, sets: Sequence[str], split: str | None, config: str | None, revision: str | None
) -> tuple[list[_Part], dict[str, Any]]:
    """Return the rows of data sets on the Hub, and what pins them."""
    from datasets import load_dataset

    parts, pinned = [], {}
    if len(sets) > 1 and revision is not None and is_commit(revision):
        raise ValueError(
            f"benchmark {name!r} is {len(sets)} data sets ({', '.join(sets)}), and revision {revision!r} a commit of one; "
            "give each by its own name, or a branch or tag that all have"
        )
    for each in sets:
        hub.need(each)
        commit = pinned_revision(each, revision)
        with loading.uncounted():
            splits = dict(load_dataset(each, config, revision=commit))
        used = _split_of(each, splits, split, next((own for known, own in HUB.values() if each in known), None))
        pinned[each] = commit
        parts.append(_Part(splits[used], f"benchmark {name!r}", each))
    origin = {"source": ", ".join(sets), "config": config, "split": used}
    return parts, origin | {"revision": next(iter(pinned.values())) if len(pinned) == 1 else pinned}


def _split_of(name: str, splits: Any, wanted: str | None, own: str | None) -> str:
    """Return the split to use: the one wanted, the only one, or the one that evaluations use. ValueError for none."""
    if wanted in splits:
        return str(wanted)
    if wanted is None or wanted == own:
        for candidate in ("test", "validation") if len(splits) > 1 else splits:
            if candidate in splits:
                return str(candidate)
    raise ValueError(
        f"benchmark {name!r} has {'no split ' + repr(wanted) if wanted else 'several splits'}; found: "
        f"{', '.join(splits)}; choose with split (--split)"
    )


def revisions_file() -> Path:
    """Return where the commits that were found at first loads are recorded, in the user's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "plaudit" / "revisions.json"


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a commit, which never moves, and not a branch or a tag."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def pinned_revision(repository: str, revision: str | None = None) -> str:
    """Return the commit to load a data set at: that of the revision given, or the one recorded at the first load.

    Where nothing is recorded yet, the newest commit is, and a line says so. OSError where the Hub cannot be asked.
    """
    if revision is not None and is_commit(revision):
        return revision
    recorded = _read_revisions()
    if revision is None and repository in recorded:
        return recorded[repository]
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha
    except Exception as error:
        reason = " ".join(str(error).split())[: loading.REASON_CHARACTERS]
        raise OSError(
            f"benchmark data {repository!r}: its revision cannot be asked of the Hub ({reason}); give a local copy "
            "as NAME=PATH, or a commit that is in the cache as revision (--revision)"
        ) from error
    if not isinstance(commit, str):
        raise OSError(
            f"benchmark data {repository!r}: the Hub names no commit of it; give one as revision (--revision)"
        )
    if revision is None:
        _record_revision(repository, commit)
    return commit


def _read_revisions() -> dict[str, str]:
    file = revisions_file()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, or give a revision (--revision)") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{file} is damaged (it must hold data sets and their commits); remove it")
    return found


def _record_revision(repository: str, commit: str) -> None:
    file = revisions_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as aside:
        aside.write_text(json.dumps({**_read_revisions(), repository: commit}, indent=2) + "\n", encoding="utf-8")
    say(f"{repository} is loaded at commit {commit} from now on (recorded in {file}); --revision names another")


# Rows.


def _recognised(name: str, parts: Sequence[_Part]) -> str:
    """Return the kind of a benchmark that nobody named, by its columns, or by its name where they allow it."""
    first = next(iter(parts[0].dataset), None)
    if first is None:
        raise ValueError(f"{parts[0].where} holds no rows; check that what writes it has finished")
    found = schemas.kind_of_row(first)
    if found == "rewardbench" and suites.canonical_subset(found, str(first["subset"])) is None:
        # Other collections have these columns too.
        found = "pairs"
    hinted = suites.kind_of(name)
    if found in suites.GENERIC and hinted is not None and hinted not in suites.GENERIC and _fits_by_name(hinted, first):
        return hinted
    return found


def _fits_by_name(kind: str, first: Any) -> bool:
    if kind == "rewardbench":
        has_texts = all(isinstance(first.get(name), str) for name in schemas.SCHEMAS[kind].required)
        return has_texts and suites.canonical_subset(kind, first["subset"]) is not None
    return schemas.fits(kind, first) and schemas.SCHEMAS[kind].recognises(first)


def _rows_of(
    name: str, kind: str, parts: Sequence[_Part], limit: int | None, format: str | None
) -> tuple[list[BenchmarkRow], int]:
    """Return the rows of all parts, each with an id of its own in its subset, and how many held no preference."""
    if format is not None and kind != "pairs":
        raise ValueError(f"benchmark {name!r} is of kind {kind!r}, so format={format!r} has no effect; leave it out")
    rows: list[BenchmarkRow] = []
    seen: Counter = Counter()
    dropped = 0
    for part in parts:
        dataset = part.dataset
        named = _part_name(kind, part.place, name) if len(parts) > 1 or kind in PARTS else None
        if limit is not None:
            dataset = dataset.select(range(min(len(dataset), max(0, limit - len(rows)))))
        if len(dataset) == 0:
            continue
        if kind == "pairs":
            found, lost = _pairs_of(dataset, part.where, format)
            dropped += lost
        else:
            found = enumerate(
                schemas.read_row(kind, row, f"{part.where} row {number}", named) for number, row in enumerate(dataset)
            )
        for number, row in found:
            subset = row.subset if row.subset is not None else named
            row_id = row.id or str(number if len(parts) == 1 else len(rows))
            seen[subset, row_id] += 1
            rows.append(_renamed(row, row_id, seen[subset, row_id], subset))
    if len({row.extra["task"] for row in rows if kind == "rmb"}) > 1:
        # Pairs and best-of-n have the same categories, and are two tables in the benchmark's paper.
        rows = [replace(row, subset="/".join(filter(None, (row.extra["task"], row.subset)))) for row in rows]
    if not rows:
        raise ValueError(f"benchmark {name!r} holds no rows; check that what writes it has finished")
    _say_what_is_odd(name, rows, dropped, seen)
    return rows, dropped


def _renamed(row: BenchmarkRow, row_id: str, occurrence: int, subset: str | None) -> BenchmarkRow:
    return replace(row, id=row_id if occurrence == 1 else f"{row_id}#{occurrence}", subset=subset)


def _pairs_of(dataset: Any, where: str, format: str | None) -> tuple[Iterator[tuple[int, BenchmarkRow]], int]:
    """Return plain pairs of any record format, each with its row's number, and how many rows held none."""
    if ROW not in dataset.column_names:
        dataset = dataset.add_column(ROW, list(range(len(dataset))))
    first = dataset[0]
    converted = formats.convert(dataset, format, split=where)
    if converted is dataset:
        layout = formats.layout_of(list(first), first, where)
        return ((row[ROW], schemas.pair_row(row, layout, f"{where} row {row[ROW]}")) for row in dataset), 0
    layout = formats.layout_of(converted.column_names, converted[0], where)
    # A conversion leaves the other columns out.
    kept = {name: dataset[name][:] for name in ("id", "subset") if name in dataset.column_names}

    def rows() -> Iterator[tuple[int, BenchmarkRow]]:
        for pair in converted:
            number = pair[ROW]
            beside = {name: values[number] for name, values in kept.items()}
            yield number, schemas.pair_row({**pair, **beside}, layout, f"{where} row {number}")

    return rows(), len(dataset) - len(set(converted[ROW][:]))


def _say_what_is_odd(name: str, rows: Sequence[BenchmarkRow], dropped: int, seen: Counter) -> None:
    """Say once what was found in the rows that a reader of the figures should know."""
    counts = {
        "rows whose sides differ before the last turn, each kept as it is": sum(
            "prefix_differs" in row.extra for row in rows
        ),
        "rows with the same text as right and as wrong answer, a tie by construction": sum(
            "identical" in row.extra for row in rows
        ),
        "rows whose id another row of the subset has, numbered": sum(count - 1 for count in seen.values()),
        "rows without a preference, left out": dropped,
        "rows whose prompt does not end with a user's turn": sum(_ends_oddly(row) for row in rows),
    }
    found = [f"{count:,} {what}" for what, count in counts.items() if count]
    if found:
        say(f"benchmark {name!r}, {len(rows):,} rows: {'; '.join(found)}", once=True)


def _ends_oddly(row: BenchmarkRow) -> bool:
    if not isinstance(row.prompt, list):
        return False
    # A tool's result asks for an answer as a user does.
    return row.prompt[-1]["role"] not in ("user", "tool")


def _provenance(kind: str, rows: Sequence[BenchmarkRow], dropped: int, origin: dict[str, Any]) -> dict[str, Any]:
    """Return what pins the data: where it is from, how many rows of what, and a hash that no file format changes."""
    hashes = "\n".join(schemas.digest([row.id, row.subset, row.prompt, row.answers, row.labels]) for row in rows)
    subsets = Counter(row.subset for row in rows if row.subset is not None)
    return {
        **{name: value for name, value in origin.items() if value is not None},
        "kind": kind,
        "rows": len(rows),
        "rows_left_out": dropped,
        "prefix_mismatches": sum("prefix_differs" in row.extra for row in rows),
        "subsets": dict(sorted(subsets.items())),
        "sha256": schemas.digest(hashes),
    }
