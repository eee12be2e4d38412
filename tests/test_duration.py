"""How long a step takes: operations as torch counts them, messages and traffic by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from plaudit import duration, shapes
from plaudit.footprint import Method, Setting
from plaudit.machines import Machine
from plaudit.workload import Load

TEXT = "layers=2,hidden=64,heads=4,kv_heads=4,intermediate=128,vocab=100"
FULL, LORA = Method("float32"), Method("float32", rank=8)
MACHINE = Machine("made", 100e12, 10e12, 1e11, 1e12, link=1e11, network=1e10, shares={"padded": 0.5, "tree": 0.25})
LOAD = Load(tokens=1000, scores=50_000, mask=0, paths=1000)


def setting(engine="single", gpus=1, accumulation=1, checkpointing=False, method=FULL, layout="tree"):
    return Setting(engine, gpus, 4, accumulation, layout, checkpointing, method)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(checkpointing):
    values = dict(shapes.config_values(TEXT))
    config = AutoConfig.for_model(values.pop("model_type"), **values, num_labels=1, pad_token_id=0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").train()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.randint(1, 100, (3, 16))
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    # Eager attention keeps its scores, so that its backward pass is twice the forward, and it computes all of them.
    passes = 4 if checkpointing else 3
    attention = 2 * passes * 4 * 64 * 3 * 16 * 16
    load = Load(tokens=48, scores=0, mask=0, paths=48)
    planned = duration.operations(shapes.named(TEXT), setting(checkpointing=checkpointing), load) + attention
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.02)


def test_an_adapter_saves_the_gradients_of_the_weights():
    shape = shapes.named(TEXT)
    whole, adapter = (duration.operations(shape, setting(method=method), LOAD) for method in (FULL, LORA))
    matrices = 2 * 2 * shape.matrices * LOAD.tokens
    own = 2 * 3 * 2 * 8 * (128 + 128) * LOAD.tokens
    assert whole - adapter == pytest.approx(matrices - own)


def test_a_steps_seconds_are_arithmetic_by_the_share_of_the_peak():
    shape = shapes.named(TEXT)
    cpu = replace(MACHINE, kind="cpu", seconds={"tree": 0.5})
    took = duration.step_seconds(shape, setting(accumulation=3), LOAD, cpu)
    assert took["computing"] == pytest.approx(3 * (duration.operations(shape, setting(), LOAD) / 2.5e12 + 0.5))
    assert took["optimizer"] == pytest.approx(40 * shape.parameters / 1e12)
    assert took["waiting"] == 0
    assert took["total"] == pytest.approx(took["computing"] + took["optimizer"])


def test_a_gpu_is_no_faster_than_its_kernels_are_launched():
    took = duration.step_seconds(shapes.named(TEXT), setting(), LOAD, MACHINE)
    assert took["computing"] == pytest.approx(2 * duration.KERNELS * duration.LAUNCH)


def test_messages_are_what_each_engine_sends():
    shape = shapes.named(TEXT)
    size = shape.parameters
    sent = {
        engine: duration.message_bytes(shape, setting(engine, 4, 2)) for engine in ("ddp", "zero2", "fsdp2", "zero3")
    }
    assert sent["ddp"] == 2 * 0.75 * 4 * size
    assert sent["zero2"] == 0.75 * 4 * size * 3
    assert sent["fsdp2"] == sent["zero3"] == 0.75 * 4 * size * (4 + 2)
    assert duration.message_bytes(shape, setting()) == 0


def test_messages_hide_behind_arithmetic_but_for_a_tenth_and_take_the_network_between_machines():
    shape = shapes.named("layers=8,hidden=4096,heads=32,kv_heads=8,intermediate=14336,vocab=1000")
    load = Load(20_000, 1e7, 0, 20_000)
    inside, across = (
        duration.step_seconds(shape, setting("ddp", gpus), load, MACHINE, gpus_per_node=8) for gpus in (8, 16)
    )
    assert inside["waiting"] == pytest.approx(0.1 * duration.message_bytes(shape, setting("ddp", 8)) / 1e11)
    assert across["waiting"] > 5 * inside["waiting"]
