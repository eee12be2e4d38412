"""A data set's rows as Arrow tables, one after the other, in flat memory: files are read in place, nothing is mapped."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import formats, loading

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 8_192
# What is read in place, and how much of JSON lines at a time: no row may be longer, or the data sets' reader takes over.
_IN_PLACE, _BLOCK_BYTES = (".jsonl", ".jsonl.gz", ".parquet"), 1 << 24
_BUFFER_BYTES = 1 << 20


class Unreadable(Exception):
    """A file that could not be read in place to its end; the cause says why. The data sets' own reader may know more."""


class FileRows:
    """The rows of one JSON lines or Parquet file, read from it as they are asked for: no cache, and flat memory."""

    features = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def tables(self) -> "Iterator[pa.Table]":
        """Give the rows as tables, in order. Unreadable where that fails."""
        import pyarrow as pa

        try:
            for batch in self._parquet() if self.path.suffix == ".parquet" else self._json():
                if len(batch):
                    table = pa.Table.from_batches([batch])
                    _decode_names(table.schema)
                    # Nothing else looks whether JSON's texts are UTF-8, and Parquet's may be wrong as well.
                    table.validate(full=True)
                    yield table
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(str(error)) from error

    def _parquet(self) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # Read ahead, every column of every row group would stay in memory, and unbuffered, those of one, however large it is.
        with pq.ParquetFile(self.path, memory_map=False, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            if b'"Json"' in (file.schema_arrow.metadata or {}).get(b"huggingface", b""):
                raise ValueError("the texts are the JSON of other values, which the data set's features say")
            yield from file.iter_batches(batch_size=BATCH_ROWS)

    def _json(self) -> Iterator[Any]:
        import pyarrow.json as pj

        with pj.open_json(str(self.path), read_options=pj.ReadOptions(block_size=_BLOCK_BYTES)) as reader:
            for batch in reader:
                for start in range(0, len(batch), BATCH_ROWS):
                    yield batch.slice(start, BATCH_ROWS)


def _decode_names(fields: Any) -> None:
    """Raise UnicodeDecodeError for a field's name that is not UTF-8, those inside structs too, which are decoded late."""
    import pyarrow as pa

    for field in fields:
        kind = field.type
        assert isinstance(field.name, str)
        while pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            _decode_names(kind)


class CachedRows:
    """The rows of a Dataset as it was loaded, from its files by ordinary reads: mapped, all their pages would be resident."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.features = rows, rows.features
        self.files = [file["filename"] for file in rows.cache_files]

    def is_whole(self) -> bool:
        """Whether the files hold the Dataset's rows and no others."""
        import pyarrow as pa

        if not self.files or self.rows._indices is not None:
            return False
        num_rows = 0
        for file in self.files:
            # Of a mapped file only the batches' headings are read.
            with pa.memory_map(file) as opened, pa.ipc.open_stream(opened) as stream:
                if not set(self.rows.column_names) <= set(stream.schema.names):
                    return False
                num_rows += sum(batch.num_rows for batch in stream)
        return num_rows == len(self.rows)

    def tables(self) -> "Iterator[pa.Table]":
        """Give the rows as tables, in order."""
        import pyarrow as pa

        for file in self.files:
            with pa.OSFile(file) as opened, pa.ipc.open_stream(opened) as stream:
                held: list[Any] = []
                for batch in stream:
                    held.append(batch)
                    if sum(one.num_rows for one in held) >= BATCH_ROWS:
                        yield pa.Table.from_batches(held).select(self.rows.column_names)
                        held = []
                if held:
                    yield pa.Table.from_batches(held).select(self.rows.column_names)


def open_rows(name: str, config: str | None = None, *, in_place: bool = True) -> dict[str, Any]:
    """Return the splits of a data set by their names, as what `tables` takes without keeping it in memory.

    in_place: read a file of JSON lines or Parquet itself, rather than have it loaded into the data sets' cache.
    """
    path = Path(name).expanduser()
    if in_place and config is None and path.name.endswith(_IN_PLACE) and path.is_file():
        return {"train": FileRows(path)}
    loaded = {split: CachedRows(rows) for split, rows in loading.load_splits(name, config).items()}
    return {split: cached if cached.is_whole() else cached.rows for split, cached in loaded.items()}


def first_row_of(rows: Any, split: str) -> dict[str, Any] | None:
    """Return the first row, None where there is none."""
    if isinstance(rows, FileRows):
        return next((row for table in rows.tables() for row in table.slice(0, 1).to_pylist()), None)
    rows = rows.rows if isinstance(rows, CachedRows) else rows
    formats.check_type(rows, "data", split)
    return next(iter(rows.with_format(None)), None)


def tables(rows: Any, limit: int | None = None) -> "Iterator[pa.Table]":
    """Give the rows, or the first so many, as Arrow tables, in order.

    rows: a Dataset, an IterableDataset, or what `open_rows` gives.
    """
    is_ours = isinstance(rows, (FileRows, CachedRows))
    for table in rows.tables() if is_ours else rows.with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield table if limit is None else table.slice(0, limit)
        if limit is not None:
            limit -= len(table)
            if limit <= 0:
                return


def python_rows(table: "pa.Table", features: Any) -> Iterator[dict[str, Any]]:
    """Give a table's rows as Python objects, decoded by the data set's features where it has any."""
    known = (
        None
        if features is None
        else type(features)({name: features[name] for name in table.column_names if name in features})
    )
    for row in table.to_pylist():
        yield row if known is None else {**row, **known.decode_example({name: row[name] for name in known})}
