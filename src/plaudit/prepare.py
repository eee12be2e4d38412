"""A dataset of any accepted record in, a dataset of token pairs out, with every dropped pair counted."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from plaudit import caches, converters, faults, formats, records, tokens
from plaudit.converters import Converter
from plaudit.formats import DROPPED
from plaudit.loading import named_in_errors
from plaudit.records import ROW, Layout
from plaudit.say import say, visible
from plaudit.tree import num_common
from plaudit.values import brief

CHECKED_STREAM_ROWS = 1_000
SIDES = ("chosen_ids", "rejected_ids")
IDENTICAL = "whose two sides are identical"
# The attribute of a prepared stream that holds it with the dropped rows in place.
MARKED = "_plaudit_marked"
# The attribute of a prepared map-style data set that says where its pairs come from.
ORIGINS = "_plaudit_origins"


class Origins(NamedTuple):
    """Of each prepared pair, shape (num_pairs,): its row's number in the user's data set, and its place among the pairs
    that the rows hold, the dropped ones included."""

    rows: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Rules:
    """What a prepared pair must satisfy, besides being well formed.

    max_length: longest sequence in tokens, None for no limit. vocabulary_size: ids must be below it.
    pad_token_id: the reward is read before trailing ids of this kind; None where the model reads elsewhere (encoders).
    """

    max_length: int | None
    vocabulary_size: int | None
    pad_token_id: int | None


# Rows that a message names.
NAMED_ROWS = 20


def rows_named(rows: Sequence[int]) -> str:
    """Return row numbers as a message lists them, the first twenty and how many more there are."""
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:NAMED_ROWS]))}{more}"


class EncodePairs:
    """The function of the one batched pass: columns of raw rows in, columns of token ids out.

    The column DROPPED says why a pair is not to be used, None for those that are. drop: False raises for an over-long
    pair and uses identical ones.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, layout: Layout, split: str, rules: Rules, drop: bool
    ) -> None:
        # None only for rows that are tokenized already.
        self.tokenizer: Any = tokenizer
        self.layout, self.split, self.rules, self.drop = layout, split, rules, drop

    def __call__(self, columns: Mapping[str, list], rows: list[int]) -> dict[str, list]:
        names = list(columns)
        rows = columns.get(ROW, rows)
        self._check_margins(columns, rows)
        reasons = list(columns.get(DROPPED, [None] * len(rows)))
        checked = [
            None if reason else records.canonical(dict(zip(names, values, strict=True)), self.layout, self._where(row))
            for row, reason, *values in zip(rows, reasons, *columns.values(), strict=True)
        ]
        kept = [(row, record) for row, record in zip(rows, checked, strict=True) if record is not None]
        encoded = iter(zip(self._encode(kept, "chosen"), self._encode(kept, "rejected"), strict=True))
        pairs = [next(encoded) if record is not None else ([], []) for record in checked]
        out: dict[str, list] = {"chosen_ids": [c for c, _ in pairs], "rejected_ids": [r for _, r in pairs]}
        if "margin" in self.layout.columns:
            out["margin"] = [0.0 if record is None else record["margin"] for record in checked]
        out[DROPPED] = [
            reason or self._reason_to_drop(*pair, self._where(row))
            for row, reason, pair in zip(rows, reasons, pairs, strict=True)
        ]
        out[ROW] = list(rows)
        return out

    def _check_margins(self, columns: Mapping[str, list], rows: list[int]) -> None:
        """Raise ValueError for a margin that only later rows of a stream have."""
        given = [row for row, margin in zip(rows, columns.get("margin", ()), strict=False) if margin is not None]
        if given and "margin" not in self.layout.columns:
            raise ValueError(
                f"{self._where(given[0])}: 'margin' is given here, but not in the first row; give every row a margin or "
                "drop the column"
            )

    def _reason_to_drop(self, chosen: list[int], rejected: list[int], where: str) -> str | None:
        longest, max_length = max(len(chosen), len(rejected)), self.rules.max_length
        if max_length is not None and longest > max_length:
            if self.drop:
                return f"longer than {max_length:,} tokens"
            raise ValueError(
                f"{where}: the pair is longer than max_length {max_length} (chosen {len(chosen):,} tokens, rejected "
                f"{len(rejected):,}) and prediction drops nothing; raise max_length or shorten the row"
            )
        if chosen == rejected:
            return IDENTICAL if self.drop else None
        self._check_read_out(chosen, rejected, where)
        return None

    def _check_read_out(self, chosen: list[int], rejected: list[int], where: str) -> None:
        """Raise ValueError where no training could tell the sides apart, because both are read before they part."""
        pad_token_id = self.rules.pad_token_id
        if pad_token_id is None or (chosen[-1] != pad_token_id and rejected[-1] != pad_token_id):
            return
        position = read_out(chosen, pad_token_id)
        if position == read_out(rejected, pad_token_id) and chosen[: position + 1] == rejected[: position + 1]:
            raise ValueError(
                f"{where}: chosen and rejected are read at token {position} {self._shown(chosen[position])}, inside "
                f"the shared prompt, because what follows is the padding token {self._shown(pad_token_id)}; set "
                "pad_token to a token that the answers do not end with"
            )

    def _shown(self, token_id: int) -> str:
        if self.tokenizer is None:
            return f"(id {token_id})"
        return f"`{self.tokenizer.convert_ids_to_tokens(token_id)}` (id {token_id})"

    def _encode(self, kept: list[tuple[int, dict]], side: str) -> list[list[int]]:
        def where(i: int) -> str:
            column = self.layout.columns.get(f"{side}_ids", side)
            return f"{self._where(kept[i][0])}, '{column}'"

        if not kept:
            return []
        if self.layout.kind == "tokenized":
            sequences = [record[f"{side}_ids"] for _, record in kept]
        elif self.layout.kind == "standard":
            sequences = tokens.encode_texts(self.tokenizer, [record[side] for _, record in kept])
        else:
            tools = [record["tools"] for _, record in kept]
            kwargs = [record["chat_template_kwargs"] for _, record in kept]
            sequences = tokens.encode_conversations(
                self.tokenizer, [record[side] for _, record in kept], tools, kwargs, where
            )
        size = self.rules.vocabulary_size
        for i, ids in enumerate(sequences):
            if not ids:
                raise ValueError(f"{where(i)}: no token is left after tokenizing; remove the row or fill it")
            if size is not None and max(ids) >= size:
                raise ValueError(
                    f"{where(i)}: token id {brief(max(ids))} is outside the model's vocabulary of {size:,}; "
                    "tokenize with the model's own tokenizer"
                )
        return sequences

    def _where(self, row: int) -> str:
        return f"{self.split} row {row}"


def prepare(
    dataset: Dataset | IterableDataset,
    split: str,
    tokenizer: PreTrainedTokenizerBase | None,
    rules: Rules,
    num_proc: int | None = None,
    drop: bool = True,
) -> tuple[Dataset | IterableDataset, Layout]:
    """Return the dataset with the columns chosen_ids, rejected_ids and, where given, margin, and the layout it had.

    Over-long and identical pairs are dropped, counted and said (drop=False: an over-long pair is an error and an
    identical one is kept); of a stream they are counted as it is read, by `kept_rows`, and its first rows are checked here.
    Raises ValueError naming split, row, column and cure for a row that is not a pair.
    """
    dataset = _plain(dataset)
    first, converter = look(dataset, split)
    if converter is not None:
        dataset = formats.convert(dataset, converter.name, split=split, keep_dropped=True)
    if converter is not None or DROPPED in first:
        first = next((row for row in dataset if not row.get(DROPPED)), {})
        if not first:
            raise ValueError(f"{split}: none of the rows holds a pair after conversion; look at the rows' answers")
    layout = formats.layout_of([name for name in first if name not in (DROPPED, ROW)], first, split)
    if layout.kind != "tokenized":
        if tokenizer is None:
            raise ValueError(f"{split}: the rows are not tokenized and there is no tokenizer; pass processing_class")
        if layout.kind == "conversational":
            tokens.require_chat_template(tokenizer, split)
    encode = EncodePairs(tokenizer, layout, split, rules, drop)
    if isinstance(dataset, IterableDataset):
        names = dataset.column_names or list(first)
        dataset = dataset.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=names)
        # Later rows may bring columns that the first one did not have.
        dataset = dataset.select_columns([name for name in _features(layout) if name != ROW])
        _check_stream(dataset, split, rules)
        return _without_dropped(dataset), layout
    with caches.beside(dataset), faults.preparing(split, num_proc):
        prepared = dataset.map(
            encode,
            with_indices=True,
            batched=True,
            remove_columns=dataset.column_names,
            features=_features(layout),
            num_proc=num_proc,
            new_fingerprint=_fingerprint(dataset, encode, tokenizer),
            desc=f"Preparing {visible(split)}",
        )
    # map keeps the transform, which is for the columns that were.
    return _drop(prepared.with_format(None), split, rules), layout


def look(dataset: Dataset | IterableDataset, split: str) -> tuple[dict, Converter | None]:
    """Return the first row, and the converter that the rows need, if any, by reading one row.

    Raises ValueError for an empty dataset, unknown columns, and answers that are neither text, messages nor ids.
    """
    rows: Any = _plain(dataset)
    with named_in_errors(f"{split}: the data set"):
        first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{split}: the dataset is empty; at least one pair is needed")
    converter = formats.recognise(list(first), first, split)
    if converter is None and not first.get(DROPPED):
        formats.layout_of([name for name in first if name not in (DROPPED, ROW)], first, split)
    return first, converter


def common_template_kwargs(dataset: Dataset | IterableDataset) -> dict[str, Any]:
    """Return the variables of the chat template that the first rows all have, none where they differ or have none."""
    rows: Any = _plain(dataset)
    first: dict = next(iter(rows), {})
    if not first.get("chat_template_kwargs"):
        return {}
    found = [converters.without_none(row.get("chat_template_kwargs") or {}) for row in rows.take(CHECKED_STREAM_ROWS)]
    return found[0] if all(kwargs == found[0] for kwargs in found) else {}


def _plain(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return the dataset giving Python's own values; a user's transform stays, because it makes the columns."""
    has_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return dataset if has_transform else dataset.with_format(None)


def _without_dropped(marked: IterableDataset) -> IterableDataset:
    """Return the pairs of a stream that are to be used; `kept_rows` still finds the others, to count them."""
    pairs = marked.filter(lambda reason: reason is None, input_columns=DROPPED).remove_columns(DROPPED)
    setattr(pairs, MARKED, marked)
    return pairs


def kept_rows(stream: IterableDataset, counts: Counter) -> Iterator[dict]:
    """Yield the pairs of a prepared stream that are to be used; all are counted, the dropped ones by reason, in counts."""
    rows = iter(getattr(stream, MARKED, stream))
    while True:
        with named_in_errors(f"the stream, after {counts['rows']:,} rows,"):
            row = next(rows, None)
        if row is None:
            return
        counts["rows"] += 1
        if row.get(DROPPED):
            counts[row[DROPPED]] += 1
        else:
            yield {name: value for name, value in row.items() if name != DROPPED}


def say_dropped(counts: Mapping[str, int], split: str) -> None:
    """Say how many of how many rows were dropped, and why, if any were."""
    reasons = [f"{count:,} {reason}" for reason, count in counts.items() if reason != "rows" and count]
    if reasons:
        total = sum(count for reason, count in counts.items() if reason != "rows")
        say(f"dropped {total:,} of {counts['rows']:,} {split} pairs: {', '.join(reasons)}")


class StreamCounts:
    """What streams have dropped so far, as their loaders' workers report it, said whenever the number has grown."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[int, Counter]] = {}
        self._said: dict[str, int] = {}

    def note(self, split: str, counts: Mapping[str, int] | None) -> None:
        """Take up a micro-batch's counts: of its `worker`, since that worker began; None for data that is no stream."""
        if counts is not None:
            of_worker = Counter({reason: count for reason, count in counts.items() if reason != "worker"})
            self._latest.setdefault(split, {})[counts["worker"]] = of_worker

    def say(self) -> None:
        """Say what each stream has dropped of how many rows, if that is more than was said before."""
        for split, workers in self._latest.items():
            total = sum(workers.values(), Counter())
            dropped = total.total() - total["rows"]
            if dropped > self._said.get(split, 0):
                say_dropped(total, split)
            self._said[split] = dropped


def pair_lengths(dataset: Dataset) -> np.ndarray:
    """Return the token counts of both sides, shape (num_pairs, 2), read column by column in flat memory."""
    parts = [
        np.stack([pc.list_value_length(table[name]).to_numpy() for name in SIDES], axis=1)
        for table in _arrow(dataset, list(SIDES))
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def distinct_lengths(dataset: Dataset) -> list[int]:
    """Return how many tokens each pair has, those that both sides begin with counted once."""
    lengths = []
    for table in _arrow(dataset, list(SIDES)):
        sides = [_sequences(table[name]) for name in SIDES]
        lengths += [distinct_length(chosen, rejected) for chosen, rejected in zip(*sides, strict=True)]
    return lengths


def distinct_length(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Return how many tokens a pair has, those that both sides begin with counted once."""
    return len(chosen) + len(rejected) - num_common(np.asarray(chosen), np.asarray(rejected))


def _sequences(column: pa.ChunkedArray) -> list[np.ndarray]:
    return np.split(pc.list_flatten(column).to_numpy(), pc.list_value_length(column).to_numpy().cumsum()[:-1])


def _features(layout: Layout) -> Features:
    columns: dict[str, Any] = {name: List(Value("int32")) for name in ("chosen_ids", "rejected_ids")}
    if "margin" in layout.columns:
        columns["margin"] = Value("float64")
    return Features({**columns, DROPPED: Value("string"), ROW: Value("int64")})


def _fingerprint(dataset: Dataset, encode: EncodePairs, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Name the cached result by what it depends on; hashing the function itself would include the tokenizer's moods."""
    layout = sorted(encode.layout.columns.items())
    code = formats.source_checksum(__file__, records.__file__, converters.__file__, tokens.__file__)
    rules = dataclasses.astuple(encode.rules)
    parts = [dataset._fingerprint, encode.layout.kind, layout, rules, encode.drop, encode.split, code]
    return Hasher.hash([*parts, tokens.fingerprint(tokenizer) if tokenizer is not None else None])


def _drop(prepared: Dataset, split: str, rules: Rules) -> Dataset:
    """Return the pairs of a prepared map-style dataset that are to be used; the others are counted per reason."""
    tables = list(_arrow(prepared, [DROPPED, ROW]))
    reasons = [reason for table in tables for reason in table[DROPPED].to_pylist()]
    rows = np.concatenate([table[ROW].to_numpy() for table in tables])
    prepared = prepared.remove_columns([DROPPED, ROW])
    lengths = pair_lengths(prepared)
    kept = np.flatnonzero([reason is None for reason in reasons])
    # A row of another format that holds no pair has no tokens.
    places = np.cumsum(lengths.max(axis=1) > 0) - 1
    counts = Counter(reason for reason in reasons if reason)
    if counts:
        if not len(kept):
            raise ValueError(_none_left(f"the {len(reasons):,} pairs", split, counts, lengths, rules.max_length))
        say_dropped({"rows": len(reasons), **_with_sides(counts, lengths, rules)}, split)
        prepared = prepared.select(kept)
    setattr(prepared, ORIGINS, Origins(rows[kept], places[kept]))
    return prepared


def _with_sides(counts: Mapping[str, int], lengths: np.ndarray, rules: Rules) -> dict[str, int]:
    """Return the counts with how many chosen and how many rejected sides are too long."""
    over = (lengths > (rules.max_length or 0)).sum(axis=0)
    sides = f" (chosen {over[0]:,}, rejected {over[1]:,})"
    return {f"{reason}{sides if reason.startswith('longer than') else ''}": count for reason, count in counts.items()}


def _arrow(dataset: Dataset, names: list[str]) -> Iterator[Any]:
    return dataset.select_columns(names).with_format("arrow").iter(batch_size=10_000)


def read_out(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return the position at which the reward is read: the last id that is not padding, as transformers does it."""
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] != pad_token_id:
            return position
    return 0


def _check_stream(stream: IterableDataset, split: str, rules: Rules) -> None:
    """Raise the error of a bad row among the first ones, and ValueError where none of them would be used."""
    counts: Counter = Counter()
    lengths = []
    with named_in_errors(f"{split}: the stream"):
        for row in stream.take(CHECKED_STREAM_ROWS):
            counts.update(["rows", row[DROPPED] or "kept"])
            lengths.append((len(row["chosen_ids"]), len(row["rejected_ids"])))
    if not counts.pop("kept", 0):
        rows = counts.pop("rows")
        first = "first " if rows == CHECKED_STREAM_ROWS else ""
        raise ValueError(_none_left(f"the {first}{rows:,} pairs", split, counts, np.array(lengths), rules.max_length))


def _none_left(of: str, split: str, counts: Mapping[str, int], lengths: np.ndarray, max_length: int | None) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    message = f"{split}: none of {of} is left ({reasons}); "
    if not any(reason.startswith("longer than") for reason in counts):
        return message + "give pairs whose sides differ and have an answer"
    # Of pairs, not of rows that gave none.
    quartiles = np.percentile(lengths.max(axis=1)[lengths.max(axis=1) > 0], [25, 50, 75])
    return (
        message + f"quartiles of the longer side: {', '.join(f'{q:,.0f}' for q in quartiles)} tokens, max_length: "
        f"{max_length}; raise max_length (or None for no limit) or shorten the texts"
    )
