"""The forward: each architecture rewards as its own class does, in float32."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from families import EOS, IN_TREE, NEEDED, PAD, WINDOW, sharing, tiny
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from plaudit import attention, losses
from plaudit.collate import Padded, TreeRow
from plaudit.model import remove_dropout
from plaudit.rewards import (
    READS_LAST_TOKEN,
    attach,
    classifier_of,
    head_names,
    outputs,
    read,
    read_out_positions,
    reads_last_token,
    rewards,
)

GENERIC = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"]
ENCODERS = ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "t5"]
MIXTURES = ["qwen3_moe", "mixtral"]
ROWS = [[7, 9, 11, 13, 15, 17, EOS], [8, 10, 12, EOS], [21, 22, 23, 24, 25, EOS]]


def batch_of(rows, side="right", pad=PAD):
    length = max(len(row) for row in rows)
    fill = [[pad] * (length - len(row)) for row in rows]
    zeros = [[0] * len(padding) for padding in fill]
    ones = [[1] * len(row) for row in rows]
    join = (lambda a, b: a + b) if side == "right" else (lambda a, b: b + a)
    return {
        "input_ids": torch.tensor([join(*both) for both in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([join(*both) for both in zip(ones, zeros, strict=True)]),
    }


def gradients(model, batch):
    model.zero_grad()
    read(model(**batch)).pow(2).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same(expected, found, **tolerances):
    assert expected.keys() == found.keys()
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", [*GENERIC, *sorted(READS_LAST_TOKEN), *MIXTURES])
def test_attached_decoders_reward_like_their_own_class(kind):
    model = tiny(kind)
    batches = [batch_of(ROWS), batch_of(ROWS, "left"), batch_of(ROWS[:1]), batch_of(ROWS[1:2])]
    with torch.no_grad():
        own = [read(model(**batch)) for batch in batches]
        model.config.get_text_config().pad_token_id = EOS
        at_eos = read(model(**batch_of(ROWS, pad=EOS)))
        attach(model)
        found_at_eos = rewards(model, batch_of(ROWS, pad=EOS))
        model.config.get_text_config().pad_token_id = PAD
        found = [rewards(model, batch) for batch in batches]
    assert reads_last_token(model)
    assert model.forward.__func__ is not type(model).forward
    for expected, reward in zip(own, found, strict=True):
        torch.testing.assert_close(reward, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_at_eos, at_eos, atol=1e-5, rtol=1e-5)
    assert (found_at_eos - found[0]).abs().max() > 1e-3, "pad = eos is read one token earlier"


@pytest.mark.parametrize("kind", ENCODERS)
def test_attached_encoders_keep_their_own_forward_and_reward(kind):
    model = tiny(kind)
    batches = [batch_of(ROWS)] if kind != "t5" else [batch_of(ROWS[:1])]
    with torch.no_grad():
        own = [read(model(**batch)) for batch in batches]
        attach(model)
        found = [rewards(model, batch) for batch in batches]
    assert not reads_last_token(model)
    assert model.forward.__func__ is type(model).forward
    for expected, reward in zip(own, found, strict=True):
        torch.testing.assert_close(reward, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bert", "roberta"])
def test_rewards_of_a_bfloat16_model_are_float32_and_not_rounded(kind):
    model = tiny(kind).to(torch.bfloat16)
    batch = batch_of(ROWS)
    with torch.no_grad():
        rounded = model(**batch).logits
        attach(model)
        found = model(**batch).logits
    assert rounded.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any(), "all rewards are representable in bfloat16"
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(found, rounded.float(), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("kind", ["qwen3", "roberta"])
def test_the_head_stays_in_float32_under_autocast(kind):
    model = tiny(kind)
    batch = batch_of(ROWS)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**batch).logits
        attach(model)
        found = model(**batch).logits
    assert rounded.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert (found != found.bfloat16().float()).any()


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "bert"])
def test_attached_models_have_the_gradients_of_their_own_class(kind):
    model = tiny(kind)
    own = gradients(model, batch_of(ROWS))
    attach(model)
    assert_same(own, gradients(model, batch_of(ROWS)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_leaves_the_gradients_alone(reentrant):
    model = tiny("qwen3")
    attach(model)
    expected = gradients(model, batch_of(ROWS))
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    calls = []
    model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(expected, gradients(model, batch_of(ROWS)), atol=1e-6, rtol=1e-5)
    assert len(calls) == 2, "nothing was computed again"


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_accelerate_gives_back_the_attached_forward(mixed_precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=True)
    model = tiny("qwen3")
    attach(model)
    attached = model.forward.__func__
    expected = rewards(model, batch_of(ROWS))
    prepared = accelerator.prepare_model(model)
    assert prepared(**batch_of(ROWS)).logits.dtype == torch.float32
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert unwrapped.forward.__func__ is attached
    torch.testing.assert_close(rewards(unwrapped, batch_of(ROWS)), expected, atol=0, rtol=0)


def test_attaching_again_changes_nothing():
    model = tiny("qwen3")
    attach(model)
    expected = rewards(model, batch_of(ROWS))
    attach(model)
    torch.testing.assert_close(rewards(model, batch_of(ROWS)), expected, atol=0, rtol=0)


def test_a_deep_copy_computes_with_its_own_weights():
    model = tiny("qwen3")
    attach(model)
    expected = rewards(model, batch_of(ROWS)).detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.score.weight.mul_(3)
        torch.testing.assert_close(rewards(twin, batch_of(ROWS)), 3 * expected)
        twin.model.embed_tokens.weight.zero_()
        assert not torch.allclose(rewards(twin, batch_of(ROWS)), 3 * expected)
    torch.testing.assert_close(rewards(model, batch_of(ROWS)), expected, atol=0, rtol=0)
    assert twin.forward.__self__ is twin
    assert twin.score.forward.__self__ is twin.score


class Plain(nn.Module):
    """A module with no transformers in it; the reward of a row is the sum of its ids."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, input_ids, attention_mask):
        return self.answer((input_ids * attention_mask).sum(-1).double())


@pytest.mark.parametrize(
    "answer",
    [
        lambda sums: sums,
        lambda sums: sums.unsqueeze(1),
        lambda sums: (sums.unsqueeze(1), "states"),
        lambda sums: SimpleNamespace(logits=sums.unsqueeze(1)),
        lambda sums: {"logits": sums},
    ],
    ids=["row", "column", "tuple", "object", "dict"],
)
def test_a_plain_modules_rewards_are_read_from_whatever_it_returns(answer):
    model = Plain(answer)
    attach(model)
    found = rewards(model, {**batch_of(ROWS), "margin": torch.zeros(3)})
    assert found.dtype == torch.float32
    assert found.tolist() == [float(sum(row)) for row in ROWS]


@pytest.mark.parametrize("shape", [(3, 2), (3, 5, 1)])
def test_more_than_one_logit_a_row_is_an_error(shape):
    with pytest.raises(ValueError, match=r"one logit a row"):
        rewards(Plain(lambda sums: torch.zeros(shape)), batch_of(ROWS))


@pytest.mark.parametrize("kind", MIXTURES)
def test_router_logits_come_out_where_the_config_asks_for_them(kind):
    model = tiny(kind)
    attach(model)
    assert model(**batch_of(ROWS)).router_logits is None
    model.config.output_router_logits = True
    router_logits = outputs(model, batch_of(ROWS)).router_logits
    assert [tuple(layer.shape) for layer in router_logits] == [(len(ROWS) * 7, 4)] * 2


def test_a_tuple_and_hidden_states_come_out_as_from_any_classifier():
    model = tiny("qwen3")
    attach(model)
    expected = model(**batch_of(ROWS)).logits
    assert torch.equal(model(**batch_of(ROWS), return_dict=False)[0], expected)
    assert len(model(**batch_of(ROWS), output_hidden_states=True).hidden_states) == 3


HEADS = {
    "qwen3": ["score"],
    "gpt2": ["score"],
    "bert": ["classifier"],
    "roberta": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "deberta-v2": ["classifier", "pooler"],
    "modernbert": ["classifier", "head"],
    "t5": ["classification_head"],
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_all_that_stands_on_the_base_model(kind):
    assert sorted(head_names(tiny(kind))) == HEADS[kind]


def test_the_classifier_is_found_inside_its_wrappers():
    model = tiny("qwen3")
    wrapped = nn.parallel.DataParallel(model)
    assert classifier_of(wrapped) is model
    assert classifier_of(model) is model
    assert isinstance(classifier_of(model), PreTrainedModel)


def test_rewards_of_rows_that_share_nothing_differ():
    """A guard: were the tiny models constant, equality of rewards would show nothing."""
    model = tiny("qwen3")
    attach(model)
    values = rewards(model, batch_of(ROWS)).tolist()
    assert min(abs(a - b) for a in values for b in values if a is not b) > 1e-3
    assert all(math.isfinite(value) for value in values)


def test_a_model_with_its_reward_forward_can_be_pickled(tokenizer, tmp_path):
    model = make_model(tokenizer).eval()
    attach(model)
    torch.save(model, tmp_path / "model.pt")
    copied = torch.load(tmp_path / "model.pt", weights_only=False)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert torch.equal(rewards(copied, batch), rewards(model, batch))


@pytest.mark.parametrize("pad", [0, None])
def test_the_read_out_of_a_batch_is_that_of_lists(pad):
    from plaudit.prepare import read_out

    rows = [[4, 0, 5, 0], [0, 0, 0, 0], [1, 2, 3, 4], [0, 7, 0, 0]]
    assert read_out_positions(torch.tensor(rows), pad).tolist() == [read_out(row, pad) for row in rows]


# The tree layout against the padded one


def in_tree(kind, **overrides):
    model = tiny(kind, **{**IN_TREE[kind], **overrides})
    remove_dropout(model)
    attach(model)
    attention.enable(model)
    return model


@pytest.fixture
def asked(monkeypatch):
    """What the layers asked of the tree's attention, one dict a call."""
    calls = []
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **kwargs: calls.append(kwargs) or attend(*args, **kwargs))
    return calls


def learned(model, batch):
    """The rewards of a batch, and each parameter's gradient."""
    model.zero_grad()
    found = rewards(model, batch)
    found.pow(2).sum().backward()
    return found.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_learned_alike(found, expected):
    """Rewards within 1e-5 of their spread, each parameter's gradient within 1e-4 of its length."""
    (found, found_gradients), (expected, gradients) = found, expected
    spread = expected.max() - expected.min()
    assert spread > 0.5, "rewards that hardly differ show nothing"
    assert (found - expected).abs().max() <= 1e-5 * spread
    assert found_gradients.keys() == gradients.keys()
    longest = max(value.norm() for value in gradients.values())
    # The bias of a key moves no softmax: its gradient is rounding alone.
    rounding = 1e-6 * longest
    assert sum(value.norm() > 1000 * rounding for value in gradients.values()) > len(gradients) / 2
    for name, value in gradients.items():
        assert (found_gradients[name] - value).norm() <= 1e-4 * value.norm() + rounding, name


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("kind", IN_TREE)
def test_tree_rewards_and_gradients_equal_the_padded_ones(asked, kind, checkpointing):
    model = in_tree(kind).train()
    if checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    padded, tree = Padded(PAD)(sharing()), TreeRow(PAD)(sharing())
    assert tree["input_ids"].numel() < 0.5 * padded["input_ids"].numel()
    assert min(padded["attention_mask"].sum(-1)) > WINDOW
    expected = learned(model, padded)
    assert not asked, "a padded batch is none of the tree's"
    assert_learned_alike(learned(model, tree), expected)
    assert len(asked) == 2 * (1 if checkpointing == "none" else 2)
    windows = {call["sliding_window"] for call in asked if call.get("sliding_window") is not None}
    assert windows == ({WINDOW} if "sliding_window" in IN_TREE[kind] else set())
    assert any(call.get("softcap") for call in asked) == (kind == "gemma2")
    assert any(call.get("s_aux") is not None for call in asked) == (kind == "gpt_oss")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", IN_TREE)
def test_the_tree_rounds_in_bfloat16_no_more_than_the_padded_batch(kind, autocast):
    # Every expert takes part, so that rounding sends no token to another one.
    model = in_tree(kind, **({"num_experts_per_tok": 4} if "num_experts_per_tok" in NEEDED.get(kind, {}) else {}))
    sequences = sharing(6, 4)
    batches = [Padded(PAD)(sequences), TreeRow(PAD)(sequences)]
    if not autocast:
        # The reference has the same weights, rounded already.
        model = model.to(torch.bfloat16).float()
    with torch.no_grad():
        exact = rewards(model, batches[0])
        if not autocast:
            model.to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            padded, tree = (((rewards(model, batch) - exact).square().mean()).sqrt() for batch in batches)
    spread = exact.max() - exact.min()
    assert 1e-4 * spread < padded < 0.05 * spread
    assert tree <= 2 * padded + 1e-3 * spread


def test_lora_learns_from_the_tree_as_from_the_padded_batch():
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny("qwen3"), config)
    remove_dropout(model, adapter_too=True)
    attach(model)
    attention.enable(classifier_of(model))
    expected = learned(model, Padded(PAD)(sharing()))
    assert all("lora" in name or "score" in name for name in expected[1])
    assert_learned_alike(learned(model, TreeRow(PAD)(sharing())), expected)


@pytest.mark.parametrize("pad", [PAD, EOS, 9])
def test_both_layouts_read_the_same_token_of_text_that_holds_the_pad_id(pad):
    model = in_tree("qwen3")
    model.config.pad_token_id = pad
    start = [5, 6, 7, 8]
    sequences = [
        [*start, 10, EOS],
        [*start, pad, 10, EOS],
        [*start, pad, 10, EOS, pad, pad],
        [*start, 10, pad],
        [*start, 10, pad, pad],
        [pad, *start],
        [pad],
        [pad, pad, pad],
        [*start, pad, 10, EOS],
    ]
    with torch.no_grad():
        padded, tree = rewards(model, Padded(pad)(sequences)), rewards(model, TreeRow(pad)(sequences))
        lone = torch.cat([rewards(model, Padded(pad)([ids])) for ids in sequences])
        lone_trees = torch.cat([rewards(model, TreeRow(pad)([ids])) for ids in sequences])
    for found in (tree, lone, lone_trees):
        torch.testing.assert_close(found, padded, atol=1e-5, rtol=1e-5)
    # Where the padding is EOS, the reward of a sequence is read one token earlier than at its end.
    ends = [max([i for i, token in enumerate(ids) if token != pad], default=0) for ids in sequences]
    batch = TreeRow(pad)(sequences)
    assert batch["position_ids"][0, batch["read_out"]].tolist() == ends
    assert (abs(padded[3] - padded[0]) < 1e-5) == (pad == EOS)


def test_without_a_pad_token_both_layouts_read_the_last_one():
    model = in_tree("qwen3")
    model.config.pad_token_id = None
    sequences = [[5, 6, 7, 8, 0], [5, 6, 7, 8, 9, 0, 0], [5, 6, 7, 8, 9], [1, 0]]
    with torch.no_grad():
        lone = torch.cat([rewards(model, Padded(PAD)([ids])) for ids in sequences])
        padded, tree = rewards(model, Padded(PAD)(sequences)), rewards(model, TreeRow(None)(sequences))
    assert (lone[1] - lone[2]).abs() > 1e-3
    torch.testing.assert_close(padded, lone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tree, lone, atol=1e-5, rtol=1e-5)


def test_any_number_of_answers_to_any_prompts_is_one_call_in_the_order_given():
    model = in_tree("qwen3")
    prompts = [ids[:40] for ids in sharing(2, 1, seed=5, lengths=(30, 30))]
    answers = [ids[-6:] for ids in sharing(4, 3, seed=6)]
    asked_of = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    sequences = [prompts[of] + answer for of, answer in zip(asked_of, answers, strict=True)]
    computed = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: computed.append(inputs[0].numel()))
    with torch.no_grad():
        found = rewards(model, TreeRow(PAD)(sequences))
        assert computed == [12 + 2 * 28 + 12 * 6], "the system prompt, each prompt and each answer once"
        lone = torch.cat([rewards(model, Padded(PAD)([ids])) for ids in sequences])
    torch.testing.assert_close(found, lone, atol=1e-5, rtol=1e-5)
    assert len(set(lone.tolist())) == 12


@pytest.mark.parametrize("multiple", [1, 64, 256])
def test_a_row_filled_up_to_a_multiple_has_the_same_rewards_and_gradients(multiple):
    model = in_tree("mistral")
    expected = learned(model, Padded(PAD)(sharing()))
    batch = TreeRow(PAD, multiple)(sharing())
    assert batch["input_ids"].shape[1] % multiple == 0
    assert_learned_alike(learned(model, batch), expected)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_the_experts_balance_is_the_same_in_both_layouts(kind):
    model = in_tree(kind, output_router_logits=True)
    # Fillers weigh nothing, repeats count again.
    sequences, weights = [*sharing(), sharing()[0]], [1.0, 0.0] + [1.0] * 8
    balances, learned_by = [], []
    for layout in (Padded(PAD), TreeRow(PAD, 64)):
        batch = layout(sequences, weights)
        model.zero_grad()
        router_logits = outputs(model, batch).router_logits
        assert [tuple(layer.shape) for layer in router_logits] == [(batch["input_ids"].numel(), 4)] * 2
        balance = losses.load_balancing(router_logits, 2, batch["token_weight"].reshape(-1))
        balance.backward()
        balances.append(balance.item())
        learned_by.append([value.grad for name, value in model.named_parameters() if value.grad is not None])
        unweighted = losses.load_balancing(router_logits, 2, torch.ones(batch["input_ids"].numel())).item()
        assert unweighted != pytest.approx(balances[0], rel=1e-4), "the weights make no difference"
    assert balances[0] == pytest.approx(balances[1], rel=1e-5)
    longest = max(value.norm() for value in learned_by[0])
    for padded, tree in zip(*learned_by, strict=True):
        assert (tree - padded).norm() <= 1e-4 * padded.norm() + 1e-6 * longest


def test_a_tree_for_a_model_whose_attention_does_not_take_it_is_an_error():
    model = in_tree("llama")
    attention.disable(model)
    with pytest.raises(
        ValueError, match="attention is not enabled for it; choose the layout with plaudit.probe.choose_l"
    ):
        rewards(model, TreeRow(PAD)(sharing()))


def test_without_a_padding_id_the_mask_says_where_the_reward_is_read():
    ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert read_out_positions(ids, None, mask).tolist() == [1, 2]
    assert read_out_positions(ids, 0, mask.flip(0)).tolist() == [1, 2]
    assert read_out_positions(ids, None).tolist() == [2, 2]
