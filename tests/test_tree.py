"""The tree: thousands of random sets of sequences against brute force."""

import itertools
import random
import sys

import numpy as np
import pytest

from plaudit import tree
from plaudit.collate import fill_up
from plaudit.tree import layout

SETS = 3000
MINIMA = [1, 2, 4, 1000]
# Among them ids that end in the same bytes.
ALPHABETS = [[7], [0, 1], [1, 2, 3], [1, 257, 65_537], list(range(50))]


def random_sequences(generator):
    """Up to nine sequences over a small alphabet, of which some repeat, begin or continue others."""
    alphabet = generator.choice(ALPHABETS)
    sequences = []
    for _ in range(generator.randint(1, 9)):
        stem = generator.choice(sequences)[: generator.randint(0, 15)] if sequences and generator.random() < 0.6 else []
        sequences.append(stem + generator.choices(alphabet, k=generator.randint(0 if stem else 1, 9)))
    return sequences


def random_sets(seed=0):
    generator = random.Random(seed)
    for _ in range(SETS):
        yield random_sequences(generator)


def seen(found, row):
    """The rows that a row's token may attend to."""
    return [j for j in range(row + 1) if row < found.subtree_end[j]]


def prefixes(sequences):
    return {tuple(ids[:length]) for ids in sequences for length in range(1, len(ids) + 1)}


def above(found, chain):
    return tuple(chain.path[: len(chain.path) - (chain.stop - chain.start)].tolist())


def test_the_random_sets_hold_the_cases_that_they_are_meant_to():
    sets = list(random_sets())
    pairs = [(a, b) for sequences in sets for a, b in itertools.permutations(sequences, 2)]
    assert sum(a == b for a, b in pairs) > 1000
    assert sum(a != b and a == b[: len(a)] for a, b in pairs) > 1000
    assert sum(a != b and a[:5] == b[:5] for a, b in pairs) > 1000
    assert sum(len(sequences) == 1 for sequences in sets) > 100
    assert sum(max(map(max, sequences)) > 65_535 for sequences in sets) > 100


@pytest.mark.parametrize("min_shared", MINIMA)
def test_each_read_out_token_sees_exactly_its_own_sequence_up_to_itself(min_shared):
    generator = random.Random(1)
    for sequences in random_sets():
        inside = [generator.randrange(len(ids)) for ids in sequences]
        for read_at in (None, inside):
            found = layout(sequences, read_at, min_shared=min_shared)
            stops = [len(ids) for ids in sequences] if read_at is None else [at + 1 for at in read_at]
            for ids, stop, row in zip(sequences, stops, found.read_out, strict=True):
                rows = seen(found, row)
                assert found.tokens[rows].tolist() == ids[:stop]
                assert found.positions[rows].tolist() == list(range(stop))


def test_with_a_minimum_of_one_each_distinct_prefix_is_stored_once():
    for sequences in random_sets():
        found = layout(sequences, min_shared=1)
        spelled = [tuple(found.tokens[seen(found, row)].tolist()) for row in range(len(found.tokens))]
        assert len(spelled) == len(set(spelled))
        assert set(spelled) == prefixes(sequences)


@pytest.mark.parametrize("min_shared", MINIMA)
def test_every_token_belongs_to_a_sequence_and_none_is_stored_more_often_than_its_sequences_hold_it(min_shared):
    for sequences in random_sets():
        found = layout(sequences, min_shared=min_shared)
        spelled = [tuple(found.tokens[seen(found, row)].tolist()) for row in range(len(found.tokens))]
        assert set(spelled) == prefixes(sequences)
        assert len(prefixes(sequences)) <= len(spelled) <= sum(map(len, sequences))


def test_a_minimum_that_no_prefix_reaches_shares_only_what_begins_another_sequence():
    found = layout([[1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [1, 2, 4]], min_shared=4)
    assert found.tokens.tolist() == [1, 2, 3, 1, 2, 4, 5]
    assert found.read_out.tolist() == [2, 5, 6, 5]


@pytest.mark.parametrize("min_shared", MINIMA)
def test_no_sequence_opens_a_branch_after_fewer_tokens_than_the_minimum(min_shared):
    branches = 0
    for sequences in random_sets():
        ends = {tuple(ids) for ids in sequences}
        found = layout(sequences, min_shared=min_shared)
        opened = []  # where the chains so far left the chains before them, as the rows above that point
        for chain in found.chains:
            at = above(found, chain)
            ends_another = tuple(found.tokens[list(at)].tolist()) in ends
            if at and at not in opened and not ends_another:
                last = max((len(other) for other in opened if at[: len(other)] == other), default=0)
                assert len(at) - last >= min_shared
                branches += 1
            opened.append(at)
    assert (branches > 0) == (min_shared < 1000), "the sets opened no branch"


def test_a_sequence_that_shares_too_little_parts_where_others_do():
    system, question = [1, 2, 3, 4], [5, 6]
    sequences = [[*system, 4, 4, 4], system + question + [7], system + question + [8]]
    assert len(layout(sequences, min_shared=1).tokens) == 4 + 3 + 2 + 1 + 1
    found = layout(sequences, min_shared=4)
    assert found.tokens.tolist() == [*system, 4, 4, 4, *question, 7, *question, 8]
    assert found.subtree_end.tolist() == [13] * 4 + [7] * 3 + [10] * 3 + [13] * 3


def test_a_shared_system_prompt_is_stored_once_for_the_whole_batch():
    generator = random.Random(3)
    system = [generator.randrange(100) for _ in range(30)]
    # Two first tokens: many prompts share a little more than the system prompt, less than is worth a branch.
    prompts = [[100 + i % 2, 200 + i // 2, *generator.choices(range(100), k=18)] for i in range(16)]
    sequences = [system + prompt + [300 + side] * 5 for side in range(2) for prompt in prompts]
    found = layout(sequences)
    assert found.tokens[:30].tolist() == system
    assert found.weight[:30].tolist() == [32.0] * 30
    assert 30 + 16 * (20 + 2 * 5) - 16 <= len(found.tokens) <= 30 + 16 * (20 + 2 * 5)


def test_a_pairs_row_is_that_of_the_design():
    found = layout([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8]], min_shared=1)
    assert found.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.subtree_end.tolist() == [8, 8, 8, 5, 5, 8, 8, 8]
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert found.read_out.tolist() == [4, 7]


def test_read_outs_come_in_the_order_given_whatever_the_order_of_the_row():
    sequences = [[3, 1], [1, 1], [2, 1], [1, 2], [3, 1]]
    for order in itertools.permutations(range(5)):
        found = layout([sequences[i] for i in order], min_shared=1)
        assert found.tokens.tolist() == [1, 1, 2, 2, 1, 3, 1]
        assert found.read_out.tolist() == [[6, 1, 4, 2, 6][i] for i in order]


def test_the_default_minimum_is_the_modules():
    for sequences in itertools.islice(random_sets(), 200):
        assert plain(layout(sequences)) == plain(layout(sequences, min_shared=tree.MIN_SHARED))
    assert tree.MIN_SHARED > 1


@pytest.mark.parametrize("min_shared", MINIMA)
def test_a_tokens_weight_is_that_of_the_sequences_that_see_it(min_shared):
    generator = random.Random(2)
    for sequences in random_sets():
        # Quarters add up exactly.
        for weights in (None, [generator.randrange(5) / 4 for _ in sequences]):
            found = layout(sequences, weights=weights, min_shared=min_shared)
            expected = np.zeros(len(found.tokens))
            for row, weight in zip(found.read_out, weights or [1.0] * len(sequences), strict=True):
                expected[seen(found, row)] += weight
            assert found.weight.tolist() == expected.tolist()
            assert found.weight.dtype == np.float32


@pytest.mark.parametrize("min_shared", MINIMA)
def test_the_chains_cut_the_row_in_order_and_each_path_spells_a_sequence(min_shared):
    for sequences in random_sets():
        found = layout(sequences, min_shared=min_shared)
        assert [0, *(chain.stop for chain in found.chains)] == [*(c.start for c in found.chains), len(found.tokens)]
        spelled = [found.tokens[chain.path].tolist() for chain in found.chains]
        assert all(chain.start < chain.stop for chain in found.chains)
        assert sorted(spelled) == sorted(map(list, {tuple(ids) for ids in sequences}))
        for chain in found.chains:
            assert chain.path.tolist() == seen(found, chain.stop - 1)
            assert chain.path[len(above(found, chain)) :].tolist() == list(range(chain.start, chain.stop))


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], []]])
def test_a_sequence_without_tokens_is_an_error(sequences):
    with pytest.raises(ValueError, match=r"^a tree needs sequences of at least one token each$"):
        layout(sequences)


def test_arrays_are_laid_out_like_lists():
    sequences = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [70_000, 1]]
    expected = plain(layout(sequences))
    assert plain(layout([np.array(ids, dtype=np.int32) for ids in sequences])) == expected
    assert plain(layout([tuple(ids) for ids in sequences])) == expected


def plain(found):
    arrays = [getattr(found, name).tolist() for name in found._fields if name != "chains"]
    return arrays, [(chain.start, chain.stop, chain.path.tolist()) for chain in found.chains]


@pytest.mark.parametrize("multiple", [1, 2, 8, 64])
def test_a_filled_up_row_is_the_same_tree_and_a_chain_that_nobody_sees(multiple):
    for sequences in itertools.islice(random_sets(), 200):
        found = layout(sequences, min_shared=2)
        size = len(found.tokens)
        whole = fill_up(found, multiple, 9)
        length = len(whole.tokens)
        assert length % multiple == 0
        assert 0 <= length - size < multiple
        assert {len(getattr(whole, name)) for name in ("positions", "subtree_end", "weight")} == {length}
        assert whole.tokens.tolist() == found.tokens.tolist() + [9] * (length - size)
        assert whole.weight.tolist() == found.weight.tolist() + [0.0] * (length - size)
        assert whole.read_out.tolist() == found.read_out.tolist()
        for row in range(size):
            assert seen(whole, row) == seen(found, row)
        for row in range(size, length):
            assert seen(whole, row) == list(range(size, row + 1))
            assert whole.positions[row] == row - size
        assert [0, *(chain.stop for chain in whole.chains)] == [*(chain.start for chain in whole.chains), length]
        assert whole.chains[-1].path.tolist() == seen(whole, length - 1)


def steps(sequences):
    """The Python lines of tree.py that a layout runs."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line" and frame.f_code.co_filename == tree.__file__
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        layout(sequences)
    finally:
        sys.settrace(former)
    return count


def batch(num_sequences, length, seed=0):
    generator = random.Random(seed)
    system = generator.choices(range(1000), k=length // 6)
    pairs = num_sequences // 2
    prompts = [system + generator.choices(range(1000), k=length // 3) for _ in range(pairs)]
    rest = length - len(prompts[0])
    return [prompt + generator.choices(range(1000), k=rest) for _ in range(2) for prompt in prompts]


def test_the_interpreters_work_grows_with_the_sequences_and_not_with_their_length():
    small, many, long = (steps(batch(*shape)) for shape in ((32, 60), (128, 60), (32, 600)))
    assert small > 32 * 10, "nothing was counted"
    assert many < 4.5 * small
    assert long < 1.1 * small
