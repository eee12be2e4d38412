"""The command: each verb parses, makes one library call and prints; torch loads once the verb is known."""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from plaudit.compat import OLDER_FIELDS
from plaudit.converters import CONVERTERS

if TYPE_CHECKING:
    from plaudit.config import RewardConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 for a user's mistake, 2 for arguments that cannot be understood."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in VERBS:
        return _run_verb(arguments[0], arguments[1:])
    verbs = "\n".join(f"  {name:<8}{verb.help}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="plaudit",
        description="Train reward models on preference pairs.",
        epilog=f"verbs:\n{verbs}\n\nplaudit VERB --help lists a verb's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plaudit {_version()}")
    parser.add_argument("verb", metavar="VERB", help="what to do, see below")
    # The rest belongs to a verb that does not exist, so only its name is worth an error.
    verb = parser.parse_args(arguments[:1]).verb
    parser.error(f"unknown verb {verb!r}{_did_you_mean(verb, VERBS)}; known: {', '.join(VERBS)}")


def _version() -> str:
    from plaudit import __version__

    return __version__


def _run_verb(name: str, arguments: list[str]) -> int:
    try:
        VERBS[name].run(arguments)
    except _UsageError as error:
        print(f"plaudit {name}: error: {error}; see plaudit {name} --help", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        is_ours = _raised_here(error)
        # A TypeError that others raise is a fault of the program, not of what the user asked for.
        if os.environ.get("PLAUDIT_TRACEBACK") or (isinstance(error, TypeError) and not is_ours):
            raise
        hint = "" if is_ours else " (PLAUDIT_TRACEBACK=1 shows where)"
        print(f"plaudit {name}: error: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"plaudit {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _raised_here(error: BaseException) -> bool:
    """Return whether a line of this package raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class _UsageError(Exception):
    """Arguments that cannot be understood."""


def _run_demo(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="plaudit demo", description=VERBS["demo"].help.capitalize() + ".")
    parser.add_argument("--output_dir", default="runs/demo", help="where everything is left (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs and of the training (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use no more pairs than this, for a quick try")
    options = parser.parse_args(arguments)
    from plaudit import demo

    print(demo.describe(demo.run(options.output_dir, seed=options.seed, limit=options.limit)))


@dataclass
class ModelArguments:
    """Which model to train, and how it is loaded and adapted."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model to train: a directory or a Hub id."})
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
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
        default=False, metadata={"help": "Use the rating gap of converted records as the pair's margin."}
    )
    test_split_size: float | None = field(
        default=None, metadata={"help": "Hold out this many training rows for evaluation; below 1, this share of them."}
    )


ADAPTER_OPTIONS = [each.name for each in fields(ModelArguments) if each.name.startswith(("lora_", "use_"))]
ADAPTER_OPTIONS.remove("use_peft")


def _run_train(arguments: list[str]) -> None:
    parser = _train_parser()
    given = _parse_train(parser, arguments)
    model_args = ModelArguments(**_taken(given, ModelArguments))
    data_args = DataArguments(**_taken(given, DataArguments))
    if model_args.model_name_or_path is None or data_args.dataset_name is None:
        missing = "model_name_or_path" if model_args.model_name_or_path is None else "dataset_name"
        raise _UsageError(f"--{missing} is required")
    peft_config = _peft_config(model_args, given)

    from plaudit import RewardConfig, RewardTrainer
    from plaudit.setup import default_output_dir

    given.setdefault("output_dir", default_output_dir(model_args.model_name_or_path))
    config = RewardConfig(**{name: value for name, value in given.items() if name not in _OWN_OPTIONS})
    config.model_init_kwargs = _model_init_kwargs(model_args, config)
    with config.main_process_first(desc="loading the data"):
        train_dataset, test_dataset = _load_data(data_args, config, given)
    trainer = RewardTrainer(
        model_args.model_name_or_path,
        config,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        peft_config=peft_config,
    )
    # The card links data sets on the Hub; a path of this machine would say nothing to its readers.
    on_hub = None if Path(data_args.dataset_name).expanduser().exists() else data_args.dataset_name
    if given.get("do_train", True):
        _train_and_save(trainer)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if given.get("do_train", True):
        trainer.create_model_card(dataset_name=on_hub)
        if config.push_to_hub:
            trainer.push_to_hub(dataset_name=on_hub)
        if trainer.is_world_process_zero():
            print(f"saved to {config.output_dir}")


def _train_and_save(trainer: Any) -> None:
    """Train and save, before an evaluation could lose the training."""
    result = trainer.train(resume_from_checkpoint=_resume_from(trainer.args.resume_from_checkpoint))
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)


def _load_data(data_args: DataArguments, config: "RewardConfig", given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the training rows and the test rows (or None), converted where a format was asked for."""
    from plaudit import formats, loading

    name = str(data_args.dataset_name)
    train, test = loading.load_train_and_test(
        name,
        data_args.dataset_config,
        train_split=data_args.dataset_train_split,
        test_split=data_args.dataset_test_split,
        test_split_size=data_args.test_split_size,
        streaming=data_args.dataset_streaming,
        seed=config.seed if config.data_seed is None else config.data_seed,
    )
    strategy = str(getattr(config.eval_strategy, "value", config.eval_strategy))
    # RewardConfig turns do_eval on by itself when there is an eval_strategy.
    if test is None and (strategy != "no" or config.do_eval or "dataset_test_split" in given):
        asked = (
            f"eval_strategy={strategy}" if strategy != "no" else "do_eval" if config.do_eval else "dataset_test_split"
        )
        raise ValueError(
            f"evaluation was asked for ({asked}), but data set {name!r} has no split {data_args.dataset_test_split!r}; "
            "set --test_split_size 0.1 to hold out a tenth of the training rows, or name a split with --dataset_test_split"
        )
    if data_args.dataset_format is None and not data_args.dataset_margins:
        return train, test
    convert = {"margins": data_args.dataset_margins, "keep_dropped": True}
    return (
        formats.convert(train, data_args.dataset_format, split="train", **convert),
        None if test is None else formats.convert(test, data_args.dataset_format, split="eval", **convert),
    )


def _resume_from(value: str | bool | None) -> str | bool | None:
    """Return what `train` takes, from a flag's text: true is the last checkpoint of the output directory."""
    words: dict[str, bool | None] = {"true": True, "false": None}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _peft_config(model_args: ModelArguments, given: Mapping[str, Any]) -> Any:
    """Return the adapter's configuration, or None without use_peft; ValueError for options that then have no effect."""
    if not model_args.use_peft:
        useless = [name for name in ADAPTER_OPTIONS if name in given]
        if useless:
            raise ValueError(f"--{useless[0]} has no effect without --use_peft; add --use_peft, or leave it out")
        if model_args.load_in_4bit or model_args.load_in_8bit:
            option = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
            raise ValueError(
                f"--{option}: quantized weights cannot be trained, only an adapter on them; add --use_peft"
            )
        return None
    from peft import LoraConfig, TaskType

    targets = model_args.lora_target_modules
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        # peft knows this word only as text, not as a list of one layer.
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
    )


def _model_init_kwargs(model_args: ModelArguments, config: "RewardConfig") -> dict[str, Any] | None:
    """Return the config's keyword arguments for loading with those of the model's flags; ValueError where they differ."""
    # RewardConfig has made a dict of JSON.
    kwargs: dict[str, Any] = dict(config.model_init_kwargs or {})  # type: ignore[arg-type]
    flags = {"revision": "model_revision", "dtype": "dtype", "attn_implementation": "attn_implementation"}
    for key, flag in flags.items():
        value = getattr(model_args, flag)
        if value is None:
            continue
        if kwargs.get(key, value) != value:
            raise ValueError(f"--{flag} {value} contradicts model_init_kwargs, where {key!r} is {kwargs[key]!r}")
        kwargs[key] = value
    if model_args.load_in_4bit or model_args.load_in_8bit:
        if "quantization_config" in kwargs:
            raise ValueError(
                "model_init_kwargs holds a 'quantization_config' already; leave out --load_in_4bit / _8bit"
            )
        kwargs["quantization_config"] = _quantization(model_args, config)
    return kwargs or None


def _quantization(model_args: ModelArguments, config: "RewardConfig") -> Any:
    import importlib.util

    if model_args.load_in_4bit and model_args.load_in_8bit:
        raise ValueError("--load_in_4bit and --load_in_8bit exclude each other; give one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError('loading in 4 or 8 bits needs extra packages: pip install "plaudit[quant]"')
    from transformers import BitsAndBytesConfig

    if model_args.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute_dtype = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)


def _taken(given: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    return {each.name: given[each.name] for each in fields(kind) if each.name in given}


_OWN_OPTIONS = {each.name for kind in (ModelArguments, DataArguments) for each in fields(kind)}


# Parsing: what was not given stays out, so that RewardConfig can tell a choice from a default.


def _train_parser() -> argparse.ArgumentParser:
    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool

    from plaudit.config import RewardConfig

    class Parser(HfArgumentParser):
        # argparse would print the whole usage, some 200 flags, above its one line.
        def error(self, message: str) -> NoReturn:
            raise _UsageError(re.sub(r"^argument (--\w+)(?:/--\S+)*:", r"\1:", message))

    kinds: list[Any] = [ModelArguments, DataArguments, RewardConfig]
    parser = Parser(
        kinds,
        prog="plaudit train",
        usage="plaudit train --model_name_or_path MODEL --dataset_name DATA [--config FILE.yaml] [options]",
        description=VERBS["train"].help.capitalize() + ".",
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="options from a YAML file, same names; flags win")
    known = {action.dest for action in parser._actions}
    for action in parser._actions:
        if action.dest not in ("help", "config") and action.default is not None:
            action.help = f"{action.help or ''} (default: {str(action.default).replace('%', '%%')})"
        action.default = argparse.SUPPRESS
    for older in OLDER_FIELDS.values():
        if older.name in known:
            continue
        bare: dict[str, Any] = {"nargs": "?", "const": True, "type": string_to_bool} if older.type is bool else {}
        options = {"type": older.type, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS, **bare}
        parser.add_argument(f"--{older.name}", f"--{older.name.replace('_', '-')}", dest=older.name, **options)
    return parser


def _parse_train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given, by flag or in the config file, each of its option's type."""
    namespace, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise _UsageError(f"unknown argument {unknown[0]!r}{_did_you_mean(unknown[0].split('=')[0], flags)}")
    given = vars(namespace)
    file = given.pop("config", None)
    return given if file is None else {**_read_config(Path(file), parser), **given}


def _read_config(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the options in a YAML file, turned into their types as the flags' texts are.

    FileNotFoundError and ValueError name the file, and the key where one is wrong.
    """
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        # Twice: as the words that were written (1e-4 and no are not what YAML makes of them), and as structure.
        words, values = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"config file {str(file)!r} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config file {str(file)!r} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(
            f"config file {str(file)!r} holds a {type(values).__name__}, but must hold 'option: value' lines"
        )
    # Backwards, because the first of two with one name is the option itself, the second its --no_ form.
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest not in ("help", "config")}
    given = {}
    for (key, word), value in zip(words.items(), values.values(), strict=True):
        name = str(key).replace("-", "_")
        if name not in actions:
            raise ValueError(f"config file {str(file)!r}: unknown key {key!r}{_did_you_mean(name, actions)}")
        try:
            given[name] = _option_value(parser, name, actions[name], word, value)
        except _UsageError as error:
            raise ValueError(f"config file {str(file)!r}: {str(error).removeprefix('--')}") from None
    return given


def _option_value(parser: argparse.ArgumentParser, name: str, action: Any, word: Any, value: Any) -> Any:
    """Return one option of a config file in its type, by the parser that reads the flags."""
    from transformers.hf_argparser import string_to_bool

    if value is None:
        if not _may_be_none(name):
            raise _UsageError(f"{name}: has no value; give one, or leave the key out")
        return None
    if isinstance(value, dict):
        # Options that are dicts take JSON, as their flags do.
        word = json.dumps(_with_numbers(value), default=str)
    elif isinstance(value, bool) and action.type is string_to_bool:
        word = str(value)  # YAML has more words for it, such as off
    elif isinstance(value, list):
        if action.nargs != "+" or not value:
            return value
        return getattr(parser.parse_args([f"--{name}", *word]), name)
    return getattr(parser.parse_args([f"--{name}={word}"]), name)


def _with_numbers(value: Any) -> Any:
    """Return the value with texts such as 1e-4, a number to everyone but YAML, as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def _may_be_none(name: str) -> bool:
    from plaudit.config import RewardConfig

    hints = {**get_type_hints(ModelArguments), **get_type_hints(DataArguments), **get_type_hints(RewardConfig)}
    if name in OLDER_FIELDS and name not in hints:
        return OLDER_FIELDS[name].default is None
    return type(None) in get_args(hints[name])


@dataclass(frozen=True)
class Verb:
    """A word of the command. help: its line in --help. run: does it, from the arguments after the word."""

    help: str
    run: Callable[[list[str]], None]


VERBS = {
    "train": Verb("train a reward model on preference pairs", _run_train),
    "demo": Verb("train, save, reload and score a tiny reward model on real text", _run_demo),
}
