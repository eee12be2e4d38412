"""Every pair once, in the data set's order, however processes shared them."""

import numpy as np
import torch

from plaudit.scored import PADDING, ScoredPairs


def alone(value):
    return value


def gathered(parts):
    """Gather over several processes played one after the other: each call of a part's gather sees all parts' tensors."""
    calls = []
    for part in parts:
        seen = []
        part.gather(lambda tensor, seen=seen: seen.append(tensor) or tensor, widen)
        calls.append(seen)
    whole = iter([torch.cat(tensors) if tensors[0].dim() else sum(tensors) for tensors in zip(*calls, strict=True)])
    return parts[0].gather(lambda tensor: next(whole), widen)


def widen(tensor, width=4):
    if tensor.dim() < 2:
        return tensor
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=PADDING)


def test_rows_come_back_in_the_data_sets_order_without_fillers():
    scored = ScoredPairs()
    scored.add(torch.tensor([3, 0]), 10, rewards=torch.tensor([[3.0, -3.0], [0.0, -0.0]]))
    scored.add(torch.tensor([2, -1]), 5, rewards=torch.tensor([[2.0, -2.0], [9.0, 9.0]]))
    scored.add(torch.tensor([1, -1]), 5, rewards=torch.tensor([[1.0, -1.0], [8.0, 8.0]]))
    found = scored.gather(alone, alone)
    assert found["rewards"].tolist() == [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]
    assert found["num_tokens"] == 20


def test_processes_are_brought_together():
    parts = []
    for indices in ([0, 1], [2, -1]):
        part = ScoredPairs()
        for index in indices:
            part.add(torch.tensor([index]), 7 if index >= 0 else 0, losses=torch.tensor([float(index)]))
        parts.append(part)
    found = gathered(parts)
    assert found["losses"].tolist() == [0.0, 1.0, 2.0]
    assert found["num_tokens"] == 21


def test_columns_of_varying_width_are_padded_and_tuples_are_kept():
    parts = []
    for width in (2, 3):
        part = ScoredPairs()
        inputs = torch.full((1, width), width)
        part.add(torch.tensor([width - 2]), 0, inputs=inputs, logits=(inputs.float(), torch.ones(1)))
        parts.append(part)
    found = gathered(parts)
    assert found["inputs"].tolist() == [[2, 2, PADDING, PADDING], [3, 3, 3, PADDING]]
    assert isinstance(found["logits"], tuple)
    assert found["logits"][1].tolist() == [1.0, 1.0]


def test_batches_of_varying_width_are_padded_to_the_widest():
    scored = ScoredPairs()
    scored.add(torch.tensor([0]), 0, inputs=torch.tensor([[1, 2]]))
    scored.add(torch.tensor([1]), 0, inputs=torch.tensor([[1, 2, 3]]))
    assert scored.gather(alone, alone)["inputs"].tolist() == [[1, 2, PADDING], [1, 2, 3]]


def test_a_column_that_is_none_is_left_out_and_half_precision_becomes_float():
    scored = ScoredPairs()
    scored.add(torch.tensor([0]), 0, losses=None, rewards=torch.tensor([0.5], dtype=torch.bfloat16))
    found = scored.gather(alone, alone)
    assert set(found) == {"rewards", "num_tokens"}
    assert found["rewards"].dtype == np.float32
