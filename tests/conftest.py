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
