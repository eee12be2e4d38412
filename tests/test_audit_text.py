"""An audit in words: every part that there is, none that there is not, and columns that stand under each other."""

import pytest

pytest.importorskip("duckdb")

from planted_pairs import planted, texts, write

from plaudit import audit, audit_text


@pytest.fixture
def name(tmp_path):
    return write(texts(planted(12)), tmp_path)


def test_the_text_names_every_fault_and_rule(name):
    said = audit.describe(audit.audit(name))
    for words in (*audit_text.FAULTS.values(), *audit_text.RULES.values()):
        assert words in said


def test_the_summary_is_the_texts_first_paragraph_and_in_the_figures(name):
    found = audit.audit(name)
    summary, _, rest = audit_text.describe(found).partition("\n")
    assert summary == audit_text.summarise(found) == found["summary"]
    assert rest.startswith("\nFaults\n")
    assert "\n" not in summary


def test_parts_that_are_not_there_are_not_spoken_of(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no" * i} for i in range(1, 4)]
    said = audit_text.describe(audit.audit(write(rows, tmp_path)))
    assert "None is empty, identical, repeated or contradictory." in said
    for words in ("By source", "By model", "Margins", "Overlap", "tokens", "left out"):
        assert words not in said


def test_groups_margins_and_overlaps_are_told(tmp_path):
    rows = [
        {
            "prompt": "q",
            "chosen": "yes",
            "rejected": "no",
            "source": f"s{i}",
            "chosen_model": "m",
            "rejected_model": "n",
        }
        | {"margin": 1.5}
        for i in range(25)
    ]
    (tmp_path / "other").mkdir()
    benchmark = write([{"prompt": " ".join(map(str, range(20))), "chosen": "a", "rejected": "b"}], tmp_path / "other")
    rows[3]["chosen"] = "first " + " ".join(map(str, range(5, 19)))
    found = audit.audit(write(rows, tmp_path), benchmarks=[benchmark], test_data=benchmark)
    said = audit_text.describe(found)
    assert "  and 5 more\n" in said
    assert "By model\n  model  answers    chosen\n" in said
    assert "least, quartiles and most: 1.5 1.5 1.5 1.5 1.5; 0 missing, 0 not finite, 0 negative, 0 zero" in said
    assert "1 of 1 prompts and 0 of 2 answers share 13 words in a row with the training data" in said
    assert "row 0 (prompt), training row 3: 5 6 7 8 9 10 11 12 13 14 15 16 17" in said
    assert "0 of 1 pairs of" in said


def test_columns_stand_under_each_other():
    assert audit_text.table([("name", "n"), ("a", "1,000"), ("long name", "2")]) == [
        "  name           n",
        "  a          1,000",
        "  long name      2",
    ]
