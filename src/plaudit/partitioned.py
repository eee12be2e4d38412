"""Weights that are spread over the processes: brought together where they are needed, one after the other, and let go again."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

# Where a model keeps the hooks of `gather_as_used`.
HOOKS = "_plaudit_gathering"


def is_partitioned(weight: Tensor) -> bool:
    """Tell whether ZeRO-3 holds a weight, whose tensor is then empty unless it is gathered."""
    return hasattr(weight, "ds_id")


def holds_partitioned(model: nn.Module) -> bool:
    """Tell whether any of a model's weights is partitioned."""
    return any(is_partitioned(each) for each in model.parameters())


def is_spread(model: nn.Module) -> bool:
    """Tell whether a forward of the model needs every process, because ZeRO-3 or FSDP 2 has spread its weights over them."""
    return holds_partitioned(model) or any(isinstance(module, FSDPModule) for module in model.modules())


def whole_shape(weight: Tensor) -> torch.Size:
    """Return the shape that a weight has once it is gathered."""
    return getattr(weight, "ds_shape", weight.shape)


def gathered(weights: Iterable[Tensor]) -> contextlib.AbstractContextManager:
    """Hold weights whole, on every process. A collective: all processes must come here with the same weights."""
    found = [each for each in weights if is_partitioned(each)]
    if not found:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(found)


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight and buffer that a checkpoint holds, by name, whole for as long as it is looked at.

    A collective: all processes must go through all of them.
    """
    for name, value in model.state_dict(keep_vars=True).items():
        with gathered([value]):
            yield name_of(name), _whole(value.detach())


def name_of(name: str) -> str:
    """Return a weight's name without what activation checkpointing under FSDP and compiling put into it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _whole(weight: Tensor) -> Tensor:
    if not isinstance(weight, DTensor):
        return weight
    # Offloaded to the host, where the processes' messages do not go.
    return weight.to(weight.device_mesh.device_type).full_tensor()


def gather_as_used(model: nn.Module) -> None:
    """Have each block of the model gather its weights when it is called, where no DeepSpeed engine does.

    Until `stop_gathering`, which has to come before an engine: one process's memory then holds a block at a time. The
    model computes without gradients only, and on all processes alike.
    """
    if not holds_partitioned(model) or getattr(model, HOOKS, None):
        return
    handles: list[RemovableHandle] = []
    for module, weights in _blocks(model, _block_names(model)):
        handles += _gathering(module, weights)
    setattr(model, HOOKS, handles)


def stop_gathering(model: nn.Module) -> None:
    """Take back what `gather_as_used` has done."""
    for handle in vars(model).pop(HOOKS, ()):
        handle.remove()


def _block_names(model: nn.Module) -> set[str]:
    """Return the class names of the layers that transformers would not split over devices, such as a decoder's."""
    return {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}


def _blocks(module: nn.Module, names: set[str]) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Yield modules and the weights that each has to gather: a block all of its own, other modules what is theirs alone."""
    is_block = type(module).__name__ in names
    weights = [each for each in module.parameters(recurse=is_block) if is_partitioned(each)]
    if weights:
        yield module, weights
    for child in () if is_block else module.children():
        yield from _blocks(child, names)


def _gathering(module: nn.Module, weights: list[nn.Parameter]) -> list[RemovableHandle]:
    held = contextlib.ExitStack()

    def gather(*_: object) -> None:
        held.enter_context(gathered(weights))

    def let_go(*_: object) -> None:
        held.close()

    return [
        module.register_forward_pre_hook(gather, prepend=True),
        module.register_forward_hook(let_go, always_call=True),
    ]
