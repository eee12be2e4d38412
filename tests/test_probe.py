"""The trial: every family that the tree is promised for gets it, every other keeps its padded rewards."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import IterableDataset
from families import IN_TREE, NEEDED, PAD, sharing, tiny
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn

from plaudit import attention
from plaudit.collate import Padded, TreeRow
from plaudit.config import RewardConfig
from plaudit.probe import choose_layout, layout_of_run
from plaudit.rewards import attach, classifier_of, rewards

SEQUENCES = sharing(2, 2)
ATTEND = attention.attend


def attached(kind, **overrides):
    model = tiny(kind, **overrides)
    attach(model)
    return model


def rewarded(model, layout=None):
    with torch.no_grad():
        return rewards(model, (layout or Padded(PAD))(sharing()))


def assert_padded(model, reason, **options):
    """The model is turned down for that reason, and rewards to the last bit as before."""
    before = rewarded(model)
    used = classifier_of(model).config._attn_implementation
    layout, why = choose_layout(model, SEQUENCES, PAD, **options)
    assert isinstance(layout, Padded)
    assert reason in why
    assert "\n" not in why
    assert classifier_of(model).config._attn_implementation == used
    assert torch.equal(rewarded(model), before)


@pytest.mark.parametrize("kind", IN_TREE)
def test_every_promised_family_gets_the_tree(kind):
    model = attached(kind, **IN_TREE[kind])
    before = rewarded(model)
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert isinstance(layout, TreeRow)
    assert reason is None
    assert torch.equal(rewarded(model), before)
    torch.testing.assert_close(rewarded(model, layout), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt_oss", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_no_reason_to_pad(kind, dtype, autocast):
    model = attached(kind, **IN_TREE[kind])
    layout, reason = choose_layout(
        model if autocast else model.to(dtype), SEQUENCES, PAD, autocast=dtype if autocast else None
    )
    assert reason is None
    assert isinstance(layout, TreeRow)


OWN_ATTENTION = "ForSequenceClassification does not let its attention be exchanged"
NO_DECODER = "ForSequenceClassification is not a decoder that reads its reward at the last token"
DIFFER = "the tree's rewards differ from the padded ones by "
OTHERS = {
    # Their attention is their own.
    **dict.fromkeys(["bloom", "stablelm", "gpt_neo", "gptj", "mpt", "falcon"], OWN_ATTENTION),
    # Recurrent states.
    **dict.fromkeys(["jamba", "qwen3_next", "zamba2"], OWN_ATTENTION),
    # They say that their attention can be exchanged, and do otherwise: one ignores it, one has linear layers beside it.
    **dict.fromkeys(["nemotron", "minimax"], DIFFER),
    # A prompt's states depend on the answer.
    **dict.fromkeys(["bert", "modernbert"], NO_DECODER),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_other_family_is_padded_for_a_reason_and_rewards_as_before(kind):
    assert_padded(attached(kind), OTHERS[kind])


class Plain(nn.Module):
    """A module with no transformers in it; the reward of a row is the sum of one channel."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 4)

    def forward(self, input_ids, attention_mask):
        return (self.embed(input_ids)[..., 0] * attention_mask).sum(-1)


def test_a_plain_module_is_padded():
    model = Plain()
    before = rewarded(model)
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert isinstance(layout, Padded)
    assert reason == "Plain is not a decoder that reads its reward at the last token"
    assert torch.equal(rewarded(model), before)


def test_another_attention_implementation_is_padded_and_kept():
    model = attached("qwen3")
    model.config._attn_implementation = "flash_attention_2"
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert isinstance(layout, Padded)
    assert reason == "attn_implementation is 'flash_attention_2'; leave it out or take 'sdpa'"
    assert model.config._attn_implementation == "flash_attention_2"


def test_a_model_that_raises_at_a_tree_is_padded_with_its_words_on_one_line():
    model = attached("qwen3")

    def refuse(module, args, kwargs):
        if "tree" in kwargs:
            raise KeyError("no\n  trees here" + "!" * 500)

    model.model.layers[1].register_forward_pre_hook(refuse, with_kwargs=True)
    assert_padded(model, "its forward does not take the tree (KeyError: 'no\\n trees here!!!")
    _, reason = choose_layout(model, SEQUENCES, PAD)
    assert len(reason) < 200


def test_running_out_of_memory_is_no_word_against_the_model(monkeypatch):
    def attend(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(attention, "attend", attend)
    assert_padded(attached("qwen3"), "the trial ran out of memory")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_agree_with_nothing(value):
    model = attached("qwen3")
    with torch.no_grad():
        model.model.norm.weight[3] = value
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert isinstance(layout, Padded)
    assert reason == "its rewards are not finite in float32"
    assert model.config._attn_implementation == "sdpa"


def test_a_tree_whose_rewards_alone_are_not_finite_is_not_used(monkeypatch):
    monkeypatch.setattr(attention, "attend", lambda *args, **kwargs: (ATTEND(*args, **kwargs)[0] * torch.nan, None))
    assert_padded(attached("qwen3"), DIFFER)


@pytest.mark.parametrize("place", ["meta", "empty"])
def test_a_model_whose_weights_are_elsewhere_is_not_tried(place):
    model = attached("qwen3")
    if place == "meta":
        model.model.layers.to("meta")
    else:
        # What ZeRO leaves of a parameter that another process holds.
        model.model.norm.weight.data = torch.empty(0)
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert isinstance(layout, Padded)
    assert reason == "the model's weights are not here to try it: they are partitioned or not loaded yet"
    assert model.config._attn_implementation == "sdpa"


def test_a_lora_model_gets_the_tree():
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny("qwen3"), config).eval()
    attach(model)
    before = rewarded(model)
    with model.disable_adapter():
        assert not torch.allclose(rewarded(model), before, atol=0.01)
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert reason is None
    assert isinstance(layout, TreeRow)
    torch.testing.assert_close(rewarded(model, layout), before, atol=1e-5, rtol=0)


# A wrong attention is found out


def ignoring_the_tree(module, query, key, value, plan, *, scaling=None, **kwargs):
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    return found.transpose(1, 2), None


@pytest.mark.parametrize(
    "sequences", [SEQUENCES, sharing(3, 1), [[3, 4, 5], [6, 7, 8]]], ids=["pairs", "system", "none"]
)
def test_attention_to_other_sequences_is_found_out(monkeypatch, sequences):
    monkeypatch.setattr(attention, "attend", ignoring_the_tree)
    layout, reason = choose_layout(attached("llama"), sequences, PAD)
    assert isinstance(layout, Padded)
    assert DIFFER in reason


def test_rewards_stay_as_they_were_where_a_wrong_attention_was_found_out(monkeypatch):
    monkeypatch.setattr(attention, "attend", ignoring_the_tree)
    assert_padded(attached("llama"), DIFFER)


SHORT = [ids[:18] for ids in sharing(2, 2, lengths=(1, 2))]


@pytest.mark.parametrize("change", [lambda window: None, lambda window: window + 1, lambda window: window - 1])
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_wrong_window_is_found_out_though_no_row_of_the_data_fills_it(monkeypatch, kind, change):
    def attend(*args, sliding_window=None, **kwargs):
        return ATTEND(*args, sliding_window=sliding_window and change(sliding_window), **kwargs)

    monkeypatch.setattr(attention, "attend", attend)
    assert max(map(len, SHORT)) < 40
    model = attached(kind, sliding_window=40)
    layout, reason = choose_layout(model, SHORT, PAD)
    assert isinstance(layout, Padded)
    assert DIFFER in reason
    # Where no row can ever fill the window, it makes no difference.
    layout, reason = choose_layout(model, SHORT, PAD, longest=18)
    assert isinstance(layout, TreeRow)
    assert reason is None


def test_positions_that_a_model_counts_for_itself_are_found_out():
    model = attached("llama")

    def drop(module, args, kwargs):
        return args, {name: value for name, value in kwargs.items() if name != "position_ids"}

    model.model.register_forward_pre_hook(drop, with_kwargs=True)
    assert_padded(model, DIFFER)


def test_a_model_that_no_one_attached_is_from_the_trial_on():
    model = tiny("qwen3")
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert reason is None
    torch.testing.assert_close(rewarded(model, layout), rewarded(attached("qwen3")), atol=1e-5, rtol=0)


# What is tried


def tried(model, **options):
    """The lengths of the rows that a trial computes in the padded layout."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    _, reason = choose_layout(model, SHORT, PAD, **options)
    hook.remove()
    assert reason is None
    return sorted({length for mask in seen if mask is not None for length in mask.sum(-1).tolist()})


def test_rows_cross_each_window_that_the_data_can_reach():
    # Besides the rows of the data, and those that part from each other half-way.
    own = {18, 27}
    assert set(tried(attached("llama"))) == own
    assert set(tried(attached("mistral", sliding_window=40))) == own | {80}
    assert set(tried(attached("mistral", sliding_window=40), longest=1000)) == own | {80}
    assert set(tried(attached("mistral", sliding_window=40), longest=60)) == own | {60}
    assert set(tried(attached("mistral", sliding_window=40), longest=41)) == own | {41}
    assert set(tried(attached("mistral", sliding_window=40), longest=40)) == own
    assert set(tried(attached("mistral", sliding_window=40, max_position_embeddings=50))) == own | {50}
    assert set(tried(attached("mistral", sliding_window=600))) == own, "512 positions are all that the model has"


def test_no_row_of_a_trial_is_longer_than_the_longest():
    assert max(tried(attached("mistral", sliding_window=4), longest=10)) == 10


def test_the_mode_of_each_module_is_as_before_and_no_random_number_is_used_up():
    model = attached("gpt2")
    model.train()
    model.transformer.h[0].eval()
    model.transformer.h[0].attn.train()
    assert model.config.attn_pdrop > 0
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    _, reason = choose_layout(model, SEQUENCES, PAD)
    assert reason is None, "dropout made the layouts differ"
    assert [module.training for module in model.modules()] == modes
    assert {True, False} == set(modes)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mode_of_each_module_is_as_before_where_the_trial_raised():
    model = attached("qwen3").train()

    def refuse(module, args, kwargs):
        if "tree" in kwargs:
            raise ValueError("no trees here")

    hook = model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert choose_layout(model, SEQUENCES, PAD)[1] == "its forward does not take the tree (ValueError: no trees here)"
    hook.remove()
    assert all(module.training for module in model.modules())
    assert not model.score._forward_pre_hooks, "what was hooked in is taken out again"


def test_a_trial_records_no_gradients_and_leaves_no_hooks():
    model = attached("qwen3")
    recorded = []
    hook = model.register_forward_hook(lambda module, inputs, output: recorded.append(output.logits.requires_grad))
    assert choose_layout(model, SEQUENCES, PAD)[1] is None
    hook.remove()
    assert set(recorded) == {False}
    assert not model.score._forward_pre_hooks


# What comes out of it


def test_the_layouts_pad_as_asked():
    model = attached("qwen3")
    layout, _ = choose_layout(model, SEQUENCES, PAD, pad_to_multiple_of=64)
    assert layout(SEQUENCES)["input_ids"].shape[1] % 64 == 0
    assert layout(SEQUENCES)["input_ids"].shape[1] != TreeRow(PAD)(SEQUENCES)["input_ids"].shape[1]
    layout, _ = choose_layout(attached("bloom"), SEQUENCES, PAD, pad_to_multiple_of=64)
    assert layout(SEQUENCES)["input_ids"].shape[1] % 64 == 0


def test_the_tree_reads_by_the_models_pad_token():
    model = attached("qwen3")
    model.config.pad_token_id = 9
    layout, reason = choose_layout(model, SEQUENCES, 9)
    assert reason is None
    assert layout.pad_token_id == 9


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {}, False),
        (torch.bfloat16, {}, True),
        (torch.float16, {}, True),
        (torch.float32, {"autocast": torch.bfloat16}, True),
        (torch.bfloat16, {"keeps_dropout": True}, False),
    ],
    ids=str,
)
def test_the_kernel_is_for_half_precision_without_dropout(kernel, dtype, options, expected):
    model = attached("qwen3", attention_dropout=0.1).to(dtype)
    layout, reason = choose_layout(model, SEQUENCES, PAD, **options)
    assert reason is None
    assert layout.use_varlen == expected == bool(kernel)


def test_dropout_that_the_config_does_not_have_keeps_the_kernel(kernel):
    model = attached("qwen3").to(torch.bfloat16)
    layout, _ = choose_layout(model, SEQUENCES, PAD, keeps_dropout=True)
    assert layout.use_varlen


def test_without_the_kernels_device_there_is_no_kernel():
    model = attached("qwen3").to(torch.bfloat16)
    assert not choose_layout(model, SEQUENCES, PAD)[0].use_varlen
    # Where the weights wait on the host, the kernel is tried where it is to run.
    assert not choose_layout(model, SEQUENCES, PAD, device=torch.device("cuda"))[0].use_varlen


def broken(query, key, *args, **kwargs):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")


@pytest.mark.parametrize("fault", ["raises", "is wrong", "learns wrongly"])
def test_a_kernel_that_does_not_work_here_gives_way_to_the_calls(kernel, monkeypatch, fault):
    from torch.nn.attention import varlen

    right = varlen.varlen_attn
    faults = {
        "raises": broken,
        "is wrong": lambda q, k, v, *args, **kwargs: right(q, k, 1.2 * v, *args, **kwargs),
        "learns wrongly": lambda q, k, v, *args, **kwargs: right(q, k.detach(), v, *args, **kwargs),
    }
    monkeypatch.setattr(varlen, "varlen_attn", faults[fault])
    layout, reason = choose_layout(attached("qwen3").to(torch.bfloat16), SEQUENCES, PAD)
    assert reason is None
    assert isinstance(layout, TreeRow)
    assert not layout.use_varlen


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_what_the_kernel_has_not_keeps_the_calls(kernel, kind):
    model = attached(kind, **IN_TREE[kind]).to(torch.bfloat16)
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert reason is None
    assert not layout.use_varlen


def test_a_model_that_asks_for_its_attentions_name_rewards_as_before():
    # AXK2 leaves all but index_topk keys out where the name is "sdpa" or "eager".
    model = attached("axk2", **NEEDED["deepseek_v3"], index_topk=8, index_n_heads=2, index_head_dim=16)
    assert_padded(model, "the exchanged attention's rewards differ from the padded ones by ")
    model = attached("gpt2", attn_implementation="eager", reorder_and_upcast_attn=True).to(torch.bfloat16)
    assert_padded(model, "the exchanged attention's rewards differ from the padded ones by ")


@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_learned_prompts_are_padded(kind):
    torch.manual_seed(0)
    model = get_peft_model(tiny("qwen3"), kind(task_type="SEQ_CLS", num_virtual_tokens=4)).eval()
    attach(model)
    assert_padded(model, "")  # What it says is PEFT's affair.


def test_long_windows_are_tried_in_batches_of_their_own():
    widths = []
    model = attached("mistral", sliding_window=128)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    choose_layout(model, SEQUENCES, PAD)
    padded = [shape for shape in widths if shape[0] > 1]
    assert {shape[0] for shape in padded if shape[1] == 256} == {3}
    assert max(shape[1] for shape in padded if shape[0] > 3) < 128


def test_a_model_in_double_precision_gets_the_tree():
    model = attached("qwen3").double()
    layout, reason = choose_layout(model, SEQUENCES, PAD)
    assert reason is None
    torch.testing.assert_close(rewarded(model, layout), rewarded(model), atol=1e-6, rtol=0)


def test_a_stream_is_read_once_for_the_trial(tmp_path):
    reads = []

    def rows():
        reads.append(1)
        yield from ({"chosen_ids": [5, 6, 7 + i], "rejected_ids": [5, 6, 9 + i]} for i in range(4))

    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    stream = IterableDataset.from_generator(rows)
    layout, reason = layout_of_run(attached("qwen3"), stream, args, Accelerator(cpu=True), PAD)
    assert reason is None
    assert isinstance(layout, TreeRow)
    assert len(reads) == 1
