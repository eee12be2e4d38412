"""Keep the checkpoint with the highest held-out accuracy.   python examples/best_checkpoint.py MODEL [OUTPUT_DIR]"""

import sys
from pathlib import Path

from plaudit import RewardConfig, RewardTrainer
from plaudit.loading import load_train_and_test

data = str(Path(__file__).parent / "data" / "pairs.jsonl")
train_dataset, eval_dataset = load_train_and_test(data, test_split_size=12)

args = RewardConfig(
    output_dir=sys.argv[2] if len(sys.argv) > 2 else "runs/best-checkpoint",
    num_train_epochs=3,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    metric_for_best_model="eval_accuracy",
    save_total_limit=2,
)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=train_dataset, eval_dataset=eval_dataset)
trainer.train()

print("best", trainer.state.best_model_checkpoint, trainer.state.best_metric)
