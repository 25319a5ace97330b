"""`MeshDescription`: axes, nodes and the ranks of every group, of a mesh that runs or of a plan; without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from automodel_mesh.checks import is_int, nearest, shown_ranks, wrong_type
from automodel_mesh.errors import MeshArgumentError, UnknownAxisError
from automodel_mesh.tables import as_html
from automodel_mesh.topology import mesh_tables
from automodel_mesh.topology.drawing import drawing
from automodel_mesh.topology.layouts import Layout, first_position, fold, group_at, groups, size_of
from automodel_mesh.topology.nodes import nodes_of_groups

AxisKind: TypeAlias = Literal["native", "derived", "expert"]

__all__ = ["AxisKind", "MeshAxis", "MeshDescription", "NamedLayout", "RankGroup", "describe_axes"]


class MeshAxis(NamedTuple):
    """One axis of a mesh, and the groups that it divides the ranks into."""

    name: str
    """The axis."""
    folds: tuple[str, ...]
    """The native axes that a derived axis folds; empty for the others."""
    kind: AxisKind
    """`"native"` or `"derived"` for those of the mesh itself, `"expert"` for those of the expert mesh."""
    size: int
    """Number of ranks in each group."""
    layout: Layout
    """The positions of a group as (size, stride) pairs, outermost first; empty for an axis of one rank."""
    groups: int
    """How many groups it divides the ranks into."""
    groups_across_nodes: int
    """How many of them have ranks of more than one node."""
    nodes_per_group: int
    """The most nodes that one of the groups spans; 1 if each stays inside a node."""
    default_group: bool
    """Whether its only group is the whole world, so that the default process group is used."""
    shares_with: tuple[str, ...]
    """The other axes that use the same process groups."""

    @property
    def stride(self) -> int | None:
        """The step between neighbouring ranks of a group; `None` if there is no one step."""
        return self.layout[0][1] if len(self.layout) == 1 else None


class RankGroup(NamedTuple):
    """One process group of a rank."""

    axes: tuple[str, ...]
    """The axes that use it."""
    ranks: Sequence[int]
    """Its global ranks, in the order of the axis."""
    nodes: int
    """How many nodes they are on."""
    default_group: bool
    """Whether it is the default process group."""


@dataclass(frozen=True, repr=False)
class MeshDescription:
    """What a mesh looks like from outside: the ranks of every group of every axis, those of other ranks included.

    It prints on one line, and shows as a table with a drawing in a notebook.
    """

    world_size: int
    """Number of ranks in the world."""
    ranks_per_node: int
    """Number of ranks on each node; consecutive ranks are on the same node."""
    ranks: Sequence[int]
    """The global ranks of the root mesh, in its row-major order."""
    axes: tuple[MeshAxis, ...]
    """The native axes, outermost first, the derived ones, and those of the expert mesh."""

    @property
    def nodes(self) -> int:
        """Number of nodes, the last of which may have fewer ranks."""
        return -(-self.world_size // self.ranks_per_node)

    @property
    def groups_across_nodes(self) -> int:
        """Number of process groups of the job with ranks of more than one node, besides the default one."""
        return sum(axis.groups_across_nodes for axis in self._with_own_groups() if not axis.default_group)

    @property
    def heading(self) -> str:
        """One line on the ranks and the nodes."""
        part = "" if len(self.ranks) == self.world_size else f"{len(self.ranks):,} of "
        nodes = mesh_tables.counted(self.nodes, "node")
        return f"{self._what()} on {part}{self.world_size:,} ranks, {self.ranks_per_node} per node ({nodes})"

    def axis(self, name: str) -> MeshAxis:
        """Return an axis by its name.

        Raises:
            KeyError: There is no such axis.
        """
        known = {axis.name: axis for axis in self.axes}
        if name not in known:
            raise UnknownAxisError(f"no axis {name!r} here{nearest(name, known)}: the axes are {', '.join(known)}")
        return known[name]

    def groups(self, name: str) -> Iterator[tuple[int, ...]]:
        """Yield every group of an axis, one at a time: those of all ranks, in the order of their first positions.

        Args:
            name: An axis.

        Returns:
            An iterator of tuples of global ranks, each in the order of the axis; every rank of the mesh is in exactly
            one.

        Raises:
            KeyError: There is no such axis; raised by the call, not by the first iteration.
        """
        return groups(self.axis(name).layout, self.ranks)

    def groups_of(self, rank: int) -> tuple[RankGroup, ...]:
        """Return the process groups that a rank is a member of, in the order of `axes`.

        Args:
            rank: A global rank of the mesh.

        Returns:
            One for each process group; the default group only if an axis uses it. Ranks are a `range` where they are
            evenly spaced.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in the mesh.
        """
        position = self.position(rank)
        found: list[RankGroup] = []
        for axis in self._with_own_groups():
            ranks = _members(axis.layout, position, self.ranks)
            (nodes,) = nodes_of_groups(fold([((len(ranks), 1),)]), ranks, self.ranks_per_node)
            found.append(RankGroup((axis.name, *axis.shares_with), ranks, nodes, axis.default_group))
        return tuple(found)

    def coordinate(self, rank: int) -> dict[str, int]:
        """Return the index of a rank along each native axis, by name, then along those of the expert mesh.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in the mesh.
        """
        position = self.position(rank)
        return {axis.name: _index(axis.layout, position) for axis in self.axes if axis.kind != "derived"}

    def position(self, rank: int) -> int:
        """Return the position of a rank in the root mesh, counted from 0 in row-major order.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in the mesh.
        """
        if not is_int(rank):
            raise wrong_type("rank", rank, "a global rank, an int")
        if rank not in self.ranks:
            raise MeshArgumentError(
                f"rank={rank} is not in this mesh: give one of its ranks, {shown_ranks(self.ranks)}"
            )
        return self.ranks.index(rank)

    def __str__(self) -> str:
        sizes = {"native": list[str](), "derived": list[str](), "expert": list[str]()}
        for axis in self.axes:
            sizes[axis.kind].append(f"{axis.name}={axis.size}")
        told = "; ".join(f"{kind} {', '.join(axes)}" for kind, axes in sizes.items() if axes).removeprefix("native ")
        return f"{self.heading}: {told}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_html_(self) -> str:
        return f"<p>{self.heading}</p>{as_html(mesh_tables.axes_table(self))}{drawing(self)}"

    def _what(self) -> str:
        return "mesh"

    def _with_own_groups(self) -> Iterator[MeshAxis]:
        """Yield the axes, but only the first of those that use the same process groups."""
        seen: set[str] = set()
        for axis in self.axes:
            if not seen.intersection(axis.shares_with):
                yield axis
            seen.add(axis.name)


class NamedLayout(NamedTuple):
    """An axis for `describe_axes`."""

    name: str
    kind: AxisKind
    folds: tuple[str, ...]
    layout: Layout
    same_groups: object
    """Equal for axes that use the same process groups; `None` for the default group."""


def describe_axes(named: Sequence[NamedLayout], ranks: Sequence[int], ranks_per_node: int) -> tuple[MeshAxis, ...]:
    """Describe axes over the same ranks.

    Args:
        named: The axes.
        ranks: The global ranks of the root mesh, in its row-major order.
        ranks_per_node: Number of ranks on each node.
    """

    def described(axis: NamedLayout) -> MeshAxis:
        layout = fold([axis.layout])
        size = size_of(layout)
        nodes = nodes_of_groups(layout, ranks, ranks_per_node)
        alike = (other.name for other in named if other.same_groups == axis.same_groups and other is not axis)
        return MeshAxis(
            name=axis.name,
            folds=axis.folds,
            kind=axis.kind,
            size=size,
            layout=layout,
            groups=len(ranks) // size,
            groups_across_nodes=sum(number for spanned, number in nodes.items() if spanned > 1),
            nodes_per_group=max(nodes),
            default_group=axis.same_groups is None,
            shares_with=tuple(alike),
        )

    return tuple(map(described, named))


def _index(layout: Layout, position: int) -> int:
    """Return the index along an axis of the rank at a position."""
    index = 0
    for size, stride in layout:
        index = index * size + position // stride % size
    return index


def _members(layout: Layout, position: int, ranks: Sequence[int]) -> Sequence[int]:
    """Return the group of an axis that contains a position, as a range where that is possible."""
    if not isinstance(ranks, range) or len(layout) > 1:
        return group_at(layout, position, ranks)
    first = first_position([layout], position)
    size, stride = layout[0] if layout else (1, 1)
    return ranks[first : first + size * stride : stride]
