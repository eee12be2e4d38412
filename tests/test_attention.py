"""Attention within a tree: the calls against brute force, every result against plain softmax attention."""

import itertools
import json
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import send_to_device
from families import EOS, IN_TREE, PAD, sharing, tiny
from torch.utils.data import DataLoader

from plaudit import attention
from plaudit.attention import Plan, Unsupported, attend, disable, enable
from plaudit.collate import Padded, TreeRow, fill_up
from plaudit.rewards import attach, rewards
from plaudit.tree import layout

# What a call costs against a score, and the queries that it takes at most: from a call a chain to one for everything.
CUTS = [(0, 10**9), (attention.CALL_COST, attention.BLOCK), (10**9, 10**9), (10**9, 7), (100, 3)]
PLAIN = SimpleNamespace()  # A module that says nothing of being causal, as most do.


def random_tree(seed):
    """A tree of up to eight sequences; every third row is filled up."""
    generator = random.Random(seed)
    sequences = []
    for _ in range(generator.randint(1, 8)):
        stem = generator.choice(sequences)[: generator.randint(0, 20)] if sequences and generator.random() < 0.7 else []
        sequences.append(stem + generator.choices(range(1, 4), k=generator.randint(0 if stem else 1, 12)))
    return fill_up(layout(sequences, min_shared=generator.choice([1, 4])), [1, 1, 8][seed % 3], PAD)


def allowed(tree, window=None):
    """Who may attend to whom, bool, shape (T, T), from the one rule."""
    rows = torch.arange(len(tree.tokens))
    queries, keys = rows.unsqueeze(1), rows.unsqueeze(0)
    depth, end = torch.from_numpy(tree.positions), torch.from_numpy(tree.subtree_end)
    mask = (keys <= queries) & (queries < end)
    return mask if window is None else mask & (depth.unsqueeze(1) - depth < window)


def cut(monkeypatch, call_cost, block):
    monkeypatch.setattr(attention, "CALL_COST", call_cost)
    monkeypatch.setattr(attention, "BLOCK", block)


def scores_of(plan, window, is_additive):
    """How often the calls compute each score, shape (T, T), from their rows and masks."""
    size = len(plan.positions)
    count = torch.zeros(size, size, dtype=torch.int64)
    for call, mask in zip(plan.calls, plan.masks(window, is_additive), strict=True):
        queries = torch.arange(call.start, call.stop)
        keys = torch.cat([torch.arange(first, stop) for first, stop in call.keys])
        if mask is None:
            # The kernel's own causal mask begins at the first key; only for as many keys as queries is it the tree's.
            assert len(keys) == len(queries)
            mask = torch.ones(len(queries), len(keys), dtype=torch.bool).tril()
        elif is_additive:
            assert mask.dtype == torch.float32
            assert set(mask.unique().tolist()) <= {0.0, -torch.inf}
            mask = mask == 0
        assert mask.any(-1).all(), "a query without a key has no softmax"
        count[queries.unsqueeze(1), keys.unsqueeze(0)] += mask
    return count


def inputs_of(tree, heads=4, kv_heads=4, channels=8, value_channels=None, dtype=torch.float64):
    torch.manual_seed(0)
    size = len(tree.tokens)
    shapes = [(heads, channels), (kv_heads, channels), (kv_heads, value_channels or channels)]
    # As models make them: laid out by token, and seen by head.
    return [
        torch.randn(1, size, number, width, dtype=dtype).transpose(1, 2).requires_grad_() for number, width in shapes
    ]


def dense(q, k, v, mask, scaling=None, softcap=None, sinks=None):
    """Plain softmax attention, shape (1, T, H, D)."""
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(1, -1, len(mask), 1)], dim=-1)
    return (scores.softmax(-1)[..., : len(mask)] @ v).transpose(1, 2)


def with_gradients(out, *tensors):
    """The result, and the gradient of each tensor by a fixed direction."""
    torch.manual_seed(1)
    direction = torch.randn(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, direction)]


def assert_close(found, expected, tolerance):
    assert all(value.abs().max() > 0.01 for value in expected), "there is nothing to compare"
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.to(wanted), wanted, atol=tolerance, rtol=tolerance)


# Who attends to whom


@pytest.mark.parametrize("is_additive", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 10, 1000])
@pytest.mark.parametrize(("cost", "block"), CUTS)
def test_the_calls_compute_each_allowed_score_once_and_no_other(monkeypatch, cost, block, window, is_additive):
    cut(monkeypatch, cost, block)
    unmasked = 0
    for seed in range(100):
        tree = random_tree(seed)
        plan = Plan(tree)
        assert torch.equal(scores_of(plan, window, is_additive), allowed(tree, window).long())
        unmasked += sum(mask is None for mask in plan.masks(window, is_additive))
    assert unmasked > 0 or window in (1, 3), "no path went without a mask"


def test_free_calls_are_one_a_chain_and_dear_ones_are_one_for_all(monkeypatch):
    for seed in range(100):
        tree = random_tree(seed)
        cut(monkeypatch, 0, 10**9)
        assert [(call.start, call.stop) for call in Plan(tree).calls] == [(c.start, c.stop) for c in tree.chains]
        cut(monkeypatch, 10**9, 10**9)
        assert [(call.start, call.stop) for call in Plan(tree).calls] == [(0, len(tree.tokens))]
        cut(monkeypatch, 10**9, 7)
        assert max(call.stop - call.start for call in Plan(tree).calls) <= 7


def cost_of(calls, call_cost):
    return sum(call_cost + (call.stop - call.start) * sum(stop - first for first, stop in call.keys) for call in calls)


@pytest.mark.parametrize("cost", [50, 200])
def test_merging_calls_never_costs_more_than_a_call_a_chain(monkeypatch, cost):
    merged = 0
    for seed in range(100):
        tree = random_tree(seed)
        cut(monkeypatch, 0, 10**9)
        apart = Plan(tree).calls
        cut(monkeypatch, cost, 10**9)
        together = Plan(tree).calls
        assert cost_of(together, cost) <= cost_of(apart, cost)
        merged += 1 < len(together) < len(apart)
    assert merged > 5, "every tree was one call, or a call a chain"


def test_one_path_needs_no_mask():
    plan = Plan(layout([[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]))
    assert plan.masks(None) == [None]
    assert plan.masks(5) == [None]
    assert [mask.shape for mask in plan.masks(4)] == [(5, 5)]


def test_masks_are_made_once_a_batch_and_window_and_not_once_a_layer(monkeypatch):
    made = []
    make = Plan._mask
    monkeypatch.setattr(Plan, "_mask", lambda self, call, window: made.append(window) or make(self, call, window))
    kinds = ["sliding_attention", "full_attention"] * 2
    model = tiny("ministral", num_hidden_layers=4, sliding_window=16, layer_types=kinds)
    attach(model)
    enable(model)
    batch = TreeRow(PAD)(sharing())
    rewards(model, batch).sum().backward()
    rewards(model, batch)
    assert sorted(made, key=str) == sorted([16, None] * len(batch["tree"].calls), key=str)
    assert len(batch["tree"].calls) > 1
    rewards(model, TreeRow(PAD)(sharing(seed=2)))
    assert len(made) > 2 * len(batch["tree"].calls), "another batch has masks of its own"


# The plan's way to the device


def tensors_of(plan):
    named = {"subtree_end": plan.subtree_end, "positions": plan.positions}
    if plan.varlen is not None:
        named |= {name: value for name, value in plan.varlen._asdict().items() if torch.is_tensor(value)}
    return named


@pytest.mark.parametrize("use_varlen", [False, True])
def test_a_batch_that_moves_takes_its_plan_along(use_varlen):
    batch = TreeRow(PAD, use_varlen=use_varlen)(sharing())
    plan = batch["tree"]
    plan.masks(16)
    moved = send_to_device(batch, "meta", non_blocking=True)["tree"]
    assert len(tensors_of(plan)) == (5 if use_varlen else 2)
    assert {value.device.type for value in tensors_of(plan).values()} == {"cpu"}
    assert {value.device.type for value in tensors_of(moved).values()} == {"meta"}
    for name, value in tensors_of(moved).items():
        assert (value.shape, value.dtype) == (tensors_of(plan)[name].shape, tensors_of(plan)[name].dtype)
    assert {mask.device.type for mask in moved.masks(16) if mask is not None} <= {"meta"}
    assert {mask.device.type for mask in plan.masks(16) if mask is not None} <= {"cpu"}
    assert (moved.calls, moved.longest) == (plan.calls, plan.longest)


@pytest.mark.parametrize("use_varlen", [False, True])
def test_pinning_a_plan_pins_each_of_its_tensors(monkeypatch, use_varlen):
    pinned = []
    # Real pinning needs an accelerator.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: pinned.append(self) or self.clone())
    plan = TreeRow(PAD, use_varlen=use_varlen)(sharing())["tree"]
    found = plan.pin_memory()
    assert {id(value) for value in pinned} == {id(value) for value in tensors_of(plan).values()}
    assert all(value is not tensors_of(plan)[name] for name, value in tensors_of(found).items())
    assert_same_plan(found, plan)


def assert_same_plan(found, expected):
    assert tensors_of(found).keys() == tensors_of(expected).keys()
    for name, value in tensors_of(expected).items():
        assert torch.equal(tensors_of(found)[name], value)
    assert (found.calls, found.longest) == (expected.calls, expected.longest)
    if expected.varlen is not None:
        assert (found.varlen.max_queries, found.varlen.max_keys) == (
            expected.varlen.max_queries,
            expected.varlen.max_keys,
        )


@pytest.mark.parametrize("use_varlen", [False, True])
def test_a_plan_made_in_a_loaders_worker_is_the_same(use_varlen):
    collate = TreeRow(PAD, use_varlen=use_varlen)
    expected = collate(sharing())
    (batch,) = DataLoader(sharing(), batch_size=9, collate_fn=collate, num_workers=1)
    assert_same_plan(batch["tree"], expected["tree"])
    assert_same_plan(pickle.loads(pickle.dumps(expected["tree"])), expected["tree"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    for mask, wanted in zip(batch["tree"].masks(16), expected["tree"].masks(16), strict=True):
        assert mask is wanted is None or torch.equal(mask, wanted)


# Values and gradients

CASES = {
    "plain": ({}, {}),
    "grouped": ({"kv_heads": 2}, {}),
    "scaled": ({}, {"scaling": 0.5}),
    "narrow values": ({"kv_heads": 2, "value_channels": 4}, {}),
    "softcap": ({"kv_heads": 2}, {"softcap": 1.5}),
    "sinks": ({"kv_heads": 2}, {"s_aux": True}),
    "softcap and sinks": ({"kv_heads": 1, "value_channels": 4}, {"softcap": 1.5, "s_aux": True, "scaling": 0.7}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("window", [None, 3, 1000])
@pytest.mark.parametrize(("cost", "block"), CUTS)
@pytest.mark.parametrize("case", CASES)
def test_attention_has_the_values_and_gradients_of_plain_softmax(monkeypatch, case, cost, block, window, dtype):
    cut(monkeypatch, cost, block)
    sizes, options = CASES[case]
    for seed in range(3):
        tree = random_tree(seed)
        tensors = inputs_of(tree, dtype=dtype, **sizes)
        sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=dtype, requires_grad=True)
        options = {**options, "s_aux": sinks} if "s_aux" in options else options
        tensors += [sinks] if "s_aux" in options else []
        found, weights = attend(PLAIN, *tensors[:3], Plan(tree), sliding_window=window, **options)
        named = {{"s_aux": "sinks"}.get(name, name): value for name, value in options.items()}
        wanted = dense(*tensors[:3], allowed(tree, window), **named)
        assert weights is None
        # With a softcap or sinks the softmax itself is in float32.
        is_exact = dtype == torch.float64 and not {"softcap", "s_aux"} & set(options)
        assert_close(
            with_gradients(found, *tensors), with_gradients(wanted, *tensors), tolerance=1e-12 if is_exact else 1e-5
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("under_autocast", [False, True])
def test_attention_in_bfloat16_differs_from_float32_by_rounding(case, under_autocast):
    sizes, options = CASES[case]
    tree = random_tree(2)
    exact = inputs_of(tree, dtype=torch.float32, **sizes)
    tensors = [tensor.detach().to(torch.bfloat16).requires_grad_() for tensor in exact]
    tensors = exact if under_autocast else tensors
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    options = {**options, "s_aux": sinks} if "s_aux" in options else options
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=under_autocast):
        found, _ = attend(PLAIN, *tensors, Plan(tree), sliding_window=5, **options)
    wanted, _ = attend(PLAIN, *exact, Plan(tree), sliding_window=5, **options)
    assert found.dtype == torch.bfloat16
    for value, expected in zip(with_gradients(found, *tensors), with_gradients(wanted, *exact), strict=True):
        torch.testing.assert_close(value.float(), expected, atol=6e-2, rtol=6e-2)


def test_the_cases_are_told_apart():
    """A guard: a result that the window, the limit or the sinks did not change would show nothing."""
    tree = random_tree(2)
    tensors = inputs_of(tree)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    options = [{}, {"sliding_window": 3}, {"sliding_window": 4}, {"softcap": 1.5}, {"s_aux": sinks}, {"scaling": 0.5}]
    found = [attend(PLAIN, *tensors, Plan(tree), **each)[0] for each in options]
    assert min((a - b).abs().max() for a, b in itertools.combinations(found, 2)) > 0.05


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sliding_window": 100}], ids=str)
def test_dropout_drops_that_share_of_the_chances_and_scales_up_the_rest(options):
    tree = layout([[1] * 30 + [2] * 30, [1] * 30 + [3] * 30])
    q, k, _ = inputs_of(tree)
    # With the unit vectors for values, the result is the chances themselves.
    unit = torch.eye(90, dtype=torch.float64).expand(1, 4, 90, 90)
    kept = attend(PLAIN, q, k, unit, Plan(tree), **options)[0]
    torch.manual_seed(0)
    found = attend(PLAIN, q, k, unit, Plan(tree), dropout=0.25, **options)[0]
    mask = allowed(tree).unsqueeze(1).expand(90, 4, 90)
    is_dropped = found[0] == 0
    assert is_dropped[mask].double().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(found[0][~is_dropped], (kept[0] / 0.75)[~is_dropped], rtol=1e-5, atol=1e-7)
    assert is_dropped[~mask].all()
    assert (attend(PLAIN, q, k, unit, Plan(tree), dropout=0.0, **options)[0] == kept).all()


def test_a_model_in_training_drops_attention_in_the_tree_as_its_config_says():
    model = tiny("qwen3", attention_dropout=0.5)
    attach(model)
    enable(model)
    batch = TreeRow(PAD)(sharing())
    still = rewards(model, batch)
    assert torch.equal(still, rewards(model, batch))
    model.train()
    assert not torch.allclose(rewards(model, batch), rewards(model, batch), atol=1e-2)
    assert not torch.allclose(rewards(model, batch), still, atol=1e-2)


# The variable-length kernel


def test_where_the_kernel_does_not_run_the_calls_stand_in_for_it():
    tree = random_tree(3)
    tensors = inputs_of(tree)
    assert torch.equal(attend(PLAIN, *tensors, Plan(tree, use_varlen=True))[0], attend(PLAIN, *tensors, Plan(tree))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 1, 3, 1000])
@pytest.mark.parametrize("case", ["plain", "grouped", "scaled", "narrow values"])
def test_the_kernel_has_the_values_and_gradients_of_the_calls(kernel, case, window, dtype):
    sizes, options = CASES[case]
    for seed in range(4):
        tree = random_tree(seed)
        tensors = inputs_of(tree, dtype=dtype, **sizes)
        exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
        found, _ = attend(PLAIN, *tensors, Plan(tree, use_varlen=True), sliding_window=window, **options)
        wanted, _ = attend(PLAIN, *exact, Plan(tree), sliding_window=window, **options)
        assert (found.dtype, found.shape) == (dtype, wanted.shape)
        tolerance = {torch.float16: 8e-3, torch.bfloat16: 6e-2}[dtype]
        for value, expected in zip(with_gradients(found, *tensors), with_gradients(wanted, *exact), strict=True):
            torch.testing.assert_close(value.float(), expected, atol=tolerance, rtol=tolerance)
    assert kernel == [(-1 if window is None else window - 1, 0)] * 4


def test_the_kernel_takes_what_autocast_makes_of_float32(kernel):
    tree = random_tree(2)
    tensors = inputs_of(tree, dtype=torch.float32)
    wanted, _ = attend(PLAIN, *tensors, Plan(tree))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attend(PLAIN, *tensors, Plan(tree, use_varlen=True))
    assert (found.dtype, len(kernel)) == (torch.bfloat16, 1)
    assert_close(with_gradients(found, *tensors), with_gradients(wanted, *tensors), 6e-2)


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "deepseek_v3"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_on_the_kernel_rewards_and_learns_as_on_the_padded_batch(kernel, kind, autocast):
    # Without experts, which rounding would send other tokens to.
    model = tiny(kind, **{**IN_TREE[kind], **({"first_k_dense_replace": 2} if kind == "deepseek_v3" else {})})
    attach(model)
    batches = {"padded": Padded(PAD)(sharing()), "tree": TreeRow(PAD, use_varlen=True)(sharing())}
    exact, exact_gradient = learned(model, batches["padded"])
    if not autocast:
        model.to(torch.bfloat16)
    enable(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = {name: learned(model, batch) for name, batch in batches.items()}
    assert len(kernel) == model.config.num_hidden_layers, "one call a layer takes the whole row"
    errors = {name: ((values - exact).norm(), (grad - exact_gradient).norm()) for name, (values, grad) in found.items()}
    assert errors["tree"][0] < 2 * errors["padded"][0]
    assert errors["tree"][1] < 2 * errors["padded"][1]
    assert 0 < errors["padded"][0] < 0.1 * exact.norm()


def learned(model, batch):
    model.zero_grad()
    found = rewards(model, batch)
    found.pow(2).sum().backward()
    return found.detach(), torch.cat([value.grad.flatten().float() for value in model.parameters()])


def test_the_kernels_keys_are_each_chains_whole_path():
    for seed in range(50):
        tree = random_tree(seed)
        varlen = Plan(tree, use_varlen=True).varlen
        paths = varlen.key_rows.split(varlen.cu_keys.diff().tolist())
        assert [path.tolist() for path in paths] == [chain.path.tolist() for chain in tree.chains]
        assert varlen.cu_queries.tolist() == [0, *(chain.stop for chain in tree.chains)]


# What is refused, and what is left alone


@pytest.mark.parametrize("use_varlen", [False, True])
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (SimpleNamespace(is_causal=False), {}, "SimpleNamespace is bidirectional"),
        (PLAIN, {"position_bias": torch.zeros(1)}, "SimpleNamespace uses position_bias"),
        (PLAIN, {"position_bias": None, "cache": object()}, "SimpleNamespace uses cache"),
    ],
    ids=["bidirectional", "bias", "cache"],
)
def test_attention_that_a_tree_cannot_give_is_an_error(module, options, message, use_varlen):
    tree = random_tree(2)
    with pytest.raises(Unsupported, match=f"^{message}$"):
        attend(module, *inputs_of(tree), Plan(tree, use_varlen), **options)


@pytest.mark.parametrize("options", [{"softcap": 1.5}, {"s_aux": torch.zeros(4)}, {"dropout": 0.1}], ids=lambda o: [*o])
def test_the_kernel_refuses_what_it_has_not(kernel, options):
    tree = random_tree(2)
    with pytest.raises(Unsupported, match=r"^the variable-length kernel has no softcap, sinks or dropout$"):
        attend(PLAIN, *inputs_of(tree, dtype=torch.float16), Plan(tree, use_varlen=True), **options)
    assert not kernel


def test_a_causal_module_and_arguments_of_no_effect_are_taken():
    tree = random_tree(2)
    tensors = inputs_of(tree)
    expected = attend(PLAIN, *tensors, Plan(tree))[0]
    causal = SimpleNamespace(is_causal=True)
    assert torch.equal(attend(causal, *tensors, Plan(tree), position_bias=None, use_cache=False)[0], expected)


def test_another_implementation_is_refused_by_its_name():
    model = tiny("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(Unsupported, match=r"^attn_implementation is 'flash_attention_2'; leave it out or take 'sdpa'$"):
        enable(model)
    assert model.config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("kind", ["bloom", "stablelm", "jamba"])
def test_attention_of_a_models_own_is_refused(kind):
    model = tiny(kind)
    used = model.config._attn_implementation
    with pytest.raises(Unsupported, match=r"ForSequenceClassification does not let its attention be exchanged$"):
        enable(model)
    assert model.config._attn_implementation == used


def batches(sequences):
    """The padded batch, the same on the left, and one without a mask."""
    batch = {name: value for name, value in Padded(PAD)(sequences).items() if name != "token_weight"}
    lengths = batch["attention_mask"].sum(-1).tolist()
    left = {
        name: torch.stack([row.roll(-length) for row, length in zip(value, lengths, strict=True)])
        for name, value in batch.items()
    }
    assert (left["attention_mask"][:, 0] == 0).any()
    return [batch, left, {"input_ids": batch["input_ids"][:, : min(lengths)]}]


KINDS = [("llama", "sdpa"), ("mistral", "sdpa"), ("gpt2", "sdpa"), ("deepseek_v3", "sdpa"), ("gpt_oss", "eager")]


@pytest.mark.parametrize(("kind", "used"), [*KINDS, ("qwen3", "eager"), ("gemma2", "eager"), ("gemma3_text", "eager")])
def test_every_other_batch_is_answered_as_before_to_the_last_bit(kind, used):
    model = tiny(kind, attn_implementation=used, **IN_TREE[kind])
    with torch.no_grad():
        before = [model(**batch).logits for batch in batches(sharing())]
        attach(model)
        attached = [rewards(model, batch) for batch in batches(sharing())]
        enable(model)
        assert model.config._attn_implementation == f"plaudit_{used}"
        enabled = [rewards(model, batch) for batch in batches(sharing())]
        rewards(model, TreeRow(PAD)(sharing()))
        after_a_tree = [rewards(model, batch) for batch in batches(sharing())]
        disable(model)
        assert model.config._attn_implementation == used
        disabled = [rewards(model, batch) for batch in batches(sharing())]
        del model.forward
        own = [model(**batch).logits for batch in batches(sharing())]
    for found in (enabled, after_a_tree, disabled):
        assert all(torch.equal(a, b) for a, b in zip(found, attached, strict=True))
    # Only the head is attached's own, and enable leaves no trace in a model's own forward either.
    for a, b in zip(own, before, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_attention_maps_come_out_of_an_eager_model_as_before():
    model = tiny("qwen3", attn_implementation="eager")
    batch = batches(sharing())[0]
    before = model(**batch, output_attentions=True).attentions
    enable(model)
    after = model(**batch, output_attentions=True).attentions
    assert len(before) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_enabling_twice_and_disabling_what_was_not_enabled_change_nothing():
    model = tiny("qwen3")
    disable(model)
    assert model.config._attn_implementation == "sdpa"
    enable(model)
    enable(model)
    assert model.config._attn_implementation == "plaudit_sdpa"
    disable(model)
    assert model.config._attn_implementation == "sdpa"


RELOAD = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
found = model(input_ids=torch.tensor(json.loads(sys.argv[2]))).logits.flatten().tolist()
assert not [name for name in sys.modules if name.startswith("plaudit")]
print(json.dumps([model.config._attn_implementation, found]))
"""


def test_a_saved_model_holds_nothing_of_it_and_loads_where_plaudit_is_unknown(tmp_path):
    model = tiny("qwen3")
    attach(model)
    enable(model)
    ids = [[5, 6, 7, 8, 9, EOS]]
    expected = rewards(model, {"input_ids": torch.tensor(ids)}).tolist()
    model.save_pretrained(tmp_path)
    assert "plaudit" not in (tmp_path / "config.json").read_text()
    assert "plaudit" not in json.dumps(model.config.to_dict(), default=str)
    assert model.config._attn_implementation == "plaudit_sdpa", "saving takes nothing from the model in use"
    command = [sys.executable, "-c", RELOAD, str(tmp_path), json.dumps(ids)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used, found = json.loads(done.stdout.splitlines()[-1])
    assert used == "sdpa"
    assert found == pytest.approx(expected, abs=1e-6)
