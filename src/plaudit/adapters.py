"""Adapters: a classifier wrapped by PEFT with its head trained and saved, and adapters of every origin loaded back."""

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple

import peft
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import (
    get_peft_model_state_dict,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from peft.utils.other import AuxiliaryTrainingWrapper, _set_trainable
from transformers import PreTrainedModel, TrainerCallback

from plaudit.partitioned import whole_shape
from plaudit.rewards import HEAD_NAMES, classifier_of, head_names
from plaudit.say import say
from plaudit.trust import Refused, file_beside

# What an adapter needs of its base and the base's own config may lack. Not config.json: beside an adapter, transformers
# would take that file for a whole model's.
BASE_FILE = "reward_base.json"
BASE_VALUES = ("num_labels", "problem_type", "dtype", "pad_token_id", "eos_token_id", "vocab_size")


class Loaded(NamedTuple):
    """A model, the names of its weights that the checkpoint lacks, which are new, and those of the checkpoint's it does not read."""

    model: Any
    missing: list[str]
    unread: list[str]


LoadBase = Callable[..., Loaded]


def config_from_dict(values: dict[str, Any]) -> PeftConfig:
    """Return the PeftConfig that a plain dict describes: of its `peft_type`, LoRA when it names none."""
    values = copy.deepcopy(values)
    kind = str(getattr(values.get("peft_type"), "value", values.get("peft_type", "LORA"))).upper()
    values.pop("peft_type", None)
    classes = {str(getattr(name, "value", name)): cls for name, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in classes:
        near = get_close_matches(kind, classes, 1) or ["LORA"]
        raise ValueError(f"peft_config: unknown peft_type '{kind}'; did you mean '{near[0]}'?")
    known = [field.name for field in dataclasses.fields(classes[kind]) if field.init]
    unknown = sorted(set(values) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(
            f"peft_config: {kind} has no field {unknown}{hint}; its fields are: {', '.join(sorted(known))}"
        )
    try:
        return classes[kind](**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft_config: {kind} does not take {values} ({error})") from error


def wrap(model: PreTrainedModel, peft_config: PeftConfig | dict, checkpointing: bool, reentrant: bool) -> PeftModel:
    """Return the classifier under a new adapter, its head trained and saved along; the caller's config is not changed.

    checkpointing, reentrant: whether and how activations are recomputed, which quantized bases must know.
    Raises ValueError for configurations that cannot carry a reward head.
    """
    if not isinstance(peft_config, (PeftConfig, dict)):
        raise TypeError(
            f"peft_config: expected a PeftConfig such as LoraConfig(), or a dict of one, got {peft_config!r}"
        )
    config = config_from_dict(peft_config) if isinstance(peft_config, dict) else copy.deepcopy(peft_config)
    _refuse_what_moves_the_read_out(config)
    config.task_type = TaskType.SEQ_CLS
    heads = head_names(model)
    asked = [config.modules_to_save] if isinstance(config.modules_to_save, str) else list(config.modules_to_save or [])
    names = [name for name, _ in model.named_modules()]
    unknown = set(asked) - set(HEAD_NAMES) - {part for name in names for part in (name, name.rpartition(".")[2])}
    if unknown:
        raise ValueError(
            f"peft_config: modules_to_save names {sorted(unknown)}, which {type(model).__name__} does not have; "
            f"its heads are {heads}"
        )
    # An encoder's pooler stands between its states and the head, and many checkpoints bring none: it is new as well.
    kept = [*heads, *(["pooler"] if any(name.endswith(".pooler") for name in names) else [])]
    config.modules_to_save = [*asked, *[name for name in kept if name not in asked]]
    if not set(heads) & set(asked):
        say(f"the adapter trains and saves the reward head ({', '.join(heads)}) along with its own weights")
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
    try:
        wrapped = _quietly(get_peft_model, model, config)
    except (TypeError, ValueError) as error:
        # PEFT knows the usual target modules of the usual architectures only.
        if getattr(config, "target_modules", "given") is not None or "target_modules" not in str(error):
            asked_for = getattr(config, "target_modules", None)
            raise ValueError(f"peft_config: {error} (target_modules: {asked_for})") from error
        say(
            f"PEFT knows no usual target modules for '{model.config.model_type}': the adapter is put on all linear layers"
        )
        config.target_modules = "all-linear"
        wrapped = _quietly(get_peft_model, model, config)
    return wrapped


def active_adapter(model: PeftModel) -> str:
    """Return the name of the adapter in use, the first one of several."""
    return model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapter[0]


def keep_head(model: PeftModel) -> None:
    """Have the adapter of a user's PeftModel train and save the reward head, which PEFT does for SEQ_CLS only."""
    adapter = active_adapter(model)
    config, classifier, heads = model.peft_config[adapter], classifier_of(model), head_names(model)
    kept = any(isinstance(getattr(classifier, head), AuxiliaryTrainingWrapper) for head in heads)
    if kept or not any(parameter.requires_grad for parameter in model.parameters()):
        return
    config.modules_to_save = [*(config.modules_to_save or []), *heads]
    config.task_type = TaskType.SEQ_CLS
    _set_trainable(model, adapter, module_names=heads, inference_mode=False)
    say(
        f"the PeftModel's adapter did not keep the reward head ({', '.join(heads)}): it is trained and saved from now on"
    )


def _quietly(make: Callable[..., PeftModel], *args: Any, **kwargs: Any) -> PeftModel:
    """Return what PEFT makes, without the warning that it asks transformers by an older name for its checkpointing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return make(*args, **kwargs)


class RankAllocation(TrainerCallback):
    """Lets AdaLoRA move its ranks after each optimizer step, while the gradients that it judges by are still there."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)


def allocates_ranks(model: Any) -> bool:
    """Tell whether the adapter moves its rank budget between layers as it trains (AdaLoRA), step by step."""
    return isinstance(model, PeftModel) and hasattr(model.base_model, "update_and_allocate")


def _refuse_what_moves_the_read_out(config: PeftConfig) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning:
        raise ValueError(
            f"peft_config: {kind} puts virtual tokens before the prompt, which moves the read-out to a padded position, "
            "so the rewards would be wrong; use an adapter of the weights, such as LoraConfig()"
        )
    if kind == "POLY":
        raise ValueError("peft_config: POLY needs a task id for every row, which pairs do not have; use LoraConfig()")
    if not hasattr(config, "modules_to_save"):
        raise ValueError(
            f"peft_config: {kind} cannot keep another module's weights, so the trained reward head would be lost on "
            "saving; use an adapter with modules_to_save, such as LoraConfig()"
        )


def folder_of(path: str) -> str:
    """Return where a saved adapter is: PEFT puts one that is not called "default" into a folder of its name."""
    if not os.path.isfile(os.path.join(path, BASE_FILE)) or os.path.isfile(os.path.join(path, "adapter_config.json")):
        return path
    named = [
        entry.path for entry in os.scandir(path) if os.path.isfile(os.path.join(entry.path, "adapter_config.json"))
    ]
    return named[0] if len(named) == 1 else path


def is_adapter(path: str, **hub: Any) -> bool:
    """Tell whether a directory or a Hub id holds an adapter instead of a whole model."""
    return file_beside(path, "adapter_config.json", **hub) is not None


def config_of(path: str, **hub: Any) -> PeftConfig:
    """Return the configuration of the adapter at path. ValueError where it cannot be read or names no base."""
    try:
        config = PeftConfig.from_pretrained(path, **hub)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"adapter_config.json of '{path}' cannot be read ({error}); restore the file") from error
    if not config.base_model_name_or_path:
        raise ValueError(
            f"the adapter '{path}' does not say which base it belongs to; load the base and pass a PeftModel"
        )
    return config


def load(path: str, load_base: LoadBase, **hub: Any) -> Loaded:
    """Return the adapter at path on its base, a classifier.

    load_base: a function from the base's name and the config values recorded beside the adapter to the classifier under
    it. Raises ValueError where the base is missing.
    """
    config = config_of(path, **hub)
    _refuse_what_moves_the_read_out(config)
    name = str(config.base_model_name_or_path)
    recorded = base_values(path, **hub)
    parent = os.path.dirname(path)
    if not recorded and os.path.isdir(path) and folder_of(parent) == path:
        recorded = base_values(parent)
    vocabulary_size = recorded.pop("vocab_size", None)
    if config.revision is not None:
        recorded["revision"] = config.revision
    try:
        base, missing, unread = load_base(name, **recorded)
    except Refused as error:
        raise Refused(f"the base of the adapter '{path}': {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the base '{name}' of the adapter '{path}' cannot be loaded ({str(error).splitlines()[0]}); put it there, or "
            "correct base_model_name_or_path in adapter_config.json"
        ) from error
    if vocabulary_size is not None and vocabulary_size > whole_shape(base.get_input_embeddings().weight)[0]:
        base.resize_token_embeddings(vocabulary_size, mean_resizing=False)
    config.inference_mode = False
    try:
        weights = load_peft_weights(path, device="cpu", **hub)
    # Absent weights are asked of the Hub by the directory's name, and broken ones raise safetensors' own errors.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the adapter '{path}' has no weights that can be read ({reason}); restore them") from error
    brought = {key.removeprefix("base_model.model.") for key in weights}
    missing = [key for key in missing if key not in brought]
    has_head = any(f".{head}." in key for key in weights for head in head_names(base))
    try:
        if has_head:
            config.task_type = TaskType.SEQ_CLS
            model = _quietly(PeftModel.from_pretrained, base, path, is_trainable=True, config=config, **hub)
        else:
            model = _with_new_head(base, config, weights, "default")
    # Weights of other shapes, and a configuration that PEFT does not take, such as one that names a module to import.
    except (RuntimeError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the adapter '{path}' does not fit its base '{name}' ({reason}); correct base_model_name_or_path or restore "
            "adapter_config.json"
        ) from error
    return Loaded(model, missing, unread)


def _with_new_head(base: PreTrainedModel, config: PeftConfig, weights: dict[str, Any], adapter: str) -> PeftModel:
    """Return a classifier, its head as it is, under adapter weights that were trained without it."""
    config.task_type = TaskType.SEQ_CLS
    model = _quietly(peft.PeftModelForSequenceClassification, base, config, adapter_name=adapter)
    own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    head = {key: value for key, value in own.items() if any(f".{name}." in key for name in head_names(model))}
    set_peft_model_state_dict(model, {**head, **weights}, adapter_name=adapter)
    return model


def base_values(path: str, **hub: Any) -> dict[str, Any]:
    """Return the config values that were recorded beside an adapter, none for another tool's adapter."""
    file = file_beside(path, BASE_FILE, **hub)
    if file is None:
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            values = json.load(stream)
    except (OSError, ValueError) as error:
        raise ValueError(f"{BASE_FILE} of '{path}' cannot be read ({error}); restore the file") from error
    # They become keyword arguments of from_pretrained, some of which, such as trust_remote_code, run code.
    foreign = sorted(set(values) - set(BASE_VALUES)) if isinstance(values, dict) else [type(values).__name__]
    if foreign:
        raise ValueError(
            f"{BASE_FILE} of '{path}' holds {foreign[0]!r}, which no adapter records of its base; restore the file, or remove "
            f"what is not one of {', '.join(BASE_VALUES)}"
        )
    return values


def base_values_of(model: PeftModel) -> dict[str, Any]:
    """Return what the adapter's base must be loaded with for the trained rewards, and how many embeddings it then has."""
    classifier = classifier_of(model)
    text = classifier.config.get_text_config()
    return {
        "num_labels": 1,
        "problem_type": "regression",
        "dtype": str(classifier.dtype).removeprefix("torch."),
        "pad_token_id": text.pad_token_id,
        "eos_token_id": text.eos_token_id,
        "vocab_size": whole_shape(classifier.get_input_embeddings().weight)[0],
    }


def save_base_values(model: PeftModel, path: str) -> None:
    """Record beside an adapter what its base must be loaded with."""
    with open(os.path.join(path, BASE_FILE), "w", encoding="utf-8") as stream:
        json.dump(base_values_of(model), stream, indent=2)


def rebuild_as_classifier(model: PeftModel, load_base: LoadBase) -> PeftModel:
    """Return a classifier under the adapter weights of a PeftModel over a causal language model, with a new head.

    The head that may have been trained with that adapter is not in such an object: PEFT dropped it on loading.
    """
    adapter = active_adapter(model)
    config = copy.deepcopy(model.peft_config[adapter])
    base = model.get_base_model()
    name = config.base_model_name_or_path or base.config._name_or_path
    if not name:
        raise ValueError(
            "the PeftModel is over a causal language model that does not say where it was loaded from, so it cannot be "
            "loaded as a classifier; pass the adapter's directory or name instead of the object"
        )
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    config.inference_mode = not trainable
    classifier = load_base(name, dtype=base.dtype).model
    weights = get_peft_model_state_dict(model, adapter_name=adapter)
    rebuilt = _with_new_head(classifier, config, weights, adapter)
    heads = set(head_names(rebuilt))
    for key, value in rebuilt.named_parameters():
        value.requires_grad_(key in trainable or any(f".{head}.modules_to_save." in key for head in heads))
    warnings.warn(
        "the PeftModel is over a causal language model: it was rebuilt as a classifier with its adapter's weights, but a "
        "trained reward head was not in the object, so the head is new. To keep a trained head, pass the adapter's "
        "directory or name, or load it with AutoPeftModelForSequenceClassification.from_pretrained(..., num_labels=1)",
        UserWarning,
        stacklevel=4,
    )
    return rebuilt
