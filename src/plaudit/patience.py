"""An end to what others have written and does not end, such as a chat template: an error in the thread that runs it."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

# How often the threads are looked at, in seconds.
LOOKS_EVERY = 0.5


class TookTooLong(Exception):
    """Raised in the thread whose patience was at its end."""


class Patience:
    """A block in which each step may compute for so long, after which TookTooLong is raised in its thread.

    seconds: of the processor's time, so that a machine that sleeps or is busy makes no difference; where a system does not
    tell it of a thread, seconds that pass. What runs in C is ended once it comes back to Python.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> Callable[[], None]:
        """Return the function to call at the beginning of each step."""
        self.thread = threading.get_ident()
        self.clock = _clock_of(self.thread)
        self.frame: FrameType | None = sys._getframe(1)
        self.next()
        self.was_told = False
        self.watcher = _watcher()
        self.watcher.add(self)
        return self.next

    def __exit__(self, *_: object) -> None:
        try:
            self.watcher.remove(self)
        except TookTooLong:
            # It came while the block was left. There is half a second until another one.
            self.watcher.remove(self)
        if self.was_told:
            _let_come()

    def next(self) -> None:
        self.began = self.clock()

    def is_over(self) -> bool:
        """Tell whether the block was left after all, by an error in the very moment of leaving it."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is None

    def is_at_its_end(self) -> bool:
        return self.clock() - self.began > self.seconds


class _Watcher:
    """The one thread that looks at the others, there as long as it has something to look at."""

    def __init__(self) -> None:
        self.process, self.lock = os.getpid(), threading.Lock()
        self.watched: list[Patience] = []
        self.is_looking = False

    def add(self, one: Patience) -> None:
        with self.lock:
            self.watched.append(one)
            if not self.is_looking:
                self.is_looking = True
                threading.Thread(target=self._look, name="plaudit patience", daemon=True).start()

    def remove(self, one: Patience) -> None:
        with self.lock:
            self._forget(one)

    def _forget(self, one: Patience) -> None:
        self.watched[:] = [other for other in self.watched if other is not one]
        one.frame = None

    def _look(self) -> None:
        while True:
            time.sleep(LOOKS_EVERY)
            with self.lock:
                for one in [one for one in self.watched if one.is_at_its_end()]:
                    if one.is_over():
                        self._forget(one)
                    else:
                        one.was_told = True
                        _raise_in(one.thread, TookTooLong)
                if not self.watched:
                    self.is_looking = False
                    return


_watchers: list[_Watcher] = []


def _watcher() -> _Watcher:
    """Return this process's watcher: a fork has its parent's, without the thread."""
    if not _watchers or _watchers[0].process != os.getpid():
        _watchers[:] = [_Watcher()]
    return _watchers[0]


def _raise_in(thread: int, error: type[Exception]) -> None:
    """Have a thread raise an error at its next step in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _let_come() -> None:
    """Have this thread raise what it was told to raise and has not raised yet, and drop it.

    Python can also be told to take it back, but then goes on looking for it for ever, and hangs where it is traced.
    """
    try:
        for _ in range(100):
            pass
    except TookTooLong:
        pass


def _clock_of(thread: int) -> Callable[[], float]:
    """Return a clock of a thread's processor time, or of the time that passes where there is none."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(number)
