"""Train the same run with plaudit and with the reference trainer, and print the largest differences of what they log.

pip install -r benchmarks/requirements.txt   first; the reference is needed here and nowhere else.
"""

import importlib
import sys
import tempfile
from pathlib import Path

from datasets import load_dataset

ROOT = Path(__file__).parents[1]
FIGURES = ("loss", "grad_norm", "num_tokens", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")
RUNS = {
    "full": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "short rows": {"max_length": 40},
    "padded to 64": {"pad_to_multiple_of": 64},
    "centred": {"center_rewards_coefficient": 0.01},
}


def log_of(library: str, model: str, **options) -> list[dict]:
    """Return what a library logs of three epochs on the example pairs, one entry an optimizer step."""
    module = importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        args = module.RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=4,
            logging_steps=1,
            learning_rate=1e-3,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        file = str(ROOT / "examples" / "data" / "pairs.jsonl")
        rows = load_dataset("json", data_files=file, split="train")
        trainer = module.RewardTrainer(model, args, train_dataset=rows)
        trainer.train()
        return [entry for entry in trainer.state.log_history if "loss" in entry]


def main(model: str) -> None:
    for name, options in RUNS.items():
        theirs = log_of("trl", model, **options)
        # Where micro-batches add up, the reference's extremes are means over micro-batches, ours of the whole step.
        skipped = ("min_reward", "max_reward") if "gradient_accumulation_steps" in options else ()
        for packing in ("off", "auto"):
            ours = log_of("plaudit", model, packing=packing, **options)
            assert len(ours) == len(theirs) > 0
            worst = {
                figure: max(abs(one[figure] - other[figure]) for one, other in zip(ours, theirs, strict=True))
                for figure in FIGURES
                if figure not in skipped
            }
            differences = ", ".join(f"{figure} {value:.1e}" for figure, value in worst.items())
            print(f"{name}, packing {packing}, {len(ours)} steps: {differences}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny-model")
