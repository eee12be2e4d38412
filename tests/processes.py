"""What the tests of several processes run: one script, started once a process, that leaves what each process saw.

Run as `python processes.py MODEL_PATH OUTPUT_DIR` with the variables that torchrun sets.
"""

import json
import os
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


def evaluations(model_path: str, folder: Path) -> dict:
    """Evaluate 9 pairs at 4 a process: two sets, one of them streamed beside a map-style training set, and predict."""
    from datasets import Dataset

    from plaudit import RewardTrainer

    seen = []

    def compute_metrics(prediction, compute_result=True):
        seen.append([prediction.predictions.tolist(), prediction.label_ids.tolist()])
        return {"pairs_seen": len(prediction.label_ids)}

    texts, chats = Dataset.from_list(text_pairs(9)), Dataset.from_list(conversations(7, seed=1))
    trainer = RewardTrainer(
        model_path,
        config(folder / "eval", include_for_metrics=["loss", "inputs"]),
        train_dataset=texts,
        eval_dataset={"texts": texts, "stream": chats.to_iterable_dataset()},
        compute_metrics=compute_metrics,
    )
    metrics = trainer.evaluate()
    return {
        "metrics": {key: value for key, value in metrics.items() if not key.endswith(("runtime", "per_second"))},
        "seen": seen,
        "predictions": trainer.predict(texts).predictions.tolist(),
    }


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


def everything(model_path: str, folder: Path) -> dict:
    """Run every scenario on however many processes there are."""
    return {
        "evaluations": evaluations(model_path, folder),
        "even": training(model_path, folder, 8, 8),
        "uneven": training(model_path, folder, 11, 8),
        "unlogged": training(model_path, folder, 11, 8, logging_steps=5),
        "streamed": training(model_path, folder, 11, 8, streamed=True, max_steps=2),
    }


if __name__ == "__main__":
    model_path, folder = sys.argv[1], Path(sys.argv[2])
    result = everything(model_path, folder)
    # Left to the interpreter's end, the group's threads may be destroyed while they run.
    from accelerate import PartialState

    PartialState().destroy_process_group()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
