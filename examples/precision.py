"""Load the model's weights in bfloat16; rewards stay float32.   python examples/precision.py MODEL"""

import sys
from pathlib import Path

import torch

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_splits

dataset = load_splits(str(Path(__file__).parent / "data" / "pairs.jsonl"))["train"]

# Every keyword argument of from_pretrained can stand here, except num_labels, which is always 1.
args = RewardConfig(output_dir="runs/precision", model_init_kwargs={"dtype": torch.bfloat16}, num_train_epochs=1)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=dataset)
trainer.train()

print("weights", trainer.model.dtype, "rewards", trainer.predict(dataset.select(range(2))).predictions)
