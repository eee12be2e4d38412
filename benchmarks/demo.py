"""What `plaudit demo` reaches: held-out accuracy with its interval, and seconds of training, for one seed or several."""

import argparse
import tempfile

from plaudit import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="use no more pairs than this")
    options = parser.parse_args()
    lines = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            summary = demo.run(folder, seed=seed, limit=options.limit)
        low, high = summary["accuracy_interval_95"]
        lines.append(
            f"seed {seed}: accuracy {summary['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
            f" of {summary['num_held_out_pairs']:,} pairs, {summary['train_seconds']:.1f} s of training"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
