"""Classifiers loaded, checked, adapted for reward training, and saved so that other tools read the same reward."""

import copy
import inspect
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from plaudit import adapters, compat, hub, trust
from plaudit.adapters import Loaded
from plaudit.partitioned import whole_shape
from plaudit.redaction import require_no_secret
from plaudit.rewards import attach, classifier_of, head_names
from plaudit.say import say

TAGS = ["reward-trainer", "plaudit"]
# What CrossEncoder of sentence-transformers applies to the reward; without it, a sigmoid.
IDENTITY = "torch.nn.modules.linear.Identity"
HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only")


def load(
    name: str,
    model_init_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    is_trained: bool = False,
) -> nn.Module:
    """Return the classifier, or the adapter on its base, at a directory or a Hub id, with one label, in float32.

    model_init_kwargs: keyword arguments of `from_pretrained`; `dtype` overrides float32, and `use_safetensors` False
    reads pickled weights where there are no others. is_trained: it is to be scored
    with, so that a weight which the checkpoint lacks is an error; otherwise it is new, and said to be.
    Raises ValueError for a path that does not exist and for a head with more than one output, and trust.Refused for code
    and for pickled weights that nobody asked for.
    """
    name = require_path(name)
    kwargs = compat.translate_model_kwargs(dict(model_init_kwargs or {}))
    kwargs.setdefault("trust_remote_code", trust_remote_code)
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    name = adapters.folder_of(name)
    is_adapter = adapters.is_adapter(name, **hub)
    if is_adapter:
        trust.require_safe_adapter(name, kwargs, **hub)
        own = {key: value for key, value in kwargs.items() if key != "revision"}
        # What was recorded beside the adapter wins, but for the precision that the user asks for.
        precision = {"dtype": own["dtype"]} if "dtype" in own else {}
        loaded = adapters.load(name, lambda base, **kept: load_classifier(base, {**own, **kept, **precision}), **hub)
    else:
        loaded = load_classifier(name, kwargs)
    if is_trained:
        _refuse_what_is_new(loaded, name)
    else:
        _say_what_is_new(loaded.model, name, loaded.missing, is_adapter)
    return loaded.model


def load_trained(
    name: str, device: Any, dtype: Any, trust_remote_code: bool, model_init_kwargs: Mapping[str, Any]
) -> nn.Module:
    """Return a trained reward model to score with, in evaluation mode, its rewards in float32.

    device: None for the accelerator if there is one, "auto" to spread the model over all. dtype: None for the saved one.
    Raises ValueError where the checkpoint has no reward head.
    """
    kwargs = compat.translate_model_kwargs(dict(model_init_kwargs))
    _check_place(device, dtype)
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    if device == "auto":
        kwargs["device_map"] = "auto"
    if dtype is not None:
        kwargs["dtype"] = dtype
    elif "dtype" not in kwargs and not adapters.is_adapter(adapters.folder_of(require_path(name)), **hub):
        kwargs["dtype"] = "auto"
    model = load(name, kwargs, trust_remote_code, is_trained=True)
    is_placed = "device_map" in kwargs or getattr(classifier_of(model), "is_quantized", False)
    return (
        (model if is_placed else model.to(_usual_device() if device is None else device)).eval().requires_grad_(False)
    )


def _check_place(device: Any, dtype: Any) -> None:
    """Raise ValueError for a device that is not here and a precision that there is not, before the weights are read."""
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; it must be 'auto', 'float32', 'bfloat16' or 'float16'")
    if device is None or device == "auto":
        return
    try:
        torch.empty(0, device=device)
    # torch without a kind of device asserts, without a device of it raises, and takes no other words.
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).split(chr(10))[0][:120]
        raise ValueError(
            f"device is {device!r}, which is not on this machine ({reason}); leave it out, or name another"
        ) from error


def _usual_device() -> torch.device:
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return torch.device("cpu")
    # Launchers give each process an accelerator of its own.
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index())))


def load_classifier(name: str, kwargs: Mapping[str, Any]) -> Loaded:
    """Return the whole model at a directory or a Hub id as a classifier with one label."""
    name = require_path(name)
    kwargs = {"dtype": torch.float32, **kwargs, "num_labels": 1}
    cautious = trust.cautious(kwargs)
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    if kwargs.get("config") is not None:
        # from_pretrained passes what it does not know to the model's constructor when a config is given.
        cautious["config"] = copy.deepcopy(kwargs["config"])
        cautious["config"].num_labels = cautious.pop("num_labels")
    verbosity = logging.get_verbosity()
    # The table of loaded weights calls a new head a fault; what matters of it is said below, in one line.
    logging.set_verbosity_error()
    try:
        trust.require_no_code_from_hub(name, kwargs, **hub)
        trust.require_safetensors(name, kwargs, **hub)
        model, report = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **cautious)
    except (ImportError, torch.OutOfMemoryError, trust.Refused):
        raise
    # Broken weights and configs raise errors of every kind, safetensors' own included.
    except Exception as error:
        raise trust.refused_code(name, error, cautious["trust_remote_code"]) or ValueError(
            _why_not_loaded(name, error)
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return Loaded(model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]))


def _why_not_loaded(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, RuntimeError) and "mismatch" in str(error):
        return (
            f"'{name}' has a head with more than one output, but reward models require `num_labels=1`; name a reward "
            f"model or a base model without a head ({reason})"
        )
    if os.path.isdir(name):
        return f"the model in the directory '{name}' cannot be loaded ({reason}); it needs config.json and weights"
    return (
        f"the model '{name}' is not a directory here and could not be loaded from the Hub ({reason}); correct the path, "
        "the name or model_init_kwargs"
    )


def _refuse_what_is_new(loaded: Loaded, name: str) -> None:
    head, body = _parted(loaded.model, loaded.missing)
    kind = type(classifier_of(loaded.model)).__name__
    if head:
        unread = [key for key in loaded.unread if not key.startswith("lm_head.")][:3]
        other = f", and {kind} does not read what it has instead: {', '.join(unread)}" if unread else ""
        raise ValueError(
            f"'{name}': this checkpoint has no reward head; its rewards would be random ({', '.join(head)} is not in "
            f"it{other}); name a trained reward model, or train this one with plaudit train"
        )
    if body:
        raise ValueError(
            f"'{name}': this checkpoint lacks {len(body):,} weights of {kind}, so its "
            f"rewards would be random: {', '.join(body[:5])}{', …' if len(body) > 5 else ''}; restore them"
        )


def _parted(model: nn.Module, missing: Collection[str]) -> tuple[list[str], list[str]]:
    """Return which of the weights' names are the head's, and which are not."""
    heads = tuple(f"{head}." for head in head_names(model))
    return [key for key in missing if key.startswith(heads)], [key for key in missing if not key.startswith(heads)]


def _say_what_is_new(model: nn.Module, name: str, missing: Collection[str], is_adapter: bool) -> None:
    head, body = _parted(model, missing)
    if head and is_adapter:
        warnings.warn(
            f"the adapter '{name}' holds no trained reward head ({', '.join(head_names(model))}); the head is new and its "
            "rewards mean nothing before training",
            UserWarning,
            stacklevel=3,
        )
    elif head:
        say(f"'{name}' brings no reward head: a new one is drawn from the seed")
    if body:
        warnings.warn(
            f"'{name}' lacks {len(body):,} weights of {type(classifier_of(model)).__name__}, which are new and random: "
            f"{', '.join(body[:5])}{', …' if len(body) > 5 else ''}",
            UserWarning,
            stacklevel=2,
        )


def check(model: Any, model_init_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """Return the model object that a user passed if rewards can be trained with it; raise an error with the cure if not.

    A PeftModel over a causal language model comes back rebuilt as a classifier.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a name, a path, a sequence-classification model or a torch module, got {type(model).__name__}"
        )
    inner = classifier_of(model)
    if is_causal_lm(inner):
        if isinstance(model, PeftModel):
            kwargs = compat.translate_model_kwargs(dict(model_init_kwargs or {}))
            return adapters.rebuild_as_classifier(model, lambda name, **own: load_classifier(name, {**kwargs, **own}))
        raise ValueError(
            f"model: {type(inner).__name__} is a causal language model, which has no reward head; pass its name or path "
            f"instead ('{inner.config._name_or_path or '<name>'}') and it is loaded as a sequence classifier"
        )
    if not isinstance(inner, PreTrainedModel):
        names = inspect.signature(inner.forward).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
        missing = [name for name in ("input_ids", "attention_mask") if name not in names and not open_ended]
        if missing:
            raise ValueError(f"model: the forward of {type(inner).__name__} takes no {missing}; it must take both")
        return model
    if not head_names(model):
        raise ValueError(
            f"model: {type(inner).__name__} has no classification head; pass its name or path instead, or load it with "
            "AutoModelForSequenceClassification"
        )
    if inner.config.num_labels != 1:
        raise ValueError(
            f"model: {type(inner).__name__} has {inner.config.num_labels} labels, but reward models require "
            "`num_labels=1`; load it with from_pretrained(..., num_labels=1)"
        )
    return model


def adapt(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    peft_config: Any = None,
    disable_dropout: bool = True,
    disable_adapter_dropout: bool = False,
    checkpointing: bool = False,
    reentrant: bool = False,
    new_tokens: int = 0,
) -> nn.Module:
    """Return the model ready for reward training: config, embeddings, dropout, adapter, float32 head.

    new_tokens: how many tokens the chat template added to the tokenizer; the embeddings then grow, and never shrink.
    """
    if peft_config is not None and (isinstance(model, PeftModel) or not isinstance(model, PreTrainedModel)):
        raise ValueError(
            f"peft_config: the model is a {type(model).__name__} already; pass a plain classifier with peft_config, or "
            "the PeftModel without it"
        )
    inner = classifier_of(model)
    if isinstance(inner, PreTrainedModel):
        if tokenizer is not None and new_tokens and len(tokenizer) > (vocabulary_size(inner) or 0):
            inner.resize_token_embeddings(len(tokenizer))
        write_config_values(inner, tokenizer)
        inner.add_model_tags(TAGS)
    if disable_dropout:
        remove_dropout(model, adapter_too=disable_adapter_dropout)
    if isinstance(model, PeftModel):
        adapters.keep_head(model)
    if peft_config is not None:
        model = adapters.wrap(model, peft_config, checkpointing, reentrant)
        if disable_adapter_dropout:
            remove_dropout(model, adapter_too=True)
    attach(model)
    return model


def write_config_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write into the model's config what makes any tool read the trained reward: one label, no sigmoid, pad and EOS."""
    model.config.num_labels = 1
    model.config.problem_type = "regression"
    model.config.sentence_transformers = {"activation_fn": IDENTITY}
    if tokenizer is None:
        return
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
        if tokenizer.eos_token_id is not None:
            config.eos_token_id = tokenizer.eos_token_id
        if tokenizer.bos_token_id is not None:
            config.bos_token_id = tokenizer.bos_token_id


def remove_dropout(model: nn.Module, adapter_too: bool = False) -> None:
    """Set every dropout probability in the model to 0, those inside attention functions included.

    adapter_too: an adapter's own dropout (`lora_dropout`) as well.
    """
    for name, module in model.named_modules():
        if not adapter_too and any(
            part.endswith("_dropout") and part.startswith(("lora", "rank", "module")) for part in name.split(".")
        ):
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # Attention and older architectures keep the probability as a number and apply it in a function.
        for key, value in vars(module).items():
            if "drop" in key and isinstance(value, float):
                setattr(module, key, 0.0)


def load_tokenizer(name: str, model_init_kwargs: Mapping[str, Any] | None, trust_remote_code: bool) -> Any:
    """Return the tokenizer beside a model, or beside the base of an adapter that was saved without one."""
    kwargs = dict(model_init_kwargs or {})
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    name = require_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
        # Beside a model's config alone, transformers makes a tokenizer of the model's kind that knows no words.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("there are no tokenizer files")
        if not trust_remote_code:
            trust.say_unused_tokenizer(name)
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
        if refused := trust.refused_code(name, error, trust_remote_code, trust.TOKENIZER):
            raise refused from error
        if os.path.isdir(name) and adapters.is_adapter(name):
            base = adapters.PeftConfig.from_pretrained(name).base_model_name_or_path
            if base and base != name:
                return load_tokenizer(base, None, trust_remote_code)
        raise ValueError(
            f"no tokenizer could be loaded from '{name}' ({str(error).strip().splitlines()[0]}); "
            "pass one as processing_class"
        ) from error


def vocabulary_size(model: nn.Module) -> int | None:
    """Return how many token ids the model's input embeddings know, None where that cannot be told."""
    inner = classifier_of(model)
    if not isinstance(inner, PreTrainedModel):
        return None
    embeddings = inner.get_input_embeddings()
    shape: Any = () if embeddings is None else whole_shape(embeddings.weight)
    rows = shape[0] if len(shape) == 2 else 0
    return rows or getattr(inner.config.get_text_config(), "vocab_size", None)


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens the model's positions reach, None where it does not say."""
    config: Any = getattr(classifier_of(model), "config", None)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if positions and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1  # its positions count from behind the padding id
    return positions or None


def has_learned_positions(model: nn.Module) -> bool:
    """Tell whether positions are looked up in a table, which ends, instead of computed."""
    return any(
        isinstance(module, nn.Embedding) and ("position" in name or name.endswith("wpe"))
        for name, module in classifier_of(model).named_modules()
    )


def stored_vocabulary_size(name: str | None) -> int | None:
    """Return the vocabulary size in the config of a model that is on this machine, None where there is none."""
    try:
        if not name:
            return None
        # Without the second argument, a config with code of its own would have transformers ask at the terminal.
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
        return config.get_text_config().vocab_size
    except (OSError, ValueError, AttributeError):
        return None


def is_causal_lm(model: nn.Module) -> bool:
    """Tell whether a model is a causal language model, by transformers' own list and naming."""
    name = type(model).__name__
    return isinstance(model, PreTrainedModel) and (
        name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith(("ForCausalLM", "LMHeadModel"))
    )


def skip_checkpointing(model: nn.Module) -> str | None:
    """Return why activations cannot be recomputed in this model, None if they can."""
    inner = classifier_of(model)
    if not hasattr(inner, "activation_checkpointing_enable") and not hasattr(inner, "gradient_checkpointing_enable"):
        return f"{type(inner).__name__} has no activation checkpointing"
    if not getattr(inner, "supports_gradient_checkpointing", True):
        return f"{type(inner).__name__} does not support activation checkpointing"
    return None


def require_path(name: str) -> str:
    """Return the name with `~` expanded, once it is known whether the Hub, where it is a Hub id, can be reached.

    ValueError for what can only be a local path and is none, and for a name with a password in it.
    """
    require_no_secret("model", name)
    looks_local = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    path = os.path.expanduser(name)
    if looks_local and not os.path.isdir(path):
        raise ValueError(
            f"model: the directory '{name}' does not exist; correct the path, or give a Hub id (owner/name)"
        )
    hub.need(name)
    return path
