"""The names that code written for NeMo AutoModel imports from its `config`, beside the configurations themselves."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from automodel_mesh.checks import shown
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import from_dict
from automodel_mesh.multimodal_configs import _VALID_ACTIVATION_CHECKPOINTING_SCOPES, ActivationCheckpointingScope
from automodel_mesh.strategy_configs import (
    STRATEGY_MAP,
    ActivationCheckpointing,
    DDPConfig,
    DistributedStrategyConfig,
    FSDP2Config,
    MegatronFSDPConfig,
)
from automodel_mesh.topology.strategies import StrategyConfig, find_strategy, strategy_named

__all__ = [
    "_STRATEGY_MAP",
    "_VALID_ACTIVATION_CHECKPOINTING_SCOPES",
    "ActivationCheckpointingMode",
    "ActivationCheckpointingScope",
    "DistributedConfig",
    "_StrategyConfigClass",
    "_resolve_strategy_config",
]

ActivationCheckpointingMode: TypeAlias = ActivationCheckpointing
DistributedConfig: TypeAlias = DistributedStrategyConfig
_StrategyConfigClass: TypeAlias = type[FSDP2Config] | type[MegatronFSDPConfig] | type[DDPConfig]
_STRATEGY_MAP: Final = STRATEGY_MAP


def _resolve_strategy_config(strategy: str | StrategyConfig, **strategy_kwargs: Any) -> Any:
    """Return the configuration of a strategy given by name, with the given fields; a configuration as it is."""
    if isinstance(strategy, str):
        return from_dict(STRATEGY_MAP[strategy_named(strategy).name], "strategy_kwargs", strategy_kwargs)
    if find_strategy(strategy) is None:
        raise MeshArgumentError(f"strategy={shown(strategy)} is neither a name nor a configuration of a strategy")
    if strategy_kwargs:
        raise MeshArgumentError(
            f"strategy={shown(strategy)} has its options already: change them there, not by {strategy_kwargs}"
        )
    return strategy
