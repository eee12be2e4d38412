"""Runs with which something goes wrong: one process that has imported everything forks them, each on its own or on several ranks.

Run as `python faulty.py MODEL_PATH FOLDER NAME ...`; leaves NAME.json, what each process gave and how it ended.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from conftest import text_pairs
from interrupted import small_disk
from processes import config

PATIENCE = 60


def drop_privileges():
    """Give up root's right to write where permissions forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset is not allowed here")


def trainer_of(model_path, folder, count=24, callbacks=(), evaluates=True, **values):
    from datasets import Dataset

    from plaudit import RewardTrainer

    rows = Dataset.from_list(text_pairs(count))
    return RewardTrainer(
        model_path,
        config(folder, per_device_train_batch_size=2, max_steps=6, **values),
        train_dataset=rows,
        eval_dataset=Dataset.from_list(text_pairs(11, seed=9)) if evaluates else None,
        callbacks=list(callbacks),
    )


def at(event, function, step=3, rank=1):
    """Return a callback that calls the function at an event, after so many steps, on one rank."""
    from transformers import TrainerCallback

    def call(self, args, state, control, **kwargs):
        if args.process_index == rank and state.global_step >= step:
            function()

    return type("At", (TrainerCallback,), {f"on_{event}": call})()


def children():
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(each) for each in found]


def kill_a_child():
    os.kill(children()[0], signal.SIGKILL)


def kill_myself():
    os.kill(os.getpid(), signal.SIGKILL)


def stop_myself():
    os.kill(os.getpid(), signal.SIGSTOP)


def meet_a_bad_row():
    raise ValueError("train row 7: 'chosen' is empty")


# One process.


def worker_killed(model_path, folder):
    begun = []

    def kill():
        begun.append(time.monotonic())
        kill_a_child()

    trainer = trainer_of(model_path, folder, 200, [at("step_end", kill, rank=0)], dataloader_num_workers=2, save_steps=2, save_strategy="steps")  # fmt: skip
    with told() as seen:
        trainer.train()
    return {**seen, "seconds": time.monotonic() - begun[0], "left": sorted(os.listdir(folder))}


def worker_killed_in_evaluation(model_path, folder):
    from datasets import Dataset

    trainer = trainer_of(model_path, folder, callbacks=[at("prediction_step", kill_a_child, 0, 0)], dataloader_num_workers=2)  # fmt: skip
    with told() as seen:
        trainer.evaluate(trainer._prepare(Dataset.from_list(text_pairs(400)), "test"))
    return seen


def small_shared_memory(model_path, folder):
    """Train and evaluate with workers whose batches are larger than /dev/shm, and without workers."""
    try:
        small_disk(Path("/dev/shm"), 64 << 10)
    except OSError as error:
        return {"skipped": str(error)}
    from datasets import Dataset

    from plaudit import RewardTrainer

    rows = Dataset.from_list([{**row, "prompt": 20 * row["prompt"]} for row in text_pairs(48)])
    losses, largest = [], 0
    for workers in (2, 0):
        values = {"per_device_train_batch_size": 12, "per_device_eval_batch_size": 48, "num_train_epochs": 1}
        args = config(folder, max_length=None, packing="off", dataloader_num_workers=workers, **values)
        trainer = RewardTrainer(model_path, args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        losses[-1].append(trainer.evaluate()["eval_loss"])
        batch = next(iter(trainer.get_eval_dataloader()))
        largest = max(largest, sum(each.nbytes for each in batch.values() if hasattr(each, "nbytes")))
    return {"losses": losses, "largest": largest, "room": os.statvfs("/dev/shm").f_blocks * 4096}


def no_room_for_locks(model_path, folder):
    try:
        small_disk(Path("/dev/shm"), 4 << 10)
    except OSError as error:
        return {"skipped": str(error)}
    trainer = trainer_of(model_path, folder, dataloader_num_workers=1)
    with told() as seen:
        trainer.train()
    with told() as preparing:
        trainer_of(model_path, folder, dataset_num_proc=2)
    return {**seen, "preparing": preparing}


def mapper_killed(model_path, folder):
    def kill():
        # The third is the process through which the others send their rows.
        while len(found := children()) < 3:
            time.sleep(0.001)
        time.sleep(0.05)
        os.kill(found[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with told() as seen:
        trainer_of(model_path, folder, 4_000, dataset_num_proc=2)
    return seen


def little_memory(model_path, folder):
    """Train with a gigabyte of address space left, of which one tensor of the batch needs half as much again."""
    from datasets import Dataset

    from plaudit import RewardTrainer

    # Where small allocations fail, glibc gives up, so a large one has to.
    rows = Dataset.from_list([{**row, "prompt": 80 * row["prompt"]} for row in text_pairs(24)])
    values = {"per_device_train_batch_size": 24, "model_init_kwargs": {"attn_implementation": "eager"}}
    trainer = RewardTrainer(model_path, config(folder, max_length=None, packing="off", **values), train_dataset=rows)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (1000 << 20), resource.RLIM_INFINITY))
    with told() as seen:
        trainer.train()
    return seen


def locked_directories(model_path, folder):
    """Load, convert, split, prepare and train where data, cache and the current directory can be read but not written."""
    import datasets

    from plaudit import loading

    data, cache, elsewhere = folder / "data", folder / "cache", folder / "elsewhere"
    for each in (data, cache, elsewhere):
        each.mkdir(parents=True)
    datasets.Dataset.from_list(text_pairs(24)).save_to_disk(data / "saved")
    (data / "pairs.jsonl").write_text("\n".join(map(json.dumps, text_pairs(24))))
    for each in (data / "saved", data, cache):
        each.chmod(0o555)
    os.chdir(cache)
    drop_privileges()
    datasets.config.HF_DATASETS_CACHE = cache
    seen = {}
    for name in ("pairs.jsonl", "saved"):
        train, test = loading.load_train_and_test(str(data / name), test_split_size=4)
        trainer = trainer_of(model_path, folder / "out", evaluates=False)
        trainer.train_dataset = trainer._prepare(train, "train")
        trainer.train()
        seen[name] = trainer.evaluate(test)["eval_num_tokens"]
    return {**seen, "caches": datasets.is_caching_enabled(), "written": [each.name for each in cache.iterdir()]}


def nowhere_to_keep_rows(model_path, folder):
    import tempfile

    import datasets

    from plaudit import loading

    locked = folder / "locked"
    locked.mkdir(parents=True)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, text_pairs(4))))
    locked.chmod(0o555)
    drop_privileges()
    datasets.config.HF_DATASETS_CACHE = locked / "cache"
    tempfile.tempdir = str(locked)
    with told() as seen:
        loading.load_splits(str(folder / "pairs.jsonl"))
    return seen


# Several.


def lost_in_training(model_path, folder):
    return lost(model_path, folder, [at("step_begin", kill_myself)], save_strategy="steps", save_steps=2)


def lost_in_an_evaluation(model_path, folder):
    return lost(model_path, folder, [at("prediction_step", kill_myself, 0)], eval_strategy="steps", eval_steps=2)


def lost_in_a_save(model_path, folder):
    trainer = trainer_of(model_path, folder, save_strategy="steps", save_steps=2)
    if os.environ["RANK"] == "1":
        trainer._save_rng_state = lambda *args, **kwargs: kill_myself()
    return trained(trainer)


def stopped_in_training(model_path, folder):
    return lost(model_path, folder, [at("step_begin", stop_myself)], ddp_timeout=4)


def error_on_one(model_path, folder):
    return lost(model_path, folder, [at("step_begin", meet_a_bad_row)])


def memory_of_one(model_path, folder):
    import torch

    trainer = trainer_of(model_path, folder, auto_find_batch_size=True)

    def look(module, inputs):
        if os.environ["RANK"] == "1" and trainer.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has")

    trainer.model.register_forward_pre_hook(look)
    return trained(trainer)


def lost(model_path, folder, callbacks, **values):
    return trained(trainer_of(model_path, folder, callbacks=callbacks, **values))


def trained(trainer):
    begun = time.monotonic()
    with told() as seen:
        trainer.train()
    return {**seen, "seconds": time.monotonic() - begun}


@contextlib.contextmanager
def told():
    """Give a dict that holds, afterwards, the error's kind, text and whether it is chained, as far as there was one."""
    seen = {}
    try:
        yield seen
    except Exception as error:
        seen |= {"kind": type(error).__name__, "text": str(error), "cause": type(error.__cause__).__name__}


RANKS = {
    "lost_in_training": 2,
    "lost_in_an_evaluation": 3,
    "lost_in_a_save": 2,
    "stopped_in_training": 2,
    "error_on_one": 3,
    "memory_of_one": 2,
}


def run_one(name, model_path, folder, rank):
    """Do what a child does, and leave its result and its output."""
    output = os.open(folder / f"{name}-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    result = globals()[name](model_path, folder / name)
    (folder / f"{name}-{rank}.json").write_text(json.dumps(result))


def fork(name, model_path, folder, rank, port):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        ranks = RANKS.get(name)
        if ranks is not None:
            rank_of = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({key: str(value) for key, value in rank_of.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        run_one(name, model_path, folder, rank)
        code = 0
    finally:
        sys.stderr.flush()
        if code:
            import traceback

            traceback.print_exc()
        os._exit(code)


def run_all(model_path, folder, names):
    """Run each of the named functions in children of its own, and leave how they ended; none is waited for too long."""
    for name in names:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder / name).mkdir()
        left = {fork(name, model_path, folder, rank, port): rank for rank in range(RANKS.get(name, 1))}
        ended, deadline = {}, time.monotonic() + PATIENCE
        while left and time.monotonic() < deadline:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child:
                ended[left.pop(child)] = os.waitstatus_to_exitcode(status)
            elif ended and set(left.values()) == {1} and name == "stopped_in_training":
                break
            time.sleep(0.01)
        for child, rank in left.items():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            ended[rank] = None
        results = {}
        for rank in ended:
            file = folder / f"{name}-{rank}.json"
            results[rank] = json.loads(file.read_text()) if file.exists() else None
        (folder / f"{name}.json").write_text(json.dumps({"ended": ended, "results": results}))


if __name__ == "__main__":
    import torch

    import plaudit.trainer  # noqa: F401  # before the forks

    torch.set_num_threads(1)
    run_all(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
