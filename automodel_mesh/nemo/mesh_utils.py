"""The underscored functions that code written for NeMo AutoModel imports from its `mesh_utils`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automodel_mesh import compat
from automodel_mesh.build import build_meshes, build_moe_mesh, default_device_type, register_flattened_axes
from automodel_mesh.checks import check_size
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.strategy_configs import FSDP2Config, MegatronFSDPConfig
from automodel_mesh.topology.axis_names import MeshAxisName
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.sizes import ParallelismSizes, infer_dp_size
from automodel_mesh.topology.strategies import StrategyConfig, plan_topologies, strategy_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "_MeshSpec",
    "_create_device_meshes",
    "_create_fsdp2_device_mesh",
    "_create_megatron_fsdp_device_mesh",
    "_create_moe_mesh",
    "_degree",
    "_infer_dp_size",
    "_init_named_mesh",
    "_mesh_device_type",
    "_register_flattened_axes",
    "_require_size_one",
    "_unflatten_compat",
    "_validate_mesh_spec",
]


@dataclass(frozen=True)
class _MeshSpec:
    """Shape and axes of a mesh, and its flattened axes."""

    shape: tuple[int, ...]
    axes: tuple[MeshAxisName, ...]
    flattened_axes: Mapping[MeshAxisName, tuple[MeshAxisName, ...]] = field(default_factory=dict)


def _create_device_meshes(
    strategy_config: StrategyConfig, parallelism: ParallelismSizes, world_size: int
) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """Build the root and the expert mesh of a strategy; both are `None` for DDP."""
    strategy = strategy_for(strategy_config)
    if strategy.has_mesh:
        return build_meshes(strategy, parallelism, world_size)[:2]
    plan_topologies(strategy, parallelism, world_size)  # for its checks
    return None, None


def _create_fsdp2_device_mesh(parallelism: ParallelismSizes, world_size: int) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Build the root mesh of FSDP2, and its expert mesh if `ep_size` is above 1."""
    return build_meshes(FSDP2Config.strategy, parallelism, world_size)[:2]


def _create_megatron_fsdp_device_mesh(parallelism: ParallelismSizes, world_size: int) -> DeviceMesh:
    """Build the mesh of Megatron-FSDP."""
    return build_meshes(MegatronFSDPConfig.strategy, parallelism, world_size).root


def _create_moe_mesh(device_mesh: DeviceMesh, ep_shard_size: int, ep_size: int) -> DeviceMesh:
    """Build the mesh (ep_shard, ep) of the ranks of a pipeline stage."""
    mesh = build_moe_mesh(device_mesh, strategy_for(FSDP2Config()).expert_axes, (ep_shard_size, ep_size))
    if mesh is None:
        raise compat.RankNotInMeshError(
            f"this rank is not in {shown_mesh(device_mesh)}, so it has no expert mesh of it"
        )
    return mesh


def _degree(value: int | None) -> int:
    """Return a size, 1 for `None`."""
    check_size("size", value, optional=True)
    return 1 if value is None else value


def _infer_dp_size(
    dp_size: int | None, world_size: int, non_dp_size: int, expression: str, factors: tuple[int, ...]
) -> int:
    """Return the data parallel size that fills the world; `expression` is the names of the factors, with ` * `."""
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
    """Refuse a size above 1 for a feature that a strategy does not support."""
    if _degree(size) != 1:
        raise MeshArgumentError(f"{strategy_name} does not support {feature_name}: its size is {size}; give 1 or None.")


def _unflatten_compat(flat_mesh: DeviceMesh, axis: int, sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """Split an axis, on every torch release."""
    return compat.unflatten(flat_mesh, axis, sizes, names)


def _validate_mesh_spec(spec: _MeshSpec) -> None:
    """Refuse different numbers of sizes and axes, sizes below 1, and flattened axes of unknown axes."""
    Topology(spec.axes, spec.shape, {str(name): axes for name, axes in spec.flattened_axes.items()})
