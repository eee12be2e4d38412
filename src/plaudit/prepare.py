"""A dataset of any accepted record in, a dataset of token pairs out, with every dropped pair counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from plaudit import converters, formats, records, tokens
from plaudit.formats import DROPPED
from plaudit.records import Layout
from plaudit.say import say

CHECKED_STREAM_ROWS = 1_000
IDENTICAL = "whose two sides are identical"


@dataclass(frozen=True)
class Rules:
    """What a prepared pair must satisfy, besides being well formed.

    max_length: longest sequence in tokens, None for no limit. vocabulary_size: ids must be below it.
    pad_token_id: the reward is read before trailing ids of this kind; None where the model reads elsewhere (encoders).
    token_of: an id's token, which an error shows; None where there is no tokenizer.
    """

    max_length: int | None
    vocabulary_size: int | None
    pad_token_id: int | None
    token_of: Callable[[int], str] | None = None


def check_type(dataset: Any, name: str) -> None:
    """Raise TypeError, naming what was given, unless it is a Dataset or an IterableDataset."""
    if isinstance(dataset, (Dataset, IterableDataset)):
        return
    hint = ""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        key = name if name in dataset else next(iter(dataset), "train")
        hint = f"; did you mean dataset['{key}']?"
    elif isinstance(dataset, (list, tuple)):
        hint = "; datasets.Dataset.from_list(rows) makes one of it"
    kind = f"{type(dataset).__module__.split('.')[0]}.{type(dataset).__name__}"
    raise TypeError(f"{name}_dataset: expected a datasets.Dataset or IterableDataset, got {kind}{hint}")


class EncodePairs:
    """The function of the one batched pass: columns of raw rows in, columns of token ids out."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, layout: Layout, split: str, vocabulary_size: int | None
    ):
        # None only for rows that are tokenized already.
        self.tokenizer: Any = tokenizer
        self.layout, self.split = layout, split
        self.vocabulary_size = vocabulary_size

    def __call__(self, columns: Mapping[str, list], rows: list[int]) -> dict[str, list]:
        names = list(columns)
        reasons = columns.get(DROPPED, [None] * len(rows))
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
        if DROPPED in columns:
            out[DROPPED] = reasons
        return out

    def _encode(self, kept: list[tuple[int, dict]], side: str) -> list[list[int]]:
        def where(i: int) -> str:
            return f"{self._where(kept[i][0])}, '{side}'"

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
        for i, ids in enumerate(sequences):
            if not ids:
                raise ValueError(f"{where(i)}: no token is left after tokenizing; remove the row or fill it")
            if self.vocabulary_size is not None and max(ids) >= self.vocabulary_size:
                raise ValueError(
                    f"{where(i)}: token id {max(ids)} is outside the model's vocabulary of {self.vocabulary_size:,}; "
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
    identical one is kept). A streamed dataset comes back undropped (see `kept_rows`), its first rows checked.
    Raises ValueError naming split, row, column and cure for a row that is not a pair.
    """
    dataset = _plain(dataset)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{split}: the dataset is empty; at least one pair is needed")
    converter = formats.recognise(list(first), first, split)
    if converter is not None:
        dataset = formats.convert(dataset, converter.name, split=split, keep_dropped=True)
    if converter is not None or DROPPED in first:
        first = next((row for row in dataset if not row.get(DROPPED)), None)
        if first is None:
            raise ValueError(f"{split}: no row is left to train on after conversion; look at the rows' answers")
    layout = formats.layout_of([name for name in first if name != DROPPED], first, split)
    if layout.kind != "tokenized":
        if tokenizer is None:
            raise ValueError(f"{split}: the rows are not tokenized and there is no tokenizer; pass processing_class")
        if layout.kind == "conversational":
            tokens.require_chat_template(tokenizer, split)
    encode = EncodePairs(tokenizer, layout, split, rules.vocabulary_size)
    if isinstance(dataset, IterableDataset):
        names = dataset.column_names or list(first)
        dataset = dataset.map(encode, with_indices=True, batched=True, batch_size=100, remove_columns=names)
        _check_stream(dataset, split, rules, drop)
        return dataset, layout
    prepared = dataset.map(
        encode,
        with_indices=True,
        batched=True,
        remove_columns=dataset.column_names,
        features=_features(layout, DROPPED in dataset.column_names),
        num_proc=num_proc,
        new_fingerprint=_fingerprint(dataset, encode, tokenizer),
        desc=f"Preparing {split}",
    )
    # map keeps the transform, which is for the columns that were.
    return _drop(prepared.with_format(None), split, rules, drop), layout


def _plain(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return the dataset giving Python's own values; a user's transform stays, because it makes the columns."""
    has_transform = isinstance(dataset, Dataset) and dataset.format["type"] == "custom"
    return dataset if has_transform else dataset.with_format(None)


def kept_rows(
    rows: Iterable[dict], split: str, rules: Rules, counts: Counter, drop: bool = True
) -> Iterator[tuple[int, dict]]:
    """Yield the numbered rows of a prepared stream that are to be used; the others are counted by reason in counts."""
    for number, row in enumerate(rows):
        counts["rows"] += 1
        chosen, rejected = row["chosen_ids"], row["rejected_ids"]
        if row.get(DROPPED):
            counts[row[DROPPED]] += 1
        elif rules.max_length is not None and max(len(chosen), len(rejected)) > rules.max_length:
            if not drop:
                raise ValueError(_too_long(split, number, len(chosen), len(rejected), rules.max_length))
            counts[f"longer than {rules.max_length:,} tokens"] += 1
        elif drop and chosen == rejected:
            counts[IDENTICAL] += 1
        else:
            _check_read_out(chosen, rejected, rules, f"{split} row {number}")
            yield number, {name: value for name, value in row.items() if name != DROPPED}


def say_dropped(counts: Mapping[str, int], split: str) -> None:
    """Say how many of how many rows were dropped, and why, if any were."""
    reasons = [f"{count:,} {reason}" for reason, count in counts.items() if reason != "rows" and count]
    if reasons:
        total = sum(count for reason, count in counts.items() if reason != "rows")
        say(f"dropped {total:,} of {counts['rows']:,} {split} pairs: {', '.join(reasons)}")


def pair_lengths(dataset: Dataset) -> np.ndarray:
    """Return the token counts of both sides, shape (num_pairs, 2), read column by column in flat memory."""
    parts = [
        np.stack([pc.list_value_length(table[name]).to_numpy() for name in ("chosen_ids", "rejected_ids")], axis=1)
        for table in _arrow_batches(dataset)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _features(layout: Layout, with_dropped: bool) -> Features:
    columns: dict[str, Any] = {name: List(Value("int32")) for name in ("chosen_ids", "rejected_ids")}
    if "margin" in layout.columns:
        columns["margin"] = Value("float64")
    if with_dropped:
        columns[DROPPED] = Value("string")
    return Features(columns)


def _fingerprint(dataset: Dataset, encode: EncodePairs, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Name the cached result by what it depends on; hashing the function itself would include the tokenizer's moods."""
    layout = sorted(encode.layout.columns.items())
    code = formats.source_checksum(__file__, records.__file__, converters.__file__, tokens.__file__)
    parts = [dataset._fingerprint, encode.layout.kind, layout, encode.vocabulary_size, encode.split, code]
    return Hasher.hash([*parts, tokens.fingerprint(tokenizer) if tokenizer is not None else None])


def _drop(prepared: Dataset, split: str, rules: Rules, drop: bool) -> Dataset:
    """Apply the rules to a prepared map-style dataset: errors first, then what is dropped, counted per reason."""
    lengths = pair_lengths(prepared)
    total = len(lengths)
    reasons = np.full(total, None, dtype=object)
    if DROPPED in prepared.column_names:
        reasons[:] = prepared[DROPPED][:]
        prepared = prepared.remove_columns(DROPPED)
    named = np.array([bool(reason) for reason in reasons], dtype=bool)
    too_long = ~named & (lengths.max(axis=1) > rules.max_length) if rules.max_length is not None else ~named & False
    if too_long.any() and not drop:
        row = int(np.flatnonzero(too_long)[0])
        chosen, rejected = lengths[row].tolist()
        raise ValueError(_too_long(split, row, chosen, rejected, rules.max_length))
    identical = _identical(prepared, split, lengths, rules, ~named & ~too_long) & drop
    kept = ~named & ~too_long & ~identical
    counts = Counter({"rows": total, **Counter(reasons[named].tolist())})
    if too_long.any():
        over = (lengths > (rules.max_length or 0))[too_long].sum(axis=0)
        sides = f" (chosen {over[0]:,}, rejected {over[1]:,})"
        counts[f"longer than {rules.max_length:,} tokens{sides}"] = int(too_long.sum())
    counts[IDENTICAL] = int(identical.sum())
    say_dropped(counts, split)
    if not kept.any():
        raise ValueError(_none_left(split, counts, lengths[~named], rules.max_length))
    return prepared if kept.all() else prepared.select(np.flatnonzero(kept))


def _identical(prepared: Dataset, split: str, lengths: np.ndarray, rules: Rules, rows: np.ndarray) -> np.ndarray:
    """Tell which of the rows have equal sides, and refuse one whose sides are read at the same shared token."""
    identical = np.zeros(len(lengths), dtype=bool)
    first = 0
    for table in _arrow_batches(prepared):
        sides = []
        for name in ("chosen_ids", "rejected_ids"):
            ends = np.cumsum(pc.list_value_length(table[name]).to_numpy())
            sides.append(np.split(pc.list_flatten(table[name]).to_numpy(), ends[:-1]))
        for i, (chosen, rejected) in enumerate(zip(*sides, strict=True), first):
            if rows[i]:
                identical[i] = len(chosen) == len(rejected) and np.array_equal(chosen, rejected)
                if not identical[i]:
                    _check_read_out(chosen, rejected, rules, f"{split} row {i}")
        first += table.num_rows
    return identical


def _arrow_batches(dataset: Dataset) -> Iterator[Any]:
    return dataset.select_columns(["chosen_ids", "rejected_ids"]).with_format("arrow").iter(batch_size=10_000)


def _check_read_out(chosen: Sequence[int], rejected: Sequence[int], rules: Rules, where: str) -> None:
    """Raise ValueError where no training could tell the sides apart, because both are read before they part."""
    pad_token_id = rules.pad_token_id
    if pad_token_id is None or (chosen[-1] != pad_token_id and rejected[-1] != pad_token_id):
        return
    position = read_out(chosen, pad_token_id)
    if position == read_out(rejected, pad_token_id) and list(chosen[: position + 1]) == list(rejected[: position + 1]):
        raise ValueError(
            f"{where}: chosen and rejected are read at token {position} {_shown(chosen[position], rules)}, inside the "
            f"shared prompt, because what follows is the padding token {_shown(pad_token_id, rules)}; set pad_token to "
            "a token that the answers do not end with"
        )


def _shown(token_id: int, rules: Rules) -> str:
    return f"(id {token_id})" if rules.token_of is None else f"`{rules.token_of(int(token_id))}` (id {token_id})"


def read_out(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return the position at which the reward is read: the last id that is not padding, as transformers does it."""
    for position in range(len(ids) - 1, -1, -1):
        if ids[position] != pad_token_id:
            return position
    return 0


def _check_stream(stream: IterableDataset, split: str, rules: Rules, drop: bool) -> None:
    counts: Counter = Counter()
    kept = sum(1 for _ in kept_rows(stream.take(CHECKED_STREAM_ROWS), split, rules, counts, drop))
    if not kept:
        lengths = np.array(
            [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in stream.take(CHECKED_STREAM_ROWS)]
        )
        raise ValueError(_none_left(split, counts, lengths, rules.max_length))


def _none_left(split: str, counts: Counter, lengths: np.ndarray, max_length: int | None) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if reason != "rows" and count)
    quartiles = (
        ", ".join(f"{q:,.0f}" for q in np.percentile(lengths.max(axis=1), [25, 50, 75])) if len(lengths) else "-"
    )
    return (
        f"{split}: none of the {counts['rows']:,} pairs is left ({reasons}); quartiles of the longer side: {quartiles} "
        f"tokens, max_length: {max_length}; raise max_length (or None for no limit) or give pairs whose sides differ"
    )


def _too_long(split: str, row: int, chosen: int, rejected: int, max_length: int | None) -> str:
    return (
        f"{split} row {row}: the pair is longer than max_length {max_length} (chosen {chosen:,} tokens, rejected "
        f"{rejected:,}) and prediction drops nothing; raise max_length or shorten the row"
    )
