"""What is measured of each pair's texts: lengths, words, marks, first words, and what its sides begin with in common."""

from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit.columns import flat_bytes, joined
from plaudit.records import SIDES

if TYPE_CHECKING:
    import pyarrow as pa

# A heading, a list's item, bold, or code: what Markdown shows as such. A line begins at its "\n", not at "^", which
# pyarrow takes the end of the match before for.
MARKDOWN = r"\n[ \t]*(?:#{1,6} |[-*+] |[0-9]+[.)] )|\*\*|`"
FIRST_WORD = r"^\s*(?P<word>\S{1,32})"


def measured(batch: "pa.RecordBatch", is_tokenized: bool, with_said: bool) -> "pa.Table":
    """Return a batch with what is measured of its texts: lengths, marks, first words, how much the sides share.

    is_tokenized: the sides are ids; their lengths, in tokens, stand as characters, and there is nothing else to measure.
    with_said: add what the prompt says in one case and spacing, for comparing prompts of different files.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    made = {name: batch[name] for name in batch.schema.names if name != "prompt_text"}
    prompts = made["chosen_prompt"], pc.coalesce(made["rejected_prompt"], made["chosen_prompt"])
    for side in SIDES:
        column = made[side]
        if is_tokenized:
            made[f"{side}_characters"] = pc.divide(pc.binary_length(column), 4)
            made[f"{side}_empty"] = pc.equal(pc.binary_length(column), 0)
            continue
        text = column.cast(pa.large_string())
        made[f"{side}_characters"] = pc.utf8_length(text)
        made[f"{side}_words"] = num_words(column)
        made[f"{side}_marks"] = pc.count_substring_regex(joined("\n", text), MARKDOWN)
        made[f"{side}_first"] = first_words(text)
        made[f"{side}_empty"] = pc.equal(made[f"{side}_words"], 0)
        made[side] = text
    for name, prompt in zip(("prompt_characters", "rejected_prompt_characters"), prompts, strict=True):
        made[name] = pc.utf8_length(prompt.cast(pa.large_string()))
    made["shared"] = _shared(batch, prompts, is_tokenized)
    for name in ("chosen_prompt", "rejected_prompt") if not is_tokenized else ():
        made[name] = made[name].cast(pa.large_string())
    made["said"] = spaced(batch["prompt_text"]) if with_said else pa.nulls(len(batch), pa.large_string())
    for name in [f"{side}_{what}" for side in SIDES for what in ("words", "marks", "first")]:
        made.setdefault(name, pa.nulls(len(batch), pa.string() if name.endswith("first") else pa.int64()))
    return pa.table(made)


def first_words(texts: Any) -> Any:
    """Return each text's first word, at most 32 characters of it; null for a text without one."""
    import pyarrow.compute as pc

    return pc.struct_field(pc.extract_regex(texts, FIRST_WORD), "word")


def spaced(texts: Any) -> Any:
    """Return texts in lower case, each stretch of white space as one space, none around: prompts that say the same."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lower = pc.utf8_lower(texts.cast(pa.large_string()))
    # Single spaces, which most are, are left as they are.
    one = pc.replace_substring_regex(
        lower, r" [\s\v\x{a0}\x{3000}]+|[^\S ][\s\v\x{a0}\x{3000}]*|[\v\x{a0}\x{3000}][\s\v\x{a0}\x{3000}]*", " "
    )
    return pc.utf8_trim_whitespace(one)


_IS_SPACE = np.isin(np.arange(256), [9, 10, 11, 12, 13, 32, 28, 29, 30, 31])


def num_words(column: Any) -> Any:
    """Return how many stretches without white space (ASCII's) each text has."""
    import pyarrow as pa

    data, offsets = flat_bytes(column)
    is_text = ~_IS_SPACE[data]
    begins = is_text.copy()
    begins[1:] &= ~is_text[:-1]
    first = offsets[:-1][offsets[1:] > offsets[:-1]]
    begins[first] = is_text[first]
    counts = np.diff(np.searchsorted(np.flatnonzero(begins), offsets))
    mask = column.is_null().to_numpy(zero_copy_only=False)
    return pa.array(counts, pa.int64(), mask=mask)


def _shared(batch: "pa.RecordBatch", prompts: tuple[Any, Any], is_tokenized: bool) -> Any:
    """Return how many characters (or tokens) the two sides begin with in common."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parted = pc.is_valid(batch["rejected_prompt"]).to_numpy(zero_copy_only=False)
    # What comes before the answers is in common, and what these begin with; of other prompts, what they begin with.
    answers = num_common_bytes(batch["chosen"], batch["rejected"])
    if is_tokenized:
        return pa.array(answers // 4)
    answers = _num_characters(batch["chosen"], answers)
    before = pc.utf8_length(prompts[0].cast(pa.large_string())).fill_null(0).to_numpy(zero_copy_only=False)
    shared = before + answers
    if parted.any():
        where = pa.array(np.flatnonzero(parted))
        left, right = (one.take(where) for one in prompts)
        shared[parted] = _num_characters(left, num_common_bytes(left, right))
    return pa.array(shared, pa.int64())


def num_common_bytes(left: Any, right: Any) -> np.ndarray:
    """Return how many bytes two columns' values begin with in common."""
    (a, a_offsets), (b, b_offsets) = flat_bytes(left), flat_bytes(right)
    least = np.minimum(np.diff(a_offsets), np.diff(b_offsets))
    common = least.copy()
    rest, done, width = np.flatnonzero(least), 0, 16
    while len(rest):
        # Most sides part within their first bytes, and those that do not are looked at in ever longer steps.
        steps = np.arange(done, done + width)
        at_a, at_b = a_offsets[rest][:, None] + steps, b_offsets[rest][:, None] + steps
        inside = steps < least[rest][:, None]
        differs = inside & (a[np.minimum(at_a, len(a) - 1)] != b[np.minimum(at_b, len(b) - 1)])
        found = differs.any(axis=1)
        common[rest[found]] = done + differs[found].argmax(axis=1)
        done += width
        rest = rest[~found]
        rest = rest[least[rest] > done]
        width = int(min(2 * width, 4096, max(16, (1 << 22) // max(len(rest), 1))))
    return common


def _num_characters(column: Any, lengths: np.ndarray) -> np.ndarray:
    """Return how many whole characters the first so many bytes of each text hold."""
    data, offsets = flat_bytes(column)
    if not len(data) or data.max() < 128:
        return lengths
    # A character begins at each byte that does not continue one; the cut may be inside the last.
    begins = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
    starts, stops = offsets[:-1], offsets[:-1] + lengths
    count = begins[stops] - begins[starts]
    is_cut = (stops < offsets[1:]) & ((data[np.minimum(stops, len(data) - 1)] & 0xC0) == 0x80)
    return count - is_cut
