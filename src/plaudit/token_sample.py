"""Lengths in tokens, of a sample of the rows: batches of rows drawn by number, so that a run again draws the same ones."""

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit import converters, records
from plaudit.census import ratios, spread
from plaudit.converters import Dropped, RowProblem
from plaudit.records import SIDES
from plaudit.redaction import require_no_secret
from plaudit.sides import Reading, pairs_of
from plaudit.tables import python_rows
from plaudit.tree import num_common

if TYPE_CHECKING:
    import pyarrow as pa


class Sample:
    """Whole batches of neighbouring rows, drawn as the tables go past; what is kept is bounded, whatever goes past."""

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.batch_size = batch_size
        self.num_batches = max(1, num_rows // batch_size)
        # A heap whose first entry is the batch to give up first: (-key, number, its rows).
        self.batches: list[tuple[int, int, Any]] = []
        self.rest: Any = None

    def past(self, tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
        """Give tables on as they are, once what is drawn from them is taken."""
        first_row = 0
        for table in tables:
            self.offer(table, first_row)
            first_row += len(table)
            yield table

    def offer(self, table: "pa.Table", first_row: int) -> None:
        """Take from a table the batches that are drawn. first_row: the number of its first row."""
        import pyarrow as pa

        if self.rest is not None:
            first_row -= len(self.rest)
            table = pa.concat_tables([self.rest, table], promote_options="permissive")
        whole = len(table) - len(table) % self.batch_size
        for start in range(0, whole, self.batch_size):
            self._offer(table, start, (first_row + start) // self.batch_size)
        self.rest = _copied(table, whole, len(table)) if whole < len(table) else None
        self._rest_row = first_row + whole

    def _offer(self, table: "pa.Table", start: int, number: int) -> None:
        key = _mixed(number)
        if len(self.batches) < self.num_batches:
            heapq.heappush(self.batches, (-key, number, _copied(table, start, start + self.batch_size)))
        elif key < -self.batches[0][0]:
            heapq.heapreplace(self.batches, (-key, number, _copied(table, start, start + self.batch_size)))

    def drawn(self) -> list[tuple[int, Any]]:
        """Return the batches, each as the number of its first row and its rows, in order."""
        if self.rest is not None:
            # The last, shorter batch.
            self._offer(self.rest, 0, self._rest_row // self.batch_size)
            self.rest = None
        return [(number * self.batch_size, rows) for _, number, rows in sorted(self.batches, key=lambda one: one[1])]


def _mixed(number: int) -> int:
    """Return a number that looks drawn at random for each number: the last step of SplitMix64."""
    mixed = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return mixed ^ mixed >> 31


def _copied(table: "pa.Table", start: int, stop: int) -> "pa.Table":
    # A slice would keep the whole table's memory.
    return table.take(np.arange(start, min(stop, len(table))))


def load_tokenizer(name: str, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model, by directory or Hub id, without its weights."""
    from transformers import AutoTokenizer

    from plaudit import hub, tokens, trust

    require_no_secret("tokenizer", name)
    hub.need(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if refused := trust.refused_code(name, error, trust_remote_code, trust.TOKENIZER):
            raise refused from error
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"tokenizer {name!r} cannot be loaded ({reason}); name a model's directory or Hub id"
        ) from error
    if chat_template is not None:
        tokens.adopt_chat_template(tokenizer, chat_template, trust_remote_code)
    return tokenizer


def figures(sample: Sample, reading: Reading, tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """Return the spread of the sides' lengths in tokens, the share over max_length, and what a batch's layouts cost."""
    padded = real = unique = shared = 0
    lengths: dict[str, list[int]] = {side: [] for side in SIDES}
    for first_row, rows in sample.drawn():
        pairs = encoded(rows, first_row, reading, tokenizer)
        if not pairs:
            continue
        for side, ids in zip(SIDES, zip(*pairs, strict=True), strict=True):
            lengths[side] += map(len, ids)
        every = [ids for pair in pairs for ids in pair]
        padded += len(every) * max(map(len, every))
        real += sum(map(len, every))
        unique += num_unique(every)
        shared += sum(_num_common(*pair) for pair in pairs)
    if not real:
        raise ValueError("none of the sampled rows is a pair, so there are no tokens to count; mend the rows first")
    counts = {side: np.unique(values, return_counts=True) for side, values in lengths.items()}
    found: dict[str, Any] = {
        "pairs": len(lengths["chosen"]),
        "lengths": {
            side: spread(list(zip(*map(np.ndarray.tolist, both), strict=True))) for side, both in counts.items()
        },
        "sharing": {
            "unit": "tokens",
            "batch_size": sample.batch_size,
            "within_pairs": 2 * shared / real,
            **ratios(padded, real, unique),
        },
    }
    if max_length is not None:
        sides = {side: np.array(values) > max_length for side, values in lengths.items()}
        over = {"pairs": sides["chosen"] | sides["rejected"], **sides}
        found["over"] = {
            "max_length": max_length,
            **{name: {"count": int(one.sum()), "share": float(one.mean())} for name, one in over.items()},
        }
    return found


def encoded(rows: "pa.Table", first_row: int, reading: Reading, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Return the pairs of some rows as training would tokenize them; rows that are no pairs are left out."""
    from plaudit import tokens

    texts: list[str] = []
    conversations: list[tuple[int, list, Any, dict]] = []
    for number, row in enumerate(python_rows(rows, reading.features), first_row):
        try:
            for pair in pairs_of(row, reading):
                if isinstance(pair, Dropped):
                    continue
                if isinstance(pair["chosen"], str):
                    texts += [row.get("prompt", "") + row[side] for side in SIDES]
                else:
                    tools = records.tools_of(row.get("tools"), "tools")
                    kwargs = records.template_kwargs_of(row.get("chat_template_kwargs"))
                    conversations += [(number, pair[side], tools, kwargs) for side in SIDES]
        except RowProblem:
            continue
    if conversations:
        tokens.require_chat_template(tokenizer, reading.split)
        numbers, messages, tools_of, kwargs_of = zip(*conversations, strict=True)
        ids = tokens.encode_conversations(
            tokenizer,
            [converters.without_none(one) for one in messages],
            tools_of,
            kwargs_of,
            lambda i: f"{reading.split} row {numbers[i]}",
        )
    else:
        ids = tokens.encode_texts(tokenizer, texts) if texts else []
    return list(zip(ids[::2], ids[1::2], strict=True))


def num_unique(sequences: Sequence[list[int]]) -> int:
    """Return how many tokens are left where every beginning that sequences share is there once."""
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(_num_common(a, b) for a, b in itertools.pairwise(ordered))


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    return int(num_common(np.asarray(left), np.asarray(right)))
