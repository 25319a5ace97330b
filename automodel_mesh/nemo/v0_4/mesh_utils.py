"""The builders of meshes of NeMo AutoModel 0.4, with sizes as arguments; its `device_mesh` has the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automodel_mesh.build import build_meshes
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import plan_topologies, strategy_for

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from automodel_mesh.topology.strategies import StrategyConfig

__all__ = ["create_device_mesh"]


def create_device_mesh(
    distributed_config: StrategyConfig,
    *,
    dp_size: int | None = None,
    dp_replicate_size: int | None = None,
    tp_size: int = 1,
    pp_size: int = 1,
    cp_size: int = 1,
    ep_size: int = 1,
    world_size: int,
) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """Build the root and the expert mesh of a strategy. On every rank of the world, with the same arguments.

    Args:
        distributed_config: the configuration; a mesh with the `backend` `"gloo"` is one of CPUs.
        dp_size: data parallel size, replicas included; `None` to infer it.
        dp_replicate_size: number of replicas, `None` for 1.
        tp_size: tensor parallel size.
        pp_size: pipeline parallel size.
        cp_size: context parallel size.
        ep_size: expert parallel size.
        world_size: number of ranks.

    Returns:
        The root mesh, and (ep_shard, ep) if `ep_size` is above 1; both are `None` for DDP.

    Raises:
        ValueError: sizes that do not fit the strategy, the ranks, or each other.
        TypeError: a size that is not an int; `distributed_config` is not a strategy's configuration.
    """
    strategy = strategy_for(distributed_config)
    sizes = ParallelismSizes(
        dp_size=dp_size,
        dp_replicate_size=dp_replicate_size,
        tp_size=tp_size,
        pp_size=pp_size,
        cp_size=cp_size,
        ep_size=ep_size,
    )
    if not strategy.has_mesh:
        plan_topologies(strategy, sizes, world_size)  # for its checks
        return None, None
    device_type = "cpu" if getattr(distributed_config, "backend", None) == "gloo" else None
    return build_meshes(strategy, sizes, world_size, device_type=device_type)[:2]
