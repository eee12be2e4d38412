"""Values of any file as flat facts: named by their path, shown by what they are."""

import pytest

from plaudit.listing import facts_of, shown


def test_nested_facts_are_named_by_their_path():
    facts = facts_of(
        {"data": {"rows": 3, "hash": "ab"}, "ok": True, "gone": None, "rows": [], "seconds": 1.25, "names": ["a", "b"]}
    )
    assert facts == [
        ("data, rows", "3"),
        ("data, hash", "ab"),
        ("ok", "yes"),
        ("gone", "\N{EN DASH}"),
        ("rows", "\N{EN DASH}"),
        ("seconds", "1.250"),
        ("names", "a, b"),
    ]


def test_a_list_of_objects_is_read_by_their_places_and_a_long_one_is_cut():
    assert facts_of({"examples": [{"row": 4}, {"row": 7}]}) == [("examples, 1, row", "4"), ("examples, 2, row", "7")]
    (fact,) = facts_of({"rows": list(range(30))})
    assert fact[1].endswith("18, 19 \N{HORIZONTAL ELLIPSIS}")
    assert facts_of({"interval": [0.25, 0.5]}) == [("interval", "25.0 to 50.0\u00a0%")]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("official", 0.5, "50.0\u00a0%"),
        ("within_pairs", 0.5, "50.0\u00a0%"),
        ("rows", 1234.0, "1,234"),
        ("kl", 0.5, "0.500"),
        ("kl", float("nan"), "\N{EN DASH}"),
    ],
)
def test_a_number_is_shown_as_its_name_asks(key, value, text):
    assert shown(key, value) == text
