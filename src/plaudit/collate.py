"""Token sequences to model inputs, padded or as one tree; the collators that users name, and the one the trainer wraps round them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from plaudit import compat, tree
from plaudit.attention import Plan
from plaudit.prepare import read_out
from plaudit.tree import Chain, Tree

# What the trainer knows of each pair beyond its tokens; written by batches.py, read by PairCollator.
INDEX, WEIGHT, TOTAL, COUNTS, ERROR = "_index", "_weight", "_total", "_counts", "_error"
BOOKKEEPING = (INDEX, WEIGHT, TOTAL, COUNTS)


def pad(sequences: Sequence[Sequence[int]], value: int, pad_to_multiple_of: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, both shape (num_sequences, longest), padded on the right, as int64."""
    longest = max(len(ids) for ids in sequences)
    if pad_to_multiple_of:
        longest += -longest % pad_to_multiple_of
    ids = np.full((len(sequences), longest), value, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class Padded:
    """Sequences to one padded batch: `input_ids` and `attention_mask`, shape (N, longest), and `token_weight`.

    token_weight: float32, the shape of input_ids: the weight of the sequences that hold the token, 0 for padding.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None) -> None:
        self.pad_token_id, self.pad_to_multiple_of = pad_token_id, pad_to_multiple_of

    def __call__(self, sequences: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> dict[str, Any]:
        ids, mask = pad(sequences, self.pad_token_id, self.pad_to_multiple_of)
        weight = torch.ones(len(sequences)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "token_weight": mask * weight.unsqueeze(-1)}


class TreeRow:
    """Sequences to one row of T tokens, in which each prefix that they share is stored, and computed, once.

    Gives `input_ids`, `position_ids` and `token_weight`, shape (1, T), `read_out`, shape (N,), where in the row each
    sequence's reward is read, and `tree`, the attention's plan. For models that plaudit.probe has found to agree.
    pad_token_id: the reward is read before trailing ids of this kind, as in a padded batch; None to read the last one.
    pad_to_multiple_of: the row's length is filled up to one. use_varlen: plan for the variable-length CUDA kernel.
    """

    def __init__(
        self, pad_token_id: int | None, pad_to_multiple_of: int | None = None, use_varlen: bool = False
    ) -> None:
        self.pad_token_id, self.pad_to_multiple_of, self.use_varlen = pad_token_id, pad_to_multiple_of, use_varlen

    def __call__(self, sequences: Sequence[Sequence[int]], weights: Sequence[float] | None = None) -> dict[str, Any]:
        read_at = [read_out(ids, self.pad_token_id) for ids in sequences]
        row = tree.layout(sequences, read_at, weights)
        row = fill_up(row, self.pad_to_multiple_of or 1, self.pad_token_id or 0)
        return {
            "input_ids": torch.from_numpy(row.tokens).unsqueeze(0),
            "position_ids": torch.from_numpy(row.positions).unsqueeze(0),
            "token_weight": torch.from_numpy(row.weight).unsqueeze(0),
            "read_out": torch.from_numpy(row.read_out),
            "tree": Plan(row, self.use_varlen),
        }


def fill_up(row: Tree, multiple: int, pad_token_id: int) -> Tree:
    """Return the tree with its row filled up to a multiple of that many tokens, by a chain that no sequence reads."""
    size = len(row.tokens)
    extra = -size % multiple
    if not extra:
        return row
    path = np.arange(size, size + extra)
    return Tree(
        tokens=np.concatenate([row.tokens, np.full(extra, pad_token_id)]),
        positions=np.concatenate([row.positions, np.arange(extra)]),
        subtree_end=np.concatenate([row.subtree_end, np.full(extra, size + extra)]),
        read_out=row.read_out,
        weight=np.concatenate([row.weight, np.zeros(extra, np.float32)]),
        chains=[*row.chains, Chain(size, size + extra, path)],
    )


def token_pairs(examples: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the chosen and the rejected ids of the examples, under whichever of the accepted column names they have."""
    for entry in compat.TOKEN_COLUMNS:
        names: dict[str, Any] = dict(entry)
        if names["chosen_ids"] in examples[0] and names["rejected_ids"] in examples[0]:
            return (
                [_attended(example, names["chosen_ids"], names["chosen_mask"]) for example in examples],
                [_attended(example, names["rejected_ids"], names["rejected_mask"]) for example in examples],
            )
    raise ValueError(
        f"the examples have the columns {sorted(examples[0])}, but a collator of pairs needs 'chosen_ids' and 'rejected_ids'"
    )


def _attended(example: Mapping[str, Any], ids: str, mask: str | None) -> list[int]:
    if mask is None or mask not in example:
        return list(example[ids])
    return [token for token, kept in zip(example[ids], example[mask], strict=True) if kept]


class DataCollatorForPreference:
    """Token pairs to one padded batch of both sides: row i is pair i's chosen sequence, row num_pairs + i its rejected.

    Gives `input_ids` and `attention_mask`, shape (2 * num_pairs, longest), and `margin`, float32, shape (num_pairs,),
    where the examples have it. return_tensors: only "pt".
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None, return_tensors: str = "pt") -> None:
        _only_torch(return_tensors)
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.return_tensors = return_tensors

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        chosen, rejected = token_pairs(examples)
        ids, mask = pad([*chosen, *rejected], self.pad_token_id, self.pad_to_multiple_of)
        return {"input_ids": ids, "attention_mask": mask, **_margin(examples)}


class RewardDataCollatorWithPadding:
    """The oldest form: each side padded by the tokenizer on its own, in four entries.

    Gives `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected`, `attention_mask_rejected`, and `margin`.
    """

    def __init__(
        self,
        tokenizer: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str = "pt",
    ) -> None:
        _only_torch(return_tensors)
        self.tokenizer = tokenizer
        self.padding = padding
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.return_tensors = return_tensors

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for side, sequences in zip(("chosen", "rejected"), token_pairs(examples), strict=True):
            padded = self.tokenizer.pad(
                {"input_ids": sequences, "attention_mask": [[1] * len(ids) for ids in sequences]},
                padding=self.padding,
                max_length=self.max_length,
                pad_to_multiple_of=self.pad_to_multiple_of,
                # As the other half: models that count positions from the first column would tell the sides apart.
                padding_side="right",
                return_tensors=self.return_tensors,
            )
            batch[f"input_ids_{side}"] = padded["input_ids"]
            batch[f"attention_mask_{side}"] = padded["attention_mask"]
        return {**batch, **_margin(examples)}


class PairCollator:
    """Pairs to a batch of either layout, with what the trainer needs to count each pair once.

    layout: Padded or TreeRow; or a collator of the user's, which gets the examples themselves.
    Adds `pair_index` (num_pairs,), the row in the data set, -1 for a filler; `pair_weight` (num_pairs,), 0 for a filler;
    `num_pairs`, the real pairs of this micro-batch over all processes; `num_tokens`, this process's attended tokens of
    real pairs; and, for streams, `counts`, what was dropped so far.
    columns: for a collator of the user's, the names that the user's own data set gave the token columns.
    keep_sequences: add `sequences`, the padded ids, shape (2 * num_pairs, longest), for metrics that ask for inputs.
    """

    def __init__(
        self,
        layout: Padded | TreeRow | Callable,
        pad_token_id: int,
        columns: Mapping[str, str] | None = None,
        keep_sequences: bool = False,
    ) -> None:
        self.layout = layout
        self.pad_token_id = pad_token_id
        self.columns = dict(columns or {})
        self.keep_sequences = keep_sequences

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if ERROR in features[0]:
            return {"error": features[0][ERROR]}
        weight = torch.tensor([feature.get(WEIGHT, 1.0) for feature in features], dtype=torch.float32)
        if isinstance(self.layout, (Padded, TreeRow)):
            chosen, rejected = token_pairs(features)
            batch = {**self.layout([*chosen, *rejected], weight.repeat(2).tolist()), **_margin(features)}
            if self.keep_sequences:
                batch["sequences"], _ = pad([*chosen, *rejected], self.pad_token_id)
        else:
            batch = self._of_user(features, weight)
        batch["pair_index"] = torch.tensor([feature.get(INDEX, -1) for feature in features], dtype=torch.int64)
        batch["pair_weight"] = weight
        batch["num_pairs"] = features[0].get(TOTAL, len(features))
        batch["num_tokens"] = int(batch["token_weight"].sum())
        if COUNTS in features[0]:
            batch["counts"] = features[0][COUNTS]
        return batch

    def _of_user(self, features: Sequence[Mapping[str, Any]], weight: Tensor) -> dict[str, Any]:
        collator = cast(Callable, self.layout)
        batch = merge_halves(dict(collator([self._example(feature) for feature in features])), self.pad_token_id)
        if batch["input_ids"].shape[0] != 2 * len(features):
            raise ValueError(
                f"the data collator made {batch['input_ids'].shape[0]} sequences of {len(features)} pairs; it must give "
                "every pair's chosen sequence first and then every pair's rejected one"
            )
        # The reward is read at the last id that is not this one, whatever a user's collator pads with.
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, self.pad_token_id)
        batch["token_weight"] = batch["attention_mask"] * weight.repeat(2).unsqueeze(-1)
        if self.keep_sequences:
            batch["sequences"] = batch["input_ids"]
        return batch

    def _example(self, feature: Mapping[str, Any]) -> dict[str, Any]:
        example = {self.columns.get(name, name): value for name, value in feature.items() if name not in BOOKKEEPING}
        for side in ("chosen", "rejected"):
            if f"{side}_mask" in self.columns:
                example[self.columns[f"{side}_mask"]] = [1] * len(feature[f"{side}_ids"])
        return example


def merge_halves(batch: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """Return the batch with the four entries of the oldest form, if it has them, as one `input_ids` and `attention_mask`."""
    if "input_ids" not in batch and "input_ids_chosen" in batch and "input_ids_rejected" in batch:
        sides = [batch.pop("input_ids_chosen"), batch.pop("input_ids_rejected")]
        masks = [batch.pop(f"attention_mask_{side}", None) for side in ("chosen", "rejected")]
        longest = max(side.shape[1] for side in sides)
        masks = [torch.ones_like(ids) if mask is None else mask for ids, mask in zip(sides, masks, strict=True)]
        batch["input_ids"] = torch.cat([_widen(ids, longest, pad_token_id) for ids in sides])
        batch["attention_mask"] = torch.cat([_widen(mask, longest, 0) for mask in masks])
    if "input_ids" not in batch:
        raise ValueError(
            f"the data collator returned {sorted(batch)}; it must return input_ids and attention_mask with the chosen "
            "sequences first, or input_ids_chosen, attention_mask_chosen, input_ids_rejected and attention_mask_rejected"
        )
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    return batch


def _widen(tensor: Tensor, longest: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=value)


def _margin(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    if "margin" not in examples[0]:
        return {}
    return {"margin": torch.tensor([example["margin"] for example in examples], dtype=torch.float32)}


def _only_torch(return_tensors: str) -> None:
    if return_tensors != "pt":
        raise ValueError(f"return_tensors: '{return_tensors}' is not supported; only 'pt' is")
