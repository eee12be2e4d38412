"""The figures of a benchmark from its scored rows: whatever results.json says about it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plaudit import behaviour, suites
from plaudit.agreement import agreement_of
from plaudit.best_of import curve_points, curves_of
from plaudit.composites import RM_BENCH_CELLS, overall_of, sections_of
from plaudit.metrics import roc_auc
from plaudit.resampling import NUM_RESAMPLES, cluster_sums, percentile_interval, ratio, resampled_sums
from plaudit.score_rows import ScoredRow
from plaudit.sheet import CHOICES, Sheet, check_rules, sheet_of, ties_stratum
from plaudit.strata import Sampler, Weighted, weighted_mean


def check_options(num_resamples: int, seed: int, weights: str, on_nonfinite: str = "error") -> None:
    """Raise ValueError for options of `results_of` that cannot be."""
    Sampler(num_resamples, seed)
    check_rules(on_nonfinite, weights)


def results_of(
    rows: Iterable[ScoredRow],
    kind: str | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    on_nonfinite: str = "error",
    weights: str = "current",
) -> dict[str, Any]:
    """Return the entry of one benchmark in results.json; fractions are 0 to 1, and null stands for no figure.

    kind: how the rows are judged (see `suites.KINDS`); by their `kind`, their benchmark's name or their shape if None.
    on_nonfinite: "official" counts a comparison with NaN as wrong. weights: RewardBench's, today's or those of papers
    before September 2024.

    Always: `kind`, `overall` (null for an incomplete benchmark, which `incomplete` says, `of_given` being the same over
    what is there), `subsets` and `sections`, each `official`, `half_credit`, `n`, `ties`, `interval`; `counts`,
    `baselines`, `calibration`, `distributions`, `lengths`, `truncation`, `identical`, `worst`, `chance`. Some:
    `matrix` and `matrices` (RM-Bench), `curve` (best-of-n, PPE correctness), `figures` (the benchmark's other numbers).
    """
    sampler = Sampler(num_resamples, seed)
    sheet = sheet_of(list(rows), kind, on_nonfinite=on_nonfinite, weights=weights)
    missing = sheet.missing
    given = sampler.figure(*overall_of(sheet))
    entry: dict[str, Any] = {"kind": sheet.kind, "overall": None if missing else given, "incomplete": missing}
    if missing:
        entry["of_given"] = given
    entry["subsets"] = {
        name: sampler.figure({name: sheet.stratum(name, index)}) for name, index in sheet.subsets.items()
    }
    entry["sections"] = {
        name: None if found is None else sampler.figure(*found) for name, found in sections_of(sheet).items()
    }
    if sheet.kind == "rewardbench":
        _flag_incomplete(entry["sections"], sheet)
    return without_nan(entry | _special(sheet, sampler, entry) | _described(sheet, seed))


def _flag_incomplete(sections: dict[str, Any], sheet: Sheet) -> None:
    """Say in each section of RewardBench what it lacks."""
    for name, subsets in suites.REWARDBENCH.items():
        found = {subset: len(sheet.parts.get(subset, ())) for subset in subsets}
        lacks = [f"{subset} {found[subset]:,} of {rows:,}" for subset, rows in subsets.items() if found[subset] != rows]
        if lacks and sections.get(name):
            sections[name]["incomplete"] = ", ".join(lacks)


def _described(sheet: Sheet, seed: int) -> dict[str, Any]:
    """Return the figures that every kind has."""
    arrays, outcomes, comparisons = sheet.arrays, sheet.outcomes, sheet.comparisons
    return {
        "chance": _chance(sheet),
        "counts": behaviour.counts_of(arrays, outcomes),
        "baselines": _baselines(sheet),
        "calibration": behaviour.calibrate(comparisons, seed),
        "distributions": behaviour.distributions(arrays, sheet.subsets),
        "lengths": behaviour.length_bins(comparisons),
        "truncation": _truncation(sheet),
        "identical": [row.id for row in arrays.rows if row.extra.get("identical")],
        "worst": behaviour.worst_rows(arrays, outcomes),
    }


def _baselines(sheet: Sheet) -> dict[str, Any]:
    """Return how far "the longer answer wins", and the shorter, goes on the benchmark's own figures, and what length has to
    do with the model's choices; overall and by subset, None where no length is known."""
    longer, shorter = sheet.by_length(), sheet.by_length(-1)
    if longer is None or shorter is None:
        return {"overall": None, "subsets": dict.fromkeys(sheet.subsets)}

    def found(index: np.ndarray, **rules: Weighted) -> dict[str, Any]:
        compared = np.flatnonzero(np.isin(sheet.comparisons.row, index))
        figures = [("official", ""), ("half", "_half_credit")]
        won = {
            f"{name}_wins{ending}": weighted_mean(*strata, figure)
            for name, strata in rules.items()
            for figure, ending in figures
        }
        return {**won, **behaviour.length_habits(sheet.comparisons, compared)}

    def of_subset(name: str, own: np.ndarray) -> dict[str, Any]:
        return found(
            own, longer=({name: longer.stratum(name, own)}, None), shorter=({name: shorter.stratum(name, own)}, None)
        )

    subsets = {name: longer.subsets.get(name) for name in sheet.subsets}
    return {
        "overall": found(longer.whole(), longer=overall_of(longer), shorter=overall_of(shorter)),
        "subsets": {name: None if own is None else of_subset(name, own) for name, own in subsets.items()},
    }


def _truncation(sheet: Sheet) -> dict[str, Any] | None:
    """Return how many rows were cut, the official figure without them, and in which of them right and wrong have become
    equal by it; None where nobody recorded it."""
    cut = behaviour.is_cut(sheet.arrays)
    if cut is None:
        return None
    whole = sheet.only(~cut)
    kept = None if cut.all() else weighted_mean(*overall_of(whole))
    groups = [(sheet.whole(), kept)]
    for name, index in sheet.subsets.items():
        left = whole.subsets.get(name)
        groups.append((index, None if left is None else whole.stratum(name, left).official))
    described = [
        {
            "n_truncated": int(cut[index].sum()),
            "share": float(cut[index].mean()),
            "official_without_truncated": official,
        }
        for index, official in groups
    ]
    return {
        "overall": described[0],
        "subsets": dict(zip(sheet.subsets, described[1:], strict=True)),
        "identical_when_cut": [row.id for row in sheet.arrays.rows if row.extra.get("identical_when_cut")],
    }


def _chance(sheet: Sheet) -> float | None:
    """Return what picking at random gives on the official figure; None where that is no simple number."""
    if sheet.kind == "rewardbench2":
        return None
    if sheet.kind in CHOICES:
        return float((sheet.arrays.num_right / sheet.arrays.sizes).mean())
    return 0.5


def _special(sheet: Sheet, sampler: Sampler, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what only some kinds have: a matrix, curves, and the benchmark's other numbers; entry: what there is so far."""
    is_complete = entry["incomplete"] is None
    if sheet.kind == "rewardbench":
        return {"figures": _rewardbench_figures(sheet, is_complete)}
    if sheet.kind == "rewardbench2" and "Ties" in sheet.parts:
        old = ties_stratum(sheet.arrays, sheet.outcomes, sheet.parts["Ties"], "v0.1.4")
        return {"figures": {"ties_v0_1_4": old.official}}
    if sheet.kind == "rm-bench":
        return _rm_bench_matrices(sheet)
    if sheet.kind == "judgebench":
        return {"figures": _judgebench_figures(sheet)}
    if sheet.kind == "ppe-human":
        return _human_figures(sheet, sampler, entry["subsets"])
    if sheet.kind == "ppe-correctness":
        return _correctness_figures(sheet, sampler, is_complete)
    if sheet.kind in ("rewardmath", "best-of-n"):
        return _choice_figures(sheet, sampler)
    return {}


def _rewardbench_figures(sheet: Sheet, is_complete: bool) -> dict[str, Any]:
    """The two means of sections, and the plain share of right rows, none of them for an incomplete benchmark."""
    if not is_complete:
        return {}
    scores = {name: weighted_mean(*found) for name, found in sections_of(sheet).items() if found}
    prior = scores.pop("Prior Sets", None)
    mean = sum(scores.values()) / len(scores)
    own = np.concatenate([index for name, index in sheet.parts.items() if name not in suites.REWARDBENCH_PRIOR])
    return {
        "overall4": mean,
        "overall5": mean if prior is None else (2 * sum(scores.values()) + prior) / 9,
        "flat": float(sheet.outcomes.official[own].mean()),
    }


def _rm_bench_matrices(sheet: Sheet) -> dict[str, Any]:
    won = sheet.comparisons.won.reshape(-1, 3, 3).astype(np.float64)
    domains = dict(sheet.parts) or {"all": sheet.whole()}
    matrices = {name: won[index].mean(axis=0) for name, index in domains.items()}
    mean = np.mean(list(matrices.values()), axis=0)
    levels = [float((mean * cells).sum() / 3) for cells in RM_BENCH_CELLS.values()]
    assert math.isclose(sum(levels) / 3, float(mean.mean()), abs_tol=1e-12)
    return {
        "styles": list(suites.RM_BENCH_STYLES),
        "matrix": mean.tolist(),
        "matrices": {name: matrix.tolist() for name, matrix in matrices.items()},
    }


def _judgebench_figures(sheet: Sheet) -> dict[str, Any]:
    """Two games, in both orders, and one game, in which a tie is "B>A": only a row that says which label it has counts."""
    rows, outcomes = sheet.arrays.rows, sheet.outcomes
    labels = [str(row.extra.get("label", "")).replace(" ", "") for row in rows]
    figures: dict[str, Any] = {"double_game": float(outcomes.official.mean())}
    if all(label in ("A>B", "B>A") for label in labels):
        tied_right = (outcomes.ties > 0) & np.array([label == "B>A" for label in labels])
        figures["single_game"] = float((outcomes.is_right | tied_right).mean())
    return figures


def _human_figures(sheet: Sheet, sampler: Sampler, domains: Mapping[str, Any]) -> dict[str, Any]:
    """The votes for neither, the worst domain, of which a training's outcome depends most, and how models rank."""
    figures: dict[str, Any] = {"human_ties": int((sheet.outcomes.weight == 0).sum())}
    rated = {name: found for name, found in domains.items() if found["official"] is not None}
    if rated:
        lowest = min(rated, key=lambda name: (rated[name]["official"], name))
        figures["lower_bound"] = {"domain": lowest, **rated[lowest]}
    agreement = agreement_of(sheet.arrays, sheet.outcomes.weight > 0, sampler.num_resamples, sampler.seed)
    return {"figures": figures | ({"models": agreement} if agreement else {})}


def _choice_figures(sheet: Sheet, sampler: Sampler) -> dict[str, Any]:
    arrays, outcomes = sheet.arrays, sheet.outcomes
    ahead = ~arrays.is_right & (arrays.rewards >= arrays.best_right[arrays.row_of])
    rank = 1 + np.add.reduceat(ahead.astype(np.int64), arrays.starts)
    rank = np.where(np.isnan(arrays.best_right) | np.isnan(arrays.best_wrong), arrays.sizes, rank)
    has_right = arrays.num_right > 0
    curve, oracle = curves_of(arrays, sheet.whole())
    points = _curve(sampler, "curve", curve, oracle, arrays.clusters)
    figures = {
        "strict": float(outcomes.is_right.mean()),
        "at_least": float(((arrays.best_right >= arrays.best_wrong) & has_right).mean()),
        "one_over_tied": float(outcomes.half.mean()),
        "mrr": float(np.where(has_right, 1 / rank, 0.0).mean()),
        "wrong_tied_with_right": int(outcomes.ties.sum()),
        "rows_tied_with_right": int((outcomes.ties > 0).sum()),
        "rows_without_right": int((~has_right).sum()),
        "rows_without_wrong": int((arrays.num_right == arrays.sizes).sum()),
    }
    return {"curve": points, "figures": figures}


def _curve(
    sampler: Sampler, key: str, values: np.ndarray, oracle: np.ndarray, clusters: np.ndarray
) -> list[dict[str, Any]]:
    drawn = _resampled_curve(sampler, key, values, clusters)
    return curve_points(values.mean(axis=0), np.quantile(drawn, (0.025, 0.975), axis=0), oracle.mean(axis=0))


def _resampled_curve(sampler: Sampler, key: str, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    sums = cluster_sums(np.column_stack([values, np.ones(len(values))]), clusters)
    drawn = resampled_sums(sums, sampler.num_resamples, sampler.seed_of(key))
    return ratio(drawn[:, :-1], drawn[:, -1:])


def _correctness_figures(sheet: Sheet, sampler: Sampler, is_complete: bool) -> dict[str, Any]:
    """Each set's AUC, best-of-k curve, its highest point and end, and how far the oracle is; their means if complete."""
    sets = {name: _set_figures(sheet, sampler, name, index) for name, index in sheet.parts.items()}
    names = ("pair_accuracy", "auc", "max", "end", "loss")
    curves = {name: found.pop("curve") for name, found in sets.items()}
    figures: dict[str, Any] = {"sets": sets}
    if is_complete:
        for name in names:
            values = [found[name] for found in sets.values()]
            figures[name] = None if None in values else sum(values) / len(values)
    return {"curve": curves, "figures": figures}


def _set_figures(sheet: Sheet, sampler: Sampler, name: str, index: np.ndarray) -> dict[str, Any]:
    arrays, outcomes = sheet.arrays, sheet.outcomes
    curve, oracle = curves_of(arrays, index)
    means, loss = curve.mean(axis=0), float((oracle - curve).mean())
    member = np.isin(arrays.row_of, index) & np.isfinite(arrays.rewards)
    drawn = _resampled_curve(sampler, f"curve {name}", np.column_stack([curve, oracle]), arrays.clusters[index])
    width = curve.shape[1]
    samples = {
        "max": drawn[:, :width].max(axis=1),
        "end": drawn[:, width - 1],
        "loss": (drawn[:, width:] - drawn[:, :width]).mean(axis=1),
    }
    weight = float(outcomes.weight[index].sum())
    return {
        "pair_accuracy": float(outcomes.official[index].sum()) / weight if weight else None,
        "num_pairs": int(weight),
        "tied_pairs": int(sheet.comparisons.tied[np.isin(sheet.comparisons.row, index)].sum()),
        "auc": roc_auc(arrays.rewards[member], arrays.is_right[member]),
        "max": float(means.max()),
        "end": float(means[-1]),
        "loss": loss,
        "intervals": {key: list(percentile_interval(values)) for key, values in samples.items()},
        "curve": curve_points(means, np.quantile(drawn[:, :width], (0.025, 0.975), axis=0), oracle.mean(axis=0)),
    }


def without_nan(value: Any) -> Any:
    """Return plain data with None in the place of what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
