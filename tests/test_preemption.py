"""SIGTERM: noted, given back, agreed on, and kept from a loader's workers."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time

import pytest

from plaudit import preemption
from plaudit.preemption import EXIT_CODE, Agreement, Sigterm


@pytest.fixture(autouse=True)
def handler():
    """Hold the handler of before, whatever a test leaves."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_signal_is_noted_until_it_is_given_back_to_whoever_had_it():
    seen = []
    own = lambda number, frame: seen.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, own)
    sigterm = Sigterm()
    sigterm.install()
    sigterm.install()
    signal.raise_signal(signal.SIGTERM)
    assert sigterm.came
    assert not seen
    sigterm.restore()
    assert signal.getsignal(signal.SIGTERM) is own
    # It came too late for the training, so the user's handler gets it now, once.
    sigterm.pass_on()
    sigterm.pass_on()
    assert seen == [signal.SIGTERM]


def test_a_late_signal_ends_the_process_where_nobody_else_handles_it():
    for before, ends in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        signal.signal(signal.SIGTERM, before)
        sigterm = Sigterm()
        sigterm.install()
        signal.raise_signal(signal.SIGTERM)
        sigterm.restore()
        if ends:
            with pytest.raises(SystemExit) as error:
                sigterm.pass_on()
            assert error.value.code == EXIT_CODE == 143
        else:
            sigterm.pass_on()


def test_another_thread_leaves_the_signal_alone_and_says_so(caplog):
    before, sigterm = signal.getsignal(signal.SIGTERM), Sigterm()
    thread = threading.Thread(target=sigterm.install)
    thread.start()
    thread.join()
    assert not sigterm.is_installed
    assert "SIGTERM is not listened for" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_process_agrees_with_itself():
    agreement = Agreement.of(60)
    assert agreement.any_by_now(True)
    assert not agreement.any_by_now(False)
    assert agreement.errors(None) == []
    assert agreement.errors("full") == [(0, "full")]
    assert agreement.first_decides(lambda: 7) == 7
    agreement.leave()


def several(function, count=2):
    """Run a function of (rank, connection) in processes that form a gloo group; return what each sent."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(count)]
    running = [
        context.Process(target=_member, args=(function, rank, count, port, pipes[rank][1])) for rank in range(count)
    ]
    for process in running:
        process.start()
    found = [mine.recv() if mine.poll(60) else "nothing" for mine, _ in pipes]
    for process in running:
        process.join(10)
        process.kill()
    return found


def _member(function, rank, count, port, pipe):
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count))
    dist.init_process_group("gloo")
    try:
        pipe.send(function(rank))
    except BaseException as error:
        pipe.send(repr(error))
    os._exit(0)


def test_all_processes_hear_of_one_processs_signal_at_the_same_call_the_next_but_one():
    def ask(rank):
        agreement = Agreement.of(60)
        return [agreement.any_by_now(rank == 1 and step >= 3) for step in range(6)]

    assert several(ask) == [[False] * 4 + [True] * 2] * 2


def test_an_error_of_one_process_reaches_all_and_none_is_no_error():
    def tell(rank):
        agreement = Agreement.of(60)
        agreement.any_by_now(False)
        return [agreement.errors(None), agreement.errors("full" if rank else None), agreement.errors(None)]

    assert several(tell) == [[[], [(1, "full")], []]] * 2


def test_a_process_with_an_error_does_not_wait_for_ever_for_one_that_is_elsewhere(monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr(preemption, "PATIENCE", timedelta(seconds=0.5))

    def tell(rank):
        agreement = Agreement.of(60)
        if rank:
            time.sleep(3)
            return None
        began = time.monotonic()
        return [agreement.errors("full"), time.monotonic() - began < 2.5]

    assert several(tell)[0] == [[(0, "full")], True]


def test_what_the_first_process_decides_or_raises_holds_for_all():
    def decide(rank):
        agreement = Agreement.of(60)
        found = [agreement.first_decides(lambda: rank + 5)]

        def refuse():
            raise ValueError("no such checkpoint")

        try:
            agreement.first_decides(refuse)
        except ValueError as error:
            found.append(str(error))
        return found

    assert several(decide) == [[5, "no such checkpoint"]] * 2


def test_a_worker_outlives_the_signal_of_others_and_heeds_its_parents():
    context, begun = multiprocessing.get_context("fork"), multiprocessing.Event()

    start = preemption.worker_start(lambda worker: begun.set())

    def work():
        start(0)
        time.sleep(30)

    worker = context.Process(target=work)
    worker.start()
    assert begun.wait(10)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
