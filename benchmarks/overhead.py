"""What exact metrics and checks cost: a training step of RewardTrainer beside one of a bare Trainer with the same forward.

Both train the same model on the same micro-batches, by turns. The bare one is transformers' Trainer with a loss of one
line; it counts no pairs, watches nothing and logs the loss alone.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
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


class Clock(TrainerCallback):
    """Wall-clock seconds from one step's end to the next, which takes in logging and whatever else a step brings."""

    def __init__(self):
        self.seconds, self.last = [], None

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now


def block_seconds(kind: str, options: argparse.Namespace, train: Dataset, tokenizer) -> list[float]:
    """Return the seconds of one turn's blocks of steps, each with one log in it; the first three steps are not timed."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            logging_steps=options.logging_steps,
            train_sampling_strategy="sequential",
            use_cpu=not torch.cuda.is_available(),
            bf16=options.precision == "bfloat16",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        model = make_model(SHAPES[options.shape], tokenizer.pad_token_id)
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
    timed, size = clock.seconds[2:], options.logging_steps
    return [sum(timed[start : start + size]) for start in range(0, len(timed) - size + 1, size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=default_data(), help=DATA_HELP)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1m")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=63)
    parser.add_argument("--logging-steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = rows_of(options.data)[: 4 * options.steps * options.batch_size]
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(rows, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    train = Dataset.from_list(rows)
    turns: dict[str, list[list[float]]] = {"bare": [], "plaudit": []}
    # Each kind goes first in every other pair of turns, so that a machine that grows warm favours neither.
    for repeat in range(options.repeats):
        for kind in sorted(turns, reverse=repeat % 2 == 1):
            turns[kind].append(block_seconds(kind, options, train, tokenizer))
    for kind, times in turns.items():
        medians = [statistics.median(one) / options.logging_steps * 1000 for one in times]
        print(f"{kind:8s} {statistics.median(medians):8.1f} ms a step ({min(medians):.1f} to {max(medians):.1f})")
    # Block by block the same work, so that a long row counts on both sides.
    ratios = [
        statistics.median(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
        for ours, bare in zip(turns["plaudit"], turns["bare"], strict=True)
    ]
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"plaudit takes {middle:.4f} of the bare step ({low:.4f} to {high:.4f}, {options.repeats} pairs of turns)")


if __name__ == "__main__":
    main()
