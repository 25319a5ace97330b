"""What a user asks for: the strategy that shards or replicates a model."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class FSDP2Config:
    """Fully sharded data parallelism by `fully_shard`, with any mix of the other axes."""

    sequence_parallel: bool = False
    """Whether tensor parallel layers shard their activations along the sequence too."""


@dataclass(frozen=True)
class MegatronFSDPConfig:
    """Megatron-FSDP: one data parallel axis, with context and tensor parallelism."""


@dataclass(frozen=True)
class DDPConfig:
    """`DistributedDataParallel`: every rank holds the whole model."""


DistributedStrategyConfig: TypeAlias = FSDP2Config | MegatronFSDPConfig | DDPConfig
"""Any strategy's configuration."""

_NAMES: Final[Mapping[type, str]] = MappingProxyType(
    {FSDP2Config: "fsdp2", MegatronFSDPConfig: "megatron_fsdp", DDPConfig: "ddp"}
)


def strategy_name(config: DistributedStrategyConfig) -> str:
    """Return the name under which `topology` knows a strategy.

    Args:
        config: an instance of one of the strategies' classes, or of a subclass.

    Returns:
        `"fsdp2"`, `"megatron_fsdp"` or `"ddp"`.

    Raises:
        TypeError: `config` is none of them; the message lists what is.
    """
    for kind, name in _NAMES.items():
        if isinstance(config, kind):
            return name
    raise TypeError(
        f"a strategy is an instance of {', '.join(kind.__name__ for kind in _NAMES)}, got "
        f"{type(config).__name__}: {config!r}"
    )
