"""What FSDP and DeepSpeed are told, as far as one process shows it; tests/test_engines.py trains under both."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import text_pairs
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from processes import config
from torch import nn

from plaudit import RewardTrainer, sharding
from plaudit.proof import weight_fingerprints


def saving(model, should_save=True):
    return SimpleNamespace(model=model, is_fsdp_enabled=False, args=SimpleNamespace(should_save=should_save))


def test_a_whole_models_weights_are_copied_to_the_host(tiny_model):
    state, fingerprints = sharding.weights_to_save(saving(tiny_model))
    expected = tiny_model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() != expected[name].data_ptr(), "the engine's buffers would be saved whole"
    assert fingerprints == weight_fingerprints(tiny_model)


def test_a_process_that_saves_nothing_keeps_nothing_and_knows_the_fingerprints(tiny_model):
    state, fingerprints = sharding.weights_to_save(saving(tiny_model, should_save=False))
    assert state == {}
    assert fingerprints == weight_fingerprints(tiny_model)


def test_an_adapters_frozen_base_is_not_brought_together_and_all_it_needs_is(tiny_model):
    config = LoraConfig(
        task_type="SEQ_CLS", target_modules=["q_proj"], r=4, bias="lora_only", modules_to_save=["score"]
    )
    model = get_peft_model(tiny_model, config)
    state, fingerprints = sharding.weights_to_save(saving(model))
    assert fingerprints == weight_fingerprints(model)
    names = {name.removeprefix("base_model.model.") for name in state}
    assert "score.modules_to_save.default.weight" in names
    assert "model.embed_tokens.weight" in names, "PEFT saves the embeddings where they grew"
    assert {name for name in names if "lora_" in name} == {
        f"model.layers.{layer}.self_attn.q_proj.lora_{part}.default.weight" for layer in (0, 1) for part in "AB"
    }
    assert not [name for name in names if "mlp" in name or "norm" in name or "base_layer" in name]


def test_a_frozen_adapter_is_saved_all_the_same(tiny_model):
    model = get_peft_model(tiny_model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], r=4))
    state, _ = sharding.weights_to_save(saving(model.requires_grad_(False)))
    assert sum("lora_" in name for name in state) == 4
    assert any("score.modules_to_save" in name for name in state)


@pytest.mark.parametrize("by", ["option", "launcher"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_fsdp_is_said_to_have_no_effect_where_accelerate_leaves_it_out(by, is_sharded, caplog, monkeypatch):
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = SimpleNamespace(fsdp=by == "option")
    plugin = "a plugin" if is_sharded else None
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), num_processes=2)
    sharding.say_if_whole(args, accelerator)
    assert ("fsdp has no effect: accelerate shards on accelerators only" in caplog.text) == (not is_sharded)


def test_weights_that_fsdp_would_have_shared_out_are_an_error_where_it_is_left_out(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=None), num_processes=2)
    with pytest.raises(
        ValueError, match="fsdp_cpu_ram_efficient_loading .* on this CPU set it to false, or use ddp.yaml"
    ):
        sharding.say_if_whole(SimpleNamespace(fsdp=True), accelerator)


def test_a_run_without_fsdp_says_nothing_of_it(model_path, tmp_path, caplog):
    RewardTrainer(model_path, config(tmp_path), train_dataset=Dataset.from_list(text_pairs(4)))
    assert "fsdp" not in caplog.text


class Prepared(nn.Linear):
    """A model as accelerate leaves one that it has prepared to evaluate in half precision."""

    def __init__(self):
        super().__init__(2, 2)
        self._is_accelerate_prepared = True
        self._original_forward = self.forward
        self.forward = lambda *_: "autocast"


def test_what_an_evaluation_prepared_is_prepared_anew_for_training():
    model = Prepared()
    trainer = SimpleNamespace(model=model, model_wrapped="an engine taken down", is_fsdp_enabled=False)
    sharding.forget_evaluation(trainer)
    assert trainer.model_wrapped is model
    assert not hasattr(model, "_is_accelerate_prepared")
    assert not hasattr(model, "_original_forward")
    assert torch.is_tensor(model(torch.ones(1, 2)))


def test_a_sharded_model_goes_on_as_it_is():
    model = Prepared()
    trainer = SimpleNamespace(model=model, model_wrapped=model, is_fsdp_enabled=True)
    sharding.forget_evaluation(trainer)
    assert model._is_accelerate_prepared


REMARK = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."


@pytest.fixture
def deepspeeds_logger():
    logger = logging.getLogger("DeepSpeed")
    yield logger
    logger.removeFilter(sharding._is_no_remark)


@pytest.mark.parametrize("asked", [False, True])
def test_deepspeeds_remark_on_the_machine_reaches_those_alone_who_ask_for_it(
    asked, caplog, deepspeeds_logger, monkeypatch
):
    monkeypatch.setattr(deepspeeds_logger, "propagate", True)
    sharding.quiet_deepspeed(SimpleNamespace(deepspeed="zero.json" if asked else None))
    with caplog.at_level(logging.WARNING, logger="DeepSpeed"):
        deepspeeds_logger.warning(REMARK)
        deepspeeds_logger.warning("the gradients overflow")
    assert ("Setting accelerator" in caplog.text) == asked
    assert "the gradients overflow" in caplog.text


def test_importing_the_trainer_does_not_import_deepspeed():
    code = "import sys, plaudit.trainer; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
