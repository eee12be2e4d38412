"""Options of the command, above all of `plaudit train`: from flags and a YAML file to what was given, each in its type.

What was not given stays out, so that RewardConfig can tell a choice from a default.
"""

import argparse
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from plaudit.compat import OLDER_FIELDS
from plaudit.config_file import read_config
from plaudit.converters import CONVERTERS
from plaudit.redaction import HIDDEN, is_secret
from plaudit.values import brief, wanted_instead


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error: the nearest of the known names, if one is near."""
    # The time grows with the square of the length.
    nearest = difflib.get_close_matches(name[:100], list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class UsageError(Exception):
    """Arguments that cannot be understood."""


class LineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, which argparse would print below the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(re.sub(r"^argument (--\w+)(?:/--\S+)*:", r"\1:", message))


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the parsed arguments by name; UsageError with the nearest flag for one that is unknown."""
    namespace, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        # Not the value: it may be a token, given by a flag that was spelt wrong.
        flag = unknown[0].split("=")[0]
        nearest = did_you_mean(flag, _flags(parser._actions))
        raise UsageError(f"unknown argument {flag if flag.startswith('--') else unknown[0]!r}{nearest}")
    return vars(namespace)


def check_fields(options: Any) -> None:
    """Raise ValueError, naming the option, where one of a verb's dataclass has a value of another type, or none of its
    choices."""
    hints = get_type_hints(type(options))
    for each in fields(options):
        value = getattr(options, each.name)
        wanted = wanted_instead(value, hints[each.name])
        if wanted is not None:
            raise ValueError(f"{each.name} must be {wanted}, not {brief(value)}")
        choices = each.metadata.get("choices")
        if choices is not None and value is not None and value not in choices:
            raise ValueError(f"{each.name} is {brief(value)}, but must be one of {', '.join(map(repr, choices))}")


def option(help: str, default: Any = None, **words: Any) -> Any:
    """Return a field of a verb's dataclass; help and words say how the command reads it (see `parse_fields`)."""
    return field(default=default, metadata={"help": help, **words})


def parse_fields(kind: Any, verb: str, usage: str, description: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return those fields of a verb's dataclass that were given as flags, each in its field's type.

    A field's metadata: `help`, and what argparse's add_argument takes; `flag`, the flag where it is not the field's name;
    `also`, a second flag; `positional`, true for an argument without a flag, which has to be given. A field that is a bool is a flag without a
    value. UsageError for flags that cannot be understood, and for a field without a default that was not given.
    """
    parser = LineParser(
        prog=f"plaudit {verb}",
        usage=f"plaudit {verb} {usage}",
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for each in fields(kind):
        words = {key: value for key, value in each.metadata.items() if key not in ("flag", "also", "positional")}
        if isinstance(each.default, bool):
            words["action"] = "store_false" if each.default else "store_true"
        elif "type" not in words:
            kinds = (each.type, *get_args(each.type))
            words["type"] = next((kind for kind in (str, int, float) if kind in kinds), str)
        if each.default not in (MISSING, None) and not isinstance(each.default, bool):
            words["help"] += f" (default: {each.default})"
        if each.metadata.get("positional"):
            parser.add_argument(each.name, **words)
        else:
            flags = [each.metadata.get("flag", f"--{each.name}"), *filter(None, [each.metadata.get("also")])]
            parser.add_argument(*flags, dest=each.name, **words)
    given = parsed(parser, [_as_argparse_takes(word, _flags(parser._actions)) for word in arguments])
    for each in fields(kind):
        if each.default is MISSING and each.name not in given:
            raise UsageError(f"--{each.name} is required")
    return given


def _as_argparse_takes(word: str, flags: Sequence[str]) -> str:
    # A number such as -1e-3 would be taken for a flag.
    if re.fullmatch(r"-[\d.]+(e[-+]?\d+)?", word, re.IGNORECASE):
        return f" {word}"
    # As with the flags of train, --output-dir is --output_dir.
    flag, equals, value = word.partition("=")
    spelt = f"--{flag[2:].replace('-', '_')}"
    return f"{spelt}{equals}{value}" if flag.startswith("--") and spelt in flags else word


@dataclass
class ModelArguments:
    """Which model to train, and how it is loaded and adapted."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: a directory or a Hub id."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    torch_dtype: str | None = field(default=None, metadata={"help": argparse.SUPPRESS})
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision that the weights are loaded in; float32 unless given.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation, such as sdpa or flash_attention_2."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the whole model."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapter, divided by its rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the adapter's input."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Layers to adapt, or all-linear; those that peft adapts in this kind of model unless given."},
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Layers to train whole, besides a new head, which always is."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Divide lora_alpha by the root of the rank instead."})
    use_dora: bool = field(default=False, metadata={"help": "Learn the adapter's direction and size apart (DoRA)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the model in 8 bits; needs use_peft."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the model in 4 bits; needs use_peft."})


@dataclass
class DataArguments:
    """Which data to train and evaluate on."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, directory, or a .json, .jsonl, .jsonl.gz, .csv, .parquet or .arrow file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration (subset) of the data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, where there is one."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read the rows while training; needs max_steps."})
    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": "Format of the records, where it is not to be recognised from the columns.",
            "choices": list(CONVERTERS),
        },
    )
    dataset_margins: bool = field(
        default=False,
        metadata={
            "help": "Use the rating gap of converted records as the pair's margin, where the format has ratings."
        },
    )
    test_split_size: float | None = field(
        default=None, metadata={"help": "Hold out this many training rows for evaluation; below 1, this share of them."}
    )


ADAPTER_OPTIONS = [each.name for each in fields(ModelArguments) if each.name.startswith(("lora_", "use_"))]
ADAPTER_OPTIONS.remove("use_peft")


def taken(given: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return those of the given options that are fields of a dataclass."""
    return {each.name: given[each.name] for each in fields(kind) if each.name in given}


OWN_OPTIONS = {each.name for kind in (ModelArguments, DataArguments) for each in fields(kind)}


# Options that transformers' scripts have and that mean something of their own here, or are refused by RewardConfig.
HELP_HERE = {
    "do_train": "Train; on unless given as false, which leaves an evaluation alone.",
    "do_eval": "Evaluate; on wherever there are test rows.",
    "do_predict": "Refused: there is nowhere to write predictions to; RewardTrainer.predict returns them.",
    "label_smoothing_factor": "Refused unless 0: pairs have no class labels to smooth.",
    "label_names": "Refused: pairs have no labels.",
    "eval_do_concat_batches": "Refused if false: predictions are one row a pair.",
}


def train_parser(verb: str = "train", description: str = "Train a reward model on preference pairs.") -> LineParser:
    """Return the parser of every option of `plaudit train`, older names included, that leaves out what is not given.

    verb: another that takes the same options.
    """
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    from plaudit.config import RewardConfig

    class Parser(LineParser, HfArgumentParser):
        pass

    kinds: list[Any] = [ModelArguments, DataArguments, RewardConfig]
    parser = Parser(
        kinds,
        prog=f"plaudit {verb}",
        usage=f"plaudit {verb} --model_name_or_path MODEL --dataset_name DATA [--config FILE.yaml] [options]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a YAML file, same names; flags win")
    known = {action.dest for action in parser._actions}
    for action in parser._actions:
        default = "<model>-Reward" if action.dest == "output_dir" else action.default
        if action.dest not in ("help", "config") and default is not None:
            action.help = f"{action.help or ''} (default: {str(default).replace('%', '%%')})"
        action.help = HELP_HERE.get(action.dest, action.help)
        action.default = argparse.SUPPRESS
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", "true"
    _group_options(parser)
    for older in OLDER_FIELDS.values():
        if older.name in known:
            continue
        bare: dict[str, Any] = {"nargs": "?", "const": True, "type": string_to_bool} if older.type is bool else {}
        options = {"type": older.type, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **bare}
        parser.add_argument(f"--{older.name}", f"--{older.name.replace('_', '-')}", dest=older.name, **options)
    return parser


def _group_options(parser: argparse.ArgumentParser) -> None:
    """Put our own options first in the help, then those that only transformers describes."""
    from plaudit.config import RewardConfig

    ungrouped = next(group for group in parser._action_groups if "--help" in _flags(group._group_actions))
    general = ("help", "config", "output_dir")
    for title, names in (("training", set(RewardConfig.__annotations__)), ("options of transformers' Trainer", None)):
        group = parser.add_argument_group(title)
        moved = [
            action
            for action in ungrouped._group_actions
            if action.dest not in general and (names is None or action.dest in names)
        ]
        group._group_actions.extend(moved)
        ungrouped._group_actions[:] = [action for action in ungrouped._group_actions if action not in moved]


def _flags(actions: Iterable[argparse.Action]) -> list[str]:
    return [flag for action in actions for flag in action.option_strings]


def parse_train(arguments: Sequence[str], *of_verb: str) -> dict[str, Any]:
    """Return the options that were given, by flag or in the config file, each of its option's type.

    of_verb: another verb that takes the same options, and its description.
    """
    parser = train_parser(*of_verb)
    given = _given(parser, arguments)
    for name in ("model_name_or_path", "dataset_name"):
        if given.get(name) is None:
            raise UsageError(f"--{name} is required")
    return given


def _given(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    given = parsed(parser, arguments)
    file = given.pop("config", None)
    return given if file is None else {**_read_config(Path(file), parser), **given}


def _read_config(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the options in a YAML file, turned into their types as the flags' texts are.

    FileNotFoundError and ValueError name the file, and the key where one is wrong.
    """
    # Backwards, because the first of two with one name is the option itself, the second its --no_ form.
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest not in ("help", "config")}
    given = {}
    for key, word, value in read_config(file):
        name = key.replace("-", "_")
        if name not in actions:
            raise ValueError(f"config file {str(file)!r}: unknown key {key!r}{did_you_mean(name, actions)}")
        try:
            given[name] = _option_value(parser, name, actions[name], word, value)
        except UsageError as error:
            raise ValueError(f"config file {str(file)!r}: {str(error).removeprefix('--')}") from None
    return given


def _option_value(parser: argparse.ArgumentParser, name: str, action: Any, word: Any, value: Any) -> Any:
    """Return one option of a config file in its type, by the parser that reads the flags."""
    from transformers.hf_argparser import string_to_bool

    if value is None:
        if not _may_be_none(name):
            raise UsageError(f"{name}: has no value; give one, or leave the key out")
        return None
    if isinstance(value, dict):
        # Options that are dicts take JSON, as their flags do.
        word = json.dumps(_for_json(name, value))
    elif isinstance(value, bool) and action.type is string_to_bool:
        word = str(value)  # YAML has more words for it, such as off
    elif isinstance(value, list):
        if not _may_be_list(name):
            raise UsageError(f"{name}: takes one value, not the list {HIDDEN if is_secret(name) else brief(value)}")
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            raise UsageError(f"{name}: the list's {brief(wrong[0])} is no text; write it in quotes")
        if action.nargs != "+" or not value:
            return value
        return getattr(parser.parse_args([f"--{name}", *word]), name)
    return getattr(parser.parse_args([f"--{name}={word}"]), name)


def _for_json(name: str, value: Any) -> Any:
    """Return the value with texts such as 1e-4, a number to everyone but YAML, as numbers.

    UsageError for what JSON does not have, a date or a key that is no text, rather than what it would be made into.
    """
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise UsageError(f"{name}: the key {odd[0]!r} is no text; write it in quotes")
        return {key: _for_json(name, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_for_json(name, item) for item in value]
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise UsageError(f"{name}: {value} is a {type(value).__name__} to YAML; write it in quotes")
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _may_be_none(name: str) -> bool:
    if name in OLDER_FIELDS and name not in _hints():
        return OLDER_FIELDS[name].default is None
    return type(None) in get_args(_hints()[name])


def _may_be_list(name: str) -> bool:
    hint = _hints().get(name)
    return any(list in (kind, get_origin(kind)) for kind in (hint, *get_args(hint)))


@functools.cache
def _hints() -> dict[str, Any]:
    """Return the type of each option of `train`, by its name."""
    from plaudit.config import RewardConfig

    return {**get_type_hints(ModelArguments), **get_type_hints(DataArguments), **get_type_hints(RewardConfig)}
