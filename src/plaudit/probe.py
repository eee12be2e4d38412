"""Which layout a model's batches take: the tree where a trial on this very model gives the padded rewards, else padding."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit import attention
from plaudit.collate import Padded, TreeRow
from plaudit.config import RewardConfig
from plaudit.partitioned import gather_as_used, is_partitioned, is_spread, stop_gathering
from plaudit.rewards import attach, classifier_of, reads_last_token, rewards
from plaudit.tree import layout as tree_layout

# How far the states that the head reads may differ, relative to their length: rounding, and no more. In bfloat16 a small
# fault could pass, so where the weights are float32 they are tried in float32 too.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
# The same batch, computed twice by the same functions, may differ by this share of that.
UNCHANGED = 0.01
# Rows are filled up to this under torch.compile, so that few lengths are compiled for.
COMPILED_MULTIPLE = 128
# How far beyond a sliding window the trial goes, so that a window that is ignored shows.
BEYOND = 2


def layout_of_run(
    model: nn.Module,
    dataset: Dataset | IterableDataset,
    args: RewardConfig,
    accelerator: Accelerator,
    pad_token_id: int,
) -> tuple[Padded | TreeRow, str | None]:
    """Return the layout for a run's batches, the same on every process, and why it is padded where that has to be said.

    dataset: prepared pairs, of which two are tried.
    """
    # setup has said why noise is padded.
    if args.packing == "off" or args.neftune_noise_alpha is not None:
        return Padded(pad_token_id, args.pad_to_multiple_of), None
    found: Any = None
    # Elsewhere the weights may not be loaded yet, so the first process tries for all; those spread over all need all.
    if accelerator.process_index == 0 or is_spread(model):
        pairs = list(cast(Any, dataset.take(2)))
        gather_as_used(model)
        try:
            found = choose_layout(
                model,
                [*(pair["chosen_ids"] for pair in pairs), *(pair["rejected_ids"] for pair in pairs)],
                pad_token_id,
                pad_to_multiple_of=args.pad_to_multiple_of or (COMPILED_MULTIPLE if args.torch_compile else None),
                longest=args.max_length,
                device=accelerator.device,
                autocast={"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision),
                keeps_dropout=not args.disable_dropout,
            )
        finally:
            stop_gathering(model)
    layout, reason = cast(Any, broadcast_object_list([found])[0])
    if isinstance(layout, TreeRow):
        attention.enable(cast(PreTrainedModel, classifier_of(model)))
    return layout, reason


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

    The model's own call gives float32 rewards from then on, as `rewards.attach` makes it.

    sequences: a few real rows' token ids, of which some share a prefix. longest: no sequence will have more tokens than
    this, so that wider sliding windows need no trial; None where that is not known. device: where the model will run,
    None for where it is. autocast: the half precision that it will run in, None for its weights' own. keeps_dropout:
    whether the model trains with the dropout of its config, which the variable-length kernel does not have.
    """
    padded = Padded(pad_token_id, pad_to_multiple_of)
    attach(model)
    classifier = classifier_of(model)
    if not reads_last_token(model):
        return padded, f"{type(classifier).__name__} is not a decoder that reads its reward at the last token"
    if any(each.is_meta or not (each.numel() or is_partitioned(each)) for each in classifier.parameters()):
        return padded, "the model's weights are not here to try it: they are partitioned or not loaded yet"
    batches = _trial(classifier, [list(ids) for ids in sequences], longest)
    runs_on = device or next(classifier.parameters()).device
    keeps_dropout = keeps_dropout and _drops_attention(classifier)
    try_varlen = not keeps_dropout and _kernel_agrees(classifier, batches[0], autocast or classifier.dtype, runs_on)
    with _evaluating(model):
        try:
            attention.require_exchangeable(classifier)
            # Before anything is exchanged. Outside autocast first: in float32 the comparison is a hundred times finer.
            autocasts = dict.fromkeys([None, autocast])
            wanted = {each: _head_states(model, padded, batches, each) for each in autocasts}
            attention.enable(classifier)
        except Exception as error:
            # Training will raise it again if it is not about the trial.
            return padded, _told(error, "the trial's padded batch failed")
        # A model that asks for its attention's name might be another one under the new name.
        reason = _difference(model, padded, batches, wanted, UNCHANGED)
        for use_varlen in () if reason else dict.fromkeys([try_varlen, False]):
            tree = TreeRow(classifier.config.get_text_config().pad_token_id, pad_to_multiple_of, use_varlen)
            reason = _difference(model, tree, batches, wanted)
            if reason is None:
                return tree, None
    attention.disable(classifier)
    return padded, reason


def _difference(
    model: nn.Module,
    layout: Padded | TreeRow,
    batches: list[list[list[int]]],
    wanted: Mapping[torch.dtype | None, Tensor],
    share: float = 1.0,
) -> str | None:
    """Return what is wrong with a layout's rewards, None where they are those of the wanted states.

    wanted: by the precision of autocast, None for none. share: of the tolerance.
    """
    name = "tree" if isinstance(layout, TreeRow) else "exchanged attention"
    for autocast, states in wanted.items():
        precision = autocast or classifier_of(model).dtype
        try:
            found = _head_states(model, layout, batches, autocast)
            difference = ((states - found).norm(dim=-1) / states.norm(dim=-1)).max().item()
        # Whatever a model's own code raises at inputs that it was not written for.
        except Exception as error:
            return _told(error, "its forward does not take the tree")
        if not states.isfinite().all():
            return f"its rewards are not finite in {_name(precision)}"
        if not difference <= share * _tolerance(precision, states.device):
            return f"the {name}'s rewards differ from the padded ones by {difference:.1%} in {_name(precision)}"
    return None


def _head_states(
    model: nn.Module, layout: Padded | TreeRow, batches: list[list[list[int]]], autocast: torch.dtype | None
) -> Tensor:
    """Return the states that the head makes into rewards, in float32, shape (all batches' sequences, channels)."""
    device = next(model.parameters()).device
    caught: list[Tensor] = []
    hook = classifier_of(model).score.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0].detach()))
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            for sequences in batches:
                rewards(model, {name: value.to(device) for name, value in layout(sequences).items()})
    finally:
        hook.remove()
    return torch.cat(caught).float()


def _kernel_agrees(model: nn.Module, sequences: list[list[int]], dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the variable-length kernel gives, on heads of the model's sizes, what the calls give, gradients too.

    Apart from the model, because its weights may still wait on another device, and because a trial takes no gradients.
    """
    if device.type not in attention.VARLEN_DEVICES or dtype not in attention.HALF:
        return False
    config = model.config.get_text_config()
    queries = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or queries
    channels = getattr(config, "head_dim", None) or config.hidden_size // queries
    channels = getattr(config, "qk_head_dim", None) or channels
    tree = tree_layout(sequences)
    drawn = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, number, len(tree.tokens), channels, generator=drawn) for number in (queries, keys, keys)]
    found = []
    try:
        for use_varlen in (True, False):
            inputs = [tensor.to(device, dtype).requires_grad_() for tensor in heads]
            out, _ = attention.attend(nn.Identity(), *inputs, attention.Plan(tree, use_varlen).to(device))
            out.float().square().sum().backward()
            found.append(torch.cat([part.detach().float().flatten() for part in (out, *(one.grad for one in inputs))]))
    # An older torch without the kernel, a GPU or a size of heads that it does not know.
    except Exception:
        return False
    return bool((found[0] - found[1]).norm() <= TOLERANCE[dtype] * found[1].norm())


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


def _trial(model: nn.Module, sequences: list[list[int]], longest: int | None) -> list[list[list[int]]]:
    """Return batches: the sequences with more that part from them half-way, and one beyond each window that such data reach."""
    config = model.config.get_text_config()
    limits = [limit for limit in (longest, getattr(config, "max_position_embeddings", None)) if limit]
    limit = min(limits) if limits else None
    parting = [first[: len(first) // 2] + second for first, second in itertools.pairwise(sequences)]
    batches = [[ids[:limit] for ids in [*sequences, *parting]]]
    tokens = list(itertools.chain(*sequences))
    for window in sorted(_windows(config)):
        length = BEYOND * window if limit is None else min(BEYOND * window, limit)
        if length > window:
            long = (tokens * (length // len(tokens) + 1))[:length]
            other = long[::-1]
            # One parts before the window is full, one after.
            batches.append([long, long[: window // 2] + other[window // 2 :], long[:window] + other[window:]])
    return batches


def _windows(config: Any) -> set[int]:
    """Return every length in the config after which attention may change: sliding windows, chunks, the k of sparse ones."""
    return {
        value
        for key, value in config.to_dict().items()
        if any(word in key for word in ("window", "chunk", "topk"))
        and "layers" not in key
        and type(value) is int
        and value > 1
    }


def _drops_attention(model: nn.Module) -> bool:
    values = model.config.get_text_config().to_dict().items()
    return any("att" in key and "drop" in key and isinstance(value, float) and value > 0 for key, value in values)


def _tolerance(precision: torch.dtype, device: torch.device) -> float:
    # Matrix products in TF32 round as float16 does.
    rounds = (
        device.type == "cuda" and precision == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    )
    return TOLERANCE[torch.float16 if rounds else precision]


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _told(error: Exception, what: str) -> str:
    if isinstance(error, attention.Unsupported):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the trial ran out of memory"
    return f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
