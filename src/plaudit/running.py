"""What a training interval has seen of rewards, as running sums on the device that are read once a log."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RunningMetrics:
    """What a training interval has seen, summed on the device and read once a log.

    Sums and counts are exact over the pairs of all processes; the extremes are kept per optimizer step, because what is
    logged is the mean over the interval's steps of each step's minimum and maximum. A filler pair (weight 0), which only
    makes processes even, counts nowhere.
    """

    SUMS = ("pairs", "correct", "tied", "reward", "margin")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        # Apple's GPUs have no float64; an interval's sums keep enough digits in float32.
        self._dtype = torch.float32 if self._device.type == "mps" else torch.float64
        self.num_tokens = 0  # of all processes, up to the last reduction
        self._local_tokens = 0  # of this process, since then
        self.clear()

    def clear(self) -> None:
        """Forget the interval; the token count goes on."""
        self._sums = torch.zeros(len(self.SUMS), dtype=self._dtype, device=self._device)
        self._extremes: list[Tensor] = []
        self._open: Tensor | None = None

    @property
    def num_steps(self) -> int:
        """Optimizer steps since the last log: the same on every process, so it may guard a collective."""
        return len(self._extremes)

    def add(self, chosen: Tensor, rejected: Tensor, weight: Tensor, num_tokens: int) -> None:
        """Add one micro-batch. chosen, rejected, weight: shape (num_pairs,), no gradient; num_tokens: of real pairs."""
        gap = chosen - rejected
        columns = (torch.ones_like(gap), gap > 0, gap == 0, (chosen + rejected) / 2, gap)
        # where, not a product: a filler's reward may be infinite and 0 * inf is not a number.
        real = weight > 0
        self._sums += torch.stack([torch.where(real, column, 0.0).to(self._dtype).sum() for column in columns])
        lowest = torch.where(real, torch.minimum(chosen, rejected), math.inf).amin()
        highest = torch.where(real, torch.maximum(chosen, rejected), -math.inf).amax()
        extremes = torch.stack([-lowest, highest]).to(self._dtype)
        self._open = extremes if self._open is None else torch.maximum(self._open, extremes)
        self._local_tokens += num_tokens

    def end_step(self) -> None:
        """Close an optimizer step: its extremes are complete."""
        if self._open is not None:
            self._extremes.append(self._open)
            self._open = None

    def reduce(self, gather: Any) -> dict[str, Any]:
        """Return the interval over all processes as plain numbers; one collective, one read of the device.

        gather: a function from a tensor, shape (n,), to all processes' tensors, shape (num_processes, n).
        """
        tokens = torch.tensor([self._local_tokens], dtype=self._dtype, device=self._device)
        rows = gather(torch.cat([tokens, self._sums, *self._extremes])).cpu().double()
        self.num_tokens += int(rows[:, 0].sum())
        self._local_tokens = 0
        first = 1 + len(self.SUMS)
        extremes = rows[:, first:].amax(dim=0).reshape(-1, 2)
        return {"sums": rows[:, 1:first].sum(dim=0).tolist(), "extremes": extremes.tolist()}

    def logs(self, reduced: Mapping[str, Any]) -> dict[str, float]:
        """Return what `reduce` gave as the logged figures."""
        sums = dict(zip(self.SUMS, reduced["sums"], strict=True))
        pairs = max(sums["pairs"], 1.0)
        steps = max(len(reduced["extremes"]), 1)
        return {
            "num_tokens": self.num_tokens,
            "min_reward": sum(-lowest for lowest, _ in reduced["extremes"]) / steps,
            "mean_reward": sums["reward"] / pairs,
            "max_reward": sum(highest for _, highest in reduced["extremes"]) / steps,
            "accuracy": sums["correct"] / pairs,
            "ties": sums["tied"] / pairs,
            "margin": sums["margin"] / pairs,
        }

    def own(self) -> dict[str, Any]:
        """Return this process's part of the interval as plain numbers; one read of the device, and nothing changes."""
        row = torch.cat([self._sums, *self._extremes]).cpu().double()
        return {
            "tokens": self._local_tokens,
            "sums": row[: len(self.SUMS)].tolist(),
            "extremes": row[len(self.SUMS) :].reshape(-1, 2).tolist(),
        }

    def restore(self, num_tokens: int, own: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept. num_tokens: of all processes at the last log; own: what `own` returned here."""
        self.clear()
        self.num_tokens, self._local_tokens = num_tokens, own["tokens"]
        self._sums = torch.tensor(own["sums"], dtype=self._dtype, device=self._device)
        self._extremes = list(torch.tensor(own["extremes"], dtype=self._dtype, device=self._device).reshape(-1, 2))
