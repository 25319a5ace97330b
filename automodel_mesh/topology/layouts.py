"""The arithmetic of mesh axes: which ranks share a group of an axis, and how axes fold, split and overlap.

An axis is described by its layout: `(size, stride)` pairs over the positions of a root mesh, outermost pair first. An
axis that the root was built with has one pair; an axis folded from axes that are not contiguous has several. These are
the layouts of CuTe, row-major as in torch: https://docs.nvidia.com/cutlass/latest/media/docs/cpp/cute/02_layout_algebra.html

No function here makes a list of all ranks: time and memory are in proportion to the size of a group, not of the world.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from math import gcd, prod
from typing import TypeAlias

Layout: TypeAlias = "tuple[tuple[int, int], ...]"
"""`(size, stride)` pairs. Layouts of one root, as `fold` returns them, are equal if the axes have the same groups."""


def native_layouts(shape: Sequence[int]) -> tuple[Layout, ...]:
    """Return the layouts of the axes of a root mesh of this shape, in row-major order."""
    layouts: list[Layout] = []
    stride = prod(shape)
    for size in shape:
        stride //= size
        layouts.append(((size, stride),))
    return tuple(layouts)


def size_of(layout: Layout) -> int:
    """Return the number of ranks along an axis."""
    return prod(size for size, _ in layout)


def fold(layouts: Iterable[Layout]) -> Layout:
    """Fold axes into one, in this order: pairs of size 1 are left out, and contiguous pairs are merged."""
    folded: list[tuple[int, int]] = []
    for size, stride in chain.from_iterable(layouts):
        if size == 1:
            continue
        if folded and folded[-1][1] == size * stride:
            folded[-1] = (folded[-1][0] * size, stride)
        else:
            folded.append((size, stride))
    return tuple(folded)


def split(layout: Layout, sizes: Sequence[int]) -> tuple[Layout, ...] | None:
    """Split an axis into axes of these sizes, outermost first; `None` if a part cannot be described by a layout.

    The product of `sizes` must be the size of the axis. An axis folded from 2 and 3 ranks that are not contiguous, for
    example, can be split into 2 x 3 and not into 3 x 2.
    """
    left = list(reversed(fold([layout])))  # innermost pair first: parts are cut off from the inside
    parts: list[Layout] = []
    for wanted in reversed(sizes):
        part: list[tuple[int, int]] = []
        missing = wanted
        while missing > 1:
            size, stride = left.pop(0)
            step = gcd(size, missing)
            if step != min(size, missing):
                return None
            part.append((step, stride))
            missing //= step
            if size > step:
                left.insert(0, (size // step, stride * step))
        # A part of size 1 keeps the stride it would have, as torch's own layouts do.
        inner = left[0][1] if left else prod(layout[0]) if layout else 1
        parts.append(fold([tuple(reversed(part))]) or ((1, inner),))
    return tuple(reversed(parts))


def is_ascending(layout: Layout) -> bool:
    """Return whether the positions along an axis ascend, as the ranks of a process group do."""
    strides = [stride for _, stride in fold([layout])]
    return strides == sorted(strides, reverse=True)


def overlap(layouts: Iterable[Layout]) -> bool:
    """Return whether two different coordinates along these axes lead to the same position."""
    pairs = sorted(((stride, size) for size, stride in fold(layouts)), reverse=True)
    return any(outer % (inner * size) for (outer, _), (inner, size) in pairwise(pairs))


def first_position(layouts: Iterable[Layout], position: int) -> int:
    """Return the first position of the slice along these axes that contains `position`."""
    return position - sum(position // stride % size * stride for size, stride in chain.from_iterable(layouts))


def group_at(layout: Layout, position: int, ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the group of an axis that contains a position.

    Args:
        layout: the axis.
        position: a position in `ranks`.
        ranks: the ranks of the root mesh, in row-major order.

    Returns:
        The ranks of the group, in the order of the axis.
    """
    return _members(layout, first_position([layout], position), ranks)


def groups(layout: Layout, ranks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every group of an axis, one at a time, in the order of their first positions.

    Args:
        layout: the axis.
        ranks: the ranks of the root mesh, in row-major order.

    Returns:
        An iterator of tuples of ranks, each in the order of the axis; every rank is in exactly one.
    """
    firsts = _spread(iter((0,)), complement(layout, len(ranks)))  # ascending
    if len(layout) == 1 and isinstance(ranks, range):
        # The usual case: each group is a range. It is twice as fast, and there may be 100,000 groups.
        step = layout[0][1] * ranks.step
        span = layout[0][0] * step
        return (tuple(range(rank, rank + span, step)) for rank in map(ranks.__getitem__, firsts))
    return (_members(layout, first, ranks) for first in firsts)


def _members(layout: Layout, first: int, ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks along a layout from the first position of a group."""
    if not layout:
        return (ranks[first],)
    # The innermost pair is one slice, so that Python does not loop over its ranks.
    *outer, (size, stride) = layout
    starts = _spread(iter((first,)), outer)
    return tuple(chain.from_iterable(ranks[start : start + size * stride : stride] for start in starts))


def complement(layout: Layout, total: int) -> Layout:
    """Return the pairs that an axis leaves out, outermost first: they lead to the first positions of its groups.

    For ((2, 4),) of 16 positions in `total`: (2, 8) and (4, 1).
    """
    free: list[tuple[int, int]] = []
    outer = total
    for size, stride in sorted(layout, key=lambda pair: pair[1], reverse=True):
        free.append((outer // (size * stride), size * stride))
        outer = stride
    return (*free, (outer, 1))


def _spread(starts: Iterator[int], pairs: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Yield, for each start, the positions that the pairs reach from it, without storing the positions."""
    # itertools.product would store each of its ranges first, and one of them may have all ranks.
    for size, stride in pairs:
        if size > 1:
            starts = _step(starts, size, stride)
    return starts


def _step(starts: Iterator[int], size: int, stride: int) -> Iterator[int]:
    for start in starts:
        yield from range(start, start + size * stride, stride)
