"""Access to the axes of a mesh by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from automodel_mesh import compat
from automodel_mesh.checks import check_size, checked_name
from automodel_mesh.compat.compiled import constant_when_compiled
from automodel_mesh.compat.requests import require_known
from automodel_mesh.compat.slicing import remembered
from automodel_mesh.nemo.mesh_utils import *  # noqa: F403 - underscored names, which NeMo AutoModel's code imports from here
from automodel_mesh.topology.strategies import fully_shard_strategy

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["create_ring_ulysses_mesh", "get_flat_mesh", "get_fsdp_dp_mesh", "get_submesh"]


@constant_when_compiled
def get_flat_mesh(device_mesh: DeviceMesh, name: str) -> DeviceMesh:
    """Return the 1-D mesh of one axis. This never makes a process group.

    Args:
        device_mesh: the root or any mesh derived from it.
        name: an axis of this mesh or of its root, or a flattened axis of the family: `"tp"`, `"dp"`, `"dp_cp"`.

    Returns:
        The mesh; the same request again returns the same object and costs a dictionary access.

    Raises:
        KeyError: no such axis; the message lists the axes.
        RankNotInMeshError: this rank is outside the mesh.

    Torch releases:
        `mesh[name]` of torch differs between almost all releases; see `compat.slice_mesh`.
    """
    return compat.find_submesh(device_mesh, name)


@constant_when_compiled
def get_submesh(device_mesh: DeviceMesh, names: Sequence[str]) -> DeviceMesh:
    """Return the mesh of some axes, native and flattened ones mixed. This never makes a process group.

    Args:
        device_mesh: the root or any mesh derived from it.
        names: axes in ascending order, such as `("dp_replicate", "dp_shard_cp")` or `("dp_cp", "tp")`.

    Returns:
        The mesh; its root is the root of `device_mesh`, so FSDP2 takes it together with a tensor parallel mesh.

    Raises:
        KeyError: no such axis; the message lists the axes.
        ValueError: repeated or overlapping axes, descending order, no axis at all.
        RankNotInMeshError: this rank is outside the mesh.
    """
    return compat.find_submesh(device_mesh, names)


@constant_when_compiled
def get_fsdp_dp_mesh(
    device_mesh: DeviceMesh,
    dp_replicate_name: str | None = None,
    dp_shard_cp_name: str | None = None,
) -> DeviceMesh:
    """Return the mesh to give to `fully_shard`. This never makes a process group.

    FSDP2 takes a 2-D mesh for hybrid sharding (HSDP), so without replicas the mesh always has one axis.

    Args:
        device_mesh: the root mesh of a strategy that uses `fully_shard`, or any mesh derived from it.
        dp_replicate_name: the axis of the replicas; by default the strategy's, or `dp_replicate`.
        dp_shard_cp_name: the flattened axis that parameters are sharded over with context parallelism; by default the
            strategy's, or `dp_shard_cp`.

    Returns:
        `dp_shard`, or `dp_shard_cp` with context parallelism; after the axis of replicas if there are several. The same
        request again returns the same object.

    Raises:
        KeyError: the mesh has no such axes; the message lists the axes.
        RankNotInMeshError: this rank is outside the mesh.
    """
    request = (dp_replicate_name, dp_shard_cp_name)
    return remembered(device_mesh, request, _find_fsdp_dp_mesh, "fsdp")


def create_ring_ulysses_mesh(device_mesh: DeviceMesh, *, ring_degree: int, ulysses_degree: int) -> DeviceMesh:
    """Split the context parallel axis into one for ring attention and one for Ulysses. On every rank of the world.

    Args:
        device_mesh: a mesh with the axis `cp`, or a mesh derived from one.
        ring_degree: size of the outer axis, along which keys and values are passed on, at least 1.
        ulysses_degree: size of the inner axis, along which heads are exchanged, at least 1. The product of both is the
            size of `cp`.

    Returns:
        The mesh (ring, ulysses) of this rank, in the family of `device_mesh`.

    Raises:
        ValueError: the product is not the size of `cp`, or a degree is below 1.
        KeyError: there is no axis `cp`.
        RankNotInMeshError: this rank is outside the mesh.
    """
    root = compat.get_root_mesh(device_mesh)
    check_size("ring_degree", ring_degree)
    check_size("ulysses_degree", ulysses_degree)
    holder = root if "cp" in (root.mesh_dim_names or ()) else device_mesh
    return compat.refold(holder, ("cp",), (ring_degree, ulysses_degree), ("ring", "ulysses"))


def _find_fsdp_dp_mesh(device_mesh: DeviceMesh, request: tuple[str | None, str | None]) -> DeviceMesh:
    root = compat.get_root_mesh(device_mesh)
    strategy = fully_shard_strategy(root.mesh_dim_names or ())
    *replicas, shard = strategy.fully_shard_axes
    alone, *context = strategy.derived.get(shard, (shard,))
    # A slice may lack the axes that are asked for; a mesh made by unflatten may have them where its root does not.
    holder = root if alone in (root.mesh_dim_names or ()) else device_mesh
    sizes = dict(zip(holder.mesh_dim_names or (), holder.shape, strict=True))
    flattened = compat.flattened_meshes(root)
    arguments = ("dp_replicate_name", "dp_shard_cp_name")
    replicate, shard_cp = (
        None if name is None else checked_name(argument, name)
        for argument, name in zip(arguments, request, strict=True)
    )
    # The strategy's own names may be given where the mesh has no such axis: it has a single replica, or no context.
    given = [name for name in (replicate, shard_cp) if name is not None]
    require_known(tuple(name for name in given if name not in strategy.fully_shard_axes), tuple(sizes), flattened)
    sizes = {name: flat.size() for name, flat in dict(flattened).items()} | sizes
    if replicate is not None:
        replicas = [replicate]
    if alone in sizes and all(sizes.get(axis, 1) == 1 for axis in context):
        shard = alone
    elif shard_cp is not None:
        shard = shard_cp
    return compat.slice_mesh(holder, (*(axis for axis in replicas if sizes.get(axis, 1) > 1), shard))
