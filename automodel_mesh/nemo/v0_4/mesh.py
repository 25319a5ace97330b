"""The names of the `mesh` module of NeMo AutoModel 0.4, with its configurations in `STRATEGY_MAP`."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from automodel_mesh.nemo.older_mesh import (
    _VALID_AXIS_NAMES,
    MeshAxisName,
    MeshContext,
    _get_axis_size,
    _optional_axis,
    _validate_distributed_setup,
    _validate_mesh_dim_names,
)
from automodel_mesh.nemo.v0_4.config import DDPConfig, FSDP2Config, MegatronFSDPConfig

__all__ = [
    "STRATEGY_MAP",
    "_VALID_AXIS_NAMES",
    "MeshAxisName",
    "MeshContext",
    "_get_axis_size",
    "_optional_axis",
    "_validate_distributed_setup",
    "_validate_mesh_dim_names",
]

STRATEGY_MAP: Final = MappingProxyType({"fsdp2": FSDP2Config, "megatron_fsdp": MegatronFSDPConfig, "ddp": DDPConfig})
"""The configuration's class for the name of a strategy."""
