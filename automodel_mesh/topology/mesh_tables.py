"""The tables of a mesh: its axes, the process groups that it needs, and those of one rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from automodel_mesh.checks import shown_ranks
from automodel_mesh.tables import Table

if TYPE_CHECKING:
    from automodel_mesh.topology.description import MeshAxis, MeshDescription, RankGroup
    from automodel_mesh.topology.plans import MeshPlan

_NUMBERS: Final = frozenset({"size", "stride", "groups", "of each rank", "of the whole job", "nodes"})


def axes_table(mesh: MeshDescription) -> Table:
    """Return the axes: size, stride, groups, the nodes that a group spans, and which process groups an axis uses."""
    seen: list[str] = []
    rows: list[tuple[str, ...]] = []
    for axis in mesh.axes:
        rows.append(
            (
                axis.name,
                ", ".join(axis.folds) or ("(expert mesh)" if axis.kind == "expert" else "-"),
                f"{axis.size:,}",
                ", ".join(f"{stride:,}" for _, stride in axis.layout) or "-",
                f"{axis.groups:,}",
                f"{axis.nodes_per_group:,}",
                inside_a_node(axis),
                _process_groups(axis, seen),
            )
        )
        seen.append(axis.name)
    columns = ("axis", "folds", "size", "stride", "groups", "nodes", "in a node", "process groups")
    return Table("axes", columns, tuple(rows), _NUMBERS)


def counts_table(plan: MeshPlan) -> Table:
    """Return the number of process groups, ours and plain torch's."""
    made = (("automodel-mesh", plan.process_groups), ("plain torch", plan.plain_torch))
    return Table(
        "process groups, besides the default one",
        ("made by", "of each rank", "of the whole job"),
        tuple((who, f"{counts.per_rank:,}", f"{counts.in_job:,}") for who, counts in made),
        _NUMBERS,
    )


def rank_table(mesh: MeshDescription, rank: int) -> Table:
    """Return the process groups of a rank.

    Raises:
        TypeError: `rank` is not an int.
        ValueError: `rank` is not in the mesh.
    """
    place = ", ".join(f"{axis} {index}" for axis, index in mesh.coordinate(rank).items())
    rows = tuple(
        (", ".join(group.axes), f"{len(group.ranks):,}", f"{group.nodes:,}", _ranks(group))
        for group in mesh.groups_of(rank)
    )
    title = f"groups of rank {rank}, on node {rank // mesh.ranks_per_node}, at {place}"
    return Table(title, ("axes", "size", "nodes", "ranks"), rows, _NUMBERS)


def inside_a_node(axis: MeshAxis) -> str:
    """Say whether the groups of an axis stay inside a node: `"yes"`, `"no"`, or how many do."""
    inside = axis.groups - axis.groups_across_nodes
    return "yes" if inside == axis.groups else f"{inside:,} of {axis.groups:,}" if inside else "no"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _process_groups(axis: MeshAxis, earlier: list[str]) -> str:
    if axis.default_group:
        return "the default one"
    shared = next((other for other in axis.shares_with if other in earlier), None)
    if shared is not None:
        return f"those of {shared}"
    return "own" if axis.size > 1 else "of one rank"


def _ranks(group: RankGroup) -> str:
    return f"{shown_ranks(group.ranks)}{' (the default group)' if group.default_group else ''}"
