"""Numbers about rewards: plain functions of arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def pair_metrics(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, float]:
    """Return what is logged about a set of pairs: accuracy (a tie is wrong), ties, margin and the rewards' spread.

    chosen, rejected: rewards, shape (num_pairs,), at least one pair. `accuracy` and `ties` are shares, 0 to 1;
    `margin` is the mean reward difference; `min_reward`, `mean_reward`, `max_reward` are over both sides.
    """
    chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    return {
        "min_reward": float(min(chosen.min(), rejected.min())),
        "mean_reward": float((chosen.mean() + rejected.mean()) / 2),
        "max_reward": float(max(chosen.max(), rejected.max())),
        "accuracy": float((chosen > rejected).mean()),
        "ties": float((chosen == rejected).mean()),
        "margin": float((chosen - rejected).mean()),
    }


def wilson_interval(successes: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the interval, as shares from 0 to 1, that holds the true share with the confidence of z (default 95 %).

    Source: Wilson (1927), Journal of the American Statistical Association 22.
    """
    if total <= 0:
        raise ValueError(f"an interval needs at least one trial, but total is {total}")
    share = successes / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_loss(metrics: Mapping[str, float]) -> float:
    """Return the mean of an evaluation's losses, one for each evaluation set."""
    values = [value for name, value in metrics.items() if name.endswith("_loss")]
    return sum(values) / len(values)


def require_finite(figures: Mapping[str, Any], step: int) -> None:
    """Raise FloatingPointError, naming figure and step, for the first number that is infinite or none."""
    for name, value in figures.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: training stops before a broken model is logged or saved; lower "
                "learning_rate, add warm-up, or look for extreme values in the margin column; the last checkpoint is kept"
            )
