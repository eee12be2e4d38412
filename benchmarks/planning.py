"""Compare what `plaudit plan --gpu here` predicts with small real trainings on this machine: time and memory of a step.

Each training and each plan is a process of its own. Every training goes once through its rows; its first step is not
timed. Time is the mean over the steps, with the range of their shares of the mean; tokens differ from step to step.
Memory is what the whole process holds, at its most, in a run of its own that returns freed memory at once, as torch's
allocations say (MALLOC_MMAP_THRESHOLD_), and keeps few compiled kernels, of which bfloat16 on a CPU has one for each size
of a batch (the two CAPACITYs). Run it on a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import DATA_HELP, default_data, make_tokenizer, rows_of

SHAPES = {
    "6m": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
           "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 16_000},
    "15m": {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 5,
            "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 16_000},
    "33m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16_000},
}  # fmt: skip
# Shape, family, pairs a batch, precision, checkpointing, LoRA; each in both layouts.
CASES = [
    ("33m", "qwen3", 8, "float32", True, False),
    ("33m", "qwen3", 8, "float32", False, False),
    ("33m", "qwen3", 8, "bfloat16", True, False),
    ("33m", "llama", 4, "bfloat16", False, False),
    ("33m", "qwen3", 4, "float32", True, True),
    ("15m", "llama", 16, "float32", True, False),
    ("15m", "qwen3", 2, "float32", False, False),
    ("15m", "llama", 8, "bfloat16", True, True),
    ("6m", "qwen3", 16, "bfloat16", False, False),
    ("6m", "llama", 2, "float32", True, False),
]
BAR = 0.20
# The environment in which a process holds what its tensors take.
HELD = {
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}
PAPER = "pairs=26000000,prompt=400,answer=300"
# As few pairs a training, so that the batches' sizes, which are drawn, come out near their mean.
PAIRS = 96


def make_folder(folder: Path, shape: str, family: str, data: str) -> None:
    """Save a model of random weights and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    make_tokenizer(rows_of(data), folder)
    torch.manual_seed(0)
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    config = AutoConfig.for_model(family, **SHAPES[shape], max_position_embeddings=4096, pad_token_id=pad, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def plan_of(options: dict) -> dict:
    """Return the prediction for both layouts."""
    from plaudit.plan import plan

    found = plan(
        options["folder"],
        options["rows"],
        "here",
        batch_pairs=options["batch"],
        micro_batch=options["batch"],
        precision=options["precision"],
        gradient_checkpointing=str(options["checkpointing"]).lower(),
        use_peft=options["lora"],
        sample=0,
    )
    return {
        layout: {
            "seconds": one["step_seconds"]["total"],
            "tokens": one["tokens_a_step"],
            "memory": one["memory"]["total"],
            "libraries": one["memory"]["libraries"],
        }
        for layout, one in found["layouts"].items()
    }


def training_of(options: dict) -> dict:
    """Train; return each step's seconds, and the most that the process held in any step."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    from plaudit import RewardConfig, RewardTrainer

    seconds, most = [], [0]

    class Timed(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            Path("/proc/self/clear_refs").write_text("5")
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            seconds.append(time.perf_counter() - self.start)
            most[0] = max(most[0], status("VmHWM"))

    rows = load_dataset("json", data_files=options["rows"], split="train")
    tokenizer = AutoTokenizer.from_pretrained(options["folder"])
    adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05) if options["lora"] else None
    args = RewardConfig(
        output_dir=str(Path(options["folder"]) / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=options["batch"],
        bf16=options["precision"] == "bfloat16",
        gradient_checkpointing=options["checkpointing"],
        packing="auto" if options["layout"] == "tree" else "off",
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RewardTrainer(
        options["folder"],
        args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Timed()],
    )
    trainer.train()
    return {"seconds": seconds[1:], "memory": most[0], "layout": type(trainer._batch_layout).__name__}


def print_paper() -> None:
    """Print docs/scaling.md's table of large trainings, as plaudit plans them."""
    from plaudit.plan import plan

    print(
        "| model | on | engine | pairs at a time | activations | GB each | s a step | days | GPU hours | padded: days |"
    )
    print("|---|---|---|--:|---|--:|--:|--:|--:|--:|")
    for model in ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b"):
        for gpus, gpu in ((8, "h100"), (8, "h200"), (64, "h100"), (64, "h200")):
            for adapter in (False, True):
                found = plan(model, PAPER, gpu, gpus=gpus, batch_pairs=512, max_length=4096, use_peft=adapter)
                one, name = found["advised"], f"{model}{', LoRA' if adapter else ''} | {gpus} {gpu}"
                if one is None:
                    nearest = min(found["engines"].values(), key=lambda other: other["memory"]["total"])
                    print(
                        f"| {name} | none fits | | | {nearest['memory']['total'] / 1e9:.0f} ({nearest['engine']}) | | | | |"
                    )
                    continue
                again = "again" if one["gradient_checkpointing"] else "kept"
                print(
                    f"| {name} | {one['engine']} | {one['micro_batch']} | {again} | {one['memory']['total'] / 1e9:.0f} | "
                    f"{one['step_seconds']['total']:.2f} | {one['hours'] / 24:.1f} | {one['gpu_hours']:,.0f} | "
                    f"{found['layouts']['padded']['hours'] / 24:.1f} |"
                )


def status(field: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def in_a_process(work: str, options: dict, **environment: str) -> dict:
    """Return what one of the works above returns, in a fresh process."""
    command = [sys.executable, __file__, "--work", work, "--options", json.dumps(options)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: tuple, data: str, steps: int, only_memory: bool) -> list[dict]:
    """Return a line of the table for each layout."""
    shape, family, batch, precision, checkpointing, lora = case
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        make_folder(folder, shape, family, data)
        rows = Path(name) / "rows.jsonl"
        rows.write_text(
            "\n".join(json.dumps(row) for row in rows_of(data)[: max(steps * batch, PAIRS)]), encoding="utf-8"
        )
        options = {"folder": str(folder), "rows": str(rows), "batch": batch, "precision": precision,
                   "checkpointing": checkpointing, "lora": lora}  # fmt: skip
        predicted = in_a_process("plan", options)
        for layout, one in predicted.items():
            told = {**options, "layout": layout}
            held = in_a_process("training", told, **HELD)
            timed = held if only_memory else in_a_process("training", told)
            assert timed["layout"] == {"tree": "TreeRow", "padded": "Padded"}[layout], timed["layout"]
            mean = statistics.mean(timed["seconds"])
            lines.append(
                {
                    "case": f"{shape} {family}, {batch} pairs, {precision}, "
                    f"{'again' if checkpointing else 'kept'}{', LoRA' if lora else ''}, {layout}",
                    "seconds": [one["seconds"], mean],
                    "range": [min(timed["seconds"]) / mean, max(timed["seconds"]) / mean],
                    "memory": [one["memory"], held["memory"]],
                    "libraries": one["libraries"],
                }
            )
    return lines


def report(line: dict, only_memory: bool) -> bool:
    """Print a line; return whether it is within the bar."""
    ratios = {name: line[name][0] / line[name][1] for name in ("seconds", "memory")}
    low, high = line["range"]
    print(
        f"| {line['case']} | {line['seconds'][0]:.3f} | {line['seconds'][1]:.3f} ({low:.2f} to {high:.2f}) | "
        f"{ratios['seconds']:.2f} | {line['libraries'] / 1e6:,.0f} | {line['memory'][0] / 1e6:,.0f} | "
        f"{line['memory'][1] / 1e6:,.0f} | {ratios['memory']:.2f} |",
        flush=True,
    )
    judged = ["memory"] if only_memory else list(ratios)
    return all(abs(ratios[name] - 1) <= BAR for name in judged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=default_data(), help=DATA_HELP)
    parser.add_argument(
        "--steps", type=int, default=9, help="a training's optimizer steps at least, the first not timed"
    )
    parser.add_argument("--cases", type=int, nargs="+", help="only these of the cases, counted from 0")
    parser.add_argument("--only-memory", action="store_true", help="on a machine that is busy: time is not judged")
    parser.add_argument("--paper", action="store_true", help="print the table of large trainings, which are not run")
    parser.add_argument("--work", choices=["plan", "training"], help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps({"plan": plan_of, "training": training_of}[options.work](json.loads(options.options))))
        return 0
    if options.paper:
        print_paper()
        return 0
    print(
        "| training | s a step, predicted | measured (range) | ratio | libraries, MB | all, predicted | measured | ratio |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    good = []
    for number in options.cases or range(len(CASES)):
        for line in compare(CASES[number], options.data, options.steps, options.only_memory):
            good.append(report(line, options.only_memory))
    print(f"\n{sum(good)} of {len(good)} within {BAR:.0%}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
