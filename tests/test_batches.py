"""Who gets which pair: each once, equal sizes, Trainer's own order."""

import random
from collections import Counter

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, IterableDataset
from transformers import TrainingArguments

from plaudit import batches, prepare
from plaudit.batches import DealtBatches, PairRows, Share, StreamedPairs, by_length, deal, make_loader, train_order
from plaudit.collate import COUNTS, INDEX, TOTAL, WEIGHT, DataCollatorForPreference, PairCollator

CPU = torch.device("cpu")
COLLATE = PairCollator(DataCollatorForPreference(0), 0)


def dataset(count, lengths=None):
    """Pairs that can be told apart: row i's chosen ids end with 10 + i."""
    return Dataset.from_list(
        [{"chosen_ids": [1] * (lengths[i] if lengths else 2) + [10 + i], "rejected_ids": [2]} for i in range(count)]
    )


def arguments(tmp_path, **values):
    values = {"per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none", **values}
    return TrainingArguments(output_dir=str(tmp_path), **values)


def shares(batch_size, num_processes):
    return [Share(batch_size, num_processes, process) for process in range(num_processes)]


# Dealing


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 11])
def test_a_chunk_is_dealt_in_equal_parts_each_pair_once_in_order(count, num_processes):
    lengths = [(7 * row) % 5 for row in range(count)]
    parts = [deal(list(range(count)), share, lengths) for share in shares(4, num_processes)]
    assert len({len(part) for part in parts}) == 1
    real = [[one.row for one in part if one.weight == 1.0] for part in parts]
    assert sorted(row for part in real for row in part) == list(range(count))
    assert all(part == sorted(part) for part in real)
    assert {one.total for part in parts for one in part} == {count}
    assert sum(len(part) for part in parts) - count < num_processes, "no more fillers than needed"
    assert {one.weight for part in parts for one in part} <= {0.0, 1.0}


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_processes_hold_about_equal_tokens_and_equally_many_pairs(num_processes):
    drawn = random.Random(0)
    spread = {"by tokens": 0, "in order": 0}
    for _ in range(100):
        lengths = [int(drawn.lognormvariate(5, 0.8)) for _ in range(8 * num_processes)]
        parts = [[one.row for one in deal(range(len(lengths)), share, lengths)] for share in shares(8, num_processes)]
        assert {len(part) for part in parts} == {8}
        in_order = [range(process * 8, process * 8 + 8) for process in range(num_processes)]
        for name, rows in (("by tokens", parts), ("in order", in_order)):
            held = [sum(lengths[row] for row in part) for part in rows]
            spread[name] += max(held) - min(held)
    assert spread["by tokens"] < 0.1 * spread["in order"]


def test_a_filler_repeats_a_pair_that_the_process_has_already():
    parts = [deal([0, 1, 2], share, [5, 5, 5]) for share in shares(2, 2)]
    fillers = [(one.row, part) for part in parts for one in part if not one.weight]
    assert len(fillers) == 1
    row, part = fillers[0]
    assert row in [one.row for one in part if one.weight]


def test_a_pairs_common_beginning_is_counted_once():
    rows = [([1, 2, 3], [1, 2, 4, 5]), ([1], [2]), ([1, 2], [1, 2, 3]), ([7, 7], [7, 7])]
    rows = Dataset.from_list([{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in rows])
    assert prepare.distinct_lengths(rows) == [5, 2, 3, 2]
    assert prepare.distinct_lengths(rows.select([3, 0])) == [2, 5]


def test_evaluation_starts_with_the_longest_pairs():
    rows = dataset(4, lengths=[2, 9, 4, 9])
    assert by_length(rows) == [1, 3, 2, 0]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 12, 23])
def test_over_an_epoch_every_row_is_read_once_by_one_process(count, num_processes):
    rows = dataset(count)
    read, steps = [], []
    for share in shares(2, num_processes):
        pairs = PairRows(rows, range(count), share)
        sampler = DealtBatches(pairs)
        features = [pairs.__getitems__(dealt) for dealt in sampler]
        assert len(sampler) == len(features)
        steps.append([len(batch) for batch in features])
        read += [feature for batch in features for feature in batch]
    real = [feature for feature in read if feature[WEIGHT]]
    assert sorted(feature[INDEX] for feature in real) == list(range(count))
    assert all(feature["chosen_ids"][-1] == 10 + feature[INDEX] for feature in real)
    assert {feature[INDEX] for feature in read if not feature[WEIGHT]} <= {-1}
    assert all(sizes == steps[0] for sizes in steps), "a process would wait for the others"
    assert max(steps[0]) == min(2, -(-count // num_processes))


def test_drop_last_leaves_out_the_uneven_rest_alone():
    for share in shares(2, 2):
        pairs = PairRows(dataset(11), range(11), share)
        pairs.drop_last = True
        dealt = list(DealtBatches(pairs))
        assert len(dealt) == len(DealtBatches(pairs)) == 2
        assert {(one.weight, one.total) for batch in dealt for one in batch} == {(1.0, 4)}


# Order


@pytest.mark.parametrize(("seed", "data_seed"), [(42, None), (7, None), (7, 3)])
def test_the_order_is_trainers_for_the_same_seed_and_epoch(tmp_path, seed, data_seed):
    rows = dataset(20)
    order = train_order(rows, arguments(tmp_path, seed=seed, data_seed=data_seed))
    own = seed if data_seed is None else data_seed
    drawn = []
    for epoch in (0, 1, 5):
        expected = SeedableRandomSampler(rows, data_seed=own)
        expected.set_epoch(epoch)
        order.set_epoch(epoch)
        drawn.append(list(order))
        assert drawn[-1] == list(expected) == list(order)
    assert len(set(map(tuple, drawn))) == 3


def test_a_sequential_order_is_the_data_sets(tmp_path):
    order = train_order(dataset(5), arguments(tmp_path, train_sampling_strategy="sequential"))
    assert list(order) == list(range(5))


def test_group_by_length_puts_pairs_of_like_length_together_and_each_once(tmp_path):
    lengths = [length for length in (2, 90, 30, 60) for _ in range(25)]
    args = arguments(tmp_path, train_sampling_strategy="group_by_length", gradient_accumulation_steps=2)
    order = train_order(dataset(100, lengths), args)
    epochs = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert epochs[-1] == list(order)
        assert sorted(order) == list(range(100))
        spreads = [len({lengths[row] for row in epochs[-1][first : first + 4]}) for first in range(0, 100, 4)]
        assert sum(spreads) / len(spreads) < 1.5, "a shuffled order has almost 3 lengths in 4 rows"
    assert epochs[0] != epochs[1]


def test_the_loader_draws_the_order_of_the_epoch_that_it_is_told(tmp_path):
    args = arguments(tmp_path)
    rows = dataset(9)
    loader = make_loader(PairRows(rows, train_order(rows, args), Share(2)), COLLATE, args, CPU, is_training=True)
    for epoch in (0, 3):
        loader.set_epoch(epoch)
        expected = train_order(rows, args)
        expected.set_epoch(epoch)
        assert [index for batch in loader for index in batch["pair_index"].tolist()] == list(expected)


# Loaders


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_loader_gives_collated_batches_in_order(tmp_path, num_workers, is_training):
    args = arguments(tmp_path, dataloader_num_workers=num_workers)
    loader = make_loader(PairRows(dataset(5), range(5), Share(2)), COLLATE, args, CPU, is_training)
    found = list(loader)
    assert len(loader) == len(found) == 3
    assert [batch["pair_index"].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert [batch["num_pairs"] for batch in found] == [2, 2, 1]
    assert found[0]["input_ids"].shape == (4, 3)


# Streams


def stream(count, num_shards=1, bad=()):
    """As `dataset`, prepared, the bad rows marked as dropped."""

    def rows(shards):
        for shard in shards:
            for i in range(shard, count, num_shards):
                reason = prepare.IDENTICAL if i in bad else None
                yield {"chosen_ids": [1, 10 + i], "rejected_ids": [2], prepare.DROPPED: reason}

    return IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(num_shards))})


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_a_stream_is_dealt_like_a_data_set_and_what_was_dropped_is_counted(num_processes):
    parts = [list(StreamedPairs(stream(12, bad=(0, 5)), share)) for share in shares(2, num_processes)]
    assert len({tuple(len(batch) for batch in part) for part in parts}) == 1
    read = [one for part in parts for batch in part for one in batch if one[WEIGHT]]
    assert sorted(one["chosen_ids"][-1] - 10 for one in read) == [i for i in range(12) if i not in (0, 5)]
    assert sorted(one[INDEX] for one in read) == list(range(10))
    for part in parts:
        assert part[-1][0][COUNTS] == {"worker": 0, "rows": 12, prepare.IDENTICAL: 2}
        assert sum(batch[0][TOTAL] for batch in part) == 10


def test_the_last_micro_batch_counts_what_was_dropped_after_it():
    *_, last = StreamedPairs(stream(6, bad=(4, 5)), Share(2))
    assert last[0][COUNTS] == {"worker": 0, "rows": 6, prepare.IDENTICAL: 2}


def test_a_stream_is_read_one_row_ahead_at_most():
    first = next(iter(StreamedPairs(stream(1000), Share(2))))
    assert first[0][COUNTS]["rows"] == 3


def test_a_stream_can_drop_its_last_uneven_micro_batch():
    pairs = StreamedPairs(stream(7), Share(2))
    pairs.drop_last = True
    assert [len(batch) for batch in pairs] == [2, 2, 2]


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_two_loader_workers_read_each_row_of_a_stream_once(tmp_path, num_shards):
    args = arguments(tmp_path, dataloader_num_workers=2)
    pairs = StreamedPairs(stream(11, num_shards, bad=(3,)), Share(2))
    found = list(make_loader(pairs, COLLATE, args, CPU, is_training=True))
    rows = [ids[1] - 10 for batch in found for ids in batch["input_ids"][: len(batch["pair_index"])].tolist()]
    assert sorted(rows) == [i for i in range(11) if i != 3]
    last = {batch["counts"]["worker"]: batch["counts"] for batch in found}
    total = sum((Counter(counts) for counts in last.values()), Counter())
    assert (total["rows"], total[prepare.IDENTICAL]) == (11, 1)


def test_an_evaluation_reads_a_stream_in_its_own_order_whatever_the_workers(tmp_path):
    args = arguments(tmp_path, dataloader_num_workers=2)
    pairs = StreamedPairs(stream(6, num_shards=2), Share(2))
    found = list(make_loader(pairs, COLLATE, args, CPU, is_training=False))
    rows = [ids[1] - 10 for batch in found for ids in batch["input_ids"][: len(batch["pair_index"])].tolist()]
    assert rows == [0, 2, 4, 1, 3, 5]
    assert [index for batch in found for index in batch["pair_index"].tolist()] == list(range(6))


def test_a_shuffled_stream_takes_the_epoch(tmp_path):
    pairs = StreamedPairs(stream(30).shuffle(seed=1, buffer_size=30), Share(30))
    loader = make_loader(pairs, COLLATE, arguments(tmp_path), CPU, is_training=True)
    drawn = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        (batch,) = list(loader)
        drawn.append(batch["input_ids"][:30, 1].tolist())
    assert drawn[0] == drawn[2] != drawn[1]
    assert sorted(drawn[0]) == sorted(drawn[1])


def test_chunks_are_all_of_the_items():
    assert list(batches._chunks(range(5), 2, False)) == [[0, 1], [2, 3], [4]]
    assert list(batches._chunks(range(5), 2, True)) == [[0, 1], [2, 3]]
    assert list(batches._chunks([], 2, False)) == []


def test_a_packed_batch_comes_out_as_it_went_in_and_can_be_written_to():
    numbers = torch.arange(6.0).reshape(2, 3)
    batch = {
        "ids": numbers.long(),
        "turned": numbers.T,
        "half": numbers.bfloat16(),
        "mask": numbers > 2,
        "counts": {"dropped": 3},
    }
    found = batches.Packed(batch).to("cpu")
    assert found.pop("counts") == batch.pop("counts")
    for name, value in batch.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        found[name].zero_()
    assert numbers.sum() == 15, "the batch that went in is another"
