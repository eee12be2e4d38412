"""Whether `plaudit score` of many short rows survives SIGKILL with every row once, and how much memory it takes."""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from preparation_memory import WORDS, make_tokenizer
from transformers import AutoModelForSequenceClassification, Qwen3Config

MIB = 2**20


def make_model(folder: Path) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, num_rows: int) -> None:
    chance = random.Random(0)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(num_rows):
            lines.write(json.dumps({"id": number, "text": " ".join(chance.choices(WORDS, k=12))}) + "\n")


def start(folder: Path, output: str, log: Path) -> subprocess.Popen:
    words = ["--model", str(folder / "model"), "--data", str(folder / "rows.jsonl"), "--output", str(folder / output)]
    with log.open("ab") as errors:
        return subprocess.Popen([sys.executable, "-m", "plaudit", "score", *words], stdout=errors, stderr=errors)


def own_memory(pid: int) -> float:
    """Return a process's resident memory in MiB without the pages of files, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / MIB for line in lines if line.startswith("RssAnon:")), 0.0)


def watch(folder: Path, output: str, log: Path) -> list[tuple[float, int, float]]:
    """Score without a kill; return (seconds since the start, parts that were there, MiB) at each look, ten a second."""
    began, process, seen = time.monotonic(), start(folder, output, log), []
    while process.poll() is None:
        parts = len(list((folder / f"{output}.parts").glob("part-*.jsonl")))
        seen.append((time.monotonic() - began, parts, own_memory(process.pid)))
        time.sleep(0.1)
    assert process.returncode == 0, log.read_text()[-2000:]
    return seen


def kill_and_restart(folder: Path, output: str, log: Path, moments: list[float]) -> list[int]:
    """Score, killed so many seconds after each start; return how many parts were there at each kill."""
    at_kills = []
    for seconds in moments:
        process = start(folder, output, log)
        try:
            process.wait(timeout=seconds)
            raise SystemExit(f"it ended before kill {len(at_kills) + 1}; choose another --seed or more rows")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        at_kills.append(len(list((folder / f"{output}.parts").glob("part-*.jsonl"))))
    assert start(folder, output, log).wait() == 0, log.read_text()[-2000:]
    return at_kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        write_rows(folder / "rows.jsonl", options.rows)
        seen = watch(folder, "whole.jsonl", folder / "whole.log")
        loaded = next(seconds for seconds, parts, _ in seen if parts)
        # From while the model loads to when, one start with another, a little less than all is scored.
        latest = loaded + 2.2 * (seen[-1][0] - loaded) / options.kills
        chance = random.Random(options.seed)
        moments = [chance.uniform(0.5 * loaded, latest) for _ in range(options.kills)]
        at_kills = kill_and_restart(folder, "killed.jsonl", folder / "killed.log", moments)
        whole, killed = (folder / each for each in ("whole.jsonl", "killed.jsonl"))
        ids = [json.loads(line)["id"] for line in killed.open(encoding="utf-8")]
        assert ids == list(range(options.rows)), "a row is missing, twice there, or out of its place"
        is_equal = whole.read_bytes() == killed.read_bytes()
        manifest = json.loads((folder / "killed.jsonl.manifest.json").read_text())
        assert manifest["rows"] == options.rows
    print(f"{options.kills} kills, at {', '.join(map(str, at_kills))} of {manifest['parts']} parts")
    print(f"{len(ids):,} rows, each once and in order; the bytes equal an unkilled run's: {is_equal}")
    print(f"{manifest['rows_per_second']:,.0f} rows/s, {manifest['tokens_per_second']:,.0f} tokens/s while scoring")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        memory = [size for _, parts, size in seen if 0 < parts <= share * manifest["parts"]]
        print(f"own memory, most in the first {share:.0%} of the parts: {max(memory, default=0):,.0f} MiB")


if __name__ == "__main__":
    main()
