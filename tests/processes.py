"""What the tests of several processes run: one script, started once a process, that leaves what each process saw.

Run as `python processes.py MODEL_PATH OUTPUT_DIR` with the variables that torchrun sets.
"""

import contextlib
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from conftest import conversations, text_pairs


def launch(num_processes: int, model_path: str, folder: Path) -> list[dict]:
    """Run this file on num_processes gloo processes and return what each of them saw, in the order of their ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(num_processes):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, model_path, str(folder)]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=240)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


def once(tmp_path_factory, name: str, make):
    """Return what make(folder) gives, made by the first of the test workers that asks, for processes are dear to start."""
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, file = shared / name, shared / f"{name}.json"
    with FileLock(shared / f"{name}.lock"):
        if not file.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            file.write_text(json.dumps(make(folder)))
        return json.loads(file.read_text())


def config(folder, **values):
    from plaudit import RewardConfig

    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }
    return RewardConfig(**{**defaults, **values})


def lone_rewards(model_path, rows, **loading):
    """Rewards of each side in a batch of one, from nothing but transformers."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(model_path, **loading).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rewards = []
    for row in rows:
        for side in ("chosen", "rejected"):
            if isinstance(row["prompt"], str):
                ids = tokenizer(row["prompt"] + row[side])["input_ids"] + [tokenizer.eos_token_id]
            else:
                text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                rewards.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    return np.array(rewards).reshape(-1, 2)


def evaluations(model_path: str, folder: Path) -> dict:
    """Evaluate 9 pairs at 4 a process: two sets, one of them streamed beside a map-style training set, and predict."""
    from datasets import Dataset

    from plaudit import RewardTrainer

    seen = []

    def compute_metrics(prediction, compute_result=True):
        seen.append([prediction.predictions.tolist(), prediction.label_ids.tolist()])
        return {"pairs_seen": len(prediction.label_ids)}

    texts, chats = Dataset.from_list(text_pairs(9)), Dataset.from_list(conversations(7, seed=1))
    # Three answers a row, nine in all, which do not divide by what the processes take at a time.
    folder.mkdir(parents=True, exist_ok=True)
    best_of = folder / f"best-{os.environ.get('RANK', '0')}" / "best of three.jsonl"
    best_of.parent.mkdir(exist_ok=True)
    rows = [{"prompt": f"{i}?", "responses": ["yes", f"no {i}", "no"], "correct": [1, 0, 0]} for i in range(3)]
    best_of.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = RewardTrainer(
        model_path,
        config(folder / "eval", include_for_metrics=["loss", "inputs"], eval_benchmarks=[str(best_of)]),
        train_dataset=texts,
        eval_dataset={"texts": texts, "stream": chats.to_iterable_dataset()},
        compute_metrics=compute_metrics,
    )
    metrics = trainer.evaluate()
    return {
        "metrics": {key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second"))},
        "seen": seen,
        "predictions": trainer.predict(texts).predictions.tolist(),
        "benchmark": [row.rewards for row in _benchmark_rows(trainer)],
    }


def _benchmark_rows(trainer):
    (rows,) = trainer.benchmark_sets.rows(trainer.newest_rewards[trainer.BENCHMARKS][1]).values()
    return rows


def training(model_path: str, folder: Path, num_pairs: int, total_batch: int, accumulation: int = 1, **values) -> dict:
    """Train one epoch with total_batch pairs an optimizer step, however many processes there are."""
    import torch
    from datasets import Dataset

    from plaudit import RewardTrainer

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    streamed = values.pop("streamed", False)
    dataset = Dataset.from_list(text_pairs(num_pairs, seed=2))
    trainer = RewardTrainer(
        model_path,
        config(
            folder / f"train-{num_pairs}-{total_batch}-{accumulation}-{streamed}",
            per_device_train_batch_size=total_batch // processes // accumulation,
            gradient_accumulation_steps=accumulation,
            **{"num_train_epochs": 1, **values},
        ),
        train_dataset=dataset.to_iterable_dataset() if streamed else dataset,
    )
    trainer.train()
    names = ("loss", "grad_norm", "num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")
    logs = [{key: entry[key] for key in names} for entry in trainer.state.log_history if "loss" in entry]
    weights = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    train_loss = trainer.state.log_history[-1]["train_loss"]
    return {"logs": logs, "weights": weights.double().abs().sum().item(), "train_loss": train_loss}


@contextlib.contextmanager
def fsdp_on_a_cpu():
    """Hold accelerate at FSDP where it was asked for: on a CPU it would say nothing and run DDP. For these tests alone."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    initialise = AcceleratorState.__init__

    def hold(self, *args, fsdp_plugin=None, **kwargs):
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            # What accelerate does itself where the processes have accelerators.
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = hold
    try:
        yield
    finally:
        AcceleratorState.__init__ = initialise
        # Accelerator sets it, and every later one in the process would take it up.
        os.environ.pop("ACCELERATE_USE_FSDP", None)


def whole_parameters(model):
    """The names and values of all parameters, whole under whichever engine; every process must ask."""
    from plaudit.partitioned import gathered

    whole = []
    for name, each in model.named_parameters():
        with gathered([each]):
            value = getattr(each, "full_tensor", lambda each=each: each)()
            whole.append((name, value.detach().clone()))
    return whole


def uneven_pairs(count: int) -> list[dict]:
    """Text pairs of which every third has a prompt five times as long."""
    return [
        {**row, "prompt": row["prompt"] * (1 + 4 * (i % 3 == 0))} for i, row in enumerate(text_pairs(count, seed=2))
    ]


def layout_run(
    model_path: str,
    folder: Path,
    packing: str,
    lora: bool = False,
    checkpointed_by_fsdp: bool = False,
    evaluate_first: bool = False,
    **values,
) -> dict:
    """Train 8 pairs a step on 20 uneven pairs for two epochs, then evaluate, predict and save.

    Returns what training gave, and what this process held: at each step the types of the parameters and the share of
    all weights; of each micro-batch the pairs, their tokens, and the tokens computed.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from plaudit import RewardTrainer
    from plaudit.partitioned import whole_shape

    held = {"pairs": [], "tokens": [], "computed": [], "types": [], "share": []}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            parameters = list(model.parameters())
            held["types"].append(sorted({type(each).__name__ for each in parameters}))
            here = sum(getattr(each, "_local_tensor", each).numel() for each in parameters)
            held["share"].append(here / sum(whole_shape(each).numel() for each in parameters))
            held["wrapped"] = any("CheckpointWrapper" in type(each).__name__ for each in model.modules())

    if values.get("fsdp"):
        values["fsdp_config"] = {"version": 2, "activation_checkpointing": checkpointed_by_fsdp}
    rows = Dataset.from_list(uneven_pairs(20))
    accumulation = values.get("gradient_accumulation_steps", 1)
    batch = 8 // int(os.environ.get("WORLD_SIZE", "1")) // accumulation
    trainer = RewardTrainer(
        model_path,
        config(folder, per_device_train_batch_size=batch, num_train_epochs=2, packing=packing, **values),
        train_dataset=rows,
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4) if lora else None,
        callbacks=[Look()],
    )
    prepare = trainer._prepare_inputs

    def noted(inputs):
        if trainer.is_in_train:
            held["pairs"].append(inputs["pair_index"].tolist())
            held["tokens"].append(inputs["num_tokens"])
            held["computed"].append(inputs["input_ids"].numel())
            assert ("tree" in inputs) == (packing == "auto")
        return prepare(inputs)

    trainer._prepare_inputs = noted
    held["first_loss"] = trainer.evaluate(rows)["eval_loss"] if evaluate_first else None
    trainer.train()
    whole = [each for name, each in whole_parameters(trainer.model)]
    metrics = trainer.evaluate(rows)
    predictions = trainer.predict(rows).predictions.tolist()
    trainer.save_model()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in logs],
        "grad_norms": [entry["grad_norm"] for entry in logs],
        "weights": torch.cat([each.flatten() for each in whole])[::10].tolist(),
        "evaluation": {key: value for key, value in metrics.items() if not key.endswith(("runtime", "second"))},
        "predictions": predictions,
        "lengths": [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset],
        "saved": str(folder),
        **held,
    }


CHECKPOINTED = {"packing": "auto", "gradient_checkpointing": True}
REENTRANT = {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
ALONE_RUNS = {
    "tree": {"packing": "auto"},
    "padded": {"packing": "off", "evaluate_first": True},
    "padded LoRA": {"packing": "off", "lora": True},
}
DDP_RUNS = {
    "tree": {"packing": "auto"},
    "padded": {"packing": "off"},
    "tree checkpointed": {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "tree checkpointed re-entrantly": REENTRANT,
    "tree accumulated": {"packing": "auto", "gradient_accumulation_steps": 2},
    "tree LoRA checkpointed re-entrantly": {**REENTRANT, "lora": True},
}
FSDP_RUNS = {
    **DDP_RUNS,
    "tree checkpointed by FSDP": {"packing": "auto", "checkpointed_by_fsdp": True},
    "tree evaluated before": {"packing": "auto", "evaluate_first": True},
}


def layouts(model_path: str, folder: Path) -> dict:
    """Train as a tree and padded; on several processes under DDP and again under FSDP."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    gc.freeze()  # Every run collects garbage, which would go through all that was imported.
    try:
        runs = {
            name: layout_run(model_path, folder / name, **values)
            for name, values in (DDP_RUNS if several else ALONE_RUNS).items()
        }
        if not several:
            return runs
        with fsdp_on_a_cpu():
            return runs | {
                f"FSDP {name}": layout_run(model_path, folder / f"FSDP {name}", fsdp=True, **values)
                for name, values in {**FSDP_RUNS, "tree in bf16": {"packing": "auto", "bf16": True}}.items()
            }
    finally:
        gc.unfreeze()


def everything(model_path: str, folder: Path) -> dict:
    """Run every scenario on however many processes there are."""
    return {
        "evaluations": evaluations(model_path, folder),
        "even": training(model_path, folder, 8, 8),
        "uneven": training(model_path, folder, 11, 8),
        "unlogged": training(model_path, folder, 11, 8, logging_steps=5),
        "streamed": training(model_path, folder, 11, 8, streamed=True, max_steps=2),
        "layouts": layouts(model_path, folder),
    }


if __name__ == "__main__":
    model_path, folder = sys.argv[1], Path(sys.argv[2])
    result = everything(model_path, folder)
    # Left to the interpreter's end, the group's threads may be destroyed while they run.
    from accelerate import PartialState

    PartialState().destroy_process_group()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
