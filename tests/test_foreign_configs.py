"""Configurations of another package, with the names and fields of ours, and the settings that a context carries."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch.distributed as dist

from automodel_mesh import DistributedSetup, MeshContext, ParallelismSizes, compat, mesh_utils
from automodel_mesh.compat import worlds
from automodel_mesh.config import (
    DDPConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    MoEParallelizerConfig,
    MultimodalDistributedConfig,
    PipelineConfig,
)
from automodel_mesh.fields import is_config
from automodel_mesh.testing import fake_world

# --- configurations of another package


def foreign(kind: type[Any], *, without: tuple[str, ...] = (), **more: object) -> type[Any]:
    """Return a dataclass of the same name and fields, such as another package has; some left out, some added."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in without]
    plain = kind()
    values: dict[str, object] = {name: getattr(plain, name) for name in names} | more
    fields = [(name, Any, _with_default(value)) for name, value in values.items()]
    return dataclasses.make_dataclass(kind.__name__, fields)


def _with_default(value: object) -> Any:
    if value.__hash__ is None:  # of a configuration inside
        return dataclasses.field(default_factory=lambda: value)
    return dataclasses.field(default=value)


STRATEGIES = [FSDP2Config, MegatronFSDPConfig, DDPConfig]
OTHERS = [PipelineConfig, MoEParallelizerConfig, ParallelismSizes, MultimodalDistributedConfig]


@pytest.mark.release_independent
@pytest.mark.parametrize("kind", [*STRATEGIES, *OTHERS])
def test_a_configuration_is_recognised_by_its_name_and_fields(kind: type[Any]) -> None:
    """With the same fields, fewer or more, and as a subclass; not with other fields, another name, or no fields."""
    one = dataclasses.fields(kind)[0].name
    for same in (foreign(kind), foreign(kind, without=(one,)), foreign(kind, added=3)):
        assert is_config(kind, same())
        assert is_config(kind, type("Derived", (same,), {})())
    other = foreign(kind, without=(one,), added=3)
    unnamed = type("Other", (), dict(vars(foreign(kind))))
    plain = type(kind.__name__, (), {one: None})
    empty = dataclasses.make_dataclass(kind.__name__, [])
    wrong: list[object] = [other(), unnamed(), plain(), empty(), foreign(kind), None, {}]
    for value in wrong:
        assert not is_config(kind, value)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_strategy_of_another_package_is_kept_as_it_is(kind: type[Any]) -> None:
    """The setup and its context have the given object, and its activation checkpointing applies."""
    with fake_world(8):
        for same in (foreign(kind), foreign(kind, without=("activation_checkpointing_scope",)), foreign(kind, more=1)):
            for derived in (same, type("Derived", (same,), {})):
                config = derived()
                config.activation_checkpointing = "full"
                with DistributedSetup.build(config) as setup:
                    assert setup.strategy_config is config
                    assert setup.mesh_context.strategy_config is config
                    assert setup.activation_checkpointing is setup.mesh_context.activation_checkpointing is True


def test_the_other_settings_of_another_package_are_kept_as_they_are() -> None:
    """Sizes, the pipeline's settings and those for experts are the given objects."""
    sizes = foreign(ParallelismSizes)()
    sizes.pp_size = sizes.ep_size = 2
    pipeline, moe = foreign(PipelineConfig)(), foreign(MoEParallelizerConfig)()
    with fake_world(8), DistributedSetup.build("fsdp2", sizes, pipeline, moe) as setup:
        assert setup.parallelism_sizes is sizes
        assert setup.pipeline_config is pipeline
        assert setup.moe_parallel_config is setup.mesh_context.moe_parallel_config is moe
        assert (setup.mesh_context.pp_size, setup.mesh_context.ep_size) == (2, 2)


CHANGED: list[tuple[str, type[Any], str, object, type[Exception], str]] = [
    (
        "strategy",
        FSDP2Config,
        "sequence_parallel",
        1,
        TypeError,
        "sequence_parallel=1 is of type int: give True or Fals",
    ),
    ("strategy", FSDP2Config, "reshard_after_forward", 0, ValueError, "reshard_after_forward=0 is less than 1"),
    ("strategy", DDPConfig, "bucket_cap_mb", -1, ValueError, "bucket_cap_mb=-1 is not above 0"),
    ("strategy", MegatronFSDPConfig, "zero_dp_strategy", 4, ValueError, "zero_dp_strategy=4 is not known"),
    ("pipeline_config", PipelineConfig, "pp_schedule", "gpip", ValueError, "did you mean 'gpipe'"),
    ("moe_parallel_config", MoEParallelizerConfig, "wrap_outer_model", None, TypeError, "wrap_outer_model=None"),
    ("parallelism_sizes", ParallelismSizes, "tp_size", 0, ValueError, "tp_size=0 is less than 1"),
    ("parallelism_sizes", ParallelismSizes, "cp_size", None, TypeError, "cp_size=None is of type NoneType"),
]


@pytest.mark.parametrize(("argument", "kind", "name", "value", "error", "message"), CHANGED)
def test_a_changed_configuration_is_checked_when_it_is_used(  # noqa: PLR0917 - parameters of pytest
    argument: str, kind: type[Any], name: str, value: object, error: type[Exception], message: str
) -> None:
    """One of ours and one of another package: the error is the same, and no process group has been made."""
    with fake_world(8):
        for same in (kind, foreign(kind)):
            config = same()
            object.__setattr__(config, name, value)  # sizes are frozen
            asked = {"parallelism_sizes": ParallelismSizes(pp_size=2, ep_size=2)}
            arguments: dict[str, Any] = ({} if argument == "strategy" else asked) | {argument: config}
            before = worlds.live_process_groups()
            with pytest.raises(error, match=message):
                DistributedSetup.build(**arguments)
            assert worlds.live_process_groups() == before
            if argument == "strategy":
                with pytest.raises(error, match=message):
                    MeshContext.build(config)
                with pytest.raises(error, match=message):
                    DistributedSetup(strategy_config=config)


# --- the settings of a context


def keep(model: object) -> None:
    """Do nothing with the model."""


SETTINGS: dict[str, Any] = {
    "moe_parallel_config": MoEParallelizerConfig(),
    "activation_checkpointing": "selective",
    "reapply_trainability": keep,
    "cp_ring_degree": 2,
    "cp_ulysses_degree": 1,
}


def test_a_context_carries_its_settings() -> None:
    """`build`, `from_meshes` and the class itself take them; without them they are `None`, `False`, 1 and `None`."""
    config = FSDP2Config()
    with fake_world(8):
        built = MeshContext.build(config, ParallelismSizes(cp_size=2), **SETTINGS)
        wrapped = MeshContext.from_meshes(built.device_mesh, strategy_config=config, **SETTINGS)
        positional = MeshContext(built.device_mesh, None, None, config, *SETTINGS.values())
        for context in (built, wrapped, positional):
            assert context.strategy_config is config
            for name, value in SETTINGS.items():
                assert getattr(context, name) is value
        assert built == wrapped == positional
        plain = MeshContext.build(config)
        assert plain.strategy_config is config
        assert [getattr(plain, name) for name in SETTINGS] == [None, False, None, 1, None]
        assert [getattr(MeshContext(), name) for name in SETTINGS] == [None, False, None, 1, None]
        with pytest.raises(ValueError, match="cp_ring_degree=0 is less than 1"):
            MeshContext.build(config, cp_ring_degree=0)
        with pytest.raises(TypeError, match="cp_ulysses_degree=2.0 is of type float"):
            MeshContext.from_meshes(None, cp_ulysses_degree=2.0)  # type: ignore[arg-type]


def test_a_replaced_context_has_the_groups_and_closes_none() -> None:
    """A copy with other settings, or with another mesh, leaves the groups to the original."""
    with fake_world(8):
        before = worlds.live_process_groups()
        other = compat.init_device_mesh("cpu", (8,), mesh_dim_names=("tp",))
        for config in (FSDP2Config(), DDPConfig()):
            built = MeshContext.build(config, timeout_minutes=3)
            groups = worlds.live_process_groups()
            copy = dataclasses.replace(built, strategy_config=None, activation_checkpointing=True)
            assert copy.process_group is built.process_group
            assert copy.device_mesh is None or copy.process_groups() == built.process_groups() != []
            copy.close()
            dataclasses.replace(built, device_mesh=other).close()
            assert worlds.live_process_groups() == groups
            built.close()
        assert worlds.live_process_groups() == before


def test_a_setup_gives_its_settings_to_its_context() -> None:
    """Of a setup with settings, the context is one of the same meshes with these; without any it is the given one."""
    with fake_world(8):
        context = MeshContext.build(FSDP2Config(), ParallelismSizes(ep_size=2))
        moe, config = MoEParallelizerConfig(), FSDP2Config(activation_checkpointing="selective")
        setup = DistributedSetup(context, config, None, moe)
        assert setup.mesh_context is not context
        assert setup.mesh_context.device_mesh is context.device_mesh
        assert setup.mesh_context.strategy_config is config
        assert setup.mesh_context.moe_parallel_config is moe
        assert setup.mesh_context.activation_checkpointing == "selective"
        assert context.activation_checkpointing is False
        assert DistributedSetup(context).mesh_context is context
        assert DistributedSetup(setup.mesh_context, config, None, moe).mesh_context is setup.mesh_context
        before = worlds.live_process_groups()
        setup.close()
        assert len(worlds.live_process_groups()) < len(before)


@pytest.mark.release_independent
def test_ddp_without_a_launcher_needs_no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a single process there is neither mesh nor process group, nothing is initialised, and sizes are checked."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with DistributedSetup.build("ddp") as setup:
        assert setup.device_mesh is None
        assert setup.mesh_context.process_group is None
        assert isinstance(setup.mesh_context.strategy_config, DDPConfig)
    with pytest.raises(ValueError, match="dp_size=2 does not fit"):
        DistributedSetup.build("ddp", ParallelismSizes(dp_size=2))
    assert not dist.is_initialized()


def test_the_ring_mesh_is_made_of_the_context_parallel_axis() -> None:
    """`create_ring_ulysses_mesh` takes the mesh by the name that NeMo AutoModel has for it."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(cp_size=4)) as context:
        assert context.device_mesh is not None
        split = mesh_utils.create_ring_ulysses_mesh(device_mesh=context.device_mesh, ring_degree=2, ulysses_degree=2)
        assert (split.mesh_dim_names, split.shape) == (("ring", "ulysses"), (2, 2))
