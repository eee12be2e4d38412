"""Several processes: the same numbers as one, and as lone rewards computed by hand."""

import numpy as np
import pytest
import torch
from conftest import conversations, text_pairs
from datasets import Dataset
from processes import config, everything, launch, training
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit import RewardTrainer


@pytest.fixture(scope="module")
def alone(model_path, tmp_path_factory):
    return everything(model_path, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(model_path, tmp_path_factory):
    return launch(2, model_path, tmp_path_factory.mktemp("together"))


def lone_rewards(model_path, rows):
    """Rewards of each side in a batch of one, from nothing but transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    rewards = []
    for row in rows:
        for side in ("chosen", "rejected"):
            if isinstance(row["prompt"], str):
                ids = tokenizer(row["prompt"] + row[side])["input_ids"] + [tokenizer.eos_token_id]
            else:
                text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                rewards.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    return np.array(rewards).reshape(-1, 2)


@pytest.mark.parametrize("processes", ["alone", "together"])
def test_evaluation_equals_lone_rewards_by_hand(processes, request, model_path):
    results = request.getfixturevalue(processes)
    for result in results if isinstance(results, list) else [results]:
        for name, rows in (("texts", text_pairs(9)), ("stream", conversations(7, seed=1))):
            chosen, rejected = lone_rewards(model_path, rows).T
            expected = {
                "accuracy": (chosen > rejected).mean(),
                "margin": (chosen - rejected).mean(),
                "min_reward": min(chosen.min(), rejected.min()),
                "max_reward": max(chosen.max(), rejected.max()),
                "mean_reward": np.concatenate([chosen, rejected]).mean(),
                "loss": np.log1p(np.exp(rejected - chosen)).mean(),
                "pairs_seen": len(rows),
            }
            for key, value in expected.items():
                assert result["evaluations"]["metrics"][f"eval_{name}_{key}"] == pytest.approx(value, abs=1e-5), key


def test_two_processes_see_every_pair_once_in_order(alone, together, model_path):
    expected = lone_rewards(model_path, text_pairs(9))
    for result in (alone, *together):
        np.testing.assert_allclose(result["evaluations"]["predictions"], expected, atol=1e-5)
        for (predictions, labels), rows in zip(result["evaluations"]["seen"], (9, 7, 9), strict=True):
            assert np.shape(predictions) == (rows, 2)
            assert labels == [0.0] * rows


@pytest.mark.parametrize("run", ["even", "uneven", "streamed"])
def test_training_on_two_processes_is_training_on_one(alone, together, run):
    assert len(alone[run]["logs"]) == (1 if run == "even" else 2)
    for result in together:
        for mine, one in zip(result[run]["logs"], alone[run]["logs"], strict=True):
            assert mine == pytest.approx(one, abs=1e-5)
        assert result[run]["weights"] == pytest.approx(alone[run]["weights"], rel=1e-6)


@pytest.mark.parametrize("run", ["even", "uneven", "unlogged", "streamed"])
def test_the_runs_loss_is_that_of_all_processes(alone, together, run):
    for result in together:
        assert result[run]["train_loss"] == pytest.approx(alone[run]["train_loss"], abs=1e-5)


@pytest.mark.parametrize(("num_pairs", "steps"), [(8, 1), (11, 2)])
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_add_up_to_the_whole_batch(model_path, tmp_path, num_pairs, steps, accumulation):
    whole = training(model_path, tmp_path, num_pairs, 8)
    parts = training(model_path, tmp_path, num_pairs, 8, accumulation)
    assert len(whole["logs"]) == steps
    for mine, one in zip(parts["logs"], whole["logs"], strict=True):
        assert mine == pytest.approx(one, abs=1e-5)
    assert parts["weights"] == pytest.approx(whole["weights"], rel=1e-6)


def test_the_logged_extremes_are_the_mean_over_steps_of_each_steps_extremes(model_path, tmp_path):
    def run(logging_steps):
        trainer = RewardTrainer(
            model_path,
            config(tmp_path, logging_steps=logging_steps, per_device_train_batch_size=3, max_steps=4),
            train_dataset=Dataset.from_list(text_pairs(12)),
        )
        trainer.train()
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    each, [whole] = run(1), run(4)
    assert whole["min_reward"] == pytest.approx(np.mean([entry["min_reward"] for entry in each]), abs=1e-6)
    assert whole["max_reward"] == pytest.approx(np.mean([entry["max_reward"] for entry in each]), abs=1e-6)
    assert whole["accuracy"] == pytest.approx(np.mean([entry["accuracy"] for entry in each]), abs=1e-6)
    assert whole["num_tokens"] == each[-1]["num_tokens"]
