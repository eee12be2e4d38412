"""Texts and conversations to ids: special tokens, chat templates, the padding token, the fingerprint."""

import re
import warnings

import pytest
from conftest import CHAT_TEMPLATE, make_tokenizer

from plaudit import tokens

BLOCK_TEMPLATE = (
    "{%- for message in messages %}<|{{ message.role }}|>"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{%- for block in message.content %}{{ block.text }}{%- endfor %}{%- endif %}<|end|>"
    "{%- endfor %}"
)


def where(i):
    return f"train row {i + 5}, 'chosen'"


def encode(tokenizer, *conversations, tools=None, kwargs=None):
    count = len(conversations)
    return tokens.encode_conversations(tokenizer, conversations, [tools] * count, [kwargs or {}] * count, where)


def turns(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# Texts


def test_a_text_gets_the_tokenizers_bos_and_one_eos():
    tokenizer = make_tokenizer(bos="<|bos|>")
    (ids,) = tokens.encode_texts(tokenizer, ["The sky"])
    assert ids == [tokenizer.bos_token_id, *tokenizer("The sky", add_special_tokens=False)["input_ids"], ids[-1]]
    assert ids[-1] == tokenizer.eos_token_id


def test_a_text_that_was_rendered_before_keeps_one_bos_and_one_eos():
    tokenizer = make_tokenizer(bos="<|bos|>")
    plain, rendered = tokens.encode_texts(tokenizer, ["The sky", "<|bos|>The sky<|eos|>"])
    assert rendered == plain


def test_without_a_bos_no_token_is_taken_away():
    tokenizer = make_tokenizer()
    (ids,) = tokens.encode_texts(tokenizer, ["  "])
    assert tokenizer.decode(ids[:-1]) == "  "


def test_eos_is_added_as_a_token_and_not_as_text():
    tokenizer = make_tokenizer(eos="ky")
    (ids,) = tokens.encode_texts(tokenizer, ["The s"])
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "ky"
    assert ids[:-1] == tokenizer("The s")["input_ids"]


def test_a_tokenizer_without_eos_adds_none():
    tokenizer = make_tokenizer(eos=None)
    (ids,) = tokens.encode_texts(tokenizer, ["The sky"])
    assert ids == tokenizer("The sky")["input_ids"]


def test_nothing_is_cut_or_padded():
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 4
    tokenizer("a", padding="max_length", max_length=8, truncation=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short, long = tokens.encode_texts(tokenizer, ["a", "a b c d e f g h i j"])
    assert len(short) < 4 < len(long)
    assert tokenizer.pad_token_id not in short


# Conversations


def test_a_conversation_gets_nothing_added_to_what_the_template_writes():
    tokenizer = make_tokenizer(bos="<|bos|>")
    (ids,) = encode(tokenizer, turns("q", "a"))
    assert tokenizer.decode(ids) == "<|user|>q<|end|><|assistant|>a<|end|>"
    assert tokenizer.bos_token_id not in ids
    assert tokenizer.eos_token_id not in ids


def test_tools_and_a_rows_own_template_arguments_reach_the_template():
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE + "{{ mood }}")
    (plain,) = encode(tokenizer, turns("q", "a"))
    (ids,) = encode(tokenizer, turns("q", "a"), tools=[{"name": "get_weather"}], kwargs={"mood": "calm"})
    text = tokenizer.decode(ids)
    assert text.startswith('<|system|>tools: [{"name": "get_weather"}]<|end|>')
    assert text.endswith("calm")
    assert "tools" not in tokenizer.decode(plain)


def test_a_role_that_the_template_refuses_is_an_error_that_names_the_row_and_the_roles():
    template = "{% if messages[0].role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}" + CHAT_TEMPLATE
    tokenizer = make_tokenizer(chat_template=template)
    critic = [{"role": "critic", "content": "hm"}, {"role": "assistant", "content": "a"}]
    message = (
        "train row 6, 'chosen': the chat template refuses this conversation (TemplateError: no critics); its 2 roles"
    )
    with pytest.raises(ValueError, match=re.escape(message) + r".*'critic', 'assistant'.*chat_template_path"):
        encode(tokenizer, turns("q", "a"), critic)
    assert encode(make_tokenizer(), critic)


BLOCKS = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    ],
    ids=["prints", "adds", "json", "filters"],
)
def test_content_blocks_are_an_error_for_a_template_that_takes_text_only(template):
    message = "train row 6, 'chosen': a message's content is a list of blocks, but .* join the blocks' texts"
    with pytest.raises(ValueError, match=message):
        encode(make_tokenizer(chat_template=template), turns("q", "a"), BLOCKS)


def test_content_blocks_are_rendered_by_a_template_that_takes_them():
    tokenizer = make_tokenizer(chat_template=BLOCK_TEMPLATE)
    assert encode(tokenizer, BLOCKS) == encode(tokenizer, turns("q", "a"))


def test_no_chat_template_is_an_error_with_the_cure():
    with pytest.raises(
        ValueError, match="train: the rows are conversations, but .* has no chat template; set chat_tem"
    ):
        tokens.require_chat_template(make_tokenizer(chat_template=None), "train")
    tokens.require_chat_template(make_tokenizer(), "train")


# chat_template_path


def test_a_template_file_gives_its_text_and_no_tokens(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("<|im_start|>{{ messages[0].content }}", encoding="utf-8")
    tokenizer = make_tokenizer(chat_template=None)
    size = len(tokenizer)
    assert tokens.adopt_chat_template(tokenizer, str(file)) == 0
    assert tokenizer.chat_template == "<|im_start|>{{ messages[0].content }}"
    assert len(tokenizer) == size


def test_a_tokenizers_directory_gives_its_template_and_the_special_tokens_that_it_needs(tmp_path):
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|end|>{% endfor %}{{ eos_token }}"
    source = make_tokenizer(chat_template=template)
    source.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|image|>"]})
    source.add_special_tokens({"eos_token": "<|stop|>"})
    source.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(chat_template=None)
    size, end = len(tokenizer), tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokens.adopt_chat_template(tokenizer, str(tmp_path)) == 2
    assert tokenizer.chat_template == template
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|stop|>"]) == [size, size + 1]
    assert "<|image|>" not in tokenizer.get_vocab(), "the template does not use it"
    assert tokenizer.convert_tokens_to_ids("<|end|>") == end
    assert tokenizer("x<|im_start|>y")["input_ids"][1] == size, "it is one token, wherever it stands"
    assert tokens.adopt_chat_template(tokenizer, str(tmp_path)) == 0


def test_adopting_a_template_keeps_the_tokenizers_own_special_tokens(tmp_path):
    source = make_tokenizer(chat_template="<|new|>{{ messages[0].content }}")
    source.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    source.save_pretrained(tmp_path)
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    assert tokens.adopt_chat_template(tokenizer, str(tmp_path)) == 1
    assert {"<|mine|>", "<|new|>"} <= set(tokenizer.all_special_tokens)


def test_a_path_that_is_nothing_is_an_error_that_names_it(tmp_path):
    for path in (str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(ValueError, match=f"chat_template_path: '{re.escape(path)}' is neither a file, nor a tok"):
            tokens.adopt_chat_template(make_tokenizer(), path)


def test_a_tokenizer_without_a_template_cannot_give_one(tmp_path):
    make_tokenizer(chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="chat_template_path: the tokenizer '.*' has no chat template; name one"):
        tokens.adopt_chat_template(make_tokenizer(), str(tmp_path))


# EOS and padding


def with_tokens(*names, eos="<|eos|>"):
    tokenizer = make_tokenizer(pad=None, eos=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    return tokenizer


def pad_of(tokenizer, eos_token=None, pad_token=None):
    tokens.set_special_tokens(tokenizer, eos_token, pad_token)
    return tokenizer.pad_token


def test_the_padding_token_is_the_one_asked_for_else_the_tokenizers_own():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<pad>"]})
    assert pad_of(tokenizer) == "<|padding|>"
    assert pad_of(tokenizer, pad_token="<|end|>") == "<|end|>"


@pytest.mark.parametrize("name", tokens.RESERVED_PAD_TOKENS)
def test_without_one_a_token_that_the_vocabulary_keeps_for_padding_is_used(name):
    assert pad_of(with_tokens(name)) == name


def test_the_most_specific_reserved_token_wins():
    assert pad_of(with_tokens(*reversed(tokens.RESERVED_PAD_TOKENS))) == "<|finetune_right_pad_id|>"
    assert tokens.RESERVED_PAD_TOKENS[0] == "<|finetune_right_pad_id|>"


def test_the_eos_is_taken_for_padding_only_where_nothing_else_is_kept_for_it():
    tokenizer = with_tokens("<|endoftext|>", "<|pad|>")
    assert pad_of(tokenizer, eos_token="<|endoftext|>") == "<|pad|>"
    assert pad_of(with_tokens("<|endoftext|>"), eos_token="<|endoftext|>") == "<|endoftext|>"
    assert pad_of(with_tokens("<|endoftext|>", "<|pad|>"), eos_token="<|pad|>") == "<|endoftext|>"
    assert pad_of(with_tokens("<|endoftext|>")) == "<|endoftext|>", "the EOS is another token here"


def test_without_any_reserved_token_padding_is_the_eos():
    tokenizer = with_tokens()
    assert pad_of(tokenizer) == "<|eos|>"
    assert pad_of(with_tokens(), eos_token="<|end|>") == "<|end|>"


def test_an_eos_that_is_asked_for_is_set():
    tokenizer = make_tokenizer()
    tokens.set_special_tokens(tokenizer, "<|end|>", None)
    assert tokens.encode_texts(tokenizer, ["a"])[0][-1] == tokenizer.convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_a_token_that_is_not_in_the_vocabulary_is_an_error_that_names_it(name):
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=f"^{name}: '<.none.>' is not in the vocabulary of"):
        tokens.set_special_tokens(tokenizer, **{"eos_token": None, "pad_token": None, name: "<|none|>"})
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|eos|>", "<|padding|>")


def test_neither_padding_nor_eos_is_an_error_with_the_cure():
    with pytest.raises(ValueError, match="neither a padding token nor an EOS .* set pad_token to a token"):
        pad_of(with_tokens(eos=None))


def test_padding_with_the_eos_warns_where_the_reward_is_read():
    tokenizer = with_tokens()
    tokens.set_special_tokens(tokenizer, None, None)
    with pytest.warns(
        UserWarning, match=rf"'<.eos.>' \(id {tokenizer.eos_token_id}\), so the reward is read at the la"
    ):
        tokens.warn_if_pad_is_eos(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens.warn_if_pad_is_eos(make_tokenizer())


# Fingerprint


def test_the_fingerprint_does_not_change_with_use_or_saving(tmp_path):
    tokenizer = make_tokenizer()
    before = tokens.fingerprint(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    tokenizer.padding_side = "left"
    assert tokens.fingerprint(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    assert tokens.fingerprint(type(tokenizer).from_pretrained(tmp_path)) == before


def test_the_fingerprint_changes_with_whatever_changes_ids():
    found = {
        tokens.fingerprint(tokenizer)
        for tokenizer in (
            make_tokenizer(),
            make_tokenizer(chat_template=BLOCK_TEMPLATE),
            make_tokenizer(eos="<|end|>"),
            make_tokenizer(bos="<|bos|>"),
            make_tokenizer(vocab_size=300),
            with_tokens("<|pad|>"),
        )
    }
    assert len(found) == 6


@pytest.mark.parametrize("bos", [None, "<|bos|>"])
def test_a_batch_gets_the_ids_that_each_text_gets_alone(bos):
    tokenizer = make_tokenizer(bos=bos)
    texts = ["The sky is blue.", "", "a<|end|>b <|padding|>", "Größe 😀\n\n", " the  cat "] * 3
    alone = [tokenizer(text)["input_ids"] for text in texts]
    # What an earlier call left behind must not cut or fill the batch.
    tokenizer(texts, padding="max_length", truncation=True, max_length=3)
    found = tokens.encode_texts(tokenizer, texts)
    assert [ids[:-1] for ids in found] == alone
    assert len({len(ids) for ids in found}) > 3


def test_a_tokenizer_with_a_way_of_its_own_is_asked_for_every_text():
    class Shouting(type(make_tokenizer())):
        def _encode_plus(self, text, *args, **kwargs):
            return super()._encode_plus([one.upper() for one in text], *args, **kwargs)

    plain = make_tokenizer()
    shouting = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token)
    texts = ["the sky", "a cat", "a dog"]
    assert tokens.encode_texts(shouting, texts) == tokens.encode_texts(plain, [text.upper() for text in texts])


# Templates that would not end.

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def rendered_by(template):
    return tokens.encode_conversations(make_tokenizer(template), [TALK], [None], [{}], lambda i: f"row {i}")


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    ],
)
def test_a_template_that_computes_for_too_long_is_ended(template, monkeypatch):
    monkeypatch.setattr(tokens, "TEMPLATE_SECONDS", 0.3)
    with pytest.raises(
        ValueError, match="row 0: the chat template computes for more than 0.3 seconds on this conversation"
    ):
        rendered_by(template)


def test_a_template_with_too_long_a_range_is_refused_by_the_sandbox():
    with pytest.raises(ValueError, match="row 0: the chat template refuses this conversation .*Range too big"):
        rendered_by("{% for i in range(10**9) %}x{% endfor %}")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 9 ** (9 ** 9) }}", "a power in line 1"),
        ("\n{{ messages|length ** 99999999 }}", "a power in line 2"),
        ("{{ 2 ** messages|length }}", "a power in line 1"),
        ("{{ 10**10**10**10 }}", "a power in line 1"),
        ("{{ 'x' * 1000000000 }}", "a product in line 1 with a factor above 1,000,000"),
        ("{{ 'x' * 10000 * 10000 }}", "a product in line 1"),
        ("{% for m in messages %}{% generation %}{{ 9 ** 99 }}{% endgeneration %}{% endfor %}", "a power in line 1"),
    ],
)
def test_a_sum_that_nothing_could_interrupt_is_not_begun(template, said):
    with pytest.raises(ValueError, match=f"the chat template of '.*' computes {said}"):
        rendered_by(template)


def test_a_template_with_ordinary_sums_is_rendered():
    template = "{{ 2 ** 3 }}{{ '-' * 10 }}{% for m in messages %}{{ loop.index * 2 }}{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(template)
    assert tokenizer.decode(rendered_by(template)[0]) == "8----------2hi4hello"


def test_a_template_that_writes_half_a_surrogate_pair_is_an_error():
    with pytest.raises(ValueError, match="row 0: the chat template writes half of a surrogate pair"):
        rendered_by("{{ '\\ud800' }}{{ messages[0].content }}")
