"""Evaluate on several sets, each with keys of its own.   python examples/several_eval_sets.py MODEL"""

import sys
from pathlib import Path

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_splits

dataset = load_splits(str(Path(__file__).parent / "data" / "pairs.jsonl"))["train"]
parts = dataset.train_test_split(test_size=20, seed=0)
eval_sets = {"first": parts["test"].select(range(9)), "second": parts["test"].select(range(9, 20))}

args = RewardConfig(output_dir="runs/several-eval-sets", num_train_epochs=1, eval_strategy="epoch")
trainer = RewardTrainer(sys.argv[1], args, train_dataset=parts["train"], eval_dataset=eval_sets)
trainer.train()

metrics = trainer.evaluate()
print({name: metrics[name] for name in ("eval_first_accuracy", "eval_second_accuracy")})
