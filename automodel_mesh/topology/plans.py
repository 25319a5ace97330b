"""`plan`: what a mesh will look like - axes, nodes and process groups - before anything runs; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from automodel_mesh.checks import check_size, nearest
from automodel_mesh.errors import UnknownAxisError
from automodel_mesh.tables import as_html
from automodel_mesh.topology import plan_tables
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.layouts import Layout, first_position, fold, group_at, size_of
from automodel_mesh.topology.nodes import nodes_of_groups
from automodel_mesh.topology.records import EXPERT_MESH_AXES, Strategy
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import Topologies, plan_topologies, strategy_named

AxisKind: TypeAlias = Literal["native", "derived", "expert"]

__all__ = ["AxisPlan", "GroupCounts", "MeshPlan", "RankGroup", "plan"]


class AxisPlan(NamedTuple):
    """One axis of a plan."""

    name: str
    """The axis."""
    folds: tuple[str, ...]
    """The native axes that a derived axis folds; empty for the others."""
    kind: AxisKind
    """`"native"` or `"derived"` for those of the root mesh, `"expert"` for those of the expert mesh."""
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
    """The other axes with the same groups, which use the same process groups."""

    @property
    def stride(self) -> int | None:
        """The step between neighbouring ranks of a group; `None` if there is no one step."""
        return self.layout[0][1] if len(self.layout) == 1 else None


class GroupCounts(NamedTuple):
    """How many process groups are made, besides the default one."""

    per_rank: int
    """Those that each rank is a member of."""
    in_job: int
    """Those of all ranks together."""


class RankGroup(NamedTuple):
    """One process group of a rank."""

    axes: tuple[str, ...]
    """The axes that use it."""
    ranks: Sequence[int]
    """Its global ranks, ascending."""
    nodes: int
    """How many nodes they are on."""
    default_group: bool
    """Whether it is the default process group."""


@dataclass(frozen=True, repr=False)
class MeshPlan:
    """What `plan` returns."""

    strategy: str
    """The name of the strategy."""
    world_size: int
    """Number of ranks in the world."""
    ranks_per_node: int
    """Number of ranks on each node."""
    topologies: Topologies
    """The root topology with its derived axes, and that of the expert mesh: the ranks of every group."""
    axes: tuple[AxisPlan, ...]
    """The native axes, outermost first, the derived ones, and those of the expert mesh."""
    process_groups: GroupCounts
    """What `MeshContext.build` makes: one for each distinct set of ranks. All axes of one rank share one group of a
    single rank.
    """
    plain_torch: GroupCounts
    """What plain torch makes: `init_device_mesh`, `_flatten` for each derived axis, and `init_device_mesh` for the
    expert mesh, the axes beside it included. Up to torch 2.9 it makes one more for each native axis over the world.
    """

    @property
    def nodes(self) -> int:
        """Number of nodes, the last of which may have fewer ranks."""
        return -(-self.world_size // self.ranks_per_node)

    @property
    def groups_across_nodes(self) -> int:
        """Number of process groups of the job with ranks of more than one node, besides the default one."""
        across = {axis.layout: axis.groups_across_nodes for axis in self.axes if not axis.default_group}
        return sum(across.values())

    def axis(self, name: str) -> AxisPlan:
        """Return an axis by its name.

        Raises:
            KeyError: There is no such axis.
        """
        known = {axis.name: axis for axis in self.axes}
        if name not in known:
            raise UnknownAxisError(f"no axis {name!r} here{nearest(name, known)}: the axes are {', '.join(known)}")
        return known[name]

    def groups_of(self, rank: int) -> tuple[RankGroup, ...]:
        """Return the process groups that a rank is a member of, in the order of `axes`.

        Args:
            rank: A global rank of the mesh.

        Returns:
            One for each distinct set of ranks; the default group only if an axis uses it. Ranks are a `range` where
            they are evenly spaced.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in the mesh.
        """
        root = self.topologies.root
        position = root.position(rank)
        found: list[RankGroup] = []
        for layout, names in _names_by_layout(self.topologies).items():
            ranks = _members(layout, position, root.ranks)
            (nodes,) = nodes_of_groups(fold([((len(ranks), 1),)]), ranks, self.ranks_per_node)
            found.append(RankGroup(names, ranks, nodes, layout == _default_layout(root, self.world_size)))
        return tuple(found)

    def coordinate(self, rank: int) -> dict[str, int]:
        """Return the index of a rank along each native axis, by name, then along those of the expert mesh.

        Raises:
            TypeError: `rank` is not an int.
            ValueError: `rank` is not in the mesh.
        """
        places = (zip(grid.axes, grid.coordinate(rank), strict=True) for grid in self.topologies if grid is not None)
        return dict(chain.from_iterable(places))

    def __str__(self) -> str:
        sizes = {"native": list[str](), "derived": list[str](), "expert": list[str]()}
        for axis in self.axes:
            sizes[axis.kind].append(f"{axis.name}={axis.size}")
        told = "; ".join(f"{kind} {', '.join(axes)}" for kind, axes in sizes.items() if axes).removeprefix("native ")
        made = plan_tables.counted(self.process_groups.per_rank, "process group")
        return f"{plan_tables.heading(self)}: {told}; {made} of each rank (plain torch: {self.plain_torch.per_rank})"

    def __repr__(self) -> str:
        return f"<MeshPlan {self}>"

    def _repr_html_(self) -> str:
        tables = map(as_html, (plan_tables.axes_table(self), plan_tables.counts_table(self)))
        return f"<p>{plan_tables.heading(self)}</p>{''.join(tables)}"


def plan(
    strategy: str | Strategy,
    sizes: ParallelismSizes,
    world_size: int,
    *,
    ranks_per_node: int,
    ranks: Sequence[int] | None = None,
) -> MeshPlan:
    """Plan the meshes of a strategy: their axes, the nodes that groups span, and the process groups. Makes nothing.

    No list of all ranks is made: a plan of a million ranks takes milliseconds.

    Args:
        strategy: A strategy, or the name or an alias of a registered one, such as `"fsdp2"`.
        sizes: The requested sizes.
        world_size: Number of ranks in the world, at least 1.
        ranks_per_node: Number of ranks on each node, at least 1; consecutive ranks are on the same node.
        ranks: The global ranks of the mesh, strictly ascending; by default all.

    Returns:
        The plan. It prints on one line, and as a table in a notebook.

    Raises:
        TypeError: A size or a rank is not an int.
        ValueError: What `plan_topologies` refuses; `ranks_per_node` is less than 1.
    """
    chosen = strategy if isinstance(strategy, Strategy) else strategy_named(strategy)
    check_size("ranks_per_node", ranks_per_node)
    topologies = plan_topologies(chosen, sizes, world_size, ranks=ranks)
    root, default = topologies.root, _default_layout(topologies.root, world_size)
    names = _names_by_layout(topologies)

    def planned(topology: Topology, name: str) -> AxisPlan:
        layout = topology.layout(name)
        nodes = nodes_of_groups(layout, root.ranks, ranks_per_node)
        return AxisPlan(
            name=name,
            folds=topology.derived.get(name, ()),
            kind="expert" if topology is not root else "derived" if name in root.derived else "native",
            size=topology.size(name),
            layout=layout,
            groups=topology.number_of_groups(name),
            groups_across_nodes=sum(groups for number, groups in nodes.items() if number > 1),
            nodes_per_group=max(nodes),
            default_group=layout == default,
            shares_with=tuple(other for other in names[layout] if other != name),
        )

    return MeshPlan(
        strategy=chosen.name,
        world_size=int(world_size),
        ranks_per_node=int(ranks_per_node),
        topologies=topologies,
        axes=tuple(planned(topology, name) for topology, name in _axes(topologies)),
        process_groups=_counts(root.total, [size_of(layout) for layout in names if layout != default]),
        plain_torch=_counts(root.total, _sizes_in_plain_torch(topologies, default)),
    )


def _axes(topologies: Topologies) -> Iterator[tuple[Topology, str]]:
    """Yield the axes of the root mesh, native and derived, and those of the expert mesh."""
    root, moe = topologies
    yield from ((root, axis) for axis in root.all_axes)
    if moe is not None:
        yield from ((moe, axis) for axis in EXPERT_MESH_AXES)


def _names_by_layout(topologies: Topologies) -> dict[Layout, tuple[str, ...]]:
    """Collect the axes by their layout: each layout is one set of process groups."""
    names: dict[Layout, tuple[str, ...]] = {}
    for topology, axis in _axes(topologies):
        layout = topology.layout(axis)
        names[layout] = (*names.get(layout, ()), axis)
    return names


def _default_layout(root: Topology, world_size: int) -> Layout | None:
    """Return the layout that the default process group serves; `None` if the mesh is a part of the world."""
    return fold([((world_size, 1),)]) if root.total == world_size else None


def _sizes_in_plain_torch(topologies: Topologies, default: Layout | None) -> Iterator[int]:
    """Yield the size of the groups of each axis for which plain torch makes groups."""
    for topology in filter(None, topologies):
        yield from (topology.size(axis) for axis in topology.all_axes if topology.layout(axis) != default)


def _counts(total: int, sizes: Iterable[int]) -> GroupCounts:
    """Count groups, given the size of those of each axis that needs its own."""
    each = tuple(sizes)
    return GroupCounts(per_rank=len(each), in_job=sum(total // size for size in each))


def _members(layout: Layout, position: int, ranks: Sequence[int]) -> Sequence[int]:
    """Return the group of an axis that contains a position, as a range where that is possible."""
    if not isinstance(ranks, range) or len(layout) > 1:
        return group_at(layout, position, ranks)
    first = first_position([layout], position)
    size, stride = layout[0] if layout else (1, 1)
    return ranks[first : first + size * stride : stride]
