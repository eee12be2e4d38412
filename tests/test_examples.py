"""The example scripts: each runs as it stands, on a tiny local model."""

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit import RewardConfig, RewardModel, options

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


DISTRIBUTED = EXAMPLES / "distributed"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_each_launch_file_as_the_engine_that_it_names(name):
    from accelerate.commands.config.config_args import load_config_from_file

    text = (DISTRIBUTED / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"accelerate launch --config_file examples/distributed/{name}.yaml -m plaudit train" in text
    read = load_config_from_file(str(DISTRIBUTED / f"{name}.yaml"))
    assert read.distributed_type == KINDS[name]
    assert read.num_processes == 8
    assert read.mixed_precision == "bf16"
    if KINDS[name] == "DEEPSPEED":
        assert read.deepspeed_config["zero_stage"] == int(name[-1])
    if KINDS[name] == "FSDP":
        assert read.fsdp_config["fsdp_version"] == 2


def test_there_is_a_launch_file_for_every_engine():
    assert sorted(file.stem for file in DISTRIBUTED.glob("*.yaml")) == sorted(KINDS)


def test_two_processes_train_as_ddp_yaml_says(tiny, folder):
    words = f"""-m accelerate.commands.launch --config_file {DISTRIBUTED}/ddp.yaml --num_processes 2 --mixed_precision no
        --main_process_port 0 -m plaudit train --use_cpu true --model_name_or_path {tiny}
        --dataset_name {EXAMPLES}/data/pairs.jsonl --output_dir launched --max_steps 2
        --per_device_train_batch_size 4 --save_strategy no --report_to none --logging_steps 1"""
    with (folder / "launched.log").open("w") as log:
        started = subprocess.run(
            [sys.executable, *words.split()],
            cwd=folder,
            stdout=log,
            stderr=log,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert started.returncode == 0, (folder / "launched.log").read_text()[-3000:]
    state = json.loads((folder / "launched" / "trainer_state.json").read_text())
    # Two steps of two processes' four pairs, of sixty.
    assert state["log_history"][0]["epoch"] == pytest.approx(1 / 8, abs=0.01)
    assert state["global_step"] == 2
    assert RewardModel.from_pretrained(str(folder / "launched")).verify().passed


# What a cluster would have: srun starts each task, and what the tasks run writes down how it was started.
SRUN = """#!/bin/bash
shift
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
SLURM_PROCID=1 SLURM_LOCALID=1 "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo first-machine; echo second-machine; else echo "$@" > requeued; fi
"""
PLAUDIT = f"""#!{sys.executable}
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
with open("task-" + os.environ["RANK"], "w") as file:
    json.dump({{"words": sys.argv[1:], **{{name: os.environ[name] for name in names}}}}, file)
sys.exit(int(os.environ["ENDS_WITH"]))
"""


@pytest.mark.parametrize("ends_with", [0, 1, 143])
def test_the_slurm_script_starts_a_process_a_task_and_requeues_what_was_stopped(ends_with, tmp_path):
    script = DISTRIBUTED / "train.slurm"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("plaudit", PLAUDIT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "m[1-2]", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    env = {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ENDS_WITH": str(ends_with)}
    env["CONFIG"] = "a file.yaml"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert subprocess.run(["bash", str(script)], cwd=tmp_path, env=env, timeout=60).returncode == ends_with
    assert (tmp_path / "requeued").exists() == (ends_with == 143)
    for rank in (0, 1):
        task = json.loads((tmp_path / f"task-{rank}").read_text())
        assert [task[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == [
            str(rank),
            str(rank),
            "2",
            "1",
        ]
        assert task["MASTER_ADDR"] == "first-machine"
        assert 1024 < int(task["MASTER_PORT"]) < 65536
        verb, *words = task["words"]
        assert (verb, words[:2]) == ("train", ["--config", "a file.yaml"])
        given = dict(zip(words[::2], words[1::2], strict=True))
        options.parse_train(
            [*words[2:], "--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path)]
        )
        known = {field.name for field in dataclasses.fields(RewardConfig)}
        assert {word.removeprefix("--") for word in given} - {"config"} <= known
        assert json.loads(given["--fsdp_config"]) == {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
        assert given["--resume_from_checkpoint"] == "true"
    lines = script.read_text(encoding="utf-8").splitlines()
    for line in ("#SBATCH --requeue", "#SBATCH --signal=TERM@300", "#SBATCH --open-mode=append"):
        assert line in lines
