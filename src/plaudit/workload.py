"""What batches of a data set's pairs hold: their tokens in either layout, laid out as training does, from real rows or figures.

Nothing here needs torch. Where there is no tokenizer, four characters stand for a token.
"""

import functools
import json
import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plaudit import sides, tables, token_sample
from plaudit.shapes import parse_numbers
from plaudit.sides import Reading
from plaudit.tables import Unreadable
from plaudit.tree import layout, num_common

LAYOUTS = ("padded", "tree")
# English text has about four characters a token in today's vocabularies.
CHARACTERS_A_TOKEN = 4
# Pairs made of figures, and how far their lengths spread unless that is given: the standard deviation, of the mean.
MADE_PAIRS, USUAL_SPREAD = 2048, 0.6
# Batches that are laid out: enough for a mean within a few per cent, few enough for a second or two.
NUM_BATCHES, NUM_LAID_OUT = 1024, 1024
# Tokens of a pair made of figures, on average: all of them are held in memory.
LONGEST_MADE = 50_000
# Micro-batches of a run among which the largest is looked for.
NUM_DRAWN = 20_000
_SEED = 0
_QUARTILE = 0.6744897501960817  # of the normal distribution
_STATS = ("pairs", "prompt", "answer", "prompt_sd", "answer_sd")


class Load(NamedTuple):
    """What a micro-batch's layout holds.

    tokens: that the model computes. scores: queries times the keys that they see. mask: the same with the keys that are
    masked out, as attention without a fused kernel computes it.
    paths: the tokens of all sequences, those that they share counted in each.
    """

    tokens: float
    scores: float
    mask: float
    paths: float


@dataclass(frozen=True)
class Workload:
    """Pairs to train on: a sample of them as token ids, and how many there are in all.

    pairs: that are left once those over max_length are dropped, `over` of them, a share. source: where the lengths come
    from, for people.
    """

    sample: list[tuple[np.ndarray, np.ndarray]]
    pairs: int
    over: float
    max_length: int | None
    source: str

    def batches(self, size: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Return micro-batches of so many pairs, drawn at random as an epoch draws them, the same each time.

        An epoch of fewer pairs than a micro-batch takes is one micro-batch of all of them.
        """
        size = min(size, self.pairs)
        drawn = np.random.default_rng(_SEED)
        wanted = max(8, min(NUM_BATCHES, NUM_LAID_OUT // size))
        order: list[int] = []
        while len(order) < wanted * size:
            order += drawn.permutation(len(self.sample)).tolist()
        return [[self.sample[i] for i in order[k * size : (k + 1) * size]] for k in range(wanted)]

    def loads(self, size: int) -> dict[str, list[Load]]:
        """Return what micro-batches of so many pairs hold, by layout."""
        every = self.batches(size)
        return {name: [load(batch, name) for batch in every] for name in LAYOUTS}

    def largest(self, size: int, number: int) -> dict[str, Load]:
        """Return the largest of so many micro-batches of so many pairs, by layout.

        Of at most NUM_DRAWN they are judged by what their pairs hold alone, and the largest is laid out.
        """
        drawn = np.random.default_rng(_SEED).integers(len(self.sample), size=(min(number, NUM_DRAWN), size))
        if self.pairs <= size:
            drawn = np.arange(len(self.sample))[None]
        chosen, rejected, shared = self._sizes
        # Padded, all rows are as long as the longest; in a tree, a pair is its sides but for what they share.
        longest, together = np.maximum(chosen, rejected), chosen + rejected - shared
        fullest = {"padded": longest[drawn].max(axis=1).argmax(), "tree": together[drawn].sum(axis=1).argmax()}
        return {name: load([self.sample[i] for i in drawn[at]], name) for name, at in fullest.items()}

    @property
    def lengths(self) -> dict[str, float]:
        """Means over the sample: tokens of a pair's sides, of what they share, and of the longer side."""
        chosen, rejected, shared = self._sizes
        return {
            "chosen": float(chosen.mean()),
            "rejected": float(rejected.mean()),
            "shared": float(shared.mean()),
            "longer": float(np.maximum(chosen, rejected).mean()),
        }

    @functools.cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of each pair's sides, and of what they share."""
        chosen, rejected = (np.array([len(pair[side]) for pair in self.sample]) for side in (0, 1))
        return chosen, rejected, np.array([num_common(*pair) for pair in self.sample])


def load(batch: Sequence[tuple[np.ndarray, np.ndarray]], name: str) -> Load:
    """Return what a batch of pairs holds in a layout, "padded" or "tree"."""
    sequences = [ids for side in zip(*batch, strict=True) for ids in side]
    paths = sum(map(len, sequences))
    if name == "padded":
        longest = max(map(len, sequences))
        tokens = len(sequences) * longest
        return Load(tokens, tokens * longest, tokens * longest, paths)
    tree = layout(sequences)
    added = [(chain.stop - chain.start, len(chain.path)) for chain in tree.chains]
    mask = sum(queries * keys for queries, keys in added)
    return Load(len(tree.tokens), int((tree.positions + 1).sum()), mask, sum(keys for _, keys in added))


def mean(loads: Sequence[Load]) -> Load:
    """Return the mean of several micro-batches."""
    return Load(*(float(np.mean(values)) for values in zip(*loads, strict=True)))


def largest(loads: Sequence[Load]) -> Load:
    """Return the most of each that any of several micro-batches has."""
    return Load(*(float(max(values)) for values in zip(*loads, strict=True)))


def read(data: str, max_length: int | None, tokenizer: Any = None, **where: Any) -> Workload:
    """Return the workload that a data set, an audit.json or figures describe.

    data: pairs=..,prompt=..,answer=.. (means in tokens, or quartiles as 100/200/400), an audit's JSON file, or what
    `plaudit audit` reads. tokenizer: what counts the rows' tokens; None for characters. where: config, split, and
    sample, how many rows to look at, 0 for all.
    ValueError where it cannot be read, has no pair, or where none is within max_length.
    """
    if _is_told(data):
        return _kept(*_from_figures(data), max_length, f"made from the figures {data}")
    audit = _audit_of(data)
    if audit is not None:
        return _kept(*_from_audit(audit, data), max_length, f"made from the audit {data}")
    try:
        return _from_rows(data, max_length, tokenizer, in_place=True, **where)
    except Unreadable:
        return _from_rows(data, max_length, tokenizer, in_place=False, **where)


def has_rows(data: str) -> bool:
    """Return whether the data are rows, whose tokens can be counted, rather than figures or an audit."""
    return not _is_told(data) and _audit_of(data) is None


def _is_told(data: str) -> bool:
    return "=" in data and not Path(data).expanduser().exists()


def _kept(sample: list, pairs: int, max_length: int | None, source: str) -> Workload:
    """Return the workload of those pairs that max_length leaves."""
    longer = np.array([max(map(len, pair)) for pair in sample])
    fits = longer <= (max_length or math.inf)
    if not fits.any():
        quartiles = ", ".join(f"{value:,.0f}" for value in np.percentile(longer, [25, 50, 75]))
        raise ValueError(
            f"data: none of the pairs is within max_length {max_length} (quartiles of the longer side: {quartiles} tokens); "
            "raise max_length, or give 0 for no limit"
        )
    over = 1 - float(fits.mean())
    kept = [pair for pair, one in zip(sample, fits, strict=True) if one]
    return Workload(kept, max(1, round(pairs * (1 - over))), over, max_length, source)


# From figures


def _from_figures(text: str) -> tuple[list, int]:
    plain, quartiles = [], {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (one.strip() for one in part.partition("="))
        if name in ("prompt", "answer") and "/" in value:
            quartiles[name] = _quartiles(name, value)
            value = str(quartiles[name][1])
        plain.append(f"{name}={value}")
    stats = parse_numbers("data", ",".join(plain), dict.fromkeys(_STATS), _STATS[3:])
    if not isinstance(stats["pairs"], int):
        raise ValueError(f"data: pairs is {stats['pairs']}, but must be a whole number")
    drawn = np.random.default_rng(_SEED)
    prompt, chosen, rejected = (
        _drawn_lengths(name, stats, quartiles.get(name), drawn) for name in ("prompt", "answer", "answer")
    )
    return _made_pairs(prompt, chosen, rejected), stats["pairs"]


def _quartiles(name: str, value: str) -> list[float]:
    try:
        found = [float(one) for one in value.split("/")]
    except ValueError:
        found = []
    if len(found) != 3 or not 0 < found[0] <= found[1] <= found[2] < 1e9:
        raise ValueError(
            f"data: {name} is {value!r}, but must be a mean, or three rising quartiles such as 100/200/400"
        )
    return found


def _drawn_lengths(name: str, stats: dict, quartiles: list[float] | None, drawn: np.random.Generator) -> np.ndarray:
    """Return lengths that are log-normal, as those of texts nearly are, with the mean and spread that were given."""
    if quartiles is not None:
        if f"{name}_sd" in stats:
            raise ValueError(
                f"data: {name} has quartiles, so {name}_sd={stats[f'{name}_sd']} says it twice; leave it out"
            )
        center, sigma = math.log(quartiles[1]), math.log(quartiles[2] / quartiles[0]) / (2 * _QUARTILE)
    else:
        spread = stats.get(f"{name}_sd", USUAL_SPREAD * stats[name]) / stats[name]
        sigma = math.sqrt(math.log(1 + spread**2))
        center = math.log(stats[name]) - sigma**2 / 2
    return np.maximum(1, np.exp(center + sigma * drawn.standard_normal(MADE_PAIRS)).round()).astype(np.int64)


def _made_pairs(shared: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> list:
    """Return pairs whose sides share so many tokens and go on with so many of their own, none of them like any other."""
    mean_tokens = float((shared + chosen + rejected).mean())
    if mean_tokens > LONGEST_MADE:
        raise ValueError(
            f"data: a pair has {mean_tokens:,.0f} tokens on average, but must have at most {LONGEST_MADE:,} to be laid out; "
            "give shorter ones"
        )
    made, first = [], 0
    for of_both, of_chosen, of_rejected in zip(shared, chosen, rejected, strict=True):
        prompt, one, other = np.split(
            np.arange(first, first + of_both + of_chosen + of_rejected, dtype=np.int32), [of_both, of_both + of_chosen]
        )
        made.append((np.concatenate([prompt, one]), np.concatenate([prompt, other])))
        first += of_both + of_chosen + of_rejected
    return made


# From an audit


def _audit_of(data: str) -> dict[str, Any] | None:
    """Return an audit's findings where the file holds some, None where it holds something else, such as pairs."""
    path = Path(data).expanduser()
    path = path / "audit.json" if path.is_dir() else path
    if path.suffix != ".json" or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(1) != b"{":
            return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # The data sets' reader says what is wrong with it.
    return found if isinstance(found, dict) and {"sharing", "lengths", "pairs"} <= found.keys() else None


def _from_audit(found: dict[str, Any], data: str) -> tuple[list, int]:
    """Return pairs with the lengths and the sharing of an audit: in tokens where it counted them, else in characters."""
    try:
        counted = found.get("tokens") or (found if "tokens" in found["lengths"] else None)
        if counted is not None:
            lengths = counted["lengths"].get("tokens", counted["lengths"])
            share, unit = counted["sharing"]["within_pairs"], 1
        else:
            lengths, share, unit = found["lengths"]["characters"], found["sharing"]["within_pairs"], CHARACTERS_A_TOKEN
        if "prompt" in lengths:
            # In characters, sides are answers; how the roles between them are written is not known.
            chosen, rejected, shared = (_spread_out(lengths[name]) / unit for name in ("chosen", "rejected", "prompt"))
        else:
            whole = [_spread_out(lengths[name]) / unit for name in ("chosen", "rejected")]
            shared = np.minimum(*whole) * min(1.0, (share or 0.0) * np.mean(whole) / np.minimum(*whole).mean())
            chosen, rejected = (one - shared for one in whole)
        pairs = operator.index(found["pairs"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"data: the audit {data!r} cannot be used ({type(error).__name__}: {error}); audit the data again with this version"
        ) from None
    drawn = np.random.default_rng(_SEED)
    # Long prompts' answers are as long as others', so that each length is drawn by itself.
    order = [drawn.permutation(MADE_PAIRS) for _ in range(2)]
    parts = [np.maximum(1, one.round()).astype(np.int64) for one in (shared, chosen[order[0]], rejected[order[1]])]
    return _made_pairs(*parts), pairs


def _spread_out(spread: dict[str, float]) -> np.ndarray:
    """Return lengths spread as an audit's shares say, straight lines between them."""
    shares = {"min": 0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1}
    at = (np.arange(MADE_PAIRS) + 0.5) / MADE_PAIRS
    return np.interp(at, list(shares.values()), [spread[name] for name in shares])


# From rows


def _from_rows(
    data: str,
    max_length: int | None,
    tokenizer: Any,
    *,
    in_place: bool,
    config: str | None = None,
    split: str | None = None,
    sample: int = 2000,
) -> Workload:
    splits = tables.open_rows(data, config, in_place=in_place)
    wanted = split or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if wanted not in splits:
        raise ValueError(f"data set {data!r} has no split {wanted!r}; found: {', '.join(splits)}; choose with --split")
    reading = sides.reading_of(splits[wanted], wanted)
    rows = token_sample.Sample(sample or sys.maxsize, 1)
    num_rows = 0
    for table in rows.past(tables.tables(splits[wanted])):
        num_rows += len(table)
    drawn = rows.drawn()
    found = [pair for first_row, part in drawn for pair in _pairs_of(part, first_row, reading, tokenizer)]
    if not found:
        raise ValueError(f"data set {data!r}: none of the rows looked at is a pair; plaudit audit says what they are")
    how = "its own token ids" if reading.is_tokenized else "its model's tokenizer"
    if not reading.is_tokenized and tokenizer is None:
        how = f"{CHARACTERS_A_TOKEN} characters a token, as there is no tokenizer (give --tokenizer)"
    source = f"{data}, {len(drawn):,} of {num_rows:,} rows counted by {how}"
    pairs = [pair for pair in found if not np.array_equal(*pair)]
    if not pairs:
        raise ValueError(f"data set {data!r}: both sides of every pair looked at are the same")
    return _kept(pairs, round(num_rows * len(pairs) / len(drawn)), max_length, source)


def _pairs_of(rows: Any, first_row: int, reading: Reading, tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    if tokenizer is not None and not reading.is_tokenized:
        encoded = token_sample.encoded(rows, first_row, reading, tokenizer)
        return [(np.array(chosen), np.array(rejected)) for chosen, rejected in encoded]
    batch = sides.batch_of(rows, first_row, reading).to_pylist()
    return [_ids_of(pair, reading.is_tokenized) for pair in batch if pair["problem"] is None]


def _ids_of(pair: dict[str, Any], is_tokenized: bool) -> tuple[np.ndarray, np.ndarray]:
    if is_tokenized:
        return np.frombuffer(pair["chosen"], np.int32), np.frombuffer(pair["rejected"], np.int32)
    prompt = pair["chosen_prompt"] or b""
    other = prompt if pair["rejected_prompt"] is None else pair["rejected_prompt"]
    return _pieces(prompt + pair["chosen"]), _pieces(other + pair["rejected"])


def _pieces(text: bytes) -> np.ndarray:
    """Return a number for each four characters: equal ones for equal texts, so that what is shared stays shared."""
    characters = np.frombuffer(text.decode("utf-8", "replace").encode("utf-32-le"), np.uint32).astype(np.int64)
    characters = np.pad(characters, (0, -len(characters) % CHARACTERS_A_TOKEN))
    parts = characters.reshape(-1, CHARACTERS_A_TOKEN)
    # An eos or a template's last word stands at each end.
    return np.append(parts @ (1_000_003 ** np.arange(CHARACTERS_A_TOKEN)) % 2**31, 0)
