"""Wrong input to the configurations and to `build`: unknown keywords, falsy and long values; which errors they are."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch.distributed as dist

from automodel_mesh import (
    STRATEGY_MAP,
    DDPConfig,
    DistributedSetup,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshContext,
    MoEParallelizerConfig,
    ParallelismSizes,
    PipelineConfig,
    compat,
)
from automodel_mesh.compat import worlds
from automodel_mesh.errors import MeshArgumentError, MeshTypeError, UnknownAxisError
from automodel_mesh.loaders import resolve_distributed_setup
from automodel_mesh.testing import fake_world, leak_check
from automodel_mesh.topology.strategies import STRATEGIES, Strategy, plan_topologies, strategy_for

CLASSES: tuple[type[Any], ...] = (
    ParallelismSizes,
    FSDP2Config,
    MegatronFSDPConfig,
    DDPConfig,
    PipelineConfig,
    MoEParallelizerConfig,
    DistributedSetup,
    MeshContext,
)

FROZEN = (ParallelismSizes, DistributedSetup)  # the others can be changed

MISTYPED: dict[str, tuple[Callable[..., object], list[str], str]] = {
    "sizes": (
        ParallelismSizes,
        ["dp_shard_size"],
        "^ParallelismSizes takes no keyword 'dp_shard_size'.*dp_replicate",
    ),
    "fsdp2": (FSDP2Config, ["sequence_paralel"], "'sequence_paralel' .did you mean 'sequence_parallel'"),
    "megatron": (MegatronFSDPConfig, ["zero_strategy"], "did you mean 'zero_dp_strategy'"),
    "ddp": (DDPConfig, ["bucket_cap"], "did you mean 'bucket_cap_mb'"),
    "pipeline": (PipelineConfig, ["schedule"], "did you mean 'pp_schedule'"),
    "experts": (MoEParallelizerConfig, ["mp_polcy"], "did you mean 'mp_policy'"),
    "setup": (DistributedSetup, ["strategy"], "did you mean 'strategy_config'"),
    "context": (
        MeshContext,
        ["device"],
        "^MeshContext takes no .*'device' .did you mean 'device_mesh'.*moe_mesh",
    ),
    "record": (Strategy, ["axis"], "did you mean 'axes'"),
    "context.build": (
        MeshContext.build,
        ["timeout"],
        r"^MeshContext\.build .* .did you mean 'timeout_minutes'",
    ),
    "setup.build": (DistributedSetup.build, ["parallelism"], "did you mean 'parallelism_sizes'"),
    "replace": (functools.partial(dataclasses.replace, FSDP2Config()), ["tp_plans"], "did you mean 'tp_plan'"),
    "two": (ParallelismSizes, ["tp", "cp"], "'tp' .did you mean 'tp_size'.., 'cp' .did you mean 'cp_size'"),
}


@pytest.mark.release_independent
@pytest.mark.parametrize("name", MISTYPED)
def test_an_unknown_keyword_is_refused_with_the_one_that_was_meant(name: str) -> None:
    """Each configuration and each `build` names the nearest keyword, on every Python, and no cause but that."""
    call, mistyped, message = MISTYPED[name]
    with pytest.raises(MeshTypeError, match=message) as caught:
        call(**dict.fromkeys(mistyped))
    assert caught.value.__suppress_context__


@pytest.mark.release_independent
def test_errors_of_known_keywords_are_passed_on() -> None:
    """A missing argument, one too many, and an error raised by a check inside stay as they are."""
    wrong: Any = ParallelismSizes
    with pytest.raises(TypeError, match="positional"):
        wrong(2)
    with pytest.raises(TypeError, match="missing"):
        Strategy()  # type: ignore[call-arg]
    with pytest.raises(MeshTypeError, match="^tp_size='2' is of type str"):
        wrong(tp_size="2")


@pytest.mark.release_independent
@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_that_suggests_keywords_is_a_dataclass_as_ever(kind: type[Any]) -> None:
    """Its signature has its fields; it can be pickled, copied and replaced, and subclassed as a dataclass."""
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    assert [name for name in inspect.signature(kind).parameters if name != "process_group"] == known
    made = kind()
    assert made == dataclasses.replace(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made))
    fresh = dataclasses.make_dataclass("Fresh", [("extra", int, 1)], bases=(kind,), frozen=kind in FROZEN, kw_only=True)
    assert fresh(extra=2).extra == 2
    with pytest.raises(TypeError, match="extr"):
        fresh(extr=2)


@pytest.mark.release_independent
def test_build_shows_its_own_parameters() -> None:
    """The signatures of the two `build` have their parameters, and their docstrings are kept."""
    assert "timeout_minutes" in inspect.signature(MeshContext.build).parameters
    assert "timeout_minutes" in inspect.signature(DistributedSetup.build).parameters
    assert (MeshContext.build.__doc__ or "").startswith("Build the meshes of a strategy.")


# --- falsy values


@pytest.mark.parametrize("wrong", [0, False, "", 0.0, (), [], b"", set[str]()])
@pytest.mark.parametrize("argument", ["backend_override", "parallelism_sizes", "separate_groups"])
def test_a_falsy_value_is_not_read_as_the_default(argument: str, wrong: Any) -> None:
    """Of falsy values an empty list of names is one, and `None`; others are refused, and no group is made."""
    with fake_world(8), leak_check():
        before = worlds.live_process_groups()
        arguments = {argument: wrong}
        if argument == "separate_groups" and wrong in ((), []):
            MeshContext.build(FSDP2Config(), **arguments).close()
            return
        with pytest.raises((MeshTypeError, MeshArgumentError), match="sizes=" if "sizes" in argument else argument):
            MeshContext.build(FSDP2Config(), **arguments)
        assert worlds.live_process_groups() == before


def test_no_choice_of_groups_is_the_default() -> None:
    """`None` and an empty dictionary ask for nothing."""
    nothing: Any
    for nothing in (None, {}):
        with fake_world(8), MeshContext.build(FSDP2Config(), backend_override=nothing, separate_groups=None) as context:
            assert context.dp_size == 8


@pytest.mark.parametrize("wrong", [{"tp_size": 2}, 5, "tp_size=2", FSDP2Config(), [2]])
def test_sizes_that_are_no_sizes_are_refused(wrong: Any) -> None:
    """An object that has none of the sizes, such as a dictionary, is not taken for the default sizes."""
    with fake_world(8):
        with pytest.raises(MeshTypeError, match=r"sizes=.* give ParallelismSizes, such as"):
            MeshContext.build(FSDP2Config(), wrong)
        with pytest.raises(MeshTypeError, match="sizes="):
            plan_topologies("fsdp2", wrong, 8)


@pytest.mark.parametrize("wrong", [{"tp", "dp"}, {"tp": 1}.keys(), iter(["tp"]), 3, ("tp", "tp"), ("tp", "")])
def test_separate_groups_are_a_list_of_names(wrong: Any) -> None:
    """Sets, views and iterators are refused: their order differs between ranks, or they can be read only once."""
    with fake_world(8), pytest.raises((MeshTypeError, MeshArgumentError), match="separate_groups"):
        MeshContext.build(FSDP2Config(), separate_groups=wrong)


def test_the_nearest_axis_is_offered_where_groups_are_chosen() -> None:
    """An axis that does not exist is a `KeyError` with the axis that was probably meant."""
    with fake_world(8):
        with pytest.raises(UnknownAxisError, match=r"backend_override names 'dp_pc' \(did you mean 'dp_cp'\?\)"):
            MeshContext.build(FSDP2Config(), backend_override={"dp_pc": "fake"})
        with pytest.raises(UnknownAxisError, match=r"separate_groups names 'dp_shrd' \(did you mean 'dp_shard'\?\)"):
            MeshContext.build(FSDP2Config(), separate_groups=["dp_shrd"])


# --- messages


LONG = "x" * 10_000


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: FSDP2Config(sequence_parallel=LONG).check(),  # type: ignore[arg-type]
        lambda: FSDP2Config(tp_plan={1: LONG, LONG: 1}).check(),  # type: ignore[dict-item]
        lambda: FSDP2Config(activation_checkpointing=LONG).check(),  # type: ignore[arg-type]
        lambda: FSDP2Config(reshard_after_forward=LONG).check(),  # type: ignore[arg-type]
        lambda: FSDP2Config(**{LONG: 1}),  # type: ignore[arg-type]
        lambda: MegatronFSDPConfig(zero_dp_strategy=LONG).check(),
        lambda: DDPConfig(bucket_cap_mb=LONG).check(),  # type: ignore[arg-type]
        lambda: PipelineConfig(pp_schedule=LONG).check(),
        lambda: PipelineConfig(dtype=LONG).check(),
        lambda: ParallelismSizes(tp_size=LONG),  # type: ignore[arg-type]
        lambda: MoEParallelizerConfig(wrap_outer_model=LONG).check(),  # type: ignore[arg-type]
        lambda: DistributedSetup(strategy_config=LONG),  # type: ignore[arg-type]
        lambda: DistributedSetup.build(LONG),
        lambda: DistributedSetup.build(pipeline_config={LONG: 1}),
        lambda: DistributedSetup.build(moe_parallel_config=LONG),  # type: ignore[arg-type]
        lambda: MeshContext.build(LONG),  # type: ignore[arg-type]
        lambda: MeshContext.build(FSDP2Config(), LONG),  # type: ignore[arg-type]
        lambda: MeshContext.build(FSDP2Config(), backend_override={LONG: "fake"}),
        lambda: MeshContext.build(FSDP2Config(), separate_groups=[LONG]),
        lambda: resolve_distributed_setup(LONG),  # type: ignore[arg-type]
        lambda: strategy_for(LONG),  # type: ignore[arg-type]
        lambda: Strategy(name="x", config=LONG, axes={"dp": "dp_size"}),
        lambda: Strategy(name="x", config="a:B", axes={"dp": LONG}),
        lambda: plan_topologies("fsdp2", ParallelismSizes(), 8).root.size(LONG),
        lambda: plan_topologies("fsdp2", ParallelismSizes(), 8).root.groups(LONG),
        lambda: compat.torch_at_least(LONG),
    ],
)
def test_messages_are_short_however_long_the_value_is(mistake: Callable[[], object]) -> None:
    """An error of a configuration, a setup, a strategy or `build` is the library's own, of some 2,000 characters."""
    with fake_world(8):
        with pytest.raises((MeshTypeError, MeshArgumentError)) as caught:
            mistake()
        assert 20 < len(str(caught.value)) <= 2100


class Unprintable:
    """A value that cannot be printed, as a mesh whose world is gone."""

    def __repr__(self) -> str:
        raise RuntimeError("no world")


def test_values_that_cannot_be_printed_are_refused_all_the_same() -> None:
    """The error names the argument and the type of the value."""
    wrong: Any = Unprintable()
    mistakes: Mapping[str, Callable[[], object]] = {
        "sequence_parallel": lambda: FSDP2Config(sequence_parallel=wrong).check(),
        "tp_size": lambda: ParallelismSizes(tp_size=wrong),
        "strategy_config": lambda: strategy_for(wrong),
        "mesh_context": lambda: DistributedSetup(mesh_context=wrong),
        "distributed_setup": lambda: resolve_distributed_setup(wrong),
        "pp_schedule": lambda: PipelineConfig(pp_schedule=wrong).check(),
    }
    for argument, mistake in mistakes.items():
        with pytest.raises(MeshTypeError, match=rf"{argument}=<Unprintable> is of type Unprintable"):
            mistake()


def test_a_setup_whose_world_is_gone_can_be_named_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `TORCH_DISTRIBUTED_DEBUG=DETAIL`, where torch's repr of a mesh asks the world, errors are ours."""
    with fake_world(8):
        setup = DistributedSetup.build("fsdp2", ParallelismSizes(tp_size=2))
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    wrong: Any = setup.device_mesh
    with pytest.raises(MeshArgumentError, match=r"both distributed_setup= and device_mesh=DeviceMesh\(pp=1"):
        resolve_distributed_setup(setup, wrong)
    for mistake in (
        lambda: FSDP2Config(sequence_parallel=wrong).check(),
        lambda: DistributedSetup(strategy_config=wrong),
        lambda: resolve_distributed_setup(wrong),
        lambda: MeshContext.build(wrong),
        lambda: strategy_for(wrong),
    ):
        with pytest.raises(MeshTypeError, match="is of type DeviceMesh"):
            mistake()
    assert not dist.is_initialized()


@pytest.mark.release_independent
def test_every_registered_strategy_has_a_configuration_that_suggests_keywords() -> None:
    """The built-in configurations refuse an unknown keyword by the library's error."""
    for strategy in STRATEGIES:
        with pytest.raises(MeshTypeError, match="takes no keyword 'nothing'"):
            STRATEGY_MAP[strategy](nothing=1)
