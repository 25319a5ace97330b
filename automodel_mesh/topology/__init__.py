"""Which ranks belong to which group, in plain arithmetic: sizes to axes, derived axes and groups. Imports no torch."""

from __future__ import annotations

from automodel_mesh.topology.grid import CoincidentAxes, Topology, distinct_groups_per_rank, shared_layouts
from automodel_mesh.topology.layouts import Layout

__all__ = [
    "CoincidentAxes",
    "Layout",
    "Topology",
    "distinct_groups_per_rank",
    "shared_layouts",
]
