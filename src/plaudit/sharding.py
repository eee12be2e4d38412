"""What FSDP and DeepSpeed have to be told for rewards: evaluated before there is an optimizer, rounded nowhere, saved whole."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from plaudit.partitioned import gather_as_used, holds_partitioned, name_of, stop_gathering, whole_weights
from plaudit.proof import weight_fingerprints
from plaudit.rewards import classifier_of
from plaudit.say import say


def asks_for_deepspeed(args: TrainingArguments) -> bool:
    """Tell whether the options or the launcher ask for DeepSpeed."""
    return bool(args.deepspeed) or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def asks_for_fsdp(args: TrainingArguments) -> bool:
    """Tell whether the options or the launcher ask for FSDP."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def quiet_deepspeed(args: TrainingArguments) -> None:
    """Keep DeepSpeed's remark on a machine without accelerators from those who do not use it.

    accelerate imports DeepSpeed, where it is installed, for every model that it unwraps.
    """
    if not asks_for_deepspeed(args):
        logging.getLogger("DeepSpeed").addFilter(_is_no_remark)


def _is_no_remark(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def say_if_whole(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Say that FSDP was asked for and accelerate, which has it for accelerators alone, does without it on a CPU."""
    if asks_for_fsdp(args) and getattr(accelerator.state, "fsdp_plugin", None) is None:
        if parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING") and accelerator.num_processes > 1:
            raise ValueError(
                "fsdp_cpu_ram_efficient_loading leaves the weights to the first process until FSDP shares them out, which "
                "accelerate does on accelerators only; on this CPU set it to false, or use ddp.yaml"
            )
        say(
            "fsdp has no effect: accelerate shards on accelerators only, and on this CPU each process holds the whole model",
            once=True,
        )


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


def place_to_evaluate(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Return the model as DeepSpeed would compute with it, before there is an engine, which only training needs.

    Partitioned weights are gathered a block at a time; whole ones are brought to the device, in the engine's precision.
    """
    if not holds_partitioned(model):
        dtype = accelerator.state.deepspeed_plugin.hf_ds_config.dtype()
        return model.to(accelerator.device, None if dtype == torch.float32 else dtype)
    gather_as_used(model)
    return model.to(accelerator.device)


def reshard(model: nn.Module) -> None:
    """Let go of the weights that an evaluation has left gathered, so that an optimizer holds the shards."""
    stop_gathering(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def forget_evaluation(trainer: Any) -> None:
    """Have training prepare its model, whatever an evaluation before has made of it.

    accelerate would take a model that it has prepared to evaluate for one that is ready to train: the processes would each
    train alone, and nothing would say so. Trainer would go on with a DeepSpeed engine that training has taken down.
    """
    if trainer.is_fsdp_enabled or isinstance(trainer.model_wrapped, DistributedDataParallel):
        return
    trainer.model_wrapped = trainer.model
    marks = vars(trainer.model)
    marks.pop("_is_accelerate_prepared", None)
    if "_original_forward" in marks:
        trainer.model.forward = marks.pop("_original_forward")


def weights_to_save(trainer: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the whole weights of a sharded model, none on processes that save nothing, and all weights' fingerprints.

    A collective. Trainer would save nothing under FSDP's SHARDED_STATE_DICT, nor under ZeRO-3 unless it was told to gather.
    What an adapter leaves frozen is not saved, and would not fit into one process's memory.
    """
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        # Version 1 has flattened the weights.
        state = trainer.accelerator.get_state_dict(trainer.model)
        return state, weight_fingerprints(trainer.model, state)
    left_out = _frozen_base(trainer.model) if isinstance(trainer.model, PeftModel) else set()
    state = {}

    def each() -> Iterator[tuple[str, Tensor]]:
        for name, value in whole_weights(trainer.model):
            if trainer.args.should_save and name not in left_out:
                state[name] = value.to("cpu", copy=True)
            yield name, value

    return state, weight_fingerprints(trainer.model, each())


def _frozen_base(model: PeftModel) -> set[str]:
    """Return the names of an adapter's base's frozen weights; without the embeddings, which PEFT saves where they grew."""
    embeddings = {id(each) for each in classifier_of(model).get_input_embeddings().parameters()}
    own = {id(each) for name, each in model.named_parameters() if _is_adapters(model, name)}
    return {
        name_of(name)
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, nn.Parameter) and not value.requires_grad and id(value) not in embeddings | own
    }


def _is_adapters(model: PeftModel, name: str) -> bool:
    prefix = getattr(model.base_model, "prefix", None)
    words = name.split(".")
    return "modules_to_save" in words or bool(prefix and any(word.startswith(prefix) for word in words))
