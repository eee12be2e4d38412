"""The first command: real sentences that ship with Python, a tiny model, and one whole run of the trainer on them."""

import ast
import json
import random
import re
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    set_seed,
)

from plaudit import report
from plaudit.config import RewardConfig
from plaudit.metrics import wilson_interval
from plaudit.say import say
from plaudit.trainer import RewardTrainer
from plaudit.training_results import write_training_results

EOS, PAD = "<|end|>", "<|pad|>"
HELD_OUT_SHARE = 0.1
TOLERANCE = 1e-5  # the largest difference of float32 rewards that padding to another length explains

# Parts that some distributions leave out of Python; without them the corpus is the same on each machine.
NOT_READ = {
    "__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "test", "tests", "tkinter", "turtledemo", "venv",
}  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
# Doctests, signatures, tables, markup, paths and links: not prose.
NOT_PROSE = re.compile(r">>>|::|->|[{}<>|=\\~^]|--|\.\.|https?:|\+\+|\*\*|/\w+/")


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of 6 to 60 words in running text; code, tables and fragments are left out."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            if (
                6 <= len(words) <= 60
                and sentence[0].isupper()
                and sentence[-1] in ".!?"
                and sentence.count("(") == sentence.count(")")
                and sum(letter.isalpha() or letter == " " for letter in sentence) >= 0.8 * len(sentence)
                and len({word.lower() for word in words}) >= 5  # something is left to shuffle
                and not NOT_PROSE.search(sentence)
            ):
                yield sentence


def docstrings_of(file: Path) -> Iterator[str]:
    """Yield the docstrings of a source file, which is parsed and never run; none where it is not valid Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def topics_of(file: Path) -> Iterator[str]:
    """Yield the texts of `pydoc_data/topics.py`, which holds one dict from topic to text."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def read_corpus(library: Path | None = None) -> list[str]:
    """Return the sentences of Python's own documentation, about 11,000, each once, in an order that depends on nothing
    but the Python version. Two sentences made of the same words count as one.

    library: the folder of the standard library; the running Python's where None.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in library.rglob("*.py") if not NOT_READ & set(file.relative_to(library).parts[:-1])]
    files.sort(key=lambda file: file.relative_to(library).as_posix())
    topics = library / "pydoc_data" / "topics.py"
    found: dict[tuple[str, ...], str] = {}
    for file in tqdm([*files, topics], desc="Reading Python's documentation", unit=" files"):
        if file == topics and not file.exists():
            say("this Python has no pydoc_data.topics: the sentences are those of the docstrings alone")
            continue
        for text in topics_of(file) if file == topics else docstrings_of(file):
            for sentence in sentences_of(text):
                found.setdefault(tuple(sorted(sentence.lower().split())), sentence)
    return list(found.values())


def make_pairs(sentences: Sequence[str], seed: int) -> list[dict[str, str]]:
    """Return one pair a sentence, in a seeded order: chosen is the sentence, rejected the same words shuffled."""
    generator = random.Random(seed)
    pairs = []
    for sentence in generator.sample(sentences, len(sentences)):
        words = sentence.split()
        shuffled = words
        while shuffled == words:
            shuffled = generator.sample(words, len(words))
        pairs.append({"chosen": sentence, "rejected": " ".join(shuffled)})
    return pairs


def train_tokenizer(texts: Sequence[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from the texts, with end and padding tokens of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[PAD, EOS], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=1024)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForSequenceClassification:
    """Return a reward model of 0.86 million seeded random parameters in the shape of Qwen3."""
    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,  # type: ignore[call-arg]
    )
    return Qwen3ForSequenceClassification(config)


@torch.no_grad()
def reload_and_score(folder: Path, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """Return one reward a text, shape (num_texts,), from a saved model, with nothing but transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rewards = []
    for start in tqdm(range(0, len(texts), batch_size), desc="Scoring with the reloaded model", unit=" batches"):
        batch = [text + tokenizer.eos_token for text in texts[start : start + batch_size]]
        inputs = tokenizer(batch, padding=True, return_tensors="pt", return_token_type_ids=False)
        rewards.append(model(**inputs).logits[:, 0])
    return torch.cat(rewards)


def pick_examples(pairs: Sequence[dict[str, str]], rewards: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return five scored pairs to look at: the first four short ones, and the worst mistake (or a fifth short one)."""
    scored: list[dict[str, Any]] = [
        {**pair, "chosen_reward": chosen, "rejected_reward": rejected}
        for pair, (chosen, rejected) in zip(pairs, rewards, strict=True)
    ]
    worst = min(scored, key=lambda row: row["chosen_reward"] - row["rejected_reward"])
    short = [row for row in scored if len(row["chosen"]) <= 80 and row is not worst]
    if worst["chosen_reward"] > worst["rejected_reward"]:
        return short[:5]
    return [*short[:4], worst]


def write_pairs(file: Path, pairs: Sequence[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def train(folder: Path, train_pairs: list[dict], held_out_pairs: list[dict], seed: int) -> tuple[Any, float, float]:
    """Train for one epoch and save to `folder / "model"`; return the held-out rewards, shape (num_pairs, 2), the
    accuracy that the trainer's own evaluation gives, and the seconds of training."""
    tokenizer = train_tokenizer([pair["chosen"] for pair in train_pairs])
    base = folder / "base"
    build_model(tokenizer, seed).save_pretrained(base)
    tokenizer.save_pretrained(base)
    args = RewardConfig(
        output_dir=str(folder / "model"),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        gradient_checkpointing=False,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    held_out = Dataset.from_list(held_out_pairs)
    trainer = RewardTrainer(str(base), args, train_dataset=Dataset.from_list(train_pairs), eval_dataset=held_out)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    trainer.save_state()
    rewards = trainer.predict(held_out).predictions
    write_training_results(trainer, folder, with_report=False, name="held-out sentences")
    return rewards, accuracy, seconds


def run(output_dir: str | Path = "runs/demo", *, seed: int = 0, limit: int | None = None) -> dict[str, Any]:
    """Train, evaluate, save, reload and compare; return the summary, which is also left as `summary.json`.

    limit: use no more pairs than this, for a quick try; at least 20. The folder then holds `train.jsonl`,
    `held_out.jsonl`, `base` (the untrained model), `model` (the trained one, with its card) and `summary.json`.
    A ValueError says that the reloaded model's rewards are not the trained ones.
    """
    if limit is not None and limit < 20:
        raise ValueError(f"limit is {limit}: the demo needs at least 20 pairs to train on and hold out")
    start = time.perf_counter()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = make_pairs(read_corpus(), seed)[:limit]
    num_held_out = int(len(pairs) * HELD_OUT_SHARE)
    held_out_pairs, train_pairs = pairs[:num_held_out], pairs[num_held_out:]
    write_pairs(folder / "train.jsonl", train_pairs)
    write_pairs(folder / "held_out.jsonl", held_out_pairs)

    rewards, accuracy, train_seconds = train(folder, train_pairs, held_out_pairs, seed)
    texts = [pair[side] for pair in held_out_pairs for side in ("chosen", "rejected")]
    reloaded = reload_and_score(folder / "model", texts).reshape(-1, 2)
    difference = float((reloaded - torch.as_tensor(rewards)).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"rewards after reloading {folder / 'model'} differ by up to {difference:.2g} from the trained"
        )

    num_correct = round(accuracy * num_held_out)
    summary = {
        "num_train_pairs": len(train_pairs),
        "num_held_out_pairs": num_held_out,
        "accuracy": accuracy,
        "accuracy_interval_95": wilson_interval(num_correct, num_held_out),
        "longer_wins_accuracy": longer_wins(held_out_pairs),
        "largest_reload_difference": difference,
        "train_seconds": train_seconds,
        "total_seconds": time.perf_counter() - start,
        "seed": seed,
        "output_dir": str(folder),
        "examples": pick_examples(held_out_pairs, torch.as_tensor(rewards).tolist()),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    page = report.try_report(folder)
    return {**summary, "report": None if page is None else str(page)}


def longer_wins(pairs: Sequence[dict[str, str]]) -> float:
    """Return the accuracy, 0 to 1, of preferring the side with more characters; sides of one length count one half."""
    points = {True: 1.0, False: 0.0}
    return sum(
        0.5 if len(pair["chosen"]) == len(pair["rejected"]) else points[len(pair["chosen"]) > len(pair["rejected"])]
        for pair in pairs
    ) / len(pairs)


def describe(summary: dict[str, Any]) -> str:
    """Return a summary as lines to print: scored examples first, then the figures and where things are."""
    lines = ["", "Held-out pairs, each side with its reward (the higher one should be the real sentence):"]
    for row in summary["examples"]:
        is_right = row["chosen_reward"] > row["rejected_reward"]
        lines += [
            "",
            f"  {row['chosen_reward']:+7.2f}  {row['chosen']}",
            f"  {row['rejected_reward']:+7.2f}  {row['rejected']}" + ("" if is_right else "   <- a mistake"),
        ]
    low, high = summary["accuracy_interval_95"]
    folder = Path(summary["output_dir"])
    lines += [
        "",
        f"held-out accuracy   {summary['accuracy']:.1%} of {summary['num_held_out_pairs']:,} pairs"
        f" (95 % interval {low:.1%} to {high:.1%})",
        f"longer answer wins  {summary['longer_wins_accuracy']:.1%} (both sides have the same length; a tie counts half)",
        f"reloaded rewards    equal the trained ones (largest difference {summary['largest_reload_difference']:.1e})",
        f"seconds             {summary['train_seconds']:.0f} of training on {summary['num_train_pairs']:,} pairs,"
        f" {summary['total_seconds']:.0f} in all",
        f"model and card      {folder / 'model'}",
        f"pairs               {folder / 'train.jsonl'}, {folder / 'held_out.jsonl'}",
        f"this summary        {folder / 'summary.json'}",
    ]
    if summary["report"] is not None:
        lines.append(f"the whole report    {summary['report']}")
    return "\n".join(lines)
