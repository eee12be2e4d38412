"""What the rewards look like beside being right: length, confidence, spread, cut texts, and the worst mistakes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from plaudit.calibration import calibration
from plaudit.outcomes import Comparisons, Outcomes, RowArrays

NUM_WORST = 20
NUM_REWARD_BINS = 30
NUM_LENGTH_BINS = 12


def length_habits(comparisons: Comparisons, index: np.ndarray) -> dict[str, float | None]:
    """Return what length has to do with the model's choices, from comparisons whose lengths are known.

    index: places of comparisons; each row counts once. `chooses_longer` is the share of the model's choices that are
    longer, of those between answers of two lengths and two rewards; `correct_is_longer` and `correct_is_shorter` the shares
    of all comparisons in which the right answer is; the last two are the model's accuracy (a tie is wrong) where the right answer is longer and
    where it is shorter. None where there is no such comparison.
    """
    index = index[~np.isnan(comparisons.longer[index])]
    longer = comparisons.longer[index]
    weight, won, tied = comparisons.weight[index], comparisons.won[index], comparisons.tied[index]
    chosen_is_longer = np.where(won, longer > 0, longer < 0)

    def mean(values: np.ndarray, where: np.ndarray) -> float | None:
        total = float(weight[where].sum())
        return float(weight[where] @ values[where]) / total if total else None

    return {
        "chooses_longer": mean(chosen_is_longer, (longer != 0) & ~tied & np.isfinite(comparisons.gap[index])),
        "correct_is_longer": mean(longer > 0, np.full(len(longer), True)),
        "correct_is_shorter": mean(longer < 0, np.full(len(longer), True)),
        "accuracy_correct_longer": mean(won, longer > 0),
        "accuracy_correct_shorter": mean(won, longer < 0),
    }


def length_bins(comparisons: Comparisons) -> dict[str, Any] | None:
    """Return the mean reward difference and the accuracy in bins of the length difference, right minus wrong.

    The bins hold about equally many comparisons and none parts equal differences; `low` and `high` are the smallest
    and the largest difference in a bin. None where no length is known.
    """
    usable = ~np.isnan(comparisons.longer) & np.isfinite(comparisons.gap)
    if not usable.any():
        return None
    longer, gap, won = comparisons.longer[usable], comparisons.gap[usable], comparisons.won[usable]
    weight = comparisons.weight[usable]
    inner = np.unique(np.quantile(longer, np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1], method="higher"))
    places = np.searchsorted(inner, longer, side="left")
    bins = []
    for place in range(len(inner) + 1):
        inside = places == place
        if inside.any():
            bins.append(
                {
                    "low": float(longer[inside].min()),
                    "high": float(longer[inside].max()),
                    "n": int(inside.sum()),
                    "length_difference": float(np.average(longer[inside], weights=weight[inside])),
                    "reward_difference": float(np.average(gap[inside], weights=weight[inside])),
                    "accuracy": float(np.average(won[inside], weights=weight[inside])),
                }
            )
    has_characters = any(row.extra.get("characters") is not None for row in comparisons.arrays.rows)
    return {"unit": "characters" if has_characters else "tokens", "bins": bins}


def distributions(arrays: RowArrays, subsets: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return counts of right (`chosen`) and wrong (`rejected`) candidates by reward, under "all" and by subset.

    All have the same edges, from the 0.5th to the 99.5th percentile; the first and the last bin also hold what lies
    beyond. Rewards that are not finite are left out.
    """
    finite = np.isfinite(arrays.rewards)
    if not finite.any():
        return {}
    # Between the two largest floats of opposite sign there is no number of bins.
    rewards = np.clip(arrays.rewards, -1e300, 1e300)
    low, high = np.quantile(rewards[finite], (0.005, 0.995))
    if low == high:
        # Edges must differ as numbers, also around a huge reward.
        margin = max(0.5, abs(low) * 1e-6)
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, NUM_REWARD_BINS + 1)
    bins = np.searchsorted(edges[1:-1], rewards, side="right")

    def counts(inside: np.ndarray) -> list[int]:
        return np.bincount(bins[inside], minlength=NUM_REWARD_BINS).tolist()

    found = {}
    for name, index in (("all", np.arange(len(arrays))), *subsets.items()):
        member = np.isin(arrays.row_of, index) & finite
        found[name] = {
            "edges": edges.tolist(),
            "chosen": counts(member & arrays.is_right),
            "rejected": counts(member & ~arrays.is_right),
        }
    return found


def calibrate(comparisons: Comparisons, seed: int) -> dict[str, Any] | None:
    """Return the calibration over all comparisons, each row counting once; rewards that are not finite are left out."""
    usable = np.isfinite(comparisons.gap)
    if not usable.any():
        return None
    clusters = comparisons.arrays.clusters[comparisons.row[usable]]
    return calibration(comparisons.gap[usable], comparisons.weight[usable], clusters, seed)


def is_cut(arrays: RowArrays) -> np.ndarray | None:
    """Return whether a candidate of each row was cut; None where nobody recorded it."""
    flags = [row.extra.get("truncated") for row in arrays.rows]
    return None if all(flag is None for flag in flags) else np.array([_holds(flag) for flag in flags])


def worst_rows(arrays: RowArrays, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return the wrong rows of the largest wrong margin, the worst first."""
    is_wrong = ~outcomes.is_right & (outcomes.weight > 0) & (outcomes.margin <= 0)
    index = np.flatnonzero(is_wrong)
    index = index[np.argsort(outcomes.margin[index], kind="stable")][:NUM_WORST]
    return [
        {
            "id": arrays.rows[row].id,
            "subset": arrays.rows[row].subset,
            "rewards": [float(reward) for reward in arrays.rows[row].rewards],
            "labels": [int(label) for label in arrays.rows[row].labels],
            "margin": float(outcomes.margin[row]),
        }
        for row in index.tolist()
    ]


def counts_of(arrays: RowArrays, outcomes: Outcomes) -> dict[str, int]:
    """Return how many rows there are, and how many are tied, not finite, cut, without a template, or of equal texts."""
    extras = [row.extra for row in arrays.rows]
    return {
        "n": len(arrays),
        "n_tied": int((outcomes.ties > 0).sum()),
        "n_nonfinite": int((~arrays.is_finite).sum()),
        "n_truncated": sum(_holds(extra.get("truncated")) for extra in extras),
        "n_template_missing": sum(_holds(extra.get("template_missing")) for extra in extras),
        "n_identical_texts": sum(_holds(extra.get("identical")) for extra in extras),
    }


def _holds(flag: Any) -> bool:
    return any(flag) if isinstance(flag, (list, tuple)) else bool(flag)
