"""README and docs: the code runs and prints what it says, the links lead somewhere."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the examples and the tiny model that README speaks of."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tiny_model.py", "runs/tiny-model"])
    runpy.run_path("examples/tiny_model.py", run_name="__main__")
    return tmp_path


def test_the_code_is_short_and_prints_what_is_shown(checkout, capfd):
    train, score = blocks(README, "python")
    for code in (train, score):
        assert len([line for line in code.splitlines() if line.strip()]) < 15
        exec(compile(code, "README.md", "exec"), {})  # our own page
    printed = capfd.readouterr().out
    shown = "".join(blocks(README, "text")[:2])
    for line in shown.strip().splitlines():
        # The numbers depend on the processor's arithmetic, their places do not.
        pattern = re.sub(r"-?\d+\\\.\d+", r"-?\\d+\\.\\d+", re.escape(line))
        assert re.search(pattern, printed), line


def test_the_command_lines_on_the_page_are_accepted(checkout, capfd):
    from plaudit.cli import VERBS, main

    lines = [line.split() for line in re.findall(r"^plaudit ([a-z]+ .*)$", README, flags=re.MULTILINE)]
    assert {verb for verb, *_ in lines} == {*VERBS} - {"demo", "merge", "report"}
    expected = {
        "train": "saved to runs/",
        "score": "60 of 60 rows in runs/scored.jsonl",
        "verify": "verified: the rewards are the recorded ones",
        "evaluate": "results in runs/evaluated",
        "compare": "A is five-epochs, B is cli",
        "audit": "None is empty, identical, repeated or contradictory",
        "doctor": "healthy: no fault was found",
        "plan": "accelerate launch --config_file examples/distributed/fsdp2.yaml",
    }
    for verb, *arguments in lines:
        steps = ["--max_steps", "1"] if verb == "train" else []
        assert main([verb, *arguments, *steps]) == 0
        assert expected[verb] in capfd.readouterr().out
    assert (checkout / "runs/evaluated/report.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_example_is_in_the_table_of_examples():
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for file in (ROOT / "examples").glob("*.*"):
        if file.suffix in (".py", ".yaml"):
            assert f"{file.name}" in table, file.name
