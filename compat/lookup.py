"""Lookups on a mesh: its root, the flattened axes of its family, a process group, the coordinate of this rank."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.compiled import constant_when_compiled
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import in_use, require_mesh
from automodel_mesh.compat.requests import dim_index, require_known, shown_mesh
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@constant_when_compiled
def get_root_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh that this one was derived from, through any number of steps.

    Args:
        mesh: any mesh: a root, a slice, a slice of a slice, a flattened, unflattened or concatenated mesh.

    Returns:
        The root: the identical object, in any thread. For a root, the mesh itself.

    Raises:
        TypeError: `mesh` is not a `DeviceMesh`.

    Torch releases:
        2.6 - 2.9 find the root of a mesh that is equal to this one, in the thread that made it; on 2.9 the root of a
        slice of a slice is its immediate parent. Here all releases behave as described, except that below 2.10 the root
        of a slice that torch made before this package was imported is still found by equality.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._get_root_mesh`.
    """
    return era.root_of(require_mesh(mesh))


@constant_when_compiled
def flattened_meshes(mesh: DeviceMesh) -> Mapping[str, DeviceMesh]:
    """Return the flattened axes of the family of a mesh.

    Args:
        mesh: any mesh.

    Returns:
        A read-only view, name -> 1-D mesh, in the order in which they were made; it includes axes flattened later.

    Raises:
        TypeError: `mesh` is not a `DeviceMesh`.

    Torch releases:
        kept in the module's registry up to 2.9, on the root from 2.10 on.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._flatten_mapping`.
    """
    return MappingProxyType(era.flattened(get_root_mesh(mesh)))


@constant_when_compiled
def get_group(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> ProcessGroup:
    """Return the process group along an axis.

    Args:
        mesh: any mesh.
        mesh_dim: an axis of the mesh by index (negative ones count from the end) or name, or the name of a flattened
            axis of its family; `None` for the only axis of a 1-D mesh.

    Returns:
        The group this rank belongs to; its ranks are those the mesh shows along the axis.

    Raises:
        UnknownAxisError: (a `KeyError`) there is no axis of that name; the message lists the axes.
        ValueError: an index out of range, or `None` for a mesh with several axes.
        RankNotInMeshError: this rank is outside the mesh.
        ProcessGroupDestroyedError: the group was destroyed, or the default process group that the mesh was made with.

    Torch releases:
        a rank outside the mesh gets a bare `IndexError`, a destroyed group a `TypeError` on 2.6 and 2.7. Here all
        releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.get_group`.
    """
    with in_use(mesh) as family:
        family.require_member(mesh)
        if mesh_dim is None:
            if mesh.ndim != 1:
                raise MeshArgumentError(
                    f"mesh_dim: {shown_mesh(mesh)} has {mesh.ndim} axes: say which one, by name or index."
                )
            return family.along(mesh, 0)
        own = mesh.mesh_dim_names or ()
        if isinstance(mesh_dim, str) and mesh_dim not in own:
            folded = era.flattened(family.root)
            require_known((str.__str__(mesh_dim),), own, folded)
            return family.along(folded[mesh_dim], 0)
        return family.along(mesh, dim_index(mesh, mesh_dim, "mesh_dim"))


@constant_when_compiled
def get_coordinate(mesh: DeviceMesh) -> tuple[int, ...] | None:
    """Return the coordinate of this rank in a mesh.

    Args:
        mesh: any mesh.

    Returns:
        A tuple with one index for each axis; `None` if this rank is outside the mesh.

    Raises:
        TypeError: `mesh` is not a `DeviceMesh`.

    Torch releases:
        a list up to 2.10, a tuple from 2.11 on.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.get_coordinate`.
    """
    coordinate = require_mesh(mesh).get_coordinate()
    return None if coordinate is None else tuple(coordinate)


def reset_mesh_registry() -> bool:
    """Clear torch's registry of meshes; meant for tests that run one after the other in one process.

    Returns:
        `True` if there is a registry (2.6 - 2.9); `False` if torch stores everything on the meshes themselves, so that
        there is nothing to clear (2.10 and newer).

    Torch releases:
        2.6 - 2.9: afterwards a derived mesh that torch itself made is its own root.
    """
    return era.forget_meshes()
