"""An audit's part of a report: each of its parts in a table with the right units, and the rest as facts."""

import pytest

from plaudit.audit_page import audit_context

SPREAD = {"min": 0, "p25": 10, "median": 20.5, "p75": 30, "p95": 40, "p99": 50, "max": 1200, "mean": 21.25}
RULE = {"official": 0.4425, "half_credit": 0.4449, "n": 2312, "ties": 11, "interval": [0.42, 0.46]}
AUDIT = {
    "summary": "2,312 pairs.",
    "data": "pairs.jsonl",
    "rows": 2312,
    "faults": {"empty_chosen": {"count": 4, "share": 0.0017, "rows": [86, 516, 925, 1103, 1104, 1105]}},
    "baselines": {"longer_wins": RULE},
    "lengths": {"words": {"chosen": SPREAD}},
    "sources": {
        "column": "source",
        "groups": 1,
        "listed": [{"source": "my_web", "n": 9, "share": 1.0, "longer_wins": RULE}],
    },
    "models": {"groups": 1, "listed": [{"model": "m", "n": 9, "wins": 3, "share": 1 / 3}]},
    "margins": {"n": 9, "missing": 1, "not_finite": 0, "negative": 2, "zero": 3, **SPREAD},
    "sharing": {"unit": "characters", "batch_size": 8, "within_pairs": 0.7162, "padded_to_real": 2.65, "prompts": 5},
    "test_overlap": {"test": "test", "pairs": 50, "prompts": {"count": 3, "share": 0.06, "rows": [1]}},
    "benchmark_overlap": {
        "my_bench.jsonl": {"rows": 10, "rows_found": 2, "rows_share": 0.2, "prompts_found": 1, "answers_found": 1}
        | {"examples": [{"row": 4, "in": "prompt", "run": "a b", "train_row": 7}]}
    },
    "tokens": {
        "tokenizer": "t",
        "pairs": 9,
        "lengths": {"chosen": SPREAD},
        "sharing": {"unit": "tokens", "within_pairs": 0.5},
    },
}
SHOWN = ("0", "10", "20.50", "30", "40", "50", "1,200", "21.25")


def test_every_part_has_its_table_in_its_units():
    found = {table.title: table for table in audit_context(AUDIT)["tables"]}
    rows = {title: table.rows for title, table in found.items()}
    assert rows == {
        "Faults": [("empty chosen", "4", "0.2\u00a0%", "86, 516, 925, 1103, 1104")],
        "What trivial rules would get right": [("longer wins", "44.2\u00a0%", "44.5\u00a0%", "42.0 to 46.0\u00a0%")],
        "Lengths in words": [("chosen", *SHOWN)],
        "Lengths in tokens": [("chosen", *SHOWN)],
        "By source": [("my_web", "9", "100.0\u00a0%", "44.5\u00a0%")],
        "By model": [("m", "9", "33.3\u00a0%")],
        "Margins": [("margin", "1", "0", "2", "3", *SHOWN)],
        "Test pairs found in the training data": [("prompts", "3", "6.0\u00a0%", "1")],
        "Benchmarks found in the training data": [("my_bench.jsonl", "10", "2", "20.0\u00a0%", "1", "1")],
        "Shared runs of words": [("my_bench.jsonl", "4", "prompt", "7", "a b")],
        "What is told twice, and what layouts cost": [
            ("characters", "71.6\u00a0%", "2.650"),
            ("tokens", "50.0\u00a0%", "\N{EN DASH}"),
        ],
    }
    for table in found.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_what_no_table_shows_is_a_fact_and_nothing_is_shown_twice():
    assert audit_context(AUDIT)["facts"] == [
        ("data", "pairs.jsonl"),
        ("rows", "2,312"),
        ("sharing, batch size", "8"),
        ("sharing, prompts", "5"),
        ("test overlap, test", "test"),
        ("test overlap, pairs", "50"),
        ("tokens, tokenizer", "t"),
        ("tokens, pairs", "9"),
    ]


def test_parts_that_are_not_there_have_no_table():
    assert audit_context(None) is None
    assert audit_context({"summary": None, "sources": None, "margins": None}) == {
        "summary": "",
        "tables": [],
        "facts": [],
    }


@pytest.mark.parametrize("wrong", [3, "x", [1], {"a": 1}])
def test_a_file_by_other_hands_breaks_nothing(wrong):
    for name in AUDIT:
        assert audit_context({**AUDIT, name: wrong})["tables"]
