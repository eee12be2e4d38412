"""What a benchmark's overall figure and its sections are means of: strata, and their weights."""

from collections.abc import Mapping

import numpy as np

from plaudit import suites
from plaudit.outcomes import Outcomes
from plaudit.score_rows import ScoredRow
from plaudit.sheet import Sheet
from plaudit.strata import Stratum, Weighted


def overall_of(sheet: Sheet) -> Weighted:
    """Return the strata that the overall figure is made of, with their weights."""
    if sheet.kind == "rewardbench" and sheet.parts:
        strata: dict[str, Stratum] = {}
        portions: dict[str, float] = {}
        for subsets in suites.REWARDBENCH.values():
            inside, weights = _rewardbench_section(sheet, subsets)
            strata |= inside
            # Each section counts once, however many subsets share its weight.
            portions |= {name: weight / sum(weights.values()) for name, weight in weights.items()}
        # The prior sets alone are not the benchmark, and no section of it.
        if strata:
            return strata, portions
    if sheet.kind in ("rewardbench2", "rm-bench", "ppe-correctness") and sheet.parts:
        return {name: sheet.stratum(name, index) for name, index in sheet.parts.items()}, None
    return {"all": sheet.stratum("all", sheet.whole())}, None


def sections_of(sheet: Sheet) -> dict[str, Weighted | None]:
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


def _rmb_sections(sheet: Sheet) -> dict[str, Weighted | None]:
    """Pairs apart from best-of-n, which is harder by its number of answers."""
    index = sheet.whole()
    tasks = np.array([_rmb_task(sheet.arrays.rows[row]) for row in index.tolist()])
    found = {name: index[tasks == name] for name in ("pairwise", "best-of-n")}
    return {name: _alone(sheet, name, rows if len(rows) else None) for name, rows in found.items()}


def _rmb_task(row: ScoredRow) -> str:
    return str(row.extra.get("task") or ("pairwise" if len(row.rewards) == 2 else "best-of-n"))


def _alone(sheet: Sheet, name: str, index: np.ndarray | None) -> Weighted | None:
    return None if index is None else ({name: sheet.stratum(name, index)}, None)


def _rewardbench_section(sheet: Sheet, subsets: Mapping[str, int]) -> tuple[dict[str, Stratum], dict[str, float]]:
    """Return the strata of a section's subsets that are there, and their weights; subsets: their rows."""
    own_weights = suites.REWARDBENCH_WEIGHTS[sheet.weights]
    strata = {name: sheet.stratum(name, sheet.parts[name]) for name in subsets if name in sheet.parts}
    return strata, {name: own_weights.get(name, subsets[name]) for name in strata}


def _rewardbench_sections(sheet: Sheet) -> dict[str, Weighted | None]:
    sections = {name: _rewardbench_section(sheet, subsets) for name, subsets in suites.REWARDBENCH.items()}
    found: dict[str, Weighted | None] = {name: section if section[0] else None for name, section in sections.items()}
    prior = {name: sheet.stratum(name, sheet.parts[name]) for name in suites.REWARDBENCH_PRIOR if name in sheet.parts}
    if prior:
        found["Prior Sets"] = (prior, None)
    return found


# Rows are the chosen answer's style, columns the rejected one's: hard where the rejected one is the more elaborate.
RM_BENCH_CELLS = {"hard": np.triu(np.ones((3, 3)), 1), "normal": np.eye(3), "easy": np.tril(np.ones((3, 3)), -1)}


def _rm_bench_sections(sheet: Sheet) -> dict[str, Weighted | None]:
    """Domains first, then hard, normal and easy over all domains."""
    domains = dict(sheet.parts) or {"all": sheet.whole()}
    found = {name: _alone(sheet, name, sheet.parts.get(name)) for name in (suites.RM_BENCH if sheet.parts else ())}
    won = sheet.comparisons.won.reshape(-1, 9).astype(np.float64)
    tied = sheet.comparisons.tied.reshape(-1, 9).astype(np.float64)
    for level, cells in RM_BENCH_CELLS.items():
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
        found[level] = (strata, None)
    return found
