"""What a checkpoint keeps of a run beyond transformers' own: open sums of every process, and the place to go on from."""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ExportableState

# Where a checkpoint's trainer_state.json keeps it.
STATE = "plaudit"


@dataclass(frozen=True)
class Place:
    """Where in an epoch a checkpoint was saved.

    epoch: from 0; steps: its optimizer steps that are done; steps_per_epoch: as many as it has. is_ended: whether the epoch
    was over, its end's callbacks called, and not only its last step made. is_cut: whether a callback ended the epoch early.
    evaluate, save: what was still to be done at this very step, because SIGTERM broke the evaluation off.
    """

    epoch: int
    steps: int
    steps_per_epoch: int
    is_ended: bool
    is_cut: bool = False
    evaluate: bool = False
    save: bool = False

    @property
    def is_at_end(self) -> bool:
        """Whether no step of the epoch is left."""
        return self.is_cut or self.steps >= self.steps_per_epoch


@dataclass(frozen=True)
class Kept:
    """One checkpoint's record.

    num_tokens: of all processes, up to the last log. processes: of each, in order, `loss` and `flos`, open since the last
    log, and the running interval's `tokens`, `sums` and `extremes`. total_loss: the sum of the logged losses times their
    steps, None where it is not known. logged_step: the step of the last log. grad_norm, learning_rate: of the last step.
    facts: what the run was told to do, by name, None where it is not known.
    """

    num_tokens: int
    processes: Sequence[Mapping[str, Any]]
    logged_step: int
    total_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    place: Place | None = None
    facts: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        # JSON has no infinity, which stands for a process that had no pair in a step.
        return _each_extreme(dataclasses.asdict(self), lambda value: None if value == -math.inf else value)

    def of_process(self, number: int, count: int) -> Mapping[str, Any]:
        """Return what process `number` of `count` goes on with: its own, or the first one everything if they were others."""
        if count == len(self.processes):
            return self.processes[number]
        # A log takes the mean of the processes' losses, and the sum of their other sums.
        loss = sum(each["loss"] for each in self.processes) / len(self.processes)
        sums = [each["sums"] for each in self.processes]
        extremes = [each["extremes"] for each in self.processes]
        if number:
            nothing = {"flos": 0.0, "tokens": 0, "sums": [0.0] * len(sums[0])}
            return {"loss": loss, **nothing, "extremes": [[-math.inf, -math.inf]] * len(extremes[0])}
        return {
            "loss": loss,
            "flos": sum(each["flos"] for each in self.processes),
            "tokens": sum(each["tokens"] for each in self.processes),
            "sums": [sum(column) for column in zip(*sums, strict=True)],
            "extremes": [[max(values) for values in zip(*steps, strict=True)] for steps in zip(*extremes, strict=True)],
        }


def read(kept: Mapping[str, Any] | None, global_step: int) -> Kept | None:
    """Return the record that `Kept.to_json` made; None where a checkpoint has none, as of another trainer.

    global_step: the checkpoint's. An older plaudit's checkpoint keeps the sums of all processes as one.
    """
    if kept is None:
        return None
    if "processes" in kept:
        kept = _each_extreme(kept, lambda value: -math.inf if value is None else value)
        values: dict[str, Any] = {field.name: kept.get(field.name) for field in dataclasses.fields(Kept)}
        values["place"] = None if kept.get("place") is None else Place(**kept["place"])
        return Kept(**values)
    loss, interval = kept["loss"], kept["interval"]
    one = {"loss": loss["sum"], "flos": 0.0, "tokens": 0, "sums": interval["sums"], "extremes": interval["extremes"]}
    return Kept(kept["num_tokens"], [one], global_step - loss["steps"])


def differences(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return in words which facts of a run are others than those that its checkpoint keeps."""
    before = before or {}
    return [
        f"{name} {before[name]!r}, now {value!r}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _each_extreme(kept: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    processes = [
        {**each, "extremes": [[change(value) for value in step] for step in each["extremes"]]}
        for each in kept["processes"]
    ]
    return {**kept, "processes": processes}


def with_state(trainer: Any) -> list[Any]:
    """Return the callbacks of a trainer that count something, which Trainer's checkpoints keep."""
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, ExportableState)]


def random_state() -> dict[str, Any]:
    """Return the states of the random numbers that training draws from."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the random numbers back to what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
