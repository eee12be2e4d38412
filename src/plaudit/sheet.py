"""One benchmark's scored rows: how they are judged, in which parts they are, and what each earned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from plaudit import suites
from plaudit.agreement import DOMAIN_COLUMNS, is_human_tie
from plaudit.outcomes import (
    Comparisons,
    Outcomes,
    RowArrays,
    all_comparisons,
    choice_outcomes,
    pair_outcomes,
    sampled_comparisons,
)
from plaudit.score_rows import NONFINITE, ScoredRow, check_choice, require_unique
from plaudit.strata import Stratum, stratum_of
from plaudit.ties import is_ties_id, ties_score, ties_sums

# Plain shares of rows that are right or wrong as a whole, with Wilson's interval; all else is resampled by prompt.
_SHARES = ("pairs", "rewardbench", "judgebench", "ppe-human")
CHOICES = ("rewardmath", "best-of-n", "rewardbench2", "rmb")


@dataclass(frozen=True)
class Sheet:
    """One benchmark's rows with what each earned: what all of its figures are made from.

    subsets: the places of the rows by the name that the rows give. parts: the same by the benchmark's own parts.
    others: how many rows are in no part of the benchmark. is_kept: which rows are looked at, one entry a row.
    """

    kind: str
    arrays: RowArrays
    comparisons: Comparisons
    outcomes: Outcomes
    subsets: Mapping[str, np.ndarray]
    parts: Mapping[str, np.ndarray]
    others: int
    weights: str
    is_kept: np.ndarray

    @property
    def missing(self) -> str | None:
        """What the benchmark lacks, in words; None where it is complete."""
        if self.kind == "ppe-correctness" and len(self.parts) == 1:
            # Rows of a benchmark whose name is that of one set are all that it has.
            names = {suites.canonical_subset(self.kind, row.benchmark) for row in self.arrays.rows}
            if names == set(self.parts):
                return None
        counts: dict[str | None, int] = {name: len(index) for name, index in self.parts.items()}
        return suites.missing_of(self.kind, {**counts, None: self.others})

    def stratum(self, key: str, index: np.ndarray, outcomes: Outcomes | None = None) -> Stratum:
        """Return some rows as a stratum; those of RewardBench 2's Ties by their own score."""
        if key == "Ties" and self.kind == "rewardbench2":
            return ties_stratum(self.arrays, self.outcomes, index)
        outcomes = self.outcomes if outcomes is None else outcomes
        official = outcomes.official[index]
        is_share = self.kind in _SHARES and bool(((official == 0) | (official == 1)).all())
        return stratum_of(key, outcomes, self.arrays.clusters, index, is_share)

    def whole(self) -> np.ndarray:
        """Return the places of all rows that are looked at."""
        return np.flatnonzero(self.is_kept)

    def by_length(self, sign: int = 1) -> "Sheet | None":
        """Return the sheet of a rule that reads nothing and prefers the longer answer (with -1 the shorter), over the rows
        whose lengths are all known; None where there is no such row."""
        is_known = ~np.logical_or.reduceat(np.isnan(self.arrays.lengths), self.arrays.starts)
        if not is_known.any():
            return None
        arrays = self.arrays.by_length(sign)
        comparisons = replace(self.comparisons, arrays=arrays)
        outcomes = _outcomes(self.kind, comparisons, self.parts)
        return replace(self, arrays=arrays, comparisons=comparisons, outcomes=outcomes).only(is_known & self.is_kept)

    def only(self, is_kept: np.ndarray) -> "Sheet":
        """Return the sheet with some rows left out of all its parts; is_kept: one entry a row."""

        def kept(groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: index[is_kept[index]] for name, index in groups.items() if is_kept[index].any()}

        return replace(self, subsets=kept(self.subsets), parts=kept(self.parts), is_kept=is_kept)


def sheet_of(
    rows: Sequence[ScoredRow],
    kind: str | None = None,
    *,
    on_nonfinite: str = "error",
    weights: str = "current",
    clusters: np.ndarray | None = None,
) -> Sheet:
    """Return rows of one benchmark with what each earned by its rule; the options are those of `results_of`."""
    check_rules(on_nonfinite, weights)
    arrays = RowArrays(rows, clusters)
    require_unique(rows)
    kind = kind_of_rows(rows, kind)
    if on_nonfinite == "error" and not arrays.is_finite.all():
        row = rows[int(np.argmin(arrays.is_finite))]
        raise ValueError(
            f"{row.where}: a reward is not finite ({list(row.rewards)}), as in "
            f"{int((~arrays.is_finite).sum()):,} rows; score them again, or count them as wrong with "
            "on_nonfinite='official'"
        )
    subsets, parts, others = _divide(kind, rows)
    comparisons = _comparisons(kind, arrays, parts)
    outcomes = _outcomes(kind, comparisons, parts)
    return Sheet(kind, arrays, comparisons, outcomes, subsets, parts, others, weights, np.ones(len(rows), bool))


def check_rules(on_nonfinite: str, weights: str) -> None:
    """Raise ValueError for options of `sheet_of` that are not known."""
    check_choice("on_nonfinite", on_nonfinite, NONFINITE)
    check_choice("weights", weights, tuple(suites.REWARDBENCH_WEIGHTS))


def kind_of_rows(rows: Sequence[ScoredRow], kind: str | None = None) -> str:
    """Return the kind that rows are judged as: the one given, else their own, their name's, or their shape's."""
    if kind is not None:
        found = suites.kind_of(kind)
        if found is None:
            raise ValueError(f"kind={kind!r} is not known; choose one of {', '.join(map(repr, suites.KINDS))}")
        return found
    kinds = {own_kind(row) for row in rows}
    if len(kinds) > 1:
        names = sorted({row.benchmark for row in rows})
        raise ValueError(f"the rows are of several kinds of benchmark ({', '.join(names[:5])}); give one at a time")
    return kinds.pop() or _kind_by_shape(rows)


def own_kind(row: ScoredRow) -> str | None:
    """Return the kind that a row says it is of, else that of its benchmark's name; None for neither."""
    named = row.extra.get("kind")
    return suites.kind_of(str(named)) if named is not None else suites.kind_of(row.benchmark)


def _kind_by_shape(rows: Sequence[ScoredRow]) -> str:
    return "pairs" if all(len(row.rewards) == 2 for row in rows) else "best-of-n"


def _divide(kind: str, rows: Sequence[ScoredRow]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Return the rows by the name of their subset, by the benchmark's own part, and how many are in no part."""
    subsets: dict[str, list[int]] = {}
    parts: dict[str, list[int]] = {}
    others = 0
    for index, row in enumerate(rows):
        part = part_of(kind, row)
        for name in _subsets_of(kind, row, part):
            subsets.setdefault(name, []).append(index)
        if part is not None:
            parts.setdefault(part, []).append(index)
        else:
            others += 1
    by_subset, by_part = ({name: np.array(index) for name, index in one.items()} for one in (subsets, parts))
    return by_subset, by_part, others


def _subsets_of(kind: str, row: ScoredRow, part: str | None) -> list[str]:
    """Return the names under which a row's figures are given, usually one; part: what `part_of` gives."""
    name = row.subset
    if kind in ("rewardbench", "rewardbench2"):
        # The benchmark's own spelling, where each subset is one part; in the others several are.
        name = row.subset if part is None else part
    elif name is None and kind in ("judgebench", "ppe-correctness"):
        name = part
    names = [name, *(_domains(row) if kind == "ppe-human" else [])]
    return [each for each in dict.fromkeys(names) if each is not None]


def part_of(kind: str, row: ScoredRow) -> str | None:
    """Return the benchmark's own part that a row is in, by its subset or what else says it; None for no part."""
    found = suites.canonical_subset(kind, row.subset)
    if found is None and kind == "rewardbench2" and row.subset is None and is_ties_id(row.id):
        return "Ties"
    if found is None and kind == "ppe-correctness":
        return suites.canonical_subset(kind, row.benchmark)
    column = {"judgebench": "source", "rm-bench": "domain"}.get(kind)
    return suites.canonical_subset(kind, row.extra.get(column)) if found is None and column else found


def _domains(row: ScoredRow) -> list[str]:
    """Return the domains of a vote, which may be in several: listed, or as a column of true and false each."""
    listed = row.extra.get("domains") or []
    columns = [domain for column, domain in DOMAIN_COLUMNS.items() if row.extra.get(column) is True]
    return list(dict.fromkeys([*map(str, listed), *columns]))


def _comparisons(kind: str, arrays: RowArrays, parts: Mapping[str, np.ndarray]) -> Comparisons:
    """Return which candidates are held against which, of rows that are as the benchmark has them."""
    if kind == "ppe-human":
        return _decided_votes(arrays)
    if kind == "ppe-correctness":
        return sampled_comparisons(arrays)
    if kind != "best-of-n":
        arrays.require_right_and_wrong()
    if kind in CHOICES:
        _check_choices(kind, arrays, parts)
    elif kind == "rm-bench":
        _require(arrays, (arrays.sizes == 6) & (arrays.num_right == 3), "has three right and three wrong candidates")
    elif kind in ("rewardbench", "judgebench"):
        _require(arrays, arrays.sizes == 2, "has two candidates")
    return all_comparisons(arrays)


def _outcomes(kind: str, comparisons: Comparisons, parts: Mapping[str, np.ndarray]) -> Outcomes:
    """Return what each row earns by the benchmark's rule."""
    if kind not in CHOICES:
        return pair_outcomes(comparisons, counts_comparisons=kind == "ppe-correctness")
    arrays = comparisons.arrays
    outcomes = choice_outcomes(
        arrays,
        splits_ties=kind in ("rewardbench2", "best-of-n"),
        counts_candidates=kind in ("rewardmath", "best-of-n"),
    )
    return _with_ties(arrays, outcomes, parts) if kind == "rewardbench2" else outcomes


def _with_ties(arrays: RowArrays, outcomes: Outcomes, parts: Mapping[str, np.ndarray]) -> Outcomes:
    """Return outcomes in which a row of Ties is right where every right candidate beats every wrong one."""
    index = parts.get("Ties", np.array([], np.int64))
    margin, is_right = outcomes.margin.copy(), outcomes.is_right.copy()
    margin[index] = arrays.worst_right[index] - arrays.best_wrong[index]
    is_right[index] = margin[index] > 0
    return replace(outcomes, margin=margin, is_right=is_right)


def _decided_votes(arrays: RowArrays) -> Comparisons:
    """Return the votes of people but those for neither, which count nowhere."""
    _require(arrays, arrays.sizes == 2, "has two candidates")
    ties = np.array([is_human_tie(row) for row in arrays.rows])
    every = all_comparisons(arrays)
    decided = ~ties[every.row]
    return Comparisons(arrays, every.row[decided], every.right[decided], every.wrong[decided])


def _check_choices(kind: str, arrays: RowArrays, parts: Mapping[str, np.ndarray]) -> None:
    if kind in ("rewardmath", "rmb"):
        _require(arrays, arrays.num_right == 1, "has exactly one right candidate")
    if kind == "rewardbench2":
        is_single = np.ones(len(arrays), bool)
        is_single[parts.get("Ties", np.array([], np.int64))] = False
        _require(arrays, ~is_single | (arrays.num_right == 1), "outside Ties has exactly one right candidate")


def _require(arrays: RowArrays, holds: np.ndarray, rule: str) -> None:
    if not holds.all():
        row = arrays.rows[int(np.argmin(holds))]
        raise ValueError(
            f"{row.where}: the labels are {[int(label) for label in row.labels]}, but a row "
            f"of this benchmark {rule}; mend the row, or give the kind that fits ('pairs' or 'best-of-n')"
        )


def ties_stratum(arrays: RowArrays, outcomes: Outcomes, index: np.ndarray, version: str = "head") -> Stratum:
    """Return the rows of Ties as a stratum, whose half credit is its score; index: their places."""
    sums, score_of = ties_sums(arrays, index, version), partial(ties_score, version=version)
    score = float(score_of(sums.sum(axis=0)))
    return Stratum("Ties", sums, score_of, score, len(index), int((outcomes.ties[index] > 0).sum()))
