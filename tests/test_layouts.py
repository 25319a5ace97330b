"""The arithmetic of layouts, compared with NumPy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh.topology.layouts import (
    Layout,
    first_position,
    fold,
    group_at,
    groups,
    is_ascending,
    native_layouts,
    overlap,
    size_of,
    split,
)

pytestmark = pytest.mark.release_independent

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


@st.composite
def shape_and_dims(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw a shape and some of its dims, ascending."""
    shape = draw(shapes)
    chosen = [dim for dim in range(len(shape)) if draw(st.booleans())] or [0]
    return shape, tuple(chosen)


@given(shape_and_dims())
@settings(derandomize=True, deadline=None)
def test_groups_partition_the_grid_as_numpy_does(case: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """The groups of a folded axis are the rows of the transposed grid, and each position is in the group of its row."""
    shape, dims = case
    layout = fold(native_layouts(shape)[dim] for dim in dims)
    total = math.prod(shape)
    others = [dim for dim in range(len(shape)) if dim not in dims]
    rows = np.arange(total).reshape(shape).transpose((*others, *dims)).reshape(-1, size_of(layout))
    assert [list(group) for group in groups(layout, range(total))] == rows.tolist()
    assert all(group_at(layout, position, range(total)) == tuple(row) for row in rows.tolist() for position in row)


@given(shape_and_dims(), st.integers(0, 10**6))
@settings(derandomize=True, deadline=None)
def test_a_position_finds_the_start_of_its_own_group(case: tuple[tuple[int, ...], tuple[int, ...]], pick: int) -> None:
    """The first position of a slice is the first one of the group that contains the position."""
    shape, dims = case
    layout = fold(native_layouts(shape)[dim] for dim in dims)
    total = math.prod(shape)
    position = pick % total
    start = first_position([layout], position)
    group = group_at(layout, position, range(total))
    assert position in group
    assert start == group[0]


@given(shapes)
@settings(derandomize=True, deadline=None)
def test_splitting_undoes_folding(shape: tuple[int, ...]) -> None:
    """Folding all axes into one and splitting it by the shape gives the axes of the shape."""
    native = native_layouts(shape)
    parts = split(fold(native), shape)
    assert parts is not None
    assert [fold([part]) for part in parts] == [fold([axis]) for axis in native]


def test_a_non_contiguous_axis_splits_only_into_its_parts() -> None:
    """An axis folded from 2 and 3 ranks that are not contiguous can be split into 2 x 3, and not into 3 x 2."""
    outer, _, inner = native_layouts((2, 5, 3))
    gapped = fold([outer, inner])
    assert split(gapped, (2, 3)) == (((2, 15),), ((3, 1),))
    assert split(gapped, (3, 2)) is None


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 4), (1, 4, 1, 2)])
def test_axes_overlap_exactly_if_they_share_an_axis(shape: tuple[int, ...]) -> None:
    """Two sets of native axes overlap exactly when they share an axis of more than one rank."""
    native = native_layouts(shape)
    subsets = [some for count in (1, 2) for some in combinations(range(len(shape)), count)]
    for left in subsets:
        for right in subsets:
            shared = any(shape[dim] > 1 for dim in set(left) & set(right))
            axes: list[Layout] = [fold(native[dim] for dim in dims) for dims in (left, right)]
            assert overlap(axes) == shared, (left, right)


def test_axes_folded_inner_first_do_not_ascend() -> None:
    """Axes folded with the inner one first do not ascend, so a process group could not have their order."""
    outer, inner = native_layouts((2, 4))
    assert is_ascending(fold([outer, inner]))
    assert not is_ascending(fold([inner, outer]))
