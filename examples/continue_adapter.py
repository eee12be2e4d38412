"""Continue training an adapter, trained head included.   python examples/continue_adapter.py ADAPTER_DIR

The directory (or its Hub id) is passed by name. Loaded by AutoPeftModelForCausalLM instead, the adapter would have lost
its head before the trainer sees it; docs/migrating.md says more.
"""

import sys
from pathlib import Path

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_splits

dataset = load_splits(str(Path(__file__).parent / "data" / "pairs.jsonl"))["train"]

args = RewardConfig(output_dir="runs/continued", learning_rate=1e-3, num_train_epochs=1)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=dataset)
trainer.train()
trainer.save_model()
