"""Make a tiny Qwen3-shaped model with a tokenizer and a chat template, for trying things without a download.

python examples/tiny_model.py DIR [TEXT_FILE ...]   the tokenizer learns from the text files, or from this file.
"""

import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

CHAT_TEMPLATE = (
    "{% if tools %}<|start|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message.get('content') %}{{ message['content'] }}{% endif %}"
    "{% for call in message.get('tool_calls') or [] %}{{ call['function'] | tojson }}{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str], vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer learnt from the texts, with its own padding, end and turn tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|end|>", "<|start|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def make_model(folder: Path, texts: list[str], seed: int = 0) -> None:
    """Save a causal language model of random weights (two layers, hidden size 64) and its tokenizer to the folder."""
    tokenizer = make_tokenizer(texts)
    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/tiny_model.py DIR [TEXT_FILE ...]")
    files = sys.argv[2:] or [__file__]
    make_model(Path(sys.argv[1]), [Path(file).read_text(encoding="utf-8") for file in files])
    print(f"saved a tiny model to {sys.argv[1]}")
