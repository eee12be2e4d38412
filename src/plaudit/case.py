"""What the doctor examines: a run's model, pairs and options, and the promise to leave them as they were."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from plaudit import checks
from plaudit.collate import Padded, PairCollator
from plaudit.rewards import classifier_of, head_names

# Pairs that are looked at one by one.
LOOKED_AT = 32
# Two vectors that differ by less of their length are the same but for rounding.
SAME = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}


@dataclass
class Case:
    """What is examined. Only the first three are needed.

    pairs: prepared pairs, a Dataset or a list of dicts with chosen_ids, rejected_ids and maybe margin. args: the run's
    options. log_history: the trainer state's. collate: what makes the run's batches of them; padded where None. num_steps:
    optimizer steps of the whole run. optimizer, schedule: the run's, where they are made. rows: each pair's row in the user's own data,
    where some were dropped. conversational: whether the chat template was applied. is_trained: whether the model is what
    the log tells of, and not as it was before. whole: False where the weights are spread over processes, so that only what
    needs no forward is checked.
    """

    model: nn.Module
    pairs: Any
    tokenizer: Any
    args: Any = None
    log_history: Sequence[Mapping[str, Any]] = ()
    collate: Callable[[list[dict]], Mapping[str, Any]] | None = None
    num_steps: int = 0
    optimizer: Any = None
    schedule: Any = None
    rows: Sequence[int] | None = None
    conversational: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_trained: bool | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        taken = self.pairs.take(checks.PROBED_PAIRS) if hasattr(self.pairs, "take") else self.pairs
        self.sample: list[dict] = [dict(pair) for pair in itertools.islice(taken, checks.PROBED_PAIRS)]
        if not self.sample:
            raise ValueError("there are no pairs to examine; give the prepared pairs of the run")
        if self.is_trained is None:
            self.is_trained = bool(self.log_history)
        if self.collate is None:
            pad_token_id = getattr(self.tokenizer, "pad_token_id", None) or 0
            self.collate = PairCollator(Padded(pad_token_id), pad_token_id)

    def batch(self, pairs: list[dict]) -> dict[str, Any]:
        """Return the pairs as the run's own collator makes a batch of them, on the model's device."""
        device = next(self.model.parameters()).device
        made = cast(Callable, self.collate)(pairs)
        return {name: value.to(device) if hasattr(value, "to") else value for name, value in made.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the weights are in, or that autocast computes in."""
        if getattr(self.args, "bf16", False) or getattr(self.args, "fp16", False):
            return torch.bfloat16
        return next((each.dtype for each in self.model.parameters() if each.dtype in SAME), torch.float32)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode, and put weights, buffers, gradients, modes and random numbers back as they were."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(each, each.grad) for each in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = sorted({each.device for each in model.parameters() if each.device.type == "cuda"}, key=str)
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    model.eval()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        for module, is_training in modes:
            module.training = is_training
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)


def head_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that make rewards of the base model's states, by name."""
    classifier = classifier_of(model)
    return [(name, getattr(classifier, name)) for name in head_names(model)]
