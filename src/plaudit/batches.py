"""Who gets which pair: the micro-batches of every process, evened out with fillers of weight 0."""

import io
import itertools
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import seed_worker

from plaudit.collate import COUNTS, ERROR, INDEX, TOTAL, WEIGHT
from plaudit.preemption import worker_start
from plaudit.prepare import MARKED, SIDES, distinct_length, distinct_lengths, kept_rows, pair_lengths


class Share(NamedTuple):
    """One process's part of every global micro-batch. batch_size: pairs a process."""

    batch_size: int
    num_processes: int = 1
    process: int = 0


class Dealt(NamedTuple):
    """One pair of a micro-batch: its row, whether it counts (1.0 or 0.0), and how many pairs count over all processes."""

    row: Any
    weight: float
    total: int


def deal(chunk: Sequence, share: Share, lengths: Sequence[int]) -> list[Dealt]:
    """Return one process's part of a global micro-batch: as many rows and about as many tokens as the others', in order.

    chunk: the pairs of all processes, at least one. lengths: the tokens of each. Every process gets the same number of
    rows, some of them fillers, because a process without a batch would leave the others waiting for its gradients.
    """
    size = -(-len(chunk) // share.num_processes)
    total = len(chunk)
    parts: list[list[int]] = [[] for _ in range(share.num_processes)]
    held = [0] * share.num_processes
    # The longest first, each to the process that holds the fewest tokens and still has room.
    for i in sorted(range(total), key=lambda i: (-lengths[i], i)):
        part = min((part for part in range(len(parts)) if len(parts[part]) < size), key=lambda part: (held[part], part))
        parts[part].append(i)
        held[part] += lengths[i]
    mine = [chunk[i] for i in sorted(parts[share.process])]
    # A repeat of a pair that is there already costs the tree layout nothing.
    return [Dealt(row, 1.0, total) for row in mine] + [Dealt([*mine, chunk[0]][0], 0.0, total)] * (size - len(mine))


class EpochOrder(Sampler):
    """The rows' order, drawn anew each epoch from (seed, epoch) alone, so that all processes and a resumed run agree."""

    def __init__(self, order: Any, seed: int) -> None:
        self.order, self.seed, self.epoch = order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        self.order.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.order)


def train_order(dataset: Dataset, args: TrainingArguments) -> Any:
    """Return the rows in the order of args.train_sampling_strategy, the same as Trainer's for the same seed."""
    seed = args.seed if args.data_seed is None else args.data_seed
    if args.train_sampling_strategy == "sequential":
        return SequentialSampler(dataset)
    if args.train_sampling_strategy == "group_by_length":
        lengths = pair_lengths(dataset).max(axis=1).tolist()
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return EpochOrder(LengthGroupedSampler(batch, lengths=lengths), seed)
    return EpochOrder(RandomSampler(dataset), seed)


def by_length(dataset: Dataset) -> list[int]:
    """Return the rows with the longest pair first, so that the pairs of a padded batch are about equally long."""
    return np.argsort(-pair_lengths(dataset).max(axis=1), kind="stable").tolist()


class PairRows(torch.utils.data.Dataset):
    """A prepared data set, read by micro-batches of Dealt rows; each row carries what the collator must know of it.

    order: row numbers, re-iterable, `set_epoch` where the order changes with the epoch.
    """

    drop_last = False

    def __init__(self, dataset: Dataset, order: Any, share: Share) -> None:
        self.dataset, self.order, self.share = dataset, order, share
        # One process takes every pair, however long.
        self.lengths = distinct_lengths(dataset) if share.num_processes > 1 else [0] * len(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, dealt: list[Dealt]) -> list[dict]:
        columns = self.dataset[[row for row, _, _ in dealt]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [_feature(row, one.row, one) for row, one in zip(rows, dealt, strict=True)]


class DealtBatches(Sampler):
    """One process's micro-batches of a PairRows: lists of Dealt row numbers."""

    def __init__(self, pairs: PairRows) -> None:
        self.pairs = pairs
        self.batch_size, self.drop_last = pairs.share.batch_size, pairs.drop_last
        if not len(self):
            raise ValueError(
                f"the train_dataset's {len(pairs):,} pairs make no whole batch of {self.batch_size} pairs a process; "
                "lower per_device_train_batch_size or leave dataloader_drop_last out"
            )

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.pairs.order, "set_epoch"):
            self.pairs.order.set_epoch(epoch)

    def __len__(self) -> int:
        whole = self.batch_size * self.pairs.share.num_processes
        return len(self.pairs) // whole if self.drop_last else -(-len(self.pairs) // whole)

    def __iter__(self) -> Iterator[list[Dealt]]:
        share = self.pairs.share
        for chunk in _chunks(self.pairs.order, share.batch_size * share.num_processes, self.drop_last):
            yield deal(chunk, share, [self.pairs.lengths[row] for row in chunk])


class StreamedPairs(torch.utils.data.IterableDataset):
    """One process's micro-batches of a prepared stream, ready for a collator.

    Every process reads the whole stream and takes its part of each global micro-batch, so that all agree on what was
    dropped and where the stream ends. Under several loader workers, datasets gives each worker shards of its own.
    repeat: start again where the stream ends. Trainer takes max_steps of a stream for one epoch, and a resumed run finds
    its place by counting the micro-batches from the beginning of that epoch.
    """

    drop_last = False

    def __init__(self, dataset: IterableDataset, share: Share, repeat: bool = False) -> None:
        self.dataset, self.share, self.repeat, self.epoch = dataset, share, repeat, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[dict]]:
        counts: Counter = Counter()
        try:
            yield from self._passes(counts)
        except ValueError as error:
            # A worker's error would arrive wrapped in its traceback; this one names the row and the cure by itself.
            if torch.utils.data.get_worker_info() is None:
                raise
            yield [{ERROR: str(error)}]

    def _passes(self, counts: Counter) -> Iterator[list[dict]]:
        for epoch in itertools.count(self.epoch):
            getattr(self.dataset, MARKED, self.dataset).set_epoch(epoch)
            num_batches = 0
            for num_batches, features in enumerate(self._one_pass(counts), 1):  # noqa: B007  # read after the loop
                yield features
            if self.repeat and not num_batches:
                raise ValueError(
                    f"the streamed train_dataset holds no whole batch of {self.share.batch_size} pairs a process; lower "
                    "per_device_train_batch_size or leave dataloader_drop_last out"
                )
            if not self.repeat:
                return

    def _one_pass(self, counts: Counter) -> Iterator[list[dict]]:
        worker = torch.utils.data.get_worker_info()
        rows = enumerate(kept_rows(self.dataset, counts))
        # One row is read ahead, so that the last micro-batch also counts what was dropped after it.
        ahead = (row for row, _ in itertools.pairwise(itertools.chain(rows, [None])))
        for chunk in _chunks(ahead, self.share.batch_size * self.share.num_processes, self.drop_last):
            several = self.share.num_processes > 1
            lengths = [distinct_length(*(row[name] for name in SIDES)) if several else 0 for _, row in chunk]
            features = [_feature(one.row[1], one.row[0], one) for one in deal(chunk, self.share, lengths)]
            features[0][COUNTS] = {"worker": worker.id if worker else 0, **counts}
            yield features


def make_loader(
    pairs: PairRows | StreamedPairs, collate: Callable, args: TrainingArguments, device: torch.device, is_training: bool
) -> DataLoader:
    """Return the loader of one process's micro-batches, which come out on the device."""
    streamed = isinstance(pairs, StreamedPairs)
    options: dict[str, Any] = {
        "collate_fn": collate,
        # An evaluation's order is the stream's own, which several workers would interleave.
        "num_workers": args.dataloader_num_workers if is_training or not streamed else 0,
        # Pinning helps copies to an accelerator; without one torch only warns.
        "pin_memory": args.dataloader_pin_memory and device.type != "cpu",
        "in_order": args.dataloader_in_order,
    }
    config = cast(Any, args.accelerator_config)
    if options["num_workers"]:
        options["collate_fn"] = partial(_collate_packed, collate)
        options["persistent_workers"] = args.dataloader_persistent_workers and is_training
        options["multiprocessing_context"] = args.dataloader_multiprocessing_context
        options["prefetch_factor"] = args.dataloader_prefetch_factor
        seeded = partial(seed_worker, num_workers=options["num_workers"], rank=args.process_index)
        options["worker_init_fn"] = worker_start(seeded if is_training else None)
    options |= {"batch_size": None} if streamed else {"batch_sampler": DealtBatches(pairs)}
    # One process, because the pairs are dealt already; accelerate moves the batches to the device.
    return prepare_data_loader(
        DataLoader(pairs, **options),
        device=device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
        # From pinned memory a copy need not wait, and every tensor of a batch would. On MPS the loader pins nothing.
        non_blocking=config.non_blocking or (options["pin_memory"] and device.type == "cuda"),
    )


class Packed:
    """A batch as bytes, on its way from a loader's worker through a pipe.

    torch hands tensors over in shared memory. A container has 64 MB of it, and where there is no room left a worker dies or,
    worse, its batch never comes. Batches of tokens are small.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        file = io.BytesIO()
        _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
        self._bytes = file.getvalue()

    def unpacked(self) -> dict[str, Any]:
        return pickle.loads(self._bytes)

    def pin_memory(self) -> dict[str, Any]:
        """Return the batch with its tensors in pinned memory; the loader calls this."""
        return torch.utils.data._utils.pin_memory.pin_memory(self.unpacked())

    def to(self, device: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the batch with its tensors on the device; accelerate calls this."""
        return send_to_device(self.unpacked(), device, **kwargs)


class _Pickler(pickle.Pickler):
    """Writes tensors as arrays, of which torch's own way would make a file each."""

    def reducer_override(self, value: Any) -> Any:
        is_plain = type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu"
        # NumPy knows neither bfloat16 nor the eight-bit floats.
        if not is_plain or (
            value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64)
        ):
            return NotImplemented
        return torch.from_numpy, (value.detach().numpy(),)


def _collate_packed(collate: Callable, features: list[Any]) -> Packed:
    return Packed(collate(features))


def _feature(row: dict, index: int, dealt: Dealt) -> dict:
    return {**row, INDEX: index if dealt.weight else -1, WEIGHT: dealt.weight, TOTAL: dealt.total}


def _chunks(items: Iterable, size: int, drop_last: bool) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        if drop_last and len(chunk) < size:
            return
        yield chunk
