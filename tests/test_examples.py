"""The example scripts: each runs as it stands, on a tiny local model."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from plaudit import RewardModel

EXAMPLES = Path(__file__).parents[1] / "examples"
NEED_TRAINING = ("tiny_model", "continue_adapter", "scoring", "evaluation")
ON_A_MODEL = sorted(file.stem for file in EXAMPLES.glob("*.py") if file.stem not in NEED_TRAINING)


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
        "quick_start precision lora tool_calling arena margin_and_centering several_eval_sets best_checkpoint streaming"
    )
    assert sorted(shown.split()) == ON_A_MODEL


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_an_example_runs_on_a_tiny_model_and_what_it_saves_verifies(name, tiny, run, folder):
    before = set(folder.rglob("reward_model.json"))
    assert "train_loss" in run(name, tiny)
    for file in set(folder.rglob("reward_model.json")) - before:
        assert RewardModel.from_pretrained(str(file.parent)).verify().passed
    assert set(folder.rglob("reward_model.json")) - before


def test_an_adapter_is_continued_from_its_directory(tiny, run, folder):
    run("lora", tiny, str(folder / "adapter"))
    assert "train_loss" in run("continue_adapter", str(folder / "adapter"))
    assert (folder / "runs" / "continued" / "adapter_model.safetensors").exists()


def test_a_trained_adapter_is_verified_and_scored_with(tiny, run, folder):
    run("lora", tiny, str(folder / "scored-adapter"))
    printed = run("scoring", str(folder / "scored-adapter"))
    assert "verified: the rewards are the recorded ones" in printed
    rewards = [float(number) for number in re.findall(r"^([-+]\d+\.\d+) ", printed, flags=re.MULTILINE)]
    assert len(rewards) == 4
    assert rewards == sorted(rewards, reverse=True)
    assert "first preferred to second: 0." in printed


def test_a_trained_model_is_evaluated_and_every_figure_is_had_again_from_its_scores(tiny, run, folder):
    run("lora", tiny, str(folder / "evaluated-adapter"))
    printed = run("evaluation", str(folder / "evaluated-adapter"))
    assert "made-up (pairs)" in printed
    assert "the same from the scores: True" in printed
    assert re.search(r"model minus shortest: [-+][01]\.\d{3}", printed)
    held = {file.name for file in (folder / "runs" / "evaluation").iterdir()}
    assert {"scores.jsonl", "mistakes.jsonl", "results.json"} <= held
