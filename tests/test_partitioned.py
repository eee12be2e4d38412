"""Weights that ZeRO-3 has partitioned, of which tests/test_engines.py trains real ones: here what is gathered, and when."""

import contextlib
import sys
import types

import pytest
import torch
from torch import nn

from plaudit import partitioned


@pytest.fixture
def spread(tiny_model, monkeypatch):
    """A model whose weights are empty, as ZeRO-3 leaves them, with a stand-in for DeepSpeed's gathering; what is held when."""
    log, held = [], set()
    for number, each in enumerate(tiny_model.parameters()):
        each.ds_id, each.ds_shape, each.whole = number, each.shape, each.data
        each.data = torch.empty(0)

    class GatheredParameters:
        def __init__(self, weights):
            self.weights = weights

        def __enter__(self):
            for each in self.weights:
                each.data = each.whole
            held.update(each.ds_id for each in self.weights)
            log.append(set(held))

        def __exit__(self, *_):
            for each in self.weights:
                each.data = torch.empty(0)
            held.difference_update(each.ds_id for each in self.weights)

    zero = types.SimpleNamespace(GatheredParameters=GatheredParameters)
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=zero))
    return tiny_model, log, held


IDS = torch.tensor([[5, 6, 7, 8]])


def test_a_model_that_is_gathered_as_it_is_used_gives_the_whole_models_rewards_a_block_at_a_time(spread, model_path):
    from transformers import AutoModelForSequenceClassification

    model, log, held = spread
    expected = AutoModelForSequenceClassification.from_pretrained(model_path)(IDS).logits
    partitioned.gather_as_used(model)
    partitioned.gather_as_used(model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
    layer = [{each.ds_id for each in layer.parameters()} for layer in model.model.layers]
    assert [part in log for part in layer] == [True, True]
    assert len(log) == 5, "the embeddings, two layers, the norm and the head, once each"
    assert max(len(part) for part in log) == len(layer[0])
    assert not held
    partitioned.stop_gathering(model)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with pytest.raises((RuntimeError, IndexError)):
        model(IDS)


def test_what_was_gathered_is_let_go_where_a_forward_fails(spread):
    model, log, held = spread
    partitioned.gather_as_used(model)
    model.model.layers[1].mlp.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        model(IDS)
    assert log
    assert not held


def _fail(*_):
    raise RuntimeError("in the middle")


def test_a_whole_model_is_left_as_it_is(tiny_model):
    before = tiny_model(IDS).logits
    partitioned.gather_as_used(tiny_model)
    partitioned.stop_gathering(tiny_model)
    assert not partitioned.holds_partitioned(tiny_model)
    assert not partitioned.is_spread(tiny_model)
    assert isinstance(partitioned.gathered(tiny_model.parameters()), contextlib.nullcontext)
    assert torch.equal(tiny_model(IDS).logits, before)


def test_each_weight_is_whole_only_while_it_is_looked_at(spread, model_path):
    from transformers import AutoModelForSequenceClassification

    model, _, held = spread
    expected = AutoModelForSequenceClassification.from_pretrained(model_path).state_dict()
    found = {}
    for name, value in partitioned.whole_weights(model):
        assert len(held) <= 1
        found[name] = value.clone()
    assert not held
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_partitioned_weight_has_the_shape_of_the_whole(spread):
    model, *_ = spread
    assert model.score.weight.shape == (0,)
    assert partitioned.whole_shape(model.score.weight) == (1, 32)
    assert partitioned.whole_shape(nn.Linear(3, 2).weight) == (2, 3)
