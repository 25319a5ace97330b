"""What the picture of a mesh shows: for each axis some nodes, their ranks, and which of these are one group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from string import ascii_uppercase
from typing import TYPE_CHECKING, Final, NamedTuple

from automodel_mesh.topology.layouts import first_position
from automodel_mesh.topology.mesh_tables import counted

if TYPE_CHECKING:
    from automodel_mesh.topology.description import MeshAxis, MeshDescription

__all__ = ["COLUMNS", "KEY", "MOST_NODES", "MOST_RANKS", "Cell", "NodeRow", "Panel", "drawn_axes", "panel"]

MOST_NODES: Final = 8
"""Nodes that a panel shows. In a larger world it shows those of one group."""

MOST_RANKS: Final = 64
"""Ranks of a node that a panel shows."""

COLUMNS: Final = 16
"""Ranks beside each other; a larger node has several lines."""

KEY: Final = "A square is a rank, a frame is a node. Squares of a panel with the same letter and colour are one group."
"""The legend of a drawing."""

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart; the letters say the same.
_COLOURS: Final = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#999999")
_DARK: Final = {"#0072B2"}


class Cell(NamedTuple):
    """A rank in a panel."""

    rank: int
    """The rank."""
    group: int
    """The number of its group in this panel, counted from 0."""

    @property
    def letters(self) -> str:
        """The name of its group: A to Z, then AA, AB and so on."""
        return _letters(self.group)

    @property
    def colours(self) -> tuple[str, str]:
        """The colours of its square and of the text inside."""
        colour = _COLOURS[self.group % len(_COLOURS)]
        return colour, "white" if colour in _DARK else "black"


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

    @property
    def lines(self) -> list[int]:
        """How many lines of squares each node needs."""
        return [max(1, ceil(len(row.cells) / COLUMNS)) for row in self.nodes]


def drawn_axes(mesh: MeshDescription, names: Sequence[str] = ()) -> list[MeshAxis]:
    """Return the axes to draw: those named, or by default the native ones, and always those of the expert mesh.

    Axes of one rank are left out, unless they are named.

    Raises:
        KeyError: There is no such axis.
    """
    chosen = [mesh.axis(name) for name in dict.fromkeys(names)]
    by_default = [axis for axis in mesh.axes if axis.kind == "expert" or (axis.kind == "native" and not names)]
    return chosen + [axis for axis in by_default if axis.size > 1 and axis not in chosen]


def panel(mesh: MeshDescription, axis: MeshAxis) -> Panel:
    """Return the panel of an axis.

    All nodes are shown if there are at most `MOST_NODES`; else the nodes that the first group spans, as many as that at
    most; of each, `MOST_RANKS` ranks at most.
    """
    everything = mesh.nodes <= MOST_NODES
    nodes = range(mesh.nodes) if everything else list(islice(_nodes_of_first_group(mesh, axis), MOST_NODES))
    numbers: dict[int, int] = {}

    def cell(rank: int) -> Cell:
        first = first_position([axis.layout], mesh.position(rank))
        return Cell(rank, numbers.setdefault(first, len(numbers)))

    rows = tuple(NodeRow(node, tuple(map(cell, islice(_ranks_on(mesh, node), MOST_RANKS)))) for node in nodes)
    title = f"{axis.name}: {counted(axis.groups, 'group')} of {counted(axis.size, 'rank')}, {_where(axis)}"
    notes = [] if everything else [_nodes_not_shown(mesh, axis, len(rows))]
    if mesh.ranks_per_node > MOST_RANKS:
        notes.append(f"at most {MOST_RANKS} ranks of a node are shown")
    return Panel(title, axis.kind == "expert", rows, "; ".join(notes))


def _where(axis: MeshAxis) -> str:
    """Say how many nodes the groups of an axis span."""
    if axis.nodes_per_group == 1:
        return "each inside a node"
    return f"{'each on' if axis.groups_across_nodes == axis.groups else 'on up to'} {axis.nodes_per_group:,} nodes"


def _nodes_not_shown(mesh: MeshDescription, axis: MeshAxis, shown: int) -> str:
    """Say which nodes are shown, and how many are not."""
    spanned = sum(1 for _ in _nodes_of_first_group(mesh, axis))
    which = "the nodes of group A" if shown == spanned else f"the first {shown} of {spanned:,} nodes of group A"
    return f"{which}; {counted(mesh.nodes - shown, 'other node')} not shown"


def _nodes_of_first_group(mesh: MeshDescription, axis: MeshAxis) -> Iterator[int]:
    """Yield the nodes of the first rank's group, each once."""
    last = -1
    group = next(group for group in mesh.groups_of(mesh.ranks[0]) if axis.name in group.axes)
    for rank in group.ranks:
        node = rank // mesh.ranks_per_node
        if node != last:
            yield node
        last = node


def _ranks_on(mesh: MeshDescription, node: int) -> Iterator[int]:
    first = node * mesh.ranks_per_node
    return filter(mesh.ranks.__contains__, range(first, min(first + mesh.ranks_per_node, mesh.world_size)))


def _letters(number: int) -> str:
    before, last = divmod(number, len(ascii_uppercase))
    return (_letters(before - 1) if before else "") + ascii_uppercase[last]
