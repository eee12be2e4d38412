"""SIGTERM, with which a cluster takes a machine back: noted, agreed on by all processes, and acted on at the same step."""

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from plaudit.say import say

# What a shell reports for a process that SIGTERM ended.
EXIT_CODE = 128 + signal.SIGTERM
# A process whose save has failed waits so long for the others to hear of it before it gives up on its own.
PATIENCE = timedelta(seconds=60)
# The group of this process's own small messages, and the default group that it belongs to.
_group: tuple[Any, Any] | None = None


class BrokenOff(BaseException):
    """An evaluation ends at this batch, because SIGTERM came. Nothing that handles errors should take it for one."""


class Sigterm:
    """Whether SIGTERM has come since `install`; until `restore`, it does not end the process."""

    def __init__(self) -> None:
        self.came = False
        self.is_installed = False
        self._before: Any = None

    def install(self) -> None:
        """Take the signal over; a second call does nothing."""
        if self.is_installed:
            return
        if threading.current_thread() is not threading.main_thread():
            say("SIGTERM is not listened for: Python leaves signals to the main thread, and this is another", once=True)
            return
        self._before = signal.signal(signal.SIGTERM, self._note)
        self.is_installed = True

    def _note(self, number: int, frame: Any) -> None:
        self.came = True

    def restore(self) -> None:
        """Give the signal back to whoever had it before."""
        if self.is_installed:
            self.is_installed = False
            # None stands for a handler that was not set from Python, which cannot be set from Python either.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def pass_on(self) -> None:
        """Act on a signal that came too late for the training loop: as the handler of before would have."""
        if self.came:
            self.came = False
            if callable(self._before):
                signal.raise_signal(signal.SIGTERM)
            elif self._before is not signal.SIG_IGN:
                raise SystemExit(EXIT_CODE)


class Agreement:
    """What the processes of a run tell each other on the host, over a group of their own that no device waits for.

    All methods but `of` and `leave` are collective: every process calls them, in the same order.
    """

    def __init__(self, group: Any = None) -> None:
        """group: a torch.distributed group of all processes on the host; None where there is only one process."""
        self._group = group
        self._asked: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, timeout_seconds: float) -> "Agreement":
        """Return the agreement of this run's processes. Collective; the group is made once."""
        import torch.distributed as dist

        global _group
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls()
        if _group is None or _group[0] is not dist.group.WORLD:
            made = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            _group = dist.group.WORLD, made
        return cls(_group[1])

    def any_by_now(self, here: bool) -> bool:
        """Return whether any process had said True by the call before, the same on all: the answer is never waited for.

        Of one process, the answer is its own.
        """
        if self._group is None:
            return here
        answer = self._answer()
        self._asked = self._ask(here)
        return answer

    def _ask(self, here: bool) -> tuple[Any, Any]:
        import torch
        import torch.distributed as dist

        flag = torch.tensor([int(here)], dtype=torch.int64)
        return dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flag

    def _answer(self, patience: timedelta | None = None) -> bool:
        if self._asked is None:
            return False
        (work, flag), self._asked = self._asked, None
        if patience is None:
            work.wait()
        else:
            work.wait(patience)
        return bool(flag.item())

    def errors(self, mine: str | None) -> list[tuple[int, str]]:
        """Return the number and text of each process that has an error; no process goes on before all are here.

        A process with an error of its own does not wait for ever: the others may wait for it in another place.
        """
        if self._group is None:
            return [] if mine is None else [(0, mine)]
        import torch.distributed as dist

        self._answer()
        self._asked = self._ask(mine is not None)
        try:
            failed = self._answer(None if mine is None else PATIENCE)
        except RuntimeError:
            if mine is None:
                raise
            return [(dist.get_rank(), mine)]
        if not failed:
            return []
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine, group=self._group)
        return [(number, text) for number, text in enumerate(every) if text is not None]

    def first_decides(self, decide: Callable[[], Any]) -> Any:
        """Return what the first process decides, on every process; an error of its is raised on all."""
        if self._group is None:
            return decide()
        import torch.distributed as dist

        decided: list[Any] = [None, None]
        if dist.get_rank() == 0:
            try:
                decided[0] = decide()
            except (ValueError, TypeError, OSError) as error:
                decided[1] = error
            except Exception as error:
                # Others may hold what cannot be sent.
                decided[1] = RuntimeError(f"{type(error).__name__}: {error}")
        dist.broadcast_object_list(decided, src=0, group=self._group)
        if decided[1] is not None:
            raise decided[1]
        return decided[0]

    def leave(self) -> None:
        """Take the processes' groups down, without which the interpreter's end may crash in one of their threads."""
        if self._group is not None:
            import torch.distributed as dist

            self._asked = None
            dist.destroy_process_group()


def start_worker(worker: int, parent: int, then: Callable[[int], None] | None = None) -> None:
    """Begin a loader's worker that outlives a SIGTERM of the cluster, which goes to every process of a job.

    torch lets the worker die and ends the training with an error; the batches are needed up to the checkpoint. The loader
    itself can still end its workers with that signal. parent: the number of the loader's process, which is not always the one
    that forked the worker; then: what else a worker begins with.
    """
    if hasattr(signal, "sigwaitinfo"):
        # Before the thread starts, which inherits what is blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_the_parent_alone, args=(parent,), daemon=True).start()
    if then is not None:
        then(worker)


def _heed_the_parent_alone(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def worker_start(then: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """Return a worker_init_fn, for a loader of this process, that begins a worker as `start_worker` does."""
    return partial(start_worker, parent=os.getpid(), then=then)
