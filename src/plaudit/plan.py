"""A training on paper before it is paid for: what it takes of memory and time on which engine, and the command to run."""

import json
import math
import shlex
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plaudit import duration, footprint, machines, shapes, workload
from plaudit.footprint import ENGINES, Method, Setting
from plaudit.machines import HERE, Machine
from plaudit.options import check_fields, did_you_mean, option
from plaudit.plan_text import describe
from plaudit.score_rows import written_whole
from plaudit.shapes import Shape
from plaudit.workload import LAYOUTS, Load, Workload

PRECISIONS = ("bfloat16", "float32")
# Of an accelerator's memory, what a plan fills.
FILLED = 0.92
LARGEST_MICRO_BATCH = 64
# Matrices reach their usual share of the peak with some thousand rows at a time.
ENOUGH_TOKENS = 4096
# A setting has to save a tenth to be preferred to a simpler one: no plan is more exact than that.
WORTH = 0.9


@dataclass(frozen=True)
class Plan:
    """What is to be trained, on what; the options of `plaudit plan`. ValueError for impossible ones."""

    model: str = option(
        "A directory or Hub id, whose config is read; a published shape such as llama-3.1-8b; or layers=..,hidden=..,"
        "heads=..,kv_heads=..,intermediate=..,vocab=..",
        MISSING,
        also="--model_name_or_path",
    )
    data: str = option(
        "Pairs as plaudit audit reads them, an audit.json, or pairs=..,prompt=..,answer=.. in tokens.",
        MISSING,
        also="--dataset_name",
    )
    gpu: str = option("Kind of accelerator, such as h100; 'here' measures this machine.", MISSING)
    gpus: int = option("How many of them.", 1)
    gpus_per_node: int = option("How many a machine holds; beyond, messages take the network.", 8)
    batch_pairs: int = option("Pairs of an optimizer step, over all accelerators.", 64)
    micro_batch: int | None = option("Pairs at a time on each; the most that fits and gains unless given.")
    max_length: int = option("Pairs with a longer side are dropped, as in training; 0 for no limit.", 1024)
    epochs: float = option("Times that the data are gone through.", 1.0)
    precision: str | None = option("Of the arithmetic; bfloat16 where the machine has it.", choices=PRECISIONS)
    dtype: str = option("Of the weights.", "float32", choices=PRECISIONS)
    use_peft: bool = option("Train a LoRA adapter instead of the whole model.", False)
    lora_r: int = option("Rank of the adapter.", 16)
    lora_target_modules: tuple[str, ...] | None = option(
        "Matrices to adapt, or all-linear; those that peft adapts in this kind of model unless given.", nargs="+"
    )
    engine: str = option("How the accelerators share the work.", "auto", choices=("auto", *ENGINES))
    gradient_checkpointing: str = option(
        "Compute activations again instead of keeping them.", "auto", choices=("auto", "true", "false")
    )
    mfu: float | None = option("Share of the peak that training reaches, 0 to 1, instead of the kind's usual one.")
    tokenizer: str | None = option("What counts the rows' tokens; the model's own, where it has one, unless given.")
    config: str | None = option("Configuration (subset) of the data set.", also="--dataset_config")
    split: str | None = option("Split to train on; the only one, or 'train', unless given.")
    sample: int = option("Rows whose tokens are counted; 0 for all.", 2000)
    trust_remote_code: bool = option("Run the model's own Python code.", False)
    json: str | None = option("File to write the plan to as JSON; - prints that instead.")

    def __post_init__(self) -> None:
        if isinstance(self.lora_target_modules, (str, list)):
            targets = self.lora_target_modules
            object.__setattr__(self, "lora_target_modules", (targets,) if isinstance(targets, str) else tuple(targets))
        check_fields(self)
        for name in ("model", "data", "gpu"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is {getattr(self, name)!r}, which names nothing; see plaudit plan --help")
        for name in ("gpus", "gpus_per_node", "batch_pairs", "micro_batch", "lora_r"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be 1 or more")
        for name in ("max_length", "sample"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0, for no limit, or more")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs}, but must be a number above 0")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}, but must be a share above 0, at most 1")
        if self.mfu is not None and self.gpu == HERE:
            raise ValueError(
                f"mfu is {self.mfu}, but the share is measured where gpu is {HERE!r}; leave one of them out"
            )
        if self.lora_target_modules is not None and not self.use_peft:
            raise ValueError("lora_target_modules is given without use_peft, which it needs; add --use_peft")
        if self.lora_r != 16 and not self.use_peft:
            raise ValueError(f"lora_r is {self.lora_r}, which needs use_peft; add --use_peft")
        self._require_divisible()

    def _require_divisible(self) -> None:
        """Raise ValueError where the pairs of a step cannot be divided as told."""
        if self.batch_pairs % self.gpus:
            raise ValueError(
                f"batch_pairs is {self.batch_pairs}, which {self.gpus} gpus do not divide; take a multiple of {self.gpus}"
            )
        if self.micro_batch is not None and self.pairs_each % self.micro_batch:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, which does not divide the {self.pairs_each} pairs that each of {self.gpus} gpus "
                f"takes of batch_pairs {self.batch_pairs}"
            )
        if self.engine == "single" and self.gpus > 1:
            raise ValueError(f"engine 'single' uses one gpu, and gpus is {self.gpus}; leave one of them out")
        if self.engine not in ("auto", "single") and self.gpus == 1:
            raise ValueError(f"engine {self.engine!r} divides work among several gpus, and gpus is 1; leave engine out")

    @property
    def pairs_each(self) -> int:
        """Pairs of a step on one accelerator."""
        return self.batch_pairs // self.gpus


def plan(model: str, data: str, gpu: str, **options: Any) -> dict[str, Any]:
    """Return a training's plan as values that JSON can hold: the setting advised, what it costs in either layout, and the
    other engines. options: the fields of Plan. See docs/planning.md for each figure.

    ValueError for what cannot be read or makes no sense. Where nothing fits, `advised` is None and `cures` says what would.
    """
    return _planned(Plan(model, data, gpu, **options))


def run(**given: Any) -> str:
    """Return what `plaudit plan` prints. given: the fields of Plan."""
    asked = Plan(**given)
    output = None if asked.json in (None, "-") else Path(str(asked.json)).expanduser()
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise ValueError(f"json {asked.json!r} cannot be written; name a file in a directory that is there, or -")
    found = _planned(asked)
    as_json = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False)
    if output is not None:
        with written_whole(output) as aside:
            aside.write_text(as_json + "\n", encoding="utf-8")
    return as_json if asked.json == "-" else describe(found)


@dataclass(frozen=True)
class Case:
    """All that a plan is made of. config: the model's, of transformers, or its values. padded_because: why there is no tree."""

    asked: Plan
    shape: Shape
    config: Any
    method: Method
    machine: Machine
    work: Workload
    padded_because: str | None

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts that the model can take, the better one last."""
        return LAYOUTS if self.padded_because is None else LAYOUTS[:1]


def _planned(asked: Plan) -> dict[str, Any]:
    case = _case(asked)
    tried = _try_all(case)
    fitting = [one for one in tried if one["fits"]]
    if case.machine.name == HERE and fitting:
        # What is measured are the advised setting's layers, in its own batches.
        case = _measured(case, _setting_of(_best(fitting), case))
        tried = _try_all(case)
        fitting = [one for one in tried if one["fits"]]
    best = _best(fitting) if fitting else None
    shown = best or min(tried, key=lambda one: one["memory"]["total"])
    return {
        "model": {"name": asked.model, "parameters": case.shape.parameters, "layers": case.shape.layers,
                  "hidden": case.shape.hidden, "trained": footprint.trainable(case.shape, case.method)},
        "data": {"source": case.work.source, "pairs": case.work.pairs, "over_max_length": case.work.over,
                 "max_length": case.work.max_length, "lengths": case.work.lengths},
        "machine": {**asdict(case.machine), "gpus": asked.gpus, "gpus_per_node": asked.gpus_per_node},
        "method": {**asdict(case.method), "computed_in": case.method.computed_in, "epochs": asked.epochs, "batch_pairs": asked.batch_pairs},
        "advised": best,
        "layouts": {layout: _judged(case, replace(_setting_of(shown, case), layout=layout)) for layout in case.layouts},
        "padded_because": case.padded_because,
        "engines": {engine: _best_of_engine(tried, engine) for engine in _engines(asked)},
        "cures": [] if best else _cures(case),
        "command": None if best is None else _command(asked, best),
    }  # fmt: skip


def _case(asked: Plan) -> Case:
    shape, config = shapes.named(asked.model), None
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    padded_because = None
    if shape is None:
        if "/" not in asked.model and not Path(asked.model).expanduser().is_dir():
            near = did_you_mean(asked.model.lower(), shapes.CONFIGS)
            known = ", ".join(shapes.CONFIGS)
            raise ValueError(f"model {asked.model!r} is neither a directory nor a known shape{near}; known: {known}")
        # Only here, because it takes torch.
        from plaudit import blueprint

        config, shape, targets, padded_because = blueprint.read(asked.model, asked.trust_remote_code)
    machine = machines.Machine(HERE, 1, 1, 1, 1) if asked.gpu == HERE else machines.named(asked.gpu)
    method = _method(asked, shape, machine, targets)
    if asked.gpu == HERE:
        from plaudit import slices

        machine = slices.measure_machine(method.computed_in)
    machine.peak(method.computed_in)
    if asked.mfu is not None:
        machine = replace(machine, shares=dict.fromkeys(LAYOUTS, asked.mfu))
    _require_rows(asked)
    tokenizer = _tokenizer(asked, config is not None)
    where = {"config": asked.config, "split": asked.split, "sample": asked.sample}
    work = workload.read(asked.data, asked.max_length or None, tokenizer, **where)
    return Case(asked, shape, config, method, machine, work, padded_because)


def _method(asked: Plan, shape: Shape, machine: Machine, targets: tuple[str, ...]) -> Method:
    precision = asked.precision or _usual_precision(asked, machine)
    if not asked.use_peft:
        # What an adapter, which may be advised, would be put on.
        return Method(precision, asked.dtype, targets=targets)
    chosen = asked.lora_target_modules or targets
    shape.lora_targets(chosen)
    return Method(precision, asked.dtype, asked.lora_r, chosen)


def _usual_precision(asked: Plan, machine: Machine) -> str:
    """Return the precision that a training takes unless told."""
    if asked.gpu != HERE:
        return "bfloat16" if machine.bfloat16 else "float32"
    from plaudit.config import RewardConfig

    return "bfloat16" if RewardConfig(output_dir="unused").bf16 else "float32"


def _require_rows(asked: Plan) -> None:
    """Raise ValueError for options about rows where the data are figures or an audit."""
    given = next((name for name in ("tokenizer", "config", "split") if getattr(asked, name) is not None), None)
    if given is not None and not workload.has_rows(asked.data):
        raise ValueError(f"{given} is {getattr(asked, given)!r}, but data {asked.data!r} has no rows; leave it out")


def _tokenizer(asked: Plan, has_folder: bool) -> Any:
    """Return what counts the rows' tokens: what was named, else the model's own where it has one."""
    name = asked.tokenizer or (asked.model if has_folder else None)
    if name is None or not workload.has_rows(asked.data):
        return None
    from plaudit import token_sample, trust

    try:
        return token_sample.load_tokenizer(name, trust_remote_code=asked.trust_remote_code)
    except ValueError as error:
        if asked.tokenizer is not None or isinstance(error, trust.Refused):
            raise
        return None


def _measured(case: Case, setting: Setting) -> Case:
    from transformers import AutoConfig

    from plaudit import slices

    config = case.config
    if config is None:
        values = dict(shapes.config_values(case.asked.model) or {})
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    every = case.work.batches(setting.pairs)
    machine = slices.measure_slices(case.machine, config, case.shape, setting, dict.fromkeys(case.layouts, every))
    return replace(case, machine=machine)


# Settings, tried and chosen


def _engines(asked: Plan) -> tuple[str, ...]:
    if asked.engine != "auto":
        return (asked.engine,)
    return ("single",) if asked.gpus == 1 else ENGINES[1:]


def _try_all(case: Case) -> list[dict[str, Any]]:
    """Return every setting that may be advised, judged, in the model's better layout."""
    asked, tried = case.asked, []
    sizes = [asked.micro_batch] if asked.micro_batch else [
        size for size in range(1, min(LARGEST_MICRO_BATCH, asked.pairs_each) + 1) if asked.pairs_each % size == 0
    ]  # fmt: skip
    choices = {"auto": (False, True), "true": (True,), "false": (False,)}[asked.gradient_checkpointing]
    for size in sizes:
        loads = _loads(case, size, case.layouts[-1])
        for engine in _engines(asked):
            for checkpointing in choices:
                setting = Setting(engine, asked.gpus, size, asked.pairs_each // size, case.layouts[-1], checkpointing,
                                  case.method)  # fmt: skip
                tried.append(_judged(case, setting, loads))
    return tried


def _loads(case: Case, size: int, layout: str) -> tuple[Load, Load]:
    """Return what a run's micro-batches of so many pairs hold on average, and the most that one holds."""
    loads = case.work.loads(size)[layout]
    number = math.ceil(case.work.pairs * case.asked.epochs / size)
    return workload.mean(loads), workload.largest([*loads, case.work.largest(size, number)[layout]])


def _judged(case: Case, setting: Setting, loads: tuple[Load, Load] | None = None) -> dict[str, Any]:
    """Return a setting with what it takes of memory and time. loads: of `_loads`, where they are known."""
    usual, most = loads or _loads(case, setting.pairs, setting.layout)
    memory = footprint.footprint(case.shape, setting, most, case.machine)
    seconds = duration.step_seconds(case.shape, setting, usual, case.machine, case.asked.gpus_per_node)
    steps = math.ceil(case.work.pairs / case.asked.batch_pairs)
    whole = steps * case.asked.epochs * seconds["total"]
    tokens = usual.tokens * setting.accumulation * setting.gpus
    return {
        "engine": setting.engine,
        "layout": setting.layout,
        "micro_batch": setting.pairs,
        "accumulation": setting.accumulation,
        "gradient_checkpointing": setting.checkpointing,
        "tokens_a_step": tokens,
        "micro_batch_tokens": usual.tokens,
        "largest_micro_batch_tokens": most.tokens,
        "memory": memory,
        "fits": memory["total"] <= FILLED * case.machine.memory,
        "step_seconds": seconds,
        "steps_an_epoch": steps,
        "hours": whole / 3600,
        "gpu_hours": whole / 3600 * setting.gpus,
        "pairs_a_second": case.asked.batch_pairs / seconds["total"],
        "tokens_a_second": tokens / seconds["total"],
    }


def _best(fitting: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest setting. Of those that are nearly as fast: of the simplest engine, with enough tokens at a time,
    and of these the one that takes the least memory."""
    fastest = min(one["step_seconds"]["total"] for one in fitting)
    near = [one for one in fitting if WORTH * one["step_seconds"]["total"] <= fastest]

    def rank(one: dict[str, Any]) -> tuple:
        tokens = one["micro_batch_tokens"]
        return ENGINES.index(one["engine"]), max(0.0, ENOUGH_TOKENS - tokens), one["memory"]["total"]

    return min(near, key=rank)


def _best_of_engine(tried: list[dict[str, Any]], engine: str) -> dict[str, Any]:
    own = [one for one in tried if one["engine"] == engine]
    fitting = [one for one in own if one["fits"]]
    return _best(fitting) if fitting else min(own, key=lambda one: one["memory"]["total"])


def _setting_of(judged: dict[str, Any], case: Case) -> Setting:
    return Setting(judged["engine"], case.asked.gpus, judged["micro_batch"], judged["accumulation"], judged["layout"],
                   judged["gradient_checkpointing"], case.method)  # fmt: skip


def _cures(case: Case) -> list[str]:
    """Return what would make the training fit, each tried: more accelerators, checkpointing, smaller batches, an adapter."""
    asked, cures = case.asked, []

    def fits(**changes: Any) -> bool:
        new = replace(asked, **{"micro_batch": None, **changes})
        method = replace(case.method, rank=new.lora_r if new.use_peft else None, dtype=new.dtype)
        return any(one["fits"] for one in _try_all(replace(case, asked=new, method=method)))

    if asked.micro_batch is not None and fits():
        cures.append("a smaller --micro_batch (or leave it out)")
    if asked.gradient_checkpointing == "false" and fits(gradient_checkpointing="auto"):
        cures.append("--gradient_checkpointing true")
    if asked.engine != "auto" and fits(engine="auto"):
        cures.append("another engine (leave --engine out)")
    if not asked.use_peft and fits(use_peft=True):
        cures.append("--use_peft, a LoRA adapter")
    if asked.dtype == "float32" and not asked.use_peft and fits(use_peft=True, dtype="bfloat16"):
        cures.append("--use_peft --dtype bfloat16, a LoRA adapter on half-precision weights")
    for factor in (2, 4, 8, 16, 32, 64):
        gpus = asked.gpus * factor
        more = {"gpus": gpus, "batch_pairs": max(asked.batch_pairs, gpus), "engine": "auto"}
        if max(asked.batch_pairs, gpus) % gpus == 0 and fits(**more):
            cures.append(f"--gpus {gpus}" + (f" --batch_pairs {gpus}" if gpus > asked.batch_pairs else ""))
            break
    return cures


# The command


_FILES = {"ddp": "ddp", "fsdp2": "fsdp2", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3"}


def _command(asked: Plan, best: dict[str, Any]) -> str:
    """Return the command line that trains as the plan says."""
    words = ["plaudit train"]
    if asked.gpus > 1:
        words = [f"accelerate launch --config_file examples/distributed/{_FILES[best['engine']]}.yaml",
                 f"--num_processes {asked.gpus}"]  # fmt: skip
        nodes = -(-asked.gpus // asked.gpus_per_node)
        # What only the user knows; the command is started on each machine.
        where = "--main_process_ip <first machine> --main_process_port 29500 --machine_rank <0 on the first>"
        words += [f"--num_machines {nodes} {where}"] if nodes > 1 else []
        words.append("-m plaudit train")
    is_name = shapes.config_values(asked.model) is None
    words.append(f"--model_name_or_path {shlex.quote(asked.model) if is_name else '<model>'}")
    is_data = workload.has_rows(asked.data)
    words.append(f"--dataset_name {shlex.quote(asked.data) if is_data else '<data>'}")
    words += [f"--dataset_config {shlex.quote(asked.config)}"] if asked.config else []
    words += [f"--dataset_train_split {shlex.quote(asked.split)}"] if asked.split else []
    words.append(f"--per_device_train_batch_size {best['micro_batch']}")
    words += [f"--gradient_accumulation_steps {best['accumulation']}"] if best["accumulation"] > 1 else []
    words.append(f"--gradient_checkpointing {str(best['gradient_checkpointing']).lower()}")
    words.append(f"--max_length {asked.max_length or 'none'}")
    words.append(f"--num_train_epochs {asked.epochs:g}")
    # What the training would choose by itself is left out.
    words += ["--dtype bfloat16"] if asked.dtype == "bfloat16" else []
    words += [f"--bf16 {str(asked.precision == 'bfloat16').lower()}"] if asked.precision else []
    if asked.use_peft:
        words.append(f"--use_peft --lora_r {asked.lora_r}")
        words += [f"--lora_target_modules {shlex.join(asked.lora_target_modules)}"] if asked.lora_target_modules else []
    words += ["--trust_remote_code"] if asked.trust_remote_code else []
    return " ".join(words)
