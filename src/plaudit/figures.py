"""The figures of a benchmark from its scored rows: whatever results.json says about it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plaudit import behaviour, suites
from plaudit.agreement import agreement_of
from plaudit.best_of import curve_points, curves_of
from plaudit.metrics import roc_auc
from plaudit.outcomes import Outcomes
from plaudit.parts import Sampler, Stratum, weighted_mean
from plaudit.resampling import cluster_sums, percentile_interval, ratio, resampled_sums
from plaudit.score_rows import ScoredRow
from plaudit.sheet import CHOICES, Sheet, sheet_of, ties_stratum


def results(rows: Iterable[ScoredRow], **options: Any) -> dict[str, dict[str, Any]]:
    """Return `results_of` for each benchmark among the rows, by its name."""
    grouped: dict[str, list[ScoredRow]] = {}
    for row in rows:
        grouped.setdefault(row.benchmark, []).append(row)
    return {name: results_of(group, **options) for name, group in grouped.items()}


def results_of(
    rows: Iterable[ScoredRow],
    kind: str | None = None,
    *,
    num_resamples: int = 10_000,
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
    sheet = sheet_of(list(rows), kind, on_nonfinite=on_nonfinite, weights=weights)
    if num_resamples < 100:
        raise ValueError(f"num_resamples={num_resamples} is too few for a 95 % interval; give 100 or more")
    if seed < 0:
        raise ValueError(f"seed={seed} cannot be below 0; give any whole number from 0")
    sampler = Sampler(num_resamples, seed)
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
    entry.update(_special(sheet, sampler, missing is None))
    entry.update(_described(sheet, seed))
    return without_nan(entry)


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
    baselines: dict[str, Any] = {
        "overall": behaviour.length_baselines(comparisons, np.arange(len(comparisons.row))),
        "subsets": {},
    }
    for name, index in sheet.subsets.items():
        is_member = np.zeros(len(arrays), bool)
        is_member[index] = True
        baselines["subsets"][name] = behaviour.length_baselines(comparisons, np.flatnonzero(is_member[comparisons.row]))
    return {
        "chance": _chance(sheet),
        "counts": behaviour.counts_of(arrays, outcomes),
        "baselines": baselines,
        "calibration": behaviour.calibrate(comparisons, seed),
        "distributions": behaviour.distributions(arrays, sheet.subsets),
        "lengths": behaviour.length_bins(comparisons),
        "truncation": _truncation(sheet),
        "identical": [row.id for row in arrays.rows if row.extra.get("identical")],
        "worst": behaviour.worst_rows(arrays, outcomes),
    }


def _truncation(sheet: Sheet) -> dict[str, Any] | None:
    """Return how many rows were cut, and the official figure without them; None where nobody recorded it."""
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
    return {"overall": described[0], "subsets": dict(zip(sheet.subsets, described[1:], strict=True))}


def _chance(sheet: Sheet) -> float | None:
    """Return what picking at random gives on the official figure; None where that is no simple number."""
    if sheet.kind == "rewardbench2":
        return None
    if sheet.kind in CHOICES:
        return float((sheet.arrays.num_right / sheet.arrays.sizes).mean())
    return 0.5


def overall_of(sheet: Sheet) -> tuple[dict[str, Stratum], dict[str, float] | None]:
    """Return the strata that the overall figure is made of, and their weights (None: equal ones)."""
    if sheet.kind == "rewardbench" and sheet.parts:
        found = [section for name, section in sections_of(sheet).items() if section and name != "Prior Sets"]
        # Prior sets alone are not the benchmark, and no section of it.
        if found:
            strata = {name: stratum for section, _ in found for name, stratum in section.items()}
            # Each section counts once, however many subsets share its weight.
            portions = {n: w / sum(weights.values()) for _, weights in found for n, w in weights.items()}
            return strata, portions
    if sheet.kind in ("rewardbench2", "rm-bench", "ppe-correctness") and sheet.parts:
        return {name: sheet.stratum(name, index) for name, index in sheet.parts.items()}, None
    return {"all": sheet.stratum("all", sheet.whole())}, None


def sections_of(sheet: Sheet) -> dict[str, tuple[dict[str, Stratum], dict[str, float]] | None]:
    """Return the strata and weights of each section; None for a section of which nothing is there."""
    if sheet.kind == "rewardbench" and sheet.parts:
        return _rewardbench_sections(sheet)
    if sheet.kind == "judgebench" and sheet.parts:
        return {name: _alone(sheet, name, sheet.parts.get(name)) for name in suites.JUDGEBENCH_GPT}
    if sheet.kind == "ppe-correctness":
        return {name: _alone(sheet, name, sheet.parts.get(name)) for name in suites.PPE_SETS}
    if sheet.kind == "rm-bench":
        return _rm_bench_sections(sheet)
    if sheet.kind == "rmb":
        return _rmb_sections(sheet)
    return {}


def _rmb_sections(sheet: Sheet) -> dict[str, tuple[dict[str, Stratum], dict[str, float]] | None]:
    """Pairs apart from best-of-n, which is harder by its number of answers."""
    index = sheet.whole()
    tasks = np.array([_rmb_task(sheet.arrays.rows[row]) for row in index.tolist()])
    found = {name: index[tasks == name] for name in ("pairwise", "best-of-n")}
    return {name: _alone(sheet, name, rows if len(rows) else None) for name, rows in found.items()}


def _rmb_task(row: ScoredRow) -> str:
    return str(row.extra.get("task") or ("pairwise" if len(row.rewards) == 2 else "best-of-n"))


def _alone(sheet: Sheet, name: str, index: np.ndarray | None) -> tuple[dict[str, Stratum], dict[str, float]] | None:
    return None if index is None else ({name: sheet.stratum(name, index)}, {name: 1.0})


def _rewardbench_sections(sheet: Sheet) -> dict[str, tuple[dict[str, Stratum], dict[str, float]] | None]:
    own_weights = suites.REWARDBENCH_WEIGHTS[sheet.weights]
    found: dict[str, Any] = {}
    for section, subsets in suites.REWARDBENCH.items():
        strata = {name: sheet.stratum(name, sheet.parts[name]) for name in subsets if name in sheet.parts}
        found[section] = (strata, {name: own_weights.get(name, subsets[name]) for name in strata}) if strata else None
    prior = {name: sheet.stratum(name, sheet.parts[name]) for name in suites.REWARDBENCH_PRIOR if name in sheet.parts}
    if prior:
        found["Prior Sets"] = (prior, dict.fromkeys(prior, 1.0))
    return found


_RM_BENCH_CELLS = {"hard": np.triu(np.ones((3, 3)), 1), "normal": np.eye(3), "easy": np.tril(np.ones((3, 3)), -1)}


def _rm_bench_sections(sheet: Sheet) -> dict[str, tuple[dict[str, Stratum], dict[str, float]] | None]:
    """Domains first, then hard, normal and easy over all domains."""
    domains = dict(sheet.parts) or {"all": sheet.whole()}
    found: dict[str, Any] = {
        name: _alone(sheet, name, sheet.parts.get(name)) for name in (suites.RM_BENCH if sheet.parts else ())
    }
    won = sheet.comparisons.won.reshape(-1, 9).astype(np.float64)
    tied = sheet.comparisons.tied.reshape(-1, 9).astype(np.float64)
    for level, cells in _RM_BENCH_CELLS.items():
        portion = cells.ravel() / 3
        outcomes = Outcomes(
            official=won @ portion,
            half=(won + tied / 2) @ portion,
            weight=np.ones(len(won)),
            is_right=sheet.outcomes.is_right,
            ties=(tied @ portion > 0).astype(np.int64),
            margin=sheet.outcomes.margin,
        )
        strata = {name: sheet.stratum(f"{level} {name}", index, outcomes) for name, index in domains.items()}
        found[level] = (strata, dict.fromkeys(strata, 1.0))
    return found


def _special(sheet: Sheet, sampler: Sampler, is_complete: bool) -> dict[str, Any]:
    """Return what only some kinds have: a matrix, curves, and the benchmark's other numbers."""
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
        return _human_figures(sheet, sampler)
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
    levels = [float((mean * cells).sum() / 3) for cells in _RM_BENCH_CELLS.values()]
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


def _human_figures(sheet: Sheet, sampler: Sampler) -> dict[str, Any]:
    figures: dict[str, Any] = {"human_ties": int((sheet.outcomes.weight == 0).sum())}
    domains = {name: sampler.figure({name: sheet.stratum(name, index)}) for name, index in sheet.subsets.items()}
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
        "strict": float(outcomes.official.mean()),
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
    inside = np.zeros(len(arrays), bool)
    inside[index] = True
    member = inside[arrays.row_of] & np.isfinite(arrays.rewards)
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
        "tied_pairs": int(sheet.comparisons.tied[inside[sheet.comparisons.row]].sum()),
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
