"""How fast rows become token pairs, with plaudit and with the reference, by turns: what the trainer's construction takes.

pip install -r benchmarks/requirements.txt   first; the reference is needed in benchmarks/ and nowhere else.

The construction with a few rows is subtracted, so that what is left is the preparation of the data.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from pathlib import Path

from datasets import Dataset, disable_caching
from datasets.utils import disable_progress_bars
from speed import DATA_HELP, default_data, make_tokenizer, rows_of
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

FEW = 16


def seconds_of(library: str, rows: list[dict], tokenizer, num_proc: int | None) -> float:
    """Return how long it takes to make a trainer for the rows; the model is as small as can be."""
    module = importlib.import_module(library)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, pad_token_id=tokenizer.pad_token_id, num_labels=1,
    )  # fmt: skip
    model = Qwen3ForSequenceClassification(config)
    data = Dataset.from_list(rows)
    with tempfile.TemporaryDirectory() as folder:
        args = module.RewardConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to="none", dataset_num_proc=num_proc, max_length=1024
        )
        start = time.perf_counter()
        trainer = module.RewardTrainer(model, args, train_dataset=data, processing_class=tokenizer)
        seconds = time.perf_counter() - start
    assert FEW // 2 < len(trainer.train_dataset) <= len(rows)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=default_data(), help=DATA_HELP)
    parser.add_argument("--num-proc", type=int, default=None)
    parser.add_argument("--rows", type=int, default=4096, help="the file's rows are repeated, or cut, to this many")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    disable_caching()
    disable_progress_bars()
    rows = rows_of(options.data)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(rows, Path(folder))
        rates: dict[str, list[float]] = {"plaudit": [], "trl": []}
        many = (rows * (options.rows // len(rows) + 1))[: options.rows]
        many = [json.loads(json.dumps(row)) for row in many]
        for library in rates:
            seconds_of(library, rows[:FEW], AutoTokenizer.from_pretrained(folder), options.num_proc)
        for _ in range(options.repeats):
            for library, found in rates.items():
                few, all_of_them = (
                    seconds_of(library, part, AutoTokenizer.from_pretrained(folder), options.num_proc)
                    for part in (rows[:FEW], many)
                )
                found.append((len(many) - FEW) / (all_of_them - few))
    for library, found in rates.items():
        print(f"{library:8} {statistics.median(found):9,.0f} rows/s ({min(found):,.0f} to {max(found):,.0f})")
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
