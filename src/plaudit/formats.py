"""Every record format accepted, each turned into the one canonical pair; errors name row, column and cure."""

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from plaudit import caches, compat, converters, records
from plaudit.converters import CONVERTERS, Converter, Dropped, RowProblem
from plaudit.records import ROW, SIDES, Layout, canonical, shape_of, wrong_shape
from plaudit.say import say, visible

DROPPED = "plaudit_dropped"
_EXTRAS = ("margin", "tools", "chat_template_kwargs")
_EXAMPLE_CHARACTERS = 48
# What is compared with the names that are known.
LONGEST_NAME, MOST_NAMES = 100, 200
_STREAM_ROWS_SEARCHED = 1_000


def recognise(columns: Sequence[str], first_row: Mapping[str, Any], split: str) -> Converter | None:
    """Return the converter that the rows need, or None where they are preference pairs or tokenized already.

    Raises ValueError, with what was found, what looks like a match and the nearest format, for unknown columns.
    """
    if _token_columns(columns, first_row) is not None:
        return None
    has_sides = all(side in columns for side in SIDES)
    if has_sides and all(shape_of(first_row[side]) in ("text", "messages") for side in SIDES):
        _offer(first_row, split)
        return None
    for converter in CONVERTERS.values():
        if converter.recognises(first_row):
            return converter
    if has_sides:
        # layout_of names what is wrong with these two values.
        return None
    raise ValueError(_unknown_columns(columns, split))


def layout_of(columns: Sequence[str], first_row: Mapping[str, Any], split: str) -> Layout:
    """Return the layout of rows that need no converter, decided by `chosen` and `rejected` of the first row alone.

    Where rows are tokenized and have kept their texts, the tokens are used.
    """
    tokens = _token_columns(columns, first_row)
    if tokens is not None:
        _check_masks(tokens, columns, split)
        compat.warn_of_older_columns(tokens)
        names = {name: column for name, column in tokens.items() if column in columns}
        return Layout("tokenized", {**names, **({"margin": "margin"} if "margin" in columns else {})})
    missing = [side for side in SIDES if side not in columns]
    if missing:
        raise ValueError(_unknown_columns(columns, split))
    shapes = [shape_of(first_row[side]) for side in SIDES]
    for side, shape in zip(SIDES, shapes, strict=True):
        if shape not in ("text", "messages"):
            raise ValueError(f"{split} row 0: {wrong_shape(side, shape, first_row[side])}")
    if shapes[0] != shapes[1]:
        text, messages = SIDES if shapes[0] == "text" else reversed(SIDES)
        raise ValueError(
            f"{split} row 0: one side is text, the other messages: {text!r} is text and {messages!r} a message list; "
            "give both sides the same form"
        )
    conversational = shapes[0] == "messages"
    optional = ("prompt", *_EXTRAS) if conversational else ("prompt", "margin")
    names = {name: name for name in (*SIDES, *optional) if name in columns}
    return Layout("conversational" if conversational else "standard", names)


def _token_columns(columns: Sequence[str], first_row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest generation of token columns that the rows have, if any."""
    for names in compat.TOKEN_COLUMNS:
        pair = [names["chosen_ids"], names["rejected_ids"]]
        if all(name in columns for name in pair):
            # `chosen_ids` beside texts may also be somebody's identifiers.
            is_tokens = any(shape_of(first_row[name]) in ("ids", "messages") for name in pair if name)
            if is_tokens or not all(side in columns for side in SIDES):
                return dict(names)
    return None


def _check_masks(tokens: Mapping[str, Any], columns: Sequence[str], split: str) -> None:
    masks = [name for name in (tokens["chosen_mask"], tokens["rejected_mask"]) if name]
    if sum(name in columns for name in masks) == 1:
        missing = next(name for name in masks if name not in columns)
        raise ValueError(f"{split}: the column {missing!r} is missing; give both {' and '.join(masks)}, or neither")


def _offer(first_row: Mapping[str, Any], split: str) -> None:
    """Say which converter these pairs could have been meant for; they are used as they are."""
    if all(converters.is_transcript(first_row[side]) for side in SIDES):
        say(
            f"{split}: 'chosen' and 'rejected' look like transcripts and are used as plain text; to make messages of "
            'them: plaudit.formats.convert(dataset, "transcript"), or dataset_format: transcript',
            once="offer",
        )
        return
    if all(_is_json_messages(first_row[side]) for side in SIDES):
        say(
            f"{split}: 'chosen' and 'rejected' look like the JSON of message lists and are used as plain text; decode "
            "them with json.loads to train on conversations",
            once="offer",
        )
        return
    has_conversation = "prompt" not in first_row and converters.is_message_list(first_row.get("conversations"))
    if has_conversation and not any("user" in _roles(first_row[side]) for side in SIDES):
        say(
            f"{split}: 'conversations' is not read, and 'chosen' and 'rejected' hold no user turn; to put it before "
            'them: plaudit.formats.convert(dataset, "sharegpt"), or dataset_format: sharegpt',
            once="offer",
        )


def _is_json_messages(text: Any) -> bool:
    if not isinstance(text, str) or not text.lstrip().startswith("[{"):
        return False
    try:
        return converters.is_message_list(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _roles(messages: Any) -> list[Any]:
    if not converters.is_message_list(messages):
        return []
    return [converters.role_content(message).get("role") for message in messages]


def _unknown_columns(columns: Sequence[str], split: str) -> str:
    for names in compat.TOKEN_COLUMNS:
        pair = [str(names["chosen_ids"]), str(names["rejected_ids"])]
        if any(name in columns for name in pair):
            missing = next(name for name in pair if name not in columns)
            return f"{split}: the rows are tokenized, but the column {missing!r} is missing; give both {' and '.join(pair)}"
    alike = [f"{near!r} looks like {side!r}" for side in SIDES if side not in columns for near in _alike(side, columns)]
    nearest = max(CONVERTERS.values(), key=lambda converter: _nearness(converter, columns))
    return (
        f"{split}: no preference pairs in columns {_some(columns)}; expected 'chosen' and "
        "'rejected' (text or message lists, with or without 'prompt'), or 'chosen_ids' and 'rejected_ids'"
        + (f"; {', '.join(alike)}: dataset.rename_column(old, new)" if alike else "")
        + f"; the nearest other format is {nearest.name!r} with columns {_needs(nearest)}"
    )


def _some(columns: Sequence[str]) -> str:
    """Return the columns' names, the first twelve of many; not that of a column which is not the user's."""
    columns = [name for name in columns if name != ROW]
    more = f" and {len(columns) - 12:,} more" if len(columns) > 12 else ""
    return ", ".join(map(repr, columns[:12])) + more or "(none)"


def _alike(name: str, columns: Sequence[str]) -> list[str]:
    short = _comparable(columns)
    return [column for column in short if name in column.lower()] or get_close_matches(name, short, n=1)


def _comparable(columns: Sequence[str]) -> list[str]:
    """Return the names that may be misspelt: to compare one of a million characters would take hours."""
    return [column for column in columns if len(column) <= LONGEST_NAME][:MOST_NAMES]


def _needs(converter: Converter) -> str:
    return ", ".join(" or ".join(map(repr, names)) for names in converter.columns)


def _nearness(converter: Converter, columns: Sequence[str]) -> float:
    """Return how well the columns cover what a converter needs, 0 to 1."""
    best = [
        max(
            (SequenceMatcher(None, name, column).ratio() for name in names for column in _comparable(columns)),
            default=0.0,
        )
        for names in converter.columns
    ]
    return sum(best) / len(best)


def convert(
    dataset: Any, name: str | None = None, *, margins: bool = False, split: str = "train", keep_dropped: bool = False
) -> Any:
    """Return a dataset of another format as preference pairs: `prompt` (where there is one), `chosen`, `rejected`.

    dataset: a Dataset (converted now, cached) or an IterableDataset (converted as it is read); it is not changed.
    name: a format of CONVERTERS; None recognises it, and returns a dataset that holds pairs already as it is.
    margins: add `margin`, the gap between the scores, where the format has one.
    keep_dropped: leave rows without a pair in place, both sides None and the reason in the column DROPPED.
    A `tools`, `chat_template_kwargs` or `margin` column is kept. Raises ValueError for a row that the format does not
    allow, for an unknown name, and where no pair is left.
    """
    from datasets import IterableDataset

    check_type(dataset, "dataset", split)
    rows = dataset.with_format(None)
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{split}: the dataset is empty; at least one row is needed")
    converter = recognise(list(first), first, split) if name is None else _by_name(name, first, split)
    if converter is None:
        return dataset
    streamed = isinstance(dataset, IterableDataset)
    # A stream may have no end, so it is not searched for ever.
    searched = islice(rows, _STREAM_ROWS_SEARCHED) if streamed else rows
    example = _example(searched, converter, margins, split)
    say(f"{split}: read as {converter.title} (format {converter.name!r}), {_rendered(example)}")
    options: dict[str, Any] = {
        "batched": True,
        "with_indices": True,
        "remove_columns": rows.column_names or list(first),
        "features": _features(rows.features, list(example)),
        "fn_kwargs": {
            "name": converter.name,
            "margins": margins,
            "split": split,
            "columns": list(example),
            "keep_dropped": keep_dropped or not streamed,
            "code": source_checksum(__file__, records.__file__, converters.__file__),
        },
    }
    if not streamed:
        with caches.beside(rows):
            converted = rows.map(_convert_batch, desc=f"Converting {visible(split)}", **options)
        return _check_dropped(converted, len(rows), split, keep_dropped)
    # Small batches: a stream's first pairs come, and its bad row is reported, when they are reached.
    converted = rows.map(_convert_batch, batch_size=32, **options)
    if keep_dropped:
        return converted
    say(f"{split}: rows without a pair are left out as the stream is read")
    return converted.remove_columns(DROPPED)


def check_type(dataset: Any, what: str, split: str = "train") -> None:
    """Raise TypeError, naming what was given, unless it is a Dataset or an IterableDataset.

    what: the argument's name. split: which split of a DatasetDict was probably meant.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, (Dataset, IterableDataset)):
        return
    hint = ""
    # DatasetDict and IterableDatasetDict are dicts of splits.
    if isinstance(dataset, dict) and dataset:
        hint = f"; did you mean dataset[{(split if split in dataset else next(iter(dataset)))!r}]?"
    elif isinstance(dataset, (list, tuple)):
        hint = "; datasets.Dataset.from_list(rows) makes one of it"
    kind = f"{type(dataset).__module__.split('.')[0]}.{type(dataset).__name__}"
    raise TypeError(f"{what}: expected a datasets.Dataset or IterableDataset, got {kind}{hint}")


def _by_name(name: str, first: Mapping[str, Any], split: str) -> Converter:
    if name not in CONVERTERS:
        raise ValueError(f"dataset format {name!r} is unknown; the formats are {', '.join(CONVERTERS)}")
    converter = CONVERTERS[name]
    if not all(any(column in first for column in names) for names in converter.columns):
        raise ValueError(f"{split}: format {name!r} needs columns {_needs(converter)}; found {_some(list(first))}")
    return converter


def _pairs(
    row: Mapping[str, Any], converter: Converter, margins: bool, where: str
) -> Iterator[dict[str, Any] | Dropped]:
    """Yield a row's pairs, each checked here, so that an error names the row that the user has."""
    kept = {column: row[column] for column in (*_EXTRAS, ROW) if column in row}
    try:
        for pair in converter.pairs(row, margins):
            if isinstance(pair, Dropped):
                yield pair
                continue
            record = {**kept, **pair}
            canonical(record, Layout("conversational", {name: name for name in record}), where)
            yield record
    except RowProblem as problem:
        raise ValueError(f"{where}: {problem}") from None
    except RecursionError:
        raise converters.too_deep(where) from None


def _example(rows: Iterable[Mapping[str, Any]], converter: Converter, margins: bool, split: str) -> dict[str, Any]:
    """Return the first pair that the rows give. Raises ValueError, with the reasons, where they give none."""
    reasons: Counter[str] = Counter()
    number = -1
    for number, row in enumerate(rows):
        for pair in _pairs(row, converter, margins, f"{split} row {number}"):
            if not isinstance(pair, Dropped):
                return pair
            reasons[pair.reason] += 1
    raise ValueError(
        f"{split}: no pair is left of the {number + 1:,} rows read ({_counted(reasons)}); "
        f"check that {converter.name!r} is their format"
    )


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))


def _rendered(pair: Mapping[str, Any]) -> str:
    """Return a pair on one short line: the end of its prompt, and both answers' beginnings."""
    prompt = pair["prompt"] if "prompt" in pair else pair["chosen"][:-1]
    prompt_text, *answers = (
        " ".join(str(converters.role_content(messages[-1]).get("content", "")).split()) if messages else ""
        for messages in (prompt, *(pair[side] for side in SIDES))
    )
    parts = zip(("prompt", *SIDES), (prompt_text, *answers), strict=True)
    return "for example " + ", ".join(f'{name} "{_cut(text)}"' for name, text in parts)


def _cut(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"


def _features(source: Any, columns: Sequence[str]) -> Any:
    """Return the columns' types, given ahead: a batch may not show them (all dropped, no message with tool calls).

    None where a column is kept from a stream whose own types are unknown.
    """
    from datasets import Features, Json, List, Value

    kept = [name for name in columns if name in ("tools", "chat_template_kwargs")]
    if source is None and kept:
        return None
    types: dict[str, Any] = {name: List(Json()) for name in columns}
    types |= {name: source[name] for name in kept}
    types |= {ROW: Value("int64")} if ROW in columns else {}
    if "margin" in types:
        types["margin"] = Value("float64")
    return Features({**types, DROPPED: Value("string")})


def source_checksum(*files: str) -> int:
    """Return a checksum of source files: datasets caches a function of an installed module by its name alone."""
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))


def _convert_batch(
    rows: Mapping[str, list],
    numbers: list[int],
    name: str,
    margins: bool,
    split: str,
    columns: Sequence[str],
    keep_dropped: bool,
    code: int,
) -> dict[str, list]:
    """Convert a batch of columns; code only tells the cache apart."""
    out: dict[str, list] = {column: [] for column in (*columns, DROPPED)}
    names = list(rows)
    for number, *values in zip(numbers, *(rows[column] for column in names), strict=True):
        row = dict(zip(names, values, strict=True))
        for pair in _pairs(row, CONVERTERS[name], margins, f"{split} row {row.get(ROW, number)}"):
            if isinstance(pair, Dropped) and not keep_dropped:
                continue
            for column in columns:
                # Where a row came from is known of a dropped one too.
                kept = row.get(column) if column == ROW else None
                out[column].append(kept if isinstance(pair, Dropped) else pair[column])
            out[DROPPED].append(pair.reason if isinstance(pair, Dropped) else None)
    return out


def _check_dropped(converted: Any, num_rows: int, split: str, keep_dropped: bool) -> Any:
    """Return the converted dataset, without its dropped rows and with a line that counts them, unless they are kept."""
    reasons = converted[DROPPED][:]
    counts = Counter(reason for reason in reasons if reason is not None)
    if keep_dropped:
        return converted
    if counts:
        unit = "rows" if len(reasons) == num_rows else "pairs"
        say(f"dropped {counts.total():,} of {len(reasons):,} {unit} of {split}: {_counted(counts)}")
        converted = converted.select([index for index, reason in enumerate(reasons) if reason is None])
    return converted.remove_columns(DROPPED)
