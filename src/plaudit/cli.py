"""The command: each verb parses, makes one library call and prints; torch loads once the verb is known."""

import argparse
import difflib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

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
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plaudit {_version()}")
    parser.add_argument("verb", metavar="VERB", help="what to do, see below")
    known = [*VERBS, "--help", "--version"]
    if arguments and arguments[0].startswith("-") and arguments[0] not in (*known, "-h"):
        parser.error(f"unknown flag {arguments[0]!r}{_did_you_mean(arguments[0], known)}; known: {', '.join(known)}")
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
        _print_error(name, f"{error}; see plaudit {name} --help")
        return 2
    except Exception as error:
        if os.environ.get("PLAUDIT_TRACEBACK"):
            raise
        is_ours = _raised_here(error)
        is_expected = is_ours or isinstance(error, (ValueError, OSError, ImportError, FloatingPointError))
        kind = "" if is_expected and str(error) else f"{type(error).__name__}: "
        hint = "" if is_ours else " (PLAUDIT_TRACEBACK=1 shows where)"
        # What is wrong with data or options, every process finds; a fault may be one process's alone.
        _print_error(name, f"{kind}{_one_line(str(error))}{hint}", from_all=not is_expected)
        return 1
    except KeyboardInterrupt:
        print(f"plaudit {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _print_error(verb: str, text: str, *, from_all: bool = False) -> None:
    """Print one line from the first process, or from all of them, the others with their number."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or from_all:
        process = "" if rank == "0" else f" (process {rank})"
        print(f"plaudit {verb}: error{process}: {text}", file=sys.stderr)


def _one_line(text: str) -> str:
    """Return the text on one line, of a long one its beginning, which says what is wrong, and its end, the cure."""
    # torch passes on an error of a loader's worker with the worker's whole traceback as its text.
    if "Original Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split())
    return text if len(text) <= 600 else f"{text[:397]} … {text[-200:]}"


def _raised_here(error: BaseException) -> bool:
    """Return whether a line of this package raised the error, in this process or in one that prepares data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    files = [trace.tb_frame.f_code.co_filename] if trace is not None else []
    # A pool's process sends its traceback as the text of this cause.
    if type(error.__cause__).__name__ == "RemoteTraceback":
        files = re.findall(r'File "(.+?)", line \d+', str(error.__cause__))
    return bool(files) and Path(files[-1]).parent == Path(__file__).parent


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
    _check_together(data_args, config, given)
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
    # Trainer adds what the last logged interval saw, which beside the run's own figures would pass for the run's.
    figures = {name: value for name, value in result.metrics.items() if name not in _pair_figures()}
    trainer.log_metrics("train", figures)
    trainer.save_metrics("train", figures)


def _pair_figures() -> list[str]:
    from plaudit.metrics import pair_metrics

    return list(pair_metrics([1.0], [0.0]))  # type: ignore[arg-type]  # anything that numpy can make an array of


def _check_together(data_args: DataArguments, config: "RewardConfig", given: Mapping[str, Any]) -> None:
    """ValueError for options that cannot work together, before anything is loaded."""
    trains, streams = given.get("do_train", True), data_args.dataset_streaming
    split = data_args.dataset_train_split
    problems = {
        "--dataset_streaming needs --max_steps, because the length of a stream is not known; "
        "set --max_steps to the number of steps": streams and trains and config.max_steps < 1,
        "--dataset_num_proc has no effect with --dataset_streaming, which prepares rows as they are read; leave one "
        "out": streams and config.dataset_num_proc is not None,
        f"--dataset_test_split and --dataset_train_split are both {split!r}, so the rows trained on would be the test; "
        "name another split, or hold rows out with --test_split_size 0.1": (
            trains and data_args.test_split_size is None and given.get("dataset_test_split") == split
        ),
    }
    for problem, applies in problems.items():
        if applies:
            raise ValueError(problem)
    _check_best_metric(config.metric_for_best_model)


def _check_best_metric(name: str | None) -> None:
    # compute_metrics, which could give others, is for Python only. The last three are Trainer's own.
    known = [*_pair_figures(), "loss", "num_tokens", "runtime", "samples_per_second", "steps_per_second"]
    if name is not None and name.removeprefix("eval_") not in known:
        nearest = _did_you_mean(name.removeprefix("eval_"), known)
        raise ValueError(
            f"metric_for_best_model={name!r} is not a metric of the evaluation{nearest}; known: {', '.join(known)}"
        )


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
    if not given.get("do_train", True):
        # Whoever only evaluates may do so on any split, also a file's only one.
        test = train if data_args.dataset_test_split == data_args.dataset_train_split else test
        if test is None:
            raise ValueError(
                f"there is nothing to do: do_train is false, and data set {name!r} has no split "
                f"{data_args.dataset_test_split!r} to evaluate on; name one with --dataset_test_split"
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
    pairs = formats.convert(train, data_args.dataset_format, split="train", **convert)
    if data_args.dataset_margins and (pairs is train or "margin" not in (pairs.column_names or next(iter(pairs)))):
        kind = "rows that are pairs already are used as they are" if pairs is train else "their format has no ratings"
        raise ValueError(f"--dataset_margins has no effect on data set {name!r}: {kind}; leave it out")
    return pairs, None if test is None else formats.convert(test, data_args.dataset_format, split="eval", **convert)


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
        default = "<model>-Reward" if action.dest == "output_dir" else action.default
        if action.dest not in ("help", "config") and default is not None:
            action.help = f"{action.help or ''} (default: {str(default).replace('%', '%%')})"
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


def _parse_train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given, by flag or in the config file, each of its option's type."""
    namespace, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        nearest = _did_you_mean(unknown[0].split("=")[0], _flags(parser._actions))
        raise _UsageError(f"unknown argument {unknown[0]!r}{nearest}")
    given = vars(namespace)
    file = given.pop("config", None)
    return given if file is None else {**_read_config(Path(file), parser), **given}


def _read_config(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the options in a YAML file, turned into their types as the flags' texts are.

    FileNotFoundError and ValueError name the file, and the key where one is wrong.
    """
    import yaml

    if file.is_dir():
        raise ValueError(f"config file {str(file)!r} is a directory; name the .yaml file in it")
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
    _require_one_of_each(file, [str(key.value) for key, _ in yaml.compose(text).value])
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


def _require_one_of_each(file: Path, keys: Sequence[str]) -> None:
    """ValueError for a key given twice, of which YAML would take the last in silence."""
    names = [key.replace("-", "_") for key in keys]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"config file {str(file)!r}: key {twice!r} is there twice; leave one out")


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
        if not _may_be_list(name):
            raise _UsageError(f"{name}: takes one value, not the list {value!r}")
        wrong = [item for item in value if not isinstance(item, str)]
        if wrong:
            raise _UsageError(f"{name}: the list's {wrong[0]!r} is no text; write it in quotes")
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


@dataclass(frozen=True)
class Verb:
    """A word of the command. help: its line in --help. run: does it, from the arguments after the word."""

    help: str
    run: Callable[[list[str]], None]


VERBS = {
    "train": Verb("train a reward model on preference pairs", _run_train),
    "demo": Verb("train, save, reload and score a tiny reward model on real text", _run_demo),
}
