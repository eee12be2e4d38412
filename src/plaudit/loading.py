"""Data sets by name: a Hub id, a directory or a file in, its training and test rows out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.say import say

if TYPE_CHECKING:
    from typing import TypeAlias

    from datasets import Dataset, IterableDataset

    Rows: TypeAlias = Dataset | IterableDataset

READER_OF_SUFFIX = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


def load_splits(name: str, config: str | None = None, *, streaming: bool = False) -> "dict[str, Rows]":
    """Return the splits of a data set by their names; a file has the one split 'train'.

    name: a Hub id, a directory (of data files, or written by `save_to_disk`), or a .json, .jsonl, .csv, .parquet or
    .arrow file, of which the text formats may be compressed (.gz). FileNotFoundError where there is none of that name,
    ValueError where it cannot be read.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError

    path = Path(name).expanduser()
    reader = _reader_of(path)
    if reader is not None and not path.is_file():
        raise FileNotFoundError(f"data set {name!r}: there is no such file")
    if reader is None and not path.exists() and name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"data set {name!r}: there is no such directory")
    if reader is None and path.is_file():
        known = ", ".join(READER_OF_SUFFIX)
        raise ValueError(
            f"data set {name!r}: plaudit reads no {path.suffix or 'such'} files; known: {known}, .jsonl.gz"
        )
    try:
        if reader is not None:
            splits: Any = load_dataset(reader, config, data_files={"train": str(path)}, streaming=streaming)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(str(path))
            splits = DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
            if streaming:
                splits = {split: rows.to_iterable_dataset() for split, rows in splits.items()}
        else:
            splits = load_dataset(str(path) if path.is_dir() else name, config, streaming=streaming)
    except DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data set {name!r} cannot be read: {reason}") from error
    return dict(splits)


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

    test_split_size: hold out this many rows of the training split, or, below 1, this share of them, as the test rows.
    ValueError where the training split is missing or too small to hold that many out.
    """
    splits = load_splits(name, config, streaming=streaming)
    if train_split not in splits:
        raise ValueError(
            f"data set {name!r} has no split {train_split!r}; found: {', '.join(splits)}; choose with --dataset_train_split"
        )
    train = splits[train_split]
    if test_split_size is None:
        return train, splits.get(test_split)
    if test_split in splits and test_split != train_split:
        say(f"test rows are held out of {train_split!r}, as test_split_size says; the split {test_split!r} is not used")
    return _hold_out(train, test_split_size, name, seed)


def _hold_out(train: Any, size: float, name: str, seed: int) -> "tuple[Rows, Rows]":
    from datasets import IterableDataset

    if isinstance(train, IterableDataset):
        raise ValueError(
            f"test_split_size={size:g} needs to know how many rows there are, which streaming does not; "
            "leave out --dataset_streaming, or name a test split with --dataset_test_split"
        )
    is_share = 0 < size < 1
    if not is_share and (size < 1 or not float(size).is_integer()):
        raise ValueError(f"test_split_size is {size:g}, but must be a share between 0 and 1 or a whole number of rows")
    num_rows = max(1, round(len(train) * size)) if is_share else int(size)
    if num_rows >= len(train):
        raise ValueError(f"test_split_size={size:g} leaves no row to train on: {name!r} has {len(train):,} of them")
    parts = train.train_test_split(test_size=num_rows, seed=seed)
    return parts["train"], parts["test"]


def _reader_of(path: Path) -> str | None:
    """Return which reader a file's name asks for; None for other names."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".gz":
        suffixes = suffixes[:-1]
    return READER_OF_SUFFIX.get(suffixes[-1]) if suffixes else None
