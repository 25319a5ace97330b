"""One contract for `DeviceMesh` on every torch release from 2.6 on.

Importing this package picks the code for the installed torch (`eras/gate.py`). Private names of torch are used in this
package and nowhere else in the project.
"""

from __future__ import annotations

from automodel_mesh.compat.backporting import Backport, backport
from automodel_mesh.compat.create import init_device_mesh
from automodel_mesh.compat.describe import describe
from automodel_mesh.compat.eras.gate import ERA_NAME, era
from automodel_mesh.compat.eras.support import MINIMUM_TORCH, NEWEST_TESTED_TORCH, TORCH_VERSION, torch_at_least
from automodel_mesh.compat.folding import flatten, refold, unflatten
from automodel_mesh.compat.groups import GroupReport, GroupSpec
from automodel_mesh.compat.lookup import (
    flattened_meshes,
    get_coordinate,
    get_group,
    get_root_mesh,
    reset_mesh_registry,
)
from automodel_mesh.compat.newest_types import NewestDeviceMesh, newest
from automodel_mesh.compat.slicing import concatenate, find_submesh, slice_mesh
from automodel_mesh.compat.teardown import abort_process_groups, destroy_process_groups, list_process_groups
from automodel_mesh.errors import (
    AxisOrderError,
    MeshArgumentError,
    MeshIndexError,
    MeshTypeError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    RanksDisagreeError,
    UnknownAxisError,
    UnnamedMeshError,
    UnsupportedTorchError,
)

__all__ = [
    "ERA_NAME",
    "MINIMUM_TORCH",
    "NEWEST_TESTED_TORCH",
    "TORCH_VERSION",
    "AxisOrderError",
    "Backport",
    "GroupReport",
    "GroupSpec",
    "MeshArgumentError",
    "MeshIndexError",
    "MeshTypeError",
    "NewestDeviceMesh",
    "ProcessGroupDestroyedError",
    "RankNotInMeshError",
    "RanksDisagreeError",
    "UnknownAxisError",
    "UnnamedMeshError",
    "UnsupportedTorchError",
    "abort_process_groups",
    "backport",
    "concatenate",
    "describe",
    "destroy_process_groups",
    "find_submesh",
    "flatten",
    "flattened_meshes",
    "get_coordinate",
    "get_group",
    "get_root_mesh",
    "init_device_mesh",
    "list_process_groups",
    "newest",
    "refold",
    "reset_mesh_registry",
    "slice_mesh",
    "torch_at_least",
    "unflatten",
]

# So that torch's own `mesh._flatten()` of a mesh that we made, wherever it is called, is our `flatten`.
era.take_over(flatten, slice_mesh)
