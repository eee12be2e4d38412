"""What FSDP has to be told for rewards: float32 out of the model, and an evaluation before there is an optimizer."""

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule


def keep_rewards_wide(accelerator: Accelerator) -> None:
    """Have FSDP hand on what the model returns as it is; accelerate would have it rounded to the weights' precision."""
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    if getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def shard_to_evaluate(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Return the model sharded by FSDP 2, which accelerate does only beside an optimizer; training makes its own."""
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    accelerator._optimizers.pop()
    return model


def reshard(model: nn.Module) -> None:
    """Let go of the weights that an evaluation has left gathered, so that an optimizer holds the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
