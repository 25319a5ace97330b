"""`plan`: what a mesh will look like - axes, nodes and process groups - before anything runs; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from automodel_mesh.checks import check_size
from automodel_mesh.tables import as_html
from automodel_mesh.topology import mesh_tables
from automodel_mesh.topology.description import AxisKind, MeshDescription, NamedLayout, describe_axes
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.layouts import Layout, fold, size_of
from automodel_mesh.topology.records import EXPERT_MESH_AXES, Strategy
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import Topologies, plan_topologies, strategy_named

__all__ = ["GroupCounts", "MeshPlan", "plan"]


class GroupCounts(NamedTuple):
    """How many process groups are made, besides the default one."""

    per_rank: int
    """Those that each rank is a member of."""
    in_job: int
    """Those of all ranks together."""


@dataclass(frozen=True, repr=False)
class MeshPlan(MeshDescription):
    """What `plan` returns: the description of a mesh before it runs, with the process groups that it needs."""

    strategy: str
    """The name of the strategy."""
    topologies: Topologies
    """The root topology with its derived axes, and that of the expert mesh."""
    process_groups: GroupCounts
    """What `MeshContext.build` makes: one for each distinct set of ranks. All axes of one rank share one group of a
    single rank.
    """
    plain_torch: GroupCounts
    """What plain torch makes: `init_device_mesh`, `_flatten` for each derived axis, and `init_device_mesh` for the
    expert mesh, the axes beside it included. Up to torch 2.9 it makes one more for each native axis over the world.
    """

    def __str__(self) -> str:
        made = mesh_tables.counted(self.process_groups.per_rank, "process group")
        return f"{super().__str__()}; {made} of each rank (plain torch: {self.plain_torch.per_rank})"

    def _repr_html_(self) -> str:
        return f"{super()._repr_html_()}{as_html(mesh_tables.counts_table(self))}"

    def _what(self) -> str:
        return self.strategy


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
    named = list(_named_layouts(topologies, default))
    needed = {axis.layout for axis in named if axis.same_groups is not None}
    return MeshPlan(
        world_size=int(world_size),
        ranks_per_node=int(ranks_per_node),
        ranks=root.ranks,
        axes=describe_axes(named, root.ranks, int(ranks_per_node)),
        strategy=chosen.name,
        topologies=topologies,
        process_groups=_counts(root.total, [size_of(layout) for layout in needed]),
        plain_torch=_counts(root.total, _sizes_in_plain_torch(topologies, default)),
    )


def _named_layouts(topologies: Topologies, default: Layout | None) -> Iterator[NamedLayout]:
    """Yield the axes of the root mesh, native and derived, and those of the expert mesh; one group for each layout."""

    def named(topology: Topology, name: str, kind: AxisKind) -> NamedLayout:
        layout = topology.layout(name)
        return NamedLayout(name, kind, topology.derived.get(name, ()), layout, None if layout == default else layout)

    root, moe = topologies
    yield from (named(root, axis, "native") for axis in root.axes)
    yield from (named(root, axis, "derived") for axis in root.derived)
    if moe is not None:
        yield from (named(moe, axis, "expert") for axis in EXPERT_MESH_AXES)


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
