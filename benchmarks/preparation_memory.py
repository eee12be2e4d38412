"""How fast a data set becomes token pairs, and how much resident memory that takes: 100,000 rows from a file."""

import json
import sys
import tempfile
import time
from pathlib import Path

from datasets import load_dataset
from datasets.utils import disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from plaudit.prepare import Rules, prepare

WORDS = "what colour is the sky it is blue and at night it is black tell me a story about one cat two dogs".split()


def resident() -> str:
    """Return the process's own memory and the pages of files that it has mapped, which the system can take back."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return f"{own:,.0f} MiB own + {mapped:,.0f} MiB of mapped files"


def write_rows(file: Path, num_rows: int, words_a_side: int) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for row in range(num_rows):
            prompt, answer = (
                " ".join(WORDS[(row + i * i) % len(WORDS)] for i in range(words_a_side)) for _ in range(2)
            )
            pair = {"prompt": prompt, "chosen": f" {answer} yes {row}", "rejected": f" {answer} no {row}"}
            lines.write(json.dumps(pair) + "\n")


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def main(num_rows: int = 100_000, words_a_side: int = 60) -> None:
    disable_progress_bars()
    tokenizer = make_tokenizer()
    rules = Rules(max_length=1024, vocabulary_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, num_rows, words_a_side)
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=folder)
        # A first run loads what every run needs, so that the second shows what the rows themselves take.
        prepare(rows.select(range(100)), "train", tokenizer, rules)
        before = resident()
        start = time.perf_counter()
        pairs, _ = prepare(rows, "train", tokenizer, rules)
        seconds = time.perf_counter() - start
        size = sum(Path(part["filename"]).stat().st_size for part in pairs.cache_files) / 2**20
        print(f"{num_rows:,} rows, {file.stat().st_size / 2**20:,.0f} MiB of text, {size:,.0f} MiB of token pairs")
        print(f"{num_rows / seconds:,.0f} rows/s ({seconds:.1f} s)")
        print(f"resident before: {before}")
        print(f"resident after:  {resident()}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
