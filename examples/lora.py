"""Train a LoRA adapter; its head is trained and saved with it.   python examples/lora.py MODEL [OUTPUT_DIR]"""

import sys
from pathlib import Path

from peft import LoraConfig

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_splits

dataset = load_splits(str(Path(__file__).parent / "data" / "pairs.jsonl"))["train"]
output_dir = sys.argv[2] if len(sys.argv) > 2 else "runs/lora"

# Only the adapter learns, so the learning rate may be about ten times that of full training.
args = RewardConfig(output_dir=output_dir, learning_rate=1e-3, num_train_epochs=1)
# modules_to_save=["score"] is not needed: the head is always trained and kept.
trainer = RewardTrainer(sys.argv[1], args, train_dataset=dataset, peft_config=LoraConfig())
trainer.train()
trainer.save_model()
