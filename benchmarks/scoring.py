"""Score answers to shared prompts, and single conversations of mixed lengths, with plaudit and with transformers' pipeline, by turns."""

import argparse
import copy
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from speed import SHAPES, generated, make_model, make_tokenizer
from transformers import AutoTokenizer, pipeline

from plaudit import RewardModel


def answers(num_prompts: int, num_answers: int, prompt_words: int, answer_words: int) -> list[list[dict]]:
    """Return conversations, so many answers to each of so many prompts; a word is a token, or nearly."""
    prompts = generated(prompt_words, answer_words, count=num_prompts)
    replies = generated(0, answer_words, count=num_prompts * num_answers)
    return [
        [
            {"role": "user", "content": prompts[i // num_answers]["prompt"]},
            {"role": "assistant", "content": reply["chosen"]},
        ]
        for i, reply in enumerate(replies)
    ]


def mixed(count: int) -> list[list[dict]]:
    """Return single conversations of 10 to 1,000 words, half of them below 90, as chat logs have them."""
    drawn = random.Random(0)
    lengths = [min(1000, max(10, int(drawn.lognormvariate(4.5, 1.0)))) for _ in range(count)]
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
        for length in lengths
        for row in generated_of(length, drawn)
    ]


def generated_of(length: int, drawn: random.Random) -> list[dict]:
    """Return one pair of a prompt and an answer that have so many words together."""
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=3)) for _ in range(length)]
    return [{"prompt": " ".join(words[: length // 2]), "chosen": " ".join(words[length // 2 :])}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=500, help="a token each, or nearly")
    parser.add_argument("--answer-words", type=int, default=60)
    parser.add_argument("--mixed", type=int, default=96, help="single conversations")
    parser.add_argument("--pipeline-batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    works = {
        f"{options.prompts} x {options.answers} answers": answers(
            options.prompts, options.answers, options.prompt_words, options.answer_words
        ),
        f"{options.mixed} single conversations": mixed(options.mixed),
    }
    for name, conversations in works.items():
        compare(name, conversations, options)


def compare(name: str, conversations: list[list[dict]], options: argparse.Namespace) -> None:
    """Time both on the same model and conversations, check that the rewards are the same, and print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer([{"text": each[-1]["content"]} for each in conversations], Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = make_model(SHAPES[options.shape], tokenizer.pad_token_id).eval().to(options.device)
    # A model of its own, as transformers makes it.
    plain = pipeline(
        "text-classification",
        copy.deepcopy(model),
        tokenizer=tokenizer,
        function_to_apply="none",
        device=options.device,
    )
    reward_model = RewardModel(model, tokenizer)

    def by_pipeline(batch_size: int) -> torch.Tensor:
        texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in conversations]
        return torch.tensor([one["score"] for one in plain(texts, batch_size=batch_size, add_special_tokens=False)])

    ways = {"plaudit": lambda: torch.from_numpy(reward_model.score(conversations))}
    ways |= {f"pipeline, batch_size={size}": lambda size=size: by_pipeline(size) for size in options.pipeline_batches}
    wanted = by_pipeline(1)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        torch.testing.assert_close(way(), wanted, atol=1e-5, rtol=0)
    for _ in range(options.repeats):
        for way, score in ways.items():
            start = time.perf_counter()
            score()
            seconds[way].append(time.perf_counter() - start)
    lengths = [len(tokenizer.apply_chat_template(each)["input_ids"]) for each in conversations]
    print(f"{name}: {sum(lengths):,} tokens, {min(lengths)} to {max(lengths)} a conversation")
    for way, times in seconds.items():
        ratios = [other / ours for ours, other in zip(seconds["plaudit"], times, strict=True)]
        print(
            f"  {way:24} {len(conversations) / statistics.median(times):7.1f} rows/s; plaudit is "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast"
        )


if __name__ == "__main__":
    main()
