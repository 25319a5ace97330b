"""One `DeviceMesh` API with one meaning on every PyTorch release from 2.6 on, and a framework's mesh layer on top.

The names are imported when they are first used, so that `automodel-mesh --version` does not wait for torch, and an
unsupported torch is reported by the command instead of breaking it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automodel_mesh.config import *  # noqa: F403 - `__all__` below says which names are public here
    from automodel_mesh.init_utils import *  # noqa: F403
    from automodel_mesh.loaders import *  # noqa: F403
    from automodel_mesh.mesh import *  # noqa: F403
    from automodel_mesh.mesh_utils import *  # noqa: F403
    from automodel_mesh.nemo.replacement import *  # noqa: F403

__all__ = [  # noqa: F405 - from the stars above
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
    "replace_nemo_automodel",
    "resolve_distributed_setup",
]

_HOMES = (
    "automodel_mesh.nemo.replacement",  # first, as it needs no torch
    "automodel_mesh.config",
    "automodel_mesh.init_utils",
    "automodel_mesh.loaders",
    "automodel_mesh.mesh",
    "automodel_mesh.mesh_utils",
)


def _find(name: str) -> object:
    if name in __all__:
        for home in map(import_module, _HOMES):
            if name in home.__all__:
                value: object = getattr(home, name)
                globals()[name] = value  # so that the next use finds it here
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Hidden from type checkers, so that they still find names that do not exist.
if not TYPE_CHECKING:
    __getattr__ = _find

if _level := os.environ.get("AUTOMODEL_MESH_LOG"):
    import_module("automodel_mesh.logs").print_logs(_level)
