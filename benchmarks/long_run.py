"""Whether a long run stays flat: memory, file handles and speed over 2,000 steps, with an evaluation and a save every 50."""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from score_kills import make_model, own_memory
from speed import generated
from transformers import TrainerCallback

from plaudit import RewardConfig, RewardTrainer


class Sampled(TrainerCallback):
    """What the process held, and how fast it trained, at every `every` steps."""

    def __init__(self, every: int):
        self.every, self.samples, self.steps = every, [], []
        self.since = None

    def on_step_begin(self, args, state, control, **kwargs):
        self.since = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.perf_counter() - self.since)
        if state.global_step % self.every == 0:
            self.samples.append(
                {
                    "own memory, MiB": own_memory(os.getpid()),
                    "file handles": len(os.listdir("/proc/self/fd")),
                    "threads": len(os.listdir("/proc/self/task")),
                    "ms a step": statistics.median(self.steps) * 1000,
                }
            )
            self.steps = []


def make_trainer(folder: str, options: argparse.Namespace, sampled: Sampled) -> RewardTrainer:
    make_model(Path(folder) / "model")
    rows = Dataset.from_list(generated(prompt_words=40, answer_words=20))
    args = RewardConfig(
        output_dir=f"{folder}/run",
        max_steps=options.steps,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=options.every,
        save_steps=options.every,
        save_total_limit=2,
        load_best_model_at_end=True,
        dataloader_num_workers=options.workers,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    train = rows.select(range(400))
    return RewardTrainer(
        f"{folder}/model",
        args,
        train_dataset=train.to_iterable_dataset() if options.streamed else train,
        eval_dataset=rows.select(range(400, 512)),
        callbacks=[sampled],
    )


def report(samples: list[dict], every: int) -> None:
    tenth = max(1, len(samples) // 10)
    print(f"{'':18s}{f'steps 1 to {tenth * every}':>24s}{f'the last {tenth * every}':>20s}{'highest':>12s}")
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        first, last = (statistics.median(part) for part in (values[:tenth], values[-tenth:]))
        print(f"{name:18s}{first:24.1f}{last:20.1f}{max(values):12.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations, saves and samples")
    parser.add_argument("--workers", type=int, default=0, help="loader workers")
    parser.add_argument("--streamed", action="store_true")
    options = parser.parse_args()
    if options.steps < options.every:
        parser.error(f"--steps {options.steps} is less than --every {options.every}: nothing would be sampled")
    sampled = Sampled(options.every)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, options, sampled)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        left = sorted(path.name for path in (Path(folder) / "run").iterdir())
    num_evaluations = sum("eval_loss" in entry for entry in trainer.state.log_history)
    print(f"{options.steps} steps, {num_evaluations} evaluations in {seconds:.0f} s; left on disk: {', '.join(left)}")
    report(sampled.samples, options.every)


if __name__ == "__main__":
    main()
