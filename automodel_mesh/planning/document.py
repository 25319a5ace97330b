"""The JSON document of a plan. docs/how-to/plan.md describes its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from automodel_mesh.topology.description import MeshAxis
    from automodel_mesh.topology.plans import MeshPlan

JSON_SCHEMA: Final = 1
"""Raised when a key is renamed or removed, not when one is added."""


def plan_document(plan: MeshPlan, rank: int | None = None) -> dict[str, Any]:
    """Return a plan as types that JSON has.

    Args:
        plan: the plan.
        rank: a rank whose groups to list, or `None`.

    Raises:
        ValueError: `rank` is not in the mesh.
    """
    return {
        "schema": JSON_SCHEMA,
        "strategy": plan.strategy,
        "world_size": plan.world_size,
        "ranks_per_node": plan.ranks_per_node,
        "nodes": plan.nodes,
        "axes": [_axis(axis) for axis in plan.axes],
        "process_groups": plan.process_groups._asdict(),
        "plain_torch": plan.plain_torch._asdict(),
        "rank": None if rank is None else _rank(plan, rank),
    }


def _axis(axis: MeshAxis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "kind": axis.kind,
        "folds": list(axis.folds),
        "size": axis.size,
        "stride": axis.stride,
        "layout": [list(pair) for pair in axis.layout],
        "groups": axis.groups,
        "groups_across_nodes": axis.groups_across_nodes,
        "nodes_per_group": axis.nodes_per_group,
        "default_group": axis.default_group,
        "shares_with": list(axis.shares_with),
    }


def _rank(plan: MeshPlan, rank: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "node": rank // plan.ranks_per_node,
        "coordinate": plan.coordinate(rank),
        "groups": [
            {**group._asdict(), "axes": list(group.axes), "ranks": list(group.ranks)} for group in plan.groups_of(rank)
        ],
    }
