"""Rows as Arrow tables: each once and in order, whatever holds them, and a file that cannot be read says so."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from planted_pairs import planted, texts, write

from plaudit import tables
from plaudit.tables import FileRows, Unreadable

ROWS = [{"prompt": f"p{i}", "chosen": "a" * i, "rejected": "b"} for i in range(30)]


def rows_of(parts):
    return [row for table in parts for row in table.to_pylist()]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "json", "saved"])
def test_every_row_is_given_once_and_in_order(form, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    (rows,) = tables.open_rows(write(ROWS, tmp_path, form)).values()
    assert isinstance(rows, FileRows) == (form in ("jsonl", "parquet"))
    assert rows_of(tables.tables(rows)) == ROWS
    assert tables.first_row_of(rows, "train") == ROWS[0]


@pytest.mark.parametrize(("limit", "num_read"), [(1, 1), (7, 1), (8, 2), (28, 4), (99, 4), (None, 4)])
def test_a_limit_is_kept_and_no_table_beyond_it_is_read(limit, num_read):
    read = []

    class Counted(FileRows):
        def tables(self):
            for first in range(0, 28, 7):
                read.append(first)
                yield pa.table({"number": range(first, first + 7)})

    found = [row["number"] for row in rows_of(tables.tables(Counted(Path("none")), limit))]
    assert found == list(range(28))[:limit]
    assert len(read) == num_read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "JSON parse error"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "UTF8"),
        (b'{"prompt": "a"}\n{"prompt": 1}\n', "changed from string to number"),
    ],
)
def test_a_file_that_cannot_be_read_in_place_says_why(content, says, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(Unreadable, match=says):
        rows_of(FileRows(tmp_path / "rows.jsonl").tables())


def test_a_file_without_rows_has_no_first_one(tmp_path):
    Dataset.from_list(ROWS).select([]).to_parquet(str(tmp_path / "rows.parquet"))
    assert tables.first_row_of(FileRows(tmp_path / "rows.parquet"), "train") is None


def test_values_that_are_kept_as_json_are_decoded(tmp_path):
    content = ["text", [{"type": "text", "text": "block"}]]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"chosen": [{"role": "user", "content": one}]} for one in content]))
    (rows,) = tables.open_rows(str(path)).values()
    (table,) = tables.tables(rows)
    assert [row["chosen"][0]["content"] for row in tables.python_rows(table, rows.features)] == content


def test_a_part_of_a_dataset_and_renamed_columns_are_read_as_they_are_now(tmp_path, monkeypatch):
    Dataset.from_list(texts(planted(7))).save_to_disk(str(tmp_path / "saved"))
    saved = Dataset.load_from_disk(str(tmp_path / "saved"))
    swapped = saved.rename_columns({"chosen": "x", "rejected": "chosen"}).rename_column("x", "rejected")
    for rows in (saved.select(range(5, 25)), saved.select([3, 1, 2]), saved, swapped):
        assert [row for table in tables.tables(rows) for row in table.to_pylist()] == rows.to_list()
    monkeypatch.setattr(tables, "BATCH_ROWS", 50)
    whole = tables.open_rows(str(tmp_path / "saved"))["train"]
    assert isinstance(whole, tables.CachedRows)
    assert [row for table in whole.tables() for row in table.to_pylist()] == saved.to_list()
    assert not tables.CachedRows(saved.select(range(5))).is_whole()
    assert not tables.CachedRows(saved.select([3, 1])).is_whole()


@pytest.mark.parametrize("group", [40_000, 1_000])
def test_a_parquet_file_is_never_held_whole_however_large_its_row_groups_are(group, tmp_path, monkeypatch):
    draw = random.Random(0)
    said = [f"{draw.getrandbits(4_000):x}" for _ in range(40_000)]
    pq.write_table(pa.table({"chosen": said, "rejected": said}), tmp_path / "a.parquet", row_group_size=group)
    assert (tmp_path / "a.parquet").stat().st_size > 30_000_000
    monkeypatch.setattr(tables, "BATCH_ROWS", 500)
    pool, most, count = pa.default_memory_pool(), 0, 0
    before = pool.bytes_allocated()
    for part in FileRows(tmp_path / "a.parquet").tables():
        most, count = max(most, pool.bytes_allocated() - before), count + len(part)
    assert count == 40_000
    assert most < 15_000_000


def test_a_fields_name_that_is_not_utf8_is_unreadable_also_inside_lists_and_structs(tmp_path):
    for line in (b'{"\xed\xa0\x80": 1}', b'{"a": [{"b": {"\xed\xa0\x80": 1}}]}'):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(line + b"\n")
        with pytest.raises(Unreadable, match="codec can't decode"):
            rows_of(FileRows(file).tables())
