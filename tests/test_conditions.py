"""Conditions that make an audit fail: read as they are meant, judged, and refused where they mean nothing."""

import operator
import re

import pytest

pytest.importorskip("duckdb")

from planted_pairs import planted, texts, write

from plaudit import audit
from plaudit.conditions import Condition


@pytest.fixture
def name(tmp_path):
    return write(texts(planted(12)), tmp_path)


@pytest.mark.parametrize(
    ("text", "comparison", "bound", "is_share"),
    [
        ("identical", ">", 0.0, False),
        ("duplicates>1%", ">", 0.01, True),
        (" duplicates >= 100 ", ">=", 100.0, False),
        ("longer-wins<.7", "<", 0.7, True),
        ("longer_wins<=70 %", "<=", 0.7, True),
        ("malformed>1e3", ">", 1000.0, False),
    ],
)
def test_a_condition_is_read_as_it_is_meant(text, comparison, bound, is_share):
    found = Condition.of(text)
    assert (found.comparison, found.bound, found.is_share) == (comparison, pytest.approx(bound), is_share)


@pytest.mark.parametrize("comparison", [">", ">=", "<", "<="])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_condition_holds_as_its_sign_says(comparison, count):
    found = {"faults": {"identical": {"count": count, "share": count / 10, "rows": [4]}}}
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}[comparison]
    for bound in ("2", "20%"):
        text = f"identical{comparison}{bound}"
        said = [f"{text}: {count} ({10 * count}.00 %), first in row 4"] if compare(count, 2) else []
        assert Condition.of(text).lines(found) == said


def test_overlap_is_judged_of_tests_and_of_each_benchmark():
    found = {
        "test_overlap": {"prompts": {"count": 3, "share": 0.3, "rows": [1, 2]}},
        "benchmark_overlap": {"a": {"rows_found": 0, "rows_share": 0.0}, "b": {"rows_found": 2, "rows_share": 0.5}},
    }
    assert Condition.of("overlap").lines(found) == [
        "overlap: 3 (30.00 %) test prompts, first in rows 1, 2",
        "overlap: 2 (50.00 %) rows of b",
    ]


@pytest.mark.parametrize(
    ("conditions", "held"),
    [
        (["identical"], 1),
        (["duplicates>1%"], 1),
        (["duplicates>99%"], 0),
        (["duplicates>=1"], 1),
        (["duplicates > 10000"], 0),
        (["malformed", "dropped"], 0),
        (["longer_wins>99%", "contradictory"], 1),
        (["longer_wins<99%", "shorter-wins<0.99"], 1),
    ],
)
def test_a_condition_that_holds_is_the_exit_code(name, conditions, held):
    text, code = audit.run(data=name, fail_on=conditions)
    assert code == held
    assert ("failed: " in text) == bool(held)


def test_a_failed_condition_says_count_share_and_rows(name):
    found = audit.audit(name)["faults"]["identical"]
    text, _ = audit.run(data=name, fail_on="identical")
    rows = ", ".join(map(str, found["rows"][:5]))
    assert (
        text.splitlines()[-1]
        == f"failed: identical: {found['count']} ({100 * found['share']:.2f} %), first in rows {rows}"
    )


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("duplicate", "unknown name 'duplicate'; did you mean 'duplicates'?; known: empty, identical"),
        ("longer_wins", "needs a bound, such as longer_wins>70%"),
        ("longer_wins>70", "asks for a share above 100 %"),
        ("duplicates>0.5", "asks for a part of a pair"),
        ("duplicates=1", "is no condition"),
        ("duplicates>1.2.3", "is no condition"),
        ("", "is no condition"),
        ("overlap", "cannot be judged: it needs a test split or --test_data"),
        ("benchmark_overlap", "cannot be judged: it needs --benchmarks"),
        ("over_max_length>1%", "cannot be judged: it needs --max_length"),
    ],
)
def test_a_condition_that_cannot_be_judged_is_an_error(name, condition, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        audit.run(data=name, fail_on=[condition])
