"""Data sets by name."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from plaudit.loading import line_problem, load_splits, load_train_and_test, named_in_errors
from plaudit.records import ROW

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


LINES = [json.dumps(row) for row in ROWS]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "x.jsonl",
            "\n".join([*LINES[:7], '{"chosen": oops', LINES[8]]),
            r"line 8 is not JSON \(Expecting value, column 12",
        ),
        ("x.jsonl.gz", "\n".join([*LINES[:7], '{"chosen": oops']), r"line 8 is not JSON \(Expecting value, column 12"),
        ("x.json", "\n".join([*LINES[:7], '{"chosen": oops']), "line 8 is not JSON"),
        ("x.json", '[{"chosen": "a"},\n{"chosen" "b"}]', r"line 2 is not JSON \(Expecting ':' delimiter, column 11\)"),
        ("x.jsonl", "[1, 2]\n[3, 4]\n", "line 1 holds a list, but must hold an object, a row"),
        ("x.jsonl", '{"chosen": "é"}\n{"chosen": "a"}\n'.encode("latin-1"), r"line 1 is not UTF-8 \(byte 0xe9\); save"),
        (
            "x.csv",
            "chosen,rejected\né,b\n".encode("latin-1"),
            r"line 2 is not UTF-8 \(byte 0xe9\); save the file as UTF-8",
        ),
        ("x.jsonl.gz", b"not compressed", "Not a gzipped file"),
        ("x.parquet", b"", "Parquet file size is 0 bytes"),
        ("x.arrow", b"ab", "File is too small"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_short_line_with_the_reason(
    tmp_path, caplog, name, content, reason, streaming
):
    content = content.encode() if isinstance(content, str) else content
    is_packed = name.endswith(".gz") and content.startswith(b"{")
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    with pytest.raises(ValueError, match=rf"^data set '.*{name}' cannot be read: {reason}") as caught:
        next(iter(load_splits(str(tmp_path / name), streaming=streaming)["train"]))
    assert len(str(caught.value)) < 300 + len(str(tmp_path)) + 50
    assert "Failed to" not in caplog.text


def test_a_broken_line_far_into_a_file_is_named_by_its_number(tmp_path):
    lines = [json.dumps({**ROWS[0], "number": number}) for number in range(10_000)]
    lines[9_875] = '{"chosen": oops'
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"long\.jsonl' cannot be read: line 9,876 is not JSON"):
        load_splits(str(tmp_path / "long.jsonl"))


def test_a_directory_that_is_no_data_set_is_one_short_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({f"column {number}": [{"a": 1}] for number in range(100)}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match=f"^data set '{tmp_path}' cannot be read: ") as caught:
        load_splits(str(tmp_path))
    assert len(str(caught.value).removeprefix(f"data set '{tmp_path}' cannot be read: ")) <= 300
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e.jsonl", ""),
        ("e.json", ""),
        ("e.json", "[]"),
        ("e.json", "{}"),
        ("e.csv", "chosen,rejected\n"),
        ("e.jsonl", "\n\n"),
    ],
)
def test_a_file_without_rows_is_named(tmp_path, name, text, streaming):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^data set '.*{name}' holds no rows; give it at least one pair"):
        load_splits(str(tmp_path / name), streaming=streaming)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_rows_is_named(tmp_path, split):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("chosen,rejected\n" + "a,b\n" * (name != split))
    with pytest.raises(ValueError, match=f"holds no rows in split '{split}'; give it at least one pair"):
        load_train_and_test(str(tmp_path), streaming=True)


def test_a_saved_data_set_without_rows_is_named(tmp_path):
    Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved' holds no rows; give it at least one pair"):
        load_splits(str(tmp_path / "saved"))


def test_a_configuration_of_a_file_is_refused(tmp_path, jsonl):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for name in (jsonl, tmp_path / "saved"):
        with pytest.raises(
            ValueError, match="has no configurations, so dataset_config='small' has no effect; leave it out"
        ):
            load_splits(str(name), "small")


def test_the_training_split_is_never_its_own_test_split(jsonl):
    assert load_train_and_test(str(jsonl), test_split="train")[1] is None


def test_rows_that_were_split_know_their_number_in_the_file(jsonl):
    for rows in load_train_and_test(str(jsonl), test_split_size=4):
        assert [ROWS[number]["chosen"] for number in rows[ROW]] == list(rows["chosen"])
    assert ROW not in load_train_and_test(str(jsonl))[0].column_names


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
    with pytest.raises(ValueError, match=r"leave out streaming \(--dataset_streaming\), or name a test split"):
        load_train_and_test(str(jsonl), test_split_size=2, streaming=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": ' * 50_000, "is JSON of too many levels"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "is not JSON that can be read"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 0xff)"),
        (b"[1]", "holds a list, but must hold an object"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_words(line, said):
    assert said in line_problem(line, "json")


def test_a_stream_that_breaks_later_is_an_error_that_says_where(tmp_path):
    from collections import Counter

    from plaudit.prepare import kept_rows

    file = tmp_path / "pairs.jsonl"
    good = json.dumps({"chosen": "good " * 10_000}) + "\n"
    # More than the readers take at a time, so that the first rows are there before the broken one.
    file.write_bytes(good.encode() * 300 + b'{"chosen": "\xff\n')
    rows = load_splits(str(file), streaming=True)["train"]
    counts = Counter()
    with pytest.raises(ValueError, match=r"the stream, after \d+ rows, cannot be read to its end: .*; mend the data"):
        list(kept_rows(rows, counts))
    assert 0 < counts["rows"] <= 300


def test_our_own_errors_and_those_of_the_machine_are_left_as_they_are():
    for error in (ValueError("train row 3: bad"), OSError("disk"), KeyError("x")):
        with pytest.raises(type(error)) as raised, named_in_errors("here"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), json.JSONDecodeError("no", "x", 0)]
)
def test_a_readers_error_is_named(error):
    with pytest.raises(ValueError, match="here cannot be read to its end: .*; mend the data"), named_in_errors("here"):
        raise error
