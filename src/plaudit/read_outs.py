"""Where rewards are read, found by which tokens they depend on, and decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.case import LOOKED_AT, SAME, Case, head_modules
from plaudit.checks import Finding
from plaudit.rewards import reads_last_token, rewards

# Pairs whose read-outs are decoded.
DECODED = 3


@dataclass(frozen=True)
class ReadOut:
    """Where one side's reward is read. tokens: the ids up to and with that token; length: of the whole side, in the batch."""

    tokens: tuple[int, ...]
    following: tuple[int, ...]
    length: int
    is_padding: bool


def check_read_out(case: Case, evidence: list[str]) -> list[Finding]:
    """Return what is wrong with where rewards are read, found by which tokens they depend on; three pairs are decoded."""
    if reads_last_token(case.model) and case.model.get_input_embeddings() is not None:
        found = [sides for pair in case.sample[:DECODED] if (sides := read_outs(case, pair)) is not None]
        for number, sides in enumerate(found):
            evidence += [
                f"pair {number}, {side}: {_shown(case, one)}"
                for side, one in zip(("chosen", "rejected"), sides, strict=True)
            ]
        problem = _read_out_problem(case, found)
        if problem is not None:
            return [problem]
    return _check_states(case, evidence)


def _read_out_problem(case: Case, found: list[tuple[ReadOut, ReadOut]]) -> Finding | None:
    cure = (
        "look at pad_token (the reward is read at the last token that is not it), at the data collator and its "
        "attention_mask, and at what a custom forward reads"
    )
    most = len(found) / 2
    shared = [sides for sides in found if sides[0].tokens == sides[1].tokens]
    if len(shared) > most:
        one = shared[0][0]
        return Finding(
            "the read-out is inside the prompt",
            f"in {len(shared)} of {len(found)} pairs both sides are read at the same shared token, {_shown(case, one)}, so "
            "their rewards cannot differ",
            cure,
        )
    flat = [one for sides in found for one in sides]
    padding = [one for one in flat if one.is_padding]
    if len(padding) > len(flat) / 2:
        evidence = f"{len(padding)} of {len(flat)} rewards are read at padding, {_shown(case, padding[0])}"
        return Finding(
            "the read-out is at a padding token", evidence, "set the model's pad_token_id to the tokenizer's"
        )
    early = [one for one in flat if len(one.tokens) < one.length - 1]
    if len(early) > len(flat) / 2:
        evidence = f"{len(early)} of {len(flat)} rewards are read before the end, {_shown(case, early[0])}"
        return Finding("the read-out is before the answer's end", evidence, cure)
    return None


def _shown(case: Case, one: ReadOut) -> str:
    if case.tokenizer is None:
        return f"read at token {len(one.tokens)} of {one.length} (id {one.tokens[-1]})"
    before, at, after = (
        case.tokenizer.decode(list(ids)) for ids in (one.tokens[-7:-1], one.tokens[-1:], one.following[:4])
    )
    return f"read at token {len(one.tokens)} of {one.length}, {before!r} >>> {at!r} <<< {after!r}"


def read_outs(case: Case, pair: dict) -> tuple[ReadOut, ReadOut] | None:
    """Return where the two rewards of a pair are read: at the last token on which what the head sees depends."""
    batch = case.batch([pair])
    caught: list[Tensor] = []

    def start(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[0]

    hook = case.model.get_input_embeddings().register_forward_hook(start)  # type: ignore[operator]
    try:
        states = head_states(case.model, batch).float()
    finally:
        hook.remove()
    if len(states) != 2 or not caught or not states.requires_grad:
        return None
    probe = torch.cos(torch.arange(states.shape[1], device=states.device))
    sides = []
    for side in range(2):
        (gradient,) = torch.autograd.grad((states[side] * probe).sum(), caught[0], retain_graph=True)
        row = 0 if "tree" in batch else side
        touched = gradient[row].abs().amax(dim=-1).nonzero().flatten()
        if not len(touched):
            return None
        sides.append(_read_out_at(batch, pair, row, side, int(touched[-1])))
    return sides[0], sides[1]


def _read_out_at(batch: Mapping[str, Any], pair: Mapping[str, Any], row: int, side: int, column: int) -> ReadOut:
    ids = batch["input_ids"][row]
    if "tree" in batch:
        position = int(batch["position_ids"][0, column])
        whole = tuple(pair[("chosen_ids", "rejected_ids")[side]])
        return ReadOut(whole[: position + 1], whole[position + 1 :], len(whole), False)
    attended = batch["attention_mask"][row].bool()
    before, after = attended.clone(), attended.clone()
    before[column + 1 :] = False
    after[: column + 1] = False
    is_padding = not bool(attended[column])
    tokens = (*ids[before].tolist(), *([int(ids[column])] if is_padding else []))
    return ReadOut(tokens, tuple(ids[after].tolist()), int(attended.sum()), is_padding)


def head_states(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return what the head makes into rewards, shape (N, channels), or the rewards themselves, shape (N, 1)."""
    caught: list[Tensor] = []
    heads = head_modules(model)[:1]
    hooks = [head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])) for _, head in heads]
    try:
        values = rewards(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(caught) == 1 and caught[0].dim() == 2 and len(caught[0]) == len(values):
        return caught[0]
    return values.unsqueeze(-1)


def pair_states(case: Case, pairs: list[dict]) -> tuple[Tensor, Tensor]:
    """Return what the head sees of both sides, float32, shape (num_pairs, channels) each, four pairs at a time."""
    sides = []
    with torch.no_grad():
        for start in range(0, len(pairs), 4):
            sides.append(head_states(case.model, case.batch(pairs[start : start + 4])).float().chunk(2))
    return torch.cat([chosen for chosen, _ in sides]), torch.cat([rejected for _, rejected in sides])


def _check_states(case: Case, evidence: list[str]) -> list[Finding]:
    """Return a finding where the head sees the same of both sides, whatever model it is."""
    pairs = case.sample[:LOOKED_AT]
    chosen, rejected = pair_states(case, pairs)
    apart = (chosen - rejected).norm(dim=-1) / torch.maximum(chosen.norm(dim=-1), rejected.norm(dim=-1)).clamp_min(
        1e-30
    )
    same = int((apart <= SAME[case.dtype]).sum())
    # A bare number may be 0 for every pair because the head is.
    if chosen.shape[1] == 1 and not bool(chosen.any()):
        return []
    evidence.append(f"what the head sees differs between the sides in {len(pairs) - same} of {len(pairs)} pairs")
    if same <= len(pairs) / 2:
        return []
    return [
        Finding(
            "the read-out is inside the prompt, or the answers are cut away",
            f"in {same} of {len(pairs)} pairs the head sees exactly the same of both sides, although their tokens differ",
            "look at what the forward reads, at the data collator, and at what cuts long texts",
        )
    ]
