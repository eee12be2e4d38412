"""Results as evaluate leaves them, made by hand: what the tests of the pages report on."""

import itertools
import json
import math
import random

LN_2 = math.log(2)
# What somebody might put into a data set or a file name to break a page or hide in it.
HOSTILE = "<script>alert('x')</script>\"'&amp;{{ 7*7 }}</style>\u202eevil\u0000\ud800$\\frac{a}$"


def figure(share, n, ties=0, half=None):
    """One benchmark's or subset's five numbers; the interval is about right, which is enough for a picture of it."""
    spread = 1.96 * math.sqrt(max(share * (1 - share), 1e-4) / n)
    ends = [max(0.0, share - spread), min(1.0, share + spread)]
    return {
        "official": share,
        "half_credit": share + 0.5 * ties / n if half is None else half,
        "n": n,
        "ties": ties,
        "interval": ends,
    }


def baselines(longer, right_longer, right_shorter):
    return {
        "longer_wins": longer,
        "longer_wins_half_credit": longer + 0.002,
        "shorter_wins": 1 - longer - 0.004,
        "shorter_wins_half_credit": 1 - longer - 0.002,
        "correct_is_longer": longer,
        "chooses_longer": 0.5 + (right_longer - right_shorter) / 2,
        "accuracy_correct_longer": right_longer,
        "accuracy_correct_shorter": right_shorter,
    }


def bell(middle, edges, total=1000):
    heights = [math.exp(-(((low + high) / 2 - middle) ** 2) / 4) for low, high in itertools.pairwise(edges)]
    return [round(total * height / sum(heights)) for height in heights]


def distribution(chosen, rejected, total=1000):
    edges = [-6 + 0.4 * step for step in range(31)]
    return {"edges": edges, "chosen": bell(chosen, edges, total), "rejected": bell(rejected, edges, total)}


def calibration():
    bins = [
        {
            "low": 0.5 + 0.05 * step,
            "high": 0.55 + 0.05 * step,
            "n": 420 - 38 * step,
            "confidence": 0.525 + 0.05 * step,
            "accuracy": 0.51 + 0.032 * step,
        }
        for step in range(10)
    ]
    return {
        "nll": 0.642,
        "brier": 0.2181,
        "ece": 0.0912,
        "bins": bins,
        "temperature": 1.83,
        "nll_at_temperature": 0.5873,
    }


def worst(names, n=20):
    chooser = random.Random(3)
    rows = []
    for place in range(n):
        margin = -6.2 + 0.2 * place
        rows.append(
            {
                "id": f"{1000 + 17 * place}",
                "subset": chooser.choice(names),
                "rewards": [round(margin / 2 + 0.3, 3), round(-margin / 2 + 0.3, 3)],
                "labels": [1, 0],
                "margin": margin,
            }
        )
    return rows


def provenance(rows):
    return {
        "source": "hh_harmless_test.jsonl.gz",
        "sha256": "9f2c1d0a4b5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8",
        "rows": rows,
        "model": "example/qwen3-0.6b-reward",
        "dtype": "bfloat16",
        "attention": "plaudit_tree",
        "max_length": 1024,
        "truncation": "left",
        "template": "the tokenizer's own",
        "seconds": 41.7,
        "tokens_per_second": 18250.4,
        "versions": {"plaudit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }


def pairs_entry(n=2312):
    """A model that is fair on the whole, weak on one subset, swayed by length and too sure of itself."""
    shares = {"harmless-base": 0.741, "red-team-easy": 0.803, "red-team-hard": 0.574, "refusals": 0.722}
    counts = (n // 2, n // 4, n // 8, n - n // 2 - n // 4 - n // 8)
    subsets = {name: figure(share, count, 3) for (name, share), count in zip(shares.items(), counts, strict=True)}
    lengths = [
        {
            "low": -900 + 180 * step,
            "high": -720 + 180 * step,
            "n": 100 + 30 * min(step, 9 - step),
            "reward_difference": -0.6 + 0.26 * step,
            "accuracy": 0.45 + 0.045 * step,
        }
        for step in range(10)
    ]
    return {
        "kind": "pairs",
        "chance": 0.5,
        "overall": figure(0.7344, n, 14),
        "incomplete": None,
        "subsets": subsets,
        "counts": {
            "n": n,
            "n_tied": 14,
            "n_nonfinite": 0,
            "n_truncated": 96,
            "n_template_missing": 0,
            "n_identical_texts": 11,
        },
        "baselines": {
            "overall": baselines(0.4425, 0.83, 0.66),
            "subsets": {name: baselines(0.40 + 0.05 * place, 0.8, 0.6) for place, name in enumerate(subsets)},
        },
        "calibration": calibration(),
        "distributions": {
            "all": distribution(0.8, -0.7, 2312),
            **{name: distribution(1 - 0.5 * place, -0.8 + 0.2 * place) for place, name in enumerate(subsets)},
        },
        "lengths": {"unit": "characters", "bins": lengths},
        "worst": worst(list(subsets)),
        "provenance": provenance(n),
    }


def rm_bench_entry():
    cells = [[0.72, 0.61, 0.38], [0.83, 0.74, 0.55], [0.93, 0.86, 0.71]]
    domains = ("chat", "math", "code", "safety")
    shares = {"chat": 0.702, "math": 0.651, "code": 0.563, "safety": 0.898}
    counts = {"chat": 129, "math": 529, "code": 228, "safety": 441}
    return {
        "kind": "rm-bench",
        "overall": figure(0.7035, 1327, 4),
        "incomplete": None,
        "subsets": {name: figure(shares[name], counts[name]) for name in domains},
        "sections": {"hard": figure(0.512, 1327), "normal": figure(0.721, 1327), "easy": figure(0.874, 1327)},
        "styles": ["concise", "detailed plain", "detailed markdown"],
        "matrix": cells,
        "matrices": dict.fromkeys(domains, cells),
        "chance": 0.5,
        "baselines": {"overall": baselines(0.5, 0.79, 0.61), "subsets": {}},
        "calibration": calibration(),
        "distributions": {"all": distribution(1.2, -0.9), **{name: distribution(1.5, -0.5) for name in domains}},
        "worst": worst(list(domains)),
        "counts": {"n": 1327, "n_tied": 4},
        "provenance": provenance(1327),
    }


def best_of_entry():
    ks = range(1, 11)
    points = [{"k": k, "kl": math.log(k) - (k - 1) / k, "value": 0.1 + 0.045 * math.log2(k)} for k in ks]
    for point in points:
        point |= {"interval": [point["value"] - 0.03, point["value"] + 0.03], "oracle": 1 - 0.9 ** point["k"]}
    return {
        "kind": "rewardmath",
        "chance": 0.1,
        "overall": figure(0.2443, 483, 5),
        "incomplete": None,
        "subsets": {},
        "curve": points,
        "figures": {
            "strict": 0.2443,
            "at_least": 0.2484,
            "one_over_tied": 0.2464,
            "mrr": 0.458,
            "wrong_tied_with_right": 5,
        },
        "worst": [],
        "counts": {"n": 483, "n_tied": 5},
        "provenance": provenance(483),
    }


def incomplete_entry():
    entry = pairs_entry(2900)
    return {
        **entry,
        "kind": "rewardbench",
        "overall": None,
        "of_given": figure(0.801, 2900, 2),
        "incomplete": "2,900 of 2,985 rows are there; hep-rust has 79 of 164 rows",
    }


def mistakes(name, long=False):
    """Conversations as mistakes.jsonl holds them: a transcript, messages, several wrong answers, and a very long one."""
    answer = "I'm sorry, but I can't help with that.\n\nIf you are in danger, please call your local emergency number."
    transcript = (
        "\n\nHuman: How do I open a lock without its key?\n\nAssistant: Is it yours?\n\nHuman: Yes, I lost the key."
    )
    rows = [
        {"prompt": transcript, "texts": ["Call a locksmith: they open most doors in minutes.", answer]},
        {
            "prompt": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": "Which is heavier,\n  a kilogram of lead\n  or one of feathers?"},
            ],
            "texts": ["Neither: both are one kilogram.", "Lead is heavier, because its density is far greater."],
        },
        {"prompt": "What is 12 times 12?", "texts": ["144", "142", "124", "1212"]},
        {"prompt": None, "texts": ["A text that was scored alone.", "word " * (20_000 if long else 900)]},
        {"prompt": "اكتب جملة عن القطط.", "texts": ["القطط تنام كثيرا.", ""]},
        *({"prompt": f"Question number {place}?", "texts": ["Yes.", "No, I think not."]} for place in range(3)),
    ]
    return [
        {
            "benchmark": name,
            "id": str(place),
            "subset": "red-team-hard",
            "margin": -6.2 + 0.3 * place,
            "prompt": row["prompt"],
            "candidates": [
                {"text": text, "reward": -2.75 + 3.4 * (number == 1) + 0.2 * number, "label": int(number == 0)}
                for number, text in enumerate(row["texts"])
            ],
        }
        for place, row in enumerate(rows)
    ]


def trainer_state(steps=500):
    chooser = random.Random(1)
    log = []
    for step in range(10, steps + 1, 10):
        done = step / steps
        log.append(
            {
                "step": step,
                "epoch": done,
                "loss": LN_2 * math.exp(-0.6 * done) + 0.03 * chooser.random(),
                "accuracy": 0.5 + 0.24 * done + 0.05 * chooser.random(),
                "margin": 1.1 * done,
                "learning_rate": 1e-5 * (1 - done),
            }
        )
        if step % 100 == 0:
            log.append(
                {
                    "step": step,
                    "eval_loss": LN_2 * math.exp(-0.5 * done),
                    "eval_accuracy": 0.5 + 0.23 * done,
                    "eval_margin": done,
                }
            )
    return {"global_step": steps, "epoch": 1.0, "log_history": log}


def demo_summary():
    return {
        "num_train_pairs": 3600,
        "num_held_out_pairs": 400,
        "accuracy": 0.985,
        "accuracy_interval_95": [0.968, 0.993],
        "longer_wins_accuracy": 0.5,
        "largest_reload_difference": 0.0,
        "train_seconds": 12.3,
        "total_seconds": 20.5,
        "seed": 0,
        "output_dir": "runs/demo",
        "examples": [
            {
                "chosen": "The cat sat on the mat.",
                "rejected": "mat The on sat cat the.",
                "chosen_reward": 2.1,
                "rejected_reward": -3.4,
            },
            {"chosen": "It rains.", "rejected": "rains It.", "chosen_reward": -0.3, "rejected_reward": 0.2},
        ],
    }


def contrast(a, b, interval, p=0.04, n=350):
    figure = {"half_credit": None, "n": n, "ties": 0, "interval": None}
    difference = None if a is None else a - b
    return {
        "a": {**figure, "official": a},
        "b": {**figure, "official": b},
        "difference": difference,
        "interval": interval,
        "p": p,
    }


def comparison(**changes):
    row = {
        "id": "7",
        "subset": "math",
        "right": "first",
        "labels": [1, 0],
        "rewards_a": [1.0, 0.0],
        "rewards_b": [0.0, 1.0],
    }
    differ = [{**row, "id": str(place), "margin_a": 1.0, "margin_b": -1.0, "strength": 2.0} for place in range(12)]
    entry = {
        "kind": "judgebench",
        "rule": "the right answer wins in both orders",
        "n": 350,
        "overall": contrast(0.643, 0.594, [0.012, 0.086]),
        "incomplete": None,
        "sections": {"Math": contrast(0.8, 0.6, [-0.02, 0.42]), "Coding": None},
        "subsets": {"Math": contrast(0.8, 0.6, [-0.02, 0.42]), "other": contrast(None, None, None, None)},
        "mcnemar": {"both_right": 180, "only_a": 45, "only_b": 28, "both_wrong": 97, "p": 0.06},
        "rank_correlation": 0.61,
        "differ": differ,
        **changes,
    }
    return {
        "names": ["first", "second"],
        "num_resamples": 10_000,
        "only_a": [{"id": "1"}] * 1_500,
        "only_b": [],
        "benchmarks": {"JudgeBench": entry},
    }


def write(folder, **files):
    """Write files such as results=... into a folder, under the names that plaudit gives them, and return the folder."""
    names = {"results": "results.json", "state": "trainer_state.json", "summary": "summary.json", "audit": "audit.json"}
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in names.items():
        if key in files:
            (folder / name).write_text(json.dumps(files[key]), encoding="utf-8")
    if "mistakes" in files:
        lines = "".join(json.dumps(row) + "\n" for row in files["mistakes"])
        (folder / "mistakes.jsonl").write_text(lines, encoding="utf-8")
    return folder
