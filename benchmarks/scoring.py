"""Score several answers to one prompt with plaudit and with the plain transformers pipeline, by turns."""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from speed import SHAPES, generated, make_model, make_tokenizer
from transformers import AutoTokenizer, pipeline

from plaudit.probe import choose_layout
from plaudit.rewards import rewards
from plaudit.tokens import encode_texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=500, help="a token each, or nearly")
    parser.add_argument("--answer-words", type=int, default=60)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows = generated(options.prompt_words, options.answer_words, count=options.answers)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(rows, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = make_model(SHAPES[options.shape], tokenizer.pad_token_id).eval().to(options.device)
    texts = [rows[0]["prompt"] + row["chosen"] for row in rows]
    # A model of its own, as transformers makes it.
    plain = pipeline(
        "text-classification",
        copy.deepcopy(model),
        tokenizer=tokenizer,
        function_to_apply="none",
        device=options.device,
    )
    with_eos = [text + tokenizer.eos_token for text in texts]

    def by_pipeline(batch_size: int) -> torch.Tensor:
        return torch.tensor([result["score"] for result in plain(with_eos, batch_size=batch_size)])

    layout = None

    @torch.no_grad()
    def by_plaudit() -> torch.Tensor:
        nonlocal layout
        sequences = encode_texts(tokenizer, texts)
        if layout is None:
            layout, reason = choose_layout(model, sequences[:4], tokenizer.pad_token_id)
            assert reason is None, reason
        batch = {name: value.to(options.device) for name, value in layout(sequences).items()}
        return rewards(model, batch).cpu()

    wanted = by_pipeline(1)
    ways = {
        "plaudit": by_plaudit,
        "pipeline, one by one": lambda: by_pipeline(1),
        "pipeline, one batch": lambda: by_pipeline(options.answers),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        torch.testing.assert_close(way(), wanted, atol=1e-5, rtol=0)
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    lengths = [len(ids) for ids in encode_texts(tokenizer, texts)]
    print(
        f"{options.answers} answers, {sum(lengths):,} tokens padded, {layout(encode_texts(tokenizer, texts))['input_ids'].numel():,} in the tree"
    )
    for name, times in seconds.items():
        ratios = [other / ours for ours, other in zip(seconds["plaudit"], times, strict=True)]
        print(
            f"{name:22} {options.answers / statistics.median(times):7.1f} answers/s; plaudit is "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) x as fast"
        )


if __name__ == "__main__":
    main()
