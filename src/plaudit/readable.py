"""Texts of the data as a reader should see them: turns with their roles, nothing hidden, long ones folded."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plaudit import converters
from plaudit.say import visible

# Where a long text folds, and how much of it a page holds at most: the rest is in the file that the text came from.
FOLD_AT, LONGEST = 1_200, 8_000
# What all the texts of a page may take together, and the least that each may have of it.
ALL_TEXTS, LEAST = 400_000, 1_500
# Turns before the last so many stand in a fold.
TURNS_SHOWN = 5
ROLES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool", "text": "Text"}


class Folded(NamedTuple):
    """A text in three parts: what is shown, what is in the fold, and how many characters are left out."""

    shown: str
    rest: str = ""
    num_left_out: int = 0


class Turn(NamedTuple):
    """One message: its role as a reader names it, and its text."""

    role: str
    text: Folded


def clean(text: Any) -> str:
    """Return a text that a page can hold: what would hide, reorder or break it is shown as its code."""
    plain = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
    plain = plain.replace("\r\n", "\n").replace("\r", "\n")
    return visible(plain)


def one_line(text: Any, longest: int = 200) -> str:
    """Return a name or an id as one line of bounded length."""
    # The space at which no line is broken stays what it is.
    line = re.sub(r"[^\S\u00a0]+", " ", clean(text)).strip()
    return line if len(line) <= longest else f"{line[:longest]}…"


def folded(text: Any, longest: int = LONGEST) -> Folded:
    """Return a text folded near FOLD_AT characters, between words where there are any, and cut after `longest`."""
    whole = clean(text)
    kept = whole[:longest]
    if len(kept) <= FOLD_AT * 1.2:
        return Folded(kept, "", len(whole) - len(kept))
    space = max(kept.rfind(" ", 0, FOLD_AT), kept.rfind("\n", 0, FOLD_AT))
    end = space + 1 if space > FOLD_AT // 2 else FOLD_AT
    # A letter stays with the marks that belong to it.
    while end < len(kept) and unicodedata.combining(kept[end]):
        end += 1
    return Folded(kept[:end], kept[end:], len(whole) - len(kept))


def turns_of(messages: Any, longest: int = LONGEST, role: str = "text") -> list[Turn]:
    """Return a conversation as turns. messages: a list of messages, a transcript, or a text of the given role; an empty
    one has no turns."""
    if isinstance(messages, str):
        messages = _split(messages) or [{"role": role, "content": messages}]
    if not isinstance(messages, Sequence):
        messages = [] if messages is None else [{"role": role, "content": messages}]
    found = []
    for message in messages:
        if not isinstance(message, Mapping):
            message = {"role": role, "content": message}
        said = _content(message)
        if said not in (None, ""):
            name = str(message.get("role") or role)
            found.append(Turn(ROLES.get(name, one_line(name, 40)), folded(said, longest)))
    return found


def decisive(rewards: Sequence[Any], labels: Sequence[Any], margin: Any) -> tuple[int | None, int | None]:
    """Return which right and which wrong answer a row's margin is between; None for a side that has none.

    Which two those are is the benchmark's rule: the two whose difference is the margin, the highest such. Without a margin
    the best of each side.
    """
    known = [reward if isinstance(reward, int | float) else float("-inf") for reward in rewards]
    sides = [[place for place, label in enumerate(labels) if bool(label) is side] for side in (True, False)]
    if not all(sides) or not isinstance(margin, int | float):
        right, wrong = (max(side, key=known.__getitem__, default=None) for side in sides)
        return right, wrong
    pairs = ((right, wrong) for right in sides[0] for wrong in sides[1])
    return min(pairs, key=lambda pair: (abs(known[pair[0]] - known[pair[1]] - margin), -known[pair[1]]))


def mistake(row: Mapping[str, Any], longest: int = LONGEST) -> dict[str, Any]:
    """Return a row of mistakes.jsonl as the page shows it: its prompt's turns, and the two answers that its margin is between.

    The keys: earlier and turns (of the prompt), right and wrong (each with turns and reward), others, margin, subset, id.
    The other answers keep their rewards.
    """
    prompt, margin, candidates = row.get("prompt"), row.get("margin"), row["candidates"]
    turns = turns_of(prompt, longest, "user")
    chosen = decisive([one.get("reward") for one in candidates], [one.get("label") for one in candidates], margin)
    right, wrong = (None if place is None else candidates[place] for place in chosen)
    return {
        "id": one_line(row.get("id", "")),
        "subset": one_line(row["subset"]) if row.get("subset") else None,
        "margin": margin,
        "earlier": turns[:-TURNS_SHOWN],
        "turns": turns[-TURNS_SHOWN:],
        "right": _answer(right, prompt, longest),
        "wrong": _answer(wrong, prompt, longest),
        "others": [
            (bool(one.get("label")), one.get("reward")) for place, one in enumerate(candidates) if place not in chosen
        ],
    }


def room_for(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many characters each text may have, so that a page of many long ones stays light."""
    # A prompt and two answers each.
    return max(LEAST, min(LONGEST, ALL_TEXTS // max(1, 3 * len(rows))))


def _answer(candidate: Mapping[str, Any] | None, prompt: Any, longest: int) -> dict[str, Any] | None:
    if candidate is None:
        return None
    text = candidate.get("text")
    # A side that was given whole begins with the prompt, which stands above already.
    if isinstance(text, str) and isinstance(prompt, str) and prompt and text.startswith(prompt):
        text = text[len(prompt) :]
    if isinstance(text, list) and isinstance(prompt, list) and prompt and text[: len(prompt)] == prompt:
        text = text[len(prompt) :]
    turns = turns_of(text.strip() if isinstance(text, str) else text, longest, "assistant")
    return {"turns": turns, "reward": candidate.get("reward")}


def _split(text: str) -> list[dict[str, Any]] | None:
    """Return a transcript's turns, or None for a text that is none."""
    try:
        return converters.transcript_turns(text, "prompt")
    except converters.RowProblem:
        return None


def _content(message: Mapping[str, Any]) -> Any:
    """Return what a message says: its text, and whatever else it carries as JSON."""
    said = message.get("content")
    if isinstance(said, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in said):
        said = "\n".join(part["text"] for part in said)
    if message.get("tool_calls"):
        calls = json.dumps(message["tool_calls"], ensure_ascii=False, indent=1, default=str)
        said = f"{said}\n{calls}" if said else calls
    return said
