import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faulty import RANKS

from plaudit import faults
from plaudit.faults import ProcessLost, WorkerDied

NAMES = (
    "worker_killed worker_killed_in_evaluation small_shared_memory no_room_for_locks mapper_killed little_memory "
    "locked_directories nowhere_to_keep_rows"
).split()
FROM_CHECKPOINT = "start again with resume_from_checkpoint=True, which goes on from the last whole checkpoint in "
ANEW = "start again with resume_from_checkpoint=True, which begins anew, because there is no checkpoint in "


@pytest.fixture(scope="module")
def seen(model_path, tmp_path_factory):
    """What each run of faulty.py gave, by name, and the folder of their output."""
    folder = tmp_path_factory.mktemp("faulty")
    with open(folder / "faulty.log", "w") as log:
        command = [sys.executable, "faulty.py", model_path, str(folder), *NAMES, *RANKS]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=Path(__file__).parent, env=env, stdout=log, stderr=log, timeout=280, check=False
        )
    assert done.returncode == 0, (folder / "faulty.log").read_text()[-3_000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in (*NAMES, *RANKS)}, folder


def result(seen, name, rank=0):
    """Return what one process of a run gave; a run that ended otherwise fails with its output."""
    found, folder = seen
    value = found[name]["results"][str(rank)]
    assert value is not None, (folder / f"{name}-{rank}.log").read_text()[-3_000:]
    if "skipped" in value:
        pytest.skip(value["skipped"])
    return value


def test_a_killed_data_worker_is_told_at_once_with_the_cure(seen):
    found = result(seen, "worker_killed")
    assert found["kind"] == "WorkerDied"
    assert "a data worker of 2 (process " in found["text"]
    assert "dataloader_num_workers=0" in found["text"]
    assert "resume_from_checkpoint=True" in found["text"]
    assert found["cause"] == "RuntimeError", "a Python user sees torch's error too"
    assert found["seconds"] < 4, "torch looks for dead workers each five seconds, a signal tells at once"


def test_a_killed_data_worker_leaves_the_checkpoint_before_and_nothing_half_written(seen):
    assert result(seen, "worker_killed")["left"] == ["checkpoint-2"]


def test_a_data_worker_killed_in_an_evaluation_is_told_too(seen):
    found = result(seen, "worker_killed_in_evaluation")
    assert found["kind"] == "WorkerDied"
    assert "dataloader_num_workers=0" in found["text"]


def test_batches_larger_than_the_shared_memory_come_from_workers_as_without_them(seen):
    found = result(seen, "small_shared_memory")
    assert found["largest"] > 5 * found["room"], "nothing was tried"
    with_workers, without = found["losses"]
    assert len(with_workers) == 5
    assert with_workers == without


def test_shared_memory_without_room_for_a_lock_is_told_with_its_size_and_the_cure(seen):
    found = result(seen, "no_room_for_locks")
    assert found["text"].startswith(
        "there is no room in shared memory for what the data workers wait at (/dev/shm: 0 of 0"
    )
    assert "set dataloader_num_workers=0, or make it larger: docker run --shm-size" in found["text"]
    assert "set dataset_num_proc=1, or make it larger" in found["preparing"]["text"]


def test_a_killed_process_that_prepares_rows_is_told_and_does_not_hang(seen):
    found = result(seen, "mapper_killed")
    assert found["kind"] == "WorkerDied"
    assert found["text"].startswith(
        "preparing train: one of the 2 processes that prepare rows has ended: it was killed"
    )
    assert "set dataset_num_proc to fewer" in found["text"]


def test_memory_that_really_runs_out_names_the_batch_and_what_helps(seen):
    found = result(seen, "little_memory")
    assert found["kind"] == "OutOfMemoryError"
    assert found["text"].startswith("step 1 of training ran out of memory. ")
    assert " MiB more were wanted. The batch: 24 pairs (per_device_train_batch_size=24), " in found["text"]
    assert "its longest pair is train row " in found["text"]
    assert "(1) per_device_train_batch_size=12, gradient_accumulation_steps=2 (the same steps); " in found["text"]


def test_data_caches_and_a_current_directory_that_cannot_be_written_are_enough_to_train(seen):
    found = result(seen, "locked_directories")
    assert found["pairs.jsonl"] == found["saved"] > 0
    assert found["written"] == []
    assert found["caches"], "datasets' caching is as it was"
    log = (seen[1] / "locked_directories-0.log").read_text()
    assert log.count("cannot be written (Permission denied): rows are kept in ") == 1, "said once"
    assert "set HF_DATASETS_CACHE to a directory that can be written to keep them" in log


def test_nowhere_to_keep_rows_names_the_variables_to_set(seen):
    found = result(seen, "nowhere_to_keep_rows")
    assert found["kind"] == "OSError"
    assert "cannot be written (Permission denied), and neither can a temporary directory" in found["text"]
    assert found["text"].endswith("set HF_DATASETS_CACHE to a directory that can be written, or TMPDIR")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("lost_in_training", "step 4 of training"),
        ("lost_in_an_evaluation", "an evaluation"),
        ("lost_in_a_save", "saving a checkpoint"),
        ("error_on_one", "step 4 of training"),
        ("memory_of_one", "step 3 of training"),
    ],
)
def test_the_others_say_what_they_waited_in_when_a_process_ends(seen, name, what):
    others = [rank for rank in range(RANKS[name]) if rank != 1]
    for rank in others:
        found = result(seen, name, rank)
        assert found["kind"] == "ProcessLost"
        waited = f"process {rank} of {RANKS[name]} waited in {what} for another process, which has ended. "
        assert found["text"].startswith(waited)
        # Every second step is saved there.
        assert (FROM_CHECKPOINT if name == "lost_in_training" else ANEW) in found["text"]
        assert found["cause"] == "RuntimeError"
        assert found["seconds"] < 30, "a closed connection is seen at once, not after ddp_timeout"
    ended = seen[0][name]["ended"]
    assert {ended[str(rank)] for rank in others} == {0}, "they ended by themselves"


def test_a_save_in_which_a_process_dies_leaves_no_checkpoint(seen):
    result(seen, "lost_in_a_save")
    assert not [name for name in os.listdir(seen[1] / "lost_in_a_save") if name.startswith("checkpoint-")]


def test_a_process_that_hangs_is_given_up_after_ddp_timeout(seen):
    found = result(seen, "stopped_in_training")
    assert found["kind"] == "ProcessLost"
    assert "which does not answer within 4 s (ddp_timeout)" in found["text"]
    assert found["seconds"] < 40


def test_an_error_of_one_process_stays_what_it_is_there(seen):
    assert result(seen, "error_on_one", 1)["text"] == "train row 7: 'chosen' is empty"


def test_memory_of_one_process_ends_all_instead_of_starting_again_alone(seen):
    found = result(seen, "memory_of_one", 1)
    assert found["text"].startswith(
        "step 3 of training on process 1 of 2 ran out of memory: 2.00 GiB more were wanted. "
    )
    assert (
        "auto_find_batch_size was not tried, because one process that starts again would leave the other"
        in found["text"]
    )


# What says which.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
            "shared memory. Please try to raise your shared memory limit.",
            "there is no room in shared memory for a data worker",
        ),
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "(process 12) has ended: it was killed by a signal (Killed)"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "(process 12, 13) has ended: it ended without a word"),
        (
            "unable to write to file </torch_1_2_3>: No space left on device (28)",
            "there is no room in shared memory for a data worker",
        ),
    ],
)  # fmt: skip
def test_torchs_words_for_a_worker_are_understood(text, told):
    found = faults.told(RuntimeError(text))
    assert isinstance(found, WorkerDied)
    assert told in str(found)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), "has ended"),
        (RuntimeError("[gloo/unbound_buffer.cc:129] Timed out waiting 8000ms for send operation"), "does not answer"),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."), "has ended"),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), "has ended"),
        (torch.distributed.DistStoreError("wait timeout after 5000ms, keys: /0"), "does not answer"),
    ],
)
def test_the_backends_words_for_a_lost_process_are_understood(monkeypatch, error, told):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    found = faults.told(error)
    assert isinstance(found, ProcessLost)
    assert str(found).startswith(f"process 2 of 4 waited in the others for another process, which {told}")


def test_a_lost_process_is_told_with_what_there_is_to_go_on_from(tmp_path):
    args = SimpleNamespace(world_size=2, process_index=0, ddp_timeout=9, output_dir=str(tmp_path / "out"))

    def told():
        return str(faults.told(RuntimeError("Connection closed by peer"), args))

    assert told().endswith(f"{ANEW}{tmp_path}/out yet")
    (tmp_path / "out" / "_checkpoint.unfinished").mkdir(parents=True)
    assert told().endswith(f"{ANEW}{tmp_path}/out yet")
    (tmp_path / "out" / "checkpoint-3").mkdir()
    assert told().endswith(f"{FROM_CHECKPOINT}{tmp_path}/out")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("the request timed out"),
        torch.distributed.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"),
        ValueError("Connection closed by peer"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_stay_what_they_are(monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert faults.told(error) is None


def test_one_process_has_none_to_lose(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert faults.told(RuntimeError("Connection closed by peer")) is None


# The command.


@pytest.fixture(scope="module")
def command(model_path, tmp_path_factory):
    """The output and the exit code of `plaudit train` under torchrun on two processes, one of which is killed."""
    folder = tmp_path_factory.mktemp("command")
    rows = [{"prompt": "Say yes", "chosen": f" yes {n}", "rejected": f" no {n}"} for n in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "run.py").write_text(
        "import os, sys\n"
        "from plaudit import cli, trainer\n"
        "usual = trainer.RewardTrainer.training_step\n"
        "def step(self, *args, **kwargs):\n"
        "    if os.environ['RANK'] == '1' and self.state.global_step == 2:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return usual(self, *args, **kwargs)\n"
        "trainer.RewardTrainer.training_step = step\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    options = (
        f"train --model_name_or_path {model_path} --dataset_name pairs.jsonl --use_cpu --output_dir out --max_steps 6"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "run.py"]
    with open(folder / "log", "w") as log:
        command = [*launcher, *options.split(), "--per_device_train_batch_size=2", "--packing=off"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=log, timeout=200, check=False)
    return done.returncode, (folder / "log").read_text(), time.monotonic() - started


def test_the_launched_command_ends_with_an_error_when_a_process_dies(command):
    code, _, seconds = command
    assert code != 0
    assert seconds < 150


def test_the_launched_command_says_one_line_and_shows_no_traceback_of_ours(command):
    _, log, _ = command
    # torchrun ends the others within a tenth of a second of a death, which may be before they have noticed it.
    told = [line for line in log.splitlines() if "plaudit train: error" in line]
    assert len(told) <= 1
    assert all("waited in step 3 of training for another process, which has ended" in line for line in told)
    assert "plaudit/trainer.py" not in log
