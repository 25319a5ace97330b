"""The configurations of NeMo AutoModel 0.4: with a `backend`, and with other defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from automodel_mesh import strategy_configs

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

__all__ = ["DDPConfig", "DistributedConfig", "FSDP2Config", "MegatronFSDPConfig"]

_MP_POLICY: Any = strategy_configs.MixedPrecisionField(
    param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16, output_dtype=torch.bfloat16
)


@dataclass
class FSDP2Config(strategy_configs.FSDP2Config):
    """The current `FSDP2Config`, but that gradients and outputs are in bfloat16 too."""

    mp_policy: MixedPrecisionPolicy | None = _MP_POLICY
    """The `torch.distributed.fsdp.MixedPrecisionPolicy` for `fully_shard`. By default, and for `None`, everything is in
    bfloat16."""

    backend: str = "nccl"
    """The backend of the default process group. By default `"nccl"`; with `"gloo"` the mesh is one of CPUs."""


@dataclass
class MegatronFSDPConfig(strategy_configs.MegatronFSDPConfig):
    """The current `MegatronFSDPConfig`, with a `backend`."""

    backend: str = "nccl"
    """As in `FSDP2Config`. By default `"nccl"`."""


@dataclass
class DDPConfig(strategy_configs.DDPConfig):
    """The current `DDPConfig`, with a `backend`."""

    broadcast_buffers: bool = True
    """Whether the first rank sends its buffers at each forward pass. By default `True`."""

    backend: str = "nccl"
    """As in `FSDP2Config`. By default `"nccl"`."""


DistributedConfig: TypeAlias = FSDP2Config | MegatronFSDPConfig | DDPConfig
"""The configuration of any built-in strategy."""
