"""What the tests of the engines run: DDP, FSDP 2, ZeRO-2 and ZeRO-3 on so many gloo processes, forked from one that has imported.

Run as `python engine_runs.py NUM_PROCESSES MODEL_PATH LANGUAGE_MODEL_PATH FOLDER`; leaves what each process saw.
"""

import contextlib
import gc
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import text_pairs
from processes import config, fsdp_on_a_cpu, uneven_pairs, whole_parameters

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
# The rest of examples/distributed/, as `accelerate launch` reads it.
LAUNCHED = ["FSDP launched", "ZeRO-2 launched", "ZeRO-3 launched"] if HAS_DEEPSPEED else ["FSDP launched"]
ENGINES = ["DDP", "FSDP", "ZeRO-2", "ZeRO-3"] if HAS_DEEPSPEED else ["DDP", "FSDP"]
# Pairs of a training set and of an optimizer step: the last step has 5, and on 3 processes the last micro-batch of 2 a
# process has fillers.
NUM_PAIRS, STEP_PAIRS, STEPS = 29, 12, 6
# What a run trains: as a tree and padded, full and LoRA, from rows and from a stream, from a model without a head.
RUNS = {
    "tree": {"packing": "auto", "accumulation": 2},
    "padded stream": {"packing": "off", "streamed": True},
    "tree LoRA checkpointed": {"packing": "auto", "lora": True, "accumulation": 2, "gradient_checkpointing": True},
    "tree new head": {"packing": "auto", "new_head": True, "gradient_checkpointing": True, "margins": True},
}
REFERENCES = {name: {**run, "packing": "off", "accumulation": 1} for name, run in RUNS.items()}
LOGGED = "loss grad_norm num_tokens min_reward mean_reward max_reward accuracy ties margin".split()
SIZES = (1, 2, 3, 5, 7)
LONG_SIZES = (1, 5)


@contextlib.contextmanager
def engine(name, folder):
    """Hold an engine for the trainers made inside; gives what RewardConfig has to be told."""
    if name == "DDP":
        yield {}
    elif name == "FSDP":
        with fsdp_on_a_cpu():
            yield {"fsdp": True, "fsdp_config": {"version": 2}}
    elif name == "FSDP launched":
        with fsdp_on_a_cpu(), variables(launched("fsdp2.yaml")):
            yield {}
    elif name.endswith("launched"):
        with variables(launched(f"deepspeed_{name.split()[0].lower().replace('-', '')}.yaml")), zero():
            yield {"use_cpu": False, "ddp_backend": "gloo"}
    else:
        stage = {"stage": int(name[-1]), "stage3_param_persistence_threshold": 0}
        sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
        values = {"zero_optimization": stage, "gradient_clipping": "auto", **dict.fromkeys(sizes, "auto")}
        file = folder / f"{name}-{os.environ['RANK']}.json"
        file.write_text(json.dumps(values))
        config_file = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
        with variables(config_file), zero():
            yield {"use_cpu": False, "ddp_backend": "gloo"}


@contextlib.contextmanager
def variables(values):
    """Hold variables of the environment, and take back whatever is set meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def zero():
    """Forget DeepSpeed's options at the end: models would go on to be partitioned as they are loaded."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        gc.collect()


def launched(example):
    """Return the variables that `accelerate launch --config_file examples/distributed/<example>` gives its processes."""
    from accelerate.commands import launch as command
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = Path(__file__).parents[1] / "examples" / "distributed" / example
    options = ["--num_processes", str(num_processes()), "--mixed_precision", "no", "--main_process_port", "0"]
    given = ["--config_file", str(file), *options, "-m", "plaudit", "train"]
    args, defaults, _ = command._validate_launch_command(command.launch_command_parser().parse_args(given))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        env = prepare_deepspeed_cmd_env(args)[1]
    else:
        env = prepare_multi_gpu_env(args)
    return {name: value for name, value in env.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def num_processes():
    return int(os.environ.get("WORLD_SIZE", "1"))


def rows_of(run):
    from datasets import Dataset

    rows = uneven_pairs(NUM_PAIRS)
    if run.get("margins"):
        rows = [{**row, "margin": 0.1 + 0.001 * i} for i, row in enumerate(rows)]
    return Dataset.from_list(rows)


def trainer_of(paths, folder, run, **values):
    """Return a trainer of STEP_PAIRS pairs an optimizer step, and what it trains on."""
    from peft import LoraConfig

    from plaudit import RewardTrainer

    run = dict(run)
    rows, streamed = rows_of(run), run.pop("streamed", False)
    accumulation, lora = run.pop("accumulation", 1), run.pop("lora", False)
    run.pop("margins", None)
    model = paths["language model" if run.pop("new_head", False) else "model"]
    own = {
        "per_device_train_batch_size": STEP_PAIRS // num_processes() // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "max_grad_norm": 2.0,
        "center_rewards_coefficient": 0.01,
    }
    trainer = RewardTrainer(
        model,
        config(folder, **{**own, **run, **values}),
        train_dataset=rows.to_iterable_dataset() if streamed else rows,
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4) if lora else None,
    )
    return trainer, rows


def held(model):
    """Return the kinds of a model's parameters, and which share of all its weights this process holds."""
    from plaudit.partitioned import whole_shape

    kinds, here, whole = set(), 0, 0
    for each in model.parameters():
        kinds.add("partitioned" if hasattr(each, "ds_id") else type(each).__name__)
        mine = getattr(each, "ds_tensor", getattr(each, "_local_tensor", each))
        # Gathered, a partitioned weight would not be empty.
        here += max(mine.numel(), each.numel() if hasattr(each, "ds_id") else 0)
        whole += whole_shape(each).numel()
    return {"kinds": sorted(kinds), "share": here / whole}


def engine_of(trainer):
    """Return what computes: the class of what Trainer calls, and DeepSpeed's stage."""
    wrapped = trainer.model_wrapped
    stage = wrapped.zero_optimization_stage() if hasattr(wrapped, "zero_optimization_stage") else None
    return [type(wrapped).__name__, stage]


def figures_of(metrics):
    return {key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second", "epoch"))}


def weights_of(model):
    import torch

    return torch.cat([value.flatten() for _, value in whole_parameters(model)])


def trained(paths, folder, run, **values):
    """Train, evaluate, predict and save; return what was logged, held and computed."""
    from transformers import TrainerCallback

    seen = {"held": [], "trees": [], "computed": 0, "gradients_between": set()}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen["held"].append(held(model))

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            seen["gradients_between"] |= {type(each.grad).__name__ for each in model.parameters() if each.requires_grad}

    trainer, rows = trainer_of(paths, folder, run, **values)
    trainer.add_callback(Look())
    prepare = trainer._prepare_inputs

    def noted(inputs):
        if trainer.is_in_train:
            seen["trees"].append("tree" in inputs)
            seen["computed"] += inputs["input_ids"].numel()
        return prepare(inputs)

    trainer._prepare_inputs = noted
    trainer.train()
    weights = weights_of(trainer.model)
    metrics, predictions = trainer.evaluate(rows), trainer.predict(rows).predictions.tolist()
    brought = []
    save = trainer._save
    trainer._save = lambda folder, state=None: (brought.extend(state or ()), save(folder, state))
    trainer.save_model()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "logs": [{name: entry[name] for name in LOGGED} for entry in logs],
        "train_loss": trainer.state.log_history[-2]["train_loss"],
        "weights": weights[::7].tolist(),
        "num_weights": len(weights),
        "evaluation": figures_of(metrics),
        "predictions": predictions,
        "engine": engine_of(trainer),
        "saved": str(folder),
        "brought_together": brought,
        **seen,
        "gradients_between": sorted(seen["gradients_between"]),
    }


def evaluated(paths, folder, sizes, **values):
    """Evaluate without training: so many pairs, as rows and as a stream, predict them, and a benchmark of three rows."""
    from datasets import Dataset

    from plaudit import RewardTrainer
    from plaudit.sharding import reshard

    seen = []

    def compute_metrics(prediction):
        seen.append([prediction.predictions.tolist(), prediction.label_ids.tolist()])
        return {"pairs_seen": len(prediction.label_ids)}

    folder.mkdir(parents=True, exist_ok=True)
    best_of = folder / os.environ.get("RANK", "0") / "best of three.jsonl"
    best_of.parent.mkdir(exist_ok=True)
    answers = [{"prompt": f"{i}?", "responses": ["yes", f"no {i}", "no"], "correct": [1, 0, 0]} for i in range(3)]
    best_of.write_text("".join(json.dumps(row) + "\n" for row in answers))
    sets = {size: Dataset.from_list(text_pairs(size, seed=size)) for size in sizes}
    trainer = RewardTrainer(
        paths["model"],
        config(folder, per_device_eval_batch_size=2, eval_benchmarks=[str(best_of)], **values),
        eval_dataset={f"{size}": data for size, data in sets.items()}
        | {f"stream{size}": data.to_iterable_dataset() for size, data in sets.items()},
        compute_metrics=compute_metrics,
    )
    metrics = trainer.evaluate()
    found = {
        "metrics": figures_of(metrics),
        "seen": seen,
        "predictions": {size: trainer.predict(data).predictions.tolist() for size, data in sets.items()},
        "prediction_metrics": {size: figures_of(trainer.predict(data).metrics) for size, data in sets.items()},
        "layout": type(trainer._batch_layout).__name__,
    }
    # FSDP leaves some weights gathered after a forward.
    reshard(trainer.model)
    return {**found, "held": held(trainer.model)}


def resumed(paths, folder, run, **values):
    """Train with a checkpoint half-way, then again from it; and save, train and save what never trained or trains twice."""
    kept = {"save_strategy": "steps", "save_steps": STEPS // 2, **values}
    whole, rows = trainer_of(paths, folder / "whole", run, **kept)
    whole.train()
    found = {"weights": weights_of(whole.model)[::7].tolist(), "predictions": whole.predict(rows).predictions.tolist()}
    again, _ = trainer_of(paths, folder / "again", run, **kept)
    # Where the first process alone has read the weights, the others hold none yet.
    on_first = any(each.is_meta for each in again.model.parameters())
    start = None if on_first else weights_of(again.model)[::7].tolist()
    again.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{STEPS // 2}"))
    return {
        "whole": found,
        "start": start,
        "read_by_first": on_first,
        "again": {
            "weights": weights_of(again.model)[::7].tolist(),
            "predictions": again.predict(rows).predictions.tolist(),
        },
        "logs": [
            [{name: entry[name] for name in LOGGED} for entry in each.state.log_history if "loss" in entry]
            for each in (whole, again)
        ],
        "engine": engine_of(again),
        "held": held(again.model),
        "steps": again.state.global_step,
        "checkpoints": [str(folder / "whole" / f"checkpoint-{step}") for step in (STEPS // 2, STEPS)],
    }


def untrained_and_twice(paths, folder, **values):
    """Save and evaluate before training, train, and train again; what is diagnosed, and what margins become."""
    import torch

    trainer, rows = trainer_of(paths, folder / "before", {"packing": "auto"}, **{**values, "max_steps": 2})
    trainer.save_model()
    before = trainer.predict(rows).predictions.tolist()
    evidence = list(trainer.diagnose().evidence)
    trainer.train()
    first = weights_of(trainer.model)[::7].tolist()
    # Trainer would go on with the moments of the first training, but for DeepSpeed's.
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    second = weights_of(trainer.model)[::7].tolist()
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        # As with "bf16": {"enabled": true}, which a CPU does not train in.
        plugin.hf_ds_config._dtype = torch.bfloat16
    prepared = trainer._prepare_inputs({"margin": torch.tensor([0.1234567])})["margin"]
    trainer.save_model(str(folder / "after"))
    return {
        "before": before,
        "first": first,
        "second": second,
        "after": trainer.predict(rows).predictions.tolist(),
        "evidence": evidence,
        "margin": [str(prepared.dtype), prepared.item()],
        "saved": [str(folder / "before"), str(folder / "after")],
    }


def grown(paths, folder, **values):
    """Train a LoRA adapter with a template that brings new tokens, so that the embeddings grow, and save it."""
    trainer, rows = trainer_of(
        paths, folder, {"packing": "auto", "lora": True}, chat_template_path=paths["grown"], **values
    )
    trainer.train()
    trainer.save_model()
    return {
        "predictions": trainer.predict(rows).predictions.tolist(),
        "saved": str(folder),
        "vocabulary": len(trainer.processing_class),
    }


def everything(paths, folder):
    """Run every scenario that so many processes have; one process is what the others are compared with."""
    processes = num_processes()
    results = {"evaluated": {"DDP": evaluated(paths, folder / "evaluated", SIZES)}, "trained": {}}
    if processes == 1:
        results["trained"] = {name: trained(paths, folder / name, run) for name, run in REFERENCES.items()}
        results["grown"] = {"DDP": grown(paths, folder / "grown")}
        return results
    for name in ENGINES:
        with engine(name, folder) as values:
            results["trained"][name] = {
                run: trained(paths, folder / f"{name} {run}", RUNS[run], **values) for run in RUNS
            }
            if name != "DDP":
                results["evaluated"][name] = evaluated(paths, folder / f"{name} evaluated", LONG_SIZES, **values)
    return results if processes > 2 else results | saves(paths, folder)


def saves(paths, folder):
    """Run what saves and resumes, under every engine."""
    results = {"resumed": {}, "twice": {}, "grown": {}}
    for name in [*ENGINES, *LAUNCHED]:
        with engine(name, folder) as values:
            run = RUNS["tree new head" if name in LAUNCHED else "tree"]
            results["resumed"][name] = resumed(paths, folder / f"{name} resumed", run, **values)
            if name in ENGINES:
                results["twice"][name] = untrained_and_twice(paths, folder / f"{name} twice", **values)
            if name in ("FSDP", "ZeRO-3"):
                lora = RUNS["tree LoRA checkpointed"]
                results["resumed"][f"{name} LoRA"] = resumed(paths, folder / f"{name} LoRA resumed", lora, **values)
                results["grown"][name] = grown(paths, folder / f"{name} grown", **values)
    return results


def become(rank, processes, port):
    """Set what torchrun sets for one process."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_ADDR="127.0.0.1")


def run_one(rank, paths, folder):
    """Run everything as one process of the group, and write what it saw."""
    output = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        result = everything(paths, folder)
        # Left to the interpreter's end, the group's threads may be destroyed while they run.
        from accelerate import PartialState

        PartialState().destroy_process_group()
        (folder / f"{rank}.json").write_text(json.dumps(result))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fork_all(processes, paths, folder):
    """Import once, fork so many processes, and wait for all; the first that fails ends the others."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import plaudit.trainer  # noqa: F401

    if HAS_DEEPSPEED:
        import deepspeed

        # An operation of a CPU's inference, for which a compiler would run for a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gc.freeze()  # Every run collects garbage, which would go through all that was imported.
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            become(rank, processes, port)
            random.seed(0)
            run_one(rank, paths, folder)
        children.append(child)
    failed = 0
    while children and not failed:
        child, status = os.wait()
        children.remove(child)
        failed = status
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return 1 if failed else 0


def launch(processes, paths, folder, timeout=480):
    """Return what each of so many processes saw, in the order of their ranks."""
    with (folder / "launcher.log").open("w") as log:
        command = [sys.executable, __file__, str(processes), json.dumps(paths), str(folder)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        start = time.monotonic()
        launcher = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            code = launcher.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, 9)
            code = f"nothing after {time.monotonic() - start:.0f} seconds"
    logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(folder.glob("*.log")))
    assert code == 0, f"{code}\n{logs}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


if __name__ == "__main__":
    sys.exit(fork_all(int(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])))
