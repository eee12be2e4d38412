"""Attention over a tree in one row: the function that transformers calls, its registration, and what it needs of a batch.

Shapes: T tokens in the row, H query heads, K key and value heads, D channels a head, Q and S the queries and keys of one
call. Suffixes: _1HTD is (1, H, T, D), as transformers hands over queries, keys and values.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.tree import Chain, Tree

# The name under which the tree's function stands in for each of transformers' own, which it calls for every other batch.
STANDS_IN = {"sdpa": "plaudit_sdpa", "eager": "plaudit_eager"}
# One call costs about as much as this many scores (query times key), forward and backward, measured on a CPU.
CALL_COST = 4096


class Unsupported(ValueError):
    """What a model asks of its attention that the tree layout does not give."""


class Call(NamedTuple):
    """One attention call: a run of the row's pieces as queries, against pieces of their ancestors and their own.

    is_causal: whether every query sees every key up to its own, so that no mask is needed.
    """

    first_query: int
    stop_query: int
    keys: tuple[int, ...]
    is_causal: bool


class Varlen(NamedTuple):
    """What one variable-length kernel call takes for the whole row, each chain against its whole path.

    key_rows: int64, shape (all paths' tokens,). cu_queries, cu_keys: int32, shape (chains + 1,), where each begins.
    """

    key_rows: Tensor
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int


class Plan:
    """Who attends to whom in one batch; made once by the collator, handed through the model to every layer.

    subtree_end, positions: int64, shape (T,). pieces: lengths that the row is cut into for the calls.
    varlen: None where the calls are used.
    """

    def __init__(self, tree: Tree, use_varlen: bool = False) -> None:
        self.subtree_end = torch.from_numpy(tree.subtree_end)
        self.positions = torch.from_numpy(tree.positions)
        self.longest = int(tree.positions.max()) + 1
        self.varlen = _varlen(tree.chains) if use_varlen else None
        self.pieces, self.calls = ([], []) if use_varlen else _calls(tree)
        self._masks: dict[int | None, list[Tensor | None]] = {}

    def to(self, device: Any, **kwargs: Any) -> "Plan":
        """Return the plan with its tensors on the device; accelerate calls this as it moves a batch."""
        return self._with(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self, device: Any = None) -> "Plan":
        """Return the plan with its tensors in pinned memory; the loader calls this."""
        return self._with(lambda tensor: tensor.pin_memory(device))

    def _with(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        plan = object.__new__(Plan)
        plan.__dict__.update(self.__dict__, _masks={})
        plan.subtree_end, plan.positions = function(self.subtree_end), function(self.positions)
        if self.varlen is not None:
            moved = {
                name: function(tensor) for name, tensor in self.varlen._asdict().items() if torch.is_tensor(tensor)
            }
            plan.varlen = self.varlen._replace(**moved)
        return plan

    def masks(self, window: int | None) -> list[Tensor | None]:
        """Return each call's mask, bool, shape (Q, S), None where it is causal; made once a batch and window.

        window: how many positions back a token sees, itself included; None for all.
        """
        if window is not None and window >= self.longest:
            window = None
        if window not in self._masks:
            self._masks[window] = [self._mask(call, window) for call in self.calls]
        return self._masks[window]

    def _mask(self, call: Call, window: int | None) -> Tensor | None:
        if call.is_causal and window is None:
            return None
        starts = [0, *itertools.accumulate(self.pieces)]
        rows = torch.arange(len(self.positions), device=self.positions.device)
        queries = rows[starts[call.first_query] : starts[call.stop_query]].unsqueeze(1)
        keys = torch.cat([rows[starts[piece] : starts[piece + 1]] for piece in call.keys])
        mask = (keys <= queries) & (queries < self.subtree_end[keys])
        if window is not None:
            mask &= self.positions[queries] - self.positions[keys] < window
        return mask


def enable(model: PreTrainedModel) -> None:
    """Let the model's attention take a Plan. Every call without one is answered by the function that it used before.

    Raises Unsupported for models whose attention is not transformers' own exchangeable one.
    """
    used = model.config._attn_implementation
    if used in STANDS_IN.values():
        return
    if used not in STANDS_IN:
        raise Unsupported(f"attn_implementation is {used!r}; leave it out or take 'sdpa'")
    if not model._supports_attention_backend or not model._can_set_attn_implementation():
        raise Unsupported(f"{type(model).__name__} does not let its attention be exchanged")
    model.set_attn_implementation(STANDS_IN[used])


def disable(model: PreTrainedModel) -> None:
    """Give the model back the attention that it had before `enable`."""
    for used, name in STANDS_IN.items():
        if model.config._attn_implementation == name:
            model.set_attn_implementation(used)


@torch.compiler.disable
def attend(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    plan: Plan,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention within the tree, shape (1, T, H, D).

    sliding_window: positions that a token sees, itself included. softcap: the scores' limit, by tanh (Gemma 2).
    s_aux: shape (H,), a sink's score that takes part in the softmax and has no value (gpt-oss).
    """
    if not getattr(module, "is_causal", True):
        raise Unsupported(f"{type(module).__name__} is bidirectional")
    biased = [name for name in ("position_bias", "cache") if kwargs.get(name) is not None]
    if biased:
        raise Unsupported(f"{type(module).__name__} uses {', '.join(biased)}")
    if plan.varlen is not None:
        if softcap is not None or s_aux is not None or dropout:
            raise Unsupported("the variable-length kernel has no softcap, sinks or dropout")
        return _attend_varlen(query_1HTD, key_1KTD, value_1KTD, plan.varlen, scaling, sliding_window), None
    one_call = _fused if softcap is None and s_aux is None else partial(_scored, softcap=softcap, sinks=s_aux)
    queries, keys, values = (tensor.split(plan.pieces, dim=2) for tensor in (query_1HTD, key_1KTD, value_1KTD))
    out = [
        one_call(
            _joined(queries[call.first_query : call.stop_query]),
            _joined([keys[piece] for piece in call.keys]),
            _joined([values[piece] for piece in call.keys]),
            mask,
            scale=scaling,
            dropout_p=dropout,
        ).transpose(1, 2)
        for call, mask in zip(plan.calls, plan.masks(sliding_window), strict=True)
    ]
    return _joined(out, dim=1), None


def _joined(pieces: Any, dim: int = 2) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=dim)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout_p: float) -> Tensor:
    is_grouped = q.shape[1] != k.shape[1]
    if is_grouped and mask is not None and q.device.type == "cuda":
        # With a mask CUDA has grouped heads only in its slowest kernel.
        k, v = (_repeated(tensor, q.shape[1]) for tensor in (k, v))
        is_grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=mask is None, scale=scale, enable_gqa=is_grouped
    )


def _scored(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout_p: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return attention with what no fused kernel has: a limit on the scores, and a sink beside them."""
    k, v = (_repeated(tensor, q.shape[1]) for tensor in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores.dtype)
        scores = torch.cat([scores, sink], dim=-1)
    chances = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)[..., : k.shape[2]]
    return F.dropout(chances, dropout_p) @ v


def _repeated(heads: Tensor, num_heads: int) -> Tensor:
    """Return key or value heads, each as often as query heads share it."""
    return heads.repeat_interleave(num_heads // heads.shape[1], dim=1)


def _attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, varlen: Varlen, scaling: float | None, sliding_window: int | None
) -> Tensor:
    # Only here, for torch has it since 2.10 alone.
    from torch.nn.attention.varlen import varlen_attn

    device = q.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    channels = v.shape[-1]
    # The kernel wants equally wide values; multi-head latent attention has narrower ones.
    v = F.pad(v, (0, q.shape[-1] - channels))
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (tensor.squeeze(0).transpose(0, 1).to(half) for tensor in (q, k, v))
    out = varlen_attn(
        q.contiguous(),
        k.index_select(0, varlen.key_rows),
        v.index_select(0, varlen.key_rows),
        varlen.cu_queries,
        varlen.cu_keys,
        varlen.max_queries,
        varlen.max_keys,
        scale=scaling,
        # The last query of a chain is aligned with the last key of its path. The left number leaves out the token itself.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[..., :channels].unsqueeze(0)


def _varlen(chains: list[Chain]) -> Varlen:
    queries = np.array([chain.stop - chain.start for chain in chains])
    keys = np.array([len(chain.path) for chain in chains])
    return Varlen(
        key_rows=torch.from_numpy(np.concatenate([chain.path for chain in chains])),
        cu_queries=torch.from_numpy(np.concatenate([[0], queries.cumsum()]).astype(np.int32)),
        cu_keys=torch.from_numpy(np.concatenate([[0], keys.cumsum()]).astype(np.int32)),
        max_queries=int(queries.max()),
        max_keys=int(keys.max()),
    )


def _calls(tree: Tree) -> tuple[list[int], list[Call]]:
    """Return the lengths of the pieces that the row is cut into, and the calls over them.

    Chains that follow each other make one call as long as the scores that nobody needs cost less than a call more.
    """
    groups: list[list[Chain]] = []
    for chain in tree.chains:
        if groups and _cost([*groups[-1], chain]) <= _cost(groups[-1]) + _cost([chain]):
            groups[-1].append(chain)
        else:
            groups.append([chain])
    spans = [(group[0].start, group[-1].stop, _ranges(_ancestors(group))) for group in groups]
    cuts = sorted({cut for start, stop, above in spans for cut in (start, stop, *itertools.chain(*above))})
    number = {cut: piece for piece, cut in enumerate(cuts)}
    calls = []
    for (start, stop, above), group in zip(spans, groups, strict=True):
        own = range(number[start], number[stop])
        keys = [piece for first, last in above for piece in range(number[first], number[last])]
        calls.append(Call(own.start, own.stop, (*keys, *own), is_causal=_is_path(tree, group)))
    return [stop - start for start, stop in itertools.pairwise(cuts)], calls


def _cost(group: list[Chain]) -> int:
    """Return what a call costs, in scores: all queries against all keys, and the call itself."""
    num_queries = group[-1].stop - group[0].start
    return num_queries * (len(_ancestors(group)) + num_queries) + CALL_COST


def _ancestors(group: list[Chain]) -> np.ndarray:
    """Return the rows above the first chain. Those above the others are among them, or in the group itself."""
    first = group[0]
    return first.path[: len(first.path) - (first.stop - first.start)]


def _is_path(tree: Tree, group: list[Chain]) -> bool:
    start, stop = group[0].start, group[-1].stop
    return not len(_ancestors(group)) and bool((tree.subtree_end[start:stop] >= stop).all())


def _ranges(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return ascending rows as the ranges (first, one past the last) that they make up."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks) if len(part)]


def _stand_in(used: str) -> Callable:
    """Return the function registered for an implementation: the tree's where a Plan is given, otherwise its own."""

    def forward(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        plan = kwargs.pop("tree", None)
        if plan is None:
            return _own(module, used)(module, query, key, value, attention_mask, *args, **kwargs)
        return attend(module, query, key, value, plan, **kwargs)

    return forward


def _own(module: nn.Module, used: str) -> Callable:
    # What transformers calls eager is written in each model's own file.
    return (
        sys.modules[type(module).__module__].eager_attention_forward
        if used == "eager"
        else ALL_ATTENTION_FUNCTIONS[used]
    )


for _used, _name in STANDS_IN.items():
    AttentionInterface.register(_name, _stand_in(_used))
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_used])
