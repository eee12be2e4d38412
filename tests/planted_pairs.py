"""Preference pairs with every fault planted somewhere, in every format, and plain counts of what is in them."""

import json
import math
import random

import pytest
from datasets import Dataset

from plaudit.metrics import wilson_interval

WORDS = "Sure Yes No the a cat dog ran, sat. é ü 日本 don\u2019t **bold** `code` # - 1. I I'm".split()


def text(draw, least=0, most=12):
    joined = "".join(
        draw.choice(WORDS) + draw.choice([" ", " ", "\n", "\n- ", "  "]) for _ in range(draw.randint(least, most))
    )
    return joined.strip()


def planted(seed, num_pairs=120):
    """Return (prompt turns of chosen, of rejected, chosen, rejected) with every fault in it somewhere."""
    draw = random.Random(seed)
    prompts = [[("user", text(draw, 1, 8) or "x")] for _ in range(num_pairs // 3)]
    for prompt in prompts[::4]:
        prompt += [("assistant", text(draw, 1, 4) or "y"), ("user", text(draw, 1, 4) or "z")]
    pairs = []
    for _ in range(num_pairs):
        kind, prompt = draw.random(), draw.choice(prompts)
        one, other = text(draw, 1), text(draw, 1)
        if kind < 0.08:
            one = draw.choice(["", " ", one])
        elif kind < 0.16:
            other = one
        elif kind < 0.3 and pairs:
            pairs.append(draw.choice(pairs))
            continue
        elif kind < 0.45 and pairs:
            before_one, before_other, one, other = draw.choice(pairs)
            pairs.append((before_other, before_one, other, one))
            continue
        elif kind < 0.55:
            pairs.append((prompt, draw.choice(prompts), one, other))
            continue
        pairs.append((prompt, prompt, one, other))
    draw.shuffle(pairs)
    return pairs


def as_messages(turns):
    return [{"role": role, "content": said} for role, said in turns]


def with_prompt(pairs):
    return [(before, before, one, other) for before, _, one, other in pairs]


def conversational(pairs):
    return [
        {
            side: as_messages([*before, ("assistant", answer)])
            for side, before, answer in (("chosen", b, c), ("rejected", d, e))
        }
        for b, d, c, e in pairs
    ]


def prompted(pairs):
    return [
        {
            "prompt": as_messages(b),
            "chosen": as_messages([("assistant", c)]),
            "rejected": as_messages([("assistant", r)]),
        }
        for b, _, c, r in with_prompt(pairs)
    ]


def from_value(pairs):
    names = {"user": "human", "assistant": "gpt"}

    def spoken(turns):
        return [{"from": names[role], "value": said} for role, said in turns]

    return [
        {"chosen": spoken([*b, ("assistant", c)]), "rejected": spoken([*d, ("assistant", r)])} for b, d, c, r in pairs
    ]


def sharegpt(pairs):
    return [
        {
            "conversations": [{"from": {"user": "human", "assistant": "gpt"}[role], "value": said} for role, said in b],
            "chosen": {"from": "gpt", "value": c},
            "rejected": {"from": "gpt", "value": r},
        }
        for b, _, c, r in with_prompt(pairs)
    ]


def transcripts(pairs):
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}

    def written(turns):
        return "".join(marks[role] + said for role, said in turns)

    return [
        {"chosen": written([*b, ("assistant", c)]), "rejected": written([*d, ("assistant", r)])} for b, d, c, r in pairs
    ]


def texts(pairs):
    return [{"prompt": b[0][1], "chosen": c, "rejected": r} for b, _, c, r in pairs]


def as_pairs_of_texts(pairs):
    return [([("user", b[0][1])], [("user", b[0][1])], c, r) for b, _, c, r in pairs]


def blocks(pairs):
    """Contents as lists of blocks, which no column of texts can be."""
    # datasets decodes a text such as "-" or "1." among blocks as a number.
    pairs = [(*([(role, f"said {one}") for role, one in turns] for turns in (b, d)), c, r) for b, d, c, r in pairs]
    return [
        {
            side: [*as_messages(b), {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            for side, b, answer in (("chosen", b, c), ("rejected", d, r))
        }
        for b, d, c, r in pairs
    ]


FORMATS = {
    "conversational": (conversational, lambda pairs: pairs),
    "prompted": (prompted, with_prompt),
    "from_value": (from_value, lambda pairs: pairs),
    "sharegpt": (sharegpt, with_prompt),
    "transcripts": (transcripts, lambda pairs: [(b, d, c.strip(), r.strip()) for b, d, c, r in pairs]),
    "texts": (texts, as_pairs_of_texts),
    "blocks": (blocks, lambda pairs: pairs),
}


def write(rows, folder, form="jsonl"):
    """Write rows and return the name to audit them by."""
    if form == "jsonl":
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif form == "parquet":
        path = folder / "rows.parquet"
        Dataset.from_list(rows).to_parquet(str(path))
    elif form == "json":
        path = folder / "rows.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path = folder / "saved"
        Dataset.from_list(rows).save_to_disk(str(path))
    return str(path)


def plain_faults(pairs):
    keys = [((tuple(b), c), (tuple(d), r)) for b, d, c, r in pairs]
    seen, swapped = set(), set(keys)
    found = {
        name: []
        for name in (
            "empty",
            "empty_chosen",
            "empty_rejected",
            "identical",
            "duplicates",
            "contradictory",
            "prompts_differ",
        )
    }
    for row, ((b, d, c, r), key) in enumerate(zip(pairs, keys, strict=True)):
        for name, holds in {
            "empty": not c.strip() or not r.strip(),
            "empty_chosen": not c.strip(),
            "empty_rejected": not r.strip(),
            "identical": key[0] == key[1],
            "duplicates": key in seen,
            "contradictory": key[0] != key[1] and key[::-1] in swapped,
            "prompts_differ": b != d,
        }.items():
            if holds:
                found[name].append(row)
        seen.add(key)
    return {
        name: {"count": len(rows), "share": len(rows) / len(pairs), "rows": rows[:10]} for name, rows in found.items()
    }


def plain_accuracy(gaps):
    wins, ties, total = sum(gap > 0 for gap in gaps), sum(gap == 0 for gap in gaps), len(gaps)
    return {
        "official": wins / total,
        "half_credit": (wins + ties / 2) / total,
        "n": total,
        "ties": ties,
        "interval": list(wilson_interval(wins, total)),
    }


def plain_first_word(pairs, halves):
    words = [tuple((answer.split() or [""])[0][:32] for answer in (c, r)) for _, _, c, r in pairs]
    gaps = []
    for (one, other), half in zip(words, halves, strict=True):
        seen = [pair for pair, which in zip(words, halves, strict=True) if which != half]

        def score(word, seen=seen):
            chosen, rejected = (sum(pair[side] == word for pair in seen) for side in (0, 1))
            return (chosen + 1) / (chosen + rejected + 2) if chosen + rejected else 0.5

        gaps.append(score(one) - score(other))
    return plain_accuracy(gaps)


def plain_spread(values):
    at = lambda share: sorted(values)[math.ceil(share * len(values)) - 1]  # noqa: E731
    return {
        "min": min(values),
        **{
            name: at(share)
            for name, share in {"p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}.items()
        },
        "max": max(values),
        "mean": pytest.approx(sum(values) / len(values)),
    }


def plain_common(one, other):
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
