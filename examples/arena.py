"""Train on arena votes, as lmarena-ai/arena-human-preference-55k has them.   python examples/arena.py MODEL [DATA]

Prompts and responses are JSON-encoded lists of turns; ties say nothing and are dropped and counted. The columns are
recognised by themselves: the conversion below only shows what is trained on.
"""

import json
import sys

from datasets import Dataset

from plaudit import RewardConfig, RewardTrainer, formats
from plaudit.loading import load_splits


def vote(prompt: str, first: str, second: str, winner: str) -> dict:
    """Return one vote in the arena's columns; winner: "a", "b" or "tie"."""
    texts = {"prompt": prompt, "response_a": first, "response_b": second}
    names = {"a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
    return {
        **{name: json.dumps([text]) for name, text in texts.items()},
        **{column: int(name == winner) for name, column in names.items()},
    }


votes = [
    vote("What color is the sky?", "It is blue.", "It is green.", "a"),
    vote("Name a prime number above ten.", "Twelve.", "Eleven.", "b"),
    vote("Say hello.", "Hello!", "Hello there!", "tie"),
    vote("How many legs does a spider have?", "Eight.", "Six.", "a"),
]
dataset = load_splits(sys.argv[2])["train"] if len(sys.argv) > 2 else Dataset.from_list(votes)

dataset = formats.convert(dataset, "arena")
print(dataset[0])

args = RewardConfig(output_dir="runs/arena", num_train_epochs=1)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=dataset)
trainer.train()
