"""Copies and pickles of contexts, setups and configurations: equal, and never the end of what the original uses."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor.parallel import ColwiseParallel

from automodel_mesh import (
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
from automodel_mesh.errors import MeshTypeError, ProcessGroupDestroyedError
from automodel_mesh.nemo import older_mesh
from automodel_mesh.testing import fake_world
from automodel_mesh.topology.strategies import STRATEGIES, Strategy, register_strategy


@dataclasses.dataclass
class PairConfig:
    """The configuration of a strategy that is registered here."""

    activation_checkpointing: bool = False


PAIRS = Strategy(
    name="pairs",
    config=PairConfig,
    axes={"rows": "dp_size", "tp": "tp_size"},
    derived={"all_ranks": ("rows", "tp")},
    fully_shard_axes=("rows",),
)

EXPERTS = ParallelismSizes(dp_replicate_size=2, tp_size=2, cp_size=2, ep_size=2)


def on_part(config: Any, *, ranks: range, **sizes: int) -> MeshContext:
    """Build a context on a part of the ranks."""
    return MeshContext.build(config, ParallelismSizes(**sizes), ranks=ranks)


CONTEXTS: dict[str, Callable[[], MeshContext]] = {
    "empty": MeshContext,
    "fsdp2": lambda: MeshContext.build(FSDP2Config(), EXPERTS),
    "fsdp2_outside": lambda: on_part(FSDP2Config(), ranks=range(4), dp_replicate_size=2),
    "megatron": lambda: MeshContext.build(MegatronFSDPConfig(), ParallelismSizes(tp_size=2, cp_size=2)),
    "ddp": lambda: MeshContext.build(DDPConfig()),
    "ddp_on_part": lambda: on_part(DDPConfig(), ranks=range(4, 8)),
    "ddp_outside": lambda: on_part(DDPConfig(), ranks=range(4)),
    "registered": lambda: MeshContext.build(PairConfig(), ParallelismSizes(tp_size=2)),
    "older": lambda: older_mesh.MeshContext.build(FSDP2Config(), EXPERTS),
    "older_ddp": lambda: older_mesh.MeshContext.build(DDPConfig()),
    "wrapped": lambda: MeshContext.from_meshes(compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))),
    "group": lambda: MeshContext(process_group=dist.group.WORLD),
}

WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "replace": dataclasses.replace,
}

each_context = pytest.mark.parametrize("name", CONTEXTS)
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def pairs() -> None:
    """Register the strategy."""
    register_strategy(PAIRS)


def facts_about(context: MeshContext) -> dict[str, Any]:
    """Return what a context says about itself, but for its meshes."""
    names = ["is_member", "pp_size", "tp_size", "cp_size", "ep_size", "dp_size", "dp_replicate_size", "dp_shard_size"]
    return {name: getattr(context, name) for name in names} | {"axes": context.parallelize_axis_kwargs()}


def groups_of(context: MeshContext) -> dict[str, list[int]]:
    """Return the ranks of the groups along the axes of a context, by axis."""
    found = {}
    for mesh in (context.device_mesh, context.moe_mesh):
        if mesh is not None and context.is_member:
            for axis in (*(mesh.mesh_dim_names or ()), *compat.flattened_meshes(mesh)):
                found[axis] = dist.get_process_group_ranks(compat.get_group(mesh, axis))
    return found


@each_context
def test_a_copy_is_equal_and_uses_the_same_groups(name: str) -> None:
    """Every kind of copy has equal meshes and sizes, the same process groups, and makes none; so has one of a setup."""
    with fake_world(8, rank=5):
        context = CONTEXTS[name]()
        before = worlds.live_process_groups()
        setup = DistributedSetup(mesh_context=context)
        for way, make in WAYS.items():
            made = make(context)
            assert made == context
            assert groups_of(made) == groups_of(context)
            assert made.process_group is context.process_group
            if way != "replace" or not name.endswith("outside"):  # `replace` knows no more than the arguments
                assert facts_about(made) == facts_about(context)
            assert make(setup) == setup
        assert worlds.live_process_groups() == before


@each_context
def test_a_context_becomes_a_dictionary(name: str) -> None:
    """`dataclasses.asdict` returns copies of the meshes, in a setup too, and shares no mesh with the context."""
    with fake_world(8, rank=5):
        context = CONTEXTS[name]()
        found = dataclasses.asdict(context)
        assert (found["device_mesh"], found["moe_mesh"]) == (context.device_mesh, context.moe_mesh)
        assert "process_group" not in found
        assert dataclasses.asdict(DistributedSetup(mesh_context=context))["mesh_context"] == found


@pytest.mark.ranks(8)
@each_way
def test_closing_a_copy_destroys_nothing(way: str) -> None:
    """A copy's `close` and `abort`, or its end, leave every group; after the original is closed, a copy says so."""
    before = worlds.live_process_groups()
    for name in ("fsdp2", "megatron", "ddp_on_part", "registered"):
        context = CONTEXTS[name]()
        built = worlds.live_process_groups()
        made = WAYS[way](context)
        with WAYS[way](made) as again:
            assert again == context
        made.close()
        made.abort()
        del again
        assert worlds.live_process_groups() == built
        total = torch.tensor(1)
        if context.device_mesh is not None:
            dist.all_reduce(total, group=compat.get_group(context.device_mesh, "tp"))
        elif context.process_group is not None:
            dist.all_reduce(total, group=context.process_group)
        assert total.item() == (4 if name == "ddp_on_part" and dist.get_rank() >= 4 else 2 - name.startswith("ddp"))
        context.close()
        assert worlds.live_process_groups() == before
        check_closed(made)


def check_closed(context: MeshContext) -> None:
    """Check that lookups of process groups are refused, as they are destroyed."""
    if context.device_mesh is not None:
        with pytest.raises(ProcessGroupDestroyedError):
            compat.get_group(context.flat_mesh("tp"))
    elif dist.get_rank() >= 4:
        with pytest.raises(ProcessGroupDestroyedError, match="the process group .* of the ranks 4, 5, 6, 7"):
            _ = context.process_group


@each_context
def test_a_pickle_is_loaded_where_there_is_no_world(name: str) -> None:
    """The sizes are there; what needs a process group is refused by the documented error, and closing is no error."""
    with fake_world(8, rank=5):
        context = CONTEXTS[name]()
        text, facts = pickle.dumps(context), facts_about(context)
        has_mesh, has_group = context.device_mesh is not None, context.process_group is not None
    loaded = pickle.loads(text)
    assert facts_about(loaded) == facts
    questions: list[Callable[[], object]] = [lambda: loaded.submesh("tp"), loaded.process_groups]
    for question in [*(questions if has_mesh else ()), *([lambda: loaded.process_group] if has_group else [])]:
        with pytest.raises(ProcessGroupDestroyedError):
            question()
    loaded.close()
    loaded.abort()


def test_a_pickle_does_not_take_another_group_for_its_own() -> None:
    """A group of the same name with other ranks, in another world, is not the group of a context from a pickle."""
    with fake_world(8):
        text = pickle.dumps(MeshContext(process_group=dist.group.WORLD))
    with fake_world(4), pytest.raises(ProcessGroupDestroyedError, match="of the ranks 0, 1, 2, 3, 4, 5, 6, 7 does not"):
        _ = pickle.loads(text).process_group


def test_a_context_does_not_take_the_next_world_s_group_for_its_own() -> None:
    """After `destroy_process_group` and another `init_process_group`, a context of before has no process group."""
    with fake_world(8):
        context = MeshContext.build(DDPConfig())
    with fake_world(8), pytest.raises(ProcessGroupDestroyedError, match="Build the context again"):
        _ = context.process_group


@pytest.mark.parametrize("wrong", ["0", 0, object()])
def test_a_process_group_is_checked(wrong: Any) -> None:
    """What is no process group of this rank is refused when the context is made."""
    with (
        fake_world(8),
        pytest.raises(MeshTypeError, match="process_group=.*give a torch ProcessGroup"),
    ):
        MeshContext(process_group=wrong)


CONFIGURATIONS: list[Any] = [
    FSDP2Config(
        tp_plan={"layers.*": ColwiseParallel()},
        mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
        offload_policy=CPUOffloadPolicy(),
    ),
    MegatronFSDPConfig(megatron_fsdp_unit_modules=["a.B"], activation_checkpointing=True),
    DDPConfig(bucket_cap_mb=2.5),
    PipelineConfig(dtype=torch.bfloat16, module_fqns_per_model_part=[["a"], ["b"]]),
    MoEParallelizerConfig(lm_head_precision=torch.float32, mp_policy=MixedPrecisionPolicy()),
    ParallelismSizes(tp_size=2),
    PAIRS,
    *STRATEGIES.values(),
]


@each_way
def test_configurations_can_be_copied(way: str) -> None:
    """A copy has the same values, policies and plans included."""
    for config in CONFIGURATIONS:
        check_copy(WAYS[way](config), config)


def check_copy(made: Any, config: Any) -> None:
    """Check that a copy of a configuration is equal."""
    if isinstance(config, FSDP2Config):  # torch's parallel styles are equal to themselves only
        assert [*(made.tp_plan or ())] == [*(config.tp_plan or ())]
        made, config = (dataclasses.replace(one, tp_plan=None) for one in (made, config))
    assert made == config
    if config.__hash__ is not None:  # those that can be changed have no hash
        assert hash(made) == hash(config)
    if not isinstance(config, Strategy):
        assert dataclasses.asdict(made) == dataclasses.asdict(config)
