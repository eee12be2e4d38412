"""Data sets by name."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from plaudit.loading import load_splits, load_train_and_test

ROWS = [{"chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(10)]


@pytest.fixture
def jsonl(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def written(folder, suffix):
    """Return a file of that kind which holds ROWS."""
    file, rows = folder / f"pairs{suffix}", Dataset.from_list(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if suffix == ".json":
        file.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        file.write_text(lines)
    elif suffix == ".jsonl.gz":
        file.write_bytes(gzip.compress(lines.encode()))
    elif suffix == ".csv":
        rows.to_csv(file)
    elif suffix == ".parquet":
        rows.to_parquet(file)
    else:
        rows.save_to_disk(folder / "saved")
        next((folder / "saved").glob("*.arrow")).rename(file)
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".jsonl.gz", ".csv", ".parquet", ".arrow"])
def test_a_file_of_each_kind_gives_its_rows_as_the_training_split(tmp_path, suffix):
    splits = load_splits(str(written(tmp_path, suffix)))
    assert list(splits) == ["train"]
    assert splits["train"].to_list() == ROWS


def test_a_directory_of_data_files_gives_its_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert sorted(load_splits(str(tmp_path))) == ["test", "train"]


def test_a_directory_written_by_save_to_disk_gives_its_splits(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one")
    assert sorted(load_splits(str(tmp_path / "both"))) == ["test", "train"]
    assert load_splits(str(tmp_path / "one"))["train"].to_list() == ROWS


@pytest.mark.parametrize("is_saved", [False, True])
def test_streaming_gives_the_same_rows_as_they_are_read(tmp_path, jsonl, is_saved):
    if is_saved:
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    train = load_splits(str(tmp_path / "saved" if is_saved else jsonl), streaming=True)["train"]
    assert isinstance(train, IterableDataset)
    assert list(train) == ROWS


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/missing/folder"])
def test_a_missing_file_or_directory_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"data set '{name}': there is no such"):
        load_splits(name)


def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(tmp_path):
    (tmp_path / "pairs.docx").write_text("?")
    with pytest.raises(ValueError, match=r"reads no \.docx files; known: \.json"):
        load_splits(str(tmp_path / "pairs.docx"))


def test_a_broken_file_is_named_with_the_reason(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a", \n not json\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl' cannot be read: .*JSON"):
        load_splits(str(tmp_path / "broken.jsonl"))


def test_a_missing_training_split_lists_those_found(jsonl):
    with pytest.raises(ValueError, match="has no split 'learn'; found: train"):
        load_train_and_test(str(jsonl), train_split="learn")


def test_without_a_test_split_there_are_no_test_rows(jsonl):
    assert load_train_and_test(str(jsonl))[1] is None


@pytest.mark.parametrize(("size", "num_test_rows"), [(0.2, 2), (3, 3), (0.001, 1)])
def test_held_out_rows_are_a_share_or_a_number_and_are_not_trained_on(jsonl, size, num_test_rows):
    train, test = load_train_and_test(str(jsonl), test_split_size=size)
    assert len(test) == num_test_rows
    assert sorted([*train["chosen"], *test["chosen"]]) == sorted(row["chosen"] for row in ROWS)


def test_held_out_rows_are_the_same_for_the_same_seed(jsonl):
    first, again = (load_train_and_test(str(jsonl), test_split_size=4)[1] for _ in range(2))
    other = load_train_and_test(str(jsonl), test_split_size=4, seed=1)[1]
    assert first["chosen"][:] == again["chosen"][:] != other["chosen"][:]


@pytest.mark.parametrize("size", [0, -1, 1.5, float("nan")])
def test_a_held_out_size_that_is_neither_share_nor_number_is_refused(jsonl, size):
    with pytest.raises(ValueError, match="must be a share between 0 and 1 or a whole number of rows"):
        load_train_and_test(str(jsonl), test_split_size=size)


def test_holding_out_every_row_is_refused(jsonl):
    with pytest.raises(ValueError, match="test_split_size=10 leaves no row to train on: .* has 10"):
        load_train_and_test(str(jsonl), test_split_size=10)


def test_holding_out_of_a_stream_is_refused_with_the_cure(jsonl):
    with pytest.raises(ValueError, match="leave out --dataset_streaming, or name a test split"):
        load_train_and_test(str(jsonl), test_split_size=2, streaming=True)
