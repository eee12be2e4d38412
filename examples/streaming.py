"""Train on rows as they are read, without preparing the whole set first.   python examples/streaming.py MODEL [DATA]

A stream has no length, so max_steps says when to stop. The first 1,000 rows are checked before training.
"""

import sys
from pathlib import Path

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_splits

data = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).parent / "data" / "pairs.jsonl")
stream = load_splits(data, streaming=True)["train"].shuffle(seed=0, buffer_size=1_000)

args = RewardConfig(output_dir="runs/streaming", max_steps=8)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=stream)
trainer.train()
