"""Draw what speed.py saved: pairs per second by data set, and the gain against the share of the prompt.

pip install -r benchmarks/requirements.txt   first, for matplotlib.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib
from speed import rates_of

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = {"plaudit": "#1b6ca8", "trl": "#c98b2b"}
NAMES = {"plaudit": "plaudit", "trl": "reference"}


def label_of(options: dict) -> str:
    kind = "evaluation" if options["work"] == "evaluate" else "sorted" if options["sorted"] else "defaults"
    return f"{options['data']}, {kind}, {options['precision']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saved", nargs="+", type=Path, help="files that speed.py wrote with --save")
    parser.add_argument("--output", type=Path, default=Path("docs/speed.svg"))
    options = parser.parse_args()
    saved = [json.loads(file.read_text(encoding="utf-8")) for file in options.saved]
    real = [one for one in saved if one["options"]["data"] != "generated"]
    made = [one for one in saved if one["options"]["data"] == "generated" and not one["options"]["sorted"]]
    made.sort(key=share_of_prompt)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "speed"})
    figure, (bars, line) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2], layout="constrained")
    for offset, name in ((-0.2, "plaudit"), (0.2, "trl")):
        middle = [statistics.median(rates_of(one["turns"])[name]) for one in real]
        low = [m - min(rates_of(one["turns"])[name]) for m, one in zip(middle, real, strict=True)]
        high = [max(rates_of(one["turns"])[name]) - m for m, one in zip(middle, real, strict=True)]
        places = [i + offset for i in range(len(real))]
        drawn = bars.barh(places, middle, 0.38, xerr=[low, high], capsize=2, color=COLOURS[name], label=NAMES[name])
        bars.bar_label(drawn, fmt="%.1f", padding=4, fontsize=8)
    bars.set_yticks(range(len(real)), [label_of(one["options"]) for one in real], fontsize=8)
    bars.invert_yaxis()
    # Evaluation is ten times faster than training: on a plain scale the others would not be seen.
    bars.set_xscale("log")
    bars.set_xlim(0.2, 120)
    bars.set_xlabel("pairs per second (median and range, logarithmic)")
    bars.legend(frameon=False, loc="lower right")
    gains = [[ours / theirs for ours, theirs in zip(*rates_of(one["turns"]).values(), strict=True)] for one in made]
    middle = [statistics.median(gain) for gain in gains]
    shares = [100 * share_of_prompt(one) for one in made]
    spread = [
        [m - min(g) for m, g in zip(middle, gains, strict=True)],
        [max(g) - m for m, g in zip(middle, gains, strict=True)],
    ]
    line.errorbar(shares, middle, yerr=spread, color=COLOURS["plaudit"], marker="o", capsize=2, label="measured")
    line.plot(
        shares,
        [2 / (2 - share / 100) for share in shares],
        "--",
        color="#777777",
        label="tokens padded over tokens in the tree",
    )
    line.set_xlabel("share of the prompt in each sequence, %")
    line.set_ylabel("times the reference's pairs per second")
    line.set_ylim(bottom=0)
    line.legend(frameon=False)
    figure.savefig(options.output, metadata={"Date": None})


def share_of_prompt(saved: dict) -> float:
    words = saved["options"]
    return words["prompt_words"] / (words["prompt_words"] + words["answer_words"])


if __name__ == "__main__":
    main()
