"""Evaluate a reward model, and any function that scores: figures with intervals, scores on disk, a report.

python examples/evaluation.py MODEL     MODEL: a reward model's directory or Hub id
"""

import sys
from pathlib import Path

from plaudit import RewardModel
from plaudit.evaluation import compare_files, describe, evaluate, recompute

model = RewardModel.from_pretrained(sys.argv[1])
# A known name, such as "rewardbench", is loaded from the Hub; a file's columns say what it is.
pairs = f"made-up={Path(__file__).parent / 'data' / 'pairs.jsonl'}"
results = evaluate(model, pairs, output_dir="runs/evaluation")
print(describe(results))


def shortest(conversations):
    return [-len(messages[-1]["content"]) for messages in conversations]


evaluate(shortest, pairs, output_dir="runs/evaluation-shortest")

# Every figure again, from the scores alone and with no model.
again = recompute("runs/evaluation/scores.jsonl")
print("the same from the scores:", again["made-up"]["overall"] == results["made-up"]["overall"])
difference = compare_files("runs/evaluation/scores.jsonl", "runs/evaluation-shortest/scores.jsonl")
print("model minus shortest:", f"{difference['benchmarks']['made-up']['overall']['difference']:+.3f}")
