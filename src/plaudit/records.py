"""One row of preference pairs to its canonical form, checked: errors name row, column and cure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plaudit import converters
from plaudit.converters import RowProblem
from plaudit.say import say
from plaudit.values import brief, finite_number, shown

SIDES = ("chosen", "rejected")
# A column that holds each row's number in the file it came from, where that is not its number in the dataset.
ROW = "plaudit_row"
LARGEST_MARGIN = 3.4e38
# Arguments of the rendering itself, which a row's template variables must not replace.
_RESERVED = ("add_generation_prompt", "continue_final_message", "chat_template", "conversation", "tools", "tokenize")
# Who ends a conversation without an answer.
NOT_ANSWERS = ("user", "system", "developer")


@dataclass(frozen=True)
class Layout:
    """What a dataset's first row showed: the kind of its pairs, and the columns they are in by canonical name."""

    kind: Literal["standard", "conversational", "tokenized"]
    columns: dict[str, str]


def canonical(row: Mapping[str, Any], layout: Layout, where: str) -> dict[str, Any]:
    """Return one row as the canonical pair of its kind, prompts joined to both sides.

    where: names the row, as in "train row 17". Standard: `chosen` and `rejected` as texts. Conversational: both as
    message lists without None entries, `tools` (a list, or None for none) and `chat_template_kwargs` (a dict).
    Tokenized: `chosen_ids` and `rejected_ids`, without what their masks hide. Each with `margin` where there is one.
    Raises ValueError naming row, column and cure for a row that is not a pair, or not of the layout's kind.
    """
    try:
        if layout.kind == "standard":
            pair = _texts(row, layout)
        elif layout.kind == "conversational":
            pair = _conversations(row, layout)
        else:
            pair = {f"{side}_ids": ids_of(row, layout, side) for side in SIDES}
        if "margin" in layout.columns:
            pair["margin"] = _margin(row.get(layout.columns["margin"]), layout.columns["margin"])
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    except RecursionError:
        raise converters.too_deep(where) from None
    return pair


def shape_of(value: Any) -> str:
    """Return what a value is: "text", "messages" (an empty list too), "ids", "message", or its type's name."""
    if isinstance(value, str):
        return "text"
    if converters.is_message(value):
        return "message"
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, Mapping) for item in value):
            return "messages"
        return "ids" if all(isinstance(item, int) for item in value) else "list"
    return "None" if value is None else type(value).__name__


def wrong_shape(column: str, shape: str, value: Any) -> str:
    """Return what is wrong with a value that is neither text nor messages, and its cure."""
    if shape == "None":
        return f"{column!r} is None; drop the row or fill it"
    if shape == "message":
        return f"{column!r} is one message, not a list; wrap it as [message]"
    if shape == "ids":
        return f"{column!r} holds token ids; rename the column to '{column}_ids'"
    return f"{column!r} must be text or a message list, not {shown(value)}; mend the row"


def _margin(value: Any, column: str) -> float:
    if value is None:
        raise RowProblem(f"{column!r} is missing; give every row a margin or drop the column")
    number = finite_number(value)
    # The loss is computed in float32, where a larger number would be infinite.
    if number is None or abs(number) >= LARGEST_MARGIN:
        raise RowProblem(f"{column!r} must be a finite number, not {shown(value)}; mend the row or drop the column")
    return number


def text_of(row: Mapping[str, Any], column: str) -> str:
    """Return a row's text; RowProblem for anything else."""
    value = row.get(column)
    if value is None:
        raise RowProblem(f"{column!r} is None; drop the row or fill it")
    if shape_of(value) == "messages":
        raise RowProblem(f"{column!r} is a message list, but the first row's answers are text; give all rows one form")
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} must be text, not {shown(value)}; mend the row")
    check_unicode(value, repr(column))
    return value


def check_unicode(text: str, what: str) -> None:
    """Raise RowProblem for half of a surrogate pair, which no tokenizer takes."""
    if not converters.is_unicode(text):
        raise RowProblem(f"{what} holds half of a surrogate pair, which is not Unicode text; mend or drop the row")


def prompt_text_of(row: Mapping[str, Any], column: str) -> str:
    """Return a row's prompt as text; RowProblem for anything else."""
    if shape_of(row.get(column)) == "messages":
        raise RowProblem(
            f"{column!r} is a message list, but 'chosen' and 'rejected' are text; make each answer a message list "
            '[{"role": "assistant", "content": ...}] or the prompt a text'
        )
    return text_of(row, column)


def _texts(row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    prompt = prompt_text_of(row, layout.columns["prompt"]) if "prompt" in layout.columns else ""
    answers = {side: text_of(row, layout.columns[side]) for side in SIDES}
    for side, answer in answers.items():
        if not answer.strip():
            raise RowProblem(
                f"{layout.columns[side]!r} is empty, so there is no answer to score; drop the row or fill it"
            )
    return {side: prompt + answer for side, answer in answers.items()}


def ids_of(row: Mapping[str, Any], layout: Layout, side: str) -> list[int]:
    """Return a side's token ids without those that its mask hides; RowProblem where there are none."""
    column = layout.columns[f"{side}_ids"]
    ids = integers_of(row.get(column), column, {int})
    if ids and min(ids) < 0:
        raise RowProblem(f"{column!r} has the negative id {brief(min(ids))}; drop padding and label ids from the row")
    mask_column = layout.columns.get(f"{side}_mask")
    if mask_column is not None:
        mask = integers_of(row.get(mask_column), mask_column, {int, bool})
        if not set(mask) <= {0, 1}:
            raise RowProblem(
                f"{mask_column!r} holds {brief(sorted(set(mask))[:5])}; a mask has 1 for a token and 0 for padding"
            )
        if len(mask) != len(ids):
            raise RowProblem(
                f"{mask_column!r} has {len(mask)} entries for the {len(ids)} ids of {column!r}; mend the row"
            )
        ids = [token for token, attended in zip(ids, mask, strict=True) if attended]
        if not ids:
            raise RowProblem(f"{column!r} has no token that {mask_column!r} attends to; drop the row")
    if not ids:
        raise RowProblem(f"{column!r} is empty; drop the row or fill it")
    return ids


def integers_of(value: Any, column: str, types: set[type]) -> list[int]:
    """Return a value as a list of integers of these types; RowProblem for anything else."""
    if value is None:
        raise RowProblem(f"{column!r} is None; drop the row or fill it")
    values = value.tolist() if hasattr(value, "tolist") else value
    # The set of types, because rows are long and there are many of them.
    if not isinstance(values, (list, tuple)) or not set(map(type, values)) <= types:
        raise RowProblem(f"{column!r} must be a list of integers, not {shown(value)}; mend the row")
    return list(values)


def _conversations(row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    names = layout.columns
    sides = {side: messages_of(row.get(names[side]), names[side]) for side in SIDES}
    for side, messages in sides.items():
        check_answer(messages, names[side])
    if "prompt" in names:
        sides = with_prompt(row.get(names["prompt"]), sides, names["prompt"])
    return {
        **sides,
        "tools": tools_of(row.get(names["tools"]), names["tools"]) if "tools" in names else None,
        "chat_template_kwargs": template_kwargs_of(row.get("chat_template_kwargs"))
        if "chat_template_kwargs" in names
        else {},
    }


def messages_of(value: Any, column: str) -> list[dict[str, Any]]:
    """Return a value as checked `role`/`content` messages without None entries."""
    shape = shape_of(value)
    if shape == "text":
        raise RowProblem(f"{column!r} is text, but the first row's answers are message lists; give all rows one form")
    if not isinstance(value, (list, tuple)) or (value and shape == "ids"):
        raise RowProblem(wrong_shape(column, shape, value))
    if not value:
        raise RowProblem(f"{column!r} is an empty message list; drop the row or fill it")
    return [_message(message, f"message {number} of {column!r}") for number, message in enumerate(value)]


def _message(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RowProblem(f'{what} must be {{"role": ..., "content": ...}}, not {shown(value)}; mend the row')
    if converters.is_from_value(value):
        say(
            "messages with 'from' and 'value' are read as 'role' and 'content' (human: user, gpt: assistant)", once=True
        )
    message = converters.role_content(converters.without_none(value))
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise RowProblem(f"{what} has no 'role' ({shown(value)}); mend the row")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise RowProblem(f"{what} has 'tool_calls' that are no list ({shown(calls)}); mend the row")
    if not calls:
        # Templates ask whether the key is there, and an empty list is what Arrow makes of a row without calls.
        message.pop("tool_calls", None)
    if content is None and calls and role == "assistant":
        content = ""
    _check_content(content, what)
    return {**message, "content": content}


def _check_content(content: Any, what: str) -> None:
    if content is None:
        raise RowProblem(f"{what} has no 'content'; fill it or drop the message")
    if isinstance(content, str):
        check_unicode(content, f"the content of {what}")
        return
    is_blocks = isinstance(content, list) and content and all(isinstance(block, dict) for block in content)
    if not is_blocks:
        raise RowProblem(
            f'{what} has a \'content\' that is neither text nor a list of blocks like {{"type": "text", "text": ...}} '
            f"({shown(content)}); mend the row"
        )


def check_answer(messages: list[dict[str, Any]], column: str, may_be_empty: bool = False) -> None:
    """Raise RowProblem where a conversation does not end with an answer."""
    last = messages[-1]
    if last["role"] in NOT_ANSWERS:
        raise RowProblem(
            f"{column!r} ends with a {last['role']} turn, so there is no answer to score; "
            "drop the turn or swap the columns"
        )
    is_empty = not _says_something(last) and not (last["role"] == "assistant" and last.get("tool_calls"))
    if is_empty and not may_be_empty:
        raise RowProblem(f"{column!r} ends with an empty answer, so there is nothing to score; drop the row or fill it")


def _says_something(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, str):
        return bool(content.strip())
    return any(block.get("type", "text") != "text" or str(block.get("text", "")).strip() for block in content)


def with_prompt(prompt: Any, sides: dict[str, list], column: str) -> dict[str, list]:
    """Return the answers, by name, with the prompt in front, once: those that hold the whole conversation stay as they are."""
    if prompt is None:
        raise RowProblem(f"{column!r} is None; drop the row, fill it or drop the column")
    if isinstance(prompt, str):
        if all(_first_user_text(messages) == prompt for messages in sides.values()):
            return sides
        raise RowProblem(
            f"{column!r} is text, but 'chosen' and 'rejected' are message lists that do not begin with it; make "
            f'{column!r} a message list [{{"role": "user", "content": ...}}], or drop the column if the answers hold '
            "the whole conversation"
        )
    messages = messages_of(prompt, column)
    repeats = {side: _repeats(messages, sides[side]) for side in sides}
    if not any(repeats.values()):
        return {side: messages + sides[side] for side in sides}
    if not all(repeats.values()):
        one = next(side for side in sides if repeats[side])
        raise RowProblem(
            f"only {one!r} repeats the messages of {column!r}; let both sides hold the whole conversation, or neither"
        )
    system = messages[: num_system_turns(messages)]
    return {side: sides[side] if num_system_turns(sides[side]) else system + sides[side] for side in sides}


def _first_user_text(messages: list[dict[str, Any]]) -> Any:
    return next((message["content"] for message in messages if message["role"] == "user"), None)


def num_system_turns(messages: list[dict[str, Any]]) -> int:
    """Return how many messages come before the first that is not the system's."""
    roles = [message["role"] in ("system", "developer") for message in messages]
    return roles.index(False) if False in roles else len(roles)


def _repeats(prompt: list[dict[str, Any]], side: list[dict[str, Any]]) -> bool:
    """Whether a side begins with the prompt; a system message may be in one of them only."""
    prompt_turns, side_turns = prompt[num_system_turns(prompt) :], side[num_system_turns(side) :]
    return bool(prompt_turns) and side_turns[: len(prompt_turns)] == prompt_turns


def tools_of(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Return tool schemas as dicts without None entries, or None for no tools."""
    tools = _decoded(value, column)
    if tools is None or (isinstance(tools, list) and not tools):
        return None
    if not isinstance(tools, (list, tuple)):
        raise RowProblem(
            f"{column!r} must be a list of JSON schemas, or the JSON of one, not {shown(tools)}; mend the row"
        )
    schemas = [_decoded(tool, column) for tool in tools]
    for schema in schemas:
        if not isinstance(schema, Mapping):
            raise RowProblem(f"{column!r} must hold JSON schemas as dicts, not {shown(schema)}; mend the row")
    return converters.without_none(schemas)


def _decoded(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except RecursionError:
        raise RowProblem(f"{column!r} is JSON of too many levels: {value[:60]!r}; mend the row") from None
    except ValueError as error:
        raise RowProblem(f"{column!r} is not JSON ({error}): {value[:60]!r}; mend the row") from None


def template_kwargs_of(value: Any) -> dict[str, Any]:
    """Return a row's variables of the chat template, checked; none of them may replace what rendering itself needs."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RowProblem(f"'chat_template_kwargs' must be a dict, not {shown(value)}; mend the row")
    reserved = [name for name in _RESERVED if value.get(name) is not None]
    if reserved:
        raise RowProblem(
            f"'chat_template_kwargs' sets {reserved[0]!r}, which is not the template's to decide; give only variables "
            "that the template reads"
        )
    return converters.without_none(value)
