"""The forward: each architecture rewards as its own class does, in float32."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

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
EOS, PAD = 1, 0
NEEDED = {
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "openai-gpt": {"n_positions": 64},
    "zamba2": {
        **{"num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"], "n_mamba_heads": 4},
        **{"mamba_headdim": 16, "mamba_d_state": 8, "chunk_size": 8},
        **{"attention_hidden_size": 64, "attention_head_dim": 16, "use_mem_rope": False},
    },
    "gemma3": {
        "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": PAD},
        "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        | {"image_size": 16, "patch_size": 8},
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "modernbert": {"global_attn_every_n_layers": 1, "local_attention": 8, "attention_dropout": 0.0},
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}
ROWS = [[7, 9, 11, 13, 15, 17, EOS], [8, 10, 12, EOS], [21, 22, 23, 24, 25, EOS]]


def tiny(kind, **overrides):
    """A classifier of 64 tokens, 32 wide, in evaluation mode; make_model sets a head_dim, which falcon refuses."""
    if kind != "falcon":
        return make_model(Ids(), kind, **{**NEEDED.get(kind, {}), **overrides}).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, vocab_size=64, num_labels=1, pad_token_id=PAD, **{**sizes, **overrides})
    ).eval()


class Ids:
    """The special tokens of a tokenizer of 64 tokens, all that make_model asks of one."""

    pad_token_id, eos_token_id, bos_token_id = PAD, EOS, 2

    def __len__(self):
        return 64


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
