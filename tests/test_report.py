"""Results in, one page out: whole, escaped, the same each time, and never the end of a finished run."""

import json
import os
import re
import subprocess
import sys
import time

import made_results as made
import pytest

from plaudit import report
from plaudit.options import UsageError, parse_fields
from plaudit.report import ReportOptions, is_figure, place, try_report, write_comparison, write_report


@pytest.fixture
def folder(tmp_path):
    return made.write(
        tmp_path / "out", results={"hh_harmless": made.pairs_entry()}, mistakes=made.mistakes("hh_harmless")
    )


def without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    find_spec = report.importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )


def test_a_page_has_all_of_its_parts_and_nothing_from_elsewhere(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    for heading in ("In short", "Where it fails", "Figures", "Pictures", "Worst mistakes", "How this was computed"):
        assert f">{heading}</h" in page
    assert "<script" not in page
    assert re.findall(r"(?:src|href)=\"(?!#|data:,\")[^\"]*", page) == []
    assert "url(http" not in page
    assert "@import" not in page
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert "73.4" in page
    assert "I&#39;m sorry, but I can&#39;t help" in page


def test_no_heading_stands_over_nothing(tmp_path):
    made.write(tmp_path, state=made.trainer_state())
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for heading in ("Figures", "Pictures", "Worst mistakes", "The data", "Examples"):
        assert f">{heading}</h" not in page
    assert ">Training</h" in page
    made.write(tmp_path / "data", audit={"rows": 3})
    page = write_report(tmp_path / "data").read_text(encoding="utf-8")
    assert re.findall(r">([^<]+)</h[1-5]>", page) == ["What is in this data?", "The data"]


def test_the_same_results_give_the_same_bytes(folder):
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_hostile_names_and_texts_are_escaped(tmp_path):
    entry = made.pairs_entry()
    entry["subsets"] = {made.HOSTILE: made.figure(0.4, 400), "b": made.figure(0.6, 400)}
    entry["distributions"] = {name: made.distribution(1, -1) for name in ("all", made.HOSTILE, "b")}
    entry["provenance"] = {made.HOSTILE: made.HOSTILE, "model": made.HOSTILE}
    entry["incomplete"] = made.HOSTILE
    rows = made.mistakes(made.HOSTILE)
    for row in rows:
        row["id"] = row["subset"] = row["prompt"] = made.HOSTILE
        row["candidates"] = [{"text": made.HOSTILE * 9, "reward": 1.0, "label": label} for label in (0, 1)]
    summary = made.demo_summary()
    summary["examples"][0]["chosen"] = made.HOSTILE
    log = [{"step": 1, "loss": 0.7, f"eval_{made.HOSTILE}_loss": 0.6}, {"step": 2, f"eval_{made.HOSTILE}_loss": 0.5}]
    files = {"results": {made.HOSTILE: entry}, "mistakes": rows, "summary": summary, "state": {"log_history": log}}
    made.write(tmp_path, **files, audit={made.HOSTILE: {made.HOSTILE: made.HOSTILE}})
    page = write_report(tmp_path).read_bytes().decode("utf-8")
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "alert(&#39;x&#39;)" in page
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|>49<", page)
    for sign in ("\x00", "\u202e"):
        assert sign not in page


def test_a_line_of_a_hundred_kilobytes_leaves_the_page_light(tmp_path):
    rows = made.mistakes("hh")
    for row in rows:
        row["candidates"][1]["text"] = "x" * 100_000
    made.write(tmp_path, results={"hh": made.pairs_entry()}, mistakes=rows * 3)
    path = write_report(tmp_path)
    assert path.stat().st_size < 1_000_000
    assert "further characters are left out of this page" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", r"results.json cannot be read as JSON .*; make it again, or move it away"),
        ("results.json", "[]", r"results.json must hold a JSON object, not list"),
        ("results.json", '{"hh": 3}', r"results.json: 'hh' must hold a benchmark's results, not int"),
        ("trainer_state.json", "nonsense", r"trainer_state.json cannot be read as JSON"),
        ("mistakes.jsonl", '{"a": 1}\n', r"mistakes.jsonl, line 1: 'candidates' must be a list of objects"),
        ("mistakes.jsonl", '{"candidates": []}\n{', r"mistakes.jsonl, line 2: not JSON"),
        (
            "results.json",
            '{"hh": {"subsets": [1]}}',
            r"results.json .*holds what no report can be made of .*; make it again",
        ),
        ("trainer_state.json", '{"log_history": 5}', r"trainer_state.json .*holds what no report can be made of .*int"),
    ],
)
def test_a_broken_file_is_named_with_the_cure_and_leaves_the_old_page(folder, name, text, message):
    before = write_report(folder).read_bytes()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert [one.name for one in folder.iterdir() if one.name.startswith(".")] == []


def test_a_benchmark_without_a_figure_still_has_its_part_of_the_page(tmp_path):
    made.write(tmp_path, results={"nothing known": {}, "hh": made.pairs_entry()})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "There is no figure for nothing known." in text
    assert "73.4" in text


def test_a_page_that_cannot_be_put_in_place_leaves_the_old_one_whole(folder, monkeypatch):
    before = write_report(folder).read_bytes()
    made.write(folder, results={"other": made.pairs_entry()})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds nothing to report: none of results.json.*run plaudit evaluate"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="is no directory; name one that evaluate, train or demo wrote"):
        write_report(tmp_path / "absent")


def test_a_trainings_log_is_found_in_its_newest_checkpoint(tmp_path):
    for step in (900, 1_000):
        made.write(tmp_path / f"checkpoint-{step}", state={**made.trainer_state(), "global_step": step})
    (tmp_path / "checkpoint-best").mkdir()
    assert report.read_folder(tmp_path)["trainer_state.json"]["global_step"] == 1_000


def test_asked_for_by_hand_a_missing_extra_is_an_error_with_its_cure(folder, monkeypatch):
    without_matplotlib(monkeypatch)
    with pytest.raises(ImportError, match=r'^the report needs extra packages: pip install "plaudit\[report\]"$'):
        write_report(folder)


@pytest.mark.parametrize("fault", ["matplotlib", "file", "folder", "drawing"])
def test_at_the_end_of_a_run_any_failure_is_one_line(folder, monkeypatch, caplog, fault):
    if fault == "matplotlib":
        without_matplotlib(monkeypatch)
    elif fault == "file":
        (folder / "results.json").write_text("{")
    elif fault == "folder":
        folder = folder / "absent"
    else:
        monkeypatch.setattr("plaudit.plots.reliability", lambda *_: 1 / 0)
    assert try_report(folder) is None
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert caplog.messages[0].startswith("no report: ")
    assert f"plaudit report {folder}" in caplog.messages[0]


def test_at_the_end_of_a_run_the_page_is_written(folder, caplog):
    assert try_report(folder) == folder / "report.html"
    assert caplog.messages == []


def test_numbers_that_are_none_are_dashes(tmp_path):
    entry = made.pairs_entry()
    entry["overall"] |= {"half_credit": float("nan"), "interval": None}
    log = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": float("inf")}]
    made.write(tmp_path, results={"hh": entry}, state={"log_history": log})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r">\s*(nan|NaN|inf|None|null)\b", page)
    assert "nan" not in "".join(re.findall(r"<svg class=\"plot\".*?</svg>", page, re.DOTALL)).lower()


def test_a_comparison_is_written_from_a_dict_or_from_its_directory(tmp_path, monkeypatch):
    found = made.comparison()
    found["names"][0] = made.HOSTILE
    path = write_comparison(found, tmp_path / "new" / "comparison.html")
    page = path.read_text(encoding="utf-8")
    assert "McNemar" in page
    assert "<script" not in page
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    # It has no drawn pictures, so it needs nothing extra.
    without_matplotlib(monkeypatch)
    assert write_comparison(tmp_path, tmp_path / "b.html").read_text(encoding="utf-8") == page


def test_the_verb_takes_one_folder(folder):
    given = parse_fields(ReportOptions, "report", "DIR", "Write the page.", [str(folder)])
    assert report.run(**given) == folder / "report.html"
    with pytest.raises(UsageError, match="DIR"):
        parse_fields(ReportOptions, "report", "DIR", "Write the page.", [])


def test_a_page_is_made_without_torch_in_a_moment(folder):
    code = (
        "import sys, time; from plaudit import report; start = time.process_time(); report.write_report(sys.argv[1]);"
        "print(time.process_time() - start, *sorted({'torch', 'transformers', 'datasets', 'numpy.testing'} & set(sys.modules)))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    seconds, *loaded = done.stdout.split()
    assert loaded == []
    # A second on a quiet machine, matplotlib's import included; three leave room for a busy one.
    assert float(seconds) < 3, time.perf_counter() - start


@pytest.mark.parametrize(("cell", "is_it"), [("73.4\u00a0%", True), ("\N{EN DASH}", True), ("\N{MINUS SIGN}2.75", True), ("1,234", True), ("< 0.001", True), ("math-prm", False), ("12 monkeys", True), ("9f2c1d", False)])  # fmt: skip
def test_numbers_stand_on_the_right(cell, is_it):
    assert is_figure(cell) is is_it


def test_a_mark_stays_on_its_line():
    assert [place(share) for share in (-0.01, 0.5, 1.01)] == ["0.00%", "50.00%", "100.00%"]
