"""The options of a training run: `RewardConfig`, transformers' `TrainingArguments` with reward modelling's own."""

import argparse
import contextlib
import copy
import dataclasses
import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from plaudit.argument_checks import (
    REFUSALS,
    check_how_batches_are_dealt,
    check_types,
    check_values,
    dict_of,
    refused_by_transformers,
)
from plaudit.compat import OLDER_FIELDS, fsdp_config_of, translate_config, translate_model_kwargs
from plaudit.redaction import redact, remember, remember_in, without_secrets
from plaudit.say import logger, say
from plaudit.values import brief

# After which a process says that it still waits for the others.
SECONDS_TO_MEET = 15

if TYPE_CHECKING:
    int_or_none = int
else:

    class int_or_none(int):
        """What HfArgumentParser makes of a flag's text: a whole number, or None for the word none."""

        def __new__(cls, text: str) -> int | None:
            try:
                return None if text.strip().lower() == "none" else int(text)
            except ValueError:
                raise argparse.ArgumentTypeError(f"must be a whole number or none, not {text!r}") from None


@contextlib.contextmanager
def _waiting_said() -> Iterator[None]:
    """Say what is waited for where the processes of a run do not find each other at once."""
    number = os.environ.get("WORLD_SIZE", "1")
    if number in ("", "1") or "RANK" not in os.environ:
        yield
        return
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    text = (
        f"process {os.environ['RANK']} of {number} still waits for the others at {place} (MASTER_ADDR, MASTER_PORT); were all "
        "started, and can they reach that address?"
    )
    # From every process, because the one that `say` speaks for may be the one that never came.
    timer = threading.Timer(SECONDS_TO_MEET, logger.warning, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass(repr=False)  # transformers' own repr hides access tokens; the generated one would print them
class RewardConfig(TrainingArguments):
    """Options of `RewardTrainer`: all of `TrainingArguments`, and the fields below, which their help texts explain.

    These defaults differ from transformers': logging_steps 10, gradient_checkpointing True, learning_rate 1e-4, bf16
    where an accelerator supports it, logging_nan_inf_filter False. Fields that transformers has renamed or dropped
    since the older trainers are accepted as `compat.translate_config` says.

    ValueError for a value, or a combination, that cannot work or would have no effect.
    """

    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps; below 1, a share of all training steps."}
    )
    # A non-finite loss must be seen, and looking for one at each micro-batch makes the device wait.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave non-finite losses out of the logged mean, which hides them."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The initial learning rate of the optimizer."})
    gradient_checkpointing: bool | None = field(
        default=True,
        metadata={
            "help": "Compute activations again in the backward pass instead of keeping them: less memory, more time. "
            "The older name of activation_checkpointing, which wins where it is given."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Mixed precision in bfloat16. Unset: yes on an accelerator that supports it, unless fp16 is set; "
            "no on a CPU or MPS.",
            "nargs": "?",
            "const": True,
        },
    )

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of from_pretrained, as a dict or JSON, for a model given by its name or path. "
            "output_router_logits=true adds a mixture-of-experts model's load-balancing loss."
        },
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={
            "help": "Where the chat template comes from: a Jinja file, a tokenizer's directory or its name on the Hub. "
            "From a tokenizer, the special tokens of its template are added too."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Switch off all dropout in the model, that of attention included."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that prepare the data; not used for streamed data."}
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Token that ends a sequence. Unset: the tokenizer's."}
    )
    pad_token: str | None = field(
        default=None,
        metadata={
            "help": "Token used for padding. Unset: the tokenizer's, else one that the vocabulary reserves for it, "
            "else eos_token."
        },
    )
    max_length: int_or_none | None = field(
        default=1024,
        metadata={"help": "Pairs with a side of more tokens than this are dropped, and counted. 'none' drops no pair."},
    )
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "Pad the length of a batch to a multiple of this."}
    )
    center_rewards_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Weight of a loss term that pulls the mean reward to zero (Eisenstein et al. 2023, "
            "arXiv:2312.09244, eq. 2). Recommended: 0.01."
        },
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep activations in the CPU's memory between forward and backward pass."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Allow models and tokenizers whose code comes with them from the Hub."}
    )
    packing: str = field(
        default="auto",
        metadata={
            "help": "How a batch's sequences are laid out. 'auto': as a tree, in which each shared prompt is computed once "
            "and nothing is padded, wherever a trial at the start shows that this model gives the padded rewards; padded, "
            "with one line that says why, where it does not. 'off': always padded.",
            "choices": ["auto", "off"],
        },
    )
    eval_benchmarks: list[str] | None = field(
        default=None,
        metadata={
            "help": "Benchmarks to evaluate on as well, by name, Hub id, file, folder or NAME=PATH; their figures are "
            "logged as eval_<name>_<figure>, and a longer sequence than max_length loses its beginning."
        },
    )

    @property
    def given(self) -> frozenset[str]:
        """Names of the fields that the caller gave, rather than left at their defaults.

        Where the caller gave every field, as a command line's parser and `dataclasses.replace` do, only the values
        that differ from the defaults can be told from the rest.
        """
        return self.__dict__.get("_given", frozenset())

    def __post_init__(self) -> None:
        """Resolve and check the values: transformers' defaults are not ours, and it would change callers' dicts."""
        # A dataclass derived from this one has its own constructor, which has recorded nothing.
        if "_given" not in self.__dict__:
            self._given = _given(type(self), vars(self))
        # A flag's text, which transformers would take for one of its older options' names.
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # type: ignore[assignment]
        check_types(self, RewardConfig)
        self._detach_containers()
        self.model_init_kwargs = _model_init_kwargs(self.model_init_kwargs)
        # From here on no line that is said or printed shows them.
        remember(self.hub_token)
        remember_in(self.model_init_kwargs)
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "lr_scheduler_kwargs"):
            setattr(self, name, dict_of(name, getattr(self, name, None), {"key": 1}))
        if self.chat_template_path is not None:
            self.chat_template_path = os.fspath(self.chat_template_path)
        if self.report_to is None:
            self.report_to = "none"
        check_values(self, RewardConfig)
        self._leave_checkpointing_to_fsdp()
        self._use_todays_checkpointing_name()
        self._resolve_precision()
        asked_for = copy.copy(self.report_to)
        try:
            with _waiting_said():
                super().__post_init__()
        except REFUSALS as error:
            raise ValueError(refused_by_transformers(self.given, error)) from error
        if "kubeflow" in self.report_to and "kubeflow" not in asked_for and "all" not in asked_for:
            # transformers would send each log to an address in the environment without being asked.
            self.report_to = [name for name in self.report_to if name != "kubeflow"]
            say("nothing is sent to Kubeflow; report_to='kubeflow' turns it on", once=True)
        check_how_batches_are_dealt(self)
        if not self.average_tokens_across_devices and self.world_size > 1:
            say(
                "average_tokens_across_devices=False has no effect: the loss is always the mean over all pairs of all "
                "processes"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, access tokens hidden: loggers are given these. Overridden because transformers
        would hide ours that end in `_token`, change a dict, and show a token within one."""
        own = copy.copy(self)
        if isinstance(self.model_init_kwargs, dict):
            own.model_init_kwargs = _copied(self.model_init_kwargs)
        # Without arguments, super() would go on with self.
        values = super(RewardConfig, own).to_dict()
        values = {name: without_secrets(one) if isinstance(one, dict) else one for name, one in values.items()}
        return {**values, "eos_token": self.eos_token, "pad_token": self.pad_token}

    def __str__(self) -> str:
        """Return all fields as text, access tokens hidden. Overridden because transformers shows one within a dict."""
        return redact(super().__str__())

    __repr__ = __str__

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: no access token, because Trainer pickles its arguments beside each checkpoint."""
        return {**vars(self), "hub_token": None, "model_init_kwargs": without_secrets(self.model_init_kwargs)}

    def __copy__(self) -> "RewardConfig":
        """Return a copy, access tokens included, which a copy by way of pickling would lack."""
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "RewardConfig":
        """Return a deep copy, access tokens included."""
        made = memo[id(self)] = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy(vars(self), memo))
        return made

    def _detach_containers(self) -> None:
        """Copy what transformers would change in place."""
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict | list | AcceleratorConfig):
                # Values may be classes or open handles, so only plain containers are copied in depth.
                setattr(self, each.name, _copied(value))

    def _leave_checkpointing_to_fsdp(self) -> None:
        """Take our default back where FSDP does the same: transformers refuses both, and the user asked for one."""
        config = fsdp_config_of(self.fsdp_config)
        names = ("activation_checkpointing", "fsdp_activation_checkpointing")
        by_config = self.fsdp and any(config.get(name) for name in names)
        by_launcher = parse_flag_from_env("ACCELERATE_USE_FSDP") and parse_flag_from_env(
            "FSDP_ACTIVATION_CHECKPOINTING"
        )
        if (by_config or by_launcher) and "gradient_checkpointing" not in self.given:
            self.gradient_checkpointing = False

    def _use_todays_checkpointing_name(self) -> None:
        """Move the two fields that transformers renamed to their names of today, where it would warn instead."""
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            today = old.replace("gradient", "activation")
            # Transformers before the renaming has the older field only.
            if getattr(self, today, "no such field") is None:
                setattr(self, today, getattr(self, old))

    def _resolve_precision(self) -> None:
        """Decide on bf16 where it was left open; where asked for on a CPU, it is the CPU's autocast."""
        has_accelerator = torch.accelerator.is_available() or is_torch_xla_available()
        on_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        if self.fp16 and (on_cpu or not has_accelerator):
            where = "the CPU was asked for" if on_cpu else "this machine has none"
            raise ValueError(f"fp16=True needs an accelerator, and {where}; set bf16=True, or leave both out")
        if self.bf16 is None:
            launched_with = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
            self.bf16 = not (self.fp16 or on_cpu or launched_with in ("fp16", "fp8")) and _supports_bf16()
        if (self.bf16 or self.bf16_full_eval) and not has_accelerator:
            # transformers refuses bf16 without an accelerator unless told that the CPU is meant.
            self.use_cpu = True


def from_training_arguments(args: TrainingArguments) -> RewardConfig:
    """Return the values of plain `TrainingArguments` as a `RewardConfig`, our own fields at their defaults.

    What `args` has resolved (precision, checkpointing, output_dir) stays as it is, and `args` is not changed.
    """
    if isinstance(args, RewardConfig):
        return args
    # Not to_dict(), which replaces access tokens by placeholders.
    return RewardConfig(**{each.name: getattr(args, each.name) for each in dataclasses.fields(args) if each.init})


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return copy.copy(value) if isinstance(value, AcceleratorConfig) else value


def _supports_bf16() -> bool:
    """Return whether bf16 is a gain here: MPS and older GPUs only emulate it."""
    if is_torch_xla_available():
        return True
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type == "mps":
        return False
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(is_torch_bf16_gpu_available())


def _model_init_kwargs(value: Any) -> dict[str, Any] | None:
    value = dict_of("model_init_kwargs", value, {"dtype": "bfloat16"})
    if value is None:
        return None
    if "num_labels" in value:
        raise ValueError(
            f"model_init_kwargs holds num_labels={brief(value['num_labels'])}; leave it out, num_labels is always 1"
        )
    return translate_model_kwargs(value)


def _given(config: type[RewardConfig], values: dict[str, Any]) -> frozenset[str]:
    """Return which of the values passed to the constructor the caller has given; see `RewardConfig.given`."""
    inherited = {each.name for each in dataclasses.fields(TrainingArguments) if each.init}
    if not inherited <= values.keys():
        return frozenset(values)
    return frozenset(
        each.name for each in dataclasses.fields(config) if each.name in values and not _untouched(each, values)
    )


def _untouched(each: dataclasses.Field, values: dict[str, Any]) -> bool:
    default = each.default if each.default is not dataclasses.MISSING else each.default_factory()  # type: ignore[misc, operator]
    # The directory that transformers falls back to is in every copy of a config that was given none.
    return values[each.name] in ([default, "trainer_output"] if each.name == "output_dir" else [default])


def _accept_older_names(generated: Any) -> Any:
    """Return the dataclass's constructor, which also takes the names in `compat.OLDER_FIELDS` and fills `given`."""
    names = [each.name for each in dataclasses.fields(RewardConfig) if each.init]

    @functools.wraps(generated)
    def constructor(self: RewardConfig, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or len(values) < len(args) + len(kwargs):
            generated(self, *args, **kwargs)  # raises Python's own error for too many arguments, or one given twice
        try:
            given = _given(type(self), {name: value for name, value in values.items() if name not in OLDER_FIELDS})
            older = {name: value for name, value in values.items() if name in OLDER_FIELDS}
            translated = translate_config({name: values[name] for name in values if name in given} | older)
            self._given = frozenset(translated)
            generated(self, **{name: value for name, value in values.items() if name not in older} | translated)
        except RecursionError:
            raise ValueError(
                f"one of the options {', '.join(values)} is nested too deeply, or holds itself; correct it"
            ) from None

    return constructor


RewardConfig.__init__ = _accept_older_names(RewardConfig.__init__)  # type: ignore[method-assign]
