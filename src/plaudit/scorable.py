"""What can be scored: conversations, texts, token ids, answers to prompts and rows of data, checked and brought to one form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from plaudit import converters, formats, records
from plaudit.converters import Converter, Dropped, RowProblem
from plaudit.records import shape_of
from plaudit.say import say
from plaudit.values import brief, shown

# What happens to a sequence that is too long, and to a row that cannot be scored.
TRUNCATIONS = ("error", "left", "drop_turns")
BAD_ROWS = ("error", "null")
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query")
ANSWER_COLUMNS = ("response", "completion", "answer", "output")
ANSWERS_COLUMNS = ("responses", "completions", "answers", "candidates")
CONVERSATION_COLUMNS = ("messages", "conversation", "conversations")
TEXT_COLUMNS = ("text", "content")
EXTRAS = ("tools", "chat_template_kwargs")
# Text beside a prompt that belongs to it in some formats, in a way that the row does not tell.
_PARTS_OF_PROMPTS = ("input", "system", "context")
# What a completion that is a dict calls its text.
_ANSWER_FIELDS = ("response", "content", "text", "completion", "answer")


@dataclass(frozen=True)
class Scorable:
    """One sequence to score: a text, a conversation that ends with an answer, or token ids.

    where: names it in an error. group: equal for the answers to one prompt, which are cut at the same place.
    """

    content: str | list[dict[str, Any]] | list[int]
    where: str
    group: int
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["text", "conversation", "ids"]:
        """Which of the three it is."""
        if isinstance(self.content, str):
            return "text"
        return "ids" if self.content and isinstance(self.content[0], int) else "conversation"


def is_one(items: Any) -> bool:
    """Tell whether a value is one thing to score, a text, a row or a conversation, and not several."""
    return isinstance(items, (str, Mapping)) or converters.is_message_list(items)


def of_items(items: Any, extras: Mapping[str, Any], as_turns: bool) -> list[Scorable]:
    """Return what a user handed in to be scored, one item or several: texts, message lists, or rows that hold them.

    extras: `tools` and `chat_template_kwargs` for the conversations that bring none. as_turns: as in of_answers. Raises
    ValueError naming the item.
    """
    if hasattr(items, "columns") and hasattr(items, "to_dict"):
        items = items.to_dict("records")
    if is_one(items):
        items = [items]
    if not hasattr(items, "__iter__") or isinstance(items, (set, frozenset)) or getattr(items, "ndim", 1) == 0:
        raise TypeError(
            f"expected texts or conversations to score, got {type(items).__name__}; give a text, a message list, or a list of them"
        )
    return [_of_item(item, f"row {number}", number, extras, as_turns) for number, item in enumerate(items)]


def _of_item(item: Any, where: str, group: int, extras: Mapping[str, Any], as_turns: bool) -> Scorable:
    try:
        item = plain(item)
        if isinstance(item, str):
            return _text(item, "the text", where, group)
        if isinstance(item, Mapping) and not converters.is_message(item):
            row = {**{name: value for name, value in extras.items() if value is not None}, **item}
            found = of_row(row, row_kind(row, where), where, group, as_turns)
            if len(found) != 1:
                raise RowProblem(f"holds {len(found)} answers; give them as prompt= and responses=, or one a row")
            return found[0]
        if shape_of(item) == "ids" and len(item):
            raise RowProblem("holds token ids; give them as score(input_ids=...)")
        return _conversation(records.messages_of(item, "the conversation"), "the conversation", where, group, extras)
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    except RecursionError:
        raise converters.too_deep(where) from None


def plain(value: Any) -> Any:
    """Return a value with NumPy's arrays and numbers, which data frames and Ray make of message lists, as Python's own."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    # A list of Python's own numbers, such as token ids, may be long and is as it should be.
    if isinstance(value, (list, tuple)) and value and type(value[0]) not in (int, str):
        return [plain(item) for item in value]
    return value


def _text(text: str, what: str, where: str, group: int) -> Scorable:
    records.check_unicode(text, what)
    if not text:
        raise RowProblem(f"{what} is empty; give it something to score")
    return Scorable(text, where, group)


def _conversation(messages: list[dict], what: str, where: str, group: int, extras: Mapping[str, Any]) -> Scorable:
    # An empty answer is a thing that policies say, and has a reward.
    records.check_answer(messages, what, may_be_empty=True)
    tools = records.tools_of(extras.get("tools"), "tools")
    return Scorable(messages, where, group, tools, records.template_kwargs_of(extras.get("chat_template_kwargs")))


def of_answers(
    prompt: Any, responses: Sequence[Any], where: str, group: int, extras: Mapping[str, Any], as_turns: bool
) -> list[Scorable]:
    """Return one scorable an answer to one prompt, each a text or messages.

    as_turns: whether a text prompt is a user's turn and a text answer the assistant's, or both are joined as texts.
    Raises ValueError naming the answer.
    """
    if is_one(responses) or not hasattr(responses, "__iter__") or getattr(responses, "ndim", 1) == 0:
        raise ValueError(f"{where}: responses must be a list of answers, not {shown(responses)}; wrap it as [response]")
    out = []
    for number, response in enumerate(responses):
        place = f"{where}, response {number}"
        try:
            out.append(_answered(plain(prompt), plain(response), place, group, extras, as_turns))
        except RowProblem as problem:
            raise ValueError(f"{place}: {problem}") from None
        except RecursionError:
            raise converters.too_deep(place) from None
    return out


def of_prompts(
    prompts: Sequence[Any], responses: Sequence[Any], extras: Mapping[str, Any], as_turns: bool
) -> list[list[Scorable]]:
    """Return one list of scorables a prompt. responses: a list of answers a prompt, or one text a prompt.

    Raises ValueError for another number of them, and naming the prompt and the answer.
    """
    if is_one(prompts):
        raise ValueError("prompts is one prompt; give it as prompt=, or wrap it as [prompt] with one list of responses")
    for name, value in (("prompts", prompts), ("responses", responses)):
        if (
            not hasattr(value, "__len__")
            or isinstance(value, (str, set, frozenset, Mapping))
            or getattr(value, "ndim", 1) == 0
        ):
            raise TypeError(f"{name} must be a list, one entry a prompt, not {shown(value)}")
    if len(prompts) != len(responses):
        raise ValueError(
            f"there are {len(prompts):,} prompts and {len(responses):,} entries of responses; give one list of answers a prompt"
        )
    return [
        of_answers(
            prompt, [answers] if isinstance(answers, str) else answers, f"prompt {number}", number, extras, as_turns
        )
        for number, (prompt, answers) in enumerate(zip(prompts, responses, strict=True))
    ]


def _answered(
    prompt: Any, response: Any, where: str, group: int, extras: Mapping[str, Any], as_turns: bool
) -> Scorable:
    if converters.is_message(response):
        response = [response]
    for name, value in (("the prompt", prompt), ("the response", response)):
        if not isinstance(value, (str, list, tuple)):
            raise RowProblem(f"{name} must be text or a message list, not {shown(value)}")
    if isinstance(prompt, str) and isinstance(response, str) and not as_turns:
        return _text(prompt + response, "the prompt with its response", where, group)
    if isinstance(response, str):
        records.check_unicode(response, "the response")
        response = [{"role": "assistant", "content": response}]
    if not response:
        raise RowProblem("the response is an empty message list; give it an answer")
    answer = records.messages_of(response, "the response")
    if isinstance(prompt, str):
        records.check_unicode(prompt, "the prompt")
        is_whole = any(message["role"] == "user" and message["content"] == prompt for message in answer)
        prompt = [] if is_whole else [{"role": "user", "content": prompt}]
    messages = records.with_prompt(prompt, {"response": answer}, "the prompt")["response"] if prompt else answer
    return _conversation(messages, "the conversation", where, group, extras)


def of_ids(input_ids: Any, attention_mask: Any = None, pad_token_id: int | None = None) -> list[Scorable]:
    """Return token ids, one sequence or several, without what the mask hides.

    input_ids: a list of ids, a list of such lists, or an array or tensor, shape (num_sequences, longest), whose padding,
    where no mask tells, are trailing ids of pad_token_id. Raises ValueError naming the row.
    """
    if isinstance(input_ids, Mapping):
        raise ValueError(
            f"input_ids holds the columns {brief(sorted(map(str, input_ids)))}; give input_ids=encoded['input_ids'] and "
            "attention_mask=encoded['attention_mask']"
        )
    if not hasattr(input_ids, "__iter__"):
        raise TypeError(f"input_ids: expected lists of token ids, got {type(input_ids).__name__}")
    is_array = getattr(input_ids, "ndim", 1) == 2
    try:
        rows, masks = plain(input_ids), plain(attention_mask)
    except RecursionError:
        raise converters.too_deep("input_ids") from None
    if not hasattr(rows, "__len__") or isinstance(rows, (set, frozenset)):
        raise TypeError(f"input_ids: expected lists of token ids, got {shown(input_ids)}")
    if len(rows) and not hasattr(rows[0], "__len__"):
        rows, masks = [rows], None if masks is None else [masks]
    if masks is not None and (not isinstance(masks, (list, tuple)) or len(masks) != len(rows)):
        found = f"{len(masks)} rows" if isinstance(masks, (list, tuple)) else f"no rows ({shown(masks)})"
        raise ValueError(f"attention_mask has {found} and input_ids {len(rows)}; give both one shape")
    out = []
    for number, row in enumerate(rows):
        try:
            ids = _attended(row, None if masks is None else masks[number])
            if masks is None and is_array:
                ids = _without_padding(ids, pad_token_id)
        except RowProblem as problem:
            raise ValueError(f"row {number}: {problem}") from None
        except RecursionError:
            raise converters.too_deep(f"input_ids, row {number}") from None
        out.append(Scorable(ids, f"row {number}", number))
    return out


def _attended(row: Any, mask: Any) -> list[int]:
    """Return a row's token ids without what its mask, if it has one, hides. Raises RowProblem for an impossible row."""
    ids = records.integers_of(
        [plain(token) for token in row] if isinstance(row, (list, tuple)) else row, "input_ids", {int}
    )
    if mask is not None:
        kept = records.integers_of(mask, "attention_mask", {int, bool})
        if len(kept) != len(ids) or not set(kept) <= {0, 1}:
            raise RowProblem(
                f"attention_mask has {len(kept)} entries for {len(ids)} ids, of the values {brief(sorted(set(kept))[:5])}; give 1 for "
                "each token and 0 for padding"
            )
        ids = [token for token, is_kept in zip(ids, kept, strict=True) if is_kept]
    if not ids:
        raise RowProblem("input_ids is empty; give it at least one token")
    if min(ids) < 0:
        raise RowProblem(f"input_ids holds the negative id {brief(min(ids))}; leave padding and label ids out")
    return ids


def _without_padding(ids: list[int], pad_token_id: int | None) -> list[int]:
    if pad_token_id is None:
        return ids
    if ids[0] == pad_token_id:
        raise RowProblem("input_ids begins with padding; give the attention_mask too")
    while len(ids) > 1 and ids[-1] == pad_token_id:
        ids = ids[:-1]
    return ids


@dataclass(frozen=True)
class RowKind:
    """What a data set's first row showed: what each of its rows gives, and the columns that it is in.

    shape: "single" gives `reward`, "pair" `reward_chosen` and `reward_rejected`, "answers" `rewards`.
    """

    shape: Literal["single", "pair", "answers"]
    columns: Mapping[str, str] = field(default_factory=dict)
    layout: records.Layout | None = None
    converter: Converter | None = None

    @property
    def described(self) -> str:
        """What of a row is scored, to be said."""
        if self.converter is not None:
            return f"the pair that they hold as {self.converter.title}"
        names = self.columns or (self.layout.columns if self.layout else {})
        return " and ".join(map(repr, names.values()))

    @property
    def reward_columns(self) -> tuple[str, ...]:
        """The columns that the rewards go to."""
        return {"single": ("reward",), "pair": ("reward_chosen", "reward_rejected"), "answers": ("rewards",)}[
            self.shape
        ]


def row_kind(first_row: Mapping[str, Any], where: str = "data") -> RowKind:
    """Return what the rows of a data set give, decided by the first one. Raises ValueError for columns that hold nothing to score."""
    try:
        row = plain(first_row)
    except RecursionError:
        raise converters.too_deep(f"{where}, first row") from None
    odd = [name for name in row if not isinstance(name, str)]
    if odd:
        raise ValueError(f"{where}: a column's name must be text, not {shown(odd[0])}; rename it")
    prompt, answer, answers, conversation, text = (
        _column_of(row, names)
        for names in (PROMPT_COLUMNS, ANSWER_COLUMNS, ANSWERS_COLUMNS, CONVERSATION_COLUMNS, TEXT_COLUMNS)
    )
    pairs = ("chosen", "rejected", "chosen_ids", "chosen_input_ids", "input_ids_chosen")
    if not any(name in row for name in pairs):
        if conversation and _is_answered(row[conversation]):
            return RowKind("single", {"conversation": conversation})
        asked = prompt or conversation
        if asked and answers and not isinstance(row[answers], str):
            return RowKind("answers", {"prompt": asked, "answers": answers})
        if asked and answer:
            return RowKind("single", {"prompt": asked, "answer": answer})
        if conversation:
            return RowKind("single", {"conversation": conversation})
        if shape_of(row.get("input_ids")) == "ids":
            return RowKind("single", {"ids": "input_ids"})
        if text and isinstance(row[text], (str, type(None))):
            return RowKind("single", {"text": text})
    try:
        converter = formats.recognise(list(row), row, where)
        layout = None if converter else formats.layout_of(list(row), row, where)
    except ValueError as error:
        raise ValueError(
            f"{error}; to be scored, a row may also hold 'messages', 'text', 'input_ids', 'prompt' with 'response', or "
            "'prompt' with the list 'responses'"
        ) from None
    return RowKind("pair", converter=converter, layout=layout)


def _column_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return which of the names the row has, one with a value before one without."""
    there = [name for name in names if name in row]
    return next((name for name in there if row[name] is not None), there[0] if there else None)


def _is_answered(messages: Any) -> bool:
    """Tell whether a value is a conversation that ends with somebody's answer."""
    if not converters.is_message_list(messages):
        return False
    return converters.role_content(messages[-1]).get("role") not in ("user", "system", "developer")


def of_row(row: Mapping[str, Any], kind: RowKind, where: str, group: int, as_turns: bool) -> list[Scorable]:
    """Return what one row of a data set gives: one scorable, a pair's chosen and rejected, or one an answer.

    Empty for a row of another format that holds no preference, such as a tied vote. Raises ValueError naming the row.
    """
    names = kind.columns
    try:
        row = plain(row)
        if kind.shape == "pair":
            return _of_pair(row, kind, where, group, as_turns)
        if "text" in names:
            return [_text(_given(row, names["text"], str), repr(names["text"]), where, group)]
        if "ids" in names:
            return [Scorable(_attended(_given(row, "input_ids", list), row.get("attention_mask")), where, group)]
        if "conversation" in names:
            column = names["conversation"]
            _require_whole(row, {"prompt": column})
            return [_conversation(records.messages_of(row.get(column), column), column, where, group, row)]
        prompt = _given(row, names["prompt"], (str, list))
        _require_whole(row, names)
        if "answer" in names:
            return [_answered(prompt, _given(row, names["answer"], (str, list)), where, group, row, as_turns)]
        answers = _given(row, names["answers"], list)
        if not answers:
            raise RowProblem(f"{names['answers']!r} is an empty list; give the row at least one answer, or drop it")
        return of_answers(prompt, [_answer_of(one) for one in answers], where, group, row, as_turns)
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    except RecursionError:
        raise converters.too_deep(where) from None


def _require_whole(row: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise RowProblem where a column beside the prompt holds text that may belong to it."""
    part = next((name for name in _PARTS_OF_PROMPTS if isinstance(row.get(name), str) and row[name].strip()), None)
    if part is not None and part not in names.values():
        raise RowProblem(
            f"{part!r} holds text beside {names['prompt']!r}, and is not read; write it into {names['prompt']!r}, which may be a "
            "message list, or rename the column if it is no part of the prompt"
        )


def _given(row: Mapping[str, Any], column: str, kinds: type | tuple[type, ...]) -> Any:
    value = row.get(column)
    if value is None:
        raise RowProblem(f"{column!r} is None; drop the row or fill it")
    if not isinstance(value, kinds):
        wanted = " or ".join(
            "text" if kind is str else "a list" for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
        )
        raise RowProblem(f"{column!r} must be {wanted}, as in the first row, not {shown(value)}; mend the row")
    return value


def _answer_of(value: Any) -> Any:
    """Return the text or messages of a completion that may be a dict of them."""
    if isinstance(value, Mapping) and not converters.is_message(value):
        found = next((value[name] for name in _ANSWER_FIELDS if value.get(name) is not None), None)
        if found is None:
            raise RowProblem(
                f"an answer has none of {', '.join(map(repr, _ANSWER_FIELDS))}, but {brief(sorted(value, key=str))}"
            )
        return found
    return value


def _of_pair(row: Mapping[str, Any], kind: RowKind, where: str, group: int, as_turns: bool) -> list[Scorable]:
    if kind.converter is not None:
        pairs = list(kind.converter.pairs(row, False))
        found = [pair for pair in pairs if not isinstance(pair, Dropped)]
        if not found:
            return []
        if len(found) > 1:
            raise RowProblem(f"holds {len(found)} pairs; give its answers as a list in 'responses' beside 'prompt'")
        row = {**{name: row[name] for name in EXTRAS if name in row}, **found[0]}
        layout = records.Layout("conversational", {name: name for name in row})
    else:
        known = kind.layout.columns if kind.layout else {}
        # What only a later row has belongs to it all the same.
        late = {name: name for name in ("prompt", *EXTRAS) if name not in known and row.get(name) is not None}
        layout = records.Layout(kind.layout.kind if kind.layout else "standard", {**known, **late})
        if layout.kind == "standard" and "prompt" in layout.columns and as_turns:
            sides = [(side, _given(row, side, str)) for side in records.SIDES]
            prompt = _given(row, "prompt", str)
            return [_answered(prompt, text, f"{where}, {side!r}", group, row, True) for side, text in sides]
    pair = records.canonical(row, layout, where)
    return list(_sides(pair, layout.kind, where, group))


def _sides(pair: Mapping[str, Any], kind: str, where: str, group: int) -> Iterator[Scorable]:
    for side in records.SIDES:
        place = f"{where}, {side!r}"
        if kind == "tokenized":
            yield Scorable(pair[f"{side}_ids"], place, group)
        elif kind == "standard":
            yield Scorable(pair[side], place, group)
        else:
            yield Scorable(pair[side], place, group, pair["tools"], pair["chat_template_kwargs"])


def say_how_texts_are_read(kind: str | None, found: Sequence[Scorable]) -> None:
    """Say once where texts are scored by a model of conversations, or conversations by a model of texts."""
    kinds = {one.kind for one in found}
    if kind == "conversational" and "text" in kinds:
        say(
            "texts are scored as they are, with the end token after them, but this model was trained on conversations; "
            "give message lists to have them rendered as in training",
            once=True,
        )
    elif kind == "standard" and "conversation" in kinds:
        say("conversations are rendered by the chat template, but this model was trained on plain texts", once=True)
