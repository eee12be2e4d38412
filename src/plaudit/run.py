"""One training run from names: a model, a data set and options in, a saved and evaluated reward model out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType

from plaudit import checkpoints, formats, loading, report
from plaudit.config import RewardConfig
from plaudit.metrics import pair_metrics
from plaudit.options import ADAPTER_OPTIONS, OWN_OPTIONS, DataArguments, ModelArguments, did_you_mean, taken
from plaudit.say import say
from plaudit.setup import default_output_dir
from plaudit.trainer import RewardTrainer
from plaudit.training_results import write_training_results


def train(given: Mapping[str, Any]) -> RewardTrainer:
    """Train, save and evaluate as the options say, write the results and the report, and return the trainer.

    given: the options of `plaudit train` by name, only those that were chosen; `model_name_or_path` and `dataset_name`
    must be among them. Raises ValueError for options that contradict each other, and whatever loading them raises.
    """
    trainer = build(given)
    config, data = trainer.args, given["dataset_name"]
    # The card links data sets on the Hub; a path of this machine would say nothing to its readers.
    on_hub = None if Path(data).expanduser().exists() else data
    if given.get("do_train", True):
        _train_and_save(trainer)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if given.get("do_train", True):
        # Once more, with the last evaluation in its log.
        trainer.save_state()
        trainer.create_model_card(dataset_name=on_hub)
        if config.push_to_hub:
            trainer.push_to_hub(dataset_name=on_hub)
    if trainer.is_world_process_zero():
        _leave_results(trainer)
    return trainer


def build(given: Mapping[str, Any]) -> RewardTrainer:
    """Return the trainer that the options describe, its data prepared and nothing trained. given, errors: as of `train`."""
    given = dict(given)
    model_args = ModelArguments(**taken(given, ModelArguments))
    data_args = DataArguments(**taken(given, DataArguments))
    model = given["model_name_or_path"]
    peft_config = _peft_config(model_args, given)
    given.setdefault("output_dir", default_output_dir(model))
    config = RewardConfig(**{name: value for name, value in given.items() if name not in OWN_OPTIONS})
    config.model_init_kwargs = _model_init_kwargs(model_args, config)
    _check_together(data_args, config, given)
    with config.main_process_first(desc="loading the data"):
        train_dataset, test_dataset = _load_data(data_args, config, given)
    trainer = RewardTrainer(
        model,
        config,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        peft_config=peft_config,
    )
    if trainer.benchmark_sets is not None:
        of_benchmarks = trainer.benchmark_sets.figure_names()
        _check_best_metric(config.metric_for_best_model, of_benchmarks, has_pairs=test_dataset is not None)
    return trainer


def _leave_results(trainer: RewardTrainer) -> None:
    """Write what the evaluation found, and the page; a run that is finished and saved never fails here."""
    folder = str(trainer.args.output_dir)
    if trainer.eval_dataset is None:
        # The page of the training curves alone.
        report.try_report(folder)
        return
    try:
        write_training_results(trainer, folder, name="held-out data")
    except Exception as error:
        say(f"the results of the evaluation were not written: {type(error).__name__}: {' '.join(str(error).split())}")


def _train_and_save(trainer: Any) -> None:
    """Train and save, before an evaluation could lose the training."""
    if trainer.args.should_save:
        # What is trained is to be saved, also where no checkpoints are.
        checkpoints.require_writable(trainer.args.output_dir)
    result = trainer.train(resume_from_checkpoint=_resume_from(trainer.args.resume_from_checkpoint))
    trainer.save_model()
    trainer.save_state()
    # Trainer adds what the last logged interval saw, which beside the run's own figures would pass for the run's.
    figures = {name: value for name, value in result.metrics.items() if name not in _pair_figures()}
    trainer.log_metrics("train", figures)
    trainer.save_metrics("train", figures)


def _pair_figures() -> list[str]:
    return list(pair_metrics([1.0], [0.0]))  # type: ignore[arg-type]  # anything that numpy can make an array of


def _check_together(data_args: DataArguments, config: RewardConfig, given: Mapping[str, Any]) -> None:
    """ValueError for options that cannot work together, before anything is loaded."""
    if given.get("do_predict"):
        raise ValueError("--do_predict has nothing to write to; use RewardTrainer.predict in Python, or leave it out")
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
    if not config.eval_benchmarks:
        # What a benchmark's figures are called is known once it is read.
        _check_best_metric(config.metric_for_best_model)


def _check_best_metric(name: str | None, of_benchmarks: Sequence[str] = (), has_pairs: bool = True) -> None:
    # compute_metrics, which could give others, is for Python only. The three before the benchmarks' are Trainer's own.
    own = ["loss", "num_tokens", "runtime", "samples_per_second", "steps_per_second"]
    known = [*(_pair_figures() + own if has_pairs else []), *of_benchmarks]
    if name is not None and name.removeprefix("eval_") not in known:
        nearest = did_you_mean(name.removeprefix("eval_"), known)
        raise ValueError(
            f"metric_for_best_model={name!r} is not a metric of the evaluation{nearest}; known: {', '.join(known)}"
        )


def _load_data(data_args: DataArguments, config: RewardConfig, given: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the training rows and the test rows (or None), converted where a format was asked for."""
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
        if test is None and not config.eval_benchmarks:
            raise ValueError(
                f"there is nothing to do: do_train is false, and data set {name!r} has no split "
                f"{data_args.dataset_test_split!r} to evaluate on; name one with --dataset_test_split"
            )
    asked = _test_split_wanted_by(config, given)
    if test is None and asked is not None:
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


def _test_split_wanted_by(config: RewardConfig, given: Mapping[str, Any]) -> str | None:
    """Return the option that asks for an evaluation on a test split; None for none, as where there are benchmarks."""
    strategy = str(getattr(config.eval_strategy, "value", config.eval_strategy))
    if not config.eval_benchmarks and (strategy != "no" or config.do_eval):
        # RewardConfig turns do_eval on by itself when there is an eval_strategy.
        return f"eval_strategy={strategy}" if strategy != "no" else "do_eval"
    return "dataset_test_split" if "dataset_test_split" in given else None


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


def _model_init_kwargs(model_args: ModelArguments, config: RewardConfig) -> dict[str, Any] | None:
    """Return the config's keyword arguments for loading with those of the model's flags; ValueError where they differ."""
    # RewardConfig has made a dict of JSON.
    kwargs: dict[str, Any] = dict(config.model_init_kwargs or {})  # type: ignore[arg-type]
    flags = [("revision", "model_revision"), ("dtype", "dtype"), ("dtype", "torch_dtype")]
    for key, flag in [*flags, ("attn_implementation", "attn_implementation")]:
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


def _quantization(model_args: ModelArguments, config: RewardConfig) -> Any:
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
