"""The example scripts: each runs as it stands, on a tiny local model."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ON_A_MODEL = sorted(file.stem for file in EXAMPLES.glob("*.py") if file.stem not in ("tiny_model", "continue_adapter"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture
def run(folder, monkeypatch, capfd):
    def run(name, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out

    return run


@pytest.fixture
def tiny(run, folder):
    if not (folder / "tiny").exists():
        run("tiny_model", str(folder / "tiny"))
    return str(folder / "tiny")


def test_there_is_an_example_of_everything_that_the_documents_show():
    shown = (
        "quick_start precision lora tool_calling arena margin_and_centering several_eval_sets best_checkpoint streaming "
        "several_answers"
    )
    assert sorted(shown.split()) == ON_A_MODEL


@pytest.mark.parametrize("name", [name for name in ON_A_MODEL if name != "several_answers"])
def test_an_example_runs_on_a_tiny_model(name, tiny, run):
    assert "train_loss" in run(name, tiny)


def test_an_adapter_is_continued_from_its_directory(tiny, run, folder):
    run("lora", tiny, str(folder / "adapter"))
    assert "train_loss" in run("continue_adapter", str(folder / "adapter"))
    assert (folder / "runs" / "continued" / "adapter_model.safetensors").exists()


def test_several_answers_are_scored_with_their_prompt_computed_once(tiny, run):
    first, *scored = run("several_answers", tiny).splitlines()
    given, computed = map(int, re.findall(r"\d+", first))
    assert computed < given / 2
    assert len([float(line.split()[0]) for line in scored]) == 4
