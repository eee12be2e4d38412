"""Scored rows as arrays, and what each row earns by its benchmark's rule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np

from plaudit.score_rows import ScoredRow


class RowArrays:
    """Rows of different numbers of candidates, end to end: one entry a candidate, and each row's first and number.

    clusters: a number for each row, equal for rows that are resampled together; those of one `extra["prompt"]` if None.
    """

    def __init__(self, rows: Sequence[ScoredRow], clusters: np.ndarray | None = None) -> None:
        self.rows = rows
        self.clusters = _clusters(rows) if clusters is None else clusters
        self.sizes = np.fromiter((len(row.rewards) for row in rows), np.int64, len(rows))
        _check_lengths(rows, self.sizes)
        self.starts = np.cumsum(self.sizes) - self.sizes
        total = int(self.sizes.sum())
        self.rewards = _rewards(rows, total)
        labels = np.fromiter(chain.from_iterable(row.labels for row in rows), np.float64, total)
        self.is_right = labels == 1
        self.row_of = np.repeat(np.arange(len(rows)), self.sizes)
        if not (self.is_right | (labels == 0)).all():
            row = rows[self.row_of[np.argmin(self.is_right | (labels == 0))]]
            raise ValueError(
                f"{row.where}: the labels are {list(row.labels)}, but a label is 1 (right) or 0 (wrong); mend the row"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def by_length(self, sign: int = 1) -> "RowArrays":
        """Return the same rows with each candidate's length, times the sign, as its reward, and 0 where it is not known."""
        lengths = np.split(sign * np.nan_to_num(self.lengths), self.starts[1:])
        rows = [replace(row, rewards=own.tolist()) for row, own in zip(self.rows, lengths, strict=True)]
        return RowArrays(rows, self.clusters)

    @cached_property
    def num_right(self) -> np.ndarray:
        """How many candidates of each row are right."""
        return np.add.reduceat(self.is_right.astype(np.int64), self.starts)

    @cached_property
    def best_right(self) -> np.ndarray:
        """Each row's highest reward of a right candidate; minus infinity without one, NaN where one is NaN."""
        return np.maximum.reduceat(np.where(self.is_right, self.rewards, -np.inf), self.starts)

    @cached_property
    def worst_right(self) -> np.ndarray:
        """Each row's lowest reward of a right candidate; infinity without one."""
        return np.minimum.reduceat(np.where(self.is_right, self.rewards, np.inf), self.starts)

    @cached_property
    def best_wrong(self) -> np.ndarray:
        """Each row's highest reward of a wrong candidate; minus infinity without one."""
        return np.maximum.reduceat(np.where(self.is_right, -np.inf, self.rewards), self.starts)

    @cached_property
    def is_finite(self) -> np.ndarray:
        """Whether all rewards of a row are finite."""
        return np.logical_and.reduceat(np.isfinite(self.rewards), self.starts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Each candidate's length, in characters where the row has them, else in tokens; NaN where it has neither."""
        known = map(_lengths, self.rows)
        values = (
            [np.nan] * len(row.rewards) if one is None else one for row, one in zip(self.rows, known, strict=True)
        )
        return np.fromiter(chain.from_iterable(values), np.float64, len(self.rewards))

    def require_right_and_wrong(self, where: np.ndarray | None = None) -> None:
        """Raise ValueError, naming the first, for rows without a right or without a wrong candidate."""
        for word, lacks in (("right", self.num_right == 0), ("wrong", self.num_right == self.sizes)):
            bad = np.flatnonzero(lacks if where is None else lacks & where)
            if len(bad):
                row = self.rows[bad[0]]
                raise ValueError(
                    f"{row.where}: no candidate is {word} (labels {list(row.labels)}), so "
                    f"there is nothing to compare, as in {len(bad):,} rows; mend the labels or drop the row"
                )


def _clusters(rows: Sequence[ScoredRow]) -> np.ndarray:
    """Return a number for each row, the same for rows of one prompt."""
    numbers: dict[Any, int] = {}
    prompts = (row.extra.get("prompt") for row in rows)
    keys = (("row", index) if prompt is None else ("prompt", str(prompt)) for index, prompt in enumerate(prompts))
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, len(rows))


def _check_lengths(rows: Sequence[ScoredRow], sizes: np.ndarray) -> None:
    if not rows:
        raise ValueError("there are no rows to compute figures from; give at least one scored row")
    for row, size in zip(rows, sizes.tolist(), strict=True):
        if size < 2 or len(row.labels) != size:
            raise ValueError(
                f"{row.where}: {size} rewards and {len(row.labels)} labels; a row needs two "
                "candidates or more, each with a reward and a label"
            )


def _rewards(rows: Sequence[ScoredRow], total: int) -> np.ndarray:
    try:
        return np.fromiter(chain.from_iterable(map(_flat, rows)), np.float64, total)
    except (TypeError, ValueError):
        row = next(row for row in rows if not all(isinstance(reward, Real) for reward in _flat(row)))
        raise ValueError(
            f"{row.where}: rewards must be one number a candidate, not {list(row.rewards)}; score the row again"
        ) from None


def _flat(row: ScoredRow) -> Sequence[float]:
    # One output a candidate, as a model with one label gives it.
    nested: Sequence[Any] = row.rewards
    if all(hasattr(reward, "__len__") and len(reward) == 1 for reward in nested):
        return [reward[0] for reward in nested]
    return row.rewards


def _lengths(row: ScoredRow) -> Sequence[float] | None:
    lengths = row.extra.get("characters")
    name = "characters" if lengths is not None else "tokens"
    lengths = row.tokens if lengths is None else lengths
    if lengths is not None and len(lengths) != len(row.rewards):
        raise ValueError(
            f"{row.where}: {name!r} has {len(lengths)} entries for {len(row.rewards)} "
            "rewards; give each candidate its length"
        )
    return lengths


@dataclass(frozen=True)
class Comparisons:
    """A right candidate against a wrong one of the same row: each row's, in the order of its candidates.

    row: the row of each comparison. right, wrong: the candidates, as places in the arrays. weight: one over the row's
    number of comparisons, so that each row counts once.
    """

    arrays: RowArrays
    row: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @cached_property
    def number(self) -> np.ndarray:
        """How many comparisons each row has."""
        return np.bincount(self.row, minlength=len(self.arrays))

    @cached_property
    def weight(self) -> np.ndarray:
        return 1.0 / self.number[self.row]

    @cached_property
    def won(self) -> np.ndarray:
        """Whether the right candidate has the higher reward; a comparison with NaN is not won."""
        return self.arrays.rewards[self.right] > self.arrays.rewards[self.wrong]

    @cached_property
    def tied(self) -> np.ndarray:
        return self.arrays.rewards[self.right] == self.arrays.rewards[self.wrong]

    @cached_property
    def gap(self) -> np.ndarray:
        """The right candidate's reward minus the wrong one's."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self.arrays.rewards[self.right] - self.arrays.rewards[self.wrong]

    @cached_property
    def longer(self) -> np.ndarray:
        """How much longer the right candidate is; NaN where lengths are not known."""
        return self.arrays.lengths[self.right] - self.arrays.lengths[self.wrong]

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a value over each row's comparisons."""
        return np.bincount(self.row, weights=values, minlength=len(self.arrays))


def all_comparisons(arrays: RowArrays) -> Comparisons:
    """Return every right candidate against every wrong one of its row."""
    right, wrong = np.flatnonzero(arrays.is_right), np.flatnonzero(~arrays.is_right)
    num_wrong = arrays.sizes - arrays.num_right
    first_wrong = np.cumsum(num_wrong) - num_wrong
    opponents = num_wrong[arrays.row_of[right]]
    row = np.repeat(arrays.row_of[right], opponents)
    # Counts 0, 1, ... through the wrong candidates of the row, anew for each right one.
    turn = np.arange(len(row)) - np.repeat(np.cumsum(opponents) - opponents, opponents)
    return Comparisons(arrays, row, np.repeat(right, opponents), wrong[first_wrong[row] + turn])


def sampled_comparisons(arrays: RowArrays) -> Comparisons:
    """Return the comparisons that PPE's own column lists: pairs of a right and a wrong candidate, from zero."""
    column = "sampled_conflict_pairs"
    row, first, second = [], [], []
    for index, scored in enumerate(arrays.rows):
        pairs = scored.extra.get(column, scored.extra.get("conflict_pairs"))
        if pairs is None:
            raise ValueError(
                f"{scored.where}: 'extra' has no {column!r}, the pairs of candidates "
                "that the benchmark's pair accuracy is over; put the benchmark's own column into 'extra'"
            )
        for pair in pairs:
            places = _conflict(scored, pair, column)
            row.append(index)
            first.append(places[0])
            second.append(places[1])
    rows = np.array(row, np.int64)
    start = arrays.starts[rows]
    return Comparisons(arrays, rows, start + np.array(first, np.int64), start + np.array(second, np.int64))


def _conflict(row: ScoredRow, pair: Any, column: str) -> tuple[int, int]:
    """Return the right and the wrong candidate of a listed pair."""
    size = len(row.rewards)
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(i) is int and 0 <= i < size for i in pair)):
        raise ValueError(
            f"{row.where}: {column!r} holds {pair!r}, but a pair is two places from 0 to {size - 1}; mend the row"
        )
    first, second = pair
    if bool(row.labels[first]) == bool(row.labels[second]):
        raise ValueError(
            f"{row.where}: {column!r} holds {pair!r}, whose candidates have the same label "
            f"{int(row.labels[first])}, so neither should win; mend the pairs or the labels"
        )
    return (first, second) if row.labels[first] else (second, first)


@dataclass(frozen=True)
class Outcomes:
    """What each row earned, one entry a row.

    official, half: the sums that the field's number and the recommended one are the means of. weight: how much the
    row counts in both (a prompt with five comparisons counts 5 where the figure is over comparisons). is_right:
    right by the official rule as a whole. ties: how often a tie decided (0 or 1 where a row can tie once).
    margin: by how much the row is right (above 0) or wrong.
    """

    official: np.ndarray
    half: np.ndarray
    weight: np.ndarray
    is_right: np.ndarray
    ties: np.ndarray
    margin: np.ndarray


def pair_outcomes(comparisons: Comparisons, counts_comparisons: bool = False) -> Outcomes:
    """Return each row's share of comparisons won: a tie is wrong officially, and half right in `half`.

    counts_comparisons: a row counts as many times as it has comparisons, and not once.
    """
    number = comparisons.number
    won, tied = comparisons.per_row(comparisons.won), comparisons.per_row(comparisons.tied)
    scale = np.ones(len(number)) if counts_comparisons else np.maximum(number, 1)
    has_any = number > 0
    arrays = comparisons.arrays
    worst = np.full(len(number), np.inf)
    with np.errstate(invalid="ignore"):
        np.minimum.at(worst, comparisons.row, comparisons.gap)
    return Outcomes(
        official=won / scale,
        half=(won + tied / 2) / scale,
        weight=number.astype(np.float64) if counts_comparisons else has_any.astype(np.float64),
        is_right=has_any & (won == number),
        ties=(tied > 0).astype(np.int64),
        margin=np.where(has_any & arrays.is_finite, worst, np.nan),
    )


def choice_outcomes(arrays: RowArrays, *, splits_ties: bool = False, counts_candidates: bool = False) -> Outcomes:
    """Return for each row whether the highest reward is a right candidate's.

    half: the chance of a right one among those tied at the top. splits_ties: the official number is that too, as in
    RewardBench 2; else it is 1 only where a right candidate beats all wrong ones. counts_candidates: `ties` counts the
    wrong candidates tied with the best right one, and not just whether there is one.
    """
    top = np.maximum.reduceat(arrays.rewards, arrays.starts)
    # NaN equals nothing, so a row with one has nobody at the top and earns nothing, as in RewardBench 2.
    is_top = arrays.rewards == top[arrays.row_of]
    num_top = np.add.reduceat(is_top.astype(np.int64), arrays.starts)
    right_top = np.add.reduceat((is_top & arrays.is_right).astype(np.int64), arrays.starts)
    half = right_top / np.maximum(num_top, 1)
    strict = (right_top > 0) & (right_top == num_top)
    ties = np.add.reduceat(
        (~arrays.is_right & (arrays.rewards == arrays.best_right[arrays.row_of])).astype(np.int64), arrays.starts
    )
    if not counts_candidates:
        ties = np.minimum(ties, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        margin = arrays.best_right - arrays.best_wrong
    return Outcomes(
        official=half if splits_ties else strict.astype(np.float64),
        half=half,
        weight=np.ones(len(arrays)),
        is_right=strict,
        ties=ties,
        margin=np.where(np.isfinite(margin), margin, np.nan),
    )
