"""Files of scores: what is written is what is read, and a broken line is named."""

import gzip
import json
import math

import pytest

from plaudit.score_rows import ScoredRow, check_choice, read_rows, require_unique, write_rows

LINE = {
    "benchmark": "b",
    "id": "1",
    "subset": "s",
    "rewards": [0.5, -1],
    "labels": [1, 0],
    "tokens": [3, 4],
    "extra": {},
}


@pytest.fixture
def written(tmp_path):
    def write(*records):
        path = tmp_path / "scores.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.jsonl.gz"])
def test_rows_come_back_bit_for_bit(tmp_path, name):
    rows = [
        ScoredRow("b", "1", None, [0.1, 1 / 3, 5e-324, -1e300], [1, 0, 0, 1], [1, 2, 3, 4], {"prompt": "\u00fc\u2028"}),
        ScoredRow("b", "2", "s", [1.0, 2.0], [0, 1]),
    ]
    write_rows(tmp_path / name, rows)
    assert read_rows(tmp_path / name) == rows
    assert [path.name for path in tmp_path.iterdir()] == [name], "no partial file stays"


def test_rewards_of_numpy_are_written_as_numbers(tmp_path):
    import numpy as np

    write_rows(tmp_path / "s.jsonl", [ScoredRow("b", "1", None, np.array([0.1, 2]), np.array([True, False]))])
    assert read_rows(tmp_path / "s.jsonl")[0].rewards == [0.1, 2.0]
    assert read_rows(tmp_path / "s.jsonl")[0].labels == [1, 0]


def test_a_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "s.jsonl"
    write_rows(path, [ScoredRow("b", "1", None, [1, 0], [1, 0])])

    def broken():
        yield ScoredRow("b", "2", None, [1, 0], [1, 0])
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_rows(path, broken())
    assert [row.id for row in read_rows(path)] == ["1"]
    assert [file.name for file in tmp_path.iterdir()] == ["s.jsonl"]


def test_what_may_be_missing_or_null_may_be(written):
    rows = read_rows(
        written({"id": 7, "rewards": [1, 0], "labels": [True, False]}, "", {**LINE, "tokens": None, "extra": None}),
        benchmark="mine",
    )
    assert rows[0] == ScoredRow("mine", "7", None, [1.0, 0.0], [1, 0], None, {})
    assert (rows[1].benchmark, rows[1].tokens, rows[1].extra) == ("b", None, {})


def test_one_output_a_candidate_may_be_a_list_of_one(written):
    assert read_rows(written({**LINE, "rewards": [[3], [1.5]]}))[0].rewards == [3.0, 1.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{no json", "no JSON (Expecting property name enclosed in double quotes at column 2); write one JSON object"),
        ("[1, 2]", "must be a JSON object, not list [1, 2]; write one object a line"),
        ("[" * 100_000, "JSON of too many levels; write one flat object a line"),
        ({"id": None}, "'id' is missing; a row of scores has 'id', 'rewards' and 'labels'"),
        ({"rewards": None}, "'rewards' is missing"),
        ({"labels": None}, "'labels' is missing"),
        ({"id": True}, "'id' must be text or an integer, not bool True"),
        ({"id": 1.5}, "'id' must be text or an integer, not float 1.5"),
        ({"benchmark": 3}, "'benchmark' must be text or null, not int 3"),
        ({"subset": ["a"]}, "'subset' must be text or null, not list ['a']"),
        ({"rewards": 3}, "'rewards' must be a list of numbers, not int 3"),
        ({"rewards": [1]}, "'rewards' has 1 entries, but nothing can be compared with fewer than two"),
        ({"rewards": [[1, 2], [3, 4]]}, "'rewards' must hold one number a candidate"),
        ({"rewards": [1, "2"]}, "'rewards' must be finite numbers, but holds str '2'"),
        ({"rewards": [1, True]}, "'rewards' must be finite numbers, but holds bool True"),
        ({"rewards": [1, None]}, "'rewards' must be finite numbers, but holds NoneType None; score the row again, or"),
        ({"rewards": [1, math.nan]}, "'rewards' must be finite numbers, but holds nan; score the row again, or"),
        ({"rewards": [1, -math.inf]}, "'rewards' must be finite numbers, but holds -inf"),
        ({"rewards": [1, 10**400]}, "'rewards' holds an integer that no float can hold"),
        ({"labels": [1, 0, 0]}, "'labels' has 3 entries for 2 rewards; give each reward its label"),
        ({"labels": [1, 2]}, "'labels' must be a list of 0 and 1 (1: right), not list [1, 2]"),
        ({"labels": "10"}, "'labels' must be a list of 0 and 1"),
        ({"labels": ["1", "0"]}, "'labels' must be a list of 0 and 1"),
        ({"labels": [[1], [0]]}, "'labels' must be a list of 0 and 1"),
        ({"tokens": [1]}, "'tokens' has 1 entries for 2 rewards"),
        ({"tokens": [1, -1]}, "'tokens' must be a list of counts or null, not list [1, -1]"),
        ({"tokens": 5}, "'tokens' must be a list of counts or null, not int 5"),
        ({"extra": []}, "'extra' must be an object or null, not list []"),
    ],
)
def test_a_broken_line_is_named_with_field_value_and_cure(written, change, message):
    path = written({**LINE, "id": "0"}, "", change if isinstance(change, str) else {**LINE, **change})
    with pytest.raises(ValueError, match="scores.jsonl, line 3: ") as caught:
        read_rows(path)
    assert message in str(caught.value)
    assert ";" in str(caught.value) or "fewer than two" in str(caught.value)


def test_a_row_that_is_there_twice_is_named_with_both_lines(written):
    with pytest.raises(ValueError, match=r"line 3: 'id' '1' is also that of line 1 \(benchmark 'b', subset 's'\)"):
        read_rows(written(LINE, {**LINE, "id": "2"}, LINE))


def test_ids_may_repeat_in_other_subsets_and_benchmarks(written):
    assert (
        len(read_rows(written(LINE, {**LINE, "subset": "t"}, {**LINE, "benchmark": "c"}, {**LINE, "subset": None})))
        == 4
    )


def test_numbers_that_are_not_finite_pass_only_where_they_are_allowed(written):
    path = written({**LINE, "rewards": [math.nan, math.inf, None], "labels": [1, 0, 0], "tokens": None})
    nan, inf, null = read_rows(path, on_nonfinite="official")[0].rewards
    assert math.isnan(nan)
    assert inf == math.inf
    assert math.isnan(null)
    with pytest.raises(ValueError, match="on_nonfinite='skip' is not known; choose one of 'error', 'official'"):
        read_rows(path, on_nonfinite="skip")


def test_a_file_that_is_missing_empty_or_no_text_is_named(tmp_path, written):
    with pytest.raises(ValueError, match="none.jsonl: there is no such file of scores"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="scores.jsonl: the file has no rows"):
        read_rows(written(""))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"plain text")
    with pytest.raises(ValueError, match="bad.jsonl.gz: cannot be read as text"):
        read_rows(tmp_path / "bad.jsonl.gz")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(LINE).encode())[:-9])
    with pytest.raises(ValueError, match="cut.jsonl.gz: cannot be read as text"):
        read_rows(tmp_path / "cut.jsonl.gz")
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="bad.jsonl: cannot be read as text"):
        read_rows(tmp_path / "bad.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "s.jsonl").write_text(json.dumps(LINE), encoding="utf-8-sig")
    assert len(read_rows(tmp_path / "s.jsonl")) == 1


def test_rows_built_in_python_are_checked_for_repeats_too():
    row = ScoredRow("b", "1", "s", [1, 0], [1, 0])
    require_unique([row, ScoredRow("b", "1", "t", [1, 0], [1, 0])])
    with pytest.raises(ValueError, match="benchmark 'b', row '1' of subset 's': the row is there twice"):
        require_unique([row, row])


def test_a_known_word_passes():
    check_choice("weights", "a", ("a", "b"))


def test_half_a_surrogate_pair_in_an_id_is_written_as_it_is_read(tmp_path):
    file, again = tmp_path / "scores.jsonl", tmp_path / "again.jsonl"
    file.write_text('{"id": "a\\ud800", "rewards": [1, 0], "labels": [1, 0]}\n')
    rows = read_rows(file)
    write_rows(again, rows)
    assert read_rows(again) == rows
    assert rows[0].id == "a\ud800"
