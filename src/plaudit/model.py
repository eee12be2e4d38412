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

from plaudit import adapters, compat
from plaudit.rewards import attach, classifier_of, head_names
from plaudit.say import say

TAGS = ["reward-trainer", "plaudit"]
HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only")


def load(name: str, model_init_kwargs: Mapping[str, Any] | None = None, trust_remote_code: bool = False) -> nn.Module:
    """Return the classifier, or the adapter on its base, at a directory or a Hub id, with one label, in float32.

    model_init_kwargs: keyword arguments of `from_pretrained`; `dtype` overrides float32.
    Raises ValueError for a path that does not exist and for a head with more than one output.
    """
    name = _require_path(name)
    kwargs = compat.translate_model_kwargs(dict(model_init_kwargs or {}))
    kwargs.setdefault("trust_remote_code", trust_remote_code)
    hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
    name = adapters.folder_of(name)
    if adapters.is_adapter(name, **hub):
        own = {key: value for key, value in kwargs.items() if key != "revision"}
        # What was recorded beside the adapter wins, but for the precision that the user asks for.
        precision = {"dtype": own["dtype"]} if "dtype" in own else {}
        return adapters.load(
            name, lambda base, **kept: load_classifier(base, {**own, **kept, **precision}, is_base=True), **hub
        )
    return load_classifier(name, kwargs)


def load_classifier(name: str, kwargs: Mapping[str, Any], is_base: bool = False) -> PreTrainedModel:
    """Return the whole model at a directory or a Hub id as a classifier with one label; a missing head is made new.

    is_base: an adapter will bring the head, so that nothing is said of a missing one.
    """
    name = _require_path(name)
    kwargs = {"dtype": torch.float32, **kwargs, "num_labels": 1}
    if kwargs.get("config") is not None:
        # from_pretrained passes what it does not know to the model's constructor when a config is given.
        kwargs["config"] = copy.deepcopy(kwargs["config"])
        kwargs["config"].num_labels = kwargs.pop("num_labels")
    verbosity = logging.get_verbosity()
    # The table of loaded weights calls a new head a fault; what matters of it is said below, in one line.
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **kwargs)
    except (ImportError, torch.OutOfMemoryError):
        raise
    # Broken weights and configs raise errors of every kind, safetensors' own included.
    except Exception as error:
        raise ValueError(_why_not_loaded(name, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    _say_what_is_new(model, name, report["missing_keys"], is_base)
    return model


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


def _say_what_is_new(model: PreTrainedModel, name: str, missing: Collection[str], is_base: bool) -> None:
    heads = tuple(f"{head}." for head in head_names(model))
    body = sorted(key for key in missing if not key.startswith(heads))
    if len(body) < len(missing) and not is_base:
        say(f"'{name}' brings no reward head: a new one is drawn from the seed")
    if body:
        warnings.warn(
            f"'{name}' lacks {len(body):,} weights of {type(model).__name__}, which are new and random: "
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
            return adapters.rebuild_as_classifier(
                model, lambda name, **own: load_classifier(name, {**kwargs, **own}, is_base=True)
            )
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
        if tokenizer is not None:
            if new_tokens and len(tokenizer) > (vocabulary_size(inner) or 0):
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


def write_config_values(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into the model's config what makes any tool read the trained reward: one label, no sigmoid, pad and EOS."""
    model.config.num_labels = 1
    model.config.problem_type = "regression"
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
    name = _require_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
        # Beside a model's config alone, transformers makes a tokenizer of the model's kind that knows no words.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("there are no tokenizer files")
        return tokenizer
    except (OSError, ValueError, KeyError) as error:
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
    # Under ZeRO-3 a parameter is empty here; the config still knows.
    rows = embeddings.weight.shape[0] if embeddings is not None and embeddings.weight.dim() == 2 else 0
    return rows or getattr(inner.config.get_text_config(), "vocab_size", None)


def stored_vocabulary_size(name: str | None) -> int | None:
    """Return the vocabulary size in the config of a model that is on this machine, None where there is none."""
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True).get_text_config().vocab_size if name else None
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


def _require_path(name: str) -> str:
    """Return the name with `~` expanded; ValueError for what can only be a local path and is none, before the Hub is asked."""
    looks_local = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    path = os.path.expanduser(name)
    if looks_local and not os.path.isdir(path):
        raise ValueError(
            f"model: the directory '{name}' does not exist; correct the path, or give a Hub id (owner/name)"
        )
    return path
