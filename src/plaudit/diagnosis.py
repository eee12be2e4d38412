"""The replay of a proof: whether golden conversations still get their rewards, and where not, the likely cause."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit import tokens
from plaudit.model import IDENTITY, vocabulary_size
from plaudit.prepare import read_out
from plaudit.proof import (
    BITS,
    Golden,
    Proof,
    dtype_name,
    evaluating,
    lone_rewards,
    template_fingerprint,
    weight_fingerprints,
)
from plaudit.rewards import classifier_of, reads_last_token
from plaudit.values import brief

# How far a golden reward may be off, as a share of the reference sample's standard deviation.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 0.05, "float16": 0.05, "quantized": 0.05}
# What rounding alone does to a reward, as a share of the largest golden one: matters where the sample's rewards are close.
ROUNDING = {"float64": 2e-6, "float32": 2e-6, "bfloat16": 0.008, "float16": 0.001, "quantized": 0.008}
# Lower precision than recorded is no fault up to this many standard deviations, while the order of the rewards is about kept.
COARSE, NEAR_ORDER = 0.5, 0.8
# A cause explains rewards where, with it, what is left is below this share of the standard deviation...
EXPLAINED = 0.05
# ... and below this share of what there is without it.
BETTER = 0.2


@dataclass(frozen=True)
class Verification:
    """What a replay found.

    largest_difference, tolerance: in units of the reward. in_deviations: the largest difference in standard deviations of
    the reference sample. rank_agreement: the share, 0 to 1, of pairs of golden conversations in the recorded order.
    causes: why the rewards differ, likeliest first. notes: what is not as recorded, but no fault.
    """

    num_golden: int
    largest_difference: float
    tolerance: float
    in_deviations: float
    rank_agreement: float
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the rewards, and what other tools make of them, are the recorded ones."""
        return not self.causes

    def __str__(self) -> str:
        lines = [
            f"golden conversations  {self.num_golden}",
            f"largest difference    {self.largest_difference:.3g} ({self.in_deviations:.3g} standard deviations; "
            f"allowed: {self.tolerance:.3g})",
            f"rank agreement        {self.rank_agreement:.1%} of pairs in the recorded order",
            *(f"note                  {note}" for note in self.notes),
            *(f"likely cause          {cause}" for cause in self.causes),
            "verified: the rewards are the recorded ones" if self.passed else "NOT verified",
        ]
        return "\n".join(lines)


def verify(
    proof: Proof,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    served: Sequence[float] | None = None,
) -> Verification:
    """Replay the golden conversations and compare with what was recorded.

    served: the golden conversations' rewards from elsewhere, such as a server, in the proof's order; the model then
    tells what was done to them. Raises ValueError for another number of them than there are golden conversations.
    """
    recorded = proof.golden_rewards
    with evaluating(model):
        if served is None:
            precision = dtype_name(classifier_of(model))
            observed, causes = _replayed(proof, model, tokenizer)
        else:
            precision, causes = proof.model["dtype"], []
            observed = _checked(served, len(recorded))
        difference = float(np.nan_to_num(np.abs(observed - recorded), nan=np.inf).max())
        allowed, agreement = tolerance(proof, precision), _rank_agreement(recorded, observed)
        differs = difference > allowed
        if differs and is_lower(precision, proof) and agreement >= NEAR_ORDER:
            # Half precision asked for is a warning, also where it is coarse beside rewards that lie close together.
            differs = difference > COARSE * proof.reward["std"]
        if differs and served is None:
            causes += _weight_causes(proof, model)
        if differs and not causes:
            causes = list(_guesses(proof, model, tokenizer, observed))
    deviation = proof.reward["std"]
    return Verification(
        num_golden=len(recorded),
        largest_difference=difference,
        tolerance=allowed,
        in_deviations=difference / deviation if deviation else float("inf" if difference else 0.0),
        rank_agreement=agreement,
        causes=tuple(causes),
        notes=tuple(_notes(proof, precision, difference, allowed)),
    )


def _replayed(
    proof: Proof, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[np.ndarray, list[str]]:
    """Return the golden rewards of this checkpoint now, and what of its config and rendering is not as recorded.

    Where its tokenizer cannot render the golden conversations for this model, the rewards are of the recorded ids.
    """
    pad_token_id = getattr(tokenizer, "pad_token_id", None) or 0
    recorded_ids = [list(one.token_ids) for one in proof.golden]
    size = vocabulary_size(model)
    causes = list(_config_causes(proof, model))
    try:
        own_ids = render(proof, tokenizer)
    except ValueError as error:
        return lone_rewards(model, recorded_ids, pad_token_id), [*causes, f"another template: {error}"]
    if tokenizer is not None:
        causes += _rendering_causes(proof, tokenizer, own_ids)
    elif "tokenizer_sha256" in proof.rendering:
        causes.append("the tokenizer is missing; restore its files")
    if size is not None and max(map(max, own_ids)) >= size:
        causes.append(f"another tokenizer: it gives ids that the model's vocabulary of {size:,} does not have")
        own_ids = recorded_ids
    return lone_rewards(model, own_ids, pad_token_id), causes


def read_rewards(file: str) -> list[float]:
    """Return the numbers in a text file, one a line, or a JSON list of them. Raises ValueError naming the line."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not UTF-8 text ({error}); give one reward a line") from None
    lines = text[1:-1].split(",") if text.startswith("[") else text.splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(float(line))
        except ValueError:
            raise ValueError(
                f"'{file}', line {number}: {brief(line.strip())} is not a number; give one reward a line"
            ) from None
    return found


def is_lower(precision: str, proof: Proof) -> bool:
    """Tell whether a precision, such as "bfloat16", is lower than the recorded one."""
    return BITS[precision] < BITS[proof.model["dtype"]]


def tolerance(proof: Proof, precision: str) -> float:
    """Return how far a golden reward may be off in a precision, or in the one it was computed in if that is lower, in units of
    the reward."""
    name = min(precision, proof.model["computed_in"], key=lambda name: BITS[name])
    largest = float(np.abs(proof.golden_rewards).max())
    return max(TOLERANCE[name] * proof.reward["std"], ROUNDING[name] * largest)


def render(proof: Proof, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """Return the golden conversations' ids as the tokenizer renders them now; the recorded ones where there is no text."""
    kwargs = dict(proof.rendering["template_kwargs"])
    out: list[list[int]] = []
    for one in proof.golden:
        if tokenizer is None:
            out.append(list(one.token_ids))
        elif one.messages is not None and tokenizer.chat_template:
            out += tokens.encode_conversations(tokenizer, [one.messages], [None], [kwargs], _where)
        elif one.text is not None:
            out += tokens.encode_texts(tokenizer, [one.text])
        else:
            out.append(list(one.token_ids))
    return out


def _where(_: int) -> str:
    return "a golden conversation of reward_model.json"


def _checked(served: Sequence[float], wanted: int) -> np.ndarray:
    if len(served) != wanted:
        raise ValueError(
            f"{len(served)} rewards were given for the {wanted} golden conversations of reward_model.json; give one each, "
            "in their order"
        )
    return np.asarray(served, dtype=np.float64)


def _rank_agreement(recorded: np.ndarray, observed: np.ndarray) -> float:
    pairs = [(i, j) for i, j in combinations(range(len(recorded)), 2) if recorded[i] != recorded[j]]
    agree = [
        (recorded[i] > recorded[j]) == (observed[i] > observed[j]) and observed[i] != observed[j] for i, j in pairs
    ]
    return float(np.mean(agree)) if agree else 1.0


def _notes(proof: Proof, precision: str, difference: float, allowed: float) -> Iterator[str]:
    if is_lower(precision, proof):
        coarse = ", which is coarse beside the differences of its rewards" if difference > allowed else ""
        yield f"lower precision: the weights are {precision}, and {proof.model['dtype']} was recorded{coarse}"


def _config_causes(proof: Proof, model: nn.Module) -> Iterator[str]:
    config: Any = getattr(classifier_of(model), "config", None)
    if config is None:
        return
    problem = getattr(config, "problem_type", None)
    if problem != "regression":
        yield (
            f"sigmoid applied: the config's problem_type is {problem!r} instead of 'regression', so pipelines put a "
            "sigmoid on the reward; set it"
        )
    activation = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    # An adapter has no config of its own to hold it.
    if activation != IDENTITY and "adapter" not in proof.model:
        yield f"sigmoid applied: the config's sentence_transformers.activation_fn is {activation!r}; set {IDENTITY!r}"
    recorded, text = proof.rendering.get("pad_token_id"), config.get_text_config()
    if recorded is not None and reads_last_token(model) and text.pad_token_id != recorded:
        is_eos = text.pad_token_id == proof.rendering.get("eos_token_id")
        early = "read one token early (pad == eos)" if is_eos else "read at another token"
        yield (
            f"{early}: the config's pad_token_id is {text.pad_token_id}, and {recorded} was recorded; the reward is read "
            "at the last token that is not padding"
        )


def _rendering_causes(proof: Proof, tokenizer: PreTrainedTokenizerBase, own_ids: list[list[int]]) -> Iterator[str]:
    changed = [(one, ids) for one, ids in zip(proof.golden, own_ids, strict=True) if list(one.token_ids) != ids]
    if template_fingerprint(tokenizer) != proof.rendering.get("chat_template_sha256"):
        what = _bos_change(proof, changed)
        yield (
            "another template: the tokenizer's chat template is not the recorded one" + (f"; it {what}" if what else "")
        )
    elif changed:
        what = _bos_change(proof, changed)
        if what:
            yield f"the tokenizer {what}"
        else:
            one, ids = changed[0]
            yield (
                f"another tokenizer: {len(changed)} of {len(own_ids)} golden conversations get other token ids, such as "
                f"{ids[:6]} … {ids[-3:]} for {list(one.token_ids)[:6]} … {list(one.token_ids)[-3:]}"
            )


def _bos_change(proof: Proof, changed: Sequence[tuple[Golden, list[int]]]) -> str | None:
    bos, eos = proof.rendering.get("bos_token_id"), proof.rendering.get("eos_token_id")
    if not changed:
        return None
    if all(ids[1:] == one.token_ids for one, ids in changed):
        kind = "a second BOS" if changed[0][0].token_ids[:1] == changed[0][1][:1] == [bos] else "an extra BOS"
        return f"puts {kind} (id {changed[0][1][0]}) in front"
    if all(ids == one.token_ids[1:] for one, ids in changed):
        return f"leaves out the first token (id {changed[0][0].token_ids[0]}), which was there in training"
    if all([*ids, eos] == one.token_ids for one, ids in changed):
        return "leaves out the end token (EOS), which was there in training"
    if all(ids == [*one.token_ids, eos] for one, ids in changed):
        return "adds an end token (EOS) that was not there in training"
    return None


def _weight_causes(proof: Proof, model: nn.Module) -> Iterator[str]:
    """Yield which of the weights are not those recorded, where the precision allows to tell."""
    recorded = proof.model.get("fingerprints", {})
    if dtype_name(classifier_of(model)) != proof.model["dtype"]:
        return
    found = weight_fingerprints(model)
    other = [part for part in ("adapter", "body", "head") if part in recorded and found.get(part) != recorded[part]]
    if not other:
        return
    if _are_rounded(model, proof.model["dtype"]):
        yield "lower precision: the weights were rounded to bfloat16 or float16 and stored as float32"
    elif other == ["head"]:
        yield "lost or foreign head: the head's weights are not the recorded ones, all others are"
    elif "body" in other:
        what = "base model" if "adapter" in recorded else "model"
        also = ", nor are the head's" if "head" in other else ""
        yield f"another {what}: its weights are not the recorded ones{also}"
    else:
        also = ", nor are the head's, which come with it" if "head" in other else ""
        yield f"wrong adapter: the adapter's weights are not the recorded ones{also}"


def _are_rounded(model: nn.Module, dtype: str) -> bool:
    """Tell whether all weights of a float32 model are numbers of half precision."""
    if dtype != "float32":
        return False
    for half in (torch.bfloat16, torch.float16):
        if all(torch.equal(each, each.to(half).float()) for each in model.parameters() if each.is_floating_point()):
            return True
    return False


def _guesses(
    proof: Proof, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, observed: np.ndarray
) -> Iterator[str]:
    """Yield the cause that explains the rewards best, by doing to the recorded conversations what may have been done."""
    recorded, deviation = proof.golden_rewards, proof.reward["std"]
    if not np.isfinite(observed).all():
        yield "rewards that are not finite numbers: broken weights, or a precision too low for this model"
        return
    if len(np.unique(observed)) == 1 < len(np.unique(recorded)):
        yield f"all rewards are {observed[0]:g}, as a softmax over one output makes them"
        return
    without = np.abs(observed - recorded).max()
    left = {
        cause: float(np.abs(rewards - observed).max())
        for cause, rewards in _experiments(proof, model, tokenizer)
        if np.isfinite(rewards).all()
    }
    best = min(left, key=lambda cause: left[cause], default=None)
    if best is not None and left[best] <= min(EXPLAINED * deviation, BETTER * without):
        yield best
    elif without <= COARSE * deviation and _rank_agreement(recorded, observed) >= NEAR_ORDER:
        yield "lower precision: all rewards are near the recorded ones, as half precision or quantized weights make them"
    else:
        yield from _line(recorded, observed, deviation)


def _line(recorded: np.ndarray, observed: np.ndarray, deviation: float) -> Iterator[str]:
    """Yield that the rewards were scaled and shifted, if a line through them fits; that nothing explains them otherwise."""
    scale, shift = np.polyfit(recorded, observed, 1) if len(np.unique(recorded)) > 1 else (0.0, 0.0)
    if np.abs(scale * recorded + shift - observed).max() <= EXPLAINED * deviation * scale:
        yield f"scaled and shifted: each reward is {scale:.4g} times the recorded one, plus {shift:.4g}"
        return
    yield "unknown: neither sigmoid, read-out, BOS, end token, scale nor precision explains it; another model, or another text"


def _experiments(
    proof: Proof, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[str, np.ndarray]]:
    recorded, pad = proof.golden_rewards, getattr(tokenizer, "pad_token_id", None) or 0
    sequences = [list(one.token_ids) for one in proof.golden]
    bos, eos = proof.rendering.get("bos_token_id"), proof.rendering.get("eos_token_id")
    yield "sigmoid applied to the reward", 1 / (1 + np.exp(-recorded))
    normal = proof.normalisation
    yield "normalised by the recorded mean and scale", (recorded - normal["mean"]) / normal["scale"]
    if reads_last_token(model):
        usual = [read_out(ids, classifier_of(model).config.get_text_config().pad_token_id) for ids in sequences]
        ways = {
            "read one token early (pad == eos, or no end token)": [max(0, at - 1) for at in usual],
            "read one token late, at the last token (in training pad == eos, so it was read before)": [
                len(ids) - 1 for ids in sequences
            ],
        }
        for cause, places in ways.items():
            if places != usual:
                found = [lone_rewards(model, [ids], pad, at)[0] for ids, at in zip(sequences, places, strict=True)]
                yield cause, np.array(found)
    first = {ids[0] for ids in sequences}
    extra = bos if bos is not None else (eos if eos is not None else pad)
    yield f"an extra BOS (id {extra}) in front", lone_rewards(model, [[extra, *ids] for ids in sequences], pad)
    if first == {bos} and all(len(ids) > 1 for ids in sequences):
        yield "no BOS in front", lone_rewards(model, [ids[1:] for ids in sequences], pad)
    # Of a decoder, that is the same as reading early.
    if not reads_last_token(model) and all(len(ids) > 1 for ids in sequences):
        yield "the last token is missing", lone_rewards(model, [ids[:-1] for ids in sequences], pad)
