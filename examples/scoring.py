"""Score with a trained reward model: verified, several answers ranked, two compared.   python examples/scoring.py MODEL

MODEL: a reward model's directory or Hub id, whole or an adapter, such as the output_dir of any of the other examples.
"""

import sys

from plaudit import RewardModel

model = RewardModel.from_pretrained(sys.argv[1])  # refuses a checkpoint that does not give its recorded rewards
print(model.verify())

prompt = "What color is the sky on a clear day, and why is that so?"
answers = [
    "Blue: air scatters blue light most.",
    "Green, because of the grass.",
    "Blue.",
    "I would rather not say.",
]
rewards = model.score(prompt=prompt, responses=answers)  # the prompt is computed once
for number in model.rank(prompt, answers):
    print(f"{rewards[number]:+.3f} {answers[number]}")
print(f"first preferred to second: {model.prefer(answers[0], answers[1], prompt=prompt):.3f}")

conversation = [
    {"role": "user", "content": "What color is the sky?"},
    {"role": "assistant", "content": "It is blue."},
]
print(f"one conversation: {model.score([conversation])[0]:+.3f}")
