"""Access to the axes of a mesh by name, and the names that frameworks import from the module of this name.

The underscored functions keep imports written for NeMo AutoModel working; the work is done in `build.py` and
`topology.py`.
"""

# pyright: reportUnusedFunction=false
# The underscored functions are for others to import.

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automodel_mesh import compat
from automodel_mesh.build import build_meshes, build_moe_mesh, default_device_type, register_flattened_axes
from automodel_mesh.checks import check_size
from automodel_mesh.compat.slicing import remembered
from automodel_mesh.mesh import MeshAxisName
from automodel_mesh.strategy_configs import DistributedStrategyConfig, FSDP2Config, MegatronFSDPConfig
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.sizes import ParallelismSizes, infer_dp_size
from automodel_mesh.topology.strategies import plan_topologies, strategy_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["create_ring_ulysses_mesh", "get_flat_mesh", "get_fsdp_dp_mesh", "get_submesh"]


def get_flat_mesh(device_mesh: DeviceMesh, name: str) -> DeviceMesh:
    """Return the 1-D mesh of one axis. No process group is made, ever.

    Args:
        device_mesh: the root or any mesh derived from it.
        name: an axis of this mesh or of its root, or a flattened axis of the family: `"tp"`, `"dp"`, `"dp_cp"`.

    Returns:
        The mesh; the same request again returns the same object and costs a dictionary access.

    Raises:
        KeyError: no such axis; the message lists those there are.
        RankNotInMeshError: this rank is outside the mesh.

    Torch releases:
        what torch does for `mesh[name]` differs on almost every release; see `compat.slice_mesh`.
    """
    return compat.find_submesh(device_mesh, name)


def get_submesh(device_mesh: DeviceMesh, names: tuple[str, ...]) -> DeviceMesh:
    """Return the mesh of some axes, native and flattened ones mixed. No process group is made, ever.

    Args:
        device_mesh: the root or any mesh derived from it.
        names: axes in ascending order, such as `("dp_replicate", "dp_shard_cp")` or `("dp_cp", "tp")`.

    Returns:
        The mesh; its root is the root of `device_mesh`, so FSDP2 takes it together with a tensor parallel mesh.

    Raises:
        KeyError: no such axis; the message lists those there are.
        ValueError: repeated or overlapping axes, descending order, no axis at all.
        RankNotInMeshError: this rank is outside the mesh.
    """
    return compat.find_submesh(device_mesh, names)


def get_fsdp_dp_mesh(
    device_mesh: DeviceMesh,
    dp_replicate_name: str = MeshAxisName.DP_REPLICATE,
    dp_shard_cp_name: str = MeshAxisName.DP_SHARD_CP,
) -> DeviceMesh:
    """Return the mesh to give to `fully_shard`. No process group is made, ever.

    A 2-D mesh means replicas of shards (HSDP) to FSDP2, so without replicas it is always one axis.

    Args:
        device_mesh: the root mesh of the fsdp2 strategy, or any mesh derived from it.
        dp_replicate_name: the axis of the replicas.
        dp_shard_cp_name: the flattened axis that parameters are sharded over with context parallelism.

    Returns:
        `dp_shard` without replicas and context parallelism, `dp_shard_cp` with context parallelism, and each of them
        behind the axis of the replicas where there are several. The same request again returns the same object.

    Raises:
        KeyError: the mesh has no such axes; the message lists those there are.
        RankNotInMeshError: this rank is outside the mesh.
    """
    request = (dp_replicate_name, dp_shard_cp_name)
    return remembered(device_mesh, request, _find_fsdp_dp_mesh, "fsdp")


def create_ring_ulysses_mesh(mesh: DeviceMesh, *, ring_degree: int, ulysses_degree: int) -> DeviceMesh:
    """Split the context parallel axis into one for ring attention and one for Ulysses. On every rank of the world.

    Args:
        mesh: a mesh with the axis `cp`, or a mesh derived from one.
        ring_degree: ranks that pass keys and values around, at least 1; the outer axis.
        ulysses_degree: ranks that exchange heads, at least 1; the inner axis. Their product is the size of `cp`.

    Returns:
        The mesh (ring, ulysses) of this rank, in the family of `mesh`.

    Raises:
        ValueError: the product is not the size of `cp`, or a degree is below 1.
        KeyError: there is no axis `cp`.
        RankNotInMeshError: this rank is outside the mesh.
    """
    root = compat.get_root_mesh(mesh)
    holder = root if "cp" in (root.mesh_dim_names or ()) else mesh
    return compat.refold(holder, ("cp",), (ring_degree, ulysses_degree), ("ring", "ulysses"))


def _find_fsdp_dp_mesh(device_mesh: DeviceMesh, request: tuple[str, str]) -> DeviceMesh:
    replicate, shard_cp = request
    root = compat.get_root_mesh(device_mesh)
    # A part of the root may lack the axes that decide; an unflattened mesh may be the only one to have them.
    holder = root if "dp_shard" in (root.mesh_dim_names or ()) else device_mesh
    sizes = dict(zip(holder.mesh_dim_names or (), holder.shape, strict=True))
    shard = "dp_shard" if "dp_shard" in sizes and sizes.get("cp", 1) == 1 else shard_cp
    axes = (replicate, shard) if sizes.get(str.__str__(replicate), 1) > 1 else (shard,)
    return compat.slice_mesh(holder, axes)


# What follows is the face that code written for NeMo AutoModel imports.


@dataclass(frozen=True)
class _MeshSpec:
    """Shape and axes of a mesh, and the axes to fold."""

    shape: tuple[int, ...]
    axes: tuple[MeshAxisName, ...]
    flattened_axes: Mapping[MeshAxisName, tuple[MeshAxisName, ...]] = field(default_factory=dict)


def _create_device_meshes(
    strategy_config: DistributedStrategyConfig, parallelism: ParallelismSizes, world_size: int
) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """Build the root and the expert mesh of a strategy; DDP has neither."""
    name = strategy_name(strategy_config)
    if name == "ddp":
        plan_topologies(name, parallelism, world_size)
        return None, None
    return build_meshes(name, parallelism, world_size)[:2]


def _create_fsdp2_device_mesh(parallelism: ParallelismSizes, world_size: int) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Build the root mesh of FSDP2, and its expert mesh where experts are parallel."""
    return build_meshes(strategy_name(FSDP2Config()), parallelism, world_size)[:2]


def _create_megatron_fsdp_device_mesh(parallelism: ParallelismSizes, world_size: int) -> DeviceMesh:
    """Build the mesh of Megatron-FSDP."""
    return build_meshes(strategy_name(MegatronFSDPConfig()), parallelism, world_size).root


def _create_moe_mesh(device_mesh: DeviceMesh, ep_shard_size: int, ep_size: int) -> DeviceMesh:
    """Lay the ranks of a stage out as (ep_shard, ep)."""
    mesh = build_moe_mesh(device_mesh, ep_shard_size, ep_size)
    if mesh is None:
        raise compat.RankNotInMeshError(f"this rank is not in {device_mesh}, so it has no expert mesh of it")
    return mesh


def _degree(value: int | None) -> int:
    """Read a size that may be left out as 1."""
    check_size("size", value, optional=True)
    return 1 if value is None else value


def _infer_dp_size(
    dp_size: int | None, world_size: int, non_dp_size: int, expression: str, factors: tuple[int, ...]
) -> int:
    """Return the data parallel size that fills the world; `expression` names the factors, joined by ` * `."""
    names = [name.strip() for name in expression.split("*")]
    named = dict(zip(names, factors, strict=True)) if len(names) == len(factors) else {expression: non_dp_size}
    return infer_dp_size(dp_size, world_size, named)


def _init_named_mesh(spec: _MeshSpec) -> DeviceMesh:
    """Build a mesh and its flattened axes."""
    _validate_mesh_spec(spec)
    mesh = compat.init_device_mesh(_mesh_device_type(), spec.shape, mesh_dim_names=spec.axes)
    _register_flattened_axes(mesh, spec.flattened_axes)
    return mesh


def _mesh_device_type() -> str:
    """Return the device type of new meshes."""
    return default_device_type()


def _register_flattened_axes(
    device_mesh: DeviceMesh, flattened_axes: Mapping[MeshAxisName, tuple[MeshAxisName, ...]]
) -> None:
    """Fold axes of a root mesh into derived ones."""
    register_flattened_axes(device_mesh, {str(name): axes for name, axes in flattened_axes.items()})


def _require_size_one(strategy_name: str, size: int | None, feature_name: str) -> None:
    """Refuse a size above 1 for what a strategy does not support."""
    if _degree(size) != 1:
        raise ValueError(f"{strategy_name} does not support {feature_name}: its size is {size}; give 1 or None.")


def _unflatten_compat(flat_mesh: DeviceMesh, axis: int, sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """Split an axis, on every torch release."""
    return compat.unflatten(flat_mesh, axis, sizes, names)


def _validate_mesh_spec(spec: _MeshSpec) -> None:
    """Refuse unlike numbers of sizes and axes, sizes below 1, and folds of axes there are not."""
    Topology(spec.axes, spec.shape, {str(name): axes for name, axes in spec.flattened_axes.items()})
