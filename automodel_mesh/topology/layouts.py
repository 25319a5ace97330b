"""The arithmetic of mesh axes, without torch: which ranks an axis joins, and how axes fold, split and overlap.

An axis is a tuple of `(size, stride)` pairs over the positions of its root mesh, outermost pair first: an axis the
root was built with is one pair, a folded one has several where its parts do not lie side by side. These are the
layouts of CuTe (https://docs.nvidia.com/cutlass/media/docs/cpp/cute/02_layout_algebra.html), row-major as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise, product
from typing import TypeAlias

Axis: TypeAlias = "tuple[tuple[int, int], ...]"


def native_axes(shape: Sequence[int]) -> tuple[Axis, ...]:
    """Return the axes of a root mesh of this shape, in row-major order."""
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return tuple(((size, stride),) for size, stride in zip(shape, strides, strict=True))


def axis_size(axis: Axis) -> int:
    """Return the number of ranks along an axis."""
    return math.prod(size for size, _ in axis)


def fold(axes: Iterable[Axis]) -> Axis:
    """Fold axes into one, in this order: the canonical form, equal for any two axes that join the same ranks."""
    folded: list[tuple[int, int]] = []
    for size, stride in chain.from_iterable(axes):
        if size == 1:
            continue
        if folded and folded[-1][1] == size * stride:
            folded[-1] = (folded[-1][0] * size, stride)
        else:
            folded.append((size, stride))
    return tuple(folded)


def split(axis: Axis, sizes: Sequence[int]) -> tuple[Axis, ...] | None:
    """Split an axis into axes of these sizes, outermost first; `None` where a part would not be an axis.

    The product of `sizes` is the size of the axis. A folded axis of 2 x 3 ranks, say, has no part of 3 x 2.
    """
    left = list(reversed(fold([axis])))  # innermost pair first: parts are cut off from the inside
    parts: list[Axis] = []
    for wanted in reversed(sizes):
        part: list[tuple[int, int]] = []
        missing = wanted
        while missing > 1:
            size, stride = left.pop(0)
            step = math.gcd(size, missing)
            if step != min(size, missing):
                return None
            part.append((step, stride))
            missing //= step
            if size > step:
                left.insert(0, (size // step, stride * step))
        # A part of size 1 keeps the stride it would have, as torch's own layouts do.
        inner = left[0][1] if left else math.prod(axis[0]) if axis else 1
        parts.append(fold([tuple(reversed(part))]) or ((1, inner),))
    return tuple(reversed(parts))


def offsets(axis: Axis) -> list[int]:
    """Return the positions an axis joins, counted from its first, in the order of the axis."""
    return [sum(steps) for steps in product(*(range(0, size * stride, stride) for size, stride in axis))]


def is_ascending(axis: Axis) -> bool:
    """Tell whether the positions along an axis ascend, as the ranks of a process group do."""
    strides = [stride for _, stride in fold([axis])]
    return strides == sorted(strides, reverse=True)


def overlap(axes: Iterable[Axis]) -> bool:
    """Tell whether some position can be reached in two ways along these axes."""
    pairs = sorted(((stride, size) for size, stride in fold(axes)), reverse=True)
    return any(outer % (inner * size) for (outer, _), (inner, size) in pairwise(pairs))


def first_position(axes: Iterable[Axis], position: int) -> int:
    """Return where the slice along these axes that contains `position` begins."""
    return position - sum(position // stride % size * stride for size, stride in chain.from_iterable(axes))


def group_starts(axis: Axis, total: int) -> list[int]:
    """Return the first position of every group along an axis, over `total` positions, ascending."""
    gaps: list[tuple[int, int]] = []
    outer = total
    for size, stride in sorted(axis, key=lambda pair: pair[1], reverse=True):
        gaps.append((outer // (size * stride), size * stride))
        outer = stride
    gaps.append((outer, 1))
    return offsets(tuple(gaps))
