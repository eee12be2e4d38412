"""Tiny models and tokenizers, built in place."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from plaudit import say

CHAT_TEMPLATE = (
    "{%- if tools %}<|system|>tools: {{ tools | tojson }}<|end|>\n{%- endif %}"
    "{%- for message in messages %}<|{{ message.role }}|>"
    "{{ message.content }}"
    "{%- for call in message.tool_calls or [] %} call {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}"
    "<|end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)
TEXT = [
    "What color is the sky? It is blue, and at night it is black.",
    "The sky is green. The grass is blue. Tell me a short story about a cat and a dog.",
    "Once upon a time there was a reward model that liked short answers better than long ones.",
    'user assistant system tool tools call get_weather city Paris temperature {}[]":,',
]


def make_tokenizer(chat_template=CHAT_TEMPLATE, eos="<|eos|>", pad="<|padding|>", bos=None, vocab_size=400):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in ("<|padding|>", "<|eos|>", "<|end|>", "<|bos|>") if token]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos, chat_template=chat_template
    )


def make_model(tokenizer, kind="qwen3", seed=0, num_labels=1, **overrides):
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        # Larger than usual, so that different texts get clearly different rewards.
        "initializer_range": 0.2,
        **overrides,
    }
    config = AutoConfig.for_model(kind, **values)
    config.num_labels = num_labels
    return AutoModelForSequenceClassification.from_config(config)


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch):
    monkeypatch.setattr(say, "_said", set())


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    """A tiny Qwen3 base (a causal language model's weights, as users have) with its tokenizer."""
    path = tmp_path_factory.mktemp("tiny-qwen3")
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def language_model_path(tmp_path_factory):
    """A tiny causal language model, without a reward head or a padding token in its config, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("tiny-language-model")
    tokenizer = make_tokenizer()
    values = make_model(tokenizer, pad_token_id=None).config
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(values).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def tokenizer(model_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture
def tiny_model(model_path):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1)


@pytest.fixture
def kernel(monkeypatch):
    """torch's variable-length kernel, which runs on CUDA alone, by plain PyTorch and as strict; its calls' window sizes."""
    import torch

    from plaudit import attention

    windows = []

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert query.dim() == key.dim() == value.dim() == 3
        assert query.dtype in (torch.float16, torch.bfloat16)
        assert query.dtype == key.dtype == value.dtype
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert query.shape[-1] % 8 == 0
        assert query.shape[-1] <= 256
        assert {tensor.stride(-1) for tensor in (query, key, value)} == {1}
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert query.shape[1] % key.shape[1] == 0
        for cu_seq, longest, total in ((cu_seq_q, max_q, len(query)), (cu_seq_k, max_k, len(key))):
            assert cu_seq.dtype == torch.int32
            assert cu_seq.is_contiguous()
            assert (int(cu_seq[0]), int(cu_seq[-1]), int(cu_seq.diff().max())) == (0, total, longest)
            assert isinstance(longest, int)
        windows.append(window_size)
        out = [
            one(*chain, scale, *window_size)
            for chain in zip(
                query.split(cu_seq_q.diff().tolist()),
                key.split(cu_seq_k.diff().tolist()),
                value.split(cu_seq_k.diff().tolist()),
                strict=True,
            )
        ]
        return torch.cat(out).to(query.dtype)

    def one(q, k, v, scale, left, right):
        q, k, v = (tensor.float().transpose(0, 1) for tensor in (q, k, v))
        k, v = (tensor.repeat_interleave(len(q) // len(k), dim=0) for tensor in (k, v))
        with torch.autocast("cpu", enabled=False):
            scores = q @ k.transpose(-1, -2) * scale
            # Aligned at the last query and the last key.
            at = torch.arange(q.shape[1]).unsqueeze(1) + k.shape[1] - q.shape[1]
            keys = torch.arange(k.shape[1])
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
            mask = mask if right < 0 else mask & (keys <= at + right)
            mask = mask if left < 0 else mask & (keys >= at - left)
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "VARLEN_DEVICES", ("cpu",))
    return windows


def text_pairs(count, seed=0):
    """Text pairs of varying length with an explicit prompt."""
    import random

    generator = random.Random(seed)
    words = " ".join(TEXT).split()
    rows = []
    for _ in range(count):
        prompt = " ".join(generator.choices(words, k=generator.randint(2, 8)))
        sides = [" " + " ".join(generator.choices(words, k=generator.randint(1, 6))) for _ in range(2)]
        rows.append({"prompt": prompt, "chosen": sides[0] + " yes", "rejected": sides[1] + " no"})
    return rows


def conversations(count, seed=0):
    """Conversational pairs with an explicit prompt."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in text_pairs(count, seed)
    ]
