"""Which ranks belong to which group: sizes to axes, shape, derived axes and groups, without torch.

A `Topology` is a grid of ranks in row-major order, the last axis varying fastest, as `init_device_mesh` lays
it out. Nothing here lists the world: an axis is kept as its *layout*, the (size, stride) pairs of the
positions that one of its groups holds, so a question costs time and memory in proportion to the group it is
about, not to the world.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from automodel_mesh.topology.sizes import check_ranks, check_size, is_int

__all__ = [
    "CoincidentAxes",
    "Layout",
    "Topology",
    "distinct_groups_per_rank",
    "shared_layouts",
]

Layout = tuple[tuple[int, int], ...]
"""(size, stride) pairs, strides descending, no size 1, neighbours merged: equal when the groups are equal."""


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
    """One grid of ranks: its axes, their sizes, the axes derived by folding them, every group's ranks.

    Args:
        axes: Names of the native axes, outermost first.
        shape: Their sizes, each at least 1.
        derived: Derived axis name to the native axes it folds, which are listed in the order of `axes`.
        ranks: Global ranks in the order of the grid, strictly ascending, as many as the product of `shape`;
            `None` for 0, 1, 2, and so on. Afterwards a `range` where evenly spaced, else a tuple.

    Raises:
        TypeError: A name is not a string, a size or rank is not an int.
        ValueError: No axes, another number of sizes than axes, a name used twice, a size below 1, a derived
            axis of unknown, repeated, disordered or no axes, or ranks that `check_ranks` refuses or that do
            not fill `shape`.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    # A mapping has no hash; topologies that differ in derived axes alone are still unequal.
    derived: Mapping[str, tuple[str, ...]] = field(hash=False)
    ranks: Sequence[int]

    # Written out because the arguments are looser than the fields: any sequences, and None for every rank.
    def __init__(
        self,
        axes: Sequence[str],
        shape: Sequence[int],
        derived: Mapping[str, Sequence[str]] | None = None,
        ranks: Sequence[int] | None = None,
    ) -> None:
        axes, shape = tuple(map(_plain, axes)), tuple(shape)
        _check_grid(axes, shape)
        folds = {_plain(name): tuple(map(_plain, folded)) for name, folded in (derived or {}).items()}
        _check_derived(axes, folds)
        total = prod(shape)
        ranks = range(total) if ranks is None else check_ranks(ranks)
        if len(ranks) != total:
            raise ValueError(
                f"ranks has {len(ranks)} entries, but shape={shape} needs {total}: give one rank per place"
            )
        # The class is frozen, so its own constructor has to go round its lock.
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "derived", MappingProxyType(folds))
        object.__setattr__(self, "ranks", ranks)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A mapping proxy can be neither pickled nor deep-copied, so go through the constructor.
        return type(self), (self.axes, self.shape, dict(self.derived), self.ranks)

    def __contains__(self, rank: object) -> bool:
        """Tell whether a global rank takes part in this topology."""
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
        """Return the places of an axis's groups as (size, stride) pairs.

        Equal groups have one form: two axes of topologies over the same ranks have the same groups exactly
        when their layouts are equal, and no group in common when they are not (a group's first place and its
        distances, smallest stride first, give back the layout). `()`: each rank is alone;
        `((total, 1),)`: all ranks are in one group.

        Args:
            axis: A native or derived axis.

        Raises:
            KeyError: There is no such axis.
        """
        sources = self._sources(axis)
        merged: list[tuple[int, int]] = []
        stride = self.total
        for name, size in zip(self.axes, self.shape, strict=True):
            stride //= size
            if name not in sources or size == 1:
                continue
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        return tuple(merged)

    def number_of_groups(self, axis: str) -> int:
        """Return how many groups an axis divides the ranks into, `total` divided by `size(axis)`.

        Args:
            axis: A native or derived axis.

        Raises:
            KeyError: There is no such axis.
        """
        return self.total // self.size(axis)

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Return the place of a rank along each native axis.

        Args:
            rank: A global rank of this topology; ask `rank in topology` first where it may not be one.

        Returns:
            One index per axis of `axes`, each from 0 up to the axis's size.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` does not take part in this topology.
        """
        position = self._position(rank)
        indices: list[int] = []
        for size in reversed(self.shape):
            position, index = divmod(position, size)
            indices.append(index)
        return tuple(reversed(indices))

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
            ValueError: `rank` does not take part in this topology.
        """
        layout = self.layout(axis)
        position = self._position(rank)
        first = position - sum(position // stride % size * stride for size, stride in layout)
        return _members(self.ranks, first, layout)

    def groups(self, axis: str) -> Iterator[tuple[int, ...]]:
        """Yield every group of an axis, one at a time.

        The order is that of each group's lowest rank, so it is the same on every rank, as creating process
        groups requires.

        Args:
            axis: A native or derived axis.

        Returns:
            An iterator of tuples of global ranks, each ascending; every rank of the topology is in exactly
            one.

        Raises:
            KeyError: There is no such axis; raised by the call, not by the first step.
        """
        layout, ranks = self.layout(axis), self.ranks
        firsts = _firsts(layout, self.total)
        if len(layout) == 1 and isinstance(ranks, range):
            # The usual case, where a group is a range itself: twice as fast, and there may be 100,000 groups.
            step = layout[0][1] * ranks.step
            span = layout[0][0] * step
            return (tuple(range(rank, rank + span, step)) for rank in map(ranks.__getitem__, firsts))
        return (_members(ranks, first, layout) for first in firsts)

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

        It is the same number for every rank, and the number of communicators a rank needs, beside a
        single-rank one.
        """
        return distinct_groups_per_rank(self)

    def _sources(self, axis: str) -> tuple[str, ...]:
        if axis in self.axes:
            return (axis,)
        if axis in self.derived:
            return self.derived[axis]
        raise KeyError(
            f"no axis {axis!r} here: the native axes are {', '.join(self.axes)}; "
            f"the derived axes are {', '.join(self.derived) or 'none'}"
        )

    def _position(self, rank: int) -> int:
        if not is_int(rank):
            raise TypeError(f"rank={rank!r} is of type {type(rank).__name__}: give a global rank, an int")
        if rank not in self:
            shown = _shown(self.ranks)
            raise ValueError(
                f"rank={rank} does not take part in this topology: its ranks are {shown}; give one of these"
            )
        # range.index needs no search; a tuple's would be linear.
        return self.ranks.index(rank) if isinstance(self.ranks, range) else bisect_left(self.ranks, rank)


def _plain(name: object) -> str:
    """Return an axis name as exactly str: a str enum may print as `Class.MEMBER`, by Python release."""
    if not isinstance(name, str):
        raise TypeError(f"axis name {name!r} is of type {type(name).__name__}: give a string")
    if not name:
        raise ValueError("an axis name is empty: give every axis a name")
    return str.__str__(name)


def _check_grid(axes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Require at least one axis, one size for each, and no name twice."""
    if not axes:
        raise ValueError("axes is empty: give at least one axis")
    if len(axes) != len(shape):
        raise ValueError(f"axes={axes} has {len(axes)} names, shape={shape} has {len(shape)} sizes: give one size each")
    repeated = sorted({axis for axis in axes if axes.count(axis) > 1})
    if repeated:
        raise ValueError(f"axes={axes} repeats {', '.join(repeated)}: give every axis its own name")
    for axis, size in zip(axes, shape, strict=True):
        check_size(f"shape[{axis!r}]", size)


def _check_derived(axes: tuple[str, ...], derived: Mapping[str, tuple[str, ...]]) -> None:
    """Require that derived axes have names of their own and fold native axes in the order of the grid."""
    for name, folded in derived.items():
        if name in axes:
            raise ValueError(f"derived axis {name!r} has the name of a native axis: choose a name not in {axes}")
        unknown = [axis for axis in folded if axis not in axes]
        if unknown or not folded:
            what = f"folds unknown axes {unknown}" if unknown else "folds no axis"
            raise ValueError(f"derived axis {name!r} {what}: choose from {axes}")
        places = [axes.index(axis) for axis in folded]
        if any(later <= earlier for earlier, later in pairwise(places)):
            ordered = tuple(axis for axis in axes if axis in folded)
            raise ValueError(f"derived axis {name!r} folds {folded}: name each axis once, in grid order: {ordered}")


def _members(ranks: Sequence[int], first: int, layout: Layout) -> tuple[int, ...]:
    """Return the ranks at a layout's places, counted from the first place of a group; ascending."""
    if not layout:
        return (ranks[first],)
    # The innermost pair is one slice, which takes no step of Python for each rank.
    *outer, (size, stride) = layout
    span = size * stride
    if not outer:
        return tuple(ranks[first : first + span : stride])
    starts = _spread(iter((first,)), outer)
    return tuple(chain.from_iterable(ranks[start : start + span : stride] for start in starts))


def _firsts(layout: Layout, total: int) -> Iterator[int]:
    """Return the first place of each group with a layout, ascending, one at a time.

    These are the places that the layout leaves out: with ((2, 4),) of 16 places, (2, 8) and (4, 1).
    """
    free: list[tuple[int, int]] = []
    left = total
    for size, stride in layout:
        free.append((left // (size * stride), size * stride))
        left = stride
    free.append((left, 1))
    return _spread(iter((0,)), free)


def _spread(starts: Iterator[int], pairs: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Step from every start through every place of the (size, stride) pairs, without holding the places."""
    # itertools.product would list each of its ranges first, and one of them may be the world.
    for size, stride in pairs:
        if size > 1:
            starts = _step(starts, size, stride)
    return starts


def _step(starts: Iterator[int], size: int, stride: int) -> Iterator[int]:
    """Step from every start through the places of one pair."""
    for start in starts:
        yield from range(start, start + size * stride, stride)


def _shown(ranks: Sequence[int]) -> str:
    """Print ranks, shortened in the middle where there are many."""
    if len(ranks) <= 16:
        return ", ".join(map(str, ranks))
    if isinstance(ranks, range) and ranks.step == 1:
        return f"{ranks[0]} to {ranks[-1]}"
    return f"{', '.join(map(str, ranks[:8]))}, ..., {ranks[-1]} ({len(ranks)} ranks)"


def shared_layouts(*topologies: Topology) -> dict[Layout, tuple[tuple[Topology, str], ...]]:
    """Group the axes of topologies over the same ranks by the groups they have in common.

    Each entry is one set of process groups to create, whatever number of axes uses it: create
    `topology.groups(axis)` of any one of its uses.

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
            raise ValueError(
                f"the topologies are over different ranks, {_shown(topologies[0].ranks)} "
                f"and {_shown(topology.ranks)}: compare only topologies with equal ranks"
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
