"""What a checkpoint keeps of a run: through JSON and back, for as many processes or others, and the random numbers."""

import json
import math
import random

import numpy as np
import torch

from plaudit import kept


def test_another_number_of_processes_takes_up_the_same_sums():
    processes = [
        {"loss": 1.0, "flos": 10.0, "tokens": 5, "sums": [2.0, 1.0], "extremes": [[1.0, -math.inf]]},
        {"loss": 3.0, "flos": 20.0, "tokens": 7, "sums": [1.0, 1.0], "extremes": [[0.0, 4.0]]},
    ]
    record = kept.read(json.loads(json.dumps(kept.Kept(100, processes, 3, 1.5).to_json(), allow_nan=False)), 4)
    assert [record.of_process(number, 2) for number in range(2)] == processes
    first, second, third = (record.of_process(number, 3) for number in range(3))
    assert first == {"loss": 2.0, "flos": 30.0, "tokens": 12, "sums": [3.0, 2.0], "extremes": [[1.0, 4.0]]}
    nothing = {"loss": 2.0, "flos": 0.0, "tokens": 0, "sums": [0.0, 0.0], "extremes": [[-math.inf] * 2]}
    assert second == third == nothing


def test_a_record_comes_back_from_json_as_it_was():
    place = kept.Place(1, 3, 4, is_ended=False, evaluate=True, save=True)
    process = {"loss": 1.0, "flos": 2.0, "tokens": 3, "sums": [4.0], "extremes": [[-math.inf, 5.0]]}
    record = kept.Kept(100, [process], 7, 1.5, 0.25, 1e-3, place)
    assert kept.read(json.loads(json.dumps(record.to_json(), allow_nan=False)), 9) == record
    assert kept.read(None, 9) is None


def test_an_epoch_is_at_its_end_after_its_last_step_or_where_a_callback_cut_it():
    at = [
        kept.Place(0, steps, 4, is_ended=False, is_cut=is_cut).is_at_end
        for steps, is_cut in ((3, False), (4, False), (2, True))
    ]
    assert at == [False, True, True]


def test_random_numbers_come_again_once_their_state_is_put_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = kept.random_state()
    first = draw()
    assert draw() != first
    kept.set_random_state(state)
    assert draw() == first
