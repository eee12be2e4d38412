"""Benchmarks beside a training's own evaluation sets: the figures that `plaudit.evaluate` gives, on whatever processes."""

import json
import math

import numpy as np
import pytest
import rows_of_benchmarks as made
import torch
from conftest import conversations, text_pairs
from test_trainer import make
from transformers import EarlyStoppingCallback

from plaudit import RewardModel
from plaudit.benchmark_sets import BenchmarkSets
from plaudit.evaluation import evaluate
from plaudit.prepare import Rules
from plaudit.results import flat_figures

RULES = Rules(max_length=1024, vocabulary_size=None, pad_token_id=None)


@pytest.fixture
def files(tmp_path):
    """Two benchmarks: six rows of RewardBench 2, two of them Ties, and five plain pairs."""
    six = made.rewardbench2({"Math": 2, "Focus": 2, "Ties": 2})
    made.write(tmp_path / "rewardbench2.jsonl", six)
    made.write(tmp_path / "own pairs.jsonl", conversations(5, seed=3))
    return [str(tmp_path / "rewardbench2.jsonl"), str(tmp_path / "own pairs.jsonl")]


def figures_in(metrics):
    """The benchmarks' figures among the metrics, by name."""
    return {name: value for name, value in metrics.items() if name.startswith(("eval_rewardbench2_", "eval_own_pairs"))}


def test_figures_are_those_that_evaluating_the_saved_model_gives(model_path, tmp_path, files):
    trainer = make(model_path, tmp_path / "run", conversations(8), conversations(4, seed=1), eval_benchmarks=files)
    metrics = trainer.evaluate()
    trainer.save_model()
    results = evaluate(RewardModel.from_pretrained(tmp_path / "run"), files)
    expected = {
        f"eval_{name.replace(' ', '_')}_{figure}": value
        for name, entry in results.items()
        for figure, value in flat_figures(entry).items()
    }
    assert figures_in(metrics) == pytest.approx(expected, abs=1e-6)
    assert {"eval_own_pairs_overall", "eval_rewardbench2_ties", "eval_accuracy", "eval_loss"} <= set(metrics)
    assert "eval_rewardbench2_overall" not in metrics, "the benchmark is incomplete"
    logged = [entry for entry in trainer.state.log_history if "eval_own_pairs_accuracy" in entry]
    assert len(logged) == 1


def test_scored_rows_hold_the_saved_models_rewards(model_path, tmp_path, files):
    trainer = make(model_path, tmp_path / "run", conversations(8), eval_benchmarks=files)
    trainer.evaluate()
    trainer.save_model()
    evaluate(RewardModel.from_pretrained(tmp_path / "run"), files, output_dir=tmp_path / "out", with_report=False)
    lines = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    rows = [
        row
        for part in trainer.benchmark_sets.rows(trainer.newest_rewards[trainer.BENCHMARKS][1]).values()
        for row in part
    ]
    assert len(rows) == len(lines) == 11
    for row, line in zip(rows, lines, strict=True):
        assert (row.benchmark, row.id, row.tokens) == (line["benchmark"], line["id"], line["tokens"])
        np.testing.assert_allclose(row.rewards, line["rewards"], atol=1e-5)


def test_every_text_is_scored_once_however_many_rows_hold_it(tokenizer, tmp_path):
    rows = made.rewardbench2({"Math": 3})
    made.write(tmp_path / "a.jsonl", rows)
    made.write(tmp_path / "b.jsonl", [*rows, *made.rewardbench2({"Focus": 1})])
    sets = BenchmarkSets([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], tokenizer, RULES, {}, True)
    ids = [tuple(ids) for side in ("chosen_ids", "rejected_ids") for ids in sets.dataset[side]]
    assert len(sets.dataset) == 8
    assert len(set(ids)) == 16, "four prompts with four answers each"
    rewards = np.arange(16.0).reshape(8, 2)
    a, b = sets.rows(rewards).values()
    assert [row.rewards for row in a] == [row.rewards for row in b[:3]]
    assert [row.rewards for row in b] == [[4.0 * i, 4.0 * i + 1, 4.0 * i + 2, 4.0 * i + 3] for i in range(4)]


def test_an_odd_sequence_stands_beside_itself(tokenizer, tmp_path):
    row = {"prompt": "q", "responses": ["right", "wrong", "bad"], "correct": [True, False, False]}
    made.write(tmp_path / "best.jsonl", [row])
    sets = BenchmarkSets([str(tmp_path / "best.jsonl")], tokenizer, RULES, {}, True)
    assert len(sets.dataset) == 2
    assert sets.dataset["chosen_ids"][1] == sets.dataset["rejected_ids"][1]
    (rows,) = sets.rows(np.array([[3.0, 1.0], [2.0, 2.0]])).values()
    assert rows[0].rewards == [3.0, 1.0, 2.0]


def test_longer_sequences_lose_their_beginning_and_are_counted(tokenizer, tmp_path, caplog):
    words = "one two three four five six seven eight nine ten " * 4
    pair = {"prompt": words, "chosen": "yes", "rejected": "no"}
    made.write(tmp_path / "long.jsonl", [pair, {"prompt": "short", "chosen": "a", "rejected": "b"}])
    sets = BenchmarkSets([str(tmp_path / "long.jsonl")], tokenizer, Rules(24, None, None), {}, True)
    assert "2 of 4 sequences of the benchmarks are longer than max_length 24, and lose their beginning" in caplog.text
    (rows,) = sets.rows(np.zeros((2, 2))).values()
    assert rows[0].extra["truncated"] == [True, True]
    assert "truncated" not in rows[1].extra
    assert max(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in sets.dataset[side]) == 24


def test_answers_that_a_cut_has_made_equal_have_one_reward_and_are_marked(tokenizer, tmp_path):
    words = " one two three four five six seven eight nine ten" * 4
    long = {"prompt": "q", "chosen": "yes" + words, "rejected": "no" + words}
    made.write(tmp_path / "cut.jsonl", [long, {"prompt": "short", "chosen": "a", "rejected": "b"}])
    sets = BenchmarkSets([str(tmp_path / "cut.jsonl")], tokenizer, Rules(20, None, None), {}, True)
    (rows,) = sets.rows(np.arange(4.0).reshape(2, 2)).values()
    assert len(set(rows[0].rewards)) == 1
    assert [row.extra.get("identical_when_cut") for row in rows] == [True, None]


def test_benchmarks_alone_are_an_evaluation_and_choose_the_best_checkpoint(model_path, tmp_path, files):
    trainer = make(
        model_path,
        tmp_path / "run",
        conversations(8),
        eval_benchmarks=files,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_own_pairs_half_credit",
        greater_is_better=True,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    seen = [e["eval_own_pairs_half_credit"] for e in trainer.state.log_history if "eval_own_pairs_half_credit" in e]
    assert trainer.state.best_metric == max(seen)
    assert trainer.state.best_global_step == 1 + seen.index(max(seen))


def test_rewards_that_are_not_finite_stop_the_run_as_in_training(model_path, tmp_path, files):
    trainer = make(model_path, tmp_path / "run", conversations(4), eval_benchmarks=files)
    with torch.no_grad():
        trainer.model.score.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="^a benchmark's reward is nan at step 0: "):
        trainer.evaluate()


def test_a_name_that_an_evaluation_set_has_is_an_error(model_path, tmp_path, files):
    sets = {"own_pairs": make(model_path, tmp_path, conversations(2)).train_dataset}
    with pytest.raises(ValueError, match="eval_benchmarks: 'own_pairs' is the name of another evaluation set"):
        make(model_path, tmp_path / "run", conversations(4), sets, eval_benchmarks=files)


def test_a_benchmark_that_is_not_there_is_an_error_before_training(model_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl.: there is no such file"):
        make(model_path, tmp_path / "run", text_pairs(4), eval_benchmarks=[str(tmp_path / "nowhere.jsonl")])
