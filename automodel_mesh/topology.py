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
from math import isqrt, prod
from operator import eq
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeGuard

__all__ = [
    "EXPERT_AXES",
    "STRATEGIES",
    "CoincidentAxes",
    "Layout",
    "Sizes",
    "SizesLike",
    "Topologies",
    "Topology",
    "check_ranks",
    "check_size",
    "check_sizes",
    "distinct_groups_per_rank",
    "divisors",
    "infer_dp_size",
    "plan_topologies",
    "shared_layouts",
]

Layout = tuple[tuple[int, int], ...]
"""(size, stride) pairs, strides descending, no size 1, neighbours merged: equal when the groups are equal."""

# The expert mesh re-folds every axis of a pipeline stage. NeMo AutoModel's `_create_moe_mesh` flattens these
# four axes and unflattens the result to (ep_shard, ep), so ep_shard * ep == dp_size * cp_size * tp_size:
# replicas and tensor-parallel ranks count, pipeline stages do not (NVIDIA-NeMo/Automodel,
# distributed/mesh_utils.py, 2026). Its earlier versions left tp out (dp_size * cp_size) and built a separate
# mesh (pp, ep_shard, ep); the two agree where tp_size is 1. torchtitan folds tp in as well, but never crosses
# replicas (dp_shard * cp * tp).
EXPERT_AXES: Final = ("dp_replicate", "dp_shard", "cp", "tp")

_OPTIONAL_FIELDS: Final = ("dp_size", "dp_replicate_size")
_FIELDS: Final = ("dp_size", "dp_replicate_size", "tp_size", "pp_size", "cp_size", "ep_size")
_FEATURES: Final = {
    "dp_replicate_size": "replicated (hybrid) sharding",
    "tp_size": "tensor parallelism",
    "pp_size": "pipeline parallelism",
    "cp_size": "context parallelism",
    "ep_size": "expert parallelism",
}


# ------------------------------------------------------------------------------------------------------------
# Sizes


class SizesLike(Protocol):
    """What the planner reads from a request; `Sizes` and `ParallelismSizes` both fit."""

    @property
    def dp_size(self) -> int | None:
        """Data-parallel size, replicas included; `None`: inferred."""
        ...

    @property
    def dp_replicate_size(self) -> int | None:
        """Number of replicas inside `dp_size`; `None`: 1."""
        ...

    @property
    def tp_size(self) -> int:
        """Tensor-parallel size."""
        ...

    @property
    def pp_size(self) -> int:
        """Pipeline-parallel size."""
        ...

    @property
    def cp_size(self) -> int:
        """Context-parallel size."""
        ...

    @property
    def ep_size(self) -> int:
        """Expert-parallel size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Requested sizes, checked when made.

    Args:
        dp_size: Data-parallel size, replicas included; at least 1, or `None` to infer it from the number of
            ranks.
        dp_replicate_size: Number of replicas inside `dp_size`; at least 1, or `None` for 1.
        tp_size: Tensor-parallel size, at least 1.
        pp_size: Pipeline-parallel size, at least 1.
        cp_size: Context-parallel size, at least 1.
        ep_size: Expert-parallel size, at least 1; takes no ranks of its own, see `EXPERT_AXES`.

    Raises:
        TypeError: A size is not an int (a bool, a float, a string), or is `None` where none can be inferred.
        ValueError: A size is less than 1.
    """

    dp_size: int | None = None
    dp_replicate_size: int | None = None
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    ep_size: int = 1

    def __post_init__(self) -> None:
        check_sizes(self)


def check_size(name: str, value: object, *, optional: bool = False) -> None:
    """Require that a size is an int of at least 1, and exactly an int: not a bool, a float or a digit string.

    Args:
        name: The field, for the message.
        value: What was given for it.
        optional: Whether `None` is allowed.

    Raises:
        TypeError: `value` is not an int, or is a bool, or is `None` and `optional` is false.
        ValueError: `value` is less than 1.
    """
    if value is None and optional:
        return
    wanted = "an int of at least 1" + (", or None" if optional else "")
    if not _is_int(value):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}: give {wanted}")
    if value < 1:
        hint = "" if optional else " (1 where it is not used)"
        raise ValueError(f"{name}={value} is less than 1: give {wanted}{hint}")


def _is_int(value: object) -> TypeGuard[int]:
    """Tell whether a value is an int; bool is a subclass of int, but True as a size is a mistaken flag."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_sizes(sizes: SizesLike) -> None:
    """Require that every size of a request is an int of at least 1, or `None` where it can be inferred.

    Args:
        sizes: The request; how its sizes fit together is the planner's question, not this function's.

    Raises:
        TypeError: A size is not an int, or is `None` in another field than those two.
        ValueError: A size is less than 1.
    """
    for name in _FIELDS:
        check_size(name, getattr(sizes, name), optional=name in _OPTIONAL_FIELDS)


def divisors(number: int) -> list[int]:
    """Return the divisors of a number.

    Args:
        number: At least 1.

    Returns:
        All divisors, ascending, 1 and `number` included.

    Raises:
        TypeError: `number` is not an int.
        ValueError: `number` is less than 1.
    """
    check_size("number", number)
    small = [candidate for candidate in range(1, isqrt(number) + 1) if number % candidate == 0]
    large = [number // candidate for candidate in reversed(small) if candidate * candidate != number]
    return small + large


def infer_dp_size(
    dp_size: int | None,
    world_size: int,
    factors: Mapping[str, int],
    *,
    strategy: str = "fsdp2",
    counted_as: str = "world_size",
) -> int:
    """Return the data-parallel size that fills the ranks, or check the one given.

    Args:
        dp_size: The size asked for, at least 1, or `None` to infer it.
        world_size: Number of ranks to fill, at least 1.
        factors: The other sizes that take ranks, field name to size (each at least 1), in the order to print
            them.
        strategy: Name of the strategy, for messages.
        counted_as: What `world_size` is called in messages; `len(ranks)` where only part of the world is
            used.

    Returns:
        The size with `dp_size * product of factors == world_size`.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is less than 1; the factors do not divide `world_size`; or `dp_size` was given and
            the product differs from `world_size`. The message lists the values that would do.
    """
    check_size("dp_size", dp_size, optional=True)
    check_size(counted_as, world_size)
    for name, value in factors.items():
        check_size(name, value)
    rest = prod(factors.values())
    if world_size % rest:
        raise ValueError(_indivisible(dp_size, world_size, factors, strategy, counted_as))
    if dp_size is not None and dp_size * rest != world_size:
        raise ValueError(_misfit(dp_size, world_size, factors, strategy, counted_as))
    return world_size // rest


def _indivisible(
    dp_size: int | None, world_size: int, factors: Mapping[str, int], strategy: str, counted_as: str
) -> str:
    """Say that no dp_size fits, and which values each other size could take with the rest unchanged."""
    rest = prod(factors.values())
    remedies: list[str] = []
    for name, value in factors.items():
        others = rest // value
        if world_size % others == 0:
            remedies.append(f"{name} as {_one_of(divisors(world_size // others))}")
    if remedies:
        remedy = f"Give {', or '.join(remedies)}, leaving the other sizes as they are"
    else:
        names = _product(factors)
        remedy = f"No change of one size alone is enough: {names} must be {_one_of(divisors(world_size))}"
    given = "" if dp_size is None else f" (dp_size={dp_size} was given)"
    return (
        f"{strategy}: {counted_as}={world_size} is not divisible by {_equation(factors)}, "
        f"so no dp_size fits{given}. {remedy}."
    )


def _misfit(dp_size: int, world_size: int, factors: Mapping[str, int], strategy: str, counted_as: str) -> str:
    """Say that the dp_size given does not fit, which one does, and which other size would fit it."""
    rest = prod(factors.values())
    kept: list[str] = []
    for name, value in factors.items():
        others = dp_size * (rest // value)
        if world_size % others == 0:
            kept.append(f"{name}={world_size // others}")
    instead = f"; or keep dp_size={dp_size} and give {' or '.join(kept)}" if kept else ""
    every = {"dp_size": dp_size, **factors}
    return (
        f"{strategy}: dp_size={dp_size} does not fit: {_equation(every)}, but {counted_as}={world_size}. "
        f"Give dp_size={world_size // rest}, or None to have it inferred{instead}."
    )


def _product(factors: Mapping[str, int]) -> str:
    """Print the names of sizes as a product."""
    return " * ".join(factors) or "1"


def _equation(factors: Mapping[str, int]) -> str:
    """Print a product of sizes: `tp_size * cp_size = 2 * 3 = 6`, or `tp_size = 2` for one size."""
    total = prod(factors.values())
    if len(factors) < 2:
        return f"{_product(factors)} = {total}"
    return f"{_product(factors)} = {' * '.join(map(str, factors.values()))} = {total}"


def _one_of(values: Sequence[int]) -> str:
    """Print a choice of values, shortened in the middle: a large world has hundreds of divisors."""
    if len(values) == 1:
        return str(values[0])
    if len(values) > 12:
        return f"one of {', '.join(map(str, values[:8]))}, ..., {', '.join(map(str, values[-2:]))}"
    return f"one of {', '.join(map(str, values))}"


def check_ranks(ranks: Sequence[int], world_size: int | None = None) -> Sequence[int]:
    """Require that ranks are distinct, ascending, not negative and inside the world.

    Args:
        ranks: Global ranks, strictly ascending: position in the list is position in the grid, and an order
            that differs between two lists of the same ranks would make two groups of one.
        world_size: Number of ranks in the world, or `None` where it is not known.

    Returns:
        The same ranks, as a `range` where they are evenly spaced (which is not listed, however long), else a
        tuple.

    Raises:
        TypeError: `ranks` is not a sequence, or holds something else than ints.
        ValueError: `ranks` is empty, not strictly ascending, negative, or reaches outside the world.
    """
    if not _is_list(ranks):
        raise TypeError(f"ranks={ranks!r} is of type {type(ranks).__name__}: give a list of ints, such as [0, 1, 2]")
    if world_size is not None:
        check_size("world_size", world_size)
    if not ranks:
        raise ValueError("ranks is empty: give at least one rank, or None for every rank of the world")
    if not isinstance(ranks, range):
        ranks = _compact(_ascending(ranks))
    elif ranks.step < 0 and len(ranks) > 1:
        raise ValueError(f"ranks={ranks} descends: ranks must be strictly ascending; give {ranks[::-1]}")
    if ranks[0] < 0:
        raise ValueError(f"ranks[0]={ranks[0]} is negative: give global ranks, counted from 0")
    if world_size is not None and ranks[-1] >= world_size:
        index = bisect_left(ranks, world_size)
        raise ValueError(
            f"ranks[{index}]={ranks[index]} is outside the world: with world_size={world_size}, "
            f"give ranks from 0 to {world_size - 1}"
        )
    return ranks


def _is_list(value: object) -> bool:
    """Tell whether a value is a sequence of anything but characters or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _ascending(ranks: Sequence[object]) -> tuple[int, ...]:
    """Return the ranks as a tuple, once each is seen to be an int greater than the one before."""
    seen: list[int] = []
    for index, rank in enumerate(ranks):
        if not _is_int(rank):
            raise TypeError(f"ranks[{index}]={rank!r} is of type {type(rank).__name__}: give ints")
        if seen and rank <= seen[-1]:
            fault = "repeats" if rank == seen[-1] else "is less than"
            raise ValueError(
                f"ranks[{index}]={rank} {fault} ranks[{index - 1}]={seen[-1]}: ranks must be distinct and "
                "strictly ascending; give sorted(set(ranks)), the same on every rank"
            )
        seen.append(rank)
    return tuple(seen)


def _compact(ranks: tuple[int, ...]) -> Sequence[int]:
    """Return evenly spaced ranks as a range, so that equal ranks compare equal however they were given."""
    first, last = ranks[0], ranks[-1]
    spaced = range(first, last + 1, ranks[1] - first if len(ranks) > 1 else 1)
    if len(spaced) == len(ranks) and all(map(eq, ranks, spaced)):
        return spaced
    return ranks


# ------------------------------------------------------------------------------------------------------------
# Topology


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
        if not _is_int(rank):
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
        if not _is_int(rank):
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


# ------------------------------------------------------------------------------------------------------------
# Strategies


class Topologies(NamedTuple):
    """The grids of one request."""

    root: Topology
    """The grid that the device mesh is built from."""
    moe: Topology | None
    """The expert grid over the same ranks, axes (pp, ep_shard, ep), or `None` when `ep_size` is 1.

    The mesh that a rank holds is its own pipeline stage's part of it, (ep_shard, ep).
    """


class _Ranks(NamedTuple):
    """The ranks to lay out, and what to call their number in messages."""

    ranks: Sequence[int]
    counted_as: str


def plan_topologies(
    strategy: str, sizes: SizesLike, world_size: int, *, ranks: Sequence[int] | None = None
) -> Topologies:
    """Lay out the ranks for a strategy.

    - `fsdp2`: axes (pp, dp_replicate, dp_shard, cp, tp), derived axes dp, dp_shard_cp and dp_cp; an expert
      grid when `ep_size` is more than 1.
    - `megatron_fsdp`: axes (dp, cp, tp), derived axis dp_cp.
    - `ddp`: one axis, dp. The seed library builds no mesh for DDP; this is for reports.

    Args:
        strategy: One of `STRATEGIES`.
        sizes: The sizes asked for.
        world_size: Number of ranks in the world, at least 1.
        ranks: The global ranks to use, strictly ascending, or `None` for the whole world. The sizes then have
            to fill these ranks.

    Returns:
        The root grid and, for `fsdp2` with `ep_size` of more than 1, the expert grid.

    Raises:
        TypeError: A size, the world size or a rank is not an int.
        ValueError: An unknown strategy; a size below 1, one that the strategy does not support, or sizes that
            do not fill the ranks; ranks that `check_ranks` refuses. The message says which values would do.
    """
    plan = next((plan for name, plan in _PLANS.items() if name == strategy), None)
    if plan is None:
        raise ValueError(f"strategy={strategy!r} is not known: give one of {', '.join(map(repr, STRATEGIES))}")
    check_sizes(sizes)
    check_size("world_size", world_size)
    if ranks is None:
        return plan(sizes, _Ranks(range(world_size), "world_size"))
    return plan(sizes, _Ranks(check_ranks(ranks, world_size), "len(ranks)"))


def _plan_fsdp2(sizes: SizesLike, where: _Ranks) -> Topologies:
    tp, cp, pp = sizes.tp_size, sizes.cp_size, sizes.pp_size
    factors = {"tp_size": tp, "cp_size": cp, "pp_size": pp}
    count = len(where.ranks)
    dp = infer_dp_size(sizes.dp_size, count, factors, strategy="fsdp2", counted_as=where.counted_as)
    replicas = 1 if sizes.dp_replicate_size is None else sizes.dp_replicate_size
    if dp % replicas:
        origin = "" if sizes.dp_size is not None else f", inferred from {where.counted_as}={count}"
        raise ValueError(
            f"fsdp2: dp_replicate_size={replicas} does not divide dp_size={dp}{origin}: "
            f"give {_one_of(divisors(dp))}, or None for 1"
        )
    # dp_shard of 1 with several replicas is a grid like any other and accepted; NeMo AutoModel refuses it.
    root = Topology(
        axes=("pp", "dp_replicate", "dp_shard", "cp", "tp"),
        shape=(pp, replicas, dp // replicas, cp, tp),
        derived={
            "dp": ("dp_replicate", "dp_shard"),
            "dp_shard_cp": ("dp_shard", "cp"),
            "dp_cp": ("dp_replicate", "dp_shard", "cp"),
        },
        ranks=where.ranks,
    )
    return Topologies(root, _plan_experts(root, sizes.ep_size))


def _plan_experts(root: Topology, ep_size: int) -> Topology | None:
    """Re-fold each pipeline stage of an FSDP2 grid to (ep_shard, ep); None without expert parallelism."""
    if ep_size == 1:
        return None
    stage = prod(root.size(axis) for axis in EXPERT_AXES)
    if stage % ep_size:
        factors = {"dp_size": root.size("dp"), "cp_size": root.size("cp"), "tp_size": root.size("tp")}
        raise ValueError(
            f"fsdp2: ep_size={ep_size} does not divide the ranks of a pipeline stage, {_equation(factors)}: "
            f"give {_one_of(divisors(stage))}"
        )
    # pp is the outermost axis and the expert axes are all the others, so each stage is one run of places.
    shape = (root.size("pp"), stage // ep_size, ep_size)
    return Topology(axes=("pp", "ep_shard", "ep"), shape=shape, ranks=root.ranks)


def _plan_megatron_fsdp(sizes: SizesLike, where: _Ranks) -> Topologies:
    _require_one("megatron_fsdp", sizes, "pp_size", "ep_size", "dp_replicate_size")
    factors = {"tp_size": sizes.tp_size, "cp_size": sizes.cp_size}
    dp = infer_dp_size(sizes.dp_size, len(where.ranks), factors, strategy="megatron_fsdp", counted_as=where.counted_as)
    root = Topology(
        axes=("dp", "cp", "tp"),
        shape=(dp, sizes.cp_size, sizes.tp_size),
        derived={"dp_cp": ("dp", "cp")},
        ranks=where.ranks,
    )
    return Topologies(root, None)


def _plan_ddp(sizes: SizesLike, where: _Ranks) -> Topologies:
    _require_one("ddp", sizes, "tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size")
    dp = infer_dp_size(sizes.dp_size, len(where.ranks), {}, strategy="ddp", counted_as=where.counted_as)
    return Topologies(Topology(axes=("dp",), shape=(dp,), ranks=where.ranks), None)


def _require_one(strategy: str, sizes: SizesLike, *names: str) -> None:
    """Require that sizes which a strategy has no axis for are 1, or None where that means 1."""
    for name in names:
        value = getattr(sizes, name)
        if value is None or value == 1:
            continue
        other = " or None" if name in _OPTIONAL_FIELDS else ""
        raise ValueError(
            f"{strategy}: {name}={value}, but {strategy} does not support {_FEATURES[name]}: "
            f"give {name}=1{other}, or use strategy 'fsdp2'"
        )


_PLANS: Final[Mapping[str, Callable[[SizesLike, _Ranks], Topologies]]] = MappingProxyType(
    {"fsdp2": _plan_fsdp2, "megatron_fsdp": _plan_megatron_fsdp, "ddp": _plan_ddp}
)
STRATEGIES: Final = tuple(_PLANS)
"""Names of the strategies that can be planned."""
