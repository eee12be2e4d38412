"""The proof beside a checkpoint, `reward_model.json`: how texts are rendered, and golden conversations with their rewards.

Every save of the trainer makes one; diagnosis.py replays it. It holds none of the training data, only figures of it: the
golden conversations are the same few in every checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import accelerate
import datasets
import numpy as np
import peft
import torch
import transformers
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plaudit import __version__, tokens
from plaudit.adapters import active_adapter, file_beside
from plaudit.collate import Padded, TreeRow
from plaudit.model import max_positions
from plaudit.partitioned import whole_shape
from plaudit.prepare import SIDES
from plaudit.rewards import classifier_of, head_names, reads_last_token, rewards
from plaudit.values import brief

PROOF_FILE = "reward_model.json"
IMPORTED_IN = os.getpid()
FORMAT = 1
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MIN_GOLDEN = 8
# The longest golden conversation that is made of drawn ids, where texts cannot be rendered.
DRAWN_TOKENS = 24
# The reference sample: at most so many pairs and tokens, so that a save costs no more than a few training steps.
SAMPLED_PAIRS, SAMPLED_TOKENS = 64, 16_384
HASHED_PAIRS = 10_000
# What weights may be, and how many bits they then have.
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "quantized": 4}
VALUES_HASHED = 64
# Prompts and answers of many kinds: two answers to one prompt, several turns, code, other scripts, one word.
GOLDEN_TURNS = (
    ("What color is the sky?", "It is blue."),
    ("What color is the sky?", "I will not talk about that, because you should look for yourself."),
    ("Name three prime numbers.", "2, 3 and 5. Each has exactly two divisors, one and itself."),
    ("Name three prime numbers.", "4, 6 and 9."),
    ("Write a Python function that doubles a number.", "def double(x):\n    return 2 * x"),
    ("Is the Earth flat?", "No."),
    ("Wie spät ist es? 今何時ですか", "Ich weiß es nicht, denn ich habe keine Uhr. 分かりません。"),
    ("Hello!", "Hello, how can I help?", "Tell me a joke.", "Why did the chicken cross the road? To get to the other side."),
    ("I feel sad today.", "I am sorry to hear that. Do you want to tell me what happened?"),
    ("How do I boil an egg?", "Put it into boiling water, wait eight minutes, then cool it under the tap.\n\n1. Boil\n2. Wait\n3. Cool"),
    ("Compute 17 * 23.", "17 * 23 = 391", "Are you sure?", "Yes: 17 * 20 = 340, 17 * 3 = 51, and 340 + 51 = 391."),
    ("Give me a synonym of 'happy'.", "glad"),
)  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """A conversation, or a text, that the reward is known of. Drawn ids have neither."""

    token_ids: list[int]
    reward: float
    messages: list[dict[str, str]] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Proof:
    """What reward_model.json holds; docs/proof.md describes each entry.

    rendering: how a conversation becomes token ids, and where the reward is read. model: class, precision and
    fingerprints of the weights. reward: mean, standard deviation and quantiles over a sample of the training data.
    normalisation: `mean` and `scale`; (reward - mean) / scale has mean 0 and standard deviation 1 on that sample.
    """

    rendering: Mapping[str, Any]
    model: Mapping[str, Any]
    reward: Mapping[str, Any]
    normalisation: Mapping[str, float]
    golden: Sequence[Golden]
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def golden_rewards(self) -> np.ndarray:
        """The golden conversations' rewards, float64, shape (num_golden,)."""
        return np.array([one.reward for one in self.golden])


@dataclass(frozen=True)
class Contract:
    """How the training data were rendered: what a score must do the same way.

    kind: "standard", "conversational" or "tokenized". template_kwargs: variables of the chat template that all rows had.
    max_length: the longest sequence trained on, in tokens, None for no limit.
    """

    kind: str
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None


def make_proof(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    contract: Contract,
    sample: Sequence[Sequence[int]],
    data: Mapping[str, Any] | None = None,
    layout: Padded | TreeRow | None = None,
    precision: str | None = None,
) -> Proof:
    """Return the proof of a model as it is now, without the fingerprints of its weights.

    sample: token ids of a few training sequences, whose rewards are summed up. data: what identifies the training data.
    layout: how the sample's batches are made; None for padded ones. precision: what the model computes in, where that is
    not its weights' own, such as "bfloat16" under FSDP.
    """
    pad_token_id = getattr(tokenizer, "pad_token_id", None) or 0
    golden = golden_sequences(model, tokenizer, contract)
    with evaluating(model):
        values = lone_rewards(model, [one.token_ids for one in golden], pad_token_id)
        golden = [dataclasses.replace(one, reward=float(value)) for one, value in zip(golden, values, strict=True)]
        spread = sample_rewards(model, sample, layout or Padded(pad_token_id)) if sample else values
    if not (np.isfinite(values).all() and np.isfinite(spread).all()):
        raise ValueError(
            "the rewards of the weights to be saved are not finite, so they would have no proof; look at the loss, lower the "
            "learning rate, and go on from the last checkpoint"
        )
    mean, std = float(spread.mean()), float(spread.std())
    return Proof(
        rendering=_rendering(model, tokenizer, contract, golden),
        model=_model_facts(model, precision),
        reward={
            "mean": mean,
            "std": std,
            "quantiles": {
                f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(spread, QUANTILES), strict=True)
            },
            "num_sequences": len(spread),
        },
        # Where all rewards of the sample are one there is nothing to scale by.
        normalisation={"mean": mean, "scale": std if std > 0 else 1.0},
        golden=golden,
        data=dict(data or {}),
        versions=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """Return the versions of what a reward depends on, plaudit's own among them."""
    libraries = (transformers, torch, datasets, accelerate, peft)
    return {**{module.__name__: module.__version__ for module in libraries}, "plaudit": __version__}


def sample_of(dataset: Dataset | IterableDataset) -> list[list[int]]:
    """Return both sides of a few prepared pairs, spread over the data set, or the first ones of a stream."""
    if isinstance(dataset, IterableDataset):
        pairs = list(dataset.take(SAMPLED_PAIRS))
    else:
        picked = np.linspace(0, len(dataset) - 1, min(SAMPLED_PAIRS, len(dataset))).astype(int)
        pairs = list(dataset.select(picked))
    sequences: list[list[int]] = []
    for pair in pairs:
        sides = [list(pair["chosen_ids"]), list(pair["rejected_ids"])]
        if sequences and sum(map(len, [*sequences, *sides])) > SAMPLED_TOKENS:
            break
        sequences += sides
    return sequences


def data_facts(dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """Return what identifies prepared training data: the number of pairs, and a hash of the token ids of many of them."""
    if isinstance(dataset, IterableDataset):
        return {"num_pairs": None, "sha256": None, "streamed": True}
    picked = np.linspace(0, len(dataset) - 1, min(HASHED_PAIRS, len(dataset))).astype(int)
    digest = hashlib.sha256()
    for batch in dataset.select(picked).select_columns(list(SIDES)).with_format("numpy").iter(batch_size=1_000):
        for name in SIDES:
            for ids in batch[name]:
                digest.update(np.asarray(ids, dtype="<i4").tobytes() + b"|")
    return {"num_pairs": len(dataset), "sha256": digest.hexdigest(), "num_hashed": len(picked)}


def golden_sequences(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, contract: Contract) -> list[Golden]:
    """Return the golden conversations as this tokenizer renders them, rewards still 0: at least MIN_GOLDEN.

    Those that its template refuses are left out; where too few are left, or the tokenizer does not know their words, ids
    are drawn instead.
    """
    found = [
        one
        for one in _rendered(tokenizer, contract)
        if len(one.token_ids) <= (max_positions(model) or len(one.token_ids))
    ]
    unknown: Any = getattr(tokenizer, "unk_token_id", None)
    told_apart = {tuple(one.token_ids) for one in found if one.token_ids.count(unknown) < len(one.token_ids) / 2}
    if len(told_apart) >= MIN_GOLDEN:
        return found
    drawn = drawn_sequences(model, tokenizer, MIN_GOLDEN)
    return [*found[:MIN_GOLDEN], *(Golden(ids, 0.0) for ids in drawn)]


def _rendered(tokenizer: PreTrainedTokenizerBase | None, contract: Contract) -> Iterator[Golden]:
    if tokenizer is None:
        return
    kwargs = dict(contract.template_kwargs)
    is_conversational = contract.kind != "standard" and bool(tokenizer.chat_template)
    for turns in GOLDEN_TURNS:
        if not is_conversational:
            text = "\n\n".join(turns)
            yield Golden(tokens.encode_texts(tokenizer, [text])[0], 0.0, text=text)
            continue
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        # A template that refuses this one may take the next.
        with contextlib.suppress(ValueError):
            ids = tokens.encode_conversations(tokenizer, [messages], [None], [kwargs], lambda _: "golden")[0]
            if ids:
                yield Golden(ids, 0.0, messages=messages)


def drawn_sequences(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, count: int) -> list[list[int]]:
    """Return so many sequences of ids drawn from the model's vocabulary, special tokens left out, always the same."""
    embeddings = getattr(classifier_of(model), "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None) or len(tokenizer or range(100))
    special = set(getattr(tokenizer, "all_special_ids", ()))
    generator = np.random.default_rng(0)
    known = [token for token in range(size) if token not in special] or list(range(size))
    longest = min(DRAWN_TOKENS, max_positions(model) or DRAWN_TOKENS)
    lengths = generator.integers(max(1, longest // 3), longest + 1, size=count)
    return [generator.choice(known, size=int(length)).tolist() for length in lengths]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model as a score sees it: no dropout, no gradients, and outside the autocast that training wraps it in."""
    if os.getpid() != IMPORTED_IN:
        # A fork, as `datasets.map` makes, has its parent's pool of threads without the threads, and would wait for them.
        torch.set_num_threads(1)
    modes = [(module, module.training) for module in model.modules()]
    # accelerate puts autocast into the forward itself, where an outer context cannot undo it.
    wrapped = [(module, vars(module)["forward"]) for module in model.modules() if "_original_forward" in vars(module)]
    model.eval()
    for module, _ in wrapped:
        module.forward = vars(module)["_original_forward"]
    try:
        device = next((each.device.type for each in model.parameters()), "cpu")
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, forward in wrapped:
            module.forward = forward
        for module, is_training in modes:
            module.training = is_training


def lone_rewards(
    model: nn.Module, sequences: Iterable[Sequence[int]], pad_token_id: int, read_at: int | None = None
) -> np.ndarray:
    """Return each sequence's reward, computed alone and without padding, float64, shape (num_sequences,).

    read_at: the place at which to read it, instead of where it is usually read (decoders only).
    """
    device = next(model.parameters()).device
    found = []
    for ids in sequences:
        batch: dict[str, Any] = Padded(pad_token_id)([ids])
        if read_at is not None:
            batch["read_out"] = torch.tensor([read_at])
        found.append(rewards(model, {name: value.to(device) for name, value in batch.items()}))
    return torch.cat(found).double().cpu().numpy()


def sample_rewards(model: nn.Module, sequences: Sequence[Sequence[int]], layout: Padded | TreeRow) -> np.ndarray:
    """Return the rewards of sequences in batches of a few, float64, shape (num_sequences,)."""
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for start in range(0, len(sequences), 8):
        batch = layout(sequences[start : start + 8])
        found.append(rewards(model, {name: value.to(device) for name, value in batch.items()}))
    return torch.cat(found).double().cpu().numpy()


def _rendering(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, contract: Contract, golden: Sequence[Golden]
) -> dict[str, Any]:
    reads_last = reads_last_token(model)
    facts: dict[str, Any] = {
        "kind": contract.kind,
        "template_kwargs": {"add_generation_prompt": False, **contract.template_kwargs},
        "max_length": contract.max_length,
        "read_out": "the last token whose id is not pad_token_id" if reads_last else "the model's own head",
    }
    if tokenizer is None:
        return facts
    rendered = [one.token_ids for one in golden if one.messages or one.text]
    return facts | {
        "tokenizer_sha256": tokens.fingerprint(tokenizer),
        "chat_template_sha256": template_fingerprint(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "last_token_ids": _common_end(rendered),
    }


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a hash of the tokenizer's chat template, None where it has none."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _common_end(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids that all sequences end with."""
    ends: list[int] = []
    for column in zip(*(reversed(ids) for ids in sequences), strict=False):
        if len(set(column)) > 1:
            break
        ends.insert(0, column[0])
    return ends


def _model_facts(model: nn.Module, precision: str | None) -> dict[str, Any]:
    classifier, names = classifier_of(model), head_names(model)
    facts: dict[str, Any] = {
        "class": type(classifier).__name__,
        "dtype": dtype_name(classifier),
        "computed_in": precision or dtype_name(classifier),
        "head": names,
        "head_dtype": str(
            next((each.dtype for name in names for each in getattr(classifier, name).parameters()), None)
        ).removeprefix("torch."),
    }
    inner = _peft_of(model)
    if inner is not None:
        config = inner.peft_config[active_adapter(inner)]
        facts["adapter"] = str(getattr(config.peft_type, "value", config.peft_type))
        facts["base_model"] = config.base_model_name_or_path
    return facts


def dtype_name(model: nn.Module) -> str:
    """Return the precision of most of a model's weights, such as "bfloat16", or "quantized"."""
    if getattr(model, "is_quantized", False):
        return "quantized"
    counts: Counter[torch.dtype] = Counter()
    for each in model.parameters():
        if each.is_floating_point():
            counts[each.dtype] += whole_shape(each).numel()
    name = str(max(counts, key=lambda dtype: counts[dtype], default=torch.float32)).removeprefix("torch.")
    return name if name in BITS else "quantized"


def _peft_of(model: nn.Module) -> PeftModel | None:
    return next((module for module in model.modules() if isinstance(module, PeftModel)), None)


def weight_fingerprints(
    model: nn.Module, state_dict: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | None = None
) -> dict[str, str]:
    """Return a hash of each part's weights: `head`, `body`, and `adapter` where there is one.

    Of every tensor its shape and up to 64 values spread over it, whatever it is called, so that wrappers make no
    difference. state_dict: the whole weights, or their names and values one by one, where the model holds only its share
    of them.
    """
    inner = _peft_of(model)
    prefix = getattr(getattr(inner, "base_model", None), "prefix", None) if inner is not None else None
    heads = set(head_names(model))
    parts: dict[str, list[bytes]] = {"head": [], "body": [], **({} if inner is None else {"adapter": []})}
    weights = model.state_dict() if state_dict is None else state_dict
    for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
        words = name.split(".")
        # What a module that an adapter brings has replaced is not used.
        is_buffer = tensor.dtype in (torch.int64, torch.int32, torch.bool)
        if "original_module" in words or is_buffer or not tensor.numel():
            continue
        if heads & set(words):
            part = "head"
        elif inner is not None and (
            "modules_to_save" in words or (prefix and any(word.startswith(prefix) for word in words))
        ):
            part = "adapter"
        else:
            part = "body"
        parts[part].append(_digest(tensor))
    return {part: hashlib.sha256(b"".join(sorted(digests))).hexdigest() for part, digests in parts.items()}


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    count = min(VALUES_HASHED, len(flat))
    # In integers: floating point would round the last place beyond the end of a large tensor, and elsewhere by the device.
    picked = flat[torch.arange(count, device=flat.device) * (len(flat) - 1) // max(1, count - 1)]
    values = picked.float().cpu().numpy().tobytes()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + values).digest()


def write_proof(proof: Proof, folder: str, fingerprints: Mapping[str, str]) -> None:
    """Write the proof of a checkpoint beside it. fingerprints: of the weights that were saved."""
    values = {"format": FORMAT, **dataclasses.asdict(proof)}
    values["model"] = {**values["model"], "fingerprints": dict(fingerprints)}
    golden = [{k: v for k, v in one.items() if v is not None} for one in values.pop("golden")]
    lines = ",\n  ".join(json.dumps(one, ensure_ascii=False, allow_nan=False) for one in golden)
    # A golden conversation a line: its ids one below the other would be a thousand lines.
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    with open(os.path.join(folder, PROOF_FILE), "w", encoding="utf-8") as file:
        file.write(f'{text},\n "golden": [\n  {lines}\n ]\n}}\n')


def read_proof(name: str, **hub: Any) -> Proof | None:
    """Return the proof in a directory or at a Hub id, None where there is none.

    Raises ValueError for a file that is broken, or of a newer plaudit.
    """
    file = file_beside(name, PROOF_FILE, **hub)
    if file is None:
        return None
    try:
        with open(file, encoding="utf-8") as stream:
            values = json.load(stream)
        if values["format"] > FORMAT:
            raise ValueError(f"it has format {values['format']}, and this plaudit reads {FORMAT}; use a newer plaudit")
        proof = Proof(
            **{each.name: values[each.name] for each in dataclasses.fields(Proof) if each.name != "golden"},
            golden=[Golden(**one) for one in values["golden"]],
        )
        _check(proof)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"'{name}': {PROOF_FILE} cannot be used ({type(error).__name__}: {error}); restore the file, or delete it, "
            "without which the rewards cannot be checked"
        ) from error
    return proof


def _check(proof: Proof) -> None:
    """Raise an error for values that a replay would stumble over."""
    numbers = [*proof.golden_rewards, proof.reward["std"], proof.normalisation["mean"], proof.normalisation["scale"]]
    if not proof.golden or not all(np.isfinite(numbers)):
        raise ValueError("it has no golden conversations, or figures that are not finite numbers")
    longest = proof.rendering["max_length"]
    if proof.normalisation["scale"] <= 0 or proof.reward["std"] < 0 or not (longest is None or type(longest) is int):
        raise ValueError("normalisation.scale, reward.std or rendering.max_length is impossible")
    for one in proof.golden:
        if not one.token_ids or not all(type(token) is int and token >= 0 for token in one.token_ids):
            raise ValueError("a golden conversation has no token ids")
        if not _is_text(one.text) or not _are_messages(one.messages):
            raise ValueError("a golden conversation's text or messages are none")
    for name, kind in (("kind", str), ("template_kwargs", dict)):
        if not isinstance(proof.rendering[name], kind):
            raise ValueError(f"rendering.{name} is {brief(proof.rendering[name])}")
    for name in ("dtype", "computed_in"):
        if proof.model[name] not in BITS:
            raise ValueError(f"model.{name} is {proof.model[name]!r}")
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if not (proof.rendering.get(name) is None or type(proof.rendering[name]) is int):
            raise ValueError(f"rendering.{name} is {brief(proof.rendering[name])}")
    for name in ("data", "versions", "reward", "normalisation", "model"):
        if not isinstance(getattr(proof, name), dict):
            raise ValueError(f"{name} is no object")
    # What is written beside a merged model must be text that a file can hold.
    json.dumps(dataclasses.asdict(proof), ensure_ascii=False, allow_nan=False).encode()


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_messages(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
