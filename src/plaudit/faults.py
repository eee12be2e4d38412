"""What breaks around a run: data workers and other processes that end, told with what is known and what to do."""

import contextlib
import datetime
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from typing import Any

from plaudit import memory

# What torch says of a loader's worker that ended, and what a worker says that finds no room to hand its batch over.
WORKER_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: ([\w ]+)| exited)")
NO_ROOM = re.compile(r"unable to (?:write to|open|resize|mmap|allocate).{0,200}(?:torch_|shared memory)", re.DOTALL)
# What datasets says of a pool's process that ended.
MAPPER_ENDED = "abruptly died during map operation"
# What gloo, NCCL and torch's store say where another process has gone, or does not answer.
GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("remote process exit", "ncclRemoteError", "communicator was aborted"),
)
STORE_GONE = ("failed to recv", "Socket Timeout", "Connection was likely closed", "failed to connect")
SILENT = ("Timed out waiting", "wait timeout", "timed out", "timeout")
# In which of our and Trainer's functions a process waited, as a message says it; the innermost counts.
WAITS = {
    "_save_checkpoint": "saving a checkpoint",
    "save_model": "saving the model",
    "evaluate": "an evaluation",
    "predict": "a prediction",
    "_run_epoch": "step {step} of training",
    "train": "training",
    "main_process_first": "the first process's preparing of the data",
    "wait_for_everyone": "the others",
}


class WorkerDied(RuntimeError):
    """A process that read or prepared data has ended."""


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or answers no more."""


def keep_to_timeout(args: Any) -> None:
    """Let processes on a CPU wait for each other as long as ddp_timeout says, which Trainer forgets there: half an hour."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        # torch has no public name for it.
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=args.ddp_timeout))


@contextlib.contextmanager
def explained(trainer: Any) -> Iterator[None]:
    """Raise WorkerDied or ProcessLost, with the cure, for what torch says where a worker or another process has ended."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        new = told(error, trainer.args, trainer.state.global_step + 1)
        if new is None:
            raise
        raise new from error


def told(error: BaseException, args: Any = None, step: int = 1) -> RuntimeError | None:
    """Return the error that says what has ended and what to do, None for an error that says nothing of the kind.

    args: the training arguments, None where there are none yet. step: the training step that was under way.
    """
    if isinstance(error, OSError):
        return WorkerDied(_without_room("what the data workers wait at")) if _is_semaphores(error) else None
    if isinstance(error, (WorkerDied, ProcessLost)) or not isinstance(error, RuntimeError):
        return None
    return _worker_told(str(error), args) or _process_told(error, args, step)


@contextlib.contextmanager
def preparing(split: str, num_proc: int | None) -> Iterator[None]:
    """Raise WorkerDied where a process that prepares rows with others has ended."""
    try:
        with _left_at_once() if num_proc else contextlib.nullcontext():
            yield
    except Exception as error:
        if _is_semaphores(error):
            room = _without_room("what the processes that prepare rows wait at", "dataset_num_proc=1")
            raise WorkerDied(f"preparing {split}: {room}") from error
        if not num_proc or not _has_mapper_ended(error):
            raise
        raise WorkerDied(
            f"preparing {split}: one of the {num_proc} processes that prepare rows has ended: it was killed, by hand or by the "
            f"system for lack of memory ({_memory()}); set dataset_num_proc to fewer, or leave it out to prepare in one "
            "process, which shows a fault of the rows themselves"
        ) from error


def _has_mapper_ended(error: BaseException | None) -> bool:
    """Tell whether a process of datasets' pool, or the one through which they send their rows, has ended."""
    while error is not None:
        if MAPPER_ENDED in str(error) or isinstance(error, (EOFError, ConnectionError)):
            return True
        error = error.__context__
    return False


@contextlib.contextmanager
def _left_at_once() -> Iterator[None]:
    """Let datasets' pool be left without a wait where a process has ended: it may have held a lock that leaving waits for."""
    from multiprocess.pool import TERMINATE, Pool

    usual = Pool.__exit__

    def leave(pool: Any, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not _has_mapper_ended(error):
            usual(pool, kind, error, trace)
            return
        # At the interpreter's end it would be waited for as well.
        pool._terminate.cancel()
        pool._worker_handler._state = pool._task_handler._state = pool._result_handler._state = TERMINATE
        for process in pool._pool:
            process.kill()

    Pool.__exit__ = leave
    try:
        yield
    finally:
        Pool.__exit__ = usual


def may_be_alone(error: BaseException) -> bool:
    """Tell whether this process may be the only one with an error: a fault, or what it met while it trained or evaluated."""
    if isinstance(error, (WorkerDied, ProcessLost)) or memory.is_told(error):
        return True
    # All processes hear of a loss that is not finite.
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    return not isinstance(error, FloatingPointError) and not names.isdisjoint(("_run_epoch", "evaluation_loop"))


def _worker_told(text: str, args: Any) -> WorkerDied | None:
    ended, no_room = WORKER_ENDED.search(text), NO_ROOM.search(text)
    if ended is None and no_room is None:
        return None
    number = getattr(args, "dataloader_num_workers", None)
    of = "" if number is None else f" of {number}"
    signal = (ended[2] or "").strip() if ended is not None else ""
    if no_room is not None or signal == "Bus error":
        return WorkerDied(_without_room(f"a data worker{of}"))
    how = f"it was killed by a signal ({signal})" if signal else "it ended without a word"
    return WorkerDied(
        f"a data worker{of} (process {ended[1]}) has ended: {how}. Most often the system does that for lack of memory "  # type: ignore[index]
        f"({_memory()}; /dev/shm: {_shared_memory()}); `dmesg` or the cluster's log says. Set dataloader_num_workers=0 or to "
        "fewer, or give the job more memory, and go on from the last checkpoint with resume_from_checkpoint=True"
    )


def _without_room(what: str, cure: str = "dataloader_num_workers=0") -> str:
    return (
        f"there is no room in shared memory for {what} (/dev/shm: {_shared_memory()}); set {cure}, or make it larger: "
        "docker run --shm-size=8g, or an emptyDir with medium: Memory in Kubernetes"
    )


def _is_semaphores(error: BaseException) -> bool:
    """Tell whether the system refused a lock between processes, which it keeps in /dev/shm."""
    last = [frame.filename for frame in traceback.extract_tb(error.__traceback__)][-1:]
    return isinstance(error, OSError) and bool(last) and last[0].endswith("synchronize.py")


def _process_told(error: RuntimeError, args: Any, step: int) -> ProcessLost | None:
    world_size = getattr(args, "world_size", None) or int(os.environ.get("WORLD_SIZE") or 1)
    text = str(error)
    # torch's own errors of processes are all kinds of this one; gloo's are bare RuntimeErrors.
    is_store = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
    is_gone = any(each in text for each in (*GONE, *(STORE_GONE if is_store else ())))
    is_silent = any(each in text for each in SILENT) and (is_store or "gloo" in text or "ms for" in text)
    if world_size < 2 or not (is_gone or is_silent):
        return None
    rank = getattr(args, "process_index", None)
    rank = int(os.environ.get("RANK") or 0) if rank is None else rank
    timeout = getattr(args, "ddp_timeout", None)
    seconds = "" if timeout is None else f" within {timeout:,} s (ddp_timeout)"
    what = f"does not answer{seconds}" if is_silent and not is_gone else "has ended"
    return ProcessLost(
        f"process {rank} of {world_size} waited in {_waited_in(error, step)} for another process, which {what}. Why is in that "
        "one's log: an error there, or nothing where it was killed (for lack of memory, `dmesg` says so). Mend that, and start "
        f"again with resume_from_checkpoint=True, which {_goes_on_from(getattr(args, 'output_dir', None))}"
    )


def _goes_on_from(folder: str | None) -> str:
    """Return what a run does that is started again in this output directory, None where it is not known."""
    if folder is None:
        return "goes on from the last whole checkpoint"
    is_kept = os.path.isdir(folder) and any(name.startswith("checkpoint-") for name in os.listdir(folder))
    return f"goes on from the last whole checkpoint in {folder}" if is_kept else (
        f"begins anew, because there is no checkpoint in {folder} yet"
    )  # fmt: skip


def _waited_in(error: BaseException, step: int) -> str:
    found, trace = "the others", error.__traceback__
    while trace is not None:
        found = WAITS.get(trace.tb_frame.f_code.co_name, found)
        trace = trace.tb_next
    return found.format(step=step)


def _memory() -> str:
    """Return how much memory the machine has left, as far as it says."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            known = dict(line.split(":", 1) for line in file)
        left, whole = (int(known[name].split()[0]) / 2**20 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return "how much is left is not known"
    return f"{left:,.1f} of {whole:,.1f} GiB are left now"


def _shared_memory() -> str:
    try:
        room = shutil.disk_usage("/dev/shm")
    except OSError:
        return "not there"
    return f"{room.free / 2**20:,.0f} of {room.total / 2**20:,.0f} MiB free"
