"""Token sequences in, one depth-first layout out, in which a prefix that sequences share is stored once.

Token i may attend to token j exactly when `j <= i < subtree_end[j]`; a token's position is its depth in the tree.

Shapes: N sequences, T tokens in the layout.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Fewer tokens in common than this are stored again: a branch splits attention calls, which on a CPU costs as much as about
# three tokens of a model of 0.4 million weights, and less in larger ones (benchmarks/branch.py).
MIN_SHARED = 4


class Chain(NamedTuple):
    """The tokens that one sequence adds to the row, `start` up to `stop`, and the rows of its whole path, root first."""

    start: int
    stop: int
    path: np.ndarray


class Tree(NamedTuple):
    """Sequences laid out depth first.

    tokens, positions, subtree_end: int64, shape (T,). read_out: int64, shape (N,), the row of each sequence's read-out
    token, in the order given. weight: float32, shape (T,), the sum of the weights of the sequences that hold the token.
    chains: the row cut into the parts that a sequence added, in row order.
    """

    tokens: np.ndarray
    positions: np.ndarray
    subtree_end: np.ndarray
    read_out: np.ndarray
    weight: np.ndarray
    chains: list[Chain]


def layout(
    sequences: Sequence[Sequence[int]],
    read_at: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    min_shared: int = MIN_SHARED,
) -> Tree:
    """Return the sequences' tree, in any number and to any depth.

    sequences: token ids, at least one each. read_at: the position in each sequence at which its reward is read; None for
    the last. weights: how much each sequence counts in `Tree.weight`; None for 1 each. min_shared: sequences part
    earlier, where others do or at the root, rather than share fewer tokens than this.
    """
    arrays = [np.asarray(ids, dtype=np.int64) for ids in sequences]
    if not arrays or min(map(len, arrays)) == 0:
        raise ValueError("a tree needs sequences of at least one token each")
    total = sum(map(len, arrays))
    subtree_end, weight = np.empty(total, np.int64), np.zeros(total, np.float32)
    read_out = np.empty(len(arrays), np.int64)
    chains: list[Chain] = []
    added: list[tuple[np.ndarray, int]] = []  # what each chain holds, and its depth
    path, previous, branches, stop = np.empty(0, np.int64), np.empty(0, np.int64), [0], 0
    # Big-endian bytes sort like the numbers they hold: prefixes that are shared become neighbours.
    for i in sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">u4").tobytes()):
        ids = arrays[i]
        depth = _parting(previous, ids, branches, min_shared)
        subtree_end[path[depth:]] = stop
        branches = [branch for branch in branches if branch < depth] + [depth]
        start, stop = stop, stop + len(ids) - depth
        path = np.concatenate([path[:depth], np.arange(start, stop)])
        if stop > start:
            chains.append(Chain(start, stop, path))
            added.append((ids[depth:], depth))
        weight[path] += 1.0 if weights is None else weights[i]
        read_out[i] = path[-1 if read_at is None else read_at[i]]
        previous = ids
    subtree_end[path] = stop
    return Tree(
        tokens=np.concatenate([ids for ids, _ in added]),
        positions=np.concatenate([np.arange(depth, depth + len(ids)) for ids, depth in added]),
        subtree_end=subtree_end[:stop],
        read_out=read_out,
        weight=weight[:stop],
        chains=chains,
    )


def num_common(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many tokens two sequences begin with alike."""
    shorter = min(len(first), len(second))
    differs = first[:shorter] != second[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


def _parting(previous: np.ndarray, ids: np.ndarray, branches: list[int], min_shared: int) -> int:
    """Return how many tokens of the current path, which spells `previous`, a sequence takes over."""
    common = num_common(previous, ids)
    if common == len(ids) or common == len(previous):
        return common  # No new branch: one is the beginning of the other.
    last = max(branch for branch in branches if branch <= common)
    return common if common - last >= min_shared else last
