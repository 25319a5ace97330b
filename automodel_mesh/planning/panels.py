"""What the picture of a plan shows: for each axis some nodes, their ranks, and which of these are one group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from automodel_mesh.topology.layouts import first_position
from automodel_mesh.topology.plan_tables import counted

if TYPE_CHECKING:
    from automodel_mesh.topology.plans import AxisPlan, MeshPlan

__all__ = ["Cell", "NodeRow", "Panel", "drawn_axes", "panel"]

MOST_NODES: Final = 8
"""Nodes that a panel shows. In a larger world it shows those of one group."""


class Cell(NamedTuple):
    """A rank in a panel."""

    rank: int
    """The rank."""
    group: int
    """The number of its group in this panel, counted from 0."""


class NodeRow(NamedTuple):
    """A node in a panel."""

    node: int
    """The node."""
    cells: tuple[Cell, ...]
    """Its ranks that are in the mesh."""


class Panel(NamedTuple):
    """One axis of the picture."""

    title: str
    """The axis, its groups, and the nodes that they span."""
    in_expert_mesh: bool
    """Whether it is an axis of the expert mesh."""
    nodes: tuple[NodeRow, ...]
    """The nodes that are shown."""
    note: str
    """What is not shown; empty if all is."""


def drawn_axes(plan: MeshPlan, names: Sequence[str] = ()) -> list[AxisPlan]:
    """Return the axes to draw: those named, or by default the native ones, and always those of the expert mesh.

    Axes of one rank are left out, unless they are named.

    Raises:
        KeyError: There is no such axis.
    """
    chosen = [plan.axis(name) for name in dict.fromkeys(names)]
    by_default = [axis for axis in plan.axes if axis.kind == "expert" or (axis.kind == "native" and not names)]
    return chosen + [axis for axis in by_default if axis.size > 1 and axis not in chosen]


def panel(plan: MeshPlan, axis: AxisPlan) -> Panel:
    """Return the panel of an axis.

    All nodes are shown if there are at most `MOST_NODES`; else the nodes that the first group spans, as many as that at
    most.
    """
    root = plan.topologies.root
    everything = plan.nodes <= MOST_NODES
    nodes = range(plan.nodes) if everything else list(islice(_nodes_of_first_group(plan, axis), MOST_NODES))
    numbers: dict[int, int] = {}

    def cell(rank: int) -> Cell:
        first = first_position([axis.layout], root.position(rank))
        return Cell(rank, numbers.setdefault(first, len(numbers)))

    rows = tuple(NodeRow(node, tuple(map(cell, _ranks_on(plan, node)))) for node in nodes)
    title = f"{axis.name}: {counted(axis.groups, 'group')} of {counted(axis.size, 'rank')}, {_where(axis)}"
    return Panel(title, axis.kind == "expert", rows, "" if everything else _note(plan, axis, len(rows)))


def _where(axis: AxisPlan) -> str:
    """Say how many nodes the groups of an axis span."""
    if axis.nodes_per_group == 1:
        return "each inside a node"
    return f"{'each on' if axis.groups_across_nodes == axis.groups else 'on up to'} {axis.nodes_per_group:,} nodes"


def _note(plan: MeshPlan, axis: AxisPlan, shown: int) -> str:
    """Say which nodes are shown, and how many are not."""
    spanned = sum(1 for _ in _nodes_of_first_group(plan, axis))
    which = "the nodes of group A" if shown == spanned else f"the first {shown} of {spanned:,} nodes of group A"
    return f"{which}; {counted(plan.nodes - shown, 'other node')} not shown"


def _nodes_of_first_group(plan: MeshPlan, axis: AxisPlan) -> Iterator[int]:
    """Yield the nodes of the first rank's group, each once."""
    last = -1
    group = next(group for group in plan.groups_of(plan.topologies.root.ranks[0]) if axis.name in group.axes)
    for rank in group.ranks:
        node = rank // plan.ranks_per_node
        if node != last:
            yield node
        last = node


def _ranks_on(plan: MeshPlan, node: int) -> Iterator[int]:
    first = node * plan.ranks_per_node
    return filter(plan.topologies.root.__contains__, range(first, min(first + plan.ranks_per_node, plan.world_size)))
