"""What the trainer is given, checked and brought to one form before anything is loaded on a device."""

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from accelerate.utils import parse_flag_from_env
from datasets import IterableDataset
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from plaudit import compat, sharding, tokens
from plaudit import model as models
from plaudit.config import RewardConfig, from_training_arguments
from plaudit.formats import check_type
from plaudit.prepare import look
from plaudit.rewards import classifier_of
from plaudit.say import say


def check_models(model: Any, model_init: Callable | None) -> None:
    """Raise ValueError unless exactly one of the two says where the model comes from."""
    if model is None and model_init is None:
        raise ValueError("model is missing: pass a name, a path, a model, or model_init")
    if model is not None and model_init is not None:
        raise ValueError("model and model_init were both given; pass one of them")


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Raise ValueError or TypeError for data sets that are missing or of a kind that cannot be read."""
    if train_dataset is None and eval_dataset is None:
        raise ValueError("`train_dataset` is required (or an eval_dataset, if the trainer is only to evaluate)")
    if train_dataset is not None:
        check_type(train_dataset, "train_dataset")
        look(train_dataset, "train")
    if isinstance(eval_dataset, Mapping):
        if not eval_dataset:
            raise ValueError("eval_dataset is an empty dict; give at least one named data set, or None")
        for name, dataset in eval_dataset.items():
            check_type(dataset, f"eval_dataset[{name!r}]", "test")
            look(dataset, f"eval_{name}")
    elif eval_dataset is not None:
        check_type(eval_dataset, "eval_dataset", "test")
        look(eval_dataset, "eval")


def check_stream(train_dataset: Any, args: RewardConfig) -> None:
    """Raise ValueError for a streamed training set without max_steps: it has no length to stop at."""
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
        raise ValueError("a streamed train_dataset has no length: set max_steps to the optimizer steps to train for")


def check_processes(args: RewardConfig) -> None:
    """Raise ValueError where a launcher started several processes that do not know of each other, or without DeepSpeed.

    Without an accelerator, accelerate joins them only where it was told to use the CPU; else each would train alone, and
    all would write to the same directory. On a CPU that was asked for, it would leave DeepSpeed out without a word.
    """
    started = os.environ.get("WORLD_SIZE", "1")
    alone = started not in ("", "1") and "LOCAL_RANK" in os.environ and args.world_size == 1
    if sharding.asks_for_deepspeed(args):
        on_cpu = args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        if on_cpu or alone:
            problem = "use_cpu keeps accelerate from it" if on_cpu else "each process would train alone"
            raise ValueError(
                f"DeepSpeed was asked for, but {problem}; on a machine without an accelerator leave use_cpu out, set "
                "ddp_backend='gloo', and start with `accelerate launch --use_deepspeed` instead of the option deepspeed"
            )
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks not in ("", "1") and args.world_size == 1 and "LOCAL_RANK" not in os.environ:
        say(
            f"Slurm started {tasks} tasks, and this run is of one process: if every task has come here, each trains alone into "
            f"{args.output_dir}; for one run of all of them take torchrun, or set RANK, WORLD_SIZE and the others as "
            "examples/distributed/train.slurm does",
            once=True,
        )
    if alone:
        raise ValueError(
            f"the launcher started {started} processes, but each would train alone: there is no accelerator, and the CPU was "
            "not asked for; add use_cpu=True (--use_cpu), or start one process"
        )


def reward_config(args: Any, model: Any, max_length: int | None) -> RewardConfig:
    """Return the configuration: the user's own, a plain TrainingArguments' values in ours, or the defaults."""
    if args is None:
        args = RewardConfig(output_dir=default_output_dir(model if isinstance(model, str) else name_of(model)))
    elif not isinstance(args, TrainingArguments):
        raise TypeError(f"args: expected a RewardConfig or a TrainingArguments, got {type(args).__name__}")
    elif not isinstance(args, RewardConfig):
        args = from_training_arguments(args)
    given = args.max_length if "max_length" in args.given else None
    longest = compat.older_argument("max_length", max_length, "args.max_length", given)
    return args if max_length is None else _changed(args, max_length=longest)


def default_output_dir(name: str) -> str:
    """Return where a run goes that was told no place: the last part of the model's name, and `-Reward`."""
    return f"{os.path.basename(os.path.normpath(name or 'model'))}-Reward"


def name_of(model: Any) -> str:
    """Return where a model object was loaded from, as far as it says; an empty string where it does not."""
    config = getattr(classifier_of(model), "config", None) if isinstance(model, nn.Module) else None
    return getattr(config, "_name_or_path", "") or ""


def model_of(model: Any, args: RewardConfig) -> nn.Module:
    """Return the checked classifier that a name, a path or an object stands for."""
    kwargs = cast(dict | None, args.model_init_kwargs)  # RewardConfig has read the JSON
    if isinstance(model, str):
        model = models.load(model, kwargs, args.trust_remote_code)
    elif kwargs and not isinstance(model, PeftModel):
        say("model_init_kwargs has no effect: the model was given as an object, not by its name", once=True)
    return models.check(model, {"trust_remote_code": args.trust_remote_code, **(kwargs or {})})


def require_trainable(model: nn.Module) -> None:
    """Raise ValueError where training would change nothing, as with a PeftModel that was loaded for inference."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        cure = "load it with is_trainable=True" if isinstance(model, PeftModel) else "unfreeze some of them"
        raise ValueError(f"model: none of the weights of the {type(model).__name__} are trainable; {cure}")


def fit_to_model(args: RewardConfig, model: nn.Module) -> RewardConfig:
    """Return the configuration without what this model or machine cannot do, each said in one line."""
    if args.activation_checkpointing:
        reason = models.skip_checkpointing(model)
        if reason is not None:
            say(f"activation checkpointing is off: {reason}", once=True)
            args = _changed(args, activation_checkpointing=False, gradient_checkpointing=False)
    if args.neftune_noise_alpha is not None:
        say("neftune_noise_alpha takes the padded path, where its noise is scaled by each sequence's length", once=True)
    reentrant = isinstance(kwargs := args.activation_checkpointing_kwargs, dict) and kwargs.get("use_reentrant")
    if args.activation_checkpointing and reentrant and args.ddp_find_unused_parameters is None:
        # Recomputing inside the backward pass marks parameters ready a second time, which DDP takes for a fault.
        args = _changed(args, ddp_find_unused_parameters=False)
    if sharding.asks_for_fsdp(args) and args.gradient_accumulation_steps > 1:
        # Else every process would keep whole gradients until a step's last micro-batch.
        accelerating: Any = copy.copy(args.accelerator_config)
        given = accelerating.gradient_accumulation_kwargs or {}
        accelerating.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}
        args = _changed(args, accelerator_config=accelerating)
    if args.n_gpu > 1:
        # Replicas of a module would call the forward of the original on another device.
        say(f"using one of {args.n_gpu} GPUs: start one process a GPU with torchrun or accelerate launch to use all")
        args = _changed(args, _n_gpu=1)
    return args


def _changed(args: RewardConfig, **values: Any) -> RewardConfig:
    """Return a copy with some values changed; the user's own object stays as it is."""
    args = copy.copy(args)
    for name, value in values.items():
        setattr(args, name, value)
    return args


def processing_class_of(processing_class: Any, source: str, data_collator: Any, args: RewardConfig) -> tuple[Any, int]:
    """Return the processing class, loaded where none was given, special tokens and template set, and its new tokens."""
    if processing_class is None:
        processing_class = getattr(data_collator, "tokenizer", None)
    if processing_class is None and source:
        processing_class = models.load_tokenizer(
            source, cast(dict | None, args.model_init_kwargs), args.trust_remote_code
        )
    tokenizer = tokenizer_of(processing_class)
    if tokenizer is not None and not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise TypeError(f"processing_class: expected a tokenizer, got {type(processing_class).__name__}")
    if tokenizer is None:
        if data_collator is None:
            raise ValueError("there is no tokenizer: pass one as processing_class (the model does not say where it is)")
        return None, 0
    new_tokens = 0
    if args.chat_template_path is not None:
        new_tokens = tokens.adopt_chat_template(tokenizer, args.chat_template_path, args.trust_remote_code)
    tokens.set_special_tokens(tokenizer, args.eos_token, args.pad_token)
    tokens.warn_if_pad_is_eos(tokenizer)
    return processing_class, new_tokens


def tokenizer_of(processing_class: Any) -> Any:
    """Return the text tokenizer of a processing class, which a multi-modal processor carries inside."""
    return getattr(processing_class, "tokenizer", processing_class)
