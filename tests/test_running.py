"""Running sums that do not depend on how the pairs were split."""

import json
import math

import pytest
import torch
from test_metrics import BY_HAND, CHOSEN, REJECTED

from plaudit.running import RunningMetrics


def alone(row):
    return row.unsqueeze(0)


def tensors(*columns):
    return [torch.tensor(column) for column in columns]


def add(running, chosen, rejected, weight=None, num_tokens=0):
    running.add(*tensors(chosen, rejected, weight or [1.0] * len(chosen)), num_tokens)


def logs(running, gather=alone):
    return running.logs(running.reduce(gather))


def test_one_step_of_one_micro_batch_is_the_sets_figures():
    running = RunningMetrics()
    add(running, CHOSEN, REJECTED, num_tokens=70)
    running.end_step()
    assert logs(running) == pytest.approx(BY_HAND | {"num_tokens": 70})


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 3), (1, 2, 3)])
def test_however_a_step_is_split_its_figures_are_the_same(cuts):
    running = RunningMetrics()
    for first, last in zip((0, *cuts), (*cuts, 4), strict=True):
        add(running, CHOSEN[first:last], REJECTED[first:last], num_tokens=last - first)
    running.end_step()
    assert logs(running) == pytest.approx(BY_HAND | {"num_tokens": 4})


def test_a_filler_counts_nowhere_whatever_its_reward():
    running = RunningMetrics()
    for filler in (math.inf, math.nan, 50.0):
        running.clear()
        add(running, [*CHOSEN, filler], [*REJECTED, -filler], weight=[1.0] * 4 + [0.0])
        add(running, [filler], [filler], weight=[0.0])
        running.end_step()
        assert logs(running) == pytest.approx(BY_HAND | {"num_tokens": 0})


def test_extremes_are_the_mean_over_steps_of_each_steps_own():
    running = RunningMetrics()
    for chosen, rejected in (([5.0], [1.0]), ([3.0], [-3.0])):
        add(running, chosen, rejected)
        running.end_step()
    found = logs(running)
    assert (found["min_reward"], found["max_reward"]) == (-1.0, 4.0)
    assert running.num_steps == 2


def test_the_interval_is_forgotten_and_the_tokens_are_not():
    running = RunningMetrics()
    add(running, [9.0], [9.0], num_tokens=10)
    running.end_step()
    logs(running)
    running.clear()
    assert running.num_steps == 0
    add(running, CHOSEN, REJECTED, num_tokens=5)
    running.end_step()
    assert logs(running) == pytest.approx(BY_HAND | {"num_tokens": 15})


def test_processes_add_up_to_the_whole():
    parts = [RunningMetrics() for _ in range(2)]
    for i, running in enumerate(parts):
        add(running, CHOSEN[i::2], REJECTED[i::2], num_tokens=10 + i)
        running.end_step()
    rows = []
    for running in parts:
        running.reduce(lambda row: rows.append(row) or row.unsqueeze(0))
    parts = [RunningMetrics() for _ in range(2)]
    for running in parts:
        # Each process sees the same rows, so each logs the same.
        assert running.logs(running.reduce(lambda _: torch.stack(rows))) == pytest.approx(BY_HAND | {"num_tokens": 21})


def test_reduce_is_one_gather():
    calls = []
    running = RunningMetrics()
    for _ in range(3):
        add(running, CHOSEN, REJECTED)
        running.end_step()
    running.reduce(lambda row: calls.append(row) or row.unsqueeze(0))
    assert len(calls) == 1


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_restored_interval_goes_on_as_if_nothing_had_happened(num_processes):
    whole = [RunningMetrics() for _ in range(num_processes)]
    # All below zero, so that a process that holds no interval would show if it counted as zero.
    steps = [([-2.0, -1.0], [-4.0, -3.0]), (CHOSEN, REJECTED)]

    def run(running, chosen, rejected):
        for process, one in enumerate(running):
            add(one, chosen[process::num_processes], rejected[process::num_processes], num_tokens=10)
            one.end_step()

    def reduced(running):
        rows = []
        for one in running:
            kept = (one.num_tokens, one._local_tokens)
            one.reduce(lambda row: rows.append(row) or row.unsqueeze(0))
            one.num_tokens, one._local_tokens = kept
        return [one.reduce(lambda _: torch.stack(rows)) for one in running].pop()

    run(whole, *steps[0])
    before = [(one.num_tokens, json.loads(json.dumps(one.own()))) for one in whole]
    run(whole, *steps[1])
    expected = whole[0].logs(reduced(whole))

    after = [RunningMetrics() for _ in range(num_processes)]
    for one, (num_tokens, own) in zip(after, before, strict=True):
        one.restore(num_tokens, own)
    assert after[0].num_steps == 1
    run(after, *steps[1])
    # To the last bit, and asking what there was has changed nothing.
    assert after[0].logs(reduced(after)) == expected
    assert expected["num_tokens"] == 20 * num_processes


def test_an_interval_without_a_step_can_be_kept_and_restored():
    running = RunningMetrics()
    running.restore(30, RunningMetrics().own())
    add(running, CHOSEN, REJECTED)
    running.end_step()
    assert logs(running) == pytest.approx(BY_HAND | {"num_tokens": 30})
