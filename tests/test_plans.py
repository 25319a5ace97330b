"""`topology.plan`: the nodes of groups and the process groups, compared with what is really made in fake worlds."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh import DDPConfig, FSDP2Config, MegatronFSDPConfig, MeshContext, ParallelismSizes
from automodel_mesh.compat import torch_at_least
from automodel_mesh.compat.worlds import live_process_groups
from automodel_mesh.testing import fake_world, run_ranks
from automodel_mesh.topology import GroupCounts, MeshPlan, Topology, plan
from automodel_mesh.topology.nodes import nodes_of_groups
from tests.compat import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIGS: dict[str, Any] = {"fsdp2": FSDP2Config(), "megatron_fsdp": MegatronFSDPConfig(), "ddp": DDPConfig()}
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # Python refuses to import it
from automodel_mesh.topology import plan
from automodel_mesh.topology.sizes import ParallelismSizes
print(plan("fsdp2", ParallelismSizes(tp_size=2), 8, ranks_per_node=4))
"""


def made(world_size: int, build: Callable[[], object]) -> GroupCounts:
    """Count the process groups, besides the default one, that each rank and all ranks of a fake world make."""

    def sizes_of_groups() -> list[int]:
        with fake_world(world_size, int(os.environ["RANK"])):
            kept = build()
            groups = list(live_process_groups().values())
            groups.remove(tuple(range(world_size)))
            del kept
            return [len(group) for group in groups]

    # Each in a process of its own: up to 2.9 torch finds what it flattened before in an equal mesh.
    sizes = run_ranks(sizes_of_groups, world_size, backend=None, timeout=300)
    (per_rank,) = {len(groups) for groups in sizes} - {0} or {0}  # a rank outside makes none
    in_job = sum(Fraction(1, size) for groups in sizes for size in groups)
    assert in_job.denominator == 1
    return GroupCounts(per_rank, int(in_job))


def build_with_torch(planned: MeshPlan) -> list[object]:
    """Build the axes of a plan with torch's own calls."""
    root, moe = planned.topologies
    mesh = plain.init_device_mesh("cpu", root.shape, mesh_dim_names=root.axes)
    flat = [plain.flatten(plain.slice_mesh(mesh, folded), name) for name, folded in root.derived.items()]
    experts = [] if moe is None else [plain.init_device_mesh("cpu", moe.shape, mesh_dim_names=moe.axes)]
    return [mesh, flat, experts]


# --- process groups

# No axis but that of DDP spans the world here, for which releases of torch differ.
SIZES = [
    ("fsdp2", ParallelismSizes(tp_size=2), 8),
    ("fsdp2", ParallelismSizes(tp_size=2, cp_size=2, dp_replicate_size=2), 8),
    ("fsdp2", ParallelismSizes(tp_size=2, cp_size=2, ep_size=2, pp_size=2), 8),
    ("fsdp2", ParallelismSizes(pp_size=3, ep_size=2), 6),
    ("fsdp2", ParallelismSizes(tp_size=2, dp_replicate_size=3), 12),
    ("megatron_fsdp", ParallelismSizes(tp_size=2, cp_size=2), 8),
    ("megatron_fsdp", ParallelismSizes(tp_size=2), 8),
    ("ddp", ParallelismSizes(), 4),
]


@pytest.mark.parametrize(("strategy", "sizes", "world"), SIZES)
def test_the_number_of_process_groups_is_what_building_makes(
    strategy: str, sizes: ParallelismSizes, world: int
) -> None:
    """A plan has as many process groups, of each rank and of the job, as `MeshContext.build` makes."""
    planned = plan(strategy, sizes, world, ranks_per_node=8)
    assert made(world, lambda: MeshContext.build(CONFIGS[strategy], sizes)) == planned.process_groups


@pytest.mark.parametrize(
    ("sizes", "world"),
    [
        (ParallelismSizes(), 8),
        (ParallelismSizes(pp_size=8), 8),
        (ParallelismSizes(ep_size=8), 8),
        (ParallelismSizes(), 1),
    ],
)
def test_axes_over_the_world_need_no_process_group(sizes: ParallelismSizes, world: int) -> None:
    """Axes over the whole world use the default group, and axes of one rank share one group of a single rank."""
    planned = plan("fsdp2", sizes, world, ranks_per_node=8)
    assert planned.process_groups.per_rank == (0 if world == 1 else 1)
    assert made(world, lambda: MeshContext.build(FSDP2Config(), sizes)) == planned.process_groups


@pytest.mark.parametrize("ranks", [range(2, 6), range(1, 8, 2), [0, 1, 2, 5]])
def test_a_part_of_the_world_makes_the_groups_of_the_plan(ranks: Sequence[int]) -> None:
    """On a part of the world the axes that cover it need process groups of their own."""
    sizes = ParallelismSizes(tp_size=2)
    planned = plan("fsdp2", sizes, 8, ranks=ranks, ranks_per_node=8)
    assert made(8, lambda: MeshContext.build(FSDP2Config(), sizes, ranks=ranks)) == planned.process_groups
    assert not any(axis.default_group for axis in planned.axes)
    whole = plan("fsdp2", ParallelismSizes(), 8, ranks=ranks, ranks_per_node=8)
    assert (whole.process_groups.per_rank, whole.axis("dp").default_group) == (2, False)


@pytest.mark.parametrize(("strategy", "sizes", "world"), SIZES)
def test_the_number_for_plain_torch_is_what_torch_makes(strategy: str, sizes: ParallelismSizes, world: int) -> None:
    """The number beside ours is what `init_device_mesh` and `_flatten` make."""
    plain.restore_torch()
    planned = plan(strategy, sizes, world, ranks_per_node=8)
    assert made(world, lambda: build_with_torch(planned)) == planned.plain_torch


@pytest.mark.skipif(not torch_at_least("2.10"), reason="older torch makes a group for such an axis, as the page says")
@pytest.mark.parametrize("sizes", [ParallelismSizes(), ParallelismSizes(pp_size=8), ParallelismSizes(ep_size=8)])
def test_plain_torch_uses_the_default_group_for_axes_over_the_world(sizes: ParallelismSizes) -> None:
    """From torch 2.10 on, to which the number refers, an axis over the whole world needs no group either."""
    plain.restore_torch()
    planned = plan("fsdp2", sizes, 8, ranks_per_node=8)
    assert made(8, lambda: build_with_torch(planned)) == planned.plain_torch


@pytest.mark.release_independent
def test_axes_with_the_same_groups_name_each_other() -> None:
    """Without context parallelism dp_shard and dp_shard_cp use the same process groups, as do pp and cp of one rank."""
    planned = plan("fsdp2", ParallelismSizes(dp_replicate_size=2, tp_size=2), 8, ranks_per_node=8)
    assert planned.axis("dp_shard").shares_with == ("dp_shard_cp",)
    assert planned.axis("pp").shares_with == ("cp",)
    assert planned.axis("tp").shares_with == ()


@pytest.mark.release_independent
@pytest.mark.parametrize("ranks", [None, range(3, 51, 3), [*range(8), *range(20, 28)]])
def test_the_groups_of_a_rank_are_those_of_the_topologies(ranks: Sequence[int] | None) -> None:
    """Each axis is in one group of the rank, with the ranks that the topology has, and the nodes of these."""
    sizes = ParallelismSizes(tp_size=2, pp_size=2, ep_size=4)
    planned = plan("fsdp2", sizes, 16 if ranks is None else 60, ranks=ranks, ranks_per_node=6)
    root, moe = planned.topologies
    assert moe is not None
    for rank in root.ranks:
        groups = planned.groups_of(rank)
        assert Counter(axis for group in groups for axis in group.axes) == Counter(axis.name for axis in planned.axes)
        for group in groups:
            for axis in group.axes:
                topology = moe if planned.axis(axis).kind == "expert" else root
                assert tuple(group.ranks) == topology.group_of(rank, axis)
            assert group.nodes == len({member // 6 for member in group.ranks})


# --- nodes


@pytest.mark.release_independent
@settings(deadline=None, database=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    ranks_per_node=st.integers(1, 20),
    first=st.integers(0, 9),
    step=st.integers(1, 3),
    data=st.data(),
)
def test_nodes_of_groups_are_those_found_by_listing(
    shape: list[int], ranks_per_node: int, first: int, step: int, data: st.DataObject
) -> None:
    """For any axis, contiguous or not, and any number of ranks per node, each group spans as many nodes as listed."""
    axes = [f"axis{index}" for index in range(len(shape))]
    folds = sorted(data.draw(st.sets(st.sampled_from(axes), min_size=1)))
    total = Topology(axes, shape).total
    ranks = range(first, first + total * step, step)
    topology = Topology(axes, shape, {"folded": folds}, ranks)
    expected = Counter(len({rank // ranks_per_node for rank in group}) for group in topology.groups("folded"))
    assert dict(nodes_of_groups(topology.layout("folded"), ranks, ranks_per_node)) == dict(expected)
    if total > 2:  # the same ranks with a gap are listed
        uneven = (*ranks[:-1], ranks[-1] + 1)
        topology = Topology(axes, shape, {"folded": folds}, uneven)
        expected = Counter(len({rank // ranks_per_node for rank in group}) for group in topology.groups("folded"))
        assert dict(nodes_of_groups(topology.layout("folded"), uneven, ranks_per_node)) == dict(expected)


@pytest.mark.release_independent
def test_nodes_that_do_not_divide_the_groups_are_counted() -> None:
    """With 6 ranks per node some tensor parallel groups of 4 stay inside a node and others do not."""
    planned = plan("fsdp2", ParallelismSizes(tp_size=4), 24, ranks_per_node=6)
    tp = planned.axis("tp")
    assert (tp.groups, tp.groups_across_nodes, tp.nodes_per_group) == (6, 2, 2)
    assert planned.nodes == 4


@pytest.mark.release_independent
def test_groups_across_nodes_are_counted_once() -> None:
    """Axes that share their groups count once, and the default group does not count."""
    planned = plan("fsdp2", ParallelismSizes(tp_size=2), 8, ranks_per_node=4)
    assert planned.axis("dp_cp").groups_across_nodes == planned.axis("dp").groups_across_nodes == 2
    assert planned.groups_across_nodes == 2
    assert plan("fsdp2", ParallelismSizes(), 8, ranks_per_node=4).groups_across_nodes == 0


@pytest.mark.release_independent
def test_a_plan_of_a_million_ranks_lists_none_of_them() -> None:
    """A plan of 1,048,576 ranks, its text and its HTML take little memory, and so do the groups of a rank."""
    sizes = ParallelismSizes(tp_size=8, pp_size=4, cp_size=2, ep_size=16, dp_replicate_size=2)
    tracemalloc.start()
    try:
        planned = plan("fsdp2", sizes, 1 << 20, ranks_per_node=72)
        groups = planned.groups_of(654_321)
        text = f"{planned}{planned._repr_html_()}"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # most of it is the drawing; a list of the ranks alone would take 36 MB
    assert len(groups) == planned.process_groups.per_rank == 9
    assert planned.axis("dp_shard").groups == 128
    assert "1,048,576 ranks" in text


# --- as text, and errors


@pytest.mark.release_independent
def test_a_plan_prints_on_one_line_and_shows_as_tables() -> None:
    """A plan prints as one line with sizes and process groups; in a notebook it is two tables and a drawing."""
    planned = plan("fsdp2", ParallelismSizes(tp_size=2, ep_size=4), 8, ranks_per_node=4)
    assert str(planned) == (
        "fsdp2 on 8 ranks, 4 per node (2 nodes): pp=1, dp_replicate=1, dp_shard=4, cp=1, tp=2; derived dp=4, "
        "dp_shard_cp=4, dp_cp=4; expert ep_shard=2, ep=4; 5 process groups of each rank (plain torch: 11)"
    )
    assert repr(planned) == f"<MeshPlan {planned}>"
    shown = planned._repr_html_()
    assert shown.count("<table>") == shown.count("</table>") == 2
    assert "<td>dp_shard_cp</td>" in shown
    assert shown.count("<svg") == shown.count("</svg>") == 4  # dp_shard, tp, ep_shard, ep


@pytest.mark.release_independent
def test_a_plan_needs_no_torch() -> None:
    """A plan is made and printed where torch cannot be imported."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fsdp2 on 8 ranks, 4 per node (2 nodes): pp=1")


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ranks_per_node": 0}, ValueError, "ranks_per_node=0 is less than 1"),
        ({"ranks_per_node": 8.0}, TypeError, "ranks_per_node=8.0 is of type float"),
        ({"world_size": 9}, ValueError, "world_size=9 is not divisible by tp_size"),
        ({"strategy": "fsdp"}, ValueError, "did you mean 'fsdp2'"),
    ],
)
def test_impossible_plans_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """What cannot be planned is an error that names the argument."""
    wanted: dict[str, Any] = {"strategy": "fsdp2", "world_size": 8, "ranks_per_node": 8, **arguments}
    with pytest.raises(error, match=message):
        plan(sizes=ParallelismSizes(tp_size=2), **wanted)


@pytest.mark.release_independent
def test_an_unknown_axis_or_rank_is_refused() -> None:
    """An axis or a rank that the plan does not have is an error that says which there are."""
    planned = plan("fsdp2", ParallelismSizes(tp_size=2), 8, ranks_per_node=8)
    with pytest.raises(KeyError, match=r"no axis 'dp_shrad' here \(did you mean 'dp_shard'\?\): the axes are pp"):
        planned.axis("dp_shrad")
    with pytest.raises(ValueError, match="rank=8 is not in this mesh: give one of its ranks"):
        planned.groups_of(8)
