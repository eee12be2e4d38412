"""What the options of a training run must be: each value that cannot work, or would have no effect, is an error that says so."""

import dataclasses
import functools
import json
import numbers
import operator
import os
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

from transformers.trainer_pt_utils import AcceleratorConfig

from plaudit.redaction import redact, redact_settings
from plaudit.values import brief, finite_number, wanted_instead


class _Number(NamedTuple):
    """What a numeric option must be. must: in words, without 'number'. fits: of a number of that kind that is finite."""

    must: str
    fits: Callable[[Any], bool]
    whole: bool = False


_COUNT = _Number("of at least 1", lambda value: value >= 1, whole=True)
_WEIGHT = _Number("of at least 0", lambda value: value >= 0)
_SEED = _Number("from 0 to 4294967295", lambda value: 0 <= value < 2**32, whole=True)
_BETA = _Number("of at least 0 and below 1", lambda value: 0 <= value < 1)
_INHERITED_NUMBERS = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": _Number("above 0", lambda value: value > 0),
    "max_steps": _Number(
        "of at least 1, or -1 for num_train_epochs", lambda value: value == -1 or value >= 1, whole=True
    ),
    "learning_rate": _WEIGHT,
    "weight_decay": _WEIGHT,
    "max_grad_norm": _WEIGHT,
    "warmup_steps": _WEIGHT,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _WEIGHT,
    "logging_steps": _WEIGHT,
    "eval_steps": _WEIGHT,
    "save_steps": _WEIGHT,
    "neftune_noise_alpha": _WEIGHT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _Number("of at least 0", lambda value: value >= 0, whole=True),
}


# Whose values of every type have checks of their own, below or where they are read.
_CHECKED_APART = {
    *_INHERITED_NUMBERS,
    *("model_init_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "lr_scheduler_kwargs"),
    *("max_length", "pad_to_multiple_of", "dataset_num_proc", "center_rewards_coefficient", "eos_token", "pad_token"),
    *("packing", "label_smoothing_factor", "train_sampling_strategy", "label_names"),
}
# What transformers takes besides what its hints say.
_ALSO_TAKEN: dict[str, Any] = {
    "accelerator_config": AcceleratorConfig,
    "debug": list[str],
    "deepspeed": object,
    "fsdp": bool | list | None,
    "logging_dir": str,
    "parallelism_config": object,
    "resume_from_checkpoint": bool,
}
# What a value that transformers cannot use makes it raise.
REFUSALS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, FileNotFoundError)


@functools.cache
def _hints(options: type) -> dict[str, Any]:
    return get_type_hints(options)


def check_types(args: Any, options: type) -> None:
    """ValueError for a value of another type than its option's, which would fail somewhere in transformers, or later.

    options: the dataclass whose fields are checked; `args` may be of one derived from it.
    """
    for each in dataclasses.fields(args):
        name, value = each.name, getattr(args, each.name, None)
        hint = _hints(options).get(name, Any)
        if name in _CHECKED_APART or name in _bool_options(options) or value is None:
            continue
        if isinstance(value, str) and not value:
            continue
        wanted = wanted_instead(value, hint)
        if wanted is not None and wanted_instead(value, _ALSO_TAKEN.get(name, hint)) is not None:
            raise ValueError(
                f"{name} must be {wanted}, not {redact_settings(brief(value))}; leave it out, or correct it"
            )


def dict_of(name: str, value: Any, example: dict[str, Any]) -> dict[str, Any] | None:
    """Return an option that is a dict or JSON of one as the dict. ValueError, with the example, for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{name} is not JSON: {redact_settings(repr(value))} ({error}); write it as --{name} '{json.dumps(example)}'"
            ) from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"{name} must be a dict or JSON of one, not {type(value).__name__}: {redact_settings(brief(value))}"
        )
    return value


def refused_by_transformers(given: frozenset[str], error: BaseException) -> str:
    """Return what transformers has against the options, naming those that it may be about."""
    text = redact(" ".join(str(error).split()))
    if "rendezvous" in text and "environment variable" in text:
        return (
            f"the processes of the run cannot find each other ({text}); start them with torchrun or accelerate launch, which tell "
            "each where the first one is, or set that variable"
        )
    named = sorted(name for name in given if name in text) or sorted(given)
    return (
        f"these options are refused by transformers: {', '.join(named)} ({type(error).__name__}: {text}); correct them"
    )


def check_values(args: Any, options: type) -> None:
    """ValueError for a value that cannot work or would have no effect; options: as for `check_types`."""
    _check_bools(args, options)
    _check_numbers(args, options)
    _check_own_fields(args)
    _check_inherited_fields(args)


def _check_numbers(args: Any, options: Any) -> None:
    """ValueError where a number of transformers' has a value that fails, or trains nothing, long after the start."""
    defaults = {each.name: each.default for each in dataclasses.fields(options)}
    checked = dict(_INHERITED_NUMBERS)
    if isinstance(args.max_steps, int) and args.max_steps >= 1:
        del checked["num_train_epochs"]  # not read then
    for what in ("logging", "eval", "save"):
        strategy = getattr(args, f"{what}_strategy")
        if getattr(strategy, "value", strategy) == "steps":
            checked[f"{what}_steps"] = _Number(f"above 0 while {what}_strategy is 'steps'", lambda value: value > 0)
    for name, number in checked.items():
        value = getattr(args, name)
        if value is None and defaults[name] is None:
            continue
        if isinstance(value, str):
            raise ValueError(f"{name} must be a number, not the text {brief(value)}; write it without quotes")
        kind: Any = numbers.Integral if number.whole else numbers.Real
        if not isinstance(value, kind) or finite_number(value) is None or not number.fits(value):
            raise ValueError(
                f"{name} must be a {'whole' if number.whole else 'finite'} number {number.must}, not {brief(value)}; leave it "
                + ("out" if defaults[name] is None else f"out for {defaults[name]!r}")
            )


@functools.cache
def _bool_options(options: type) -> dict[str, bool]:
    """Return the options that are True or False, and whether each may be None too."""
    kinds = {name: set(get_args(hint) or [hint]) for name, hint in _hints(options).items()}
    return {name: type(None) in kind for name, kind in kinds.items() if bool in kind and kind <= {bool, type(None)}}


def _check_bools(args: Any, options: type) -> None:
    """ValueError for a switch with another value, because any text, also "no", would count as True."""
    for name, may_be_none in _bool_options(options).items():
        value = getattr(args, name)
        if not isinstance(value, bool) and not (value is None and may_be_none):
            raise ValueError(f"{name} must be True or False, not {brief(value)}")


def _check_own_fields(args: Any) -> None:
    """ValueError where one of our fields has a value that cannot work."""
    for name, none_means in (
        ("max_length", "to drop no pair"),
        ("pad_to_multiple_of", "to pad to the longest sequence"),
        ("dataset_num_proc", "for one process"),
    ):
        value = getattr(args, name)
        if value is not None:
            setattr(args, name, _counting_number(name, value, none_means))
    coefficient = args.center_rewards_coefficient
    if coefficient is not None and not _is_weight(coefficient):
        raise ValueError(
            f"center_rewards_coefficient must be a finite number of at least 0, not {brief(coefficient)}; 0.01 is usual, "
            "None leaves the term out"
        )
    for name in ("eos_token", "pad_token"):
        token = getattr(args, name)
        if token is not None and not isinstance(token, str):
            raise ValueError(
                f"{name} must be the token's text, not {brief(token)}; tokenizer.decode gives an id's text"
            )
    if args.packing not in ("auto", "off"):
        raise ValueError(f"packing must be 'auto' or 'off', not {brief(args.packing)}")


def _check_inherited_fields(args: Any) -> None:
    """ValueError where an inherited option would have no effect, or names nothing."""
    if args.output_dir is not None and not os.fspath(args.output_dir).strip():
        raise ValueError(f"output_dir is {brief(args.output_dir)}, which names no directory; name one, or leave it out")
    if args.label_smoothing_factor != 0:
        raise ValueError(
            f"label_smoothing_factor={brief(args.label_smoothing_factor)} has no meaning here, for pairs have no class "
            "labels to smooth; leave it out, and for uncertain preferences give the data a 'margin' column"
        )
    if not args.eval_do_concat_batches:
        raise ValueError(
            "eval_do_concat_batches=False would have no effect: predictions are always one row a pair; leave it out, "
            "or set batch_eval_metrics=True for metrics a batch"
        )
    strategies = ("random", "sequential", "group_by_length")
    if args.train_sampling_strategy not in strategies:
        raise ValueError(
            f"train_sampling_strategy={brief(args.train_sampling_strategy)} is not one of {', '.join(strategies)}; pairs are "
            "dealt to processes by plaudit itself, for similar lengths take group_by_length"
        )
    if args.label_names is not None:
        raise ValueError(
            f"label_names={brief(args.label_names)} would have no effect: pairs have no labels; leave it out"
        )


def check_how_batches_are_dealt(args: Any) -> None:
    """ValueError for what accelerate would do to batches that plaudit deals itself, each pair counted once."""
    defaults = {"split_batches": False, "dispatch_batches": None, "even_batches": True, "use_seedable_sampler": True}
    for name, default in defaults.items():
        value = getattr(args.accelerator_config, name, default)
        if value != default and not (name == "dispatch_batches" and value is False):
            raise ValueError(
                f"accelerator_config: {name}={brief(value)} would have no effect, because plaudit deals the pairs to the "
                "processes itself; leave it out"
            )
    sizes = {name: getattr(args.parallelism_config, f"{name}_size", 1) for name in ("tp", "cp", "sp")}
    for name, size in sizes.items():
        if args.parallelism_config is not None and (size or 1) > 1:
            raise ValueError(
                f"parallelism_config: {name}_size={size} is not supported, because every process is dealt pairs of its "
                "own; use data parallelism, FSDP or DeepSpeed"
            )


def _counting_number(name: str, value: Any, none_means: str) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(
            f"{name} must be a whole number of at least 1, not {brief(value)}; None is the value {none_means}"
        )
    return number


def _is_weight(value: Any) -> bool:
    number = finite_number(value)
    return number is not None and number >= 0
