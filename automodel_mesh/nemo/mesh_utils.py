"""The underscored functions that code written for NeMo AutoModel imports from its `mesh_utils`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from automodel_mesh import compat
from automodel_mesh.build import build_meshes, build_moe_mesh, default_device_type, register_flattened_axes
from automodel_mesh.checks import check_size, timeout_of_minutes
from automodel_mesh.compat.groups import GroupSpec
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.strategy_configs import FSDP2Config, MegatronFSDPConfig
from automodel_mesh.topology.axis_names import MeshAxisName
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.records import EXPERT_MESH_AXES
from automodel_mesh.topology.sizes import ParallelismSizes, infer_dp_size
from automodel_mesh.topology.strategies import STRATEGIES, StrategyConfig, plan_topologies, strategy_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    strategy_config: StrategyConfig,
    parallelism: ParallelismSizes,
    world_size: int,
    timeout_minutes: float | None = None,
    ranks: Sequence[int] | None = None,
) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """Build the root and the expert mesh of a strategy; both are `None` for DDP."""
    strategy = strategy_for(strategy_config)
    if not strategy.has_mesh:
        plan_topologies(strategy, parallelism, world_size, ranks=ranks)  # for its checks
        return None, None
    timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
    return build_meshes(strategy, parallelism, world_size, ranks=ranks, timeout=timeout)[:2]


def _create_fsdp2_device_mesh(
    parallelism: ParallelismSizes,
    world_size: int,
    timeout_minutes: float | None = None,
    ranks: Sequence[int] | None = None,
) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Build the root mesh of FSDP2, and its expert mesh if `ep_size` is above 1."""
    timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
    return build_meshes(FSDP2Config.strategy, parallelism, world_size, ranks=ranks, timeout=timeout)[:2]


def _create_megatron_fsdp_device_mesh(
    parallelism: ParallelismSizes,
    world_size: int,
    timeout_minutes: float | None = None,
    ranks: Sequence[int] | None = None,
) -> DeviceMesh:
    """Build the mesh of Megatron-FSDP."""
    timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
    return build_meshes(MegatronFSDPConfig.strategy, parallelism, world_size, ranks=ranks, timeout=timeout).root


def _create_moe_mesh(  # noqa: PLR0917 - the arguments of NeMo AutoModel, and those of its earlier versions by position
    device_mesh: DeviceMesh,
    ep_shard_size: int,
    ep_size: int,
    pp_size: int = 1,
    timeout_minutes: float | None = None,
    ranks: Sequence[int] | None = None,
) -> DeviceMesh:
    """Build the mesh (ep_shard, ep) of the ranks of a pipeline stage; `device_mesh` has the stages and the ranks."""
    del pp_size, ranks
    chosen = _timeouts(EXPERT_MESH_AXES, timeout_minutes)
    mesh = build_moe_mesh(device_mesh, STRATEGIES["fsdp2"].expert_axes, (ep_shard_size, ep_size), chosen)
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


def _init_named_mesh(
    spec: _MeshSpec, *, timeout_minutes: float | None = None, ranks: Sequence[int] | None = None
) -> DeviceMesh:
    """Build a mesh and its flattened axes."""
    _validate_mesh_spec(spec)
    timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
    mesh = compat.init_device_mesh(
        _mesh_device_type(), spec.shape, mesh_dim_names=spec.axes, ranks=ranks, timeout=timeout
    )
    _register_flattened_axes(mesh, spec.flattened_axes)
    return mesh


def _mesh_device_type() -> str:
    """Return the device type of new meshes."""
    return default_device_type()


def _register_flattened_axes(
    device_mesh: DeviceMesh,
    flattened_axes: Mapping[MeshAxisName, tuple[MeshAxisName, ...]],
    *,
    timeout_minutes: float | None = None,
) -> None:
    """Fold axes of a root mesh into derived ones; by default their groups have the timeout that the mesh was given."""
    derived = {str(name): axes for name, axes in flattened_axes.items()}
    register_flattened_axes(device_mesh, derived, _timeouts(derived, timeout_minutes))


def _require_size_one(strategy_name: str, size: int | None, feature_name: str) -> None:
    """Refuse a size above 1 for a feature that a strategy does not support."""
    if _degree(size) != 1:
        raise MeshArgumentError(f"{strategy_name} does not support {feature_name}: its size is {size}; give 1 or None.")


def _unflatten_compat(
    flat_mesh: DeviceMesh,
    axis: int,
    sizes: tuple[int, ...],
    names: tuple[str, ...],
    *,
    timeout_minutes: float | None = None,
) -> DeviceMesh:
    """Split an axis, on every torch release."""
    return compat.unflatten(flat_mesh, axis, sizes, names, backend_override=_timeouts(names, timeout_minutes))


def _timeouts(axes: Iterable[str], minutes: float | None) -> dict[Any, GroupSpec]:
    """Return what to ask of the process groups of some axes, so that they have a timeout."""
    timeout = timeout_of_minutes("timeout_minutes", minutes)
    return {} if timeout is None else {str(axis): GroupSpec(timeout=timeout) for axis in axes}


def _validate_mesh_spec(spec: _MeshSpec) -> None:
    """Refuse different numbers of sizes and axes, sizes below 1, and flattened axes of unknown axes."""
    Topology(spec.axes, spec.shape, {str(name): axes for name, axes in spec.flattened_axes.items()})
