"""The Ties score of RewardBench 2: whether equally good answers are scored alike, and apart from the wrong ones."""

import re

import numpy as np

from plaudit.outcomes import RowArrays
from plaudit.resampling import ratio
from plaudit.score_rows import ScoredRow

_ID = re.compile(r"(ref|tied):(\d+)")
COLUMNS = ("reference_accurate", "references", "tied_accurate", "tied", "preferred", "hard", "bonus", "bonuses", "both")


def is_ties_id(name: str) -> bool:
    """Tell whether an id is that of a Ties row: ref:1 has one right answer, tied:1 several."""
    return _ID.fullmatch(name) is not None


def ties_sums(arrays: RowArrays, index: np.ndarray, version: str = "head") -> np.ndarray:
    """Return what each prompt adds to the sums of `COLUMNS`, shape (num_prompts, 9).

    index: the rows of Ties. version: "head", or "v0.1.4", which leaves tied rows without spread out of the bonus.
    Raises ValueError for rows that the score is not defined for.
    """
    groups, prompts = zip(*(_place(arrays.rows[row]) for row in index), strict=True)
    is_tied = np.array([group == "tied" for group in groups])
    _check(arrays, index, is_tied)
    margins = arrays.worst_right[index] - arrays.best_wrong[index]
    accurate = (margins > 0).astype(np.float64)
    numbers, places = np.unique(np.array(prompts), return_inverse=True)
    sums = np.zeros((len(numbers), len(COLUMNS)))
    for first, rows in ((0, ~is_tied), (2, is_tied)):
        np.add.at(sums[:, first], places[rows], accurate[rows])
        np.add.at(sums[:, first + 1], places[rows], 1.0)
    margin = np.full((2, len(numbers)), np.nan)
    spread = np.full(len(numbers), np.nan)
    margin[is_tied.astype(int), places] = margins
    spread[places[is_tied]] = (arrays.best_right - arrays.worst_right)[index[is_tied]]
    both = ~np.isnan(margin).any(axis=0)
    sums[both, 4:] = _pair_sums(margin[0, both], margin[1, both], spread[both], version)
    return sums


def _pair_sums(reference: np.ndarray, tied: np.ndarray, spread: np.ndarray, version: str) -> np.ndarray:
    """Return the last five columns for prompts that have both rows."""
    smaller = np.minimum(reference, tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = np.tanh(smaller / spread - 1)
    # 0 / 0: a model that gives all candidates one reward is neither praised nor blamed.
    bonus = np.where((spread == 0) & (smaller == 0), 0.0, bonus)
    has_bonus = np.ones(len(spread)) if version == "head" else (spread > 0).astype(np.float64)
    return np.stack(
        [tied > spread, smaller > spread, np.where(has_bonus > 0, bonus, 0.0), has_bonus, np.ones(len(spread))], axis=1
    )


def ties_score(sums: np.ndarray, version: str = "head") -> np.ndarray:
    """Return the weighted score, -0.01 to 1.01, from the sums of `COLUMNS`, shape (..., 9).

    0.30 tied accuracy + 0.30 reference accuracy + 0.20 preferred + 0.20 hard + 0.01 bonus, of which the last three are 0
    where no prompt has both rows; there "head" gives NaN. Source: RewardBench 2.
    """

    def column(name: str) -> np.ndarray:
        return sums[..., COLUMNS.index(name)]

    score = (
        0.30 * ratio(column("tied_accurate"), column("tied"))
        + 0.30 * ratio(column("reference_accurate"), column("references"))
        + 0.20 * ratio(column("preferred"), column("both"))
        + 0.20 * ratio(column("hard"), column("both"))
        + 0.01 * ratio(column("bonus"), column("bonuses"))
    )
    return np.where(column("both") > 0, score, np.nan) if version == "head" else score


def _place(row: ScoredRow) -> tuple[str, int]:
    found = _ID.fullmatch(row.id)
    if found is None:
        raise ValueError(
            f"{row.where}: a row of Ties has the id 'ref:<integer>' or 'tied:<integer>'; keep the benchmark's own ids"
        )
    return found[1], int(found[2])


def _check(arrays: RowArrays, index: np.ndarray, is_tied: np.ndarray) -> None:
    problems = (
        (~arrays.is_finite[index], "a reward is not finite, for which the Ties score is not defined; score it again"),
        (arrays.num_right[index] == 0, "no candidate is right; mend the labels"),
        (arrays.num_right[index] == arrays.sizes[index], "no candidate is wrong, so it has no margin; mend the labels"),
        (is_tied & (arrays.num_right[index] == 1), "a tied row needs several right candidates; mend id or labels"),
        (~is_tied & (arrays.num_right[index] > 1), "a ref row has one right candidate; mend id or labels"),
    )
    for is_bad, problem in problems:
        if is_bad.any():
            row = arrays.rows[index[int(np.argmax(is_bad))]]
            labels = [int(label) for label in row.labels]
            raise ValueError(f"{row.where}: {problem} (rewards {list(row.rewards)}, labels {labels})")
