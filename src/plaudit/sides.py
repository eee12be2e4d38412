"""Preference pairs as columns: tables of any known form in, batches of prompts' and answers' texts out.

A row that is no pair keeps its place, with its problem. What is in columns of plain texts or ids is taken as columns
(`columns`); other rows are looked at one by one, as training looks at them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit import columns, converters, formats, records
from plaudit.columns import AFTER_MESSAGE, AFTER_ROLE, LARGEST_ID, array, is_text
from plaudit.converters import ANSWER_MARK, QUESTION_MARK, Converter, Dropped, RowProblem
from plaudit.records import ROW, SIDES, Layout
from plaudit.tables import FileRows, Unreadable, first_row_of, python_rows
from plaudit.values import brief, finite_number

if TYPE_CHECKING:
    import pyarrow as pa

DROPPED = "dropped: "
SOURCES = ("source", "subset", "dataset", "data_source", "domain", "category", "origin")
MODELS = ("chosen_model", "rejected_model")
_TEXTS = ("chosen_prompt", "rejected_prompt", "prompt_text", *SIDES)


@dataclass(frozen=True)
class Reading:
    """How a data set's rows are read, decided by its first row, as training decides it.

    converter: the other format that they are in, or None. layout: that of pairs, or None. is_transcript: whether pairs of
    plain text are parted at their last `\\n\\nAssistant:`. source, models: columns to count by, where there are any.
    """

    split: str
    converter: Converter | None
    layout: Layout | None
    is_transcript: bool
    source: str | None
    models: bool
    features: Any

    @property
    def is_tokenized(self) -> bool:
        """Whether the sides are token ids, of which there are no texts."""
        return self.layout is not None and self.layout.kind == "tokenized"

    @property
    def has_prompts(self) -> bool:
        """Whether what was asked is known apart from the answers."""
        return self.title in ("conversational", "transcript") or (
            self.layout is None or "prompt" in self.layout.columns
        )

    @property
    def title(self) -> str:
        """The form's name, for people."""
        if self.converter is not None:
            return self.converter.name
        return "transcript" if self.is_transcript else self.layout.kind  # type: ignore[union-attr]


def schema() -> "pa.Schema":
    """Return the columns of a batch.

    row: the row's number in the data, from zero; pair: the pair's number in the row. problem: why it is no pair, or null.
    chosen_prompt, rejected_prompt: all before the answer, roles included, as one text; the second is null where it is
    the first. prompt_text: what the chosen side's prompt says, without roles. chosen, rejected: the answers. Of token
    ids, each side whole, as the bytes of int32. margin, source, chosen_model, rejected_model: null where there is none.
    """
    import pyarrow as pa

    texts = [(name, pa.large_binary()) for name in _TEXTS]
    others = [(name, pa.string()) for name in ("source", *MODELS)]
    return pa.schema(
        [("row", pa.int64()), ("pair", pa.int32()), ("problem", pa.string()), *texts, *others, ("margin", pa.float64())]
    )


def reading_of(rows: Any, split: str, source: str | None = None) -> Reading:
    """Return how the rows of a split are read. ValueError where they are none that plaudit knows, or there is no row."""
    first = first_row_of(rows, split)
    if first is None and isinstance(rows, FileRows):
        raise Unreadable("there is no row")
    if first is None:
        raise ValueError(f"{split}: the data set is empty; at least one row is needed")
    names = list(first)
    if source is not None and source not in names:
        raise ValueError(f"{split}: there is no column {source!r} to count by; found {', '.join(map(repr, names))}")
    if source is None:
        source = next((name for name in SOURCES if isinstance(first.get(name), str)), None)
    converter = formats.recognise(names, first, split)
    layout = None if converter is not None else formats.layout_of(names, first, split)
    is_plain = layout is not None and layout.columns.keys() <= {*SIDES, "margin"}
    is_transcript = is_plain and all(converters.is_transcript(first[side]) for side in SIDES)
    has_models = all(isinstance(first.get(name), str) for name in MODELS)
    return Reading(split, converter, layout, is_transcript, source, has_models, rows.features)


def batch_of(table: "pa.Table", first_row: int, reading: Reading) -> "pa.RecordBatch":
    """Return the pairs of a table as a batch of `schema`'s columns. first_row: the number of the table's first row."""
    import pyarrow as pa

    table = table.combine_chunks()
    rows = np.arange(first_row, first_row + len(table))
    if ROW in table.column_names:
        rows = table[ROW].to_numpy()
    layout = reading.layout
    parts = None if layout is None else columns.texts_of(table, layout, reading.is_transcript)
    if parts is None:
        return _slow_batch(table, rows, reading)
    made = {
        "row": pa.array(rows),
        "pair": pa.array(np.zeros(len(table), np.int32)),
        **parts,
        **_extras(table, reading),
    }
    return _cast(made, len(table))


def _cast(made: Mapping[str, Any], length: int) -> "pa.RecordBatch":
    """Return columns in `schema`'s order and types, those not made as nulls; the texts as bytes, which need no second check."""
    import pyarrow as pa

    wanted = schema()
    arrays = []
    for field in wanted:
        column = made.get(field.name)
        if column is None:
            arrays.append(pa.nulls(length, field.type))
        else:
            arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _extras(table: "pa.Table", reading: Reading) -> dict[str, Any]:
    """Return source, models and margin where the table has them as such."""
    import pyarrow as pa

    found = {}
    wanted = {"source": reading.source, **({name: name for name in MODELS} if reading.models else {})}
    for name, column in wanted.items():
        if column is not None and column in table.column_names:
            values = array(table, column)
            is_plain = pa.types.is_primitive(values.type) or is_text(values.type)
            found[name] = (
                values.cast(pa.string()) if is_plain else pa.array([_text(v) for v in values.to_pylist()], pa.string())
            )
    if "margin" in table.column_names:
        margin = array(table, "margin")
        is_number = pa.types.is_integer(margin.type) or pa.types.is_floating(margin.type)
        found["margin"] = margin.cast(pa.float64()) if is_number else _not_numbers(margin)
    return found


def _not_numbers(column: Any) -> Any:
    """Return a column of another type as margins that training refuses: NaN where there is something."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_null(column), pa.scalar(None, pa.float64()), pa.scalar(math.nan, pa.float64()))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _slow_batch(table: "pa.Table", rows: np.ndarray, reading: Reading) -> "pa.RecordBatch":
    """Return a batch from rows looked at one by one, as training reads them."""
    import pyarrow as pa

    lines: list[dict[str, Any]] = []
    for number, row in zip(rows, python_rows(table, reading.features), strict=True):
        extras = _row_extras(row, reading)
        lines += [
            {"row": int(number), "pair": pair, **extras, **line} for pair, line in enumerate(_lines(row, reading))
        ]
    wanted = schema()
    arrays = [pa.array([line.get(field.name) for line in lines], field.type) for field in wanted]
    return pa.RecordBatch.from_arrays(arrays, schema=wanted)


def _row_extras(row: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    margin, number = row.get("margin"), finite_number(row.get("margin"))
    return {
        "source": None if reading.source is None else _text(row.get(reading.source)),
        "margin": None if margin is None else math.nan if number is None else number,
        **({name: _text(row.get(name)) for name in MODELS} if reading.models else {}),
    }


def _lines(row: Mapping[str, Any], reading: Reading) -> Iterator[dict[str, Any]]:
    """Give the parts of a row's pairs, by column, or why there are none."""
    try:
        for pair in pairs_of(row, reading):
            if isinstance(pair, Dropped):
                yield {"problem": f"{DROPPED}{pair.reason}"}
            else:
                # A pair's own margin, such as the gap between ratings, stands for the row's.
                yield {**_parts(pair), **({"margin": pair["margin"]} if pair.get("margin") is not None else {})}
    except RowProblem as problem:
        yield {"problem": str(problem)}
    except RecursionError:
        yield {"problem": "a value in the row is nested too deeply; mend or drop the row"}


def pairs_of(row: Mapping[str, Any], reading: Reading) -> Iterator[dict[str, Any] | Dropped]:
    """Give a row's pairs, empty answers allowed: two whole message lists, or texts beside their prompts, or ids as bytes.

    RowProblem for what is no pair.
    """
    if reading.converter is not None:
        for pair in reading.converter.pairs(row, True):
            yield pair if isinstance(pair, Dropped) else {**pair, **_conversations(pair, {name: name for name in pair})}
        return
    layout = reading.layout
    assert layout is not None
    if layout.kind == "tokenized":
        yield {side: np.array(_ids_of(row, layout, side), "<i4").tobytes() for side in SIDES}
    elif layout.kind == "standard":
        yield _text_pair(row, layout, reading.is_transcript)
    else:
        yield _conversations(row, layout.columns)


def _ids_of(row: Mapping[str, Any], layout: Layout, side: str) -> list[int]:
    """Return a side's token ids, none where it has none: an empty answer is counted as one, and not refused."""
    column, mask = layout.columns[f"{side}_ids"], layout.columns.get(f"{side}_mask")
    held = row.get(column)
    if isinstance(held, list) and (not held if mask is None else row.get(mask) == [0] * len(held)):
        return []
    ids = records.ids_of(row, layout, side)
    if max(ids) > LARGEST_ID:
        raise RowProblem(f"{column!r} has the id {brief(max(ids))}, and no vocabulary is that large; mend the row")
    return ids


def _text_pair(row: Mapping[str, Any], layout: Layout, is_transcript: bool) -> dict[str, Any]:
    sides = {side: records.text_of(row, layout.columns[side]) for side in SIDES}
    if not is_transcript:
        prompt = records.prompt_text_of(row, layout.columns["prompt"]) if "prompt" in layout.columns else ""
        return {"prompts": [prompt, prompt], "prompt_text": prompt, **sides}
    parted = []
    for side, text in sides.items():
        before, mark, answer = text.rpartition(ANSWER_MARK)
        if not mark or QUESTION_MARK in answer:
            raise RowProblem(
                f"{side!r} is a transcript that does not end with an answer, as row 0's does: {text[-60:]!r}; mend the row"
            )
        parted.append((before, answer.strip()))
    return {
        "prompts": [before for before, _ in parted],
        "prompt_text": parted[0][0].replace(QUESTION_MARK, "\n").replace(ANSWER_MARK, "\n"),
        "chosen": parted[0][1],
        "rejected": parted[1][1],
    }


def _conversations(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, list]:
    """Return a row's sides as whole message lists, an empty last answer allowed; else as records.canonical does."""
    sides = {side: records.messages_of(row.get(names[side]), names[side]) for side in SIDES}
    for side, messages in sides.items():
        records.check_answer(messages, names[side], may_be_empty=True)
    return records.with_prompt(row.get(names["prompt"]), sides, names["prompt"]) if "prompt" in names else sides


def _parts(pair: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(pair["chosen"], bytes):
        return {"chosen_prompt": b"", **{side: pair[side] for side in SIDES}}
    if isinstance(pair["chosen"], str):
        made = {side: pair[side].encode() for side in SIDES}
        prompts, said = [one.encode() for one in pair["prompts"]], pair["prompt_text"].encode()
    else:
        made = {side: _answer(pair[side][-1]).encode() for side in SIDES}
        prompts = ["".join(map(_marked, pair[side][:-1])).encode() for side in SIDES]
        said = "".join(content_text(message) + "\n" for message in pair["chosen"][:-1]).encode()
    return {
        "chosen_prompt": prompts[0],
        "rejected_prompt": None if prompts[0] == prompts[1] else prompts[1],
        "prompt_text": said,
        **made,
    }


def content_text(message: Mapping[str, Any]) -> str:
    """Return what a message says: its text, or its blocks' texts, one a line."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(str(block["text"]) for block in content if block.get("text") is not None)


def _beside(message: Mapping[str, Any]) -> str:
    """Return what a message holds beside role and text, as JSON; nothing for most."""
    others = {name: value for name, value in message.items() if name not in ("role", "content")}
    blocks = [] if isinstance(message["content"], str) else message["content"]
    if any(block.get("type", "text") != "text" for block in blocks):
        others["content"] = blocks
    return json.dumps(others, ensure_ascii=False, sort_keys=True, default=str) if others else ""


def _answer(message: Mapping[str, Any]) -> str:
    front = "" if message["role"] == "assistant" else message["role"] + AFTER_ROLE
    return front + content_text(message) + _beside(message)


def _marked(message: Mapping[str, Any]) -> str:
    return message["role"] + AFTER_ROLE + content_text(message) + _beside(message) + AFTER_MESSAGE
