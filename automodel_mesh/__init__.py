"""One `DeviceMesh` API with one meaning on every PyTorch release from 2.6 on, and a framework's mesh layer on top.

The names are imported when they are first used, so that `automodel-mesh --version` does not wait for torch, and an
unsupported torch is reported by the command instead of breaking it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automodel_mesh.config import (
        STRATEGY_MAP,
        DDPConfig,
        DistributedSetup,
        DistributedStrategyConfig,
        FSDP2Config,
        MegatronFSDPConfig,
        MoEParallelizerConfig,
        PipelineConfig,
    )
    from automodel_mesh.init_utils import DistInfo, initialize_distributed
    from automodel_mesh.loaders import accepts_distributed_setup, resolve_distributed_setup
    from automodel_mesh.mesh import MeshAxisName, MeshContext, ParallelismSizes
    from automodel_mesh.mesh_utils import create_ring_ulysses_mesh, get_flat_mesh, get_fsdp_dp_mesh, get_submesh

__all__ = [
    "STRATEGY_MAP",
    "DDPConfig",
    "DistInfo",
    "DistributedSetup",
    "DistributedStrategyConfig",
    "FSDP2Config",
    "MegatronFSDPConfig",
    "MeshAxisName",
    "MeshContext",
    "MoEParallelizerConfig",
    "ParallelismSizes",
    "PipelineConfig",
    "accepts_distributed_setup",
    "create_ring_ulysses_mesh",
    "get_flat_mesh",
    "get_fsdp_dp_mesh",
    "get_submesh",
    "initialize_distributed",
    "resolve_distributed_setup",
]

_HOMES = {
    "automodel_mesh.config": (
        "STRATEGY_MAP",
        "DDPConfig",
        "DistributedSetup",
        "DistributedStrategyConfig",
        "FSDP2Config",
        "MegatronFSDPConfig",
        "MoEParallelizerConfig",
        "PipelineConfig",
    ),
    "automodel_mesh.init_utils": ("DistInfo", "initialize_distributed"),
    "automodel_mesh.loaders": ("accepts_distributed_setup", "resolve_distributed_setup"),
    "automodel_mesh.mesh": ("MeshAxisName", "MeshContext", "ParallelismSizes"),
    "automodel_mesh.mesh_utils": ("create_ring_ulysses_mesh", "get_flat_mesh", "get_fsdp_dp_mesh", "get_submesh"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value  # found here from now on, at the price of any global name
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
