"""Meshes that are built: the ranks of every group of every strategy, which groups are made, and how."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import DDPConfig, FSDP2Config, MegatronFSDPConfig, MeshContext, ParallelismSizes, compat
from automodel_mesh.build import build_meshes, default_device_type, resolve_world_size
from automodel_mesh.compat import worlds
from automodel_mesh.config import DistributedStrategyConfig
from automodel_mesh.mesh_utils import get_flat_mesh, get_submesh
from automodel_mesh.testing import fake_world
from tests.compat.oracle import FSDP2_AXES, Grid, Sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.distributed.device_mesh import DeviceMesh

MEGATRON_AXES: Sources = {"dp": (0,), "cp": (1,), "tp": (2,), "dp_cp": (0, 1)}
EXPERT_AXES: Sources = {"ep_shard": (1,), "ep": (2,)}
FSDP2_PARTS = [
    ("pp", "dp_replicate", "dp_shard", "cp", "tp"),
    ("dp_replicate", "dp_shard_cp"),
    ("dp_cp", "tp"),
    ("pp", "dp", "cp"),
]


CONFIGS: dict[str, DistributedStrategyConfig] = {
    "fsdp2": FSDP2Config(),
    "megatron_fsdp": MegatronFSDPConfig(),
    "ddp": DDPConfig(),
}


class Call(NamedTuple):
    """One call that makes process groups."""

    ranks: tuple[int, ...]
    timeout: timedelta | None
    local: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that make process groups from here on; they are made as before."""
    made: list[Call] = []
    new_group: Any = dist.new_group

    def record(ranks: list[int], timeout: timedelta | None, *rest: Any, **options: Any) -> Any:
        made.append(Call(tuple(ranks), timeout, bool(options["use_local_synchronization"])))
        return new_group(ranks, timeout, *rest, **options)

    monkeypatch.setattr(dist, "new_group", record)
    return made


def factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as an ordered product."""
    if parts == 1:
        yield (number,)
        return
    for first in (size for size in range(1, number + 1) if number % size == 0):
        for rest in factorisations(number // first, parts - 1):
            yield (first, *rest)


def sizes_of(shape: Sequence[int], ep: int = 1) -> ParallelismSizes:
    """Ask for an FSDP2 grid (pp, dp_replicate, dp_shard, cp, tp)."""
    pp, replicate, shard, cp, tp = shape
    return ParallelismSizes(
        dp_size=replicate * shard, dp_replicate_size=replicate, tp_size=tp, pp_size=pp, cp_size=cp, ep_size=ep
    )


def ranks_of(mesh: DeviceMesh, axis: str | None = None) -> list[int]:
    """List the ranks of this rank's group along an axis."""
    return dist.get_process_group_ranks(compat.get_group(mesh, axis))


def live_rank_sets() -> Counter[tuple[int, ...]]:
    """Count the groups of this rank by the ranks in them."""
    return Counter(worlds.live_process_groups().values())


def economical(grids: Sequence[tuple[Grid, Sources]], rank: int) -> Counter[tuple[int, ...]]:
    """Say which groups a rank of the whole world should have: each rank set once, and the default group."""
    axes = list(chain.from_iterable(grid.distinct_groups(list(sources.values()), rank) for grid, sources in grids))
    return Counter({*axes, tuple(range(grids[0][0].world))})


def check_axes(mesh: DeviceMesh, grid: Grid, sources: Sources, root: DeviceMesh) -> None:
    """Compare each axis's ranks and group with the oracle, by name and as a mesh, and see that it has this root."""
    rank = dist.get_rank()
    for axis, folded in sources.items():
        expected = grid.group(folded, rank)
        line = get_flat_mesh(mesh, axis)
        assert line.mesh.tolist() == ranks_of(line) == ranks_of(mesh, axis) == expected
        assert line.mesh_dim_names == (axis,)
        assert compat.get_root_mesh(line) is root


def check_parts(root: DeviceMesh, grid: Grid, sources: Sources, parts: Sequence[tuple[str, ...]]) -> None:
    """Compare meshes of several axes with the oracle, with each group along them, and see that they have this root."""
    for names in parts:
        part = get_submesh(root, names)
        assert part.mesh.tolist() == grid.mesh([sources[name] for name in names], dist.get_rank())
        assert [ranks_of(part, name) for name in names] == [
            grid.group(sources[name], dist.get_rank()) for name in names
        ]
        assert part.mesh_dim_names == names
        assert compat.get_root_mesh(part) is root


def check_report(context: MeshContext, grids: Sequence[tuple[Grid, Sources]]) -> None:
    """See that the report has each axis once, with its ranks, and each rank set once."""
    report = context.process_groups()
    named = Counter(axis for group in report for axis in group.axes)
    assert named == Counter(chain.from_iterable(sources for _, sources in grids))
    assert len({group.ranks for group in report}) == len(report)
    ranks = {axis: group.ranks for group in report for axis in group.axes}
    for grid, sources in grids:
        for axis, folded in sources.items():
            assert ranks[axis] == tuple(grid.group(folded, dist.get_rank()))
    live = worlds.live_process_groups()
    assert {group.name: group.ranks for group in report}.items() <= live.items()
    whole = tuple(range(dist.get_world_size()))
    assert all(group.made_here == (group.ranks != whole) for group in report)


def check_fsdp2_sizes(context: MeshContext, shape: Sequence[int], ep: int) -> None:
    """Compare the sizes that the context reads from its meshes with those asked for."""
    pp, replicate, shard, cp, tp = shape
    assert (context.pp_size, context.dp_replicate_size, context.dp_shard_size) == (pp, replicate, shard)
    assert (context.cp_size, context.tp_size, context.ep_size) == (cp, tp, ep)
    assert context.dp_size == replicate * shard
    assert context.pp_enabled == (pp > 1)
    assert context.is_member
    assert (context.moe_mesh is None) == (ep == 1)


def check_fsdp2(context: MeshContext, shape: tuple[int, ...], ep: int) -> None:
    """Compare all that was built for FSDP2 with the oracle."""
    root, grid = context.device_mesh, Grid(shape)
    assert root is not None
    check_fsdp2_sizes(context, shape, ep)
    grids = [(grid, FSDP2_AXES)]
    if context.moe_mesh is None:  # else looked at in the context without experts, and in the report below
        check_axes(root, grid, FSDP2_AXES, root)
        check_parts(root, grid, FSDP2_AXES, FSDP2_PARTS)
    else:
        experts = Grid((shape[0], prod(shape[1:]) // ep, ep))
        assert context.moe_mesh.mesh_dim_names == ("ep_shard", "ep")
        assert context.moe_mesh.mesh.tolist() == experts.mesh([(1,), (2,)], dist.get_rank())
        assert compat.get_root_mesh(context.moe_mesh) is root
        check_axes(context.moe_mesh, experts, EXPERT_AXES, root)
        grids.append((experts, EXPERT_AXES))
    # Last, so that groups made by a lookup would be counted too.
    assert live_rank_sets() == economical(grids, dist.get_rank())
    check_report(context, grids)


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
@pytest.mark.ranks(8, timeout=240)
def test_fsdp2_meshes_equal_the_oracle_for_every_shape_of_eight_ranks(ep: int) -> None:
    """Sizes, groups of every axis, roots and the number of groups are the oracle's, and closing leaves nothing."""
    before = worlds.live_process_groups()
    for shape in factorisations(8, 5):
        if prod(shape[1:]) % ep == 0:
            with MeshContext.build(FSDP2Config(), sizes_of(shape, ep)) as context:
                check_fsdp2(context, shape, ep)
            assert worlds.live_process_groups() == before


@pytest.mark.ranks(8, timeout=240)
def test_megatron_fsdp_meshes_equal_the_oracle_for_every_shape_of_eight_ranks() -> None:
    """The mesh (dp, cp, tp) and its dp_cp have the oracle's ranks and groups, and closing leaves nothing."""
    before = worlds.live_process_groups()
    for shape in factorisations(8, 3):
        sizes = ParallelismSizes(dp_size=shape[0], cp_size=shape[1], tp_size=shape[2])
        with MeshContext.build(MegatronFSDPConfig(), sizes) as context:
            root, grid = context.device_mesh, Grid(shape)
            assert root is not None
            assert (context.dp_size, context.cp_size, context.tp_size) == shape
            assert (context.pp_size, context.ep_size, context.dp_replicate_size, context.moe_mesh) == (1, 1, None, None)
            check_axes(root, grid, MEGATRON_AXES, root)
            check_parts(root, grid, MEGATRON_AXES, [("dp", "cp", "tp"), ("dp_cp", "tp"), ("dp", "tp")])
            assert live_rank_sets() == economical([(grid, MEGATRON_AXES)], dist.get_rank())
            check_report(context, [(grid, MEGATRON_AXES)])
        assert worlds.live_process_groups() == before


@pytest.mark.ranks(4)
def test_ddp_has_a_group_and_no_mesh() -> None:
    """DDP over the world uses the default group, over some ranks a group of theirs that closing destroys."""
    before = worlds.live_process_groups()
    with MeshContext.build(DDPConfig()) as context:
        assert context.device_mesh is context.moe_mesh is None
        assert context.process_group is dist.group.WORLD
        assert worlds.live_process_groups() == before
    with MeshContext.build(DDPConfig(), ranks=[1, 2]) as context:
        assert context.is_member == (dist.get_rank() in {1, 2})
        if context.process_group is None:
            assert not context.is_member
        else:
            assert dist.get_process_group_ranks(context.process_group) == [1, 2]
    assert worlds.live_process_groups() == before


@pytest.mark.ranks(2, backend=None)
def test_building_without_a_process_group_joins_the_launcher_s_world() -> None:
    """Without a process group, building joins the world that the launcher's environment describes."""
    with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
        assert context.device_mesh is not None
        assert context.device_mesh.mesh.flatten().tolist() == [0, 1]
        assert context.tp_size == dist.get_world_size() == 2
    dist.destroy_process_group()


@pytest.mark.ranks(8)
def test_an_expert_mesh_is_built_for_each_pipeline_stage() -> None:
    """With two stages, each rank's expert mesh has the ranks of its own stage."""
    with MeshContext.build(FSDP2Config(), ParallelismSizes(pp_size=2, ep_size=2, tp_size=2)) as context:
        assert context.moe_mesh is not None
        first = 0 if dist.get_rank() < 4 else 4
        assert context.moe_mesh.mesh.tolist() == [[first, first + 1], [first + 2, first + 3]]
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total, group=compat.get_group(context.moe_mesh, "ep"))
        assert total.item() == sum(ranks_of(context.moe_mesh, "ep"))


# --- which groups are made


def test_axes_over_the_same_ranks_share_one_set_of_groups(calls: list[Call]) -> None:
    """Each distinct set of groups is made once: axes that coincide share it, and the world's is the default group."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, ep_size=2)) as context:
        # The ranks of tp are those of ep, and all that shards or replicates data has the ranks of ep_shard.
        made = [(0, 1), (0, 2, 4, 6), (0,)]
        assert Counter(call.ranks for call in calls) == Counter(made)
        shared = {frozenset(group.axes) for group in context.process_groups()}
        assert shared == {
            frozenset({"pp", "dp_replicate", "cp"}),
            frozenset({"dp_shard", "dp", "dp_shard_cp", "dp_cp", "ep_shard"}),
            frozenset({"tp", "ep"}),
        }


@pytest.mark.parametrize("strategy", ["fsdp2", "megatron_fsdp", "ddp"])
def test_the_timeout_reaches_every_group(strategy: str, calls: list[Call]) -> None:
    """Groups of native, derived and expert axes get the timeout; the world's axis then has a group of its own."""
    config = CONFIGS[strategy]
    sizes = ParallelismSizes() if strategy == "ddp" else ParallelismSizes(cp_size=2, tp_size=2)
    if strategy == "fsdp2":
        sizes = ParallelismSizes(cp_size=2, tp_size=2, dp_replicate_size=2, ep_size=4)
    with fake_world(16), MeshContext.build(config, sizes, timeout_minutes=2.5) as context:
        report = context.process_groups()
        assert {group.timeout for group in report} == {call.timeout for call in calls} == {timedelta(minutes=2.5)}
        assert all(group.made_here for group in report)
        assert calls


def test_without_a_timeout_none_is_passed_to_torch(calls: list[Call]) -> None:
    """By default no timeout is passed on, and the report says so."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
        assert {group.timeout for group in context.process_groups()} == {call.timeout for call in calls} == {None}


@pytest.mark.ranks(8)
def test_backend_override_reaches_native_derived_and_expert_axes() -> None:
    """Only the axes named get the backend, also where another axis of the same ranks keeps the default."""
    worlds.register_fake_backend()
    chosen = ("tp", "dp_cp", "ep")
    sizes = ParallelismSizes(tp_size=2, cp_size=2, ep_size=2)
    with MeshContext.build(FSDP2Config(), sizes, backend_override=dict.fromkeys(chosen, "fake")) as context:
        backends = {axis: group.backend for group in context.process_groups() for axis in group.axes}
        assert backends == {axis: "fake" if axis in chosen else "gloo" for axis in [*FSDP2_AXES, *EXPERT_AXES]}
        root = context.device_mesh
        assert root is not None
        assert dist.get_backend(compat.get_group(get_flat_mesh(root, "dp_cp"))) == "fake"
        assert ranks_of(root, "dp_cp") == ranks_of(root, "dp_shard_cp")
        assert compat.get_group(root, "dp_cp") is not compat.get_group(root, "dp_shard_cp")


def test_an_axis_can_have_a_communicator_of_its_own() -> None:
    """Axes of the same ranks share a group, until one of them is asked for with a backend."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
        root = context.device_mesh
        assert root is not None
        assert compat.get_group(root, "dp_shard_cp") is compat.get_group(root, "dp_shard")
    override = {"dp_shard_cp": "fake"}
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), backend_override=override) as own:
        root = own.device_mesh
        assert root is not None
        assert compat.get_group(root, "dp_shard_cp") is not compat.get_group(root, "dp_shard")
        assert ranks_of(root, "dp_shard_cp") == ranks_of(root, "dp_shard")
        assert override == {"dp_shard_cp": "fake"}


@pytest.mark.parametrize(
    ("config", "override", "known"),
    [
        (FSDP2Config(), {"tp": "fake", "sp": "fake"}, "dp_shard_cp"),
        (FSDP2Config(), {"ep": "fake"}, "tp"),  # there is no expert mesh
        (MegatronFSDPConfig(), {"dp_shard": "fake"}, "dp_cp"),
        (DDPConfig(), {"tp": "fake"}, "dp"),
    ],
)
def test_an_override_for_an_unknown_axis_is_refused(
    config: DistributedStrategyConfig, override: dict[str, str], known: str, calls: list[Call]
) -> None:
    """The error names the key and the axes there are, and nothing has been made."""
    unknown = [axis for axis in override if axis != "tp" or isinstance(config, DDPConfig)]
    with fake_world(8), pytest.raises(ValueError, match=rf"backend_override names '{unknown[0]}'.*'{known}'"):
        MeshContext.build(config, backend_override=override)
    assert not calls


# --- local creation


def check_communication(context: MeshContext) -> None:
    """Reduce over every axis of a context."""
    root = context.device_mesh
    assert root is not None
    lines = [get_flat_mesh(root, axis) for axis in FSDP2_AXES]
    if context.moe_mesh is not None:
        lines += [get_flat_mesh(context.moe_mesh, axis) for axis in EXPERT_AXES]
    for line in lines:
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total, group=compat.get_group(line))
        assert total.item() == sum(ranks_of(line))


SHAPES = [((2, 1, 2, 1, 2), 2), ((1, 2, 2, 1, 2), 4), ((1, 2, 1, 2, 2), 1), ((1, 1, 8, 1, 1), 2)]


@pytest.mark.parametrize(("shape", "ep"), SHAPES)
@pytest.mark.ranks(8)
def test_each_rank_makes_only_its_own_groups(shape: tuple[int, ...], ep: int, calls: list[Call]) -> None:
    """A rank calls `new_group` for the groups it is in and no others, each once, and they communicate."""
    with MeshContext.build(FSDP2Config(), sizes_of(shape, ep)) as context:
        assert all(dist.get_rank() in call.ranks and call.local for call in calls)
        assert Counter(call.ranks for call in calls) + Counter([tuple(range(8))]) == live_rank_sets()
        check_fsdp2(context, shape, ep)
        check_communication(context)


def test_a_rank_of_a_large_world_makes_only_its_own_groups(calls: list[Call]) -> None:
    """The number of calls does not grow with the world."""
    with fake_world(1024, rank=5):
        context = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=8))
        made = [group for group in context.process_groups() if group.made_here]
        assert len(made) == 3  # tp, the data parallel ranks, and the single-rank one
        assert len(calls) == len(made)
        context.close()


@pytest.mark.ranks(8)
def test_building_and_closing_in_a_loop_needs_no_collective() -> None:
    """No rank closes while another still connects, and new groups of the same ranks do not meet the old ones."""
    for _ in range(20):
        with MeshContext.build(FSDP2Config(), sizes_of((1, 2, 2, 1, 2), 4)):
            pass
    with MeshContext.build(FSDP2Config(), sizes_of((1, 2, 2, 1, 2), 4)) as context:
        check_communication(context)


@pytest.mark.ranks(16)
def test_groups_of_the_users_own_do_not_clash_with_ours() -> None:
    """Groups on some ranks only, of all and of pairs, made before, between and after, are right, and so are ours.

    They are kept: torch up to 2.13 would give a local group the name of one that was destroyed.
    """
    everyone, first = list(range(16)), dist.get_rank() // 2 * 2
    pair = [first, first + 1]
    kept: list[Any] = []

    def make_own_groups() -> None:
        kept.append(dist.new_group([0, 1]))
        for ranks, local in ((everyone, False), (pair, True)):
            kept.append(dist.new_group(ranks, use_local_synchronization=local))
            total = torch.tensor(dist.get_rank())
            dist.all_reduce(total, group=kept[-1])
            assert total.item() == sum(ranks)

    shape = (1, 1, 8, 1, 2)
    for _ in range(2):
        make_own_groups()
        with MeshContext.build(FSDP2Config(), sizes_of(shape, 4)) as context:
            make_own_groups()
            check_communication(context)
        make_own_groups()


@pytest.mark.ranks(8)
def test_a_model_on_part_of_the_world_is_built_by_its_members(calls: list[Call]) -> None:
    """Ranks outside make no group, and the whole world's next model is right."""
    with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), ranks=range(4)) as part:
        assert all(dist.get_rank() in call.ranks for call in calls)
        assert bool(calls) == part.is_member
        if part.is_member:
            check_communication(part)
        with MeshContext.build(FSDP2Config(), sizes_of((1, 2, 2, 1, 2), 4)) as whole:
            check_fsdp2_sizes(whole, (1, 2, 2, 1, 2), 4)
            check_communication(whole)


# --- what is asked for


def test_sizes_that_are_left_out_fill_the_world() -> None:
    """Data parallelism takes what the other sizes leave; without sizes, all ranks."""
    with fake_world(24):
        with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, dp_replicate_size=3)) as context:
            assert (context.dp_size, context.dp_replicate_size, context.dp_shard_size) == (12, 3, 4)
        with MeshContext.build(FSDP2Config()) as context:
            assert (context.dp_size, context.dp_replicate_size, context.tp_size) == (24, 1, 1)
        with MeshContext.build(MegatronFSDPConfig(), ParallelismSizes(cp_size=4)) as context:
            assert (context.dp_size, context.cp_size) == (6, 4)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        (FSDP2Config(), {"tp_size": 3}, r"world_size=8 is not divisible by .*Give tp_size as one of 1, 2, 4, 8"),
        (FSDP2Config(), {"tp_size": 2, "dp_size": 8}, r"dp_size=8 does not fit.*Give dp_size=4"),
        (FSDP2Config(), {"dp_replicate_size": 3}, r"dp_replicate_size=3 does not divide dp_size=8.*one of 1, 2, 4, 8"),
        (FSDP2Config(), {"pp_size": 2, "ep_size": 8}, r"ep_size=8 does not divide.*one of 1, 2, 4"),
        (MegatronFSDPConfig(), {"pp_size": 2}, r"pp_size=2.*does not support pipeline parallelism: give pp_size=1"),
        (MegatronFSDPConfig(), {"ep_size": 2}, r"ep_size=2.*does not support expert parallelism: give ep_size=1"),
        (MegatronFSDPConfig(), {"dp_replicate_size": 2}, r"dp_replicate_size=2.*give dp_replicate_size=1 or None"),
        (MegatronFSDPConfig(), {"cp_size": 2, "dp_size": 2}, r"dp_size=2 does not fit.*Give dp_size=4"),
        (DDPConfig(), {"tp_size": 2}, r"tp_size=2.*does not support tensor parallelism: give tp_size=1"),
        (DDPConfig(), {"cp_size": 2}, r"cp_size=2.*does not support context parallelism: give cp_size=1"),
        (DDPConfig(), {"dp_size": 4}, r"dp_size=4 does not fit.*Give dp_size=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    config: DistributedStrategyConfig, sizes: dict[str, int], message: str, calls: list[Call]
) -> None:
    """The error says which size is wrong and what would do, before any group is made."""
    with fake_world(8):
        with pytest.raises(ValueError, match=message):
            MeshContext.build(config, ParallelismSizes(**sizes))
        assert not calls
        assert len(worlds.live_process_groups()) == 1


@pytest.mark.release_independent
def test_what_is_not_a_configuration_is_refused() -> None:
    """Neither a name nor a class is a strategy's configuration."""
    for wrong in ("fsdp2", FSDP2Config, None):
        with fake_world(8), pytest.raises(TypeError, match="FSDP2Config, MegatronFSDPConfig, DDPConfig"):
            MeshContext.build(wrong)  # type: ignore[arg-type]
    with fake_world(8), pytest.raises(ValueError, match="'zero3' is not known.*'fsdp2'"):
        build_meshes("zero3", ParallelismSizes())


@pytest.mark.release_independent
def test_the_number_of_ranks_comes_from_the_argument_the_group_or_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number given, else the process group's, else the launcher's, else 1."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert resolve_world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert resolve_world_size() == 6
    with fake_world(4):
        assert resolve_world_size() == 4
        assert resolve_world_size(2) == 2


@pytest.mark.ranks(2)
def test_gloo_ranks_have_cpu_meshes() -> None:
    """The default group is gloo, which serves the CPU, whatever else the machine has."""
    assert default_device_type() == "cpu"
    meshes = build_meshes("fsdp2", ParallelismSizes(tp_size=2))
    assert meshes.root.device_type == "cpu"
    assert meshes.moe is None
    compat.destroy_process_groups(meshes.root)


def test_a_smaller_world_size_takes_the_first_ranks() -> None:
    """With a smaller world size the model has the first ranks, and the others are outside."""
    for rank in (1, 5):
        with fake_world(8, rank), MeshContext.build(FSDP2Config(), world_size=4) as context:
            assert context.is_member == (rank < 4)
            assert context.device_mesh is not None
            assert context.device_mesh.mesh.flatten().tolist() == [0, 1, 2, 3]


# --- leaks


def build_and_close(times: int, sizes: Mapping[str, int]) -> None:
    """Build a context, use it a little, and close it, many times."""
    for _ in range(times):
        with MeshContext.build(FSDP2Config(), ParallelismSizes(**sizes)) as context:
            assert context.device_mesh is not None
            get_submesh(context.device_mesh, ("dp_replicate", "dp_shard_cp"))


def test_building_and_closing_a_thousand_times_leaks_nothing() -> None:
    """No process group and no mesh is left, without any registry being cleared."""
    sizes = {"tp_size": 2, "ep_size": 2}
    with fake_world(4):
        build_and_close(1, sizes)
        groups, meshes = worlds.live_process_groups(), len(worlds.live_meshes())
        build_and_close(1_000, sizes)
        assert worlds.live_process_groups() == groups
        assert len(worlds.live_meshes()) == meshes == 0


@pytest.mark.ranks(4, timeout=120)
def test_building_and_closing_many_times_on_real_ranks_leaks_nothing(no_leaks: None) -> None:
    """No process group and no mesh is left on any rank."""
    build_and_close(30, {"cp_size": 2, "ep_size": 4})


# --- several at a time


def test_equal_requests_make_meshes_of_their_own() -> None:
    """Two contexts of one request share no group, and closing one leaves the other as it was."""
    build = partial(MeshContext.build, FSDP2Config(), ParallelismSizes(tp_size=2))
    with fake_world(8), build() as stays:
        mine = worlds.live_process_groups()
        with build() as goes:
            names = {group.name for context in (stays, goes) for group in context.process_groups()}
            assert len(names) == 2 * len(stays.process_groups())
        assert worlds.live_process_groups() == mine
        assert stays.device_mesh is not None
        assert ranks_of(stays.device_mesh, "tp") == [0, 1]


@pytest.mark.ranks(8)
def test_separate_groups_are_shared_with_no_other_axis() -> None:
    """Axes named in `separate_groups` share no group with others of the same ranks; all other axes do as ever."""
    sizes = ParallelismSizes(tp_size=2)
    with MeshContext.build(FSDP2Config(), sizes, separate_groups=("dp_shard_cp", "tp")) as context:
        assert context.device_mesh is not None
        groups = {name: compat.get_group(context.device_mesh, name) for name in ("dp", "dp_shard", "dp_shard_cp")}
        assert groups["dp"] is groups["dp_shard"]
        assert groups["dp_shard_cp"] is not groups["dp_shard"]
        ranks = [dist.get_process_group_ranks(group) for group in groups.values()]
        assert ranks[0] == ranks[1] == ranks[2]


def test_separate_groups_for_an_unknown_axis_are_refused() -> None:
    """A name in `separate_groups` that no axis has is an error that lists the axes."""
    with fake_world(8), pytest.raises(ValueError, match="separate_groups names 'ep'.*dp_shard_cp"):
        MeshContext.build(FSDP2Config(), separate_groups=("ep",))
