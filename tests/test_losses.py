"""The losses against values worked out by hand and against transformers."""

import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from plaudit import losses


def test_equal_rewards_cost_log_two():
    assert losses.bradley_terry(torch.tensor([1.5]), torch.tensor([1.5])).item() == pytest.approx(math.log(2))


def test_each_pair_costs_the_log_of_how_likely_it_was_to_win_by_its_margin():
    chosen, rejected, margin = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.5, 1.0, -1.0]), torch.tensor([0.5, 0, 1])
    found = losses.bradley_terry(chosen, rejected, margin)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-gap)) for gap in (1.0, -1.0, -1.0)])


def test_a_large_gap_neither_overflows_nor_loses_its_gradient():
    rejected = torch.tensor([100.0, -200.0], requires_grad=True)
    found = losses.bradley_terry(torch.tensor([-100.0, 200.0]), rejected)
    found.sum().backward()
    assert found.tolist() == [200.0, 0.0]
    assert rejected.grad.tolist() == [1.0, 0.0]


def test_centering_is_the_square_of_the_sum_pair_by_pair():
    assert losses.centering(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])).tolist() == [2.25, 0.0]


LAYERS, TOKENS, EXPERTS = 3, 12, 5


def router_logits(seed=0, tokens=TOKENS):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, EXPERTS, generator=generator) for _ in range(LAYERS))


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_load_balancing_equals_that_of_transformers(top_k):
    logits = router_logits()
    found = losses.load_balancing(logits, top_k, torch.ones(TOKENS))
    assert found.item() == pytest.approx(load_balancing_loss_func(logits, EXPERTS, top_k).item(), rel=1e-6)


def test_load_balancing_leaves_padding_out_as_transformers_does():
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    logits = router_logits()
    found = losses.load_balancing(logits, 2, mask)
    assert found.item() == pytest.approx(load_balancing_loss_func(logits, EXPERTS, 2, mask).item(), rel=1e-6)
    assert found.item() != pytest.approx(losses.load_balancing(logits, 2, torch.ones(TOKENS)).item(), rel=1e-3)


def test_a_token_of_weight_two_counts_as_the_token_twice():
    weight = torch.tensor([2, 1, 3, 0, 1, 1, 1, 2, 1, 1, 1, 1])
    logits = router_logits()
    repeated = [layer.repeat_interleave(weight, dim=0) for layer in logits]
    expected = losses.load_balancing(repeated, 2, torch.ones(int(weight.sum())))
    assert losses.load_balancing(logits, 2, weight).item() == pytest.approx(expected.item(), rel=1e-6)


def test_load_balancing_has_the_gradient_of_transformers():
    grads = []
    for function in (
        lambda logits: losses.load_balancing(logits, 2, torch.ones(TOKENS)),
        lambda logits: load_balancing_loss_func(logits, EXPERTS, 2),
    ):
        logits = tuple(layer.requires_grad_() for layer in router_logits())
        function(logits).backward()
        grads.append(torch.stack([layer.grad for layer in logits]))
    assert grads[0].abs().max() > 1e-4
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-8)
