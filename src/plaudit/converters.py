"""Other people's records turned into preference pairs: one function a format, one row at a time."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from plaudit.values import brief, finite_number, shown

NO_ANSWER = "without an answer to score"


class Dropped(NamedTuple):
    """A row, or one of its pairs, that holds no preference: counted, never trained on."""

    reason: str


class RowProblem(ValueError):
    """A row that its format does not allow. The caller puts the split and the row in front."""


Pairs = Iterator[dict[str, Any] | Dropped]


@dataclass(frozen=True)
class Converter:
    """A record format by name, and the function that turns one of its rows into pairs.

    columns: what a row must have; each entry lists the names that are as good as each other.
    recognises: whether a first row is of this format, used only where `chosen` and `rejected` decide nothing.
    convert: a row, and whether a margin is wanted, to pairs `{"prompt"?, "chosen", "rejected", "margin"?}`. All pairs
        of a dataset have the same keys, and all prompts and answers are message lists.
    """

    name: str
    title: str
    columns: tuple[tuple[str, ...], ...]
    recognises: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], bool], Pairs]

    def pairs(self, row: Mapping[str, Any], margins: bool) -> Pairs:
        """Give a row's pairs, checked for its columns first. RowProblem for a row that the format does not allow."""
        for names in self.columns:
            if not any(name in row for name in names):
                raise RowProblem(f"there is no column {' or '.join(map(repr, names))}; add it, or drop the row")
        yield from self.convert(row, margins)


def without_none(value: Any) -> Any:
    """Return the value without the None entries of its dicts: Arrow gives every row the keys of all rows."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(item) for item in value]
    return value


_ROLE_OF_SPEAKER = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


def is_from_value(message: Any) -> bool:
    """Whether a message is written with `from` and `value` (ShareGPT) rather than `role` and `content`."""
    return isinstance(message, Mapping) and message.get("role") is None and message.get("from") is not None


def role_content(message: Any) -> Any:
    """Return a `from`/`value` message as a `role`/`content` one, and anything else as it is.

    A `function_call` whose value is the JSON of a call, or of a list of calls, becomes `tool_calls`.
    """
    if not is_from_value(message):
        return message
    speaker, value = message["from"], message.get("value")
    others = {key: item for key, item in message.items() if key not in ("from", "value", "role", "content")}
    if isinstance(speaker, str) and speaker == "function_call":
        calls = _function_calls(value)
        if calls:
            return {"role": "assistant", "content": "", "tool_calls": calls, **others}
        return {"role": "assistant", "content": value, **others}
    role = _ROLE_OF_SPEAKER.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": value, **others}


def _function_calls(value: Any) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return []
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def is_message(value: Any) -> bool:
    """Whether a value is one message, of either way to write it."""
    return isinstance(value, Mapping) and (value.get("role") is not None or value.get("from") is not None)


def is_message_list(value: Any) -> bool:
    """Whether a value is a list of messages; an empty list is none."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(is_message(item) for item in value)


def _turn(role: str, text: str | None) -> dict[str, Any]:
    return {"role": role, "content": text}


def _prompt_messages(row: Mapping[str, Any], column: str) -> list[Any]:
    """Return the prompt as messages: a text is what the user said."""
    prompt = row[column]
    if is_message_list(prompt):
        return list(prompt)
    if isinstance(prompt, str):
        return [_turn("user", prompt)]
    raise RowProblem(f"{column!r} must be a text or a message list, not {shown(prompt)}; drop the row or mend it")


def _column(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first of the names that the row has."""
    return next((name for name in names if name in row), names[0])


def _is_answer(text: Any, where: str) -> bool:
    """Whether there is an answer to score: None and blank texts are none.

    Raises RowProblem for anything that is not text.
    """
    if text is not None and not isinstance(text, str):
        raise RowProblem(f"{where} must be a text, not {shown(text)}; drop the row or mend it")
    return bool(text and text.strip())


_TURN_MARK = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLE_OF_MARK = {"Human": "user", "Assistant": "assistant"}
# What begins a question and an answer after the first turn.
QUESTION_MARK, ANSWER_MARK = (f"\n\n{name}:" for name in _ROLE_OF_MARK)


def is_transcript(text: Any) -> bool:
    """Whether a text holds a turn of each side: `\\n\\nHuman:` and `\\n\\nAssistant:`."""
    return isinstance(text, str) and set(_TURN_MARK.findall(text)) == set(_ROLE_OF_MARK)


def transcript_turns(text: Any, column: str) -> list[dict[str, Any]]:
    """Return every turn of a transcript as a message, in order, without the white space around its text.

    Two turns of one role in a row stay two messages: joining them would invent a turn that nobody wrote.
    """
    if not isinstance(text, str):
        raise RowProblem(f"{column!r} must be a transcript, not {shown(text)}; drop the row or mend it")
    before, *parts = _TURN_MARK.split(text)
    if not parts:
        raise RowProblem(f"{column!r} holds no turn '\\n\\nHuman:' or '\\n\\nAssistant:': {text[:60]!r}; drop the row")
    if before.strip():
        raise RowProblem(f"{column!r} has text before its first turn: {before[:60]!r}; cut it or drop the row")
    return [_turn(_ROLE_OF_MARK[mark], said.strip()) for mark, said in zip(parts[::2], parts[1::2], strict=True)]


def _from_transcript(row: Mapping[str, Any], margins: bool) -> Pairs:
    """Each side whole, with no `prompt`: sides that part before the last answer keep their own words."""
    prompt = row.get("prompt", "")
    if not isinstance(prompt, str):
        raise RowProblem(
            f"'prompt' must be the beginning of a transcript, not {shown(prompt)}; drop the column or the row"
        )
    sides = {}
    for side in ("chosen", "rejected"):
        text = row[side]
        sides[side] = transcript_turns(prompt + text if isinstance(text, str) else text, side)
    if all(turns[-1]["role"] == "assistant" and turns[-1]["content"] for turns in sides.values()):
        yield sides
    else:
        yield Dropped(NO_ANSWER)


_ARENA_TEXTS = ("prompt", "response_a", "response_b")


def _has_arena_columns(row: Mapping[str, Any]) -> bool:
    return all(name in row for name in (*_ARENA_TEXTS, "winner_model_a", "winner_model_b"))


def _json_texts(text: Any) -> list[str | None] | None:
    """Return the list of texts that a JSON text encodes, or None where it encodes none. No text at all has no turns."""
    try:
        turns = [] if text is None else text if isinstance(text, list) else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    turns = [] if turns is None else turns
    is_texts = isinstance(turns, list) and all(turn is None or isinstance(turn, str) for turn in turns)
    return turns if is_texts else None


def _arena_turns(row: Mapping[str, Any]) -> dict[str, list[str | None]]:
    """Return prompt and responses as lists of texts: all three JSON lists, or all three plain texts of one turn."""
    turns = {column: _json_texts(row[column]) for column in _ARENA_TEXTS}
    plain = all(texts is None or row[column] is None for column, texts in turns.items())
    if plain and isinstance(row["prompt"], str) and not row["prompt"].startswith(('["', "[null")):
        return {column: [row[column]] for column in _ARENA_TEXTS}
    lists = {column: texts for column, texts in turns.items() if texts is not None}
    for column in _ARENA_TEXTS:
        if column not in lists:
            found = row[column]
            said = repr(found[:60]) if isinstance(found, str) else shown(found)
            raise RowProblem(f"{column!r} is not the JSON of a list of texts: {said}; drop the row or mend it")
    return lists


def _arena_winner(row: Mapping[str, Any]) -> str | None:
    """Return "a" or "b", or None for a tie. Where there is no `winner_tie` column, no winner means a tie."""
    flags = {side: row.get(f"winner_{side}") for side in ("model_a", "model_b", "tie")}
    if "winner_tie" not in row:
        flags["tie"] = all(isinstance(flag, (int, float, str, type(None))) and not flag for flag in flags.values())
    # A text or a number: an array would not be compared as one value.
    known = all(isinstance(flag, (int, float, str)) and flag in (0, 1, "0", "1") for flag in flags.values())
    winners = [side for side, flag in flags.items() if known and flag in (1, "1")]
    if len(winners) != 1:
        found = ", ".join(f"winner_{side}={brief(flag, 60)}" for side, flag in flags.items())
        raise RowProblem(f"exactly one winner must be 1 and the others 0, not {found}; drop the row or mend it")
    return {"model_a": "a", "model_b": "b", "tie": None}[winners[0]]


def too_deep(where: str) -> ValueError:
    """Return the error for a row with a value of more levels than Python can follow."""
    return ValueError(f"{where}: a value in the row is nested too deeply, or holds itself; mend or drop the row")


def is_unicode(text: str) -> bool:
    """Tell whether Arrow and tokenizers can hold a text: JSON can encode half a surrogate pair, which they cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_arena(row: Mapping[str, Any], margins: bool) -> Pairs:
    """Each side whole: the models answered earlier turns differently too."""
    winner = _arena_winner(row)
    turns = _arena_turns(row)
    prompts = turns["prompt"]
    responses = [turns["response_a"], turns["response_b"]]
    if any(len(texts) > len(prompts) for texts in responses):
        most = max(map(len, responses))
        raise RowProblem(f"'prompt' has {len(prompts)} turns, but a response has {most}; drop the row or mend it")
    said = [text for texts in turns.values() for text in texts]
    if winner is None:
        yield Dropped("tied")
    elif any(len(texts) < len(prompts) or not _is_answer(texts[-1], "a response") for texts in responses if prompts):
        yield Dropped(NO_ANSWER)
    elif not prompts or any(text is None for text in said):
        yield Dropped("with a turn without text")
    elif not all(is_unicode(text) for text in said if text):
        yield Dropped("with a text that is not Unicode")
    else:
        sides = [
            [turn for pair in zip(prompts, texts, strict=True) for turn in map(_turn, ("user", "assistant"), pair)]
            for texts in (responses if winner == "a" else responses[::-1])
        ]
        yield {"chosen": sides[0], "rejected": sides[1]}


def _is_sharegpt(row: Mapping[str, Any]) -> bool:
    return is_message_list(row.get("conversations")) and all(is_message(row.get(s)) for s in ("chosen", "rejected"))


def _answer_messages(answer: Any, column: str) -> list[Any]:
    if is_message(answer):
        return [role_content(answer)]
    if isinstance(answer, str):
        return [_turn("assistant", answer)]
    if is_message_list(answer):
        return [role_content(message) for message in answer]
    raise RowProblem(f"{column!r} must be a message, a message list or a text, not {shown(answer)}; drop the row")


def _from_sharegpt(row: Mapping[str, Any], margins: bool) -> Pairs:
    conversation = row["conversations"]
    if not is_message_list(conversation):
        raise RowProblem(f"'conversations' must be a list of messages, not {shown(conversation)}; drop the row")
    system = [_turn("system", row["system"])] if _is_answer(row.get("system"), "'system'") else []
    yield {
        "prompt": system + [role_content(message) for message in conversation],
        "chosen": _answer_messages(row["chosen"], "chosen"),
        "rejected": _answer_messages(row["rejected"], "rejected"),
    }


_QUESTION = ("prompt", "instruction", "question")
_ANSWERS = ("responses", "answers", "completions")
_SCORES = ("scores", "ratings")
_COMPLETION_TEXT = ("response", "content", "text")
_COMPLETION_SCORE = ("overall_score", "fine-grained_score", "rating", "score")


def _pairs_by_score(prompt: list[Any], answers: Sequence[Any], scores: Sequence[Any], margins: bool) -> Pairs:
    """Every two answers of different scores as a pair; a side without text, or a tie, is dropped and counted."""
    for number, score in enumerate(scores):
        if finite_number(score) is None:
            raise RowProblem(
                f"the score of answer {number} must be a finite number, not {shown(score)}; drop the row or mend it"
            )
    if len(answers) < 2:
        yield Dropped("with fewer than two answers")
    for left, right in combinations(range(len(answers)), 2):
        high, low = (left, right) if scores[left] > scores[right] else (right, left)
        texts = [answers[high], answers[low]]
        answered = [_is_answer(text, "an answer") for text in texts]
        if not all(answered):
            yield Dropped(NO_ANSWER)
        elif scores[high] == scores[low]:
            yield Dropped("tied")
        else:
            yield _pair(prompt, texts[0], texts[1], _gap(scores[high], scores[low]) if margins else None)


def _gap(high: Any, low: Any) -> float:
    gap = finite_number(high - low)
    if gap is None:
        raise RowProblem(
            f"the scores {shown(high)} and {shown(low)} are too far apart for a margin; mend or drop the row"
        )
    return gap


def _pair(prompt: list[Any], chosen: str, rejected: str, margin: float | None) -> dict[str, Any]:
    pair: dict[str, Any] = {
        "prompt": prompt,
        "chosen": [_turn("assistant", chosen)],
        "rejected": [_turn("assistant", rejected)],
    }
    if margin is not None:
        pair["margin"] = margin
    return pair


def _is_list_of(kind: Any, value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, kind) for item in value)


def _is_ratings(row: Mapping[str, Any]) -> bool:
    has_texts = any(_is_list_of((str, type(None)), row.get(name)) for name in _ANSWERS)
    return has_texts and any(isinstance(row.get(name), (list, tuple)) for name in _SCORES)


def _from_ratings(row: Mapping[str, Any], margins: bool) -> Pairs:
    answers_column, scores_column = _column(row, _ANSWERS), _column(row, _SCORES)
    answers, scores = row[answers_column], row[scores_column]
    for column, values in ((answers_column, answers), (scores_column, scores)):
        if not isinstance(values, (list, tuple)):
            raise RowProblem(f"{column!r} must be a list, not {shown(values)}; drop the row or mend it")
    if len(answers) != len(scores):
        raise RowProblem(f"{answers_column!r} has {len(answers)} answers and {scores_column!r} {len(scores)} scores")
    yield from _pairs_by_score(_prompt_messages(row, _column(row, _QUESTION)), answers, scores, margins)


def _is_ultrafeedback(row: Mapping[str, Any]) -> bool:
    completions = row.get("completions")
    return any(name in row for name in _QUESTION) and _is_list_of(Mapping, completions)


def _completion_field(completions: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return each completion's value of the first name that any of them has, so that one row has one scale."""
    for number, completion in enumerate(completions):
        if not isinstance(completion, Mapping) or not any(name in completion for name in names):
            raise RowProblem(f"completion {number} has none of {', '.join(map(repr, names))}; drop the row or mend it")
    used = next((name for name in names if any(item.get(name) is not None for item in completions)), names[0])
    return [completion.get(used) for completion in completions]


def _from_ultrafeedback(row: Mapping[str, Any], margins: bool) -> Pairs:
    """Scored `completions` as pairs, or a `prompt` text with answers as messages as one pair."""
    prompt = _prompt_messages(row, _column(row, _QUESTION))
    if "completions" not in row:
        if not ("chosen" in row and "rejected" in row):
            raise RowProblem("there are neither 'completions' nor 'chosen' and 'rejected'; see docs/formats.md")
        yield {"prompt": prompt, **{side: _answer_messages(row[side], side) for side in ("chosen", "rejected")}}
        return
    completions = row["completions"]
    if not isinstance(completions, (list, tuple)):
        raise RowProblem(f"'completions' must be a list, not {shown(completions)}; drop the row or mend it")
    answers, scores = (
        _completion_field(completions, _COMPLETION_TEXT),
        _completion_field(completions, _COMPLETION_SCORE),
    )
    yield from _pairs_by_score(prompt, answers, scores, margins)


_CONTEXT = ("prompt", "context")
_FIRST, _SECOND = ("response_1", "response1"), ("response_2", "response2")
_STRENGTH = ("preference_strength", "overall_preference")
_HELPSTEER_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _helpsteer_prompt(row: Mapping[str, Any]) -> list[Any]:
    """Return the prompt as messages. HelpSteer2 writes several turns in one text, parted by `<extra_id_1>Speaker`."""
    column = _column(row, _CONTEXT)
    if not isinstance(row[column], str):
        return _prompt_messages(row, column)
    first, *parts = _HELPSTEER_MARK.split(row[column])
    turns = [_turn("user", first)] if first else []
    return turns + [_turn(speaker.lower(), said) for speaker, said in zip(parts[::2], parts[1::2], strict=True)]


def _is_helpsteer(row: Mapping[str, Any]) -> bool:
    return all(any(name in row for name in names) for names in (_CONTEXT, _FIRST, _SECOND, _STRENGTH))


def _from_helpsteer(row: Mapping[str, Any], margins: bool) -> Pairs:
    column = _column(row, _STRENGTH)
    strength = row[column]
    if not isinstance(strength, (int, float)) or isinstance(strength, bool) or not -3 <= strength <= 3:
        raise RowProblem(f"{column!r} must be a number from -3 to 3, not {shown(strength)}; drop the row or mend it")
    answers = [row[_column(row, names)] for names in (_FIRST, _SECOND)]
    answered = [_is_answer(text, "a response") for text in answers]
    if not all(answered):
        yield Dropped(NO_ANSWER)
    elif strength == 0:
        yield Dropped("without a preference")
    else:
        chosen, rejected = answers if strength < 0 else answers[::-1]
        yield _pair(_helpsteer_prompt(row), chosen, rejected, float(abs(strength)) if margins else None)


def _never(row: Mapping[str, Any]) -> bool:
    # Two texts are the standard format, so that a script written for it trains on what it always did.
    return False


_SIDES = (("chosen",), ("rejected",))
_ARENA_COLUMNS = tuple((name,) for name in (*_ARENA_TEXTS, "winner_model_a", "winner_model_b"))
_COMPLETION_COLUMNS = (_QUESTION, ("completions", "chosen"))
_RATINGS_COLUMNS = (_QUESTION, _ANSWERS, _SCORES)
_HELPSTEER_COLUMNS = (_CONTEXT, _FIRST, _SECOND, _STRENGTH)

CONVERTERS: dict[str, Converter] = {
    converter.name: converter
    for converter in (
        Converter("transcript", "transcripts", _SIDES, _never, _from_transcript),
        Converter("arena", "arena votes", _ARENA_COLUMNS, _has_arena_columns, _from_arena),
        Converter("sharegpt", "ShareGPT pairs", (("conversations",), *_SIDES), _is_sharegpt, _from_sharegpt),
        Converter("ultrafeedback", "UltraFeedback", _COMPLETION_COLUMNS, _is_ultrafeedback, _from_ultrafeedback),
        Converter("ratings", "rated answers", _RATINGS_COLUMNS, _is_ratings, _from_ratings),
        Converter("helpsteer", "HelpSteer preferences", _HELPSTEER_COLUMNS, _is_helpsteer, _from_helpsteer),
    )
}
