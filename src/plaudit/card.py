"""The model card: what was trained on what, how good it is, and code that returns the trained reward."""

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from plaudit.redaction import redact

FIGURES = ("loss", "accuracy", "ties", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    path: what the snippet loads, a directory or a Hub id. kind: how the training rows were written ("standard",
    "conversational" or "tokenized"). base_values: for an adapter, the keyword arguments that its base needs, else empty.
    dtype: the type of an adapter's base in training. subfolder: where an adapter with a name of its own is. vocabulary_size: rows of the embeddings if they were grown, else None. evaluation: figures without their prefix, by set.
    """

    path: str
    model_name: str
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    kind: str = "conversational"
    base_values: Mapping[str, Any] = field(default_factory=dict)
    vocabulary_size: int | None = None
    dtype: str = "float32"
    subfolder: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class _Dumper(yaml.SafeDumper):
    """Writes each text on one line, so that no line of a name can be taken for the header's end."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the YAML header that the Hub reads.

    Names that come from data, such as those of evaluation sets, stay names: they make no markup, no link and no code.
    """
    parts = [
        f"---\n{yaml.dump(_header(facts), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)}---",
        f"# {_plain(facts.model_name)}",
        "A reward model: it gives one number to a conversation, higher for the answer that people prefer. "
        "Only differences between rewards of answers to the same prompt have a meaning.",
        "## Score with it",
        f"```python\n{snippet(facts)}```",
        _pipeline(facts),
        _other_tools(facts),
        "## Training",
        _table({"data set": ", ".join(facts.datasets) or None, **facts.data, **facts.training}),
        "The loss is the Bradley-Terry negative log-likelihood of the preferences "
        "([Bradley and Terry, 1952](https://www.jstor.org/stable/2334029)).",
    ]
    if facts.evaluation:
        parts += ["## Evaluation", _evaluation(facts.evaluation)]
    parts += ["## Versions", _table(facts.versions)]
    text = redact("\n\n".join(part for part in parts if part) + "\n")
    # A path may hold bytes that are no text.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def snippet(facts: CardFacts) -> str:
    """Return Python that prints a reward exactly as it was in training; it needs transformers (and peft) only."""
    lines = ["import torch"]
    if facts.base_values:
        lines.append("from peft import PeftModel")
    lines += ["from transformers import AutoModelForSequenceClassification, AutoTokenizer", ""]
    lines += [f"path = {_literal(facts.path)}", "tokenizer = AutoTokenizer.from_pretrained(path)"]
    if facts.base_values:
        # The base's weights as they were in training, computed with in float32.
        widened = "" if facts.dtype == "float32" else ".float()"
        keywords = "".join(f"    {name}={_literal(value)},\n" for name, value in facts.base_values.items())
        lines += [
            "base = AutoModelForSequenceClassification.from_pretrained(",
            f"    {_literal(facts.base_model)},\n{keywords}    dtype=torch.{facts.dtype},\n){widened}",
        ]
        if facts.vocabulary_size is not None:
            lines.append(f"base.resize_token_embeddings({facts.vocabulary_size})")
        subfolder = f", subfolder={_literal(facts.subfolder)}" if facts.subfolder else ""
        lines.append(f"model = PeftModel.from_pretrained(base, path{subfolder}).eval()")
    else:
        lines.append("model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()")
    return "\n".join([*lines, "", *_tokenize_lines(facts.kind), "", *_score_lines()]) + "\n"


def _tokenize_lines(kind: str) -> list[str]:
    if kind == "conversational":
        return [
            "conversation = [",
            '    {"role": "user", "content": "What color is the sky?"},',
            '    {"role": "assistant", "content": "It is blue."},',
            "]",
            "text = tokenizer.apply_chat_template(conversation, tokenize=False)",
            'ids = tokenizer(text, add_special_tokens=False)["input_ids"]',
        ]
    return [
        'text = "The sky is blue."',
        'ids = tokenizer(text)["input_ids"]',
        "if tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:",
        "    ids.append(tokenizer.eos_token_id)",
    ]


def _score_lines() -> list[str]:
    return [
        "with torch.no_grad():",
        "    reward = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, 0].item()",
        "print(reward)",
    ]


def _pipeline(facts: CardFacts) -> str:
    if facts.subfolder:
        return ""
    text = "a text that ends with EOS"
    if facts.kind == "conversational":
        # The template has written the special tokens; many tokenizers would add a second BOS.
        text = "a text that the chat template rendered, called with `add_special_tokens=False`"
    path = _literal(facts.path)
    if not facts.base_values:
        call = _code(f'transformers.pipeline("text-classification", model={path})')
        return f"{call} returns the same number as `score` for {text}: the saved configuration asks for the raw output, without a sigmoid."
    keywords = ", ".join(f"{json.dumps(name)}: {_literal(value)}" for name, value in facts.base_values.items())
    call = f'transformers.pipeline("text-classification", model={path}, tokenizer={path}, model_kwargs={{{keywords}}})'
    return (
        f"{_code(call)} returns the same number as `score` for {text}; the keyword arguments stand in for what the base's own "
        "configuration lacks."
    )


def _other_tools(facts: CardFacts) -> str:
    """Return how plaudit scores with and verifies the checkpoint, and how sentence-transformers opens it."""
    # What a reader may paste into a shell is quoted for it.
    path, word = _literal(facts.path), shlex.quote(" ".join(facts.path.split("\n")))
    item = "conversation" if facts.kind == "conversational" else "text"
    own = (
        f"{_code(f'plaudit.RewardModel.from_pretrained({path}).score([{item}])')} returns it too, after a replay of the golden "
        f"conversations in `reward_model.json`; {_code(f'plaudit verify {word}')} prints what the replay finds."
    )
    if facts.base_values:
        return (
            f"{own} `CrossEncoder` of sentence-transformers, and servers that take whole models only, cannot open an adapter: "
            f"{_code(f'plaudit merge {word} --output_dir DIRECTORY')} makes one model of it."
        )
    if facts.kind == "conversational":
        return f"{own} So does {_code(f'sentence_transformers.CrossEncoder({path}).predict([conversation])')}."
    call = f"sentence_transformers.CrossEncoder({path}).predict([(prompt, answer + tokenizer.eos_token)])"
    return f"{own} So does {_code(call)} of a decoder whose tokenizer has no chat template."


def _literal(value: Any) -> str:
    """Return a value as Python writes it, a text with JSON's quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _code(text: str) -> str:
    """Return a text as code within a line, which no backquote in it can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    marks = "`" * (longest + 1)
    return f"{marks} {text} {marks}"


def _plain(text: Any) -> str:
    """Return a text on one line in which Markdown and HTML see no markup and no address."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    line = re.sub(r"([\\`*\[\]])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"(?i)(?<=\bwww)\.", "&#46;", line.replace("://", "&#58;//"))


def _header(facts: CardFacts) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "peft" if facts.base_values else "transformers",
        "pipeline_tag": "text-classification",
        "tags": list(dict.fromkeys(facts.tags)),
        "model_name": facts.model_name,
    }
    if facts.base_model and _is_hub_id(facts.base_model):
        header["base_model"] = facts.base_model
    datasets = [name for name in facts.datasets if _is_hub_id(name)]
    if datasets:
        header["datasets"] = datasets
    return {**header, **{name: value for name, value in facts.extra.items() if value is not None}}


def _is_hub_id(name: str) -> bool:
    """Tell whether a name can be a repository's, to which the Hub links it; a local path, here or gone, cannot."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None and not os.path.exists(name)


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items() if value is not None]
    return "\n".join(["| what | value |", "|---|---|", *rows]) if rows else ""


def _evaluation(sets: Mapping[str, Mapping[str, float]]) -> str:
    names = [name for name in FIGURES if any(name in figures for figures in sets.values())]
    names += sorted({name for figures in sets.values() for name in figures} - set(names))
    head = [f"| set | {' | '.join(map(_cell, names))} |", "|---" * (len(names) + 1) + "|"]
    rows = [
        f"| {_cell(name)} | {' | '.join(_cell(figures.get(key)) for key in names)} |" for name, figures in sets.items()
    ]
    note = "`accuracy` counts a tie as wrong; `margin` is the mean reward difference; each pair is counted once."
    return "\n".join([*head, *rows, "", note])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        # A bar or a line break in a name would end the cell.
        return _plain(value).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
