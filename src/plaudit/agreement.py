"""Whether a reward ranks models as people do: win rates by model, from votes between two models' answers."""

from typing import Any

import numpy as np

from plaudit.metrics import kendall, spearman
from plaudit.outcomes import RowArrays
from plaudit.resampling import ratio, resampled_sums
from plaudit.score_rows import ScoredRow

# PPE's own columns that say which domains a vote is in.
DOMAIN_COLUMNS = {
    "hard_prompt": "hard",
    "easy_prompt": "easy",
    "if_prompt": "instruction following",
    "is_code": "code",
    "math_prompt": "math",
    "similar_response": "similar",
    "english_prompt": "english",
    "multilingual": "multilingual",
}
# In which two columns the models' names are.
MODEL_COLUMNS = (("model_a", "model_b"), ("model_1", "model_2"))


def is_human_tie(row: ScoredRow) -> bool:
    """Tell whether people voted for neither: by `winner`, or by two equal labels."""
    winner = str(row.extra.get("winner") or "").lower()
    return winner.startswith("tie") or len(set(map(bool, row.labels))) == 1


def models_of(row: ScoredRow) -> tuple[str, str] | None:
    """Return the models that wrote the two candidates, in their order; None where the row does not say."""
    models = row.extra.get("models")
    for names in MODEL_COLUMNS:
        if models is None and set(names) <= set(row.extra):
            models = [row.extra[name] for name in names]
    return (str(models[0]), str(models[1])) if isinstance(models, (list, tuple)) and len(models) == 2 else None


def agreement_of(arrays: RowArrays, decided: np.ndarray, num_resamples: int, seed: int) -> dict[str, Any] | None:
    """Return how alike rewards and people rank models, over votes that are no ties; None without two models.

    Each model's win rate is the share of its votes that it won; equal rewards give half a win. `spearman` and `kendall`
    compare the two lists of win rates. Over all pairs of models, with votes resampled: `separability` is the share whose
    win rates by reward have 95 % intervals that do not overlap; `agreement` adds 1 for each pair that both separate in
    the same direction, takes 1 off for each in the opposite one, and divides by the pairs that people separate; `brier`
    is the mean squared distance of the chance that the reward puts the first model higher from whether people do.
    """
    found = [(row, models) for row in np.flatnonzero(decided).tolist() if (models := models_of(arrays.rows[row]))]
    names = sorted({name for _, models in found for name in models})
    if len(names) < 2:
        return None
    place = {name: number for number, name in enumerate(names)}
    first, second = (np.array([place[models[side]] for _, models in found]) for side in (0, 1))
    starts = arrays.starts[[row for row, _ in found]]
    people = arrays.is_right[starts].astype(np.float64)
    rewards = arrays.rewards[starts], arrays.rewards[starts + 1]
    machine = (rewards[0] > rewards[1]) + 0.5 * (rewards[0] == rewards[1])
    votes = np.stack([first, second, people, machine], axis=1)
    drawn = _win_rates(votes, len(names), num_resamples, seed)
    actual = _win_rates(votes, len(names), 0, seed)[0]
    return {
        "win_rates": {
            name: {"people": float(actual[0, number]), "reward": float(actual[1, number])}
            for name, number in place.items()
        },
        "spearman": spearman(actual[0], actual[1]),
        "kendall": kendall(actual[0], actual[1]),
        **_separation(actual, drawn),
    }


def _win_rates(votes: np.ndarray, num_models: int, num_resamples: int, seed: int) -> np.ndarray:
    """Return win rates by people and by reward, shape (num_resamples, 2, num_models); as they are for 0 resamples.

    votes: shape (num_votes, 4), the two models and how much the first one won by people and by reward.
    """
    kinds, counts = np.unique(votes, axis=0, return_counts=True)
    first, second = kinds[:, 0].astype(int), kinds[:, 1].astype(int)
    sums = np.zeros((len(kinds), 3, num_models))
    rows = np.arange(len(kinds))
    for column in (0, 1):
        sums[rows, column, first] += kinds[:, 2 + column]
        sums[rows, column, second] += 1 - kinds[:, 2 + column]
    sums[rows, 2, first] += 1
    sums[rows, 2, second] += 1
    flat = sums.reshape(len(kinds), -1)
    if num_resamples:
        drawn = resampled_sums(np.repeat(flat, counts, axis=0), num_resamples, seed)
    else:
        drawn = (counts @ flat)[None]
    won = drawn.reshape(-1, 3, num_models)
    return ratio(won[:, :2], np.broadcast_to(won[:, 2:], won[:, :2].shape))


def _separation(actual: np.ndarray, drawn: np.ndarray) -> dict[str, float | None]:
    above, below = np.triu_indices(actual.shape[1], 1)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    # 1 where the first model is surely better, -1 where the second one is, 0 where the intervals overlap.
    sure = (low[:, above] > high[:, below]).astype(int) - (low[:, below] > high[:, above]).astype(int)
    machine = drawn[:, 1][:, above] - drawn[:, 1][:, below]
    chance = ((machine > 0) + 0.5 * (machine == 0)).mean(axis=0)
    people = np.sign(actual[0, above] - actual[0, below])
    separated = sure[0] != 0
    return {
        "separability": float((sure[1] != 0).mean()),
        "agreement": float((sure[0] * sure[1])[separated].mean()) if separated.any() else None,
        "brier": float(((chance - (people + 1) / 2) ** 2).mean()),
    }
