"""Use how much better an answer is, and keep rewards near zero.   python examples/margin_and_centering.py MODEL

Each answer here has a rating; the gap becomes the margin of the loss (Llama 2, arXiv 2307.09288, eq. 2). The centering
coefficient pulls the mean reward towards zero (arXiv 2312.09244, eq. 2); 0.01 is the paper's recommendation.
"""

import sys

from datasets import Dataset

from plaudit import RewardConfig, RewardTrainer, formats

rated = [
    {"prompt": "What is 2 + 2?", "responses": ["4", "It is 4, since 2 + 2 = 4.", "5"], "scores": [3.0, 4.0, 1.0]},
    {"prompt": "Name a mammal.", "responses": ["A whale.", "A trout.", "Whales, for one."], "scores": [4.0, 1.0, 4.0]},
    {"prompt": "What is the capital of Peru?", "responses": ["Lima.", "Cusco."], "scores": [5.0, 2.0]},
]
dataset = formats.convert(Dataset.from_list(rated), "ratings", margins=True)

args = RewardConfig(output_dir="runs/margin", center_rewards_coefficient=0.01, num_train_epochs=1)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=dataset)
trainer.train()

print(trainer.state.log_history[-1]["margin"], "mean reward difference")
