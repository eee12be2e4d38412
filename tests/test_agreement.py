"""Win rates of models by people and by reward."""

import numpy as np
import pytest

from plaudit.agreement import agreement_of, is_human_tie, models_of
from plaudit.outcomes import RowArrays
from plaudit.score_rows import ScoredRow


def vote(number, models, people, reward):
    """people, reward: which of the two wins."""
    return ScoredRow(
        "ppe-human", str(number), None, [1 - reward, reward], [1 - people, people], None, {"models": list(models)}
    )


def votes(strength_by_reward, num_votes=600):
    """People prefer a to b to c in 80 of 100 votes; the reward does by its own strengths."""
    generator = np.random.default_rng(0)
    people = {"a": 2.0, "b": 0.6, "c": -1.0}
    found = []
    for number in range(num_votes):
        pair = generator.choice(list(people), 2, replace=False)
        wins = [generator.random() > 1 / (1 + np.exp(s[pair[1]] - s[pair[0]])) for s in (people, strength_by_reward)]
        found.append(vote(number, pair, int(wins[0]), int(wins[1])))
    return found


def agreement(rows):
    return agreement_of(RowArrays(rows), np.ones(len(rows), bool), 1000, 0)


def test_a_reward_that_votes_like_people_agrees_in_all():
    found = agreement(votes({"a": 2.0, "b": 0.6, "c": -1.0}))
    assert (found["spearman"], found["kendall"], found["agreement"], found["separability"]) == (1.0, 1.0, 1.0, 1.0)
    assert found["brier"] < 0.01


def test_a_reward_that_votes_against_people_disagrees_in_all():
    found = agreement(votes({"a": -2.0, "b": -0.6, "c": 1.0}))
    assert (found["spearman"], found["kendall"], found["agreement"]) == (-1.0, -1.0, -1.0)
    assert found["brier"] > 0.95


def test_a_reward_that_votes_at_random_separates_nothing():
    found = agreement(votes({"a": 0.0, "b": 0.0, "c": 0.0}))
    assert found["separability"] < 0.5
    assert 0.02 < found["brier"] < 0.9


def test_win_rates_are_worked_out_by_hand_and_equal_rewards_win_half():
    rows = [
        vote(1, "ab", 0, 0),
        vote(2, "ba", 0, 1),
        ScoredRow("p", "3", None, [1, 1], [1, 0], None, {"models": ["a", "c"]}),
    ]
    rates = agreement(rows)["win_rates"]
    assert rates == {
        "a": {"people": pytest.approx(2 / 3), "reward": pytest.approx(2.5 / 3)},
        "b": {"people": 0.5, "reward": 0.0},
        "c": {"people": 0.0, "reward": 0.5},
    }


def test_the_order_of_the_two_candidates_does_not_matter():
    rows = votes({"a": 1.0, "b": 0.5, "c": 0.0}, 100)
    turned = [
        ScoredRow(r.benchmark, r.id, None, r.rewards[::-1], r.labels[::-1], None, {"models": r.extra["models"][::-1]})
        for r in rows
    ]
    first, second = agreement(rows), agreement(turned)
    for name in ("win_rates", "spearman", "kendall"):
        assert first[name] == second[name]
    assert first["brier"] == pytest.approx(second["brier"], abs=0.03)


def test_rows_without_models_or_of_one_model_have_no_agreement():
    bare = ScoredRow("p", "1", None, [1, 0], [1, 0])
    assert agreement([bare]) is None
    assert agreement([vote(1, "aa", 0, 0)]) is None


def test_models_are_found_under_the_benchmarks_own_columns():
    assert models_of(ScoredRow("p", "1", None, [1, 0], [1, 0], None, {"model_a": "x", "model_b": "y"})) == ("x", "y")
    assert models_of(ScoredRow("p", "1", None, [1, 0], [1, 0], None, {"models": ["x", "y"]})) == ("x", "y")
    assert models_of(ScoredRow("p", "1", None, [1, 0], [1, 0], None, {"models": ["x"]})) is None


@pytest.mark.parametrize(
    ("labels", "extra", "is_tie"),
    [
        ([1, 0], {}, False),
        ([0, 0], {}, True),
        ([1, 0], {"winner": "Tie (bothbad)"}, True),
        ([0, 1], {"winner": "model_b"}, False),
    ],
)
def test_a_vote_for_neither_is_known_by_its_winner_or_its_labels(labels, extra, is_tie):
    assert is_human_tie(ScoredRow("p", "1", None, [1, 0], labels, None, extra)) is is_tie
