"""What does not end is ended in its thread, and nothing else is."""

import os
import subprocess
import sys
import threading
import time

import pytest

from plaudit import patience
from plaudit.patience import Patience, TookTooLong


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch):
    monkeypatch.setattr(patience, "LOOKS_EVERY", 0.02)


def compute(seconds):
    """Compute for so many seconds of the processor's time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_step_that_computes_for_too_long_is_ended():
    with pytest.raises(TookTooLong), Patience(0.1):
        compute(60)


def test_a_step_that_waits_is_not_ended():
    with Patience(0.1):
        time.sleep(0.5)


def test_each_step_has_all_the_time_again():
    with Patience(0.3) as step:
        for _ in range(6):
            step()
            compute(0.1)


def test_an_error_that_is_caught_on_its_way_is_raised_again():
    def stubborn():
        try:
            compute(60)
        except TookTooLong:
            compute(60)

    with pytest.raises(TookTooLong), Patience(0.1):
        stubborn()


def test_what_comes_after_is_left_alone():
    ended = 0
    for _ in range(60):
        try:
            with Patience(0.02):
                compute(0.02)
        except TookTooLong:
            ended += 1
    compute(0.3)
    # At the very end of the time, some are ended and some are not.
    assert ended < 60
    assert not any(one.watched for one in patience._watchers)


def test_a_block_that_was_left_without_a_word_is_forgotten():
    def leave():
        Patience(0.05).__enter__()

    leave()
    compute(0.5)
    assert not any(one.watched for one in patience._watchers)


def test_only_the_thread_that_takes_too_long_is_ended():
    ended = []

    def run(name, seconds, allowed):
        try:
            with Patience(allowed):
                compute(seconds)
        except TookTooLong:
            ended.append(name)

    threads = [threading.Thread(target=run, args=case) for case in (("endless", 60, 0.1), ("quick", 0.3, 60))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert ended == ["endless"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_fork_has_a_watcher_of_its_own():
    with Patience(60):
        compute(0.01)
    child = os.fork()
    if not child:
        try:
            with Patience(0.1):
                compute(30)
        except TookTooLong:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_block_that_was_left_in_time_or_late_does_not_make_a_traced_thread_hang():
    code = """
import sys, time
from plaudit import patience
patience.LOOKS_EVERY = 0.02

def count():
    return sum(range(10))

for seconds in (100, 0.01):
    try:
        with patience.Patience(seconds):
            began = time.process_time()
            while time.process_time() - began < 0.2:
                count()
    except patience.TookTooLong:
        print("late")
sys.settrace(lambda frame, event, argument: None)
print(count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["late", "45"], done.stderr
