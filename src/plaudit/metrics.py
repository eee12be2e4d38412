"""Numbers about rewards: plain functions of arrays."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# The Bradley-Terry loss, in nats, of a model that knows nothing.
LN_2 = math.log(2)


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


def wilson_interval(successes: float, total: float, z: float = 1.959963984540054) -> tuple[float, float]:
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


def not_finite(figures: Mapping[str, Any]) -> str | None:
    """Return the first figure that is infinite or no number, as in "loss is nan"; None where all are finite."""
    for name, value in figures.items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    return None


def require_finite(figures: Mapping[str, Any], step: int, where: str = "") -> None:
    """Raise FloatingPointError, naming figure and step, for the first number that is infinite or none.

    where: what is known of the rows that it came from, a sentence without its full stop.
    """
    problem = not_finite(figures)
    if problem is not None:
        raise FloatingPointError(
            f"{problem} at step {step}: {where}{'; ' if where else ''}training stops before a broken model is logged or "
            "saved; lower learning_rate, add warm-up, or look for extreme values in the margin column; the last "
            "checkpoint is kept"
        )


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return each value's rank from 1 for the smallest; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def roc_auc(scores: np.ndarray, is_right: np.ndarray) -> float | None:
    """Return the chance that a right candidate scores above a wrong one, a tie counting half; None without both.

    Source: Mann and Whitney (1947), Annals of Mathematical Statistics 18.
    """
    is_right = np.asarray(is_right, bool)
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return None
    above = average_ranks(scores)[is_right].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the rank correlation, -1 to 1, with tied ranks averaged; None where one side is constant.

    Source: Spearman (1904), American Journal of Psychology 15.
    """
    ranks = [average_ranks(np.asarray(values)) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return max(-1.0, min(1.0, float(centred[0] @ centred[1]) / spread)) if spread else None


def kendall(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return Kendall's tau-b, -1 to 1, for short lists (all pairs are compared); None where one side is constant.

    Source: Kendall (1945), Biometrika 33.
    """
    signs = [np.sign(np.subtract.outer(values, values)) for values in map(np.asarray, (first, second))]
    spread = math.sqrt(float((signs[0] ** 2).sum() * (signs[1] ** 2).sum()))
    return max(-1.0, min(1.0, float((signs[0] * signs[1]).sum()) / spread)) if spread else None
