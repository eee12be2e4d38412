"""Where prepared rows are kept: the cache of datasets, and where that cannot be written a temporary directory, said once."""

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from plaudit.say import say

CURE = "set HF_DATASETS_CACHE to a directory that can be written"


def directory() -> str | None:
    """Return the directory in which `load_dataset` is to keep what it reads, None for the usual one.

    OSError where there is none: neither the cache nor a temporary directory can be written.
    """
    from datasets import config

    usual = str(config.HF_DATASETS_CACHE)
    reason = _why_not(usual)
    return None if reason is None else _temporary(usual, reason)


@contextlib.contextmanager
def beside(dataset: Any) -> Iterator[None]:
    """Let what is made of a data set be kept beside it, and in a temporary directory where that one cannot be written."""
    import datasets

    files = getattr(dataset, "cache_files", None)
    folder = os.path.dirname(files[0]["filename"]) if files else None
    reason = None if folder is None else _why_not(folder)
    if folder is None or reason is None or not datasets.is_caching_enabled():
        yield
        return
    # To be told of a missing one here, with its cure, and not by datasets.
    _temporary(folder, reason)
    datasets.disable_caching()
    try:
        yield
    finally:
        datasets.enable_caching()


def _why_not(folder: str) -> str | None:
    """Return why a directory cannot be written, None where it can; what it lacks is made."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _temporary(usual: str, reason: str) -> str:
    """Return this process's temporary directory, and say once that it is used in place of the usual one."""
    try:
        folder = _made()
    except OSError as error:
        raise OSError(
            f"the rows cannot be kept: {usual!r} cannot be written ({reason}), and neither can a temporary directory "
            f"({error.strerror or error}); {CURE}, or TMPDIR"
        ) from error
    say(
        f"the cache of datasets, {usual!r}, cannot be written ({reason}): rows are kept in {os.path.dirname(folder)!r} until "
        f"the run ends, and prepared anew the next time; {CURE} to keep them",
        once="no cache",
    )
    return folder


@functools.cache
def _made() -> str:
    folder, owner = tempfile.mkdtemp(prefix="plaudit-"), os.getpid()

    def remove() -> None:
        # Forked workers end too.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
