"""Which layout a model's batches take: the tree where a trial on this very model gives the padded rewards, else padding."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plaudit import attention
from plaudit.collate import Padded, TreeRow
from plaudit.rewards import classifier_of, reads_last_token, rewards

# How far the states that the head reads may differ, relative to their length: rounding, and no more. What a model does
# not share the tree's way (other masks, positions, recurrent states) moves them by a tenth or more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
# Beyond a sliding window this share of it is tried, so that a window that is ignored shows.
BEYOND = 2


def choose_layout(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    pad_to_multiple_of: int | None = None,
    longest: int | None = None,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
    keeps_dropout: bool = False,
) -> tuple[Padded | TreeRow, str | None]:
    """Return the layout for the model's batches and, where that is padding, why the tree is not used.

    sequences: a few real rows' token ids, of which some share a prefix. longest: no sequence will have more tokens than
    this, so that wider sliding windows need no trial; None where that is not known. device: where the model will run,
    None for where it is. autocast: the half precision that it will run in, None for its weights' own. keeps_dropout:
    whether the model trains with the dropout of its config, which the variable-length kernel does not have.
    """
    padded = Padded(pad_token_id, pad_to_multiple_of)
    if not reads_last_token(model):
        return padded, f"{type(classifier_of(model)).__name__} is not a decoder that reads its reward at the last token"
    classifier = classifier_of(model)
    weights = next(classifier.parameters()).device
    if any(each.is_meta or not each.numel() for each in classifier.parameters()):
        return padded, "the model's weights are not here to try it: they are partitioned or not loaded yet"
    try:
        attention.enable(classifier)
    except attention.Unsupported as unsupported:
        return padded, str(unsupported)
    rows = _trial(classifier, [list(ids) for ids in sequences], longest)
    is_half = (autocast or classifier.dtype) in (torch.float16, torch.bfloat16)
    is_dropped = keeps_dropout and _drops_attention(classifier)
    varlen_first = (device or weights).type == "cuda" and is_half and not is_dropped
    reason = None
    for use_varlen in (True, False) if varlen_first else (False,):
        layout = TreeRow(classifier.config.get_text_config().pad_token_id, pad_to_multiple_of, use_varlen)
        # The kernel runs on CUDA alone; where the weights still wait on the host, the plain calls are tried for it.
        tried = layout if weights.type == "cuda" else TreeRow(layout.pad_token_id, pad_to_multiple_of)
        reason = _disagreement(model, rows, padded, tried, autocast)
        if reason is None:
            return layout, None
    attention.disable(classifier)
    return padded, reason


def _disagreement(
    model: nn.Module, rows: list[list[int]], padded: Padded, tree: TreeRow, autocast: torch.dtype | None
) -> str | None:
    """Return what is wrong with the tree's rewards, None where they agree with the padded ones."""
    own = classifier_of(model).dtype
    # Outside autocast first: in float32 the comparison is a hundred times finer. The kernel is for half precision alone.
    for precision in dict.fromkeys([autocast or own] if tree.use_varlen else [own, autocast or own]):
        try:
            with _evaluating(model):
                wanted, found = (_head_states(model, layout(rows), precision) for layout in (padded, tree))
        except torch.OutOfMemoryError:
            raise
        # Whatever a model's own code raises at inputs that it was not written for.
        except Exception as error:
            return f"its forward does not take the tree ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        if not wanted.isfinite().all():
            return f"its rewards are not finite in {_name(precision)}"
        difference = ((wanted - found).norm(dim=-1) / wanted.norm(dim=-1)).max().item()
        if not difference <= _tolerance(precision, wanted.device):
            return f"the tree's rewards differ from the padded ones by {difference:.1%} in {_name(precision)}"
    return None


def _head_states(model: nn.Module, batch: dict, precision: torch.dtype) -> Tensor:
    """Return the states that the head makes into rewards, in float32, shape (N, channels)."""
    device = next(model.parameters()).device
    caught: list[Tensor] = []
    hook = classifier_of(model).score.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    batch = {name: value.to(device) for name, value in batch.items()}
    try:
        half = precision if precision != torch.float32 else torch.bfloat16
        with torch.no_grad(), torch.autocast(device.type, dtype=half, enabled=precision != torch.float32):
            rewards(model, batch)
    finally:
        hook.remove()
    return caught[0].float()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Hold every module in evaluation mode: dropout would differ between the layouts, and use up random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _trial(model: nn.Module, sequences: list[list[int]], longest: int | None) -> list[list[int]]:
    """Return the sequences, more that part from them half-way, and some beyond each window that such data can reach."""
    config = model.config.get_text_config()
    limits = [limit for limit in (longest, getattr(config, "max_position_embeddings", None)) if limit]
    limit = min(limits) if limits else None
    parting = [first[: len(first) // 2] + second for first, second in itertools.pairwise(sequences)]
    rows = [ids[:limit] for ids in [*sequences, *parting]]
    tokens = list(itertools.chain(*sequences))
    for window in sorted(_windows(config)):
        length = BEYOND * window if limit is None else min(BEYOND * window, limit)
        if length > window:
            long = (tokens * (length // len(tokens) + 1))[:length]
            other = long[::-1]
            # One parts before the window is full, one after.
            rows += [long, long[: window // 2] + other[window // 2 :], long[:window] + other[window:]]
    return rows


def _windows(config: Any) -> set[int]:
    """Return every length in the config after which attention may change: sliding windows, chunks."""
    values = config.to_dict().items()
    return {value for key, value in values if ("window" in key or "chunk" in key) and type(value) is int and value > 1}


def _drops_attention(model: nn.Module) -> bool:
    values = model.config.get_text_config().to_dict().items()
    return any("att" in key and "drop" in key and isinstance(value, float) and value > 0 for key, value in values)


def _tolerance(precision: torch.dtype, device: torch.device) -> float:
    # Matrix products in TF32 round as float16 does.
    rounds = device.type == "cuda" and precision == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return TOLERANCE[torch.float16 if rounds else precision]


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
