"""Strategies that a framework registers: their records, their meshes, and the recognition of their configurations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import (
    DistributedSetup,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshContext,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
)
from automodel_mesh.compat import worlds
from automodel_mesh.config import STRATEGY_MAP, DDPConfig, MoEParallelizerConfig, PipelineConfig
from automodel_mesh.testing import fake_world
from automodel_mesh.topology.strategies import (
    STRATEGIES,
    Strategy,
    find_strategy,
    plan_topologies,
    register_strategy,
    strategy_for,
    strategy_name,
    strategy_named,
)
from tests.compat.oracle import Grid, Sources
from tests.pages import blocks, run

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

CONFIGS: dict[str, Any] = {kind.__name__: kind for kind in (FSDP2Config, MegatronFSDPConfig, DDPConfig)}
PAGE = (Path(__file__).parents[1] / "docs/how-to/strategies.md").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class RingSizes(ParallelismSizes):
    """The sizes of a framework that splits sequences in two ways."""

    ring_size: int = 1
    ulysses_size: int = 1


@dataclass(frozen=True)
class RingConfig:
    """The configuration of a framework's strategy."""

    causal: bool = True
    activation_checkpointing: bool = False


RING = Strategy(
    name="ring",
    aliases=("ring-ulysses",),
    config=RingConfig,
    sizes=RingSizes,
    axes={
        "pp": "pp_size",
        "dp_replicate": "dp_replicate_size",
        "dp_shard": "dp_size / dp_replicate_size",
        "ring": "ring_size",
        "ulysses": "ulysses_size",
        "tp": "tp_size",
    },
    derived={
        "dp": ("dp_replicate", "dp_shard"),
        "cp": ("ring", "ulysses"),
        "dp_shard_cp": ("dp_shard", "ring", "ulysses"),
        "dp_cp": ("dp_replicate", "dp_shard", "ring", "ulysses"),
    },
    expert_axes=("dp_replicate", "dp_shard", "ring", "ulysses", "tp"),
    fully_shard_axes=("dp_replicate", "dp_shard_cp"),
)
# What the axes fold, written out again: the tests must not read it from the code under test.
RING_AXES: Sources = {
    "pp": (0,),
    "dp_replicate": (1,),
    "dp_shard": (2,),
    "ring": (3,),
    "ulysses": (4,),
    "tp": (5,),
    "dp": (1, 2),
    "cp": (3, 4),
    "dp_shard_cp": (2, 3, 4),
    "dp_cp": (1, 2, 3, 4),
}
# Other names and another order, with axes outside and inside of the expert axes.
OWN = Strategy(
    name="Own",
    config="tests.test_strategies:OwnConfig",
    axes={"replica": "dp_replicate_size", "seq": "cp_size", "rest": "dp_size / dp_replicate_size", "matrix": "tp_size"},
    derived={"weights": ("seq", "rest"), "tp": ("matrix",)},
    expert_axes=("seq", "rest"),
    fully_shard_axes=("replica", "weights"),
)


class OwnConfig:
    """A configuration that is not a dataclass, and has no attributes."""


OWN_CONFIG: Any = OwnConfig()


@pytest.fixture
def ring() -> Strategy:
    """Register the strategy with an axis for ring attention and one for Ulysses."""
    return register_strategy(RING)


def ranks_of(mesh: DeviceMesh, axis: str) -> list[int]:
    """List the ranks of this rank's group along an axis."""
    return dist.get_process_group_ranks(compat.get_group(mesh, axis))


# --- on ranks


def check_ring(context: MeshContext, shape: tuple[int, ...], ep: int, fully_shard: tuple[str, ...]) -> None:
    """Compare the meshes of a context, its sizes and its groups with the oracle."""
    root, grid, rank = context.device_mesh, Grid(shape), dist.get_rank()
    assert root is not None
    assert root.mesh_dim_names == ("pp", "dp_replicate", "dp_shard", "ring", "ulysses", "tp")
    for axis, atoms in RING_AXES.items():
        line = get_flat_mesh(root, axis)
        assert line.mesh.tolist() == ranks_of(line, axis) == ranks_of(root, axis) == grid.group(atoms, rank)
        assert compat.get_root_mesh(line) is root
        assert context.axis_size(axis) == grid.size(atoms)
    sharded = get_fsdp_dp_mesh(root)
    assert sharded.mesh_dim_names == fully_shard
    assert sharded.mesh.tolist() == grid.mesh([RING_AXES[axis] for axis in fully_shard], rank)
    pp, replicas, shards, rings, ulysses, tp = shape
    assert (context.pp_size, context.dp_size, context.dp_replicate_size) == (pp, replicas * shards, replicas)
    assert (context.dp_shard_size, context.cp_size, context.tp_size) == (shards, rings * ulysses, tp)
    assert context.ep_size == ep
    expected = [grid.distinct_groups(list(RING_AXES.values()), rank)]
    if context.moe_mesh is not None:
        experts = Grid((pp, prod(shape[1:]) // ep, ep))
        assert context.moe_mesh.mesh.tolist() == experts.mesh([(1,), (2,)], rank)
        expected.append(experts.distinct_groups([(1,), (2,)], rank))
    groups = [group.ranks for group in context.process_groups()]
    assert len(set(groups)) == len(groups)
    assert set(groups) == set(chain.from_iterable(expected))


RING_CASES: list[tuple[dict[str, int], tuple[int, ...], tuple[str, ...]]] = [
    ({"ring_size": 2, "ulysses_size": 2}, (1, 1, 2, 2, 2, 1), ("dp_shard_cp",)),
    ({"ring_size": 4, "pp_size": 2, "ep_size": 2}, (2, 1, 1, 4, 1, 1), ("dp_shard_cp",)),
    ({"ulysses_size": 2, "dp_replicate_size": 2, "tp_size": 2}, (1, 2, 1, 1, 2, 2), ("dp_replicate", "dp_shard_cp")),
    ({"dp_replicate_size": 2, "tp_size": 2, "ep_size": 4}, (1, 2, 2, 1, 1, 2), ("dp_replicate", "dp_shard")),
    ({"tp_size": 2}, (1, 1, 4, 1, 1, 2), ("dp_shard",)),
]


@pytest.mark.ranks(8, timeout=120)
def test_a_registered_strategy_is_built_as_its_record_says(ring: Strategy) -> None:
    """Groups, the mesh for `fully_shard`, the expert mesh and sizes are the oracle's; closing destroys all groups."""
    before = worlds.live_process_groups()
    for sizes, shape, fully_shard in RING_CASES:
        with MeshContext.build(RingConfig(), RingSizes(**sizes)) as context:
            check_ring(context, shape, sizes.get("ep_size", 1), fully_shard)
            total = torch.tensor(dist.get_rank())
            assert context.device_mesh is not None
            dist.all_reduce(total, group=compat.get_group(context.device_mesh, "cp"))
            assert total.item() == sum(Grid(shape).group(RING_AXES["cp"], dist.get_rank()))
        assert worlds.live_process_groups() == before


@pytest.mark.ranks(8)
def test_a_registered_strategy_is_built_on_a_part_of_the_world(ring: Strategy) -> None:
    """Members have the meshes; on a rank outside, the context has the sizes of all axes and no process group."""
    sizes = RingSizes(ring_size=2, ulysses_size=2)
    with DistributedSetup.build("ring", sizes, ranks=[1, 2, 5, 6]) as setup:
        context = setup.mesh_context
        assert context.is_member == (dist.get_rank() in {1, 2, 5, 6})
        assert [context.axis_size(axis) for axis in ("ring", "ulysses", "cp", "tp", "dp", "ep")] == [
            2,
            2,
            4,
            1,
            1,
            None,
        ]
        if context.is_member:
            assert setup.device_mesh is not None
            assert ranks_of(setup.device_mesh, "cp") == [1, 2, 5, 6]
        else:
            assert context.process_groups() == []


@pytest.mark.ranks(8)
def test_the_how_to_prints_what_it_says() -> None:
    """The code of the page runs on eight ranks, and rank 0 prints the text on the page."""
    (code,), (expected,) = blocks(PAGE, "python"), blocks(PAGE, "text")
    assert run("ring.py", code) == ("" if dist.get_rank() else expected)
    with pytest.raises(ValueError, match=r"cp_size=2, but ring does not support context parallelism: give cp_size=1"):
        plan_topologies("ring", ParallelismSizes(cp_size=2), 8)
    dist.barrier()  # no rank leaves while another still works


# --- functions that accept a registered strategy


def test_a_setup_is_built_by_name_alias_or_configuration(ring: Strategy) -> None:
    """Each builds the strategy's meshes; sizes that are left out have their defaults; settings need their sizes."""
    sizes = RingSizes(ring_size=2, ulysses_size=2, pp_size=2)
    with fake_world(16):
        for strategy in ("ring", "Ring-Ulysses", RingConfig()):
            with DistributedSetup.build(strategy, sizes) as setup:
                assert setup.strategy_config == RingConfig()
                assert setup.parallelism_sizes is sizes
                assert setup.pipeline_config == PipelineConfig()
                assert setup.device_mesh is not None
                assert setup.device_mesh.shape == (2, 1, 2, 2, 2, 1)
        with DistributedSetup.build("ring", ParallelismSizes(tp_size=2, ep_size=2)) as setup:
            assert setup.device_mesh is not None
            assert setup.device_mesh.shape == (1, 1, 8, 1, 1, 2)
            assert setup.moe_parallel_config == MoEParallelizerConfig()
        with DistributedSetup.build(RingConfig(activation_checkpointing=True)) as setup:
            assert setup.activation_checkpointing is True
    assert STRATEGY_MAP["ring"] is STRATEGY_MAP["ring-ulysses"] is RingConfig
    assert [*STRATEGY_MAP] == ["fsdp2", "megatron_fsdp", "megatron-fsdp", "mfsdp", "ddp", "ring", "ring-ulysses"]
    assert len(STRATEGY_MAP) == 7


def test_a_setup_of_existing_meshes_is_checked_by_the_record(ring: Strategy) -> None:
    """A framework's own sizes must be those of the meshes; `cp`, which is derived, is not compared with a size."""
    with fake_world(16):
        meshes = MeshContext.build(RingConfig(), RingSizes(ring_size=2, ulysses_size=2))
        for context in (meshes, MeshContext.from_meshes(meshes.device_mesh)):
            for asked in (
                None,
                RingSizes(ring_size=2, ulysses_size=2),
                RingSizes(ring_size=2, ulysses_size=2, dp_size=4),
            ):
                setup = DistributedSetup(strategy_config=RingConfig(), parallelism_sizes=asked, mesh_context=context)
                assert setup.mesh_context.cp_size == 4
            for asked, message in (
                (RingSizes(ring_size=4), r"parallelism_sizes.ring_size=4, but the meshes .* have ring_size=2"),
                (RingSizes(ring_size=2), r"parallelism_sizes.ulysses_size=1, but the meshes .* have ulysses_size=2"),
                (RingSizes(ring_size=2, ulysses_size=2, dp_size=8), r"dp_size=8, but the meshes .* have dp_size=4"),
            ):
                with pytest.raises(ValueError, match=message):
                    DistributedSetup(strategy_config=RingConfig(), parallelism_sizes=asked, mesh_context=context)
            with pytest.raises(ValueError, match="cp_size=4, but ddp does not support context parallelism"):
                DistributedSetup(strategy_config=DDPConfig(), mesh_context=context)


def test_a_context_takes_the_axes_of_registered_strategies() -> None:
    """A mesh with unknown axes is refused, with the known ones, until a strategy with these axes is registered."""
    with fake_world(8):
        mesh = compat.init_device_mesh("cpu", (4, 2), mesh_dim_names=("ring", "ulysses"))
        with pytest.raises(
            ValueError, match=r"\['ring', 'ulysses'\] is not known .* or register a strategy with these"
        ):
            MeshContext(mesh)
        register_strategy(RING)
        context = MeshContext.from_meshes(mesh)
        assert (context.axis_size("ring"), context.axis_size("ulysses"), context.axis_size("cp")) == (4, 2, None)


def test_axes_can_have_names_and_an_order_of_their_own() -> None:
    """The mesh for `fully_shard` and the keywords for builders have the record's axes; experts can leave axes out."""
    register_strategy(OWN)
    sizes = ParallelismSizes(cp_size=2, dp_replicate_size=2, tp_size=2, ep_size=4)
    for rank in (0, 21):
        with fake_world(32, rank), MeshContext.build(OWN_CONFIG, sizes) as context:
            root, moe, grid = context.device_mesh, context.moe_mesh, Grid((2, 2, 4, 2))
            assert root is not None
            assert moe is not None
            assert (root.mesh_dim_names, root.shape) == (("replica", "seq", "rest", "matrix"), (2, 2, 4, 2))
            sharded = get_fsdp_dp_mesh(root)
            assert (
                sharded.mesh_dim_names == context.parallelize_axis_kwargs()["dp_axis_names"] == ("replica", "weights")
            )
            assert (
                sharded
                is get_fsdp_dp_mesh(get_flat_mesh(root, "matrix"))
                is get_fsdp_dp_mesh(root, "replica", "weights")
            )
            assert ranks_of(root, "weights") == grid.group((1, 2), rank)
            assert moe.mesh.tolist() == Grid((2, 2, 4, 2)).mesh([(1,), (2,)], rank)
            plan = plan_topologies("own", sizes, 32).moe
            assert plan is not None
            assert plan.axes == ("replica", "ep_shard", "ep", "matrix")
            for axis in ("ep_shard", "ep"):
                assert plan.group_of(rank, axis) == tuple(ranks_of(moe, axis))
            assert context.tp_size == 2
            assert isinstance(DistributedSetup(strategy_config=STRATEGY_MAP["own"]()).strategy_config, OwnConfig)
    with fake_world(8), MeshContext.build(OWN_CONFIG) as context:
        assert context.device_mesh is not None
        assert get_fsdp_dp_mesh(context.device_mesh).mesh_dim_names == ("weights",)


def test_a_strategy_can_shard_without_replicas() -> None:
    """With one axis for `fully_shard`, native or derived, the mesh has that axis."""
    axes = {"dp": "dp_size", "seq": "cp_size"}
    register_strategy(Strategy(name="flat", config="x:FlatConfig", axes=axes, fully_shard_axes=("dp",)))
    register_strategy(
        Strategy(
            name="own",
            config=OwnConfig,
            axes={**axes, "tp": "tp_size"},
            derived={"all": ("dp", "seq")},
            fully_shard_axes=("all",),
        )
    )
    for config, axis in ((foreign("FlatConfig"), "dp"), (OWN_CONFIG, "all")):
        with fake_world(8), MeshContext.build(config, ParallelismSizes(cp_size=2)) as context:
            assert context.device_mesh is not None
            assert get_fsdp_dp_mesh(context.device_mesh) is get_flat_mesh(context.device_mesh, axis)
            assert context.parallelize_axis_kwargs()["dp_axis_names"] == (axis,)


def test_a_strategy_can_have_no_mesh() -> None:
    """Without a mesh the context has the process group of all ranks, as with DDP."""
    register_strategy(Strategy(name="plain", config=OwnConfig, axes={"rows": "dp_size"}, has_mesh=False))
    with fake_world(8), MeshContext.build(OWN_CONFIG, ranks=range(4)) as context:
        assert context.device_mesh is None
        assert context.process_group is not None
        assert dist.get_process_group_ranks(context.process_group) == [0, 1, 2, 3]


@pytest.mark.release_independent
def test_a_value_that_a_strategy_does_not_support_is_refused(ring: Strategy) -> None:
    """The error names the field, its value, and the first strategy that supports it."""

    class Special:
        kernel = "slow"
        fused = True

    register_strategy(
        Strategy(name="special", config=Special, axes={"rows": "dp_size"}, unsupported_options={"kernel": "slow"})
    )
    with pytest.raises(
        ValueError, match="^kernel='slow', but special does not support it: give another kernel, or use"
    ):
        DistributedSetup(strategy_config=Special())  # type: ignore[arg-type]
    Special.kernel = "fast"
    DistributedSetup(strategy_config=Special())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'fsdp2' .special supports no pp_size above 1"):
        DistributedSetup(strategy_config=Special(), pipeline_config=PipelineConfig())  # type: ignore[arg-type]


# --- planning


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("strategy", "sizes", "message"),
    [
        (
            "ring",
            RingSizes(ring_size=3),
            "ring: world_size=8 is not divisible by tp_size * ulysses_size * ring_size * pp_size = 1 * 1 * 3 * 1 = 3, "
            "so no dp_size fits. Give ring_size as one of 1, 2, 4, 8, leaving the other sizes as they are.",
        ),
        (
            "ring",
            RingSizes(ring_size=2, dp_replicate_size=3),
            "ring: dp_replicate_size=3 does not divide dp_size=4, inferred from world_size=8: give one of 1, 2, 4, or "
            "None for 1",
        ),
        (
            "ring",
            RingSizes(pp_size=2, ring_size=2, ep_size=8),
            "ring: ep_size=8 does not divide the ranks of a pipeline stage, dp_size * ring_size * ulysses_size * "
            "tp_size = 2 * 2 * 1 * 1 = 4: give one of 1, 2, 4",
        ),
        (
            "ring",
            RingSizes(cp_size=2),
            "ring: cp_size=2, but ring does not support context parallelism: give cp_size=1, or use strategy 'fsdp2'",
        ),
        (
            "fsdp2",
            RingSizes(ring_size=2),
            "fsdp2: ring_size=2, but fsdp2 does not support ring_size: give ring_size=1, or use strategy 'ring'",
        ),
        (
            "own",
            ParallelismSizes(tp_size=2, ep_size=8),
            "Own: ep_size=8 does not divide the ranks of the axes seq, rest, cp_size * dp_size / dp_replicate_size "
            "= 1 * 4 = 4: give one of 1, 2, 4",
        ),
        (
            "parts",
            RingSizes(cp_size=4, ring_size=3),
            "parts: ring_size=3 does not divide cp_size=4: give one of 1, 2, 4",
        ),
        (
            "parts",
            RingSizes(cp_size=4, ring_size=2, ep_size=8),
            "parts: ep_size=8 does not divide the ranks of the axes outer, ulysses, dp_size * cp_size / ring_size = "
            "2 * 2 = 4: give one of 1, 2, 4",
        ),
    ],
)
def test_sizes_that_do_not_fit_a_registered_strategy_are_refused(
    strategy: str, sizes: ParallelismSizes, message: str
) -> None:
    """The messages are those for the built-in strategies, with the record's sizes and axes."""
    register_strategy(RING)
    register_strategy(OWN)
    register_strategy(
        Strategy(
            name="parts",
            config="nowhere:PartsConfig",
            sizes=RingSizes,
            axes={"ring": "ring_size", "outer": "dp_size", "ulysses": "cp_size / ring_size"},
            expert_axes=("outer", "ulysses"),
        )
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_topologies(strategy, sizes, 8)


@pytest.mark.release_independent
def test_the_size_of_an_axis_can_be_a_quotient() -> None:
    """An axis that comes from a quotient has that size, and `dp_size` is inferred for the rest of the ranks."""
    strategy = Strategy(
        name="inside",
        config=OwnConfig,
        sizes=RingSizes,
        axes={"dp": "dp_size", "ring": "ring_size", "ulysses": "cp_size / ring_size / tp_size", "tp": "tp_size"},
    )
    root = plan_topologies(strategy, RingSizes(cp_size=12, ring_size=2, tp_size=3), 24).root
    assert root.shape == (2, 2, 2, 3)
    with pytest.raises(ValueError, match=r"tp_size=5 does not divide cp_size / ring_size=6: give one of 1, 2, 3, 6"):
        plan_topologies(strategy, RingSizes(cp_size=12, ring_size=2, tp_size=5), 24)


@pytest.mark.release_independent
def test_sizes_of_a_subclass_are_checked_when_made() -> None:
    """A framework's own field must be an int of at least 1, like the others; the planner checks it again."""
    with pytest.raises(ValueError, match="ring_size=0 is less than 1"):
        RingSizes(ring_size=0)
    sizes = RingSizes()
    object.__setattr__(sizes, "ring_size", "2")
    with pytest.raises(TypeError, match="ring_size='2' is of type str"):
        plan_topologies(RING, sizes, 8)


# --- configurations


def foreign(name: str, **attributes: object) -> Any:
    """Make an object of a class of another package, with a name and attributes, independent of this library."""
    return type(name, (), attributes)()


@pytest.mark.parametrize("name", ["FSDP2Config", "MegatronFSDPConfig", "DDPConfig"])
def test_a_configuration_of_another_package_is_recognised_by_its_class_name(name: str) -> None:
    """It builds the same as this library's configuration of that name, and its settings are read if it has them."""
    config, ours = foreign(name, activation_checkpointing="full"), foreign(name)
    with fake_world(8):
        with MeshContext.build(config) as theirs, MeshContext.build(CONFIGS[name]()) as mine:
            shapes = [context.device_mesh and context.device_mesh.shape for context in (theirs, mine)]
            assert shapes[0] == shapes[1]
        with DistributedSetup.build(config) as setup:
            assert setup.strategy_config is config
            assert setup.activation_checkpointing is True
        with DistributedSetup.build(ours, activation_checkpointing=True) as setup:
            assert setup.activation_checkpointing is True


@pytest.mark.release_independent
def test_what_a_strategy_does_not_support_is_refused_for_any_class() -> None:
    """The same values are refused for a `MegatronFSDPConfig` of another package, because the record lists them."""
    for settings, message in (
        ({"activation_checkpointing": "selective"}, "'selective', but megatron_fsdp does not support it: give one of"),
        ({"sequence_parallel": True}, r"give MegatronFSDPConfig\(sequence_parallel=False\), or use strategy 'fsdp2'"),
    ):
        with pytest.raises(ValueError, match=message):
            DistributedSetup(strategy_config=foreign("MegatronFSDPConfig", **settings))
    with pytest.raises(ValueError, match="'selective', but megatron_fsdp"):
        DistributedSetup(strategy_config=foreign("MegatronFSDPConfig"), activation_checkpointing="selective")
    with pytest.raises(ValueError, match="activation_checkpointing='most' is not known"):
        DistributedSetup(strategy_config=foreign("FSDP2Config", activation_checkpointing="most"))


@pytest.mark.release_independent
def test_the_nearest_class_decides_which_strategy_a_configuration_is_for(ring: Strategy) -> None:
    """A class is recognised by its name or its `strategy`, else by those of its base class."""

    class Mine(FSDP2Config):
        """A subclass of a built-in configuration."""

    class Labelled(FSDP2Config):
        """A subclass for another strategy."""

        strategy: ClassVar[str] = "Ring-Ulysses"

    class RingConfig(FSDP2Config):  # the name of the configuration of the registered strategy
        """A subclass with the name of another strategy's configuration."""

    class FSDP2ConfigOfOurs:
        strategy = "zero"  # not the name of a strategy

    assert [strategy_name(config) for config in (Mine(), Labelled(), RingConfig())] == ["fsdp2", "ring", "ring"]
    for wrong in (FSDP2ConfigOfOurs(), FSDP2Config, "ring", None, foreign("Other", strategy="zero")):
        assert find_strategy(wrong) is None
        with pytest.raises(TypeError, match="is of type .*: .* FSDP2Config, MegatronFSDPConfig, DDPConfig, Ring"):
            strategy_for(wrong)  # type: ignore[arg-type]
        with (
            fake_world(8),
            pytest.raises(TypeError, match="is of type .*: .* FSDP2Config, MegatronFSDPConfig, DDPConfig, RingConfig"),
        ):
            MeshContext.build(wrong)  # type: ignore[arg-type]


# --- records

GOOD: dict[str, Any] = {
    "name": "good",
    "config": OwnConfig,
    "sizes": RingSizes,
    "axes": {"pp": "pp_size", "dp": "dp_size", "ring": "ring_size", "tp": "tp_size"},
    "derived": {"dp_ring": ("dp", "ring")},
}


@dataclass(frozen=True, kw_only=True)
class NoDefault(ParallelismSizes):
    """Sizes that cannot be left out."""

    odd_size: int


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": ""}, ValueError, "is an empty string"),
        ({"name": 3}, TypeError, "=3 is of type int: give a name"),
        ({"aliases": ("good",)}, ValueError, "repeats good"),
        ({"config": OwnConfig()}, TypeError, 'give the class of the configuration, or "package.module:Class"'),
        ({"config": "OwnConfig"}, TypeError, 'give the class of the configuration, or "package.module:Class"'),
        ({"sizes": RingSizes()}, TypeError, "give ParallelismSizes or a subclass of it"),
        ({"sizes": RingConfig}, TypeError, "give ParallelismSizes or a subclass of it"),
        ({"sizes": NoDefault}, ValueError, r"NoDefault has no default for \['odd_size'\]"),
        ({"axes": {}}, ValueError, "axes is empty"),
        ({"axes": {"dp": 8}}, TypeError, "=8 is of type int"),
        ({"axes": {"dp": "dp_size", "x": "rin_size"}}, ValueError, r"'rin_size' is not a field of RingSizes \(did you"),
        (
            {"axes": {"dp": "dp_size", "x": "ring_size * 2"}},
            ValueError,
            r"'ring_size \* 2' is not a field of RingSizes",
        ),
        ({"axes": {"dp": "dp_size", "x": "dp_size"}}, ValueError, "the axes 'dp' and 'x' both come from dp_size"),
        ({"axes": {"tp": "tp_size"}, "derived": {}}, ValueError, "no axis comes from dp_size, the size that fills the"),
        (
            {"axes": {"dp": "dp_size", "ring": "cp_size / ring_size"}},
            ValueError,
            "axis 'ring' has the size 'cp_size / ring_size': ring_size must also be the size of one axis",
        ),
        (
            {"axes": {"dp": "dp_size / tp_size", "ring": "cp_size / tp_size", "tp": "tp_size"}},
            ValueError,
            "tp_size must also be the size of one axis, and divide one size only",
        ),
        ({"axes": {"dp": "dp_size", "ring": "cp_size / dp_size"}}, ValueError, "dp_size must also be the size of one"),
        ({"derived": {"dp": ("pp", "tp")}}, ValueError, "derived axis 'dp' has the name of a native axis"),
        ({"derived": {"x": ("dp", "cp")}}, ValueError, r"derived axis 'x' folds unknown axes \['cp'\]"),
        ({"derived": {"x": ("dp", "dp")}}, ValueError, "repeats dp"),
        ({"derived": {"x": ("tp", "dp")}}, ValueError, "in grid order"),
        ({"expert_axes": ("dp", "cp")}, ValueError, r"expert_axes=\('dp', 'cp'\): give neighbouring axes"),
        ({"expert_axes": ("dp", "tp")}, ValueError, "give neighbouring axes, each once and in their order, from"),
        ({"expert_axes": ("tp", "ring")}, ValueError, "give neighbouring axes, each once and in their order, from"),
        ({"expert_axes": ("dp",), "derived": {"ep": ("dp",)}}, ValueError, "no other axis can have one of these names"),
        (
            {"expert_axes": ("dp",), "axes": {"dp": "dp_size", "x": "ep_size"}},
            ValueError,
            "from ep_size: no other axis",
        ),
        ({"fully_shard_axes": ("ring", "dp")}, ValueError, "the axis of replicas must be outside of those that"),
        ({"fully_shard_axes": ("dp", "dp_ring")}, ValueError, "the axis of replicas must be outside of those"),
        ({"fully_shard_axes": ("dp_shard",)}, ValueError, r"fully_shard_axes=\('dp_shard',\): give the axis that"),
        (
            {"fully_shard_axes": ("pp", "dp", "tp")},
            ValueError,
            "give the axis that parameters are sharded over, or that",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Making the record raises an error that says what is wrong."""
    record: dict[str, Any] = {**GOOD, "derived": {} if "axes" in change else GOOD["derived"], **change}
    with pytest.raises(error, match=message):
        register_strategy(Strategy(**record))
    assert "good" not in STRATEGIES


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "FSDP2"}, r"strategy 'FSDP2': \['fsdp2'\] is a name of strategy 'fsdp2': choose another"),
        ({"aliases": ("MFSDP",)}, r"strategy 'good': \['mfsdp'\] is a name of strategy 'megatron_fsdp'"),
        ({"config": "my.configs:DDPConfig"}, "a configuration of a class called DDPConfig is for strategy 'ddp'"),
        (
            {"axes": dict(STRATEGIES["fsdp2"].axes), "fully_shard_axes": ("dp_shard",), "derived": {}},
            r"its axes are those of strategy 'fsdp2'.*\('dp_replicate', 'dp_shard_cp'\): give the same",
        ),
    ],
)
def test_names_and_axes_of_another_strategy_cannot_be_registered(change: dict[str, Any], message: str) -> None:
    """A name, alias or class name in use is refused, and so are known axes with another mesh for `fully_shard`."""
    before = dict(STRATEGIES)
    with pytest.raises(ValueError, match=message):
        register_strategy(Strategy(**{**GOOD, **change}))
    assert dict(STRATEGIES) == before


@pytest.mark.release_independent
def test_a_record_can_be_registered_again() -> None:
    """An equal record has no effect the second time, and the first is returned; a changed one is refused."""
    assert register_strategy(RING) is register_strategy(replace(RING)) is strategy_named("Ring") is STRATEGIES["ring"]
    assert hash(RING) == hash(replace(RING))
    with pytest.raises(ValueError, match="is a name of strategy 'ring'"):
        register_strategy(replace(RING, has_mesh=False))
    assert [*STRATEGIES] == ["fsdp2", "megatron_fsdp", "ddp", "ring"]


@pytest.mark.release_independent
def test_a_record_cannot_be_changed() -> None:
    """A record does not change with its arguments, and its mappings and the registry are read-only."""
    axes = {"dp": "dp_size"}
    strategy = Strategy(name="fixed", config=OwnConfig, axes=axes)
    axes["tp"] = "tp_size"
    assert dict(strategy.axes) == {"dp": "dp_size"}
    for mapping in (strategy.axes, strategy.derived, strategy.unsupported_options, STRATEGIES):
        with pytest.raises(TypeError, match="item assignment"):
            mapping["x"] = "tp_size"  # type: ignore[index]


@pytest.mark.release_independent
def test_only_fsdp2_supports_all_sizes() -> None:
    """`fsdp2` supports all sizes, the others only those that their axes come from."""
    sizes = ("dp_size", "dp_replicate_size", "tp_size", "pp_size", "cp_size", "ep_size")
    refused = {name: {size for size in sizes if not strategy.supports(size)} for name, strategy in STRATEGIES.items()}
    assert refused == {
        "fsdp2": set(),
        "megatron_fsdp": {"dp_replicate_size", "pp_size", "ep_size"},
        "ddp": {"dp_replicate_size", "tp_size", "pp_size", "cp_size", "ep_size"},
    }
