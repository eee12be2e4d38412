"""Train a reward model in four lines.   python examples/quick_start.py MODEL [DATA]

MODEL: a directory or a Hub id, such as Qwen/Qwen3-0.6B. DATA: a file or a Hub id with preference pairs, such as
trl-lib/ultrafeedback_binarized; without it, the 60 pairs beside this script.
"""

import sys
from pathlib import Path

from plaudit import RewardTrainer
from plaudit.loading import load_splits

model = sys.argv[1]
data = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).parent / "data" / "pairs.jsonl")

trainer = RewardTrainer(model=model, train_dataset=load_splits(data)["train"])
trainer.train()
