"""`Topology`: a grid of ranks with its axes, the axes derived by folding them, and the groups of each, without torch.

The ranks are in row-major order, the last axis varying fastest, as in `init_device_mesh`. No function here makes a list
of all ranks: see `layouts.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from automodel_mesh.checks import (
    check_same_length,
    checked_names,
    checked_ranks,
    checked_sizes,
    is_int,
    nearest,
    shown_ranks,
    wrong_type,
)
from automodel_mesh.errors import MeshArgumentError, UnknownAxisError
from automodel_mesh.topology.layouts import Layout, fold, group_at, groups, native_layouts

__all__ = ["CoincidentAxes", "Topology", "distinct_groups_per_rank", "shared_layouts"]


class CoincidentAxes(NamedTuple):
    """Which axes of a topology, native and derived, divide the ranks into the same groups."""

    singletons: tuple[str, ...]
    """Axes of size 1: each rank is alone in its group."""
    covering: tuple[str, ...]
    """Axes of more than one rank whose only group is every rank of the topology."""
    classes: tuple[tuple[str, ...], ...]
    """All axes of more than one rank; those in one class have the same groups. Some classes have one axis."""


@dataclass(frozen=True, init=False)
class Topology:
    """One grid of ranks: its axes, their sizes, the axes derived by folding them, and the ranks of every group.

    Args:
        axes: Names of the native axes, outermost first.
        shape: Their sizes, each at least 1.
        derived: Derived axis name to the native axes it folds, which are listed in the order of `axes`.
        ranks: Global ranks in the order of the grid, strictly ascending, as many as the product of `shape`;
            `None` for 0, 1, 2, and so on. The attribute is a `range` if they are evenly spaced, else a tuple.

    Raises:
        TypeError: A name is not a string, a size or rank is not an int.
        ValueError: No axes, not as many sizes as axes, a name used twice, a size below 1, a derived
            axis of unknown, repeated, disordered or no axes, or ranks that `checked_ranks` refuses or that do
            not fill `shape`.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    # A mapping has no hash; topologies that differ only in derived axes are unequal all the same.
    derived: Mapping[str, tuple[str, ...]] = field(hash=False)
    ranks: Sequence[int]

    # Not generated, because the arguments have wider types than the fields: any sequences, and None for all ranks.
    def __init__(
        self,
        axes: Sequence[str],
        shape: Sequence[int],
        derived: Mapping[str, Sequence[str]] | None = None,
        ranks: Sequence[int] | None = None,
    ) -> None:
        axes = checked_names("axes", axes)
        shape = checked_sizes("shape", shape)
        check_same_length(axes, shape, "a topology")
        folds = dict(_checked_fold(axes, *item) for item in (derived or {}).items())
        total = prod(shape)
        ranks = range(total) if ranks is None else checked_ranks(ranks)
        if len(ranks) != total:
            raise MeshArgumentError(
                f"ranks has {len(ranks)} entries, but shape={shape} needs {total}: give one rank for each position"
            )
        # The class is frozen, so attributes are set by way of object.
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "derived", MappingProxyType(folds))
        object.__setattr__(self, "ranks", ranks)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A mapping proxy can be neither pickled nor deep-copied, so the constructor is called again.
        return type(self), (self.axes, self.shape, dict(self.derived), self.ranks)

    def __contains__(self, rank: object) -> bool:
        """Return whether a global rank is in this topology."""
        if not is_int(rank):
            return False
        if isinstance(self.ranks, range):
            return rank in self.ranks
        index = bisect_left(self.ranks, rank)
        return index < len(self.ranks) and self.ranks[index] == rank

    @property
    def all_axes(self) -> tuple[str, ...]:
        """Native axes, outermost first, then derived axes in the order they were given."""
        return (*self.axes, *self.derived)

    @property
    def total(self) -> int:
        """Number of ranks in the topology."""
        return prod(self.shape)

    def size(self, axis: str) -> int:
        """Return the number of ranks in each group of an axis.

        Args:
            axis: A native or derived axis.

        Raises:
            KeyError: There is no such axis.
        """
        return prod(self.shape[self.axes.index(source)] for source in self._sources(axis))

    def layout(self, axis: str) -> Layout:
        """Return the positions of an axis's groups as (size, stride) pairs.

        Two axes of topologies over the same ranks have the same groups if their layouts are equal, and no group in
        common if not (a group's first position and the steps between its ranks determine the layout). `()`: each rank
        is alone in its group; `((total, 1),)`: all ranks are in one group.

        Args:
            axis: A native or derived axis.

        Raises:
            KeyError: There is no such axis.
        """
        sources = self._sources(axis)
        native = zip(self.axes, native_layouts(self.shape), strict=True)
        return fold(layout for name, layout in native if name in sources)

    def number_of_groups(self, axis: str) -> int:
        """Return how many groups an axis divides the ranks into, `total` divided by `size(axis)`.

        Args:
            axis: A native or derived axis.

        Raises:
            KeyError: There is no such axis.
        """
        return self.total // self.size(axis)

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Return the index of a rank along each native axis.

        Args:
            rank: A global rank of this topology; check `rank in topology` first if it may not be one.

        Returns:
            One index per axis of `axes`, each from 0 up to the axis's size.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in this topology.
        """
        position = self.position(rank)
        indices: list[int] = []
        for size in reversed(self.shape):
            position, index = divmod(position, size)
            indices.append(index)
        return tuple(reversed(indices))

    def position(self, rank: int) -> int:
        """Return the position of a rank in the grid, counted from 0 in row-major order.

        Args:
            rank: A global rank of this topology; check `rank in topology` first if it may not be one.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in this topology.
        """
        if not is_int(rank):
            raise wrong_type("rank", rank, "a global rank, an int")
        if rank not in self:
            shown = shown_ranks(self.ranks)
            raise MeshArgumentError(
                f"rank={rank} does not take part in this topology: its ranks are {shown}; give one of these"
            )
        # range.index computes the position; tuple.index would search the whole tuple.
        return self.ranks.index(rank) if isinstance(self.ranks, range) else bisect_left(self.ranks, rank)

    def group_of(self, rank: int, axis: str) -> tuple[int, ...]:
        """Return the group of an axis that a rank belongs to.

        Args:
            rank: A global rank of this topology.
            axis: A native or derived axis.

        Returns:
            Global ranks, ascending, `rank` among them.

        Raises:
            KeyError: There is no such axis.
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in this topology.
        """
        return group_at(self.layout(axis), self.position(rank), self.ranks)

    def groups(self, axis: str) -> Iterator[tuple[int, ...]]:
        """Yield every group of an axis, one at a time.

        The order is that of each group's lowest rank. It is the same on every rank, as required for creating process
        groups.

        Args:
            axis: A native or derived axis.

        Returns:
            An iterator of tuples of global ranks, each ascending; every rank of the topology is in exactly
            one.

        Raises:
            KeyError: There is no such axis; raised by the call, not by the first iteration.
        """
        return groups(self.layout(axis), self.ranks)

    def coincident_axes(self) -> CoincidentAxes:
        """Return which axes have size 1, which cover every rank, and which have the same groups as another.

        Returns:
            Names in the order of `all_axes`. In a topology of one rank every axis is a singleton.
        """
        shared = shared_layouts(self)
        whole = ((self.total, 1),)
        return CoincidentAxes(
            singletons=tuple(axis for axis in self.all_axes if self.size(axis) == 1),
            covering=tuple(axis for _, axis in shared.get(whole, ())),
            classes=tuple(tuple(axis for _, axis in uses) for uses in shared.values()),
        )

    def distinct_groups_per_rank(self) -> int:
        """Return how many different groups of more than one rank each rank belongs to, over all axes.

        It is the same number for every rank: the number of communicators that a rank needs, apart from one of a
        single rank.
        """
        return distinct_groups_per_rank(self)

    def _sources(self, axis: str) -> tuple[str, ...]:
        if axis in self.axes:
            return (axis,)
        if axis in self.derived:
            return self.derived[axis]
        raise UnknownAxisError(
            f"no axis {axis!r} here{nearest(axis, self.all_axes)}: "
            f"the native axes are {', '.join(self.axes)}; the derived axes are {', '.join(self.derived) or 'none'}"
        )


def _checked_fold(axes: tuple[str, ...], derived: str, folded: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Require that a derived axis has a name of its own and folds native axes in the order of the grid."""
    (name,) = checked_names("derived", derived)
    if name in axes:
        raise MeshArgumentError(f"derived axis {name!r} has the name of a native axis: choose a name not in {axes}")
    sources = checked_names(f"derived[{name!r}]", folded)
    unknown = [axis for axis in sources if axis not in axes]
    if unknown:
        raise MeshArgumentError(f"derived axis {name!r} folds unknown axes {unknown}: choose from {axes}")
    if any(axes.index(later) < axes.index(earlier) for earlier, later in pairwise(sources)):
        ordered = tuple(axis for axis in axes if axis in sources)
        raise MeshArgumentError(f"derived axis {name!r} folds {sources}: name the axes in grid order: {ordered}")
    return name, sources


def shared_layouts(*topologies: Topology) -> dict[Layout, tuple[tuple[Topology, str], ...]]:
    """Collect the axes of topologies over the same ranks that have the same groups.

    Each entry is one set of process groups to create, however many axes use it: those of
    `topology.groups(axis)` for any of its (topology, axis) pairs.

    Args:
        topologies: One or more topologies with equal `ranks`, such as a root and its expert mesh.

    Returns:
        Layout to the (topology, axis) pairs with these groups, in the order of the arguments and of
        `all_axes`. Axes of size 1 are left out.

    Raises:
        ValueError: The topologies are over different ranks.
    """
    uses: dict[Layout, list[tuple[Topology, str]]] = {}
    for topology in topologies:
        if topology.ranks != topologies[0].ranks:
            raise MeshArgumentError(
                f"the topologies are over different ranks, {shown_ranks(topologies[0].ranks)} "
                f"and {shown_ranks(topology.ranks)}: compare only topologies with equal ranks"
            )
        for axis in topology.all_axes:
            layout = topology.layout(axis)
            if layout:
                uses.setdefault(layout, []).append((topology, axis))
    return {layout: tuple(pairs) for layout, pairs in uses.items()}


def distinct_groups_per_rank(*topologies: Topology) -> int:
    """Return how many different groups of more than one rank each rank belongs to, over all topologies.

    Args:
        topologies: One or more topologies with equal `ranks`.

    Raises:
        ValueError: The topologies are over different ranks.
    """
    return len(shared_layouts(*topologies))
