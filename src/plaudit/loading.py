"""Data sets by name: a Hub id, a directory or a file in, its training and test rows out."""

import contextlib
import gzip
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import caches, hub
from plaudit.records import ROW
from plaudit.redaction import require_no_secret
from plaudit.say import say

if TYPE_CHECKING:
    from typing import TypeAlias

    from datasets import Dataset, IterableDataset

    Rows: TypeAlias = Dataset | IterableDataset

REASON_CHARACTERS = 300
READER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


def load_splits(name: str, config: str | None = None, *, streaming: bool = False) -> "dict[str, Rows]":
    """Return the splits of a data set by their names; a file has the one split 'train'.

    name: a Hub id, a directory (of data files, or written by `save_to_disk`), or a .json, .jsonl, .csv, .parquet or
    .arrow file, of which the text formats may be compressed (.gz). FileNotFoundError where there is none of that name,
    ValueError where it cannot be read.
    """
    from datasets.exceptions import DatasetGenerationError

    path = Path(name).expanduser()
    reader = _reader_of(path)
    _check_name(name, path, reader, config)
    hub.need(name)
    # A stream keeps nothing.
    options: dict[str, Any] = {"streaming": True} if streaming else {"cache_dir": caches.directory()}
    # What the Hub's client says of a name that it does not know is for the user as it is.
    kinds = (Exception,) if path.exists() else (DatasetGenerationError, ValueError, StopIteration)
    try:
        with _readers_log_muted(), uncounted():
            splits = _read(name, path, reader, config, options)
            _touch(splits, reader)
    except ConnectionError as error:
        raise ConnectionError(
            f"data set {name!r} is neither a file nor a directory here, and the Hub cannot be asked for it ({error}); correct "
            "the name, or load it once where there is a network, with HF_HOME on a disk that both see"
        ) from error
    except kinds as error:
        reason = _reason(error, path, reader)
        if reason is None:
            raise _no_rows(name) from None
        raise ValueError(f"data set {name!r} cannot be read: {reason}") from error
    return splits


@contextlib.contextmanager
def named_in_errors(place: str) -> Iterator[None]:
    """Put the place in front of what a reader of data raises once rows are asked for, such as a stream's at a broken line.

    What plaudit raises, and what a machine or a network does, stays as it is.
    """
    try:
        yield
    except Exception as error:
        from datasets.exceptions import DatasetGenerationError

        of_readers = (ValueError, TypeError, DatasetGenerationError, RecursionError)
        if type(error) in (ValueError, TypeError) or not isinstance(error, of_readers):
            raise
        reason = _shortened(" ".join(str(error.__cause__ or error).split()) or type(error).__name__)
        raise ValueError(f"{place} cannot be read to its end: {reason}; mend the data") from error


def _shortened(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def _check_name(name: str, path: Path, reader: str | None, config: str | None) -> None:
    require_no_secret("data set", name)
    if reader is not None and not path.exists():
        raise FileNotFoundError(f"data set {name!r}: there is no such file")
    if reader is None and not path.exists() and name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"data set {name!r}: there is no such directory")
    if reader is None and path.is_file():
        known = ", ".join(READER_OF_SUFFIX)
        raise ValueError(
            f"data set {name!r}: plaudit reads no {path.suffix or 'such'} files; known: {known}, .jsonl.gz"
        )
    if config is not None and (path.is_file() or _is_saved(path)):
        raise ValueError(
            f"data set {name!r} has no configurations, so dataset_config={config!r} has no effect; leave it out"
        )


def _read(name: str, path: Path, reader: str | None, config: str | None, options: dict[str, Any]) -> "dict[str, Rows]":
    """Return the splits. options: of `load_dataset`, how the rows are kept."""
    from datasets import Dataset, load_dataset, load_from_disk

    if reader is not None and path.is_file():
        return dict(load_dataset(reader, config, data_files={"train": str(path)}, **options))
    if not _is_saved(path):
        return dict(load_dataset(str(path) if path.is_dir() else name, config, **options))
    loaded = load_from_disk(str(path))
    splits: dict[str, Any] = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if "streaming" in options else splits


def _touch(splits: "dict[str, Rows]", reader: str | None) -> None:
    """Read what would only fail once the rows are used: a stream's first row, and text, which pyarrow takes as bytes."""
    for rows in splits.values() if reader is not None else ():
        if hasattr(rows, "data"):
            rows.data.validate(full=reader == "json")
        else:
            next(iter(rows))


def _is_saved(path: Path) -> bool:
    """Return whether `save_to_disk` has written the directory."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


@contextlib.contextmanager
def _readers_log_muted() -> Iterator[None]:
    """Keep datasets' readers from logging the error that is raised as well."""
    log = logging.getLogger("datasets.packaged_modules")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Keep datasets from telling its makers' counter of downloads, over the network, that something was loaded here."""
    from datasets import config

    counts = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def _no_rows(name: str, split: str = "") -> ValueError:
    where = f" in split {split!r}" if split else ""
    return ValueError(
        f"data set {name!r} holds no rows{where}; give it at least one pair, and check that what writes it has finished"
    )


def _reason(error: Exception, path: Path, reader: str | None) -> str | None:
    """Return in one short line why a data set cannot be read; None where it has no rows, which is no fault of its form."""
    from datasets.exceptions import DatasetGenerationError

    cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
    text = " ".join(str(cause or error).split()) or type(cause or error).__name__
    # Three places in which datasets counts on there being a row; the last is where a saved one has no files.
    is_empty = isinstance(error, StopIteration) or "corresponds to no data" in text
    if is_empty or (isinstance(error, IndexError) and _is_saved(path)):
        return None
    if "scripts are no longer supported" in text:
        return f"{text}: no code of a data set is run; write its rows as Parquet or JSON lines, without the script"
    # The readers count rows from the start of a block of the file, if at all.
    with contextlib.suppress(OSError, EOFError):
        text = _bad_line(path, reader) or text
    return _shortened(text)


def _bad_line(path: Path, reader: str | None) -> str | None:
    """Return what is wrong with the first line of a text file that is not UTF-8 or, in JSON, no object."""
    if reader not in ("json", "csv") or not path.is_file():
        return None
    open_file: Any = gzip.open if path.suffix == ".gz" else open
    if ".json" in path.suffixes:
        with open_file(path, "rb") as file:
            try:
                json.load(file)
                return None
            except json.JSONDecodeError as error:
                # A .json file may hold one document, or a document a line.
                if error.msg != "Extra data":
                    return f"line {error.lineno:,} is not JSON ({error.msg}, column {error.colno})"
            except (ValueError, RecursionError):
                pass  # the lines say where
    with open_file(path, "rb") as file:
        problems = ((number, line_problem(line, reader)) for number, line in enumerate(file, 1) if line.strip())
        return next((f"line {number:,} {problem}" for number, problem in problems if problem), None)


def line_problem(line: bytes, reader: str) -> str | None:
    """Return what is wrong with a line of a text file that should hold a row, None where nothing is."""
    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text) if reader == "json" else {}
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte 0x{line[error.start]:02x}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"is not JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        return "is JSON of too many levels; flatten the row"
    except ValueError as error:
        # A number of more digits than Python reads.
        return f"is not JSON that can be read ({error})"
    return None if isinstance(value, dict) else f"holds a {type(value).__name__}, but must hold an object, a row"


def load_train_and_test(
    name: str,
    config: str | None = None,
    *,
    train_split: str = "train",
    test_split: str = "test",
    test_split_size: float | None = None,
    streaming: bool = False,
    seed: int = 42,
) -> "tuple[Rows, Rows | None]":
    """Return the training rows, and the test rows or None where the data has no such split.

    test_split_size: hold out this many rows of the training split, or, below 1, this share of them, as the test rows;
    a column named ROW then says which row of the data set each was. The training split is never its own test split.
    ValueError where the training split is missing or empty, or too small to hold that many out.
    """
    splits = load_splits(name, config, streaming=streaming)
    if train_split not in splits:
        raise ValueError(
            f"data set {name!r} has no split {train_split!r}; found: {', '.join(splits)}; choose with train_split (--dataset_train_split)"
        )
    train = splits[train_split]
    test = splits.get(test_split) if test_split_size is None and test_split != train_split else None
    for split, rows in ((train_split, train), (test_split, test)):
        if rows is not None and next(iter(rows), None) is None:
            raise _no_rows(name, split)
    if test_split_size is None:
        return train, test
    if test_split in splits and test_split != train_split:
        say(f"test rows are held out of {train_split!r}, as test_split_size says; the split {test_split!r} is not used")
    return _hold_out(train, test_split_size, name, seed)


def _hold_out(train: Any, size: float, name: str, seed: int) -> "tuple[Rows, Rows]":
    from datasets import IterableDataset

    if isinstance(train, IterableDataset):
        raise ValueError(
            f"test_split_size={size:g} needs to know how many rows there are, which streaming does not; "
            "leave out streaming (--dataset_streaming), or name a test split (--dataset_test_split)"
        )
    is_share = 0 < size < 1
    if not is_share and (size < 1 or not float(size).is_integer()):
        raise ValueError(f"test_split_size is {size:g}, but must be a share between 0 and 1 or a whole number of rows")
    num_rows = max(1, round(len(train) * size)) if is_share else int(size)
    if num_rows >= len(train):
        raise ValueError(f"test_split_size={size:g} leaves no row to train on: {name!r} has {len(train):,} of them")
    # The parts count their rows anew, and an error about a row must name the one that the user can look up.
    numbered = train.add_column(ROW, list(range(len(train))))
    with caches.beside(numbered):
        parts = numbered.train_test_split(test_size=num_rows, seed=seed)
    return parts["train"], parts["test"]


def _reader_of(path: Path) -> str | None:
    """Return which reader a file's name asks for; None for other names."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
    return READER_OF_SUFFIX.get(suffixes[-1]) if suffixes else None
