"""What is counted over the table of pairs, against plain counts."""

import threading
from pathlib import Path

import pytest

pytest.importorskip("duckdb")

from planted_pairs import (
    FORMATS,
    as_pairs_of_texts,
    conversational,
    plain_accuracy,
    plain_common,
    plain_first_word,
    plain_spread,
    planted,
    texts,
    write,
)

from plaudit import audit, census, sides, tables


@pytest.mark.parametrize("seed", range(3))
def test_the_first_words_score_is_fitted_on_the_other_half(seed, tmp_path):
    pairs = as_pairs_of_texts(planted(seed, 60))
    name = write(texts(pairs), tmp_path)
    reading = sides.reading_of(tables.FileRows(Path(name)), "train")
    with census.Census(2) as table:
        audit._fill(table, "pairs", tables.tables(tables.FileRows(Path(name))), reading)
        halves = [half for (half,) in table.rows("SELECT prompt % 2 FROM pairs ORDER BY row")]
        found = census.figures(table, reading, 8)["baselines"]["first_word_wins"]
    assert {0, 1} == set(halves)
    by_prompt = {(str(b), half) for (b, *_), half in zip(pairs, halves, strict=True)}
    assert len(by_prompt) == len({prompt for prompt, _ in by_prompt}), "a prompt is in one half only"
    expected = plain_first_word(pairs, halves)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("form", ["transcripts", "texts", "prompted"])
def test_the_layouts_cost_what_a_plain_count_of_characters_gives(form, tmp_path):
    written, read = FORMATS[form]
    rows = written(planted(3))
    found = audit.audit(write(rows, tmp_path), batch_size=5)["sharing"]

    def sides_of(row, pair):
        if form == "transcripts":
            return [row[side].rpartition("\n\nAssistant:")[0] for side in ("chosen", "rejected")]
        said = pair[0][0][1] if form == "texts" else "".join(f"{role}\x1f{one}\x1e" for role, one in pair[0])
        return [said, said]

    padded = real = unique = shared = 0
    pairs = [(sides_of(row, pair), pair[2:]) for row, pair in zip(rows, read(planted(3)), strict=True)]
    for first in range(0, len(pairs), 5):
        batch = pairs[first : first + 5]
        every = [before + answer for befores, answers in batch for before, answer in zip(befores, answers, strict=True)]
        padded += len(every) * max(map(len, every))
        real += sum(map(len, every))
        seen = set()
        for (one, other), answers in batch:
            common = len(one) + plain_common(*answers) if one == other else plain_common(one, other)
            shared += common
            unique += (
                len(one)
                + len(other)
                + len(answers[0])
                + len(answers[1])
                - common
                - (len(one) if (one, one == other) in seen and one == other else 0)
            )
            seen.add((one, one == other))
    assert unique < real < padded
    assert found["padded_to_real"] == pytest.approx(padded / real)
    assert found["real_to_unique"] == pytest.approx(real / unique)
    assert found["padded_to_unique"] == pytest.approx(padded / unique)
    assert found["within_pairs"] == pytest.approx(2 * shared / real)


def test_counts_do_not_depend_on_the_rows_order(tmp_path):
    pairs = planted(5)
    (tmp_path / "other").mkdir()
    one = audit.audit(write(conversational(pairs), tmp_path))
    other = audit.audit(write(conversational(pairs[::-1]), tmp_path / "other"))
    for name in one["faults"]:
        assert one["faults"][name]["count"] == other["faults"][name]["count"]
    assert one["baselines"] == other["baselines"]
    assert one["lengths"] == other["lengths"]


def test_sources_models_and_margins_are_counted(tmp_path):
    rows = [
        {
            **row,
            "source": "ab"[i % 2],
            "chosen_model": "m1",
            "rejected_model": f"m{1 + i % 3}",
            "margin": [1.0, -2.0, 0.0][i % 3],
        }
        for i, row in enumerate(texts(planted(9, 60)))
    ]
    found = audit.audit(write(rows, tmp_path))
    for one in found["sources"]["listed"]:
        mine = [row for row in rows if row["source"] == one["source"]]
        assert (one["n"], one["share"]) == (len(mine), len(mine) / len(rows))
        assert one["longer_wins"] == plain_accuracy([len(row["chosen"]) - len(row["rejected"]) for row in mine])
    wins = {one["model"]: (one["n"], one["wins"]) for one in found["models"]["listed"]}
    assert wins == {"m1": (80, 60), "m2": (20, 0), "m3": (20, 0)}
    assert {name: found["margins"][name] for name in ("n", "negative", "zero", "median")} == {
        "n": 60,
        "negative": 20,
        "zero": 20,
        "median": 0.0,
    }


def test_a_columns_name_is_never_a_statement(tmp_path):
    name = 'x"; DROP TABLE pairs; --'
    rows = [{**row, name: "'; DROP TABLE pairs; --"} for row in texts(planted(10, 20))]
    found = audit.audit(write(rows, tmp_path), source=name)
    assert found["sources"]["column"] == name
    assert found["sources"]["listed"][0]["source"] == "'; DROP TABLE pairs; --"
    assert found["pairs"] == len(rows)


def test_the_temporary_file_is_gone_even_after_an_error(tmp_path, monkeypatch):
    name = write(texts(planted(12)), tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    seen = []
    real = census.connect
    monkeypatch.setattr(census, "connect", lambda folder, threads: seen.append(folder) or real(folder, threads))
    audit.audit(name)
    monkeypatch.setattr(census, "figures", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit.audit(name)
    assert len(seen) == 2
    assert list((tmp_path / "here").glob("plaudit-audit-*")) == []


@pytest.mark.parametrize("values", [[7], [3, 1, 2], [5] * 9 + [1], list(range(100)), [0, 0, 0, 10**9]])
def test_a_spread_is_made_of_values_that_are_there(values):
    assert census.spread([(value, values.count(value)) for value in set(values)]) == plain_spread(values)


def test_layouts_of_nothing_have_no_ratio():
    assert census.ratios(6.0, 4.0, 2.0) == {"padded_to_real": 1.5, "real_to_unique": 2.0, "padded_to_unique": 3.0}
    assert set(census.ratios(0.0, 0.0, 0.0).values()) == {None}


def test_work_waits_for_its_turn_and_an_error_in_it_comes_out():
    submitted, at_gate, gate = [], [], threading.Event()

    def work(number):
        gate.wait(5)
        if number == 3:
            raise KeyError("in a thread")

    def open_gate():
        at_gate.append(len(submitted))
        gate.set()

    def submit_all():
        with census.workers(2) as submit:
            threading.Timer(0.3, open_gate).start()
            for number in range(8):
                submit(work, number)
                submitted.append(number)

    with pytest.raises(KeyError, match="in a thread"):
        submit_all()
    assert at_gate == [4], "two run and two wait"
