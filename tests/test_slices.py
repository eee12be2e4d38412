"""This machine measured: slices of a model, and what their times say of the whole."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from plaudit import attention, duration, shapes, slices, workload
from plaudit.collate import TreeRow
from plaudit.footprint import Method, Setting
from plaudit.machines import Machine
from plaudit.rewards import classifier_of

TEXT = "layers=6,hidden=64,heads=4,kv_heads=2,intermediate=128,vocab=5000"
SETTING = Setting("single", 1, 4, 1, "tree", True, Method("float32"))
MACHINE = Machine("here", 0.0, 50e9, 1e10, 1e10, kind="cpu")


@pytest.fixture(scope="module")
def work():
    return workload.read("pairs=500,prompt=30,answer=10", 1024)


@pytest.fixture(scope="module")
def config():
    values = dict(shapes.config_values(TEXT))
    return AutoConfig.for_model(values.pop("model_type"), **values)


def test_this_machine_has_rates_memory_and_libraries():
    machine = slices.measure_machine("float32")
    assert machine.name == "here"
    assert machine.float32 > 1e9
    assert machine.bfloat16 == 0
    assert 1e8 < machine.bandwidth < 1e14
    assert 5e8 < machine.memory < 1e14
    assert machine.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.libraries > 1e8


def test_a_slice_may_have_more_layers_than_a_small_model(config):
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.layer_types = 2, ["full_attention"] * 2
    inner = classifier_of(slices._slice(small, 3, SETTING))
    assert len(inner.model.layers) == 3


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("rank", [None, 4])
def test_a_slice_has_so_many_of_the_models_layers_and_trains_what_it_trains(config, layers, rank):
    setting = replace(SETTING, method=Method("float32", rank=rank))
    inner = classifier_of(slices._slice(config, layers, setting))
    kept = inner.config
    assert (kept.num_hidden_layers, kept.hidden_size, kept.vocab_size) == (layers, 64, slices.VOCABULARY)
    assert attention.is_enabled(inner)
    assert all(layer.gradient_checkpointing for layer in inner.model.layers)
    trained = {name for name, parameter in inner.named_parameters() if parameter.requires_grad}
    assert any("lora" in name for name in trained) == (rank is not None)
    assert ("model.layers.0.mlp.up_proj.weight" in trained) == (rank is None)
    assert config.num_hidden_layers == 6, "the caller's config is as it was"


def test_a_slice_gets_the_batch_as_training_lays_it_out(work):
    batch = work.batches(4)[0]
    inputs = slices._inputs(batch, SETTING, torch.device("cpu"))
    sequences = [ids for side in zip(*batch, strict=True) for ids in side]
    assert inputs["position_ids"].equal(TreeRow(None)(sequences)["position_ids"])
    assert inputs["input_ids"].max() < slices.VOCABULARY
    padded = slices._inputs(batch, replace(SETTING, layout="padded"), torch.device("cpu"))
    assert ((padded["input_ids"] == 0) == (padded["attention_mask"] == 0)).all()


def test_what_slices_take_gives_what_the_whole_model_takes(work, config, monkeypatch):
    of_layer, besides = 0.25, 0.1
    monkeypatch.setattr(slices, "_slice_seconds", lambda config, layers, *_: besides + layers * of_layer)
    shape, batches = shapes.named(TEXT), work.batches(4)
    machine = slices.measure_slices(MACHINE, config, shape, SETTING, {"tree": batches, "padded": batches})
    assert machine.is_measured
    assert (machine.libraries == MACHINE.libraries) == (MACHINE.kind != "cpu")
    for layout in ("tree", "padded"):
        load = workload.load(slices._middle(batches, layout), layout)
        took = duration.step_seconds(shape, replace(SETTING, layout=layout), load, machine)
        assert took["computing"] == pytest.approx(besides + 6 * of_layer)


def test_what_a_training_holds_besides_its_model_is_what_this_process_holds_once_it_has_loaded_all_that():
    libraries = slices._libraries()
    assert {"plaudit.trainer", "duckdb"} <= sys.modules.keys()
    assert libraries == pytest.approx(slices._resident(), rel=0.1)


def test_slices_that_are_measured_in_earnest_take_longer_for_more_tokens(work, config):
    batch = work.batches(16)[0]
    few, more = (slices._slice_seconds(config, 1, SETTING, one) for one in (batch[:1], batch))
    assert 0 < few < more


def test_a_batch_too_large_to_measure_in_seconds_is_cut(work, monkeypatch):
    monkeypatch.setattr(slices, "MOST_TOKENS", 200)
    batch = slices._middle(work.batches(16), "padded")
    assert 1 <= len(batch) < 16
    assert workload.load(batch, "padded").tokens <= 200 or len(batch) == 1
