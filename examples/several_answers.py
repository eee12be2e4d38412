"""Score several answers to one prompt, the prompt computed once.   python examples/several_answers.py MODEL

The same three steps score any sequences, in any grouping: whatever prefix they share is computed once. The rewards come
in the order given. MODEL: a reward model's directory, or a base model's, whose new head then gives random rewards.
"""

import sys

import torch

from plaudit.model import load, load_tokenizer
from plaudit.probe import choose_layout
from plaudit.rewards import rewards
from plaudit.tokens import encode_texts, set_special_tokens

model = load(sys.argv[1]).eval()
tokenizer = load_tokenizer(sys.argv[1], None, trust_remote_code=False)
set_special_tokens(tokenizer, None, None)

prompt = "What colour is the sky on a clear day, and why is that so?"
answers = [
    " Blue: air scatters blue light most.",
    " Green, because of the grass.",
    " Blue.",
    " I would rather not say.",
]

sequences = encode_texts(tokenizer, [prompt + answer for answer in answers])
layout, reason = choose_layout(model, sequences, tokenizer.pad_token_id)
print(reason or f"{sum(map(len, sequences))} tokens, of which {layout(sequences)['input_ids'].numel()} are computed")

with torch.no_grad():
    for answer, reward in zip(answers, rewards(model, layout(sequences)).tolist(), strict=True):
        print(f"{reward:+.3f} {answer}")
