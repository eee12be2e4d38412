"""Prompts' and answers' texts of whole tables at once, by columns; None for tables whose rows need a look one by one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit.converters import ANSWER_MARK, QUESTION_MARK
from plaudit.records import NOT_ANSWERS, SIDES, Layout

if TYPE_CHECKING:
    import pyarrow as pa

# Between a message's role and its content, and after a message, where a prompt is one text: the code points that are
# there for it, which no role holds.
AFTER_ROLE, AFTER_MESSAGE = "\x1f", "\x1e"
# Of a token; beyond any vocabulary.
LARGEST_ID = 2**31 - 1


def array(table: "pa.Table", column: str) -> Any:
    """Return a table's column as one array."""
    chunked = table[column]
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def flat_bytes(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of a column of texts or bytes, one value after the other, and where each begins and the last ends."""
    import pyarrow as pa

    if column.type not in (pa.large_string(), pa.large_binary()):
        column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    every = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    flat = np.frombuffer(data, np.uint8) if data is not None else np.array([], np.uint8)
    return flat[every[0] : every[-1]], every - every[0]


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def texts_of(table: "pa.Table", layout: Layout, is_transcript: bool) -> dict[str, Any] | None:
    """Return what sides.schema says of a table's prompts and answers, by name; None where its rows need a closer look."""
    if any(column not in table.column_names for column in layout.columns.values()):
        return None
    if layout.kind == "tokenized":
        return _columns_of_ids(table, layout)
    if layout.kind == "standard":
        return _columns_of_texts(table, layout, is_transcript)
    return _columns_of_messages(table, layout)


def _columns_of_texts(table: "pa.Table", layout: Layout, is_transcript: bool) -> dict[str, Any] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    names = [name for name in ("prompt", *SIDES) if name in layout.columns]
    texts = {name: array(table, layout.columns[name]) for name in names}
    if any(not is_text(column.type) or column.null_count for column in texts.values()):
        return None
    chosen, rejected = (texts[side].cast(pa.large_string()) for side in SIDES)
    if not is_transcript:
        prompt = (
            texts["prompt"].cast(pa.large_string())
            if "prompt" in texts
            else pa.array([""] * len(table), pa.large_string())
        )
        return {"chosen_prompt": prompt, "prompt_text": prompt, "chosen": chosen, "rejected": rejected}
    parted = [_at_last_turn(column) for column in (chosen, rejected)]
    if any(each is None for each in parted):
        return None
    (chosen_prompt, chosen), (rejected_prompt, rejected) = parted  # type: ignore[misc]
    same = pc.equal(chosen_prompt, rejected_prompt)
    return {
        "chosen_prompt": chosen_prompt,
        "rejected_prompt": pc.if_else(same, pa.scalar(None, pa.large_string()), rejected_prompt),
        "prompt_text": _without_marks(chosen_prompt),
        "chosen": chosen,
        "rejected": rejected,
    }


def _at_last_turn(texts: Any) -> tuple[Any, Any] | None:
    """Return transcripts as all before the last answer, and the answer; None where one does not end with an answer."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = pc.split_pattern(texts, ANSWER_MARK, max_splits=1, reverse=True)
    if len(parts) and pc.min(pc.list_value_length(parts)).as_py() < 2:
        return None
    flat = parts.flatten()
    prompts, answers = flat.take(np.arange(0, len(flat), 2)), flat.take(np.arange(1, len(flat), 2))
    if pc.any(pc.match_substring(answers, QUESTION_MARK)).as_py():
        return None
    return prompts.cast(pa.large_string()), pc.utf8_trim_whitespace(answers).cast(pa.large_string())


def _without_marks(texts: Any) -> Any:
    import pyarrow.compute as pc

    for mark in (QUESTION_MARK, ANSWER_MARK):
        texts = pc.replace_substring(texts, mark, "\n")
    return texts


def _columns_of_messages(table: "pa.Table", layout: Layout) -> dict[str, Any] | None:
    """Return plain conversations' texts; None for anything beside texts in messages, or a prompt repeated in a side."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sides = {side: Messages.of(array(table, layout.columns[side])) for side in SIDES}
    chosen, rejected = sides.values()
    if chosen is None or rejected is None:
        return None
    if not all(np.isin(side.roles_at(side.stops - 1), NOT_ANSWERS, invert=True).all() for side in (chosen, rejected)):
        return None
    befores = [side.before_last() for side in (chosen, rejected)]
    texts = befores[0][1]
    if "prompt" in layout.columns:
        prompt = Messages.of(array(table, layout.columns["prompt"]))
        if prompt is None or not _is_apart(prompt, (chosen, rejected)):
            return None
        front = prompt.whole()
        befores = [(joined(front[0], one[0]), one[1]) for one in befores]
        texts = joined(front[1], texts)
    same = pc.equal(befores[0][0], befores[1][0])
    return {
        "chosen_prompt": befores[0][0],
        "rejected_prompt": pc.if_else(same, pa.scalar(None, pa.large_string()), befores[1][0]),
        "prompt_text": texts,
        "chosen": chosen.last(),
        "rejected": rejected.last(),
    }


def joined(*parts: Any) -> Any:
    """Return texts one after the other, element by element; a part is a column of large strings, or a text for all."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*columns, pa.scalar("", pa.large_string()))


def _is_apart(prompt: "Messages", sides: Sequence["Messages"]) -> bool:
    """Whether it is plain from the first roles that no side repeats its prompt (see records.with_prompt)."""
    first = prompt.roles_at(prompt.starts)
    is_system = np.isin(first, ("system", "developer"))
    has_more = prompt.stops - prompt.starts > 1
    second = prompt.roles_at(np.where(has_more, prompt.starts + 1, prompt.starts))
    begins = np.where(is_system, np.where(has_more, second, "user"), first)
    return bool((begins == "user").all()) and all((side.roles_at(side.starts) == "assistant").all() for side in sides)


class Messages:
    """A column of message lists that hold a role and a text each, and nothing else: views, nothing copied."""

    def __init__(self, roles: Any, contents: Any, lengths: np.ndarray) -> None:
        self.roles, self.contents = roles, contents
        self.stops = np.cumsum(lengths)
        self.starts = self.stops - lengths
        self._role_names: Any = None

    @classmethod
    def of(cls, column: Any) -> "Messages | None":
        """Return a column as messages; None where it is none, or a list is empty, or a message holds more."""
        import pyarrow as pa
        import pyarrow.compute as pc

        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if not is_list or not pa.types.is_struct(column.type.value_type) or column.null_count:
            return None
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = column.flatten()
        names = [field.name for field in flat.type]
        if not {"role", "content"} <= set(names) or flat.null_count or (len(lengths) and lengths.min() < 1):
            return None
        fields = dict(zip(names, flat.flatten(), strict=True))
        roles, contents = fields.pop("role"), fields.pop("content")
        plain = all(is_text(one.type) and not one.null_count for one in (roles, contents))
        if not plain or any(one.null_count < len(one) for one in fields.values()):
            return None
        if pc.any(pc.equal(roles, "")).as_py():
            return None
        return cls(roles.cast(pa.large_string()), contents.cast(pa.large_string()), lengths)

    def roles_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the roles of the messages at these places of the flat list."""
        if self._role_names is None:
            encoded = self.roles.dictionary_encode()
            self._role_names = np.array(encoded.dictionary.to_pylist(), object), encoded.indices.to_numpy()
        names, indices = self._role_names
        return names[indices[positions]] if len(positions) else np.array([], object)

    def last(self) -> Any:
        """Return each list's last text; another role than the assistant's in front of it."""
        import pyarrow as pa

        texts = self.contents.take(pa.array(self.stops - 1))
        roles = self.roles_at(self.stops - 1)
        if (roles == "assistant").all():
            return texts
        fronts = pa.array(["" if role == "assistant" else role + AFTER_ROLE for role in roles], pa.large_string())
        return joined(fronts, texts)

    def whole(self) -> tuple[Any, Any]:
        """Return each list as one text with roles, and as one without."""
        return self._join(np.ones(len(self.roles), bool), self.stops - self.starts)

    def before_last(self) -> tuple[Any, Any]:
        """Return each list but its last message, as `whole` does."""
        keep = np.ones(len(self.roles), bool)
        keep[self.stops - 1] = False
        return self._join(keep, self.stops - self.starts - 1)

    def _join(self, keep: np.ndarray, lengths: np.ndarray) -> tuple[Any, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        roles, contents = (one.filter(pa.array(keep)) for one in (self.roles, self.contents))
        marked, lines = joined(roles, AFTER_ROLE, contents, AFTER_MESSAGE), joined(contents, "\n")
        nothing = pa.scalar("", pa.large_string())
        return tuple(pc.binary_join(pa.LargeListArray.from_arrays(offsets, one), nothing) for one in (marked, lines))  # type: ignore[return-value]


def _columns_of_ids(table: "pa.Table", layout: Layout) -> dict[str, Any] | None:
    """Return the sides' token ids as bytes, without what their masks hide; None where a row must be looked at."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for side in SIDES:
        column = array(table, layout.columns[f"{side}_ids"])
        mask_name = layout.columns.get(f"{side}_mask")
        parts = _flat_integers(column)
        mask = None if mask_name is None else _flat_integers(array(table, mask_name))
        if parts is None or (mask_name is not None and mask is None):
            return None
        ids, lengths = parts
        if len(ids) and (ids.min() < 0 or ids.max() > LARGEST_ID):
            return None
        if mask is not None:
            if not np.array_equal(mask[1], lengths) or not np.isin(mask[0], (0, 1)).all():
                return None
            totals = np.concatenate([[0], np.cumsum(mask[0])])
            stops = np.cumsum(lengths)
            ids, lengths = ids[mask[0] == 1], totals[stops] - totals[stops - lengths]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) * 4
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(ids, "<i4"))]
        found[side] = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)
    nothing = pa.array([b""] * len(table), pa.large_binary())
    return {"chosen_prompt": nothing, **found}


def _flat_integers(column: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a column of lists of integers as one array, and the lists' lengths; None for anything else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list or column.null_count:
        return None
    flat = column.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_boolean(flat.type)) or flat.null_count:
        return None
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return flat.to_numpy(zero_copy_only=False).astype(np.int64), lengths
