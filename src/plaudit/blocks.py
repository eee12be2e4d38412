"""Blocks of a data set's rows: read in order, written as parts with new columns, and joined."""

import codecs
import gzip
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from plaudit import loading

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Lines:
    """A block of a .jsonl file: (number, text) of each line, the text as it is there."""

    file: str
    lines: list[tuple[int, bytes]]

    def __len__(self) -> int:
        return len(self.lines)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows; ValueError naming file and line for a line that is none."""
        rows = []
        for number, text in self.lines:
            try:
                rows.append(json.loads(text.decode()))
            except (ValueError, RecursionError):
                rows.append(None)
            if not isinstance(rows[-1], dict):
                problem = loading.line_problem(text, "json")
                raise ValueError(f"data set {self.file!r} cannot be read: line {number:,} {problem}")
        return rows

    def line(self, index: int, row: dict[str, Any], changes: dict[str, Any]) -> bytes:
        """Return a row's line: its own text, so that nothing in it changes, and what is new at its end."""
        if changes.keys() & row.keys():
            return _json_line({**row, **changes})
        body = self.lines[index][1][:-1].rstrip()
        return body + (b", " if row else b"") + _json_line(changes)[1:]

    def table(self, rows: list[dict[str, Any]]) -> "pa.Table":
        """Return the rows as a table, its types those that these rows show; ValueError where they show several."""
        import pyarrow as pa

        columns = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except (pa.ArrowException, OverflowError, UnicodeEncodeError, RecursionError) as error:
                first, last = self.lines[0][0], self.lines[-1][0]
                raise ValueError(
                    f"column {name!r} of lines {first:,} to {last:,} fits no Parquet type ({error}); write a .jsonl file"
                ) from None
        try:
            return pa.table(columns)
        except UnicodeEncodeError:
            raise ValueError(
                f"a column's name in lines {self.lines[0][0]:,} to {self.lines[-1][0]:,} is not Unicode text, which Parquet "
                "must have; write a .jsonl file"
            ) from None


@dataclass(frozen=True)
class Rows:
    """A block of any other data: the number of its first row, and an Arrow table."""

    first: int
    arrow: "pa.Table"

    def __len__(self) -> int:
        return self.arrow.num_rows

    def rows(self) -> list[dict[str, Any]]:
        # Columns of datasets' own types, such as Json, have values that only it can read.
        if b"huggingface" in (self.arrow.schema.metadata or {}):
            from datasets import Dataset
            from datasets.table import InMemoryTable

            return list(Dataset(InMemoryTable(self.arrow)))
        return self.arrow.to_pylist()

    def line(self, index: int, row: dict[str, Any], changes: dict[str, Any]) -> bytes:
        try:
            return _json_line({**row, **changes}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {self.first + index} cannot be written as JSON ({error}); write .parquet") from None

    def table(self, rows: list[dict[str, Any]]) -> "pa.Table":
        return self.arrow


Block: TypeAlias = Lines | Rows


def _json_line(row: dict[str, Any], **options: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair is only to be had escaped.
        return json.dumps(row, **options).encode()


def read_blocks(data: str, config: str | None, split: str | None, size: int) -> Iterator[Block]:
    """Return the rows of a data set in their order, in blocks of `size`; the last one may have fewer, none is empty."""
    path = Path(data).expanduser()
    # What a file does not have is for load_splits to say.
    if path.is_file() and config is None and split in (None, "train"):
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            return _line_blocks(path, size)
        if path.suffix == ".parquet":
            return _table_blocks(data, _parquet_tables(path, size), size)
    splits: dict[str, Any] = loading.load_splits(data, config, streaming=True)
    split = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if split not in splits:
        raise ValueError(f"data set {data!r} has no split {split!r}; found: {', '.join(splits)}; choose with --split")
    return _table_blocks(data, splits[split].with_format("arrow").iter(batch_size=size), size)


def _line_blocks(path: Path, size: int) -> Iterator[Block]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            numbered = enumerate(file, 1)
            stripped = ((number, text.removeprefix(codecs.BOM_UTF8).strip()) for number, text in numbered)
            rows = (line for line in stripped if line[1])
            while lines := list(islice(rows, size)):
                yield Lines(str(path), lines)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"data set {str(path)!r} cannot be read: {error}") from None


def _parquet_tables(path: Path, size: int) -> Iterator["pa.Table"]:
    """Give a file's rows in tables of exactly its schema, which datasets would turn into types of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=size):
                yield pa.Table.from_batches([batch]).cast(file.schema_arrow)
    except pa.ArrowInvalid as error:
        raise ValueError(f"data set {str(path)!r} cannot be read: {error}") from None


def _table_blocks(data: str, tables: Iterable["pa.Table"], size: int) -> Iterator[Block]:
    import pyarrow as pa

    held, first, tables = None, 0, iter(tables)
    while True:
        with loading.named_in_errors(f"data set {data!r}, after {first:,} rows,"):
            table = next(tables, None)
        if table is None:
            break
        held = table if held is None else pa.concat_tables([held, table], promote_options="permissive")
        while held.num_rows >= size:
            yield Rows(first, held.slice(0, size))
            held, first = held.slice(size), first + size
    if held is not None and held.num_rows:
        yield Rows(first, held)


def write_lines(file: IO[bytes], block: Block, rows: list, changes: Sequence[dict[str, Any] | None]) -> None:
    """Write a block as JSON lines. changes: what each row gets, None for a row that is left out."""
    for index, (row, change) in enumerate(zip(rows, changes, strict=True)):
        if change is not None:
            file.write(block.line(index, row, change) + b"\n")


def write_table(
    file: IO[bytes], block: Block, rows: list, changes: Sequence[dict[str, Any] | None], new_columns: Sequence[str]
) -> None:
    """Write a block as Parquet, its columns' types as they were. changes: what each row gets, None for a row that is left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = block.table(rows)
    kept = [index for index, change in enumerate(changes) if change is not None]
    if len(kept) < len(rows):
        table = table.take(pa.array(kept, pa.int64()))
    for name in dict.fromkeys([*(name for change in changes for name in change or ()), *new_columns]):
        values = [(changes[index] or {}).get(name, rows[index].get(name)) for index in kept]
        if name in table.column_names:
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.field(at), pa.array(values, table.field(at).type))
        else:
            kind = pa.list_(pa.float32()) if name == "rewards" else pa.float32()
            table = table.append_column(pa.field(name, kind), pa.array(values, kind))
    pq.write_table(table, file)


def join_lines(parts: list[Path], file: IO[bytes]) -> None:
    """Write parts of JSON lines one after the other."""
    for part in parts:
        with part.open("rb") as lines:
            shutil.copyfileobj(lines, file)


def join_tables(parts: list[Path], file: IO[bytes]) -> None:
    """Write Parquet parts as one file of one schema, a part at a time."""
    import pyarrow.parquet as pq

    schema = common_schema(parts)
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(with_schema(part, schema))


def common_schema(parts: list[Path]) -> "pa.Schema":
    """Return a schema that all parts' columns fit. Raises ValueError where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(parts[0])
    for part in parts[1:]:
        found = pq.read_schema(part)
        if found.equals(schema):
            continue
        try:
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except pa.ArrowException as error:
            raise ValueError(
                f"{part} and the parts before it fit no one Parquet schema ({error}); they stay as they are, and an output ending in .jsonl takes any rows"
            ) from None
    return schema


def with_schema(part: Path, schema: "pa.Schema") -> "pa.Table":
    """Return a part's rows in that schema, columns that it lacks empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(part) as file:
        table = file.read()
    if not table.schema.equals(schema):
        table = pa.concat_tables([schema.empty_table(), table], promote_options="permissive")
    return table.cast(schema)
