"""How many nodes the groups of an axis span, by arithmetic on layouts: no list of all ranks is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import gcd

from automodel_mesh.topology.layouts import Layout, complement, fold, groups, size_of

__all__ = ["nodes_of_groups"]


def nodes_of_groups(layout: Layout, ranks: Sequence[int], ranks_per_node: int) -> Mapping[int, int]:
    """Count the groups of an axis by the number of nodes that they span.

    Node `n` has the ranks from `n * ranks_per_node` on, as launchers number them.

    Args:
        layout: the axis; its positions ascend.
        ranks: the ranks of the root mesh, ascending, in row-major order.
        ranks_per_node: ranks on each node, at least 1.

    Returns:
        Number of nodes to number of groups. If the ranks are evenly spaced, time and memory depend on `ranks_per_node`
        and not on the number of ranks; else all groups are listed, one at a time.
    """
    if not isinstance(ranks, range):
        return Counter(len({rank // ranks_per_node for rank in group}) for group in groups(layout, ranks))
    if ranks[0] // ranks_per_node == ranks[-1] // ranks_per_node:
        return {1: len(ranks) // size_of(layout)}
    pairs = tuple((size, stride * ranks.step) for size, stride in fold([layout]))
    free = tuple((size, stride * ranks.step) for size, stride in complement(layout, len(ranks)))
    found: Counter[int] = Counter()
    for place, count in _places(ranks[0], free, ranks_per_node).items():
        found[_nodes(pairs, place, ranks_per_node)] += count
    return found


def _places(first: int, pairs: Layout, ranks_per_node: int) -> Mapping[int, int]:
    """Count the ranks that pairs reach from a first one, by their place inside a node."""
    places = Counter({first % ranks_per_node: 1})
    for size, stride in pairs:
        reached: Counter[int] = Counter()
        for step, times in _steps(size, stride, ranks_per_node):
            for place, count in places.items():
                reached[(place + step * stride) % ranks_per_node] += count * times
        places = reached
    return places


def _nodes(pairs: Layout, place: int, ranks_per_node: int) -> int:
    """Return how many nodes a group spans whose first rank has a place inside its node."""
    if not pairs:
        return 1
    (size, stride), *inner = pairs
    if not inner:
        return size if stride >= ranks_per_node else (place + (size - 1) * stride) // ranks_per_node + 1
    extent = sum((size - 1) * stride for size, stride in inner)
    total = 0
    for step, times in _steps(size, stride, ranks_per_node):
        total += times * _nodes(tuple(inner), (place + step * stride) % ranks_per_node, ranks_per_node)
    # A node with the last rank of one part and the first of the next was counted twice.
    for step, times in _steps(size - 1, stride, ranks_per_node):
        start = (place + step * stride) % ranks_per_node
        total -= times * ((start + extent) // ranks_per_node == (start + stride) // ranks_per_node)
    return total


def _steps(size: int, stride: int, ranks_per_node: int) -> list[tuple[int, int]]:
    """Return the steps along a pair that end at different places inside a node, each with how many end there."""
    period = ranks_per_node // gcd(stride, ranks_per_node)
    return [(step, (size - 1 - step) // period + 1) for step in range(min(size, period))]
