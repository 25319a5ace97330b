"""One contract for `DeviceMesh` on every torch release from 2.6 on.

Importing this package picks the era of the installed torch (`gate.py`); every private name of torch that the project
relies on is used in here and nowhere else.
"""

from __future__ import annotations

from automodel_mesh.compat.create import init_device_mesh
from automodel_mesh.compat.ending import leave_world
from automodel_mesh.compat.eras.gate import ERA_NAME
from automodel_mesh.compat.eras.support import MINIMUM_TORCH, NEWEST_TESTED_TORCH, TORCH_VERSION, torch_at_least
from automodel_mesh.compat.errors import (
    MeshArgumentError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    UnknownAxisError,
    UnnamedMeshError,
    UnsupportedTorchError,
)
from automodel_mesh.compat.folding import flatten, refold, unflatten
from automodel_mesh.compat.groups import GroupReport
from automodel_mesh.compat.lookup import (
    flattened_meshes,
    get_coordinate,
    get_group,
    get_root_mesh,
    reset_mesh_registry,
)
from automodel_mesh.compat.making import GroupSpec
from automodel_mesh.compat.slicing import concatenate, find_submesh, remembered, slice_mesh
from automodel_mesh.compat.teardown import abort_process_groups, destroy_process_groups, list_process_groups
from automodel_mesh.compat.worlds import (
    find_process_group,
    init_fake_world,
    live_meshes,
    live_process_groups,
    register_fake_backend,
)

__all__ = [
    "ERA_NAME",
    "MINIMUM_TORCH",
    "NEWEST_TESTED_TORCH",
    "TORCH_VERSION",
    "GroupReport",
    "GroupSpec",
    "MeshArgumentError",
    "ProcessGroupDestroyedError",
    "RankNotInMeshError",
    "UnknownAxisError",
    "UnnamedMeshError",
    "UnsupportedTorchError",
    "abort_process_groups",
    "concatenate",
    "destroy_process_groups",
    "find_process_group",
    "find_submesh",
    "flatten",
    "flattened_meshes",
    "get_coordinate",
    "get_group",
    "get_root_mesh",
    "init_device_mesh",
    "init_fake_world",
    "leave_world",
    "list_process_groups",
    "live_meshes",
    "live_process_groups",
    "refold",
    "register_fake_backend",
    "remembered",
    "reset_mesh_registry",
    "slice_mesh",
    "torch_at_least",
    "unflatten",
]
