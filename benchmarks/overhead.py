"""What exact metrics and checks cost: a training step of RewardTrainer beside one of a bare Trainer with the same forward.

Both train the same model on the same micro-batches, each in a process of its own, and take their steps by turns: while
one works the other waits, so that whatever else the machine does falls on both. The bare one is transformers' Trainer with
a loss of one line; it counts no pairs, watches nothing and logs the loss alone.

Two processes with the same work differ by a few percent, for where their memory lies. So the time outside the model's own
work (forward, backward, clipping, update: the same calls in both) is told apart, which is where metrics and checks are. On
a GPU, whose work runs on behind these calls, only the whole steps count.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from speed import DATA_HELP, SHAPES, default_data, make_model, make_tokenizer, rows_of
from transformers import AutoTokenizer, Trainer, TrainerCallback

from plaudit import RewardConfig, RewardTrainer
from plaudit.losses import bradley_terry
from plaudit.rewards import rewards


class BareTrainer(Trainer):
    """Trainer with a loss over pairs, and the loader that it is given."""

    def __init__(self, *args, loader, **kwargs):
        super().__init__(*args, **kwargs)
        self.loader = loader

    def get_train_dataloader(self):
        return self.loader()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return bradley_terry(*rewards(model, inputs).chunk(2)).mean()


class ModelTime:
    """Sums up the wall-clock seconds of the calls that are the model's own work; calls within calls count once."""

    def __init__(self, model: torch.nn.Module):
        self.seconds, self.is_inside = 0.0, False
        for owner, name in (
            (type(model.base_model), "__call__"),
            (Accelerator, "backward"),
            (Accelerator, "clip_grad_norm_"),
            (AcceleratedOptimizer, "step"),
        ):
            setattr(owner, name, self.timed(getattr(owner, name)))

    def timed(self, function):
        def call(*args, **kwargs):
            if self.is_inside:
                return function(*args, **kwargs)
            self.is_inside, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.is_inside = False
                self.seconds += time.perf_counter() - began

        return call


class Clock(TrainerCallback):
    """Wall-clock seconds from one step's beginning to the next one's, and those of them outside the model's own work.

    At a step's beginning the turn goes to the other process, and nothing happens here until it comes back.
    """

    def __init__(self, turn, model_time: ModelTime):
        self.steps, self.began, self.turn, self.model_time = [], None, turn, model_time

    def on_step_begin(self, args, state, control, **kwargs):
        if self.began is not None:
            whole = time.perf_counter() - self.began
            self.steps.append((whole, whole - self.model_time.seconds))
            self.turn.send(None)
        self.turn.recv()
        self.model_time.seconds = 0.0
        self.began = time.perf_counter()


def train_by_turns(kind: str, options: argparse.Namespace, rows: list[dict], tokenizer_path: str, turn) -> None:
    """Train in a process of its own, a step whenever `turn` says so, and send each step's seconds through it at the end."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    train = Dataset.from_list(rows)
    model = make_model(SHAPES[options.shape], tokenizer.pad_token_id)
    clock = Clock(turn, ModelTime(model))
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            output_dir=folder,
            max_steps=options.steps + 1,
            per_device_train_batch_size=options.batch_size,
            logging_steps=options.logging_steps,
            train_sampling_strategy="sequential",
            use_cpu=not torch.cuda.is_available(),
            bf16=options.precision == "bfloat16",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        ours = RewardTrainer(model, args, train_dataset=train, processing_class=tokenizer, callbacks=[clock])
        if kind == "plaudit":
            ours.train()
        else:
            # The same prepared pairs, batches and patched forward.
            ours.remove_callback(clock)
            ours.get_train_dataloader()
            bare = BareTrainer(
                ours.model,
                args,
                train_dataset=ours.train_dataset,
                loader=ours.get_train_dataloader,
                callbacks=[clock],
            )
            bare.train()
    turn.send(clock.steps)


def steps_by_turns(
    first: str, options: argparse.Namespace, rows: list[dict], tokenizer_path: str
) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of the same steps of both kinds, each step of one kind right before or after the other's."""
    spawn = multiprocessing.get_context("spawn")
    turns, processes = {}, []
    for kind in sorted(("bare", "plaudit"), key=lambda kind: kind != first):
        turns[kind], theirs = spawn.Pipe()
        processes.append(spawn.Process(target=train_by_turns, args=(kind, options, rows, tokenizer_path, theirs)))
        processes[-1].start()
        theirs.close()
    for _ in range(options.steps):
        for turn in turns.values():
            turn.send(None)
            turn.recv()
    # The last step ends with the training, not with a step's beginning, and is not timed.
    for turn in turns.values():
        turn.send(None)
    steps = {kind: turn.recv()[options.warmup_steps :] for kind, turn in turns.items()}
    for process in processes:
        process.join()
    return steps


def said(values: list[float], form: str) -> str:
    """Return the median and range of values, each in a format such as '.2f'."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=default_data(), help=DATA_HELP)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1m")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="steps of a run that are taken by turns")
    parser.add_argument("--warmup-steps", type=int, default=5, help="of these, how many at the beginning are not timed")
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=6, help="runs; each kind goes first in every other one")
    options = parser.parse_args()
    rows = rows_of(options.data)[: 4 * options.steps * options.batch_size]
    # Of each run: the medians over its steps.
    whole, outside, ratios, extra = {"bare": [], "plaudit": []}, {"bare": [], "plaudit": []}, [], []
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(rows, Path(folder))
        for repeat in range(options.repeats):
            steps = steps_by_turns(("bare", "plaudit")[repeat % 2], options, rows, folder)
            pairs = list(zip(steps["bare"], steps["plaudit"], strict=True))
            ratios.append(statistics.median(ours[0] / bare[0] for bare, ours in pairs))
            extra.append(statistics.mean(trimmed(ours[1] - bare[1] for bare, ours in pairs)) * 1000)
            for kind, taken in steps.items():
                whole[kind].append(statistics.median(step for step, _ in taken) * 1000)
                outside[kind].append(statistics.mean(trimmed(rest for _, rest in taken)) * 1000)
    for kind in whole:
        print(
            f"{kind:8s} ms a step: {said(whole[kind], '.1f')}; outside the model's own work: {said(outside[kind], '.2f')}"
        )
    print(f"whole steps, plaudit to bare, batch by batch: {said(ratios, '.4f')}, {options.repeats} runs")
    shares = [more / step * 100 for more, step in zip(extra, whole["bare"], strict=True)]
    print(f"metrics and checks: {said(extra, '.2f')} ms a step, {said(shares, '.2f')} % of the bare step")


def trimmed(values: Iterable[float]) -> list[float]:
    """Return values without their highest and lowest hundredth part, where another program took the machine."""
    in_order = sorted(values)
    drop = len(in_order) // 100
    return in_order[drop : len(in_order) - drop]


if __name__ == "__main__":
    main()
