"""Which ranks belong to which group, in plain arithmetic: sizes to axes, derived axes and groups. Imports no torch."""

from __future__ import annotations

from automodel_mesh.topology.description import MeshAxis, MeshDescription, RankGroup
from automodel_mesh.topology.grid import CoincidentAxes, Topology, distinct_groups_per_rank, shared_layouts
from automodel_mesh.topology.layouts import Layout
from automodel_mesh.topology.plans import GroupCounts, MeshPlan, plan

__all__ = [
    "CoincidentAxes",
    "GroupCounts",
    "Layout",
    "MeshAxis",
    "MeshDescription",
    "MeshPlan",
    "RankGroup",
    "Topology",
    "distinct_groups_per_rank",
    "plan",
    "shared_layouts",
]
