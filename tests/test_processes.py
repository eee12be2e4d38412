"""Several processes: the same numbers as one, and as lone rewards computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import conversations, text_pairs
from datasets import Dataset
from processes import DDP_RUNS, FSDP_RUNS, config, everything, launch, lone_rewards, once, training, uneven_pairs

from plaudit import RewardModel, RewardTrainer


@pytest.fixture(scope="module")
def alone(model_path, tmp_path_factory):
    return everything(model_path, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(model_path, tmp_path_factory):
    return once(tmp_path_factory, "two processes", lambda folder: launch(2, model_path, folder))


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


def test_a_benchmarks_answers_are_scored_alike_on_one_process_and_two(alone, together):
    expected = alone["evaluations"]["benchmark"]
    assert np.shape(expected) == (3, 3)
    assert len(np.unique(expected)) == 9
    for result in together:
        np.testing.assert_allclose(result["evaluations"]["benchmark"], expected, atol=1e-5)
        name = "eval_best_of_three_accuracy"
        assert result["evaluations"]["metrics"][name] == alone["evaluations"]["metrics"][name]


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


def assert_layout_run_equal(result, expected):
    assert len(set(expected["losses"])) == 6, "the run moved"
    for name in ("losses", "grad_norms", "weights", "evaluation"):
        assert result[name] == pytest.approx(expected[name], abs=1e-4), name
    np.testing.assert_allclose(result["predictions"], expected["predictions"], atol=1e-4)


def tokens_computed(results):
    return sum(sum(result["computed"]) for result in results)


def test_a_tree_run_on_one_process_is_the_padded_one(alone):
    tree, padded = (alone["layouts"][name] for name in ("tree", "padded"))
    assert_layout_run_equal(tree, padded)
    assert tokens_computed([tree]) < 0.5 * tokens_computed([padded])


@pytest.mark.parametrize("name", DDP_RUNS)
def test_under_ddp_each_layout_is_the_padded_run_of_one_process(alone, together, name):
    expected = alone["layouts"]["padded LoRA" if "LoRA" in name else "padded"]
    results = [each["layouts"][name] for each in together]
    for result in results:
        assert_layout_run_equal(result, expected)
        assert result["types"] == [["Parameter"]] * 6
        assert result["share"] == [1.0] * 6
    if name.startswith("tree"):
        assert tokens_computed(results) < 0.5 * tokens_computed([expected])


@pytest.mark.parametrize("name", FSDP_RUNS)
def test_under_fsdp_each_layout_is_the_padded_run_of_one_process(alone, together, name):
    expected = alone["layouts"]["padded LoRA" if "LoRA" in name else "padded"]
    results = [each["layouts"][f"FSDP {name}"] for each in together]
    for result in results:
        assert result["types"] == [["DTensor"]] * 6
        assert result["share"] == pytest.approx([0.5] * 6, abs=0.01)
        assert result["wrapped"] == (name == "tree checkpointed by FSDP")
        assert_layout_run_equal(result, expected)
    if name.startswith("tree"):
        assert tokens_computed(results) < 0.5 * tokens_computed([expected])


def test_an_evaluation_before_training_under_fsdp_is_that_of_one_process(alone, together):
    for each in together:
        result = each["layouts"]["FSDP tree evaluated before"]
        assert result["types"] == [["DTensor"]] * 6
        assert result["first_loss"] == pytest.approx(alone["layouts"]["padded"]["first_loss"], abs=1e-4)


def test_rewards_stay_in_float32_under_fsdp_in_bf16(alone, together):
    for each in together:
        result = each["layouts"]["FSDP tree in bf16"]
        assert result["types"] == [["DTensor"]] * 6
        rewards = torch.tensor(result["predictions"])
        assert (rewards != rewards.bfloat16().float()).float().mean() > 0.9
        expected = torch.tensor(alone["layouts"]["padded"]["predictions"])
        assert (rewards - expected).abs().max() < 0.05 * expected.std()


def test_a_model_trained_on_trees_under_fsdp_is_saved_whole(together):
    result = together[0]["layouts"]["FSDP tree"]
    assert result["types"] == [["DTensor"]] * 6
    np.testing.assert_allclose(lone_rewards(result["saved"], uneven_pairs(20)), result["predictions"], atol=1e-4)


@pytest.mark.parametrize("name", [*DDP_RUNS, *(f"FSDP {name}" for name in FSDP_RUNS), "FSDP tree in bf16"])
def test_a_checkpoint_saved_by_several_processes_proves_itself(together, name):
    result = RewardModel.from_pretrained(together[0]["layouts"][name]["saved"]).verify()
    assert result.passed, str(result)
    assert result.num_golden >= 8
    recorded = json.loads((Path(together[0]["layouts"][name]["saved"]) / "reward_model.json").read_text())["model"]
    assert recorded["dtype"] == "float32"
    assert recorded["computed_in"] == ("bfloat16" if name == "FSDP tree in bf16" else "float32")


def test_processes_hold_about_equal_tokens_of_the_pairs_that_one_process_takes(alone, together):
    one, (first, second) = alone["layouts"]["tree"], [each["layouts"]["tree"] for each in together]
    dealt, in_order = [], []
    for step, pairs in enumerate(one["pairs"]):
        assert sorted(first["pairs"][step] + second["pairs"][step]) == sorted(pairs)
        assert len(first["pairs"][step]) == len(second["pairs"][step])
        tokens = [one["lengths"][row] for row in pairs]
        assert first["tokens"][step] + second["tokens"][step] == sum(tokens)
        dealt.append(abs(first["tokens"][step] - second["tokens"][step]))
        in_order.append(abs(sum(tokens[: len(pairs) // 2]) - sum(tokens[len(pairs) // 2 :])))
    assert sum(dealt) < 0.6 * sum(in_order)
    assert sum(dealt) < 0.15 * sum(one["tokens"])
