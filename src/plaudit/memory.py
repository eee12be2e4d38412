"""Out of memory: recognised whoever raises it, and told with the batch that was too large and the options that help."""

import errno
import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# What torch, CUDA's libraries, Apple's and others' drivers, and C++ say when an allocation fails.
SAID = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "std::bad_alloc", "Cannot allocate memory")
# As the drivers write how much more was wanted, in bytes or with a unit.
WANTED = re.compile(r"tr(?:ied|y|ying) to allocate ([\d.]+ (?:bytes|[KMGT]i?B))", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in SAID)
    )


@contextmanager
def explained(describe: Callable[[], str], may_retry: Callable[[], bool] = lambda: True) -> "Iterator[None]":
    """Raise torch.OutOfMemoryError with the described text for whatever says that memory ran out.

    may_retry: whether accelerate's search for a batch size that fits shall take the error for a reason to go on; it reads
    the text, which says either "ran out of memory." or "ran out of memory:".
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error) or is_told(error):
            raise
        # The frames hold the activations, which are to be freed before a word about them takes memory.
        clear_frames(error.__traceback__)
        raise told(describe(), error, may_retry()) from error


def told(text: str, error: BaseException, may_retry: bool = True) -> RuntimeError:
    """Return the torch.OutOfMemoryError for a text that begins with what ran out, without a stop."""
    import torch

    what, _, rest = text.partition(". ")
    wanted = WANTED.search(str(error))
    more = f"{_readable(wanted[1])} more were wanted. " if wanted else ""
    new = torch.OutOfMemoryError(f"{what} ran out of memory{'. ' if may_retry else ': '}{more}{rest}")
    new.is_told = True  # type: ignore[attr-defined]
    return new


def _readable(amount: str) -> str:
    number, unit = amount.split()[0], amount.split()[-1]
    return f"{int(number) / 2**20:,.0f} MiB" if unit == "bytes" else amount


def is_told(error: BaseException) -> bool:
    """Tell whether an error is one that `told` made."""
    return bool(getattr(error, "is_told", False))


class Shown(NamedTuple):
    """A batch as a message shows it. pairs, tokens: of this process; computed: tokens that the model computes.

    place: the longest pair's number in the prepared data, -1 for none; chosen, rejected: its tokens.
    """

    pairs: int
    tokens: int
    computed: int
    is_tree: bool
    place: int
    chosen: int
    rejected: int


def shown(batch: Mapping[str, Any]) -> Shown:
    """Return what a message says of a collated batch of pairs."""
    places = batch["pair_index"].cpu()
    if "tree" in batch:
        lengths = batch["position_ids"].cpu()[0, batch["read_out"].cpu()] + 1
    else:
        lengths = batch["attention_mask"].cpu().sum(-1)
    sides = lengths.reshape(2, -1).T
    longest = int(sides.max(dim=1).values.argmax())
    chosen, rejected = sides[longest].tolist()
    is_real = places >= 0
    return Shown(
        int(is_real.sum()),
        int(batch["num_tokens"]),
        batch["input_ids"].numel(),
        "tree" in batch,
        int(places[longest]),
        int(chosen),
        int(rejected),
    )


def sentence(batch: Shown, row: str, option: str, size: int) -> str:
    """Return the batch in words. row: the longest pair's name, such as "train row 17". option, size: what set its pairs."""
    layout = "as a tree" if batch.is_tree else "padded"
    return (
        f"The batch: {batch.pairs:,} pair{'s' * (batch.pairs != 1)} ({option}={size}), {batch.tokens:,} tokens, laid out {layout}, so that "
        f"{batch.computed:,} are computed; its longest pair is {row} (chosen {batch.chosen:,} tokens, rejected "
        f"{batch.rejected:,})."
    )


def fewer_pairs(size: int, accumulation: int) -> tuple[int, int] | None:
    """Return fewer pairs a batch with as many more batches a step, so that the steps stay the same; None for one pair."""
    smaller = next((each for each in range(size // 2, 0, -1) if size % each == 0), None)
    return None if smaller is None else (smaller, accumulation * (size // smaller))


def shorter(lengths: Any, longest: int) -> str | None:
    """Return the option that leaves out the longest twentieth of the pairs, None where it would not leave out this one.

    lengths: tokens of both sides of all pairs, shape (num_pairs, 2), or None where they are not known.
    """
    if lengths is None:
        return f"max_length below {longest:,}"
    longer = lengths.max(axis=1)
    # Rounded up, as the sizes of attention's tiles are.
    limit = -(-int(sorted(longer.tolist())[int(0.95 * (len(longer) - 1))]) // 8) * 8
    dropped = int((longer > limit).sum())
    return f"max_length={limit} (drops {dropped:,} of {len(longer):,} pairs)" if limit < longest else None
