"""Token ids of any number of sequences to their rewards: the layout that a trial chose, batches by a budget of tokens."""

import itertools
from collections.abc import Iterator, Sequence
from traceback import clear_frames
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plaudit import attention, memory
from plaudit.collate import Padded, TreeRow
from plaudit.probe import choose_layout
from plaudit.proof import drawn_sequences, evaluating
from plaudit.rewards import attach, classifier_of, rewards
from plaudit.say import say
from plaudit.tree import num_common

# Distinct tokens a batch: enough to keep a processor busy, and little memory.
MAX_BATCH_TOKENS = {"cpu": 4_096, "other": 16_384}
# Sequences up to this long are tried at once when the layout is chosen; longer ones when they come.
FIRST_TRIED = 1_024
SECONDS_WITHOUT_BAR = 3


class Inference:
    """A model's rewards, in batches of at most max_tokens tokens to compute (None: by the device).

    tokenizer: names the special tokens that a trial leaves out. packing: "auto" computes what sequences share once, where
    a trial shows the padded rewards; "off" pads. shows_progress: a bar, where it takes more than a few seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        packing: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        if packing not in ("auto", "off"):
            raise ValueError(f"packing is {packing!r}; it must be 'auto' or 'off'")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_batch_tokens is {max_tokens}; it must be at least 1")
        attach(model)
        self.model, self.tokenizer, self.packing = model, tokenizer, packing
        self.max_tokens = max_tokens or MAX_BATCH_TOKENS.get(self.device.type, MAX_BATCH_TOKENS["other"])
        self.shows_progress = True
        self.layout: Padded | TreeRow | None = None
        self._tried = 0

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return next(self.model.parameters()).device

    @property
    def pad_token_id(self) -> int:
        """The id that batches are padded with, and, in decoders, that the reward is not read at."""
        config: Any = getattr(classifier_of(self.model), "config", None)
        known = [getattr(config.get_text_config(), "pad_token_id", None)] if config is not None else []
        known.append(getattr(self.tokenizer, "pad_token_id", None))
        return next((each for each in known if isinstance(each, int) and each >= 0), 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew in a copy: its model's forward and attention are the class's own."""
        self.__dict__.update(state, layout=None, _tried=0)
        if isinstance(classifier_of(self.model), PreTrainedModel):
            attention.disable(cast(Any, classifier_of(self.model)))
        attach(self.model)

    def __call__(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return one reward a sequence, float32, shape (num_sequences,), in the order given."""
        values = np.empty(len(sequences), np.float32)
        bar = tqdm(
            total=len(sequences),
            desc="Scoring",
            unit=" sequences",
            delay=SECONDS_WITHOUT_BAR,
            leave=False,
            disable=not self.shows_progress,
        )
        with bar, evaluating(self.model):
            layout = self._layout_for(max(map(len, sequences)))
            left = list(range(len(sequences)))
            while left:
                done = set()
                for batch in batches([sequences[i] for i in left], isinstance(layout, TreeRow), self.max_tokens):
                    places = [left[i] for i in batch]
                    found = self._rewards([sequences[i] for i in places], layout)
                    if found is None:
                        break
                    values[places] = found
                    done.update(places)
                    bar.update(len(places))
                left = [i for i in left if i not in done]
        return values

    def _rewards(self, sequences: list[Sequence[int]], layout: Padded | TreeRow) -> np.ndarray | None:
        """Return the rewards of one batch; None where memory ran out and smaller batches may do."""
        batch = layout(sequences)
        try:
            return rewards(self.model, {name: value.to(self.device) for name, value in batch.items()}).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if len(sequences) == 1:
                text = (
                    f"scoring one sequence of {len(sequences[0]):,} tokens on {self.device}. What helps: a shorter one, as "
                    'max_length with truncation="left" makes it; the model in half precision (dtype="bfloat16"); another device'
                )
                raise memory.told(text, error) from error
            # What the batch had made goes before the next one is tried.
            clear_frames(error.__traceback__)
        self.max_tokens = max(1, min(self.max_tokens, batch["input_ids"].numel()) // 2)
        say(f"out of memory: batches are of {self.max_tokens:,} tokens from now on (max_batch_tokens)")
        return None

    def _layout_for(self, longest: int) -> Padded | TreeRow:
        """Return the layout of batches, chosen by a trial that goes as far as the sequences do."""
        if self.layout is None or longest > self._tried:
            self._tried = max(FIRST_TRIED, 2 * longest)
            if isinstance(self.layout, TreeRow):
                attention.disable(cast(Any, classifier_of(self.model)))
            if self.packing == "off" or self._is_spread():
                self.layout = Padded(self.pad_token_id)
            else:
                drawn = drawn_sequences(self.model, self.tokenizer, 4)
                self.layout, reason = choose_layout(self.model, drawn, self.pad_token_id, longest=self._tried)
                if reason is not None:
                    say(f"packing: the batches are padded, because {reason}", once=True)
        return self.layout

    def _is_spread(self) -> bool:
        """Tell whether the model's layers are on several devices, where a tree's plan would have to follow them."""
        return len({each.device for each in self.model.parameters()}) > 1


def batches(sequences: Sequence[Sequence[int]], are_trees: bool, max_tokens: int) -> Iterator[list[int]]:
    """Yield the sequences' numbers batch by batch, each of at most so many tokens to compute, or of one sequence."""
    if are_trees:
        yield from _tree_batches([np.asarray(ids, dtype=">u4") for ids in sequences], max_tokens)
    else:
        yield from _padded_batches([len(ids) for ids in sequences], max_tokens)


def _tree_batches(arrays: list[np.ndarray], max_tokens: int) -> Iterator[list[int]]:
    # Neighbours in this order share the most, so that what many rows begin with is computed once a batch.
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].tobytes())
    shared = [0, *(num_common(arrays[one], arrays[next_]) for one, next_ in itertools.pairwise(order)), 0]
    start = 0
    while start < len(order):
        stop, middle, held = start, start + 1, 0
        while stop < len(order):
            added = len(arrays[order[stop]]) - (shared[stop] if stop > start else 0)
            if stop > start and held + added > max_tokens:
                break
            held, stop = held + added, stop + 1
            middle = stop if held <= max_tokens / 2 else middle
        # What a cut parts is computed twice, so it is made where the least is shared, in the batch's second half.
        cut = stop if stop == len(order) else min(range(middle, stop + 1), key=lambda place: (shared[place], -place))
        yield order[start:cut]
        start = cut


def _padded_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    # The longest first, so that a batch's sequences are about equally long.
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    yield batch
