import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from conftest import text_pairs

from plaudit import cli, hub


class NoNetwork(list):
    """The attempts to reach another machine, of which none gets through."""

    def __call__(self, *args, **kwargs):
        self.append("".join(traceback.format_stack(limit=12)))
        raise socket.gaierror(-2, "Name or service not known")


@pytest.fixture
def network(monkeypatch):
    """No network, and nothing that says so beforehand."""
    import datasets
    import huggingface_hub

    attempts = NoNetwork()
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, attempts)
    monkeypatch.setattr(socket.socket, "connect", attempts)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for owner, name in (
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    ):
        monkeypatch.setattr(owner, name, False)
    hub._why_not.cache_clear()
    yield attempts
    hub._why_not.cache_clear()


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, text_pairs(16))))
    return str(file)


def run(*arguments):
    assert cli.main([str(each) for each in arguments]) == 0


def test_local_files_are_trained_on_scored_and_examined_without_one_attempt_at_the_network(
    network, model_path, pairs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--model_name_or_path", model_path, "--dataset_name", pairs, "--use_cpu", "--max_steps", "1"]
    run(*train, "--output_dir", "whole", "--test_split_size", "4")
    run(*train, "--output_dir", "lora", "--use_peft", "--packing", "off")
    run("score", "--model", "whole", "--data", pairs, "--output", "scores.jsonl")
    run("evaluate", "--model", "lora", "--benchmark", pairs, "--output_dir", "results")
    run("report", "results")
    run("audit", pairs, "--tokenizer", model_path)
    run("verify", "lora")
    run("merge", "lora", "--output_dir", "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert list(network) == []


def test_the_network_of_the_test_is_cut(network):
    with pytest.raises(socket.gaierror):
        socket.create_connection(("example.org", 443))
    assert len(network) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["score", "--model", "nobody/no-model", "--data", "PAIRS", "--output", "o.jsonl"], "the model 'nobody/no-model' is not a directory"),
        (["train", "--model_name_or_path", "nobody/no-model", "--dataset_name", "PAIRS", "--use_cpu"], "the model 'nobody/no-model' is not a directory"),
        (["train", "--model_name_or_path", "MODEL", "--dataset_name", "nobody/no-data", "--use_cpu"], "data set 'nobody/no-data' is neither a file nor a directory here, and the Hub cannot be asked for it"),
        (["evaluate", "--model", "MODEL", "--benchmark", "rewardbench"], "benchmark data 'allenai/reward-bench': its revision cannot be asked of the Hub"),
        (["audit", "PAIRS", "--tokenizer", "nobody/no-model"], "nobody/no-model"),
    ],
)  # fmt: skip
def test_a_name_of_the_hub_without_network_is_an_error_at_once_that_says_so(
    network, model_path, pairs, tmp_path, monkeypatch, capsys, caplog, arguments, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again"))
    places = {"PAIRS": pairs, "MODEL": model_path}
    assert cli.main([places.get(each, each) for each in arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"plaudit {arguments[0]}: error: " in error
    assert told in error
    name = next(name for name in ("nobody/no-model", "nobody/no-data", "allenai/reward-bench") if name in told)
    line = (
        "the Hub (https://huggingface.co) cannot be reached ([Errno -2] Name or service not known), so that "
        f"{name!r} is looked for in the cache alone; set HF_HUB_OFFLINE=1 to go without asking"
    )
    assert [record.message for record in caplog.records].count(line) == 1
    assert len(network) <= 2, "the Hub is asked once"


def test_a_hub_that_does_not_answer_is_given_up_after_a_few_seconds(network, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *args, **kwargs: time.sleep(5))
    started = time.monotonic()
    assert hub._why_not() == "no answer within 0 s"
    assert time.monotonic() - started < 3


def test_a_hub_that_answers_is_used(network, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "_ask", lambda: None)
    hub.need("nobody/no-model")
    assert not constants.HF_HUB_OFFLINE
    assert not caplog.records


def test_what_is_here_is_not_asked_for(network, tmp_path):
    hub.need(str(tmp_path))
    hub.need("~")
    assert not network


def test_a_home_that_is_not_there_and_cannot_be_made_is_enough_to_train_and_score(model_path, pairs, tmp_path):
    locked, work = tmp_path / "locked", tmp_path / "work"
    locked.mkdir()
    work.mkdir()
    locked.chmod(0o555)
    (work / "run.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        # Before anything looks for a home.
        "from faulty import drop_privileges\n"
        "drop_privileges()\n"
        "from plaudit import cli\n"
        "try:\n"
        "    cli.main(['--help'])\n"
        "except SystemExit as error:\n"
        "    assert not error.code\n"
        f"train = 'train --model_name_or_path {model_path} --dataset_name {pairs} --use_cpu --max_steps 1 --output_dir out'\n"
        f"score = 'score --model {model_path} --data {pairs} --output scores.jsonl'\n"
        "sys.exit(cli.main(train.split()) or cli.main(score.split()))\n"
    )
    gone = {"HOME", "HF_HOME", "XDG_CACHE_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE"}
    env = {name: value for name, value in os.environ.items() if name not in gone}
    env |= {"HOME": str(locked / "home"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, "run.py"], cwd=work, env=env, stdout=log, stderr=log, timeout=200, check=False
        )
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0, text[-2_000:]
    assert (work / "out" / "model.safetensors").is_file()
    assert len((work / "scores.jsonl").read_text().splitlines()) == 16
    assert text.count("cannot be written (Permission denied): rows are kept in ") == 1
    assert not (locked / "home").exists()
