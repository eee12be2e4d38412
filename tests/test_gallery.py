"""Which pictures results give: only those that there is data for, each with its table."""

import made_results as made
import pytest

from plaudit.gallery import LONGEST_TABLE, benchmark_pictures, curves_of, training_pictures


def titles(entry):
    return [picture.title for picture in benchmark_pictures(entry, "k")]


def test_pairs_have_four_pictures_and_every_picture_has_its_table():
    pictures = benchmark_pictures(made.pairs_entry(), "k")
    assert [picture.title for picture in pictures] == [
        "Does it know how sure to be?",
        "Rewards of right and wrong answers",
        "The same, subset by subset",
        "Does length sway it?",
    ]
    for picture in pictures:
        assert picture.svg.startswith("<svg")
        assert picture.rows
        assert {len(row) for row in picture.rows} == {len(picture.columns)}


def test_what_is_missing_gives_no_picture():
    assert titles({}) == []
    empty = {"calibration": None, "distributions": {}, "lengths": None, "matrix": None, "curve": None}
    assert titles(empty) == []
    entry = made.pairs_entry()
    entry["distributions"] = {"all": made.distribution(1, 0), "only": made.distribution(1, 0)}
    assert "The same, subset by subset" not in titles(entry)


def test_the_matrix_has_each_domain_and_their_mean_in_its_table():
    picture = next(
        one for one in benchmark_pictures(made.rm_bench_entry(), "k") if one.title == "Style against substance"
    )
    assert [row[0] for row in picture.rows[::3]] == ["mean", "chat", "math", "code", "safety"]
    assert picture.columns[1:] == ("Right answer's style", "Wrong: concise", "Wrong: plain", "Wrong: markdown")
    assert picture.rows[0][2:] == ("72.0\u00a0%", "61.0\u00a0%", "38.0\u00a0%")
    alone = {**made.rm_bench_entry(), "matrices": {"chat": made.rm_bench_entry()["matrix"]}}
    rows = next(one for one in benchmark_pictures(alone, "k") if one.title == "Style against substance").rows
    assert [row[0] for row in rows] == ["chat"] * 3


def test_best_of_curves_come_alone_or_one_a_set():
    entry = made.best_of_entry()
    assert list(curves_of(entry)) == ["this model"]
    picture = benchmark_pictures(entry, "k")[-1]
    assert "a perfect choice" in picture.svg
    assert picture.rows[3][:2] == ("this model", "4")
    sets = {**entry, "curve": {"MATH": entry["curve"], "GPQA": entry["curve"]}}
    several = benchmark_pictures(sets, "k")[-1]
    assert {row[0] for row in several.rows} == {"MATH", "GPQA"}
    assert "a perfect choice" not in several.svg


def test_guessing_is_drawn_at_ln_2_and_only_over_the_loss(monkeypatch):
    marks = []
    monkeypatch.setattr("plaudit.plots.course", lambda *_, mark, share: marks.append((mark, share)) or "<svg>")
    training_pictures(made.trainer_state()["log_history"])
    assert marks[0][0][0] == pytest.approx(0.693147, abs=1e-6)
    assert marks[1:] == [(None, True), (None, False), (None, False)]


def test_training_has_a_picture_a_number_with_the_curves_of_every_set():
    log = made.trainer_state()["log_history"] + [{"step": 500, "eval_easy_loss": 0.3, "eval_easy_accuracy": 0.9}]
    pictures = training_pictures(log)
    assert [picture.title for picture in pictures] == ["Loss", "Accuracy", "Margin", "Learning rate"]
    assert "ln 2: guessing" in pictures[0].svg
    assert {row[0] for row in pictures[0].rows} == {"training", "evaluation", "easy"}
    assert pictures[1].rows[-1][2].endswith("%")


@pytest.mark.parametrize(
    "log", [[], [{"train_runtime": 3.0, "step": 5}], [{"loss": float("nan"), "step": 1}], [{"loss": 0.5}]]
)
def test_a_log_without_numbers_has_no_pictures(log):
    assert training_pictures(log) == []


def test_a_long_log_is_thinned_with_its_end_kept_and_said():
    log = [{"step": step, "loss": 1.0 / step} for step in range(1, 20_001)]
    picture = training_pictures(log)[0]
    assert len(picture.rows) <= LONGEST_TABLE + 1
    assert picture.rows[-1][1] == "20,000"
    assert "of 20,000 points" in picture.note
    assert len(picture.svg) < 40_000
