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
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.tree import Chain, Tree

# The name under which the tree's function stands in for each of transformers' own, which it calls for every other batch.
STANDS_IN = {"sdpa": "plaudit_sdpa", "eager": "plaudit_eager"}
# Where the variable-length kernel runs; elsewhere the calls stand in for it.
VARLEN_DEVICES = ("cuda",)
HALF = (torch.float16, torch.bfloat16)
# One call costs about as much as this many scores (query times key), forward and backward, measured on a CPU.
CALL_COST = 2048
# Queries a call at most: of its keys, those after a query are computed for nothing.
BLOCK = 96


class Unsupported(ValueError):
    """What a model asks of its attention that the tree layout does not give."""


class Call(NamedTuple):
    """One attention call: rows `start` up to `stop` as queries, against ranges of rows as keys, their own the last.

    is_causal: whether every query sees every key up to its own, so that no mask is needed.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
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

    subtree_end, positions: int64, shape (T,). calls: what together answers every query of the row once. varlen: what one
    kernel call for the whole row takes instead; None where the model or the device needs the calls.
    """

    def __init__(self, tree: Tree, use_varlen: bool = False) -> None:
        self.subtree_end = torch.from_numpy(tree.subtree_end)
        self.positions = torch.from_numpy(tree.positions)
        self.longest = int(tree.positions.max()) + 1
        self.varlen = _varlen(tree.chains) if use_varlen else None
        # Not at first use: a loader's worker makes the plan while the step before runs.
        self.calls = _calls(tree)
        self._masks: dict[Any, list[Tensor | None]] = {}

    def to(self, device: Any, **kwargs: Any) -> "Plan":
        """Return the plan with its tensors on the device; accelerate calls this as it moves a batch."""
        return self._with(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> "Plan":
        """Return the plan with its tensors in pinned memory; the loader calls this."""
        return self._with(Tensor.pin_memory)

    def _with(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        positions = function(self.positions)
        if positions is self.positions:
            return self  # There already; a copy would make its masks again.
        plan = object.__new__(Plan)
        plan.__dict__.update(self.__dict__, _masks={}, positions=positions)
        plan.subtree_end = function(self.subtree_end)
        if self.varlen is not None:
            moved = {
                name: function(tensor) for name, tensor in self.varlen._asdict().items() if torch.is_tensor(tensor)
            }
            plan.varlen = self.varlen._replace(**moved)
        return plan

    def masks(self, window: int | None, is_additive: bool = False) -> list[Tensor | None]:
        """Return each call's mask, shape (Q, S), None where it is causal; made once a batch, window and kind.

        window: how many positions back a token sees, itself included; None for all. is_additive: float32, 0 where a
        query sees a key and -inf where not, instead of bool.
        """
        if window is not None and window >= self.longest:
            window = None
        if (window, is_additive) not in self._masks:
            masks = [self._mask(call, window) for call in self.calls]
            self._masks[window, is_additive] = [_additive(mask) for mask in masks] if is_additive else masks
        return self._masks[window, is_additive]

    def _mask(self, call: Call, window: int | None) -> Tensor | None:
        if call.is_causal and window is None:
            return None
        rows = torch.arange(call.stop, device=self.positions.device)
        queries = rows[call.start :].unsqueeze(1)
        keys = torch.cat([rows[first:stop] for first, stop in call.keys])
        mask = (keys <= queries) & (queries < self.subtree_end[keys])
        if window is not None:
            mask &= self.positions[queries] - self.positions[keys] < window
        return mask


def _additive(mask: Tensor | None) -> Tensor | None:
    return (
        None
        if mask is None
        else torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(~mask, float("-inf"))
    )


def require_exchangeable(model: PreTrainedModel) -> None:
    """Raise Unsupported for models whose attention is not transformers' own exchangeable one."""
    used = model.config._attn_implementation
    if used not in (*STANDS_IN, *STANDS_IN.values()):
        raise Unsupported(f"attn_implementation is {used!r}; leave it out or take 'sdpa'")
    if not model._supports_attention_backend or not model._can_set_attn_implementation():
        raise Unsupported(f"{type(model).__name__} does not let its attention be exchanged")


def enable(model: PreTrainedModel) -> None:
    """Let the model's attention take a Plan. Every call without one is answered by the function that it used before.

    Raises Unsupported as `require_exchangeable` does.
    """
    require_exchangeable(model)
    used = model.config._attn_implementation
    if used in STANDS_IN:
        model.set_attn_implementation(STANDS_IN[used])


def is_enabled(model: PreTrainedModel) -> bool:
    """Tell whether the model's attention takes a Plan."""
    return model.config._attn_implementation in STANDS_IN.values()


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
    q, k, v = _autocast(query_1HTD, key_1KTD, value_1KTD)
    if plan.varlen is not None:
        if softcap is not None or s_aux is not None or dropout:
            raise Unsupported("the variable-length kernel has no softcap, sinks or dropout")
        if q.device.type in VARLEN_DEVICES and q.dtype in HALF:
            return _attend_varlen(q, k, v, plan.varlen, scaling, sliding_window), None
    is_plain = softcap is None and s_aux is None and not dropout
    if q.device.type == "cpu" and is_plain and q.shape[-1] == v.shape[-1] and v.dtype != torch.float64:
        return _OnCpu.apply(q, k, v, plan, sliding_window, scaling), None
    one_call = _fused if softcap is None and s_aux is None else partial(_scored, softcap=softcap, sinks=s_aux)
    out = [
        one_call(
            q[:, :, call.start : call.stop], _rows(k, call), _rows(v, call), mask, scale=scaling, dropout_p=dropout
        )
        for call, mask in zip(plan.calls, plan.masks(sliding_window), strict=True)
    ]
    return torch.cat([part.transpose(1, 2) for part in out], dim=1), None


def _rows(heads: Tensor, call: Call) -> Tensor:
    """Return the keys or values of one call, without a copy where they lie together."""
    parts = [heads[:, :, first:stop] for first, stop in call.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the type that autocast gives to attention, where it is on."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


class _OnCpu(torch.autograd.Function):
    """All calls of one layer on a CPU, over slices of the row, their gradients added up in place.

    What scaled_dot_product_attention would do call by call, without copies of the row's keys for each and without a
    row of zeros for the gradient of each slice. In float32, in which the kernel is faster than in bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, window: int | None, scale: float | None
    ) -> Tensor:
        out = torch.empty(1, q.shape[2], q.shape[1], v.shape[3], dtype=v.dtype)
        sums = torch.empty(1, q.shape[1], q.shape[2], dtype=torch.float32)
        wide = [tensor.float() for tensor in (q, k, v)]
        for call, mask in zip(plan.calls, plan.masks(window, is_additive=True), strict=True):
            part, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                wide[0][:, :, call.start : call.stop],
                *(_rows(tensor, call) for tensor in wide[1:]),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scale,
            )
            out[:, call.start : call.stop] = part.transpose(1, 2)
            sums[:, :, call.start : call.stop] = logsumexp
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.plan, ctx.window, ctx.scale = plan, window, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        wide = [tensor.float() for tensor in (q, k, v)]
        grads = [torch.zeros_like(tensor) for tensor in wide]
        for call, mask in zip(ctx.plan.calls, ctx.plan.masks(ctx.window, is_additive=True), strict=True):
            queries = slice(call.start, call.stop)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out[:, queries].float().transpose(1, 2),
                wide[0][:, :, queries],
                *(_rows(tensor, call) for tensor in wide[1:]),
                out[:, queries].float().transpose(1, 2),
                sums[:, :, queries],
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            grads[0][:, :, queries] = parts[0]
            for grad, part in zip(grads[1:], parts[1:], strict=True):
                sizes = [stop - first for first, stop in call.keys]
                for (first, stop), piece in zip(call.keys, part.split(sizes, dim=2), strict=True):
                    grad[:, :, first:stop] += piece
        dq, dk, dv = (grad.to(tensor.dtype) for grad, tensor in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, None, None, None


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
    # Imported here, because torch before 2.10 has no such module.
    from torch.nn.attention.varlen import varlen_attn

    channels = v.shape[-1]
    # The kernel wants equally wide values; multi-head latent attention has narrower ones.
    v = F.pad(v, (0, q.shape[-1] - channels))
    scaling = q.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (q, k, v))
    out = varlen_attn(
        q.contiguous(),
        _Gathered.apply(k, varlen.key_rows),
        _Gathered.apply(v, varlen.key_rows),
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


class _Gathered(torch.autograd.Function):
    """Rows of a tensor, any number of times each; their gradients are added up in float32, as many as there may be."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = tensor.shape
        return tensor.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grad.device).index_add_(0, rows, grad.float())
        return total.to(grad.dtype), None


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


def _calls(tree: Tree) -> list[Call]:
    """Return the calls for the tree: chains that follow each other make one as long as that costs less than two."""
    groups: list[list[Chain]] = []
    for chain in tree.chains:
        if groups and _cost([*groups[-1], chain]) <= _cost(groups[-1]) + _cost([chain]):
            groups[-1].append(chain)
        else:
            groups.append([chain])
    calls = []
    for group in groups:
        above, first = _ranges(_ancestors(group)), group[0].start
        is_path = not above and bool((tree.subtree_end[first : group[-1].stop] >= group[-1].stop).all())
        for start, stop in _blocks(group):
            calls.append(Call(start, stop, (*above, (first, stop)), is_causal=is_path and start == first))
    return calls


def _blocks(group: list[Chain]) -> list[tuple[int, int]]:
    """Return the group's rows as ranges of about equally many, BLOCK at most."""
    start, stop = group[0].start, group[-1].stop
    number = -(-(stop - start) // BLOCK)
    cuts = [start + (stop - start) * i // number for i in range(number + 1)]
    return list(itertools.pairwise(cuts))


def _cost(group: list[Chain]) -> int:
    """Return what a group costs, in scores: each block's queries against its keys, and a call for each."""
    outside = len(_ancestors(group)) - group[0].start
    return sum((stop - start) * (outside + stop) + CALL_COST for start, stop in _blocks(group))


def _ancestors(group: list[Chain]) -> np.ndarray:
    """Return the rows above the first chain. Those above the others are among them, or in the group itself."""
    first = group[0]
    return first.path[: len(first.path) - (first.stop - first.start)]


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
    if used != "eager":
        return ALL_ATTENTION_FUNCTIONS[used]
    # What transformers calls eager is written in each model's own file; FSDP puts a class of its own in front.
    files = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    return next(file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward"))


for _used, _name in STANDS_IN.items():
    AttentionInterface.register(_name, _stand_in(_used))
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_used])
