"""Rows that are resampled together, and the figure that one or several such strata give, with its interval."""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.metrics import wilson_interval
from plaudit.outcomes import Outcomes
from plaudit.resampling import cluster_sums, percentile_interval, ratio, resampled_sums, two_sided_chance


@dataclass(frozen=True, eq=False)
class Stratum:
    """Rows that are resampled among themselves, and the figure that their sums give.

    values: what each cluster adds to the sums, shape (num_clusters, num_columns). score: from sums, shape
    (..., num_columns), to the official figure. half: the recommended figure. is_share: a plain share of rows, for which
    Wilson's interval holds. key: tells strata of one benchmark apart, so that each is resampled in its own way.
    """

    key: str
    values: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    half: float
    num_rows: int
    num_ties: int
    is_share: bool = False

    @property
    def official(self) -> float:
        return float(self.score(self.values.sum(axis=0)))


def share(sums: np.ndarray) -> np.ndarray:
    """Return what was earned over what could be; the columns are the two."""
    return ratio(sums[..., 0], sums[..., 1])


def stratum_of(
    key: str, outcomes: Outcomes, clusters: np.ndarray, index: np.ndarray, is_share: bool = False
) -> Stratum:
    """Return some rows' outcomes as a stratum; index: their places."""
    weight = outcomes.weight[index]
    total = float(weight.sum())
    counted = weight > 0
    return Stratum(
        key=key,
        values=cluster_sums(np.stack([outcomes.official[index], weight], axis=1), clusters[index]),
        score=share if total else lambda sums: np.full(np.shape(sums)[:-1], np.nan),
        half=float(outcomes.half[index].sum()) / total if total else math.nan,
        num_rows=int(counted.sum()),
        num_ties=int(outcomes.ties[index].sum()),
        is_share=is_share,
    )


# Strata by their names, and their weights by the same names; equal ones if None.
Weighted = tuple[Mapping[str, Stratum], Mapping[str, float] | None]


@dataclass(frozen=True)
class Sampler:
    """Figures with intervals, from resamples in which a stratum is drawn alike in whatever composites it is.

    Raises ValueError for too few resamples, and for a seed that is none.
    """

    num_resamples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_resamples < 100:
            raise ValueError(f"num_resamples={self.num_resamples} is too few for a 95 % interval; give 100 or more")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} cannot be below 0; give any whole number from 0")

    def seed_of(self, key: str) -> list[int]:
        """Return a seed of its own for each stratum, whichever others there are."""
        return [self.seed, zlib.crc32(key.encode("utf-8", "surrogatepass"))]

    def samples(self, stratum: Stratum) -> np.ndarray:
        """Return the official figure of each resample, shape (num_resamples,)."""
        return stratum.score(resampled_sums(stratum.values, self.num_resamples, self.seed_of(stratum.key)))

    def figure(self, strata: Mapping[str, Stratum], weights: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Return the weighted mean of strata with its interval: `official`, `half_credit`, `n`, `ties`, `interval`.

        weights: by the strata's names, equal if None. All but the counts are null where a stratum has no figure.
        """
        portions = _portions(strata, weights)
        parts = list(strata.values())
        official = weighted_mean(strata, weights)
        half = weighted_mean(strata, weights, "half")
        return {
            "official": official if math.isfinite(official) else None,
            "half_credit": half if math.isfinite(half) else None,
            "n": sum(part.num_rows for part in parts),
            "ties": sum(part.num_ties for part in parts),
            "interval": list(self._interval(parts, portions, official)) if math.isfinite(official) else None,
        }

    def difference(
        self, first: Mapping[str, Stratum], second: Mapping[str, Stratum], weights: Mapping[str, float] | None = None
    ) -> dict[str, Any]:
        """Return the first's weighted mean minus the second's: `difference`, `interval` and `p` by paired bootstrap.

        Both have the same strata of the same clusters, so that each resample draws the same clusters for the two. The
        interval and p are null where all resamples are alike but the models are not: too few rows to tell.
        """
        portions = _portions(first, weights)
        difference, samples = 0.0, np.zeros(self.num_resamples)
        for portion, name in zip(portions, first, strict=True):
            one, other = first[name], second[name]
            width = one.values.shape[1]
            sums = resampled_sums(np.hstack([one.values, other.values]), self.num_resamples, self.seed_of(one.key))
            samples += portion * (one.score(sums[:, :width]) - other.score(sums[:, width:]))
            difference += portion * (one.official - other.official)
        if not math.isfinite(difference):
            return {"difference": None, "interval": None, "p": None}
        interval = percentile_interval(samples)
        if abs(difference) > 1e-12 and interval[1] - interval[0] <= 1e-12:
            return {"difference": float(difference), "interval": None, "p": None}
        return {"difference": float(difference), "interval": list(interval), "p": two_sided_chance(samples)}

    def _interval(self, parts: list[Stratum], portions: np.ndarray, official: float) -> tuple[float, float]:
        if len(parts) == 1 and parts[0].is_share:
            right, total = parts[0].values.sum(axis=0)
            return _around(official, wilson_interval(float(right), float(total)))
        samples = sum(portion * self.samples(part) for portion, part in zip(portions, parts, strict=True))
        low, high = percentile_interval(np.asarray(samples))
        if high - low > 1e-12:
            return low, high
        # All resamples alike is what too few or too equal rows give, and no certainty: Wilson's interval for as many
        # rows as would give the mean the same variance.
        sizes = np.array([len(part.values) for part in parts])
        rows = 1 / float((portions**2 / sizes).sum())
        share_right = min(1.0, max(0.0, official))
        return _around(official, wilson_interval(share_right * rows, rows))


def _around(official: float, interval: tuple[float, float]) -> tuple[float, float]:
    """Return an interval that its figure is in, which at 0 and 1 rounding may have put a last digit outside."""
    return min(interval[0], official), max(interval[1], official)


def weighted_mean(
    strata: Mapping[str, Stratum], weights: Mapping[str, float] | None = None, figure: str = "official"
) -> float:
    """Return a figure ("official" or "half") of strata together; weights: by their names, equal if None."""
    return float(_portions(strata, weights) @ [getattr(stratum, figure) for stratum in strata.values()])


def _portions(strata: Mapping[str, Stratum], weights: Mapping[str, float] | None) -> np.ndarray:
    raw = np.array([1.0 if weights is None else weights[name] for name in strata])
    return raw / raw.sum()
