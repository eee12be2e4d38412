"""DDP, FSDP 2, ZeRO-2 and ZeRO-3 on two and three processes: the numbers, checkpoints and resumed runs of one process."""

import json
from pathlib import Path

import engine_runs
import numpy as np
import pytest
from conftest import make_tokenizer, text_pairs
from engine_runs import ENGINES, HAS_DEEPSPEED, LONG_SIZES, RUNS, SIZES, STEPS, launch
from processes import lone_rewards, once, uneven_pairs

from plaudit import RewardModel

NEEDS_DEEPSPEED = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason='DeepSpeed is not here: pip install "plaudit[deepspeed]"'
)
ALL_ENGINES = ["DDP", "FSDP", *(pytest.param(name, marks=NEEDS_DEEPSPEED) for name in ("ZeRO-2", "ZeRO-3"))]
LAUNCHED = [
    "FSDP launched",
    *(pytest.param(f"{name} launched", marks=NEEDS_DEEPSPEED) for name in ("ZeRO-2", "ZeRO-3")),
]
RESUMED = [*ALL_ENGINES, *LAUNCHED, "FSDP LoRA", pytest.param("ZeRO-3 LoRA", marks=NEEDS_DEEPSPEED)]
# What trains, DeepSpeed's stage, the kinds of the parameters, and whether each process holds its share alone.
MARKS = {
    "DDP": ("DistributedDataParallel", None, ["Parameter"], False),
    "FSDP": ("FSDP", None, ["DTensor"], True),
    "ZeRO-2": ("DeepSpeedEngine", 2, ["Parameter"], False),
    "ZeRO-3": ("DeepSpeedEngine", 3, ["partitioned"], True),
}


@pytest.fixture(scope="module")
def paths(model_path, language_model_path, tmp_path_factory):
    """The models that are trained, and a tokenizer whose template brings a token that they do not have."""
    grown = tmp_path_factory.mktemp("grown")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|turn|>")
    tokenizer.save_pretrained(grown)
    return {"model": model_path, "language model": language_model_path, "grown": str(grown)}


@pytest.fixture(scope="module")
def alone(paths, tmp_path_factory):
    return once(tmp_path_factory, "engines alone", lambda folder: engine_runs.everything(paths, folder))


@pytest.fixture(scope="module")
def two(paths, tmp_path_factory):
    return once(tmp_path_factory, "engines on two", lambda folder: launch(2, paths, folder))


@pytest.fixture(scope="module")
def three(paths, tmp_path_factory):
    return once(tmp_path_factory, "engines on three", lambda folder: launch(3, paths, folder))


def assert_same_run(result, expected):
    """The loss curve, the figures and the weights of one process, of a run that moved."""
    assert len(expected["logs"]) == len(result["logs"]) == STEPS
    assert len({entry["loss"] for entry in expected["logs"]}) == STEPS
    for mine, one in zip(result["logs"], expected["logs"], strict=True):
        assert mine == pytest.approx(one, abs=1e-4)
        assert mine["num_tokens"] == one["num_tokens"]
    assert result["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-4)
    assert result["num_weights"] == expected["num_weights"]
    np.testing.assert_allclose(result["weights"], expected["weights"], atol=1e-4)
    assert result["evaluation"] == pytest.approx(expected["evaluation"], abs=1e-4)
    np.testing.assert_allclose(result["predictions"], expected["predictions"], atol=1e-4)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("processes", ["two", "three"])
def test_training_under_an_engine_is_training_on_one_process(processes, engine, run, alone, request):
    expected = alone["trained"][run]
    results = [each["trained"][engine][run] for each in request.getfixturevalue(processes)]
    trainer, stage, kinds, is_shared = MARKS[engine]
    for result in results:
        assert trainer in result["engine"][0]
        assert result["engine"][1] == stage
        for held in result["held"]:
            assert held["kinds"] == kinds
            # Small weights do not divide.
            assert held["share"] == pytest.approx(1 / len(results) if is_shared else 1, abs=0.05)
        assert set(result["trees"]) == {RUNS[run]["packing"] == "auto"}
        assert_same_run(result, expected)
    if RUNS[run]["packing"] == "auto":
        assert sum(result["computed"] for result in results) < 0.6 * expected["computed"]


def test_the_runs_compared_train_different_things(alone):
    losses = {name: tuple(entry["loss"] for entry in result["logs"]) for name, result in alone["trained"].items()}
    assert len(set(losses.values())) == len(RUNS)
    for result in alone["trained"].values():
        assert max(entry["grad_norm"] for entry in result["logs"]) > 2.0 or "LoRA" in result["saved"], (
            "nothing was clipped"
        )


@pytest.mark.parametrize("engine", ALL_ENGINES)
@pytest.mark.parametrize("processes", ["two", "three"])
def test_what_an_engine_saves_gives_the_trained_rewards_in_plain_transformers(processes, engine, request):
    first = request.getfixturevalue(processes)[0]["trained"][engine]
    for run, result in first.items():
        loading = {"num_labels": 1, "pad_token_id": 0} if "LoRA" in run else {}
        found = lone_rewards(result["saved"], uneven_pairs(engine_runs.NUM_PAIRS), **loading)
        np.testing.assert_allclose(found, result["predictions"], atol=1e-5)
        proof = RewardModel.from_pretrained(result["saved"]).verify()
        assert proof.passed, f"{run}: {proof}"
        assert proof.num_golden >= 8


def test_fsdp_shares_gradients_out_after_each_micro_batch(two):
    for result in two:
        for run, options in RUNS.items():
            accumulates = options.get("accumulation", 1) > 1
            assert result["trained"]["FSDP"][run]["gradients_between"] == (["DTensor"] if accumulates else [])


@pytest.mark.parametrize("engine", ALL_ENGINES[1:])
def test_the_first_process_alone_holds_what_is_saved_and_nothing_that_an_adapter_leaves_frozen(engine, two):
    first, second = (each["trained"][engine] for each in two)
    for run in RUNS:
        assert not second[run]["brought_together"]
        names = first[run]["brought_together"]
        assert any("score" in name for name in names)
        assert not [name for name in names if "_checkpoint_wrapped" in name]
        layers = [name for name in names if ".layers." in name]
        assert layers
        assert all("lora_" in name for name in layers) == ("LoRA" in run)


@pytest.mark.parametrize("processes", ["alone", "two", "three"])
def test_evaluation_is_exact_for_sizes_that_do_not_divide(processes, alone, request, model_path):
    results = request.getfixturevalue(processes)
    for result in results if isinstance(results, list) else [results]:
        assert_evaluated(result["evaluated"]["DDP"], alone["evaluated"]["DDP"], SIZES, model_path)


@pytest.mark.parametrize("engine", [each for each in ALL_ENGINES if each != "DDP"])
@pytest.mark.parametrize("processes", ["two", "three"])
def test_evaluation_without_training_is_exact_under_an_engine(processes, engine, alone, request, model_path):
    results = request.getfixturevalue(processes)
    for result in results:
        found = result["evaluated"][engine]
        assert_evaluated(found, alone["evaluated"]["DDP"], LONG_SIZES, model_path)
        assert found["held"]["kinds"] == MARKS[engine][2]
        assert found["held"]["share"] == pytest.approx(1 / len(results) if MARKS[engine][3] else 1, abs=0.05)


def assert_evaluated(found, expected, sizes, model_path):
    """Every pair once and in order, and the figures of one process; counts and shares to the last digit."""
    assert found["layout"] == expected["layout"] == "TreeRow"
    exact = ("num_tokens", "accuracy", "ties", "pairs_seen")
    names = [name for name in found["metrics"] if not name.startswith("eval_best_of_three")]
    assert len(names) == 2 * len(sizes) * 9
    assert "eval_best_of_three_accuracy" in found["metrics"]
    for name, value in found["metrics"].items():
        assert value == pytest.approx(expected["metrics"][name], abs=1e-5), name
        if name.endswith(exact):
            assert value == expected["metrics"][name], name
    seen = iter(found["seen"])
    for size in [*sizes, *sizes]:
        predictions, labels = next(seen)
        assert np.shape(predictions) == (size, 2)
        assert labels == [0.0] * size
        np.testing.assert_allclose(predictions, found["predictions"][str(size)], atol=1e-5)
    for size in sizes:
        rewards = lone_rewards(model_path, text_pairs(size, seed=size))
        np.testing.assert_allclose(found["predictions"][str(size)], rewards, atol=1e-5)
        assert found["prediction_metrics"][str(size)] == pytest.approx(
            expected["prediction_metrics"][str(size)], abs=1e-5
        )


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_under_an_engine_is_the_whole_run_and_that_of_one_process(name, two, alone):
    run = "tree new head" if "launched" in name else "tree LoRA checkpointed" if "LoRA" in name else "tree"
    trainer, stage, kinds, _ = MARKS[name.split()[0]]
    for each in two:
        result = each["resumed"][name]
        assert result["steps"] == STEPS
        assert trainer in result["engine"][0]
        assert result["engine"][1] == stage
        assert set(kinds) <= set(result["held"]["kinds"])
        np.testing.assert_allclose(result["whole"]["weights"], alone["trained"][run]["weights"], atol=1e-4)
        np.testing.assert_allclose(result["again"]["weights"], result["whole"]["weights"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(result["again"]["predictions"], result["whole"]["predictions"], rtol=0, atol=1e-6)
        assert len(result["logs"][0]) == STEPS
        for whole, again in zip(*result["logs"], strict=True):
            assert again == pytest.approx(whole, abs=1e-6)
        assert result["read_by_first"] == (name == "FSDP launched" and each is not two[0])
    start = two[0]["resumed"][name]["start"]
    assert np.abs(np.subtract(start, result["whole"]["weights"])).max() > 1e-3, "the run moved"


@pytest.mark.parametrize("name", RESUMED)
def test_each_checkpoint_of_a_run_holds_the_whole_model(name, two):
    result = two[0]["resumed"][name]
    loading = {"num_labels": 1, "pad_token_id": 0} if "LoRA" in name else {}
    for checkpoint in result["checkpoints"]:
        proof = RewardModel.from_pretrained(checkpoint).verify()
        assert proof.passed, f"{checkpoint}: {proof}"
        rewards = lone_rewards(checkpoint, uneven_pairs(engine_runs.NUM_PAIRS), **loading)
        is_last = checkpoint.endswith(f"-{STEPS}")
        assert (np.abs(rewards - result["whole"]["predictions"]).max() < 1e-5) == is_last
        files = {file.name for file in Path(checkpoint).iterdir()}
        assert ("pytorch_model_fsdp_0" in files) == (name == "FSDP launched"), "the shards that FSDP resumes from"


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_a_model_is_saved_before_training_and_trained_twice(engine, two, alone, model_path):
    rows = uneven_pairs(engine_runs.NUM_PAIRS)
    for each in two:
        result = each["twice"][engine]
        np.testing.assert_allclose(result["before"], lone_rewards(model_path, rows), atol=1e-5)
        np.testing.assert_allclose(result["first"], two[0]["twice"]["DDP"]["first"], atol=1e-5)
        np.testing.assert_allclose(result["second"], two[0]["twice"]["DDP"]["second"], atol=1e-5)
        assert np.abs(np.subtract(result["first"], result["second"])).max() > 1e-3, "the second training moved"
        left_out = any("spread over processes" in line for line in result["evidence"])
        assert left_out == (engine != "DDP")
    for folder, predictions in zip(result["saved"], ("before", "after"), strict=True):
        np.testing.assert_allclose(lone_rewards(folder, rows), two[0]["twice"][engine][predictions], atol=1e-5)
        assert RewardModel.from_pretrained(folder).verify().passed


@pytest.mark.parametrize("engine", ALL_ENGINES)
def test_margins_stay_float32_where_the_weights_are_not(engine, two):
    assert two[0]["twice"][engine]["margin"] == ["torch.float32", float(np.float32(0.1234567))]


@pytest.mark.parametrize("name", ["FSDP", pytest.param("ZeRO-3", marks=NEEDS_DEEPSPEED)])
def test_embeddings_that_grew_under_an_adapter_are_saved_whole(name, two, alone):
    one = alone["grown"]["DDP"]
    result = two[0]["grown"][name]
    assert result["vocabulary"] == one["vocabulary"] == 401
    np.testing.assert_allclose(result["predictions"], one["predictions"], atol=1e-4)
    proof = RewardModel.from_pretrained(result["saved"]).verify()
    assert proof.passed, str(proof)
    assert json.loads((Path(result["saved"]) / "reward_base.json").read_text())["vocab_size"] == 401


def test_every_engine_was_run(two, three):
    assert len(two) == 2
    assert len(three) == 3
    for each in (*two, *three):
        assert list(each["trained"]) == ENGINES
