"""Whether rewards can be read as chances: calibration of sigmoid(reward difference), as plain functions of arrays."""

from typing import Any

import numpy as np

NUM_BINS = 10
NUM_FOLDS = 5
# How many times above or below the typical reward difference a temperature is looked for.
_WIDEST = 1e4


def nll(gaps: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean of -log sigmoid(gap), in nats; ln 2 is what knowing nothing gives.

    gaps: the right answer's reward minus the wrong one's, shape (num_comparisons,).
    """
    return float(np.average(np.logaddexp(0, -np.asarray(gaps, np.float64)), weights=weights))


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-value))."""
    # Beyond -709 the exponential is infinite, and the quotient the 0 that it should be.
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-values))


def brier(gaps: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean squared distance of the chance given to the right answer from 1.

    Source: Brier (1950), Monthly Weather Review 78.
    """
    return float(np.average(sigmoid(-np.asarray(gaps, np.float64)) ** 2, weights=weights))


def reliability(gaps: np.ndarray, weights: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Return ten bins of equal width of the confidence max(p, 1 - p) from 0.5 to 1, the last one closed.

    Each has `low`, `high`, `n` (comparisons, weighted), `confidence` and `accuracy` (means; null in an empty bin). A
    tie has confidence 0.5 and is half right.
    """
    gaps = np.asarray(gaps, np.float64)
    weights = np.ones(len(gaps)) if weights is None else weights
    confidence = sigmoid(np.abs(gaps))
    correct = (gaps > 0) + 0.5 * (gaps == 0)
    edges = np.linspace(0.5, 1.0, NUM_BINS + 1)
    places = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, NUM_BINS - 1)
    number, total, right = (
        np.bincount(places, weights=weights * values, minlength=NUM_BINS)
        for values in (np.ones(len(gaps)), confidence, correct)
    )
    return [
        {
            "low": float(edges[place]),
            "high": float(edges[place + 1]),
            "n": float(number[place]),
            "confidence": float(total[place] / number[place]) if number[place] else None,
            "accuracy": float(right[place] / number[place]) if number[place] else None,
        }
        for place in range(NUM_BINS)
    ]


def ece(gaps: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the expected calibration error: the mean distance of accuracy from confidence over the filled bins.

    Source: Naeini, Cooper and Hauskrecht (2015), AAAI.
    """
    filled = [one for one in reliability(gaps, weights) if one["n"]]
    total = sum(one["n"] for one in filled)
    return float(sum(one["n"] * abs(one["accuracy"] - one["confidence"]) for one in filled) / total)


def best_temperature(gaps: np.ndarray, weights: np.ndarray | None = None, near: float | None = None) -> float:
    """Return the T for which sigmoid(gap / T) has the least NLL. near: a T that is likely to be close to it.

    The NLL is convex in 1 / T, so its slope is brought to 0 by Newton's method inside a shrinking bracket. Where no
    comparison is wrong, ever smaller T would be ever better: there, and only there, each comparison of n counts as
    wrong by 1 / (n + 2). Where the rewards point the wrong way, T is ten thousand times the typical gap.
    Source of the 1 / (n + 2): Platt (1999), Advances in Large Margin Classifiers.
    """
    gaps = np.asarray(gaps, np.float64)
    weights = np.ones(len(gaps)) if weights is None else np.asarray(weights, np.float64)
    scale = float(np.average(np.abs(gaps), weights=weights))
    if not scale:
        return 1.0
    unit = gaps / scale
    low, high = 1 / _WIDEST, _WIDEST
    wrong_share = 0.0 if (gaps < 0).any() else 1 / (len(gaps) + 2)

    pulls = weights * unit
    spreads = pulls * unit

    def slope(inverse: float) -> tuple[float, float]:
        miss = sigmoid(-inverse * unit)
        return -float(pulls @ (miss - wrong_share)), float(spreads @ (miss * (1 - miss)))

    inverse, is_inside = 1.0 if near is None else min(max(scale / near, 2 * low), high / 2), False
    for _ in range(100):
        first, second = slope(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        step = inverse - first / second if second > 0 else np.inf
        if not is_inside and not low < step < high:
            # Most often Newton's steps stay inside, and the ends need not be looked at.
            if slope(1 / _WIDEST)[0] >= 0:
                return scale * _WIDEST
            if slope(_WIDEST)[0] <= 0:
                return scale / _WIDEST
            is_inside = True
        # Outside the bracket Newton's step is no guide; the middle in ratio always shrinks it.
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - inverse) <= 1e-10 * inverse:
            break
        inverse = following
    return scale / inverse


def held_out_nll(
    gaps: np.ndarray, weights: np.ndarray, groups: np.ndarray, seed: int = 0, near: float | None = None
) -> float | None:
    """Return the NLL with each fold's temperature fitted on the other folds; None with fewer than two groups.

    groups: shape (num_comparisons,), equal for comparisons that must not be in two folds (those of one prompt). near: as of
    best_temperature.
    """
    names, places = np.unique(groups, return_inverse=True)
    num_folds = min(NUM_FOLDS, len(names))
    if num_folds < 2:
        return None
    folds = np.random.default_rng(seed).permutation(np.arange(len(names)) % num_folds)[places]
    held_out = np.empty(len(gaps))
    for fold in range(num_folds):
        inside = folds == fold
        held_out[inside] = gaps[inside] / best_temperature(gaps[~inside], weights[~inside], near=near)
    return nll(held_out, weights)


def calibration(
    gaps: np.ndarray, weights: np.ndarray | None = None, groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return all figures of calibration: `nll`, `brier`, `ece`, `bins`, `temperature`, `nll_at_temperature`."""
    gaps = np.asarray(gaps, np.float64)
    weights = np.ones(len(gaps)) if weights is None else weights
    groups = np.arange(len(gaps)) if groups is None else groups
    temperature = best_temperature(gaps, weights)
    return {
        "nll": nll(gaps, weights),
        "brier": brier(gaps, weights),
        "ece": ece(gaps, weights),
        "bins": reliability(gaps, weights),
        "temperature": temperature,
        "nll_at_temperature": held_out_nll(gaps, weights, groups, seed, near=temperature),
    }
