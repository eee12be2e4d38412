"""How good the answer is that a reward picks out of k: unbiased curves over random subsets of a prompt's answers."""

from collections.abc import Sequence

import numpy as np

from plaudit.outcomes import RowArrays


def subset_chances(num_candidates: int) -> np.ndarray:
    """Return C(b, k) / C(n, k), the chance that k random ones of n are all among the b lowest.

    Shape (n + 1, n): b from 0 to n, k from 1 to n.
    """
    chances = np.zeros((num_candidates + 1, num_candidates))
    lowest = np.arange(num_candidates + 1, dtype=np.float64)
    product = np.ones(num_candidates + 1)
    for drawn in range(num_candidates):
        product = product * np.maximum(lowest - drawn, 0) / (num_candidates - drawn)
        chances[:, drawn] = product
    return chances


def best_of_curves(rewards: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Return B(k) of each row: the chance that the highest reward among k random answers is a right one's.

    rewards, is_right: shape (num_rows, n). Returns shape (num_rows, n), k from 1 to n. Answers tied at the top are
    picked at random. NaN counts as the lowest reward. The mean over all subsets of k, exactly, and no simulation.
    """
    rewards = np.where(np.isnan(rewards), -np.inf, rewards)
    order = np.argsort(rewards, axis=1, kind="stable")
    ordered = np.take_along_axis(rewards, order, axis=1)
    good = np.take_along_axis(is_right.astype(np.float64), order, axis=1)
    # A tie group wins as one; within it any answer is as likely, so each stands for the group's mean.
    is_new = np.ones(rewards.shape, bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = np.cumsum(is_new.ravel()) - 1
    means = np.bincount(group, weights=good.ravel()) / np.bincount(group)
    return means[group].reshape(rewards.shape) @ np.diff(subset_chances(rewards.shape[1]), axis=0)


def oracle_curves(is_right: np.ndarray) -> np.ndarray:
    """Return for each row the chance that k random answers have a right one among them, shape (num_rows, n)."""
    num_wrong = is_right.shape[1] - is_right.sum(axis=1).astype(np.int64)
    return 1.0 - subset_chances(is_right.shape[1])[num_wrong]


def kl_of_best(ks: np.ndarray) -> np.ndarray:
    """Return log k - (k - 1) / k, in nats: how far picking the best of k moves from the policy, at most.

    Source: Hilton and Gao (2022), Measuring Goodhart's law; an upper bound by Beirami et al. (2024).
    """
    ks = np.asarray(ks, np.float64)
    return np.log(ks) - (ks - 1) / ks


def curves_of(arrays: RowArrays, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return B(k) and the oracle's curve of some rows, shape (num_rows, K), K the fewest candidates of any of them."""
    sizes = arrays.sizes[index]
    shortest = int(sizes.min())
    chosen, oracle = np.empty((len(index), shortest)), np.empty((len(index), shortest))
    for size in np.unique(sizes).tolist():
        among = np.flatnonzero(sizes == size)
        places = arrays.starts[index[among]][:, None] + np.arange(size)
        is_right = arrays.is_right[places]
        chosen[among] = best_of_curves(arrays.rewards[places], is_right)[:, :shortest]
        oracle[among] = oracle_curves(is_right)[:, :shortest]
    return chosen, oracle


def curve_points(values: Sequence[float], intervals: np.ndarray, oracle: Sequence[float]) -> list[dict[str, object]]:
    """Return a curve as plain data: `k`, `kl` in nats, `value`, `interval` and `oracle` of each point.

    intervals: shape (2, K), the lower and the upper ends.
    """
    kls = kl_of_best(np.arange(1, len(values) + 1))
    # Where all prompts have the same value, as at k = 1, the last digit of its mean must not leave it outside.
    intervals = np.stack([np.minimum(intervals[0], values), np.maximum(intervals[1], values)])
    return [
        {"k": k, "kl": float(kl), "value": float(value), "interval": [float(low), float(high)], "oracle": float(best)}
        for k, (kl, value, low, high, best) in enumerate(zip(kls, values, *intervals, oracle, strict=True), 1)
    ]
