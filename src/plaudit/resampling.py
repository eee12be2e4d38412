"""How sure a figure is: the bootstrap over clusters of rows, and the exact test of two models on the same rows."""

import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 10_000
# 16 MiB of draws at a time.
_DRAWS = 1 << 21


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return the sums of the rows of each cluster.

    values: shape (num_rows, num_columns). clusters: shape (num_rows,), equal for rows that are resampled together.
    Returns shape (num_clusters, num_columns).
    """
    _, places = np.unique(clusters, return_inverse=True)
    if places.max(initial=-1) + 1 == len(values):
        return values
    columns = [np.bincount(places, weights=column) for column in values.T]
    return np.stack(columns, axis=1)


def resampled_sums(values: np.ndarray, num_resamples: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return the column sums of as many draws of clusters, with replacement, as there are clusters.

    values: one row a cluster, shape (num_clusters, num_columns), what the cluster adds to each sum. Returns shape
    (num_resamples, num_columns). Neither the order of the clusters nor that of calls changes the result.
    """
    generator = np.random.default_rng(seed)
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    num_clusters = len(values)
    if len(kinds) <= num_clusters // 8:
        # Equal clusters need no telling apart: how often each kind is drawn is multinomial.
        return generator.multinomial(num_clusters, counts / num_clusters, size=num_resamples) @ kinds
    ordered = np.repeat(kinds, counts, axis=0)
    out = np.empty((num_resamples, values.shape[1]))
    step = max(1, _DRAWS // num_clusters)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        draws = generator.integers(0, num_clusters, size=(size, num_clusters), dtype=np.int32)
        times = np.bincount((draws + np.arange(size)[:, None] * num_clusters).ravel(), minlength=size * num_clusters)
        out[start : start + size] = times.reshape(size, num_clusters) @ ordered
    return out


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient, and 0 over nothing: a resample may have drawn no cluster that counts."""
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=np.asarray(denominator) > 0)


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the interval between the 2.5th and the 97.5th percentile of resampled figures."""
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(low), float(high)


def two_sided_chance(differences: np.ndarray) -> float:
    """Return the bootstrap's p: twice the share of resampled differences on the rarer side of 0, and at most 1.

    One is added to both counts, so that no finite number of resamples claims impossibility.
    Source: Davison and Hinkley (1997), Bootstrap Methods and their Application, section 4.4.
    """
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p of the exact McNemar test: are rows that one alone got right equally often either's?

    Source: McNemar (1947), Psychometrika 12; exact: the binomial test of the rarer count at one half.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts cannot be below 0, but are {only_first} and {only_second}")
    total, rarer = only_first + only_second, min(only_first, only_second)
    log_term = math.lgamma(total + 1) - math.lgamma(rarer + 1) - math.lgamma(total - rarer + 1) - total * math.log(2)
    # Terms from the rarer count downwards, each from the one before, until they no longer add anything.
    tail, term = 0.0, 1.0
    for count in range(rarer, -1, -1):
        tail += term
        term *= count / (total - count + 1)
        if term < tail * 1e-18:
            break
    return min(1.0, 2 * tail * math.exp(log_term))
