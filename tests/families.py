"""Small models of any architecture, 64 tokens and 32 wide, and sequences that share their beginnings."""

import random

import torch
from conftest import make_model
from transformers import AutoConfig, AutoModelForSequenceClassification

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
    "gpt_oss": {
        **{"num_local_experts": 4, "num_experts_per_tok": 2},
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    },
    # Its values are narrower than its keys: 8 channels against 16.
    "deepseek_v3": {
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    },
    "qwen3_next": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"]},
        **{
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    },
    "jamba": {
        **{"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
        **{"use_mamba_kernels": False},
    },
    "modernbert": {"global_attn_every_n_layers": 1, "local_attention": 8, "attention_dropout": 0.0},
    "t5": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}

# The families that the tree layout is promised for, each with a window shorter than the rows where its config has one,
# and with a limit on the scores that they reach.
WINDOW = 16
SLIDING = {"sliding_window": WINDOW}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
SWITCHED = {**MIXED, "use_sliding_window": True, "max_window_layers": 1}
IN_TREE = {
    "llama": {},
    "mistral": SLIDING,
    "ministral": MIXED,
    "qwen2": SWITCHED,
    "qwen3": SWITCHED,
    "qwen3_moe": {**SLIDING, "use_sliding_window": True},
    "mixtral": SLIDING,
    "gemma": {},
    "gemma2": {**MIXED, "attn_logit_softcapping": 2.0},
    "gemma3_text": MIXED,
    "phi": {},
    "phi3": SLIDING,
    "olmo2": {},
    "olmo3": MIXED,
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
    "starcoder2": SLIDING,
    "smollm3": SWITCHED,
    "deepseek_v3": {},
    "glm4": {},
    "exaone4": MIXED,
    "hunyuan_v1_dense": {},
    "gpt_oss": MIXED,
}


class Ids:
    """The special tokens of a tokenizer of 64 tokens, all that make_model asks of one."""

    pad_token_id, eos_token_id, bos_token_id = PAD, EOS, 2

    def __len__(self):
        return 64


def tiny(kind, **overrides):
    """A classifier of 64 tokens, 32 wide, in evaluation mode; make_model sets a head_dim, which falcon refuses."""
    if kind != "falcon":
        return make_model(Ids(), kind, **{**NEEDED.get(kind, {}), **overrides}).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, vocab_size=64, num_labels=1, pad_token_id=PAD, **{**sizes, **overrides})
    ).eval()


def sharing(prompts=3, answers=3, seed=1, lengths=(5, 30)):
    """Sequences of 23 tokens and more: every prompt begins alike, every answer to a prompt begins with it."""
    generator = random.Random(seed)

    def some(count):
        return generator.choices(range(3, 64), k=count)

    system = some(12)
    asked = [system + some(generator.randint(*lengths)) for _ in range(prompts)]
    return [prompt + some(generator.randint(6, 25)) for prompt in asked for _ in range(answers)]
