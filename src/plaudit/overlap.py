"""Benchmark texts found again in training data: runs of 13 words that both hold, exactly, in memory for the benchmark alone.

A word is a run of letters and digits, whatever their case; of scripts that put no space between words, each character is
one. The benchmark's runs are kept as 64-bit hashes, the training texts are hashed past them in columns, and what has the
same hash is compared as text before it counts.
"""

import functools
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit import converters
from plaudit.columns import flat_bytes
from plaudit.converters import ANSWER_MARK, QUESTION_MARK

if TYPE_CHECKING:
    import pyarrow as pa

WORDS_OF_A_RUN = 13
EXAMPLES = 5
PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "conversation_input",
    "conversations",
    "conversation",
    "context",
    "messages",
    "problem",
)
ANSWERS = (
    "chosen",
    "rejected",
    "reject",
    "answer",
    "answers",
    "responses",
    "completions",
    "response",
    "bon_best",
    "loser_list",
)
_NUMBERED = re.compile(r"(?i)(response|answer|completion)_?([ab]|\d+)")
# Scripts that put no space between words.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
# What else is no word. ASCII's is left to the table of letters: a replacement at every space would take most of the time.
_NO_WORD = r"[^\x00-\x7f\p{L}\p{N}\p{M}]+"
# Hash constants: odd, so that multiplying by them can be undone modulo 2**64.
_BYTE, _WORD, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9
# A part of a batch whose arrays stay in the processor's cache.
_PART_BYTES = 1 << 19
# Slots of the filter for each run, and its most slots: 64 MiB.
_SLOTS_OF_A_RUN, _MOST_FILTER_BITS = 32, 26
_UNSEEN = np.iinfo(np.int64).max


@dataclass
class Benchmark:
    """A benchmark's texts, one entry each, and where they are from. row: the row's number; is_prompt: else an answer."""

    name: str
    texts: list[str]
    rows: np.ndarray
    is_prompt: np.ndarray
    num_rows: int


def read_benchmark(name: str, splits: Mapping[str, Any]) -> Benchmark:
    """Return the prompts and answers of a benchmark's rows, of any known schema, all its splits one after the other.

    ValueError where no column is known to hold a prompt or answers.
    """
    texts: list[str] = []
    rows: list[int] = []
    is_prompt: list[bool] = []
    number = -1
    for row in (row for split in splits.values() for row in split.with_format(None)):
        number += 1
        prompts, answers = texts_of(row)
        if not prompts and not answers and number == 0:
            raise ValueError(
                f"benchmark {name!r}: no prompt or answer in the columns {', '.join(map(repr, row))}; known are "
                f"{', '.join(map(repr, (*PROMPTS, *ANSWERS)))} and 'response_1' and so on; rename a column"
            )
        texts += prompts + answers
        rows += [number] * (len(prompts) + len(answers))
        is_prompt += [True] * len(prompts) + [False] * len(answers)
    return Benchmark(name, texts, np.array(rows, np.int64), np.array(is_prompt, bool), number + 1)


def texts_of(row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the prompt of a row, as one text, and its answers; what precedes an answer in a side is its prompt."""
    said: list[str] = []
    for name in PROMPTS:
        said += _leaves(row.get(name))
    prompts, answers = (["\n".join(said)] if said else []), []
    for name, value in row.items():
        if name not in ANSWERS and not _NUMBERED.fullmatch(name):
            continue
        if converters.is_message_list(value):
            *before, last = value
            prompts = prompts or (["\n".join(_leaves(before))] if before else [])
            answers += _leaves(last)
        elif converters.is_transcript(value):
            before, _, answer = value.rpartition(ANSWER_MARK)
            prompts = prompts or [before.replace(QUESTION_MARK, "\n").replace(ANSWER_MARK, "\n")]
            answers.append(answer)
        else:
            answers += _leaves(value)
    return prompts, answers


def _leaves(value: Any) -> list[str]:
    """Return the texts that somebody said in a value: of a message its content, of other objects every text."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, Mapping):
        message = converters.role_content(value)
        if message.get("role") is not None:
            return _leaves(message.get("content"))
        chosen = next((name for name in ("answer", "text", "content", "response") if value.get(name) is not None), None)
        return _leaves(value[chosen]) if chosen else [leaf for one in value.values() for leaf in _leaves(one)]
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, (list, tuple)) else []


def plain_words(texts: "pa.Array") -> "pa.Array":
    """Return texts of which lower-case letters and digits stay, the rest as spaces where it is not ASCII."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if texts.type in (pa.large_binary(), pa.binary()):
        texts = texts.cast(pa.large_string())
    others = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(others).as_py():
        return texts
    # pyarrow's own lower case is that of one character, as the hash's is.
    some = pc.utf8_lower(texts.filter(others))
    some = pc.replace_substring_regex(some, pattern=_UNSPACED, replacement=r" \1 ")
    some = pc.replace_substring_regex(some, pattern=_NO_WORD, replacement=" ")
    return pc.replace_with_mask(texts, others, some)


def runs_of(text: str, words: int = WORDS_OF_A_RUN) -> list[str]:
    """Return the runs of words of one text, in order: what the hashes stand for."""
    import pyarrow as pa

    plain = plain_words(pa.array([text], pa.large_string()))[0].as_py().encode()
    found = plain.translate(_LETTERS.tobytes()).split(b"\0")
    kept = [word.decode() for word in found if word]
    return [" ".join(kept[i : i + words]) for i in range(len(kept) - words + 1)]


def _letters() -> np.ndarray:
    """Return the byte that stands for each byte: itself, its lower case, or 0 for what parts words."""
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        is_word = byte >= 128 or chr(byte).isalnum()
        table[byte] = ord(chr(byte).lower()) if byte < 128 and is_word else byte * is_word
    return table


_LETTERS = _letters()


@functools.lru_cache(maxsize=4)
def _powers(base: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return base to the powers 0 up to length, modulo 2**64, and their inverses."""
    made = []
    for one in (base, pow(base, -1, 2**64)):
        powers = np.full(length + 1, one, np.uint64)
        powers[0] = 1
        made.append(np.multiply.accumulate(powers))
    return made[0], made[1]


def _sums(values: np.ndarray, starts: np.ndarray, stops: np.ndarray, base: int) -> np.ndarray:
    """Return, for each stretch of the values, the polynomial in base whose coefficients they are, modulo 2**64."""
    # A power of two, so that few tables are made.
    powers, inverses = _powers(base, 1 << max(16, len(values).bit_length()))
    totals = np.empty(len(values) + 1, np.uint64)
    totals[0] = 0
    np.cumsum(values * powers[: len(values)], out=totals[1:])
    return (totals[stops] - totals[starts]) * inverses[starts]


def run_hashes(
    data: np.ndarray, offsets: np.ndarray, words: int = WORDS_OF_A_RUN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the hash of each run of words in texts, the text that it is in, and which of the text's runs it is.

    data: the texts' bytes, made plain (see `plain_words`). offsets: where each text begins, and the last ends.
    """
    letters = _LETTERS[data]
    is_word = letters != 0
    begins, ends = is_word.copy(), is_word.copy()
    begins[1:] &= ~is_word[:-1]
    ends[:-1] &= ~is_word[1:]
    filled = offsets[1:] > offsets[:-1]
    first, last = offsets[:-1][filled], offsets[1:][filled] - 1
    begins[first], ends[last] = is_word[first], is_word[last]
    starts, stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1
    hashes = _sums(letters, starts, stops, _BYTE)
    # Mixed, so that runs of similar words do not come out alike.
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_MIX)
    hashes ^= hashes >> np.uint64(29)
    bounds = np.searchsorted(starts, offsets)
    whole = np.ones(max(len(starts) - words + 1, 0), bool)
    for back in range(1, words):
        crossing = bounds[1:] - back
        whole[crossing[(crossing >= 0) & (crossing < len(whole))]] = False
    at = np.flatnonzero(whole)
    runs = _sums(hashes, at, at + words, _WORD)
    return runs, at, bounds


class Index:
    """The runs of benchmarks, and which of them training texts were found to hold. `look` may run in several threads."""

    def __init__(self, benchmarks: list[Benchmark], words: int = WORDS_OF_A_RUN) -> None:
        import pyarrow as pa

        self.benchmarks, self.words = benchmarks, words
        self.texts = [text for benchmark in benchmarks for text in benchmark.texts]
        hashes, text_of, run_of = [np.array([], np.uint64)], [np.array([], np.int64)], [np.array([], np.int64)]
        for first in range(0, len(self.texts), 256):
            plain = plain_words(pa.array(self.texts[first : first + 256], pa.large_string()))
            runs, at, bounds = run_hashes(*flat_bytes(plain), words)
            text = np.searchsorted(bounds, at, side="right") - 1
            hashes.append(runs)
            text_of.append(text + first)
            run_of.append(at - bounds[text])
        every = np.concatenate(hashes)
        order = np.argsort(every, kind="stable")
        self.text_of, self.run_of = np.concatenate(text_of)[order], np.concatenate(run_of)[order]
        every = every[order]
        # Occurrences of one hash lie side by side, from one entry of `first_of` up to the next.
        self.hashes, self.first_of = np.unique(every, return_index=True)
        self.first_of = np.append(self.first_of, len(every))
        self.filter_bits = min(max(8, (_SLOTS_OF_A_RUN * len(self.hashes)).bit_length()), _MOST_FILTER_BITS)
        self.filter = np.zeros(1 << self.filter_bits, bool)
        self.filter[self._slots(self.hashes)] = True
        # The least training row that holds each occurrence's run; and, by hash, where it is that of all its occurrences.
        self.found_in = np.full(len(every), _UNSEEN)
        self.settled = np.full(len(self.hashes), _UNSEEN)
        self.lock = threading.Lock()

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes * np.uint64(_MIX)) >> np.uint64(64 - self.filter_bits)

    def look(self, texts: "pa.Array", rows: np.ndarray) -> None:
        """Mark the runs that training texts hold. rows: the number of the row that each text is from."""
        if not len(self.hashes):
            return
        plain = plain_words(texts)
        data, offsets = flat_bytes(plain)
        first = 0
        while first < len(rows):
            stop = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _PART_BYTES, side="right")) - 1)
            bounds_here = offsets[first : stop + 1]
            self._look(data[bounds_here[0] : bounds_here[-1]], bounds_here - bounds_here[0], rows[first:stop])
            first = stop

    def _look(self, data: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> None:
        runs, at, bounds = run_hashes(data, offsets, self.words)
        maybe = np.flatnonzero(self.filter[self._slots(runs)])
        places = np.searchsorted(self.hashes, runs[maybe])
        places[places == len(self.hashes)] = 0
        hits = self.hashes[places] == runs[maybe]
        places, at = places[hits], at[maybe[hits]]
        text = np.searchsorted(bounds, at, side="right") - 1
        news = rows[text] < self.settled[places]
        places, at, text = places[news], at[news], text[news]
        # Of each run, the least row of this part.
        order = np.lexsort((rows[text], places))
        _, least = np.unique(places[order], return_index=True)
        held: dict[int, list[str]] = {}

        def settles(i: int) -> bool:
            one = int(text[i])
            if one not in held:
                held[one] = runs_of(data[offsets[one] : offsets[one + 1]].tobytes().decode(), self.words)
            return self._settle(int(places[i]), held[one][at[i] - bounds[one]], int(rows[one]))

        for i in order[least]:
            if not settles(i):
                # Other words have the same hash, so each hit has to be looked at.
                for other in order[places[order] == places[i]]:
                    settles(other)

    def _settle(self, place: int, run: str, row: int) -> bool:
        """Mark the occurrences of a hash whose words are indeed the run's, and return whether all are."""
        occurrences = range(self.first_of[place], self.first_of[place + 1])
        same = [occurrence for occurrence in occurrences if self.run(occurrence) == run]
        with self.lock:
            self.found_in[same] = np.minimum(self.found_in[same], row)
            if len(same) == len(occurrences):
                self.settled[place] = min(self.settled[place], row)
        return len(same) == len(occurrences)

    def run(self, occurrence: int) -> str:
        """Return an occurrence's words."""
        return self._runs(int(self.text_of[occurrence]))[self.run_of[occurrence]]

    def _runs(self, text: int) -> list[str]:
        return _cached_runs(self.texts[text], self.words)

    def figures(self) -> dict[str, Any]:
        """Return by benchmark how many prompts and answers share a run with the training texts, with examples."""
        found, first_text = {}, 0
        shared = np.full(len(self.texts), -1, np.int64)
        for occurrence in np.flatnonzero(self.found_in < _UNSEEN):
            text = self.text_of[occurrence]
            # The earliest run of the text is the example.
            if shared[text] < 0 or self.run_of[occurrence] < self.run_of[shared[text]]:
                shared[text] = occurrence
        for benchmark in self.benchmarks:
            mine = shared[first_text : first_text + len(benchmark.texts)]
            found[benchmark.name] = self._figures(benchmark, mine)
            first_text += len(benchmark.texts)
        return found

    def _figures(self, benchmark: Benchmark, shared: np.ndarray) -> dict[str, Any]:
        hit = shared >= 0
        examples = [
            {
                "row": int(benchmark.rows[text]),
                "in": "prompt" if benchmark.is_prompt[text] else "answer",
                "run": self.run(shared[text]),
                "train_row": int(self.found_in[shared[text]]),
            }
            for text in np.flatnonzero(hit)[:EXAMPLES]
        ]
        rows = len(np.unique(benchmark.rows[hit]))
        return {
            "rows": benchmark.num_rows,
            "rows_found": rows,
            "rows_share": rows / benchmark.num_rows if benchmark.num_rows else 0.0,
            **_share("prompts", benchmark.is_prompt, hit),
            **_share("answers", ~benchmark.is_prompt, hit),
            "words": self.words,
            "examples": examples,
        }


def _share(name: str, mine: np.ndarray, hit: np.ndarray) -> dict[str, Any]:
    total, found = int(mine.sum()), int((mine & hit).sum())
    return {name: total, f"{name}_found": found, f"{name}_share": found / total if total else None}


@functools.lru_cache(maxsize=1024)
def _cached_runs(text: str, words: int) -> list[str]:
    return runs_of(text, words)
