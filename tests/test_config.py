"""Strategies' configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from automodel_mesh import DDPConfig, FSDP2Config, MegatronFSDPConfig
from automodel_mesh.config import DistributedStrategyConfig, strategy_name
from automodel_mesh.strategies import STRATEGIES

pytestmark = pytest.mark.release_independent

CONFIGS = [(FSDP2Config, "fsdp2"), (MegatronFSDPConfig, "megatron_fsdp"), (DDPConfig, "ddp")]


@pytest.mark.parametrize(("kind", "name"), CONFIGS)
def test_each_strategy_has_its_name(kind: type[DistributedStrategyConfig], name: str) -> None:
    """A configuration is known by a name that the planner takes, and so is that of a subclass."""
    derived: Any = type("Derived", (kind,), {})
    assert strategy_name(kind()) == strategy_name(derived()) == name
    assert name in STRATEGIES


def test_every_strategy_has_a_configuration() -> None:
    """The planner has no strategy that cannot be asked for."""
    assert {name for _, name in CONFIGS} == set(STRATEGIES)


@pytest.mark.parametrize("wrong", ["fsdp2", None, FSDP2Config, object()])
def test_what_is_no_configuration_is_refused(wrong: object) -> None:
    """The error lists the classes and names what was given."""
    with pytest.raises(TypeError, match=rf"FSDP2Config, MegatronFSDPConfig, DDPConfig, got {type(wrong).__name__}"):
        strategy_name(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [kind for kind, _ in CONFIGS])
def test_configurations_are_values(kind: type[DistributedStrategyConfig]) -> None:
    """Equal configurations are equal and hash alike, and none can be changed."""
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().sequence_parallel = True  # type: ignore[misc, union-attr]


def test_sequence_parallelism_is_off_unless_asked_for() -> None:
    """FSDP2 shards activations along the sequence only on request."""
    assert not FSDP2Config().sequence_parallel
    assert FSDP2Config(sequence_parallel=True).sequence_parallel
    assert FSDP2Config(sequence_parallel=True) != FSDP2Config()
