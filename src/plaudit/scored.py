"""What every process scored, brought together in the order of the data set, each pair once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import nested_concat, nested_numpify

PADDING = -100


class ScoredPairs:
    """Rewards, losses and whatever else a user's metrics need, collected batch by batch on the device.

    Each batch brings `index`, shape (num_pairs,), the row in the data set or -1 for a filler; all processes bring
    batches of the same sizes, so one gather at the end suffices.
    """

    def __init__(self) -> None:
        self._index: list[Tensor] = []
        self._columns: dict[str, list[Any]] = {}
        self.num_tokens = 0

    def add(self, index: Tensor, num_tokens: int, **columns: Any) -> None:
        """Add one batch; every column has the pairs as its first dimension, or is None and is left out."""
        self._index.append(index)
        self.num_tokens += num_tokens
        for name, value in columns.items():
            if value is not None:
                self._columns.setdefault(name, []).append(value)

    def gather(self, gather: Callable[[Tensor], Tensor], pad: Callable[[Any], Any]) -> dict[str, Any]:
        """Return NumPy arrays by column name, in the data set's order, and `num_tokens` over all processes.

        gather: a function from this process's tensor to all processes' along the first dimension. pad: one that gives
        a tensor of varying second dimension the same on all processes.
        """
        index = gather(torch.cat(self._index)).cpu().numpy()
        rows = np.flatnonzero(index >= 0)
        rows = rows[np.argsort(index[rows], kind="stable")]
        out: dict[str, Any] = {}
        for name, batches in self._columns.items():
            whole = batches[0]
            for batch in batches[1:]:
                whole = nested_concat(whole, batch, padding_index=PADDING)
            out[name] = _take(nested_numpify(_each(whole, lambda tensor: gather(pad(tensor)))), rows)
        tokens = torch.tensor([self.num_tokens], device=self._index[0].device)
        return {**out, "num_tokens": int(gather(tokens).sum())}


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, function) for item in value)
    return function(value)


def _take(value: Any, rows: np.ndarray) -> Any:
    return type(value)(_take(item, rows) for item in value) if isinstance(value, (list, tuple)) else value[rows]
