"""The older names that still work: config fields, arguments, columns and classes, each with what it is called today."""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.values import brief, wanted_instead

# Newest first. Column names of tokenized pairs, one entry for each generation of the trainer's documentation.
TOKEN_COLUMNS: list[dict[str, str | None]] = [
    {
        "chosen_ids": "chosen_ids",
        "rejected_ids": "rejected_ids",
        "chosen_mask": None,
        "rejected_mask": None,
    },
    {
        "chosen_ids": "chosen_input_ids",
        "rejected_ids": "rejected_input_ids",
        "chosen_mask": None,
        "rejected_mask": None,
    },
    {
        "chosen_ids": "input_ids_chosen",
        "rejected_ids": "input_ids_rejected",
        "chosen_mask": "attention_mask_chosen",
        "rejected_mask": "attention_mask_rejected",
    },
    {
        "chosen_ids": "input_ids_j",
        "rejected_ids": "input_ids_k",
        "chosen_mask": "attention_mask_j",
        "rejected_mask": "attention_mask_k",
    },
]

# Arguments of RewardTrainer, and classes.
OLDER_ARGUMENTS = {
    "tokenizer": "processing_class",
    "max_length": "args.max_length",
    "model_path": "resume_from_checkpoint",
}
OLDER_CLASSES = {"RewardDataCollatorWithPadding": "DataCollatorForPreference"}

_warned_columns: set[str] = set()


def warn_of_older_columns(columns: Mapping[str, str | None]) -> None:
    """Warn, once a process, that `chosen_input_ids` and `rejected_input_ids` have been renamed.

    columns: one entry of TOKEN_COLUMNS; of the other generations nothing is said.
    """
    name = columns["chosen_ids"]
    if name != "chosen_input_ids" or name in _warned_columns:
        return
    _warned_columns.add(name)
    warnings.warn(
        "the columns 'chosen_input_ids' and 'rejected_input_ids' are now 'chosen_ids' and 'rejected_ids'; "
        "the older names will not be supported in v1",
        FutureWarning,
        stacklevel=2,
    )


def older_argument(old: str, value: Any, new: str, new_value: Any) -> Any:
    """Return the value to use for an argument that has an older name: `new_value`, unless only the older was given.

    None means not given. TypeError when both were: there is no telling which one is meant.
    """
    if value is None:
        return new_value
    if new_value is not None:
        raise TypeError(
            f"both `{old}` and `{new}` were given; `{old}` is the older name of `{new}`, so give only `{new}`"
        )
    warnings.warn(f"the argument `{old}` is now `{new}`; please pass that instead", FutureWarning, stacklevel=3)
    return value


def translate_model_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `from_pretrained` with `torch_dtype` under its name of today, `dtype`."""
    translated = dict(kwargs)
    if "torch_dtype" not in translated:
        return translated
    if "dtype" in translated:
        raise TypeError(
            f"both `dtype` ({translated['dtype']}) and its older name `torch_dtype` ({translated['torch_dtype']}) "
            "were given; give only `dtype`"
        )
    translated["dtype"] = translated.pop("torch_dtype")
    return translated


@dataclass(frozen=True)
class OlderField:
    """A config field that transformers no longer has.

    default: its value when it still existed, accepted in silence.
    type: what its text on a command line is turned into.
    today: the field to use now; None when there is none, and then `cure` says what to do.
    translate: (value, all values given) -> values of today's fields.
    """

    name: str
    default: Any
    type: type
    today: str | None = None
    translate: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    cure: str = ""


def _agreed(old: str, old_value: Any, new: str, value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return {new: value}; TypeError when the caller gave `new` too, with another value."""
    if new in given and given[new] != value:
        raise TypeError(
            f"both `{old}={_shown(old, old_value)}` and `{new}={_shown(new, given[new])}` were given; "
            f"`{old}` is an older name, so give only `{new}`"
        )
    return {new: value}


def _renamed(old: str, default: Any, kind: type, new: str) -> OlderField:
    return OlderField(old, default, kind, new, lambda value, given: _agreed(old, value, new, value, given))


def _flag(old: str, new: str, meaning: Any) -> OlderField:
    """A switch whose True is one value of today's field."""
    return OlderField(old, False, bool, new, lambda value, given: _agreed(old, value, new, meaning, given))


def _gone(name: str, default: Any, kind: type, cure: str) -> OlderField:
    return OlderField(name, default, kind, cure=cure)


def _warmup(ratio: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    if not 0 <= ratio <= 1:
        raise ValueError(f"warmup_ratio is {ratio}, but must lie between 0 and 1; to give a number, set warmup_steps")
    # When both were given, the number of steps has always won.
    if given.get("warmup_steps"):
        return {"warmup_steps": given["warmup_steps"]}
    # transformers reads 1.0 as one step; the largest ratio below it still rounds up to every step.
    return {"warmup_steps": min(float(ratio), math.nextafter(1.0, 0.0))}


def _metrics_inputs(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    named = list(given.get("include_for_metrics") or [])
    return {"include_for_metrics": named if "inputs" in named else [*named, "inputs"]}


def _token_counts(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    # Any way of counting tokens gives tokens per second, so a way that the caller chose stays.
    chosen = given.get("include_num_input_tokens_seen")
    return {"include_num_input_tokens_seen": "all" if chosen in (None, False, "no") else chosen}


def _tpu_debug(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    options = given.get("debug") or []
    options = options.split() if isinstance(options, str) else [getattr(o, "value", o) for o in options]
    return {"debug": " ".join(dict.fromkeys([*options, "tpu_metrics_debug"]))}


def _hub_model_id(old: str) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    def translate(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        model, organization = given.get("push_to_hub_model_id"), given.get("push_to_hub_organization")
        if model is None:
            if given.get("hub_model_id") is None and given.get("output_dir") is None:
                raise TypeError(
                    f"`push_to_hub_organization={value!r}` names no model; set `hub_model_id='{value}/<name>'` instead"
                )
            model = given.get("hub_model_id") or Path(given["output_dir"]).name
            organization = None if str(model).startswith(f"{organization}/") else organization
        wanted = f"{organization}/{model}" if organization else model
        return _agreed(old, value, "hub_model_id", wanted, given)

    return translate


def fsdp_config_of(value: Any) -> dict[str, Any]:
    """Return `fsdp_config`, a dict, JSON or the path of a JSON file, as a dict. ValueError for anything else."""
    if value is None or isinstance(value, dict):
        return dict(value or {})
    try:
        text = os.fspath(value)
        config = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"fsdp_config must be a dict, JSON of one, or a JSON file, not {brief(value)} ({error}); correct it"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"fsdp_config must hold a dict, not a {type(config).__name__}: {brief(value)}; correct it")
    return config


def _fsdp_key(old: str, also: Mapping[str, Any]) -> Callable[[Any, Mapping[str, Any]], dict[str, Any]]:
    """A field that became a key of `fsdp_config`, which may be a dict, JSON or the path of a JSON file."""
    key = old.removeprefix("fsdp_")

    def translate(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        config = fsdp_config_of(given.get("fsdp_config"))
        for name in (key, old):
            if config.get(name, value) not in (value, [value]):
                raise TypeError(
                    f"both `{old}={value!r}` and `fsdp_config[{name!r}]={config[name]!r}` were given; "
                    f"`{old}` is an older name, so give only the key of fsdp_config"
                )
        return {"fsdp_config": {**also, **config, key: value}}

    return translate


_FIELDS = [
    _renamed("evaluation_strategy", "no", str, "eval_strategy"),
    OlderField("warmup_ratio", 0.0, float, "warmup_steps", _warmup),
    _flag("group_by_length", "train_sampling_strategy", "group_by_length"),
    _flag("no_cuda", "use_cpu", True),
    _flag("adafactor", "optim", "adafactor"),
    _renamed("per_gpu_train_batch_size", None, int, "per_device_train_batch_size"),
    _renamed("per_gpu_eval_batch_size", None, int, "per_device_eval_batch_size"),
    OlderField("include_inputs_for_metrics", False, bool, "include_for_metrics", _metrics_inputs),
    OlderField("include_tokens_per_second", False, bool, "include_num_input_tokens_seen", _token_counts),
    OlderField("push_to_hub_model_id", None, str, "hub_model_id", _hub_model_id("push_to_hub_model_id")),
    OlderField("push_to_hub_organization", None, str, "hub_model_id", _hub_model_id("push_to_hub_organization")),
    _renamed("push_to_hub_token", None, str, "hub_token"),
    _renamed("torchdynamo", None, str, "torch_compile_backend"),
    OlderField("tpu_metrics_debug", False, bool, "debug", _tpu_debug),
    # Today the number is read only under this policy, which it used to imply.
    OlderField(
        "fsdp_min_num_params",
        0,
        int,
        "fsdp_config",
        _fsdp_key("fsdp_min_num_params", {"auto_wrap_policy": "SIZE_BASED_WRAP"}),
    ),
    OlderField(
        "fsdp_transformer_layer_cls_to_wrap",
        None,
        str,
        "fsdp_config",
        _fsdp_key("fsdp_transformer_layer_cls_to_wrap", {}),
    ),
    _renamed("xpu_backend", None, str, "ddp_backend"),
    _gone(
        "overwrite_output_dir",
        False,
        bool,
        "leave it out: an existing output_dir is never refused, and only `train(resume_from_checkpoint=...)` "
        "continues from what is in it",
    ),
    _gone(
        "logging_dir",
        None,
        str,
        "leave it out and set the environment variable TENSORBOARD_LOGGING_DIR to the directory",
    ),
    _gone("save_safetensors", True, bool, "leave it out: checkpoints are always safetensors"),
    _gone(
        "use_mps_device", False, bool, "leave it out: the MPS device is used where there is one, unless use_cpu is set"
    ),
    _gone("jit_mode_eval", False, bool, "leave it out, or set torch_compile=True to compile the model"),
    _gone("use_ipex", False, bool, "leave it out: torch has these optimisations built in"),
    _gone(
        "fp16_opt_level", "O1", str, "leave it out: apex is no longer used; fp16=True is torch's own mixed precision"
    ),
    _gone("half_precision_backend", "auto", str, "leave it out: fp16 and bf16 always use torch's own mixed precision"),
    _gone("fp16_backend", "auto", str, "leave it out: fp16 and bf16 always use torch's own mixed precision"),
    _gone(
        "tpu_num_cores",
        None,
        int,
        "leave it out and give the number to the launcher: accelerate launch --num_processes",
    ),
    _gone("past_index", -1, int, "leave it out: a reward is computed from one whole sequence, so no state is carried"),
    _gone("use_legacy_prediction_loop", False, bool, "leave it out: there is one evaluation loop"),
    _gone("mp_parameters", "", str, "leave it out: SageMaker gives them in the environment (SM_HP_MP_PARAMETERS)"),
    _gone("ray_scope", "last", str, "leave it out and set the environment variable RAY_SCOPE"),
    _gone("sharded_ddp", "", str, "leave it out and set fsdp=True, with fsdp_config for the details"),
    _gone("dispatch_batches", None, bool, "leave it out: plaudit deals the pairs to the processes itself"),
    _gone("split_batches", None, bool, "leave it out: plaudit deals the pairs to the processes itself"),
]
OLDER_FIELDS: dict[str, OlderField] = {field.name: field for field in _FIELDS}


def translate_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config values that the caller gave, under today's names; the caller's containers stay as they are.

    An older name at its old default is left out in silence; with another value it is a FutureWarning that says what
    it became. TypeError when it has no successor, or when today's name was given too, with another value.
    """
    translated = {name: value for name, value in given.items() if name not in OLDER_FIELDS}
    for name, value in given.items():
        field = OLDER_FIELDS.get(name)
        if field is None or (value is None and field.default is None):
            continue
        wanted = wanted_instead(value, field.type)
        if wanted is not None:
            raise TypeError(f"`{name}` must be {wanted}, not {_shown(name, value)}; set it so, or leave it out")
        if value == field.default:
            continue
        if field.translate is None:
            raise TypeError(f"`{name}={value!r}`: this option no longer exists; {field.cure}")
        # What earlier older names became counts as given, so that two of them can fill one of today's fields.
        values = field.translate(value, {**given, **translated})
        translated.update(values)
        now = ", ".join(f"{new}={_shown(new, new_value)}" for new, new_value in values.items())
        warnings.warn(
            f"`{name}={_shown(name, value)}` is now `{now}`; please set that instead", FutureWarning, stacklevel=3
        )
    return translated


def _shown(name: str, value: Any) -> str:
    # A warning ends up in logs, where an access token must not.
    return "'...'" if name.endswith("_token") else brief(value)
