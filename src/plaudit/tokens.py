"""Texts and conversations to token ids: special tokens, the chat template, one batched tokenise."""

import functools
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from jinja2 import TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plaudit import hub, trust
from plaudit.converters import is_unicode
from plaudit.patience import Patience, TookTooLong
from plaudit.values import finite_number

# What vocabularies call the token that they keep for padding, most specific first.
RESERVED_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|endoftext|>")
# One conversation may take a chat template so many seconds of computing: a thousand times what a long one takes.
TEMPLATE_SECONDS = 10.0
# What a chat template may multiply by, and raise to the power of, in numbers that stand in it.
LARGEST_FACTOR, LARGEST_EXPONENT = 10**6, 16


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text with the tokenizer's special tokens, one BOS at most, ending in EOS if there is one."""
    sequences = _ids(tokenizer, list(texts), add_special_tokens=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for ids in sequences:
        # A text that was rendered before brings its own BOS, and the tokenizer has just added another.
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
    return sequences


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    rest: list[str] = []
    # Only where nobody has replaced how texts become ids.
    kind = type(tokenizer)
    if (kind.__call__, getattr(kind, "_encode_plus", None)) == (
        PreTrainedTokenizerFast.__call__,
        PreTrainedTokenizerFast._encode_plus,
    ):
        texts, rest = texts[:1], texts[1:]
    ids = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        # Masks of ones take a quarter of the time, so they are not asked for.
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if rest:
        # The first text has set the backend up. It gives the same ids a third faster where nobody asks for offsets.
        backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        ids += [one.ids for one in backend.encode_batch_fast(rest, add_special_tokens=add_special_tokens)]
    return ids


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    tools: Sequence[list | None],
    template_kwargs: Sequence[dict],
    where: Callable[[int], str],
) -> list[list[int]]:
    """Return the ids of each conversation as the chat template renders it, with nothing added.

    where: names the row of the i-th conversation in an error. Raises ValueError where the template refuses one.
    """
    require_small_sums(tokenizer)
    with Patience(TEMPLATE_SECONDS) as step:
        texts = list(_rendered(tokenizer, conversations, tools, template_kwargs, where, step))
    return _ids(tokenizer, texts, add_special_tokens=False)


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    tools: Sequence[list | None],
    template_kwargs: Sequence[dict],
    where: Callable[[int], str],
    step: Callable[[], None],
) -> Iterator[str]:
    """Yield each conversation as text. step: called before each one."""
    refuses_blocks = any(map(has_blocks, conversations)) and not takes_blocks(tokenizer)
    for i, conversation in enumerate(conversations):
        step()
        if refuses_blocks and has_blocks(conversation):
            raise ValueError(
                f"{where(i)}: a message's content is a list of blocks, but this tokenizer's chat template takes text "
                f"only; join the blocks' texts into one string, or set chat_template_path to a template that takes blocks"
            )
        try:
            text = render(tokenizer, conversation, tools[i], template_kwargs[i])
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template of '{tokenizer.name_or_path}' is not valid Jinja (line {error.lineno}: {error}); "
                "correct it, or set chat_template_path to another"
            ) from error
        except TookTooLong:
            raise ValueError(
                f"{where(i)}: the chat template computes for more than {TEMPLATE_SECONDS:g} seconds on this conversation of "
                f"{len(conversation)} messages; correct the template, or set chat_template_path to another"
            ) from None
        # A template is a program of the model's authors: it raises TemplateError, TypeError, KeyError and more.
        except Exception as error:
            raise ValueError(
                f"{where(i)}: the chat template refuses this conversation ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); its {len(conversation)} roles begin with "
                f"{[message.get('role') for message in conversation[:6]]}; change the messages or set "
                f"chat_template_path to a template that renders them"
            ) from error
        if not is_unicode(text):
            raise ValueError(
                f"{where(i)}: the chat template writes half of a surrogate pair, which is not Unicode text; correct the "
                "template, or the text that it is given"
            )
        yield text


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict], tools: list | None = None, kwargs: dict | None = None
) -> str:
    """Return the conversation as the chat template writes it, without a generation prompt."""
    text = tokenizer.apply_chat_template(
        conversation, tools=tools, tokenize=False, **{"add_generation_prompt": False, **(kwargs or {})}
    )
    return cast(str, text)


def require_small_sums(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError for a chat template with a power or a product that would not end, which nothing could interrupt."""
    template = tokenizer.chat_template
    for text in [template] if isinstance(template, str) else (template or {}).values():
        found = _large_sum(text)
        if found:
            raise ValueError(
                f"the chat template of '{tokenizer.name_or_path}' computes {found}; correct it, or set chat_template_path "
                "to another"
            )


@functools.cache
def _large_sum(template: str) -> str | None:
    """Return which power or product of a template is too large, None where none is or it is not Jinja."""
    # A tag of transformers' own, without which the rest parses as it does there.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    try:
        parsed = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except (TemplateSyntaxError, RecursionError, ValueError):
        # What is no Jinja, rendering says.
        return None
    for power in parsed.find_all(nodes.Pow):
        # Of a power of a power the left one is found too.
        exponents = [_number(one) for one in (power.right, *(each.right for each in power.left.find_all(nodes.Pow)))]
        if None in exponents or _size(exponents) > LARGEST_EXPONENT:
            return f"a power in line {power.lineno} whose exponent is no number up to {LARGEST_EXPONENT}"
    for product in parsed.find_all(nodes.Mul):
        if _size([_number(one) for one in product.find_all(nodes.Const)]) > LARGEST_FACTOR:
            return f"a product in line {product.lineno} with a factor above {LARGEST_FACTOR:,}"
    return None


def _number(node: nodes.Node) -> float | None:
    return finite_number(node.value) if isinstance(node, nodes.Const) else None


def _size(numbers: Iterable[float | None]) -> float:
    """Return the product of those that are numbers, by their sizes above 1."""
    return math.prod(max(1.0, abs(one)) for one in numbers if one is not None)


def has_blocks(conversation: list[dict]) -> bool:
    """Tell whether any message's content is a list of blocks instead of a text."""
    return any(isinstance(message.get("content"), list) for message in conversation)


def takes_blocks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the chat template writes a text block's text, rather than refusing it or printing the Python list."""
    try:
        text = render(tokenizer, [{"role": "user", "content": [{"type": "text", "text": "plauditprobe"}]}])
    except Exception:
        return False
    return "plauditprobe" in text and "'type'" not in text and '"type"' not in text


def require_chat_template(tokenizer: PreTrainedTokenizerBase, split: str) -> None:
    """Raise ValueError with the cure where conversations have no template to be written with."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"{split}: the rows are conversations, but the tokenizer '{tokenizer.name_or_path}' has no chat template; "
            "set chat_template_path to a Jinja file, a tokenizer's directory or a Hub id"
        )


def adopt_chat_template(tokenizer: PreTrainedTokenizerBase, path: str, trust_remote_code: bool = False) -> int:
    """Give the tokenizer the chat template at path and return how many special tokens it needed that were missing.

    path: a Jinja file (its text, nothing else), a tokenizer's directory, or a Hub id.
    """
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8") as file:
                tokenizer.chat_template = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"chat_template_path: '{path}' is no text file ({error}); name a Jinja template"
            ) from error
        return 0
    hub.need(path)
    try:
        source = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if refused := trust.refused_code(path, error, trust_remote_code, trust.TOKENIZER):
            raise refused from error
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"chat_template_path: '{path}' is neither a file, nor a tokenizer's directory, nor a Hub id that can be "
            f"loaded ({reason}); correct the path"
        ) from error
    if not source.chat_template:
        raise ValueError(f"chat_template_path: the tokenizer '{path}' has no chat template; name one that has")
    tokenizer.chat_template = source.chat_template
    known = tokenizer.get_vocab()
    special = [token for token in source.added_tokens_decoder.values() if token.special]
    missing = [
        token for token in special if token.content in _text(source.chat_template) and token.content not in known
    ]
    # A template names the end of a turn by variable as often as by text.
    named = [
        source.special_tokens_map.get(f"{name}_token")
        for name in ("bos", "eos")
        if f"{name}_token" in _text(source.chat_template)
    ]
    missing += [
        token for token in special if token.content in named and token.content not in known and token not in missing
    ]
    return (
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        if missing
        else 0
    )


def set_special_tokens(tokenizer: PreTrainedTokenizerBase, eos_token: str | None, pad_token: str | None) -> None:
    """Set the EOS and the padding token: what the user asks for, else the vocabulary's own, else a reserved one, else EOS.

    Raises ValueError for a token that is not in the vocabulary. Warns when padding and EOS are the same token.
    """
    vocabulary = tokenizer.get_vocab()
    for name, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is not None and token not in vocabulary:
            raise ValueError(
                f"{name}: '{token}' is not in the vocabulary of '{tokenizer.name_or_path}'; "
                "name a token that is, or add it to the tokenizer first"
            )
    if eos_token is not None:
        tokenizer.eos_token = eos_token
    if pad_token is not None:
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token is None:
        reserved = [token for token in RESERVED_PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token]
        tokenizer.pad_token = reserved[0] if reserved else tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer '{tokenizer.name_or_path}' has neither a padding token nor an EOS to stand in for it; "
            "set pad_token to a token of its vocabulary"
        )


def warn_if_pad_is_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn once that the reward is then read one token before the end."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.warn(
            f"the padding token is the EOS token '{tokenizer.eos_token}' (id {tokenizer.eos_token_id}), so the reward is "
            "read at the last token that is not EOS, one token before the end; a server that reads the last token will "
            "give other rewards. Set pad_token to another token of the vocabulary to read at the EOS.",
            UserWarning,
            stacklevel=3,
        )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides which ids a text gets, and of nothing else (padding, call history)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = {"vocabulary": tokenizer.get_vocab(), "init": repr(sorted(tokenizer.init_kwargs.items(), key=str))}
    parts: list[Any] = [type(tokenizer).__name__, state, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _text(chat_template: str | dict) -> str:
    """Return a tokenizer's template, or all its named templates, as one text."""
    return chat_template if isinstance(chat_template, str) else "\n".join(chat_template.values())
