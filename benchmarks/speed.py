"""Train and evaluate the same model on the same pairs with plaudit and with the reference, by turns, and compare.

pip install -r benchmarks/requirements.txt   first; the reference is needed in benchmarks/ and nowhere else.

Each turn is a process of its own, so that neither library inherits the other's memory. The first step of a turn is not
timed. Between steps a large matrix product is timed, so that the share of the machine's peak is of the same minutes.
"""

import argparse
import gzip
import importlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from plaudit.shapes import CONFIGS

SHAPES = {
    "qwen3-1m": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 4,
                 "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 16_000},
    "qwen3-30m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
                  "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16_000},
    **{name: {key: value for key, value in CONFIGS[name].items() if key != "model_type"}
       for name in ("qwen3-0.6b", "qwen3-4b")},
}  # fmt: skip
GENERATED = "generated"
# The two real sets lie beside the project where they are at hand at all; anything else is a path.
FOLDER = Path(__file__).parents[2] / "shared" / "data"
NAMED = {"hh_harmless": FOLDER / "hh_harmless_test.jsonl.gz", "dpo_en_demo": FOLDER / "dpo_en_demo.json"}
DATA_HELP = "hh_harmless, dpo_en_demo, a file of pairs, or 'generated'; hh_harmless unless it is not here"
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


# Data


def default_data() -> str:
    return "hh_harmless" if NAMED["hh_harmless"].exists() else GENERATED


def rows_of(data: str, prompt_words: int = 200, answer_words: int = 100) -> list[dict]:
    """Return pairs: of a JSON or JSON Lines file, plain or ShareGPT, or made up of random words."""
    if data == GENERATED:
        return generated(prompt_words, answer_words)
    path = NAMED.get(data, Path(data))
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = json.load(file) if path.suffix == ".json" else [json.loads(line) for line in file]
    if "conversations" not in rows[0]:
        return [{"chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]
    turn = lambda message: {"role": ROLES[message["from"]], "content": message["value"]}  # noqa: E731
    return [
        {
            "prompt": [turn(message) for message in row["conversations"]],
            "chosen": [turn(row["chosen"])],
            "rejected": [turn(row["rejected"])],
        }
        for row in rows
    ]


def generated(prompt_words: int, answer_words: int, count: int = 512) -> list[dict]:
    """Return pairs whose sides share a prompt of that many words (0: nothing) and have answers of equal length."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=3)) for _ in range(400)]
    text = lambda count: " ".join(drawn.choices(words, k=count))  # noqa: E731
    return [
        {"prompt": text(prompt_words) + " ", "chosen": text(answer_words), "rejected": text(answer_words)}
        if prompt_words
        else {"chosen": text(answer_words), "rejected": text(answer_words)}
        for _ in range(count)
    ]


def make_tokenizer(rows: list[dict], folder: Path) -> None:
    """Save a byte-level BPE of at most 16,000 tokens learnt from the rows, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|pad|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((json.dumps(row, ensure_ascii=False).replace("\\n", "\n") for row in rows), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>", chat_template=TEMPLATE
    ).save_pretrained(folder)


def make_model(shape: dict, pad_token_id: int):
    """Return a Qwen3 classifier of the shape, its weights random and always the same."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    config = Qwen3Config(**shape, max_position_embeddings=4096, pad_token_id=pad_token_id, num_labels=1)
    return Qwen3ForSequenceClassification(config)


# One turn


def turn(options: argparse.Namespace) -> dict:
    """Train or evaluate once with one library; return times, losses, tokens and memory as plain data."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    library = importlib.import_module(options.library)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    rows = json.loads((Path(options.folder) / "rows.json").read_text(encoding="utf-8"))
    dtype = {"float32": torch.float32, "bfloat16": torch.float32, "pure-bfloat16": torch.bfloat16}[options.precision]
    model = make_model(SHAPES[options.shape], tokenizer.pad_token_id).to(dtype)
    meter = Meter(model, options.device, options.precision, options.work == "train")

    class Timed(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            meter.begin()

        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            meter.end(optimizer)

        def on_prediction_step(self, *args, **kwargs):
            meter.end()
            meter.begin()

    with tempfile.TemporaryDirectory() as folder:
        args = library.RewardConfig(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=1e-5,
            max_length=options.max_length,
            logging_steps=1,
            bf16=options.precision == "bfloat16",
            use_cpu=options.device == "cpu",
            gradient_checkpointing=options.activation_checkpointing == "on",
            train_sampling_strategy="sequential" if options.sorted else "random",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        train = Dataset.from_list(rows)
        callbacks = {"callbacks": [Timed()], "processing_class": tokenizer}
        if options.work == "train":
            trainer = library.RewardTrainer(model, args, train_dataset=train, **callbacks)
            trainer.train()
            losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
            pairs = options.batch_size * (options.steps - 1)
        else:
            held_out = train.select(range(options.steps * options.batch_size))
            trainer = library.RewardTrainer(model, args, train_dataset=train, eval_dataset=held_out, **callbacks)
            meter.begin()
            losses = [trainer.evaluate()["eval_loss"]]
            # Over-long pairs have been dropped.
            pairs = len(trainer.eval_dataset) - options.batch_size
    return {"losses": losses, "pairs": pairs, **meter.result()}


class Meter:
    """Times, tokens computed, attention pairs, memory, and the machine's matrix product, step by step."""

    def __init__(self, model, device: str, precision: str, is_training: bool) -> None:
        import torch

        self.torch, self.device = torch, torch.device(device)
        self.seconds, self.peak_rates, self.peaks = [], [], []
        self.before = self.of_optimizer = 0
        self.tokens: list[int] = [0]
        self.scores: list[list] = [[]]
        self.is_training = is_training
        self.weights = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
        self.channels = model.config.num_attention_heads * model.config.head_dim * model.config.num_hidden_layers
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        side = 2048 if device == "cpu" else 8192
        self.factors = [torch.randn(side, side, dtype=dtype, device=self.device) for _ in range(2)]
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        positions = kwargs.get("position_ids")
        self.tokens[-1] += ids.numel()
        rows, length = ids.shape
        # Read after the run: here it would make a GPU wait.
        self.scores[-1].append(rows * length * (length + 1) // 2 if positions is None else (positions + 1).sum())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def _rate(self) -> float:
        """Return the machine's floating-point operations a second in a large matrix product, now."""
        side = self.factors[0].shape[0]
        times = []
        for _ in range(3):
            self._wait()
            start = time.perf_counter()
            self.factors[0] @ self.factors[1]
            self._wait()
            times.append(time.perf_counter() - start)
        return 2 * side**3 / statistics.median(times)

    def begin(self) -> None:
        self.before = self.before or self._memory_now()
        self.peak_rates.append(self._rate())
        self._reset_memory()
        self._wait()
        self.start = time.perf_counter()

    def end(self, optimizer=None) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self.start)
        self.peaks.append(self._peak_memory())
        self.tokens.append(0)
        self.scores.append([])
        if optimizer is not None:
            kept = [value for state in optimizer.state.values() for value in state.values()]
            self.of_optimizer = sum(value.nbytes for value in kept if self.torch.is_tensor(value))

    def _memory_now(self) -> int:
        return self.torch.cuda.memory_allocated() if self.device.type == "cuda" else self._status("VmRSS")

    def _reset_memory(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def _peak_memory(self) -> int:
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else self._status("VmHWM")

    @staticmethod
    def _status(field: str) -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024

    def result(self) -> dict:
        timed = slice(1, None)
        # 2 operations a weight and token, 4 a score and channel, and twice as many again for the backward pass.
        passes = 3 if self.is_training else 1
        operations = [
            passes * (2 * self.weights * tokens + 4 * self.channels * sum(map(int, scores)))
            for tokens, scores in zip(self.tokens, self.scores, strict=True)
        ][: len(self.seconds)]
        return {
            "seconds": self.seconds[timed],
            "tokens": sum(self.tokens[: len(self.seconds)][timed]),
            "share_of_peak": sum(operations[timed]) / sum(self.seconds[timed]) / statistics.median(self.peak_rates),
            "peak_rate": statistics.median(self.peak_rates),
            "peak_memory": max(self.peaks[timed]),
            # What a step takes beyond the process with its weights, and the optimizer's state.
            "step_memory": max(self.peaks[timed]) - self.before - self.of_optimizer,
        }


# The comparison


def compare(options: argparse.Namespace) -> dict:
    """Return each library's turns, taken alternately."""
    turns = {library: [] for library in options.libraries.split(",")}
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(options.data, options.prompt_words, options.answer_words)
        make_tokenizer(rows, Path(folder))
        if options.sorted:
            rows = sorted_by_longer_side(rows, folder, options)
        (Path(folder) / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        for _, library in itertools.product(range(options.repeats), turns):
            command = [sys.executable, __file__, *sys.argv[1:], "--library", library, "--folder", folder]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            turns[library].append(json.loads(done.stdout.splitlines()[-1]))
    return turns


def sorted_by_longer_side(rows: list[dict], folder: str, options: argparse.Namespace) -> list[dict]:
    """Return a spread of whole batches of equally long pairs, in the way that a user could prepare the data beforehand."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from plaudit.prepare import Rules, pair_lengths, prepare

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepared, _ = prepare(Dataset.from_list(rows), "train", tokenizer, Rules(None, None, None), drop=False)
    longer = pair_lengths(prepared).max(axis=1)
    order = sorted((row for row in range(len(rows)) if longer[row] <= options.max_length), key=lambda row: longer[row])
    starts = range(0, len(order) - options.batch_size + 1, options.batch_size)
    chosen = [starts[(2 * i + 1) * len(starts) // (2 * options.steps)] for i in range(options.steps)]
    return [rows[row] for start in chosen for row in order[start : start + options.batch_size]]


def rates_of(turns: dict) -> dict[str, list[float]]:
    """Return each library's pairs per second, one a turn."""
    return {
        library: [result["pairs"] / sum(result["seconds"]) for result in results] for library, results in turns.items()
    }


def report(turns: dict) -> None:
    rates = rates_of(turns)
    for library, results in turns.items():
        share = statistics.median(result["share_of_peak"] for result in results)
        peak = statistics.median(result["peak_rate"] for result in results) / 1e9
        memory, step = (min(result[key] for result in results) / 2**20 for key in ("peak_memory", "step_memory"))
        low, high = min(rates[library]), max(rates[library])
        print(
            f"{library:8} {statistics.median(rates[library]):7.2f} pairs/s ({low:.2f} to {high:.2f}), "
            f"{results[0]['tokens']:,} tokens computed, {share:.0%} of the matmul peak of {peak:,.0f} GFLOP/s, "
            f"peak memory {memory:,.0f} MiB, of which a step's own {step:,.0f} MiB"
        )
    if len(turns) == 2:
        ours, theirs = turns.values()
        ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
        apart = max(
            abs(one - other)
            for a, b in zip(ours, theirs, strict=True)
            for one, other in zip(a["losses"], b["losses"], strict=True)
        )
        step = [min(result["step_memory"] for result in results) for results in turns.values()]
        print(
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x pairs/s, "
            f"{step[0] / step[1]:.2f} x a step's memory, losses apart by at most {apart:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=default_data(), help=DATA_HELP)
    parser.add_argument("--prompt-words", type=int, default=200, help="of generated pairs; 0: the sides share nothing")
    parser.add_argument("--answer-words", type=int, default=100, help="of generated pairs")
    parser.add_argument("--work", choices=["train", "evaluate"], default="train")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "pure-bfloat16"], default="float32",
                        help="bfloat16: float32 weights under autocast; pure-bfloat16: bfloat16 weights")  # fmt: skip
    parser.add_argument("--activation-checkpointing", choices=["on", "off"], default="on")
    parser.add_argument("--sorted", action="store_true", help="sort the data beforehand by the longer side")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--steps", type=int, default=6, help="a turn's optimizer steps, of which the first is not timed"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--libraries", default="plaudit,trl")
    parser.add_argument("--save", help="write the turns' figures to this JSON file")
    parser.add_argument("--library", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(json.dumps(turn(options)))
        return
    turns = compare(options)
    report(turns)
    if options.save:
        Path(options.save).write_text(json.dumps({"options": vars(options), "turns": turns}), encoding="utf-8")


if __name__ == "__main__":
    main()
