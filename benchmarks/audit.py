"""How long an audit takes and how much memory is resident at most: pairs of realistic length, in a process of its own.

`--form` and `--kind` choose parquet, JSON lines or a saved Dataset, of message lists or texts; `--benchmarks` adds a file of
3,000 rows whose runs of 13 words are looked for. Peak memory is the process's own, mapped files included.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = ("jsonl", "parquet", "saved")
KINDS = ("messages", "texts")
CHILD = """
import json, resource, sys, time
start = time.perf_counter()
from plaudit import audit
loaded = time.perf_counter()
found = audit.audit(sys.argv[1], benchmarks=sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
# A process inherits the most that its parent ever held, except where the kernel keeps its own.
try:
    most = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    most = used.ru_maxrss
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "seconds": time.perf_counter() - loaded, "start": loaded - start, "pairs": found["pairs"],
    "torch": "torch" in sys.modules,
    "resident": most / 2**20}))
"""


def make_texts(seed: int) -> "tuple[str, list[int]]":
    """Return a long text of made-up words, as frequent as words are, and where its words begin."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10))))
        for _ in range(30_000)
    ]
    shares = [1 / (rank + 10) for rank in range(len(words))]
    said = draw.choices(words, shares, k=3_000_000)
    ends = draw.choices((" ", ", ", ". ", ".\n\n", "\n- ", " don\u2019t "), (80, 8, 9, 1, 1, 0.2), k=len(said))
    begins, parts, at = [], [], 0
    for word, end in zip(said, ends, strict=True):
        begins.append(at)
        parts.append(word + end)
        at += len(word) + len(end)
    return "".join(parts), begins


def rows(num_rows: int, kind: str, seed: int = 0):
    """Give pairs of about 60 words of prompt and 150 of each answer."""
    text, begins = make_texts(seed)
    draw = random.Random(seed + 1)

    def some(words: float) -> str:
        length = min(1_500, max(4, int(draw.lognormvariate(0, 0.6) * words)))
        start = draw.randrange(len(begins) - length - 1)
        return text[begins[start] : begins[start + length]]

    for number in range(num_rows):
        prompt, chosen, rejected = f"{number} {some(50)}", some(125), some(125)
        if kind == "texts":
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        else:
            yield {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }


def write(folder: Path, form: str, kind: str, num_rows: int) -> Path:
    """Write the pairs and return where they are."""
    lines = folder / "pairs.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(num_rows, kind))
    if form == "jsonl":
        return lines
    from datasets import load_dataset

    loaded = load_dataset("json", data_files=str(lines), split="train", cache_dir=str(folder / "cache"))
    path = folder / ("pairs.parquet" if form == "parquet" else "pairs")
    if form == "parquet":
        loaded.to_parquet(str(path))
    else:
        loaded.save_to_disk(str(path))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--form", choices=FORMS, default="jsonl")
    parser.add_argument("--kind", choices=KINDS, default="messages")
    parser.add_argument("--benchmarks", action="store_true", help="look for a benchmark's texts as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder, options.form, options.kind, options.rows)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
        names = []
        if options.benchmarks:
            names.append(str(folder / "benchmark.jsonl"))
            with open(names[0], "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows(3_000, "texts", seed=9))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), *names],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        whole = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{found['pairs']:,} pairs, {options.kind}, {options.form} ({size / 2**20:,.0f} MiB), "
        f"{'with' if names else 'without'} a benchmark: {found['seconds']:.1f} s, {whole:.1f} s with the start, "
        f"{found['cpu']:.0f} s of processors; "
        f"{found['resident']:.2f} GiB resident at most"
    )


if __name__ == "__main__":
    main()
