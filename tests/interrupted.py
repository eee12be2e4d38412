"""Runs that are cut short: one process that has imported everything starts each by a fork, and ends it at the event asked for.

Run as `python interrupted.py`, it reads orders from its input, one JSON object a line, and answers each with one line.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from conftest import make_model, make_tokenizer, text_pairs

# What depends on the clock, in logs and metrics.
CLOCK = ("runtime", "per_second")
BASE = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 1,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "num_train_epochs": 2,
    "disable_dropout": False,
    "lr_scheduler_type": "linear",
}
# Fourteen pairs: four steps an epoch, the last one of two pairs.
RUNS = {
    # An epoch's last step is a save's, of which the best and the last are kept.
    "map": {**BASE, "load_best_model_at_end": True, "save_total_limit": 1, "metric_for_best_model": "eval_margin"},
    # No step of a save is an epoch's last; the log at the end is of an open interval.
    "stream": {**BASE, "streamed": True, "max_steps": 7, "save_steps": 3, "logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    # Everything happens at an epoch's end, whose last step has one micro-batch of two.
    "epochs": {
        **BASE, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "eval_on_start": True, "train_sampling_strategy": "group_by_length", "data_seed": 7,
    },
    # Saved at steps, evaluated and logged at an epoch's end: what a save at an epoch's last step does not hold.
    "late": {**BASE, "logging_strategy": "epoch", "eval_strategy": "epoch", "max_steps": 7},
    # The state of a scheduler and of a callback, both of which count evaluations, and an adapter's dropout.
    "stopped": {
        **BASE, "num_train_epochs": 4, "eval_steps": 1, "save_steps": 1, "early_stopping": 2, "lora": True, "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "mode": "max"}, "metric_for_best_model": "eval_min_reward", "learning_rate": 0.02,
        "load_best_model_at_end": True, "save_total_limit": 2,
    },
}  # fmt: skip


def make_trainer(model_path, folder, run, num_processes, callbacks=(), **more):
    """Return the trainer of one of RUNS; more: values of its config, in place of the run's."""
    from datasets import Dataset
    from peft import LoraConfig
    from processes import config
    from transformers import EarlyStoppingCallback

    from plaudit import RewardTrainer

    values = {**RUNS[run], **more}
    streamed, lora, patience = (values.pop(name, None) for name in ("streamed", "lora", "early_stopping"))
    values["per_device_train_batch_size"] = max(1, values["per_device_train_batch_size"] // num_processes)
    rows = Dataset.from_list(text_pairs(14))
    callbacks = [*callbacks, *([EarlyStoppingCallback(patience)] if patience else [])]
    return RewardTrainer(
        model_path,
        config(folder, **values),
        train_dataset=rows.to_iterable_dataset() if streamed else rows,
        eval_dataset=Dataset.from_list(text_pairs(7, seed=5)),
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4, lora_dropout=0.2) if lora else None,
        callbacks=callbacks,
    )  # fmt: skip


class Events:
    """Counts what a run does, and sends itself a signal at the event that was asked for.

    at: a number, or the beginning of an event's name and which of them, such as ["save", 2]. number: of the signal; None to
    raise what a full disk does. group: whether the process's own children get it too.
    """

    def __init__(self, path, at=None, number=signal.SIGKILL, group=False):
        self.log = open(path, "a", encoding="utf-8")  # noqa: SIM115  # as long as the process
        self.at, self.number, self.count, self.named, self.group = at, number, 0, {}, group
        # Files are synced by several threads.
        self.one_by_one = threading.RLock()

    def __call__(self, name):
        with self.one_by_one:
            self._told(name)

    def _told(self, name):
        self.count += 1
        kind = name.split()[0]
        self.named[kind] = self.named.get(kind, 0) + 1
        print(name, file=self.log, flush=True)
        if self.at in (self.count, [kind, self.named[kind]]):
            self.at = None
            if self.number is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            if self.group:
                # From a process that is not their parent, as a cluster's.
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                subprocess.run(["kill", f"-{self.number}", *children], check=True)
                time.sleep(0.2)
            os.kill(os.getpid(), self.number)


def watched(events):
    """Return a callback that tells of a run's steps, and have every write of a file told of."""
    import safetensors.torch
    import torch
    from transformers import TrainerCallback

    def tell(name):
        return lambda self, args, state, control, **kwargs: events(f"{name} {state.global_step}")

    names = ("step_begin", "substep_end", "pre_optimizer_step", "step_end", "prediction_step", "evaluate", "log", "save", "epoch_end", "train_end")  # fmt: skip
    callback = type("Told", (TrainerCallback,), {f"on_{name}": tell(name) for name in names})()
    for owner, name in ((torch, "save"), (safetensors.torch, "save_file"), (os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree")):  # fmt: skip
        setattr(owner, name, told_of(events, name, getattr(owner, name)))
    return callback


def told_of(events, name, function):
    def told(*args, **kwargs):
        events(f"file_{name} before")
        result = function(*args, **kwargs)
        events(f"file_{name} after")
        return result

    return told


def small_disk(path, size, options=""):
    """Mount a disk of so many bytes, which only this process sees and which goes with it. OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *args):
        if getattr(libc, name)(*args):
            raise OSError(ctypes.get_errno(), f"{name} is not allowed here")

    user, group = os.getuid(), os.getgid()
    new_namespace, new_user, private, remount = 0x00020000, 0x10000000, 0x44000, 0x20
    call("unshare", new_namespace | (new_user if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    call("mount", None, b"/", None, private, None)
    path.mkdir(parents=True, exist_ok=True)
    call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode())
    return lambda size, flags=0: call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", remount | flags, f"size={size}".encode())  # fmt: skip


def on_a_small_disk(order, folder):
    """Train on a disk too small for what the run saves, then on one that is large enough; leave what was seen."""
    from plaudit import checkpoints

    out, seen = folder / "out", {}
    try:
        resize = small_disk(out, order["bytes"])
    except OSError as error:
        return {"skipped": str(error)}
    try:
        one_process({**order, "script": None}, 0)
    except OSError as error:
        seen["error"] = str(error)
    seen["left"] = {path.name: checkpoints.faults_of(str(path)) for path in out.iterdir() if path.is_dir()}
    resize(1 << 30)
    one_process({**order, "script": None}, 0)
    return seen


def saved_again_when_full(order, folder):
    """Save a model, change it, fill the disk, and save it again."""
    import torch

    out, seen = folder / "out", {}
    try:
        small_disk(out, 8 << 20)
    except OSError as error:
        return {"skipped": str(error)}
    trainer = make_trainer(order["model"], out, order["run"], 1, save_strategy="no", eval_strategy="no")
    trainer.save_model()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with torch.no_grad():
        trainer.model.score.weight.add_(1.0)
    (out / "full").write_bytes(b"0" * (shutil.disk_usage(out).free - 50_000))
    try:
        trainer.save_model()
    except OSError as error:
        seen["error"] = str(error)
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "full"}
    seen["untouched"] = before == after and "model.safetensors" in after
    return seen


def on_a_read_only_disk(order, folder):
    """Train into a directory that cannot be written to."""
    out, read_only = folder / "out", 1
    try:
        small_disk(out, 1 << 20)(1 << 20, read_only)
    except OSError as error:
        return {"skipped": str(error)}
    try:
        one_process({**order, "script": None}, 0)
    except OSError as error:
        return {"error": str(error), "steps": (folder / "rows-0.txt").read_text()}
    return {}


def one_process(order, rank):
    """Do what an order says as one of its processes, and leave what it saw in its folder."""
    from plaudit import checkpoints

    folder = Path(order["folder"])
    if order.get("script"):
        (folder / "seen.json").write_text(json.dumps(globals()[order["script"]](order, folder)))
        return
    if order.get("own_disks"):
        small_disk(folder / "out", 64 << 20)
    events = Events(folder / f"events-{rank}.txt", order.get("at") if rank == order.get("rank", 0) else None, order.get("signal", signal.SIGKILL), order.get("group"))  # fmt: skip
    trainer = make_trainer(
        order["model"], folder / "out", order["run"], order["processes"], [watched(events)], **order.get("config", {})
    )
    rows = open(folder / f"rows-{rank}.txt", "a", encoding="utf-8")  # noqa: SIM115  # as long as the process
    prepare = trainer._prepare_inputs
    print("null", file=rows, flush=True)

    def noted(inputs):
        if trainer.is_in_train and trainer.model.training:
            print(json.dumps([trainer.state.global_step, inputs["pair_index"].tolist()]), file=rows, flush=True)
        return prepare(inputs)

    trainer._prepare_inputs = noted
    result = trainer.train(resume_from_checkpoint=order.get("resume", True))
    digest = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    found = {
        "weights": digest.hexdigest(),
        "logs": [unclocked(entry) for entry in trainer.state.log_history],
        "metrics": unclocked(result.metrics),
        "training_loss": result.training_loss,
        "best": [trainer.state.best_metric, trainer.state.best_global_step, trainer.state.best_model_checkpoint],
        "flos": trainer.state.total_flos,
        "random": hashlib.sha256(__import__("torch").get_rng_state().numpy().tobytes()).hexdigest(),
    }
    trainer.save_model()
    trainer.save_state()
    if rank == 0:
        weights = next((folder / "out").glob("*model.safetensors"))
        found["saved"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / f"result-{rank}.json").write_text(json.dumps(found))
    if order.get("machines"):
        left = {each.name: checkpoints.faults_of(each.path) for each in checkpoints.checkpoints_of(str(folder / "out"))}
        (folder / f"left-{rank}.json").write_text(json.dumps(left))


def unclocked(entry):
    return {key: value for key, value in entry.items() if not key.endswith(CLOCK)}


def carry_out(order):
    """Fork an order's processes and return their exit codes, negative for a signal, and what they said."""
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(order["processes"]):
        pid = os.fork()
        if not pid:
            child(order, rank, port)
        children[pid] = rank
    codes, deadline, is_lost = [None] * order["processes"], time.time() + order.get("timeout", 60), None
    while children and time.time() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            codes[children.pop(pid)] = os.waitstatus_to_exitcode(status)
            is_lost = is_lost or (time.time() + 5 if codes.count(-9) else None)
        elif is_lost and time.time() > is_lost:
            break  # a cluster ends the rest of a job when one process is lost
        else:
            time.sleep(0.005)
    for pid, rank in children.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        codes[rank] = "hung" if not is_lost else -9
    return {"codes": codes, "said": (folder / "said.txt").read_text(errors="replace")}


def child(order, rank, port):
    """Be one process of an order, and never return."""
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(order["processes"]), LOCAL_WORLD_SIZE=str(order["processes"]))  # fmt: skip
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if order.get("machines"):
            os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
        if order["processes"] == 1:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                os.environ.pop(name)
        said = os.open(Path(order["folder"]) / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        one_process(order, rank)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def outcome(folder, processes=1):
    """Return what the processes of a finished run saw; the rows of each step are those of the last time it was made."""
    results = [json.loads((Path(folder) / f"result-{rank}.json").read_text()) for rank in range(processes)]
    for rank, result in enumerate(results):
        result["rows"] = rows_of(folder, rank)
        best = result["best"].pop()
        result["best"].append(best and os.path.relpath(best, folder))
    return results


def rows_of(folder, rank):
    """Return the rows of each step in the order in which the process saw them."""
    steps, last = {}, None
    # Each run leaves a null first: a step that it begins again is not the one that was killed.
    for line in (Path(folder) / f"rows-{rank}.txt").read_text().splitlines():
        step, rows = json.loads(line) or (None, [])
        if step is None:
            last = None
            continue
        if step != last:
            steps[step] = []
        last = step
        steps[step].append(rows)
    return [steps[step] for step in sorted(steps)]


class Starter:
    """The process that has imported everything, as seen from outside."""

    def __init__(self, folder):
        self.folder = Path(folder)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        with open(self.folder / "starter.txt", "w", encoding="utf-8") as errors:
            self.process = subprocess.Popen([sys.executable, __file__, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)  # fmt: skip
        self.model = json.loads(self.process.stdout.readline())

    def __call__(self, folder, run, processes=1, **order):
        """Run one of RUNS in a folder below the starter's; return exit codes and what was said until now."""
        order |= {"folder": str(self.folder / folder), "run": run, "processes": processes, "model": self.model}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def seen(self, folder):
        """Return what a script left."""
        return json.loads((self.folder / folder / "seen.json").read_text())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=20)


def serve(folder):
    """Make a model with dropout, say where it is, and carry out orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch
    import transformers.integrations.tensor_parallel  # noqa: F401  # loaded late, and slowly, by a first model

    import plaudit.trainer  # noqa: F401

    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    path = os.path.join(folder, "model")
    model = make_model(tokenizer, "gpt2", n_embd=32, n_head=4, n_layer=1, n_positions=256, resid_pdrop=0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    print(json.dumps(path), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = carry_out(json.loads(line))
        except Exception as error:
            answer = {"codes": None, "said": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
