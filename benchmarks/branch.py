"""From how many common tokens on a branch pays: the same batch with its common beginning shared and stored again, by turns."""

import argparse
import random
import statistics
import time
from functools import partial

import torch
from speed import SHAPES, make_model

from plaudit import collate
from plaudit.probe import choose_layout
from plaudit.rewards import rewards

TINY = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 16_000}  # fmt: skip
LAYOUT = collate.tree.layout


def seconds_of(model: torch.nn.Module, batch: dict) -> float:
    start = time.perf_counter()
    rewards(model, batch).sum().backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["tiny", *SHAPES], default="qwen3-30m")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--own", type=int, default=80, help="tokens of each sequence after the common ones")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    model = make_model({"tiny": TINY, **SHAPES}[options.shape], 0)
    drawn = random.Random(0)
    ids = lambda count: [drawn.randrange(1, 16_000) for _ in range(count)]  # noqa: E731
    layout, reason = choose_layout(model, [ids(20) for _ in range(3)], 0)
    assert reason is None, reason
    for common in (1, 2, 3, 4, 6, 8, 12, 16):
        beginning = ids(common)
        # Each sequence goes on with a token of its own, so that nothing else is shared.
        sequences = [[*beginning, 1 + i, *ids(options.own - 1)] for i in range(options.sequences)]
        batches = {}
        for name, minimum in (("shared", 1), ("stored again", 10**6)):
            collate.tree.layout = partial(LAYOUT, min_shared=minimum)
            batches[name] = layout(sequences)
        assert batches["shared"]["input_ids"].numel() < batches["stored again"]["input_ids"].numel()
        times: dict[str, list[float]] = {name: [] for name in batches}
        for _ in range(options.repeats):
            for name, batch in batches.items():
                times[name].append(seconds_of(model, batch))
        ratios = [one / other for one, other in zip(*times.values(), strict=True)]
        print(
            f"{common:3} common tokens: shared takes {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}) x the time of stored again"
        )


if __name__ == "__main__":
    main()
