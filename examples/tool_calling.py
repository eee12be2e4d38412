"""Train on conversations with tool calls.   python examples/tool_calling.py MODEL

The tools column holds the JSON schemas of the tools that a row's conversation may use; the model's chat template
decides how they and the calls are written.
"""

import json
import sys

from datasets import Dataset

from plaudit import RewardConfig, RewardTrainer

weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(city: str) -> list[dict]:
    """Return the messages of one call: the assistant asks, the tool answers."""
    function = {"name": "get_weather", "arguments": {"city": city}}
    return [
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": "get_weather", "content": json.dumps({"city": city, "celsius": 19})},
    ]


rows = [
    {
        "prompt": [{"role": "user", "content": f"How warm is it in {city}?"}],
        "chosen": [*call(city), {"role": "assistant", "content": f"It is 19 degrees Celsius in {city}."}],
        "rejected": [{"role": "assistant", "content": f"It is probably warm in {city}."}],
        # A JSON string keeps schemas of different shapes apart; a list of dicts works too.
        "tools": json.dumps([weather]),
    }
    for city in ("Paris", "Lima", "Oslo", "Delhi", "Quito", "Accra", "Hanoi", "Perth")
]

args = RewardConfig(output_dir="runs/tool-calling", num_train_epochs=1)
trainer = RewardTrainer(sys.argv[1], args, train_dataset=Dataset.from_list(rows))
trainer.train()

print(trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"]))
