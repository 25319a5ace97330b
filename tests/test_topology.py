"""`automodel_mesh.topology`: groups compared with NumPy's reshape and transpose, checks of sizes, messages."""

from __future__ import annotations

import ast
import copy
import dataclasses
import itertools
import pickle
import re
import sys
import tracemalloc
from enum import Enum
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh import checks, errors, keywords
from automodel_mesh.checks import check_size, checked_ranks
from automodel_mesh.topology import CoincidentAxes, Topology, distinct_groups_per_rank, layouts, shared_layouts
from automodel_mesh.topology import grid as topology_module
from automodel_mesh.topology import sizes as sizes_module
from automodel_mesh.topology import strategies as strategies_module
from automodel_mesh.topology.sizes import ParallelismSizes, divisors, infer_dp_size
from automodel_mesh.topology.strategies import STRATEGIES, plan_topologies

pytestmark = pytest.mark.release_independent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

Groups = list[tuple[int, ...]]

NAMES = ("a", "b", "c", "d", "e")
# What the axes of an FSDP2 grid fold, written out again: the tests must not read it from the code under test.
FSDP2_AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
FSDP2_DERIVED = {
    "dp": ("dp_replicate", "dp_shard"),
    "dp_shard_cp": ("dp_shard", "cp"),
    "dp_cp": ("dp_replicate", "dp_shard", "cp"),
}


def oracle(axes: Sequence[str], shape: Sequence[int], ranks: Sequence[int], folded: Sequence[str]) -> Groups:
    """Return every group of the folded axes, by moving them last in an array of the ranks."""
    grid = np.array(ranks).reshape(shape)
    last = [axes.index(name) for name in folded]
    first = [index for index in range(len(axes)) if index not in last]
    rows = grid.transpose(first + last).reshape(-1, prod(shape[index] for index in last))
    return sorted(tuple(int(rank) for rank in row) for row in rows)


def assert_matches_oracle(topology: Topology, ranks: Sequence[int]) -> None:
    """Compare every axis's groups, sizes and counts, and each rank's own group, with the oracle."""
    sources: dict[str, tuple[str, ...]] = {axis: (axis,) for axis in topology.axes} | dict(topology.derived)
    assert topology.all_axes == tuple(sources)
    for axis, folded in sources.items():
        expected = oracle(topology.axes, topology.shape, ranks, folded)
        assert list(topology.groups(axis)) == expected
        assert topology.number_of_groups(axis) == len(expected)
        assert {topology.size(axis)} == {len(group) for group in expected}
        for group in expected:
            for rank in group:
                assert topology.group_of(rank, axis) == group


def distinct_sets(rank: int, *topologies: Topology) -> set[tuple[int, ...]]:
    """Return the different groups of more than one rank that a rank is in, found by listing all."""
    groups = {each.group_of(rank, axis) for each in topologies for axis in each.all_axes}
    return {group for group in groups if len(group) > 1}


def factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to write a number as an ordered product of so many factors."""
    for candidate in itertools.product(divisors(number), repeat=parts):
        if prod(candidate) == number:
            yield candidate


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Draw grids of one to five axes of size 1 to 4, with any derived axes, over all ranks or some."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    axes = NAMES[: len(shape)]
    folds = draw(st.lists(st.sets(st.sampled_from(axes), min_size=1), max_size=4))
    derived = {f"derived_{index}": tuple(sorted(fold)) for index, fold in enumerate(folds)}
    total = prod(shape)
    scattered = st.integers(0, 2**32).map(
        lambda seed: sorted(np.random.default_rng(seed).choice(3 * total, total, replace=False).tolist())
    )
    return Topology(axes, shape, derived, draw(st.none() | scattered))


# ------------------------------------------------------------------------------------------------------------
# Groups


@settings(deadline=None, database=None)
@given(topologies())
def test_groups_equal_the_oracle(topology: Topology) -> None:
    """Groups of native and derived axes are those that transposing an array of the ranks gives."""
    assert_matches_oracle(topology, list(topology.ranks))


@settings(deadline=None, database=None)
@given(topologies())
def test_coordinates_equal_the_oracle(topology: Topology) -> None:
    """A rank's coordinate is its index in the row-major array of the ranks."""
    grid = np.array(topology.ranks).reshape(topology.shape)
    for place in np.ndindex(topology.shape):
        assert topology.coordinate(int(grid[place])) == place


@settings(deadline=None, database=None)
@given(topologies())
def test_coincident_axes_equal_the_oracle(topology: Topology) -> None:
    """Axes are in one class exactly if their groups are equal; a rank has as many groups as there are classes."""
    groups = {axis: tuple(topology.groups(axis)) for axis in topology.all_axes}
    found = topology.coincident_axes()
    several = [axis for axis in topology.all_axes if topology.size(axis) > 1]
    assert list(found.singletons) == [axis for axis in topology.all_axes if axis not in several]
    assert list(found.covering) == [axis for axis in several if len(groups[axis]) == 1]
    assert sorted(itertools.chain(*found.classes)) == sorted(several)
    for one, other in itertools.combinations(several, 2):
        together = any(one in each and other in each for each in found.classes)
        assert together == (groups[one] == groups[other])
    for rank in topology.ranks:
        assert topology.distinct_groups_per_rank() == len(distinct_sets(rank, topology))


@settings(deadline=None, database=None)
@given(st.sampled_from([8, 12, 24, 36]), st.data())
def test_layouts_tell_equal_groups_across_topologies(number: int, data: st.DataObject) -> None:
    """Axes of two grids over the same ranks have the same groups if their layouts are equal, else no common group."""
    shapes = st.sampled_from(list(factorisations(number, 3)))
    one = Topology(("a", "b", "c"), data.draw(shapes), {"ab": ("a", "b"), "ac": ("a", "c")})
    other = Topology(("x", "y", "z"), data.draw(shapes), {"yz": ("y", "z"), "xz": ("x", "z")})
    for mine, yours in itertools.product(one.all_axes, other.all_axes):
        if one.layout(mine) == other.layout(yours):
            assert list(one.groups(mine)) == list(other.groups(yours))
        else:
            assert not set(one.groups(mine)) & set(other.groups(yours))
    for rank in range(number):
        assert distinct_groups_per_rank(one, other) == len(distinct_sets(rank, one, other))


@pytest.mark.parametrize("shape", [(2, 3, 2, 2, 3), (2, 1, 3, 1, 2), (1, 4, 1, 2, 2)])
def test_every_fold_of_five_axes_equals_the_oracle(shape: tuple[int, ...]) -> None:
    """For any subset of five axes, contiguous or not, the groups of the folded axis are the oracle's."""
    folds = [fold for size in range(1, 6) for fold in itertools.combinations(NAMES, size)]
    derived = {"_".join(("fold", *fold)): fold for fold in folds}
    total = prod(shape)
    for ranks in (range(total), range(5, 5 + 3 * total, 3), [rank * rank for rank in range(total)]):
        assert_matches_oracle(Topology(NAMES, shape, derived, ranks), ranks)


def test_groups_of_a_non_contiguous_fold_are_ascending_and_ordered_by_lowest_rank() -> None:
    """Folding the outer and the inner axis of 2 x 2 x 2 gives the two groups that skip the middle one."""
    grid = Topology(("a", "b", "c"), (2, 2, 2), {"ac": ("a", "c")})
    assert list(grid.groups("ac")) == [(0, 1, 4, 5), (2, 3, 6, 7)]


def test_dp_shard_and_dp_shard_cp_coincide_without_context_parallelism() -> None:
    """With cp of 1, dp_shard and dp_shard_cp are one class, dp and dp_cp another, pp and cp singletons."""
    root = plan_topologies("fsdp2", ParallelismSizes(dp_replicate_size=2, tp_size=2), 8).root
    assert root.coincident_axes() == CoincidentAxes(
        singletons=("pp", "cp"),
        covering=(),
        classes=(("dp_replicate",), ("dp_shard", "dp_shard_cp"), ("tp",), ("dp", "dp_cp")),
    )
    assert root.distinct_groups_per_rank() == 4


def test_covering_axes_are_named() -> None:
    """If only dp_shard is larger than 1, every axis that folds it has one group of all ranks."""
    found = plan_topologies("fsdp2", ParallelismSizes(), 8).root.coincident_axes()
    assert found.covering == ("dp_shard", "dp", "dp_shard_cp", "dp_cp")
    assert found.classes == (found.covering,)


def test_one_rank_has_only_singletons() -> None:
    """In a world of one rank every axis is a singleton, and no communicator of several ranks is needed."""
    root = plan_topologies("fsdp2", ParallelismSizes(), 1).root
    assert root.coincident_axes() == CoincidentAxes(root.all_axes, (), ())
    assert root.distinct_groups_per_rank() == 0
    assert list(root.groups("dp_cp")) == [(0,)]


# ------------------------------------------------------------------------------------------------------------
# Strategies


def test_fsdp2_groups_of_every_factorisation_of_eight_equal_the_oracle() -> None:
    """All grids of 8 ranks have the oracle's groups, and so have their expert grids."""
    cases = 0
    for shape in factorisations(8, 5):
        pp, replicas, shards, cp, tp = shape
        for ep in divisors(8 // pp):
            cases += 1
            sizes = ParallelismSizes(
                dp_size=replicas * shards,
                dp_replicate_size=replicas,
                tp_size=tp,
                pp_size=pp,
                cp_size=cp,
                ep_size=ep,
            )
            root, moe = plan_topologies("fsdp2", sizes, 8)
            assert (root.axes, root.shape, dict(root.derived)) == (FSDP2_AXES, shape, FSDP2_DERIVED)
            assert_matches_oracle(root, range(8))
            inferred = dataclasses.replace(sizes, dp_size=None)
            assert plan_topologies("fsdp2", inferred, 8) == (root, moe)
            if ep == 1:
                assert moe is None
                continue
            assert moe is not None
            assert (moe.axes, moe.shape) == (("pp", "ep_shard", "ep"), (pp, 8 // pp // ep, ep))
            assert_matches_oracle(moe, range(8))
            assert list(moe.groups("pp")) == list(root.groups("pp"))
            for rank in range(8):
                assert distinct_groups_per_rank(root, moe) == len(distinct_sets(rank, root, moe))
    assert cases == 119


def test_an_expert_grid_covers_one_pipeline_stage() -> None:
    """An ep of 4 over 2 stages of (2 replicas, tp of 2) has groups of one whole stage, never ranks of two."""
    sizes = ParallelismSizes(dp_size=2, dp_replicate_size=2, tp_size=2, pp_size=2, ep_size=4)
    moe = plan_topologies("fsdp2", sizes, 8).moe
    assert moe is not None
    assert list(moe.groups("ep")) == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.parametrize("shape", list(factorisations(8, 3)))
def test_megatron_fsdp_groups_of_every_factorisation_of_eight_equal_the_oracle(shape: tuple[int, int, int]) -> None:
    """Megatron-FSDP has the axes (dp, cp, tp) and the derived axis dp_cp, and no expert grid."""
    _, cp, tp = shape
    root, moe = plan_topologies("megatron_fsdp", ParallelismSizes(cp_size=cp, tp_size=tp, dp_replicate_size=1), 8)
    assert moe is None
    assert (root.axes, root.shape, dict(root.derived)) == (("dp", "cp", "tp"), shape, {"dp_cp": ("dp", "cp")})
    assert_matches_oracle(root, range(8))


@pytest.mark.parametrize("dp_size", [None, 8])
def test_ddp_is_one_axis_over_all_ranks(dp_size: int | None) -> None:
    """DDP has one axis, dp, whose only group is every rank."""
    root, moe = plan_topologies("ddp", ParallelismSizes(dp_size=dp_size), 8)
    assert moe is None
    assert list(root.groups("dp")) == [tuple(range(8))]
    assert root.coincident_axes().covering == ("dp",)


def test_a_strategy_may_be_named_by_a_str_enum() -> None:
    """A member of a str enum can be a strategy's name."""

    class Strategy(str, Enum):
        DDP = "ddp"

    assert plan_topologies(Strategy.DDP, ParallelismSizes(), 2) == plan_topologies("ddp", ParallelismSizes(), 2)


# ------------------------------------------------------------------------------------------------------------
# Part of the world


def test_a_subset_of_the_ranks_has_the_same_groups_by_position() -> None:
    """On a subset of the ranks, the groups are those of the same shape, with the rank at each position."""
    ranks = [1, 2, 5, 6, 8, 11, 12, 15]
    sizes = ParallelismSizes(tp_size=2, pp_size=2, ep_size=2)
    root, moe = plan_topologies("fsdp2", sizes, 16, ranks=ranks)
    assert root.shape == (2, 1, 2, 1, 2)
    assert_matches_oracle(root, ranks)
    assert moe is not None
    assert_matches_oracle(moe, ranks)
    assert [rank for rank in range(-1, 17) if rank in root] == ranks


@pytest.mark.parametrize("ranks", [[2, 3, 4, 5], (2, 3, 4, 5), range(2, 6)])
def test_equal_ranks_make_equal_topologies(ranks: Sequence[int]) -> None:
    """A list, a tuple and a range of the same ranks give topologies that are equal and have equal hashes."""
    grid = Topology(("a", "b"), (2, 2), ranks=ranks)
    reference = Topology(("a", "b"), (2, 2), ranks=range(2, 6))
    assert grid == reference
    assert hash(grid) == hash(reference)
    assert grid != Topology(("a", "b"), (2, 2))


@pytest.mark.parametrize("rank", [0, 3, 7, -1])
def test_a_rank_outside_is_refused(rank: int) -> None:
    """The coordinate or group of a rank outside the topology is an error with the rank and the valid ranks."""
    grid = Topology(("a", "b"), (2, 2), ranks=[1, 2, 4, 6])
    assert rank not in grid
    with pytest.raises(ValueError, match=rf"rank={rank} does not take part .* 1, 2, 4, 6"):
        grid.coordinate(rank)
    with pytest.raises(ValueError, match=rf"rank={rank} does not take part"):
        grid.group_of(rank, "a")


@pytest.mark.parametrize("rank", [True, 1.0, "1", None])
def test_a_rank_that_is_no_int_is_refused(rank: object) -> None:
    """A bool, float, string or None is not a rank, even if it compares equal to one."""
    grid = Topology(("a",), (2,))
    assert rank not in grid
    with pytest.raises(TypeError, match=r"rank=.* is of type"):
        grid.coordinate(rank)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        ([], ValueError, "ranks is empty"),
        ([0, 1, 1, 2], ValueError, r"ranks\[2\]=1 repeats ranks\[1\]=1.*sorted\(set\(ranks\)\)"),
        ([0, 2, 1, 3], ValueError, r"ranks\[2\]=1 is less than ranks\[1\]=2.*ascending"),
        (range(3, -1, -1), ValueError, r"descends.*give range\(0, 4\)"),
        ([-1, 0, 1, 2], ValueError, r"ranks\[0\]=-1 is negative"),
        (range(-4, 0), ValueError, r"ranks\[0\]=-4 is negative"),
        ([5, 6, 8, 9], ValueError, r"ranks\[2\]=8 is outside the world: with world_size=8, give .* 0 to 7"),
        ([0, 1, 2, 8], ValueError, r"ranks\[3\]=8 is outside the world"),
        (range(6, 10), ValueError, r"ranks\[2\]=8 is outside the world"),
        (range(0, 12, 3), ValueError, r"ranks\[3\]=9 is outside the world"),
        ([0, 1, 2, True], TypeError, r"ranks\[3\]=True is of type bool"),
        ([0, 1.0, 2, 3], TypeError, r"ranks\[1\]=1.0 is of type float"),
        ("0123", TypeError, r"ranks='0123' is of type str"),
        ({0, 1, 2, 3}, TypeError, r"is of type set"),
    ],
)
def test_bad_ranks_are_refused(ranks: Sequence[int], error: type[Exception], message: str) -> None:
    """Ranks that are not distinct ascending ints of the world are refused; the error names the first wrong one."""
    with pytest.raises(error, match=message):
        plan_topologies("fsdp2", ParallelismSizes(), 8, ranks=ranks)


def test_sizes_must_fill_the_ranks_not_the_world() -> None:
    """With a subset of the ranks, the sizes must fill its number of ranks, and the message says so."""
    with pytest.raises(ValueError, match=r"= 4, but len\(ranks\)=2\. Give dp_size=1"):
        plan_topologies("fsdp2", ParallelismSizes(dp_size=2, tp_size=2), 8, ranks=[3, 5])
    with pytest.raises(ValueError, match=r"len\(ranks\)=2 is not divisible by"):
        plan_topologies("fsdp2", ParallelismSizes(tp_size=4), 8, ranks=[3, 5])


# ------------------------------------------------------------------------------------------------------------
# Scale


def million() -> tuple[Topology, Topology]:
    """Plan a million ranks with every axis larger than 1, and its expert grid."""
    sizes = ParallelismSizes(dp_replicate_size=5, tp_size=8, pp_size=10, cp_size=4, ep_size=16)
    root, moe = plan_topologies("fsdp2", sizes, 1_000_000)
    assert moe is not None
    return root, moe


def test_a_million_ranks_are_not_listed() -> None:
    """Planning a million ranks and computing the groups of one rank needs memory for these groups only."""
    tracemalloc.start()
    try:
        root, moe = million()
        counts = [each.number_of_groups(axis) for each in (root, moe) for axis in each.all_axes]
        groups = [root.group_of(654_321, axis) for axis in ("pp", "dp_replicate", "dp_shard", "cp", "tp")]
        firsts = [next(each.groups(axis)) for each in (root, moe) for axis in ("pp",)]
        distinct = distinct_groups_per_rank(root, moe)
        coincident = root.coincident_axes()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A list of the ranks alone would take 36 MB.
    assert peak < 500_000
    assert counts == [100_000, 200_000, 1_600, 250_000, 125_000, 320, 400, 80, 100_000, 160, 62_500]
    assert [len(group) for group in groups] == [10, 5, 625, 4, 8]
    assert groups[4] == tuple(range(654_320, 654_328))
    assert firsts[0] == firsts[1] == tuple(range(0, 1_000_000, 100_000))
    assert (distinct, coincident.singletons, coincident.covering) == (10, (), ())


def test_groups_of_a_million_ranks_are_yielded_one_at_a_time() -> None:
    """All 125,000 tensor-parallel groups contain each rank once, and only one group is in memory at a time."""
    root, _ = million()
    groups = root.groups("tp")
    tracemalloc.start()
    try:
        total = sum(sum(group) for group in itertools.islice(groups, 5_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    number = 5_000
    for group in groups:
        number += 1
        total += sum(group)
    assert (number, total) == (125_000, 1_000_000 * 999_999 // 2)
    assert peak < 100_000


def test_groups_of_a_million_ranks_equal_the_oracle() -> None:
    """The groups of some ranks of a million are those of NumPy's array of the ranks."""
    root, moe = million()
    for topology in (root, moe):
        grid = np.arange(1_000_000).reshape(topology.shape)
        for rank in (0, 7, 99_999, 100_000, 654_321, 999_999):
            place = topology.coordinate(rank)
            assert grid[place] == rank
            for index, axis in enumerate(topology.axes):
                line = np.moveaxis(grid, index, -1)[place[:index] + place[index + 1 :]]
                assert topology.group_of(rank, axis) == tuple(line.tolist())
    grid = np.arange(1_000_000).reshape(root.shape)
    place = root.coordinate(654_321)
    expected = grid[place[0], place[1], :, :, place[4]].reshape(-1)
    assert root.group_of(654_321, "dp_shard_cp") == tuple(expected.tolist())


def test_distinct_groups_of_a_large_world_are_counted_once() -> None:
    """For dp_shard x tp at 65,536 ranks, the groups to create are one per distinct set: 8 + 8,192."""
    root = plan_topologies("fsdp2", ParallelismSizes(tp_size=8), 65_536).root
    shared = shared_layouts(root)
    assert sum(uses[0][0].number_of_groups(uses[0][1]) for uses in shared.values()) == 8_200


# ------------------------------------------------------------------------------------------------------------
# Sizes


FIELDS = ("dp_size", "dp_replicate_size", "tp_size", "pp_size", "cp_size", "ep_size")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused(field: str, value: int) -> None:
    """A size of 0 or less is a ValueError that names the field, the value and what to give."""
    with pytest.raises(ValueError, match=rf"^{field}={value} is less than 1: give an int of at least 1"):
        ParallelismSizes(**{field: value})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("value", "kind"), [("8", "str"), (2.0, "float"), (True, "bool"), (np.True_, "bool")])
def test_sizes_that_are_no_int_are_refused(field: str, value: object, kind: str) -> None:
    """A string, float or bool, NumPy's too, is a TypeError that names the field, the value and its type."""
    with pytest.raises(TypeError, match=rf"^{field}=.* is of type (numpy\.)?{kind}_?: give an int of at least 1"):
        ParallelismSizes(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FIELDS)
def test_a_size_may_be_an_integer_of_numpy_and_is_kept_as_an_int(field: str) -> None:
    """What comes out of an array is a size like any other."""
    size = getattr(ParallelismSizes(**{field: np.int64(2)}), field)  # type: ignore[arg-type]
    assert (size, type(size)) == (2, int)


@pytest.mark.parametrize("field", FIELDS)
def test_none_is_allowed_only_where_a_size_can_be_inferred(field: str) -> None:
    """None is valid for dp_size and dp_replicate_size, and a TypeError for every other size."""
    if field in ("dp_size", "dp_replicate_size"):
        assert getattr(ParallelismSizes(**{field: None}), field) is None  # type: ignore[arg-type]
        return
    with pytest.raises(TypeError, match=rf"^{field}=None is of type NoneType"):
        ParallelismSizes(**{field: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FIELDS)
def test_the_planner_checks_sizes_of_any_class(field: str) -> None:
    """An object of another class with the same fields is checked as strictly."""

    class Loose:
        dp_size: int | None = None
        dp_replicate_size: int | None = None
        tp_size = pp_size = cp_size = ep_size = 1

    loose: Any = Loose()
    setattr(loose, field, 0)
    with pytest.raises(ValueError, match=rf"^{field}=0 is less than 1"):
        plan_topologies("fsdp2", loose, 8)


@pytest.mark.parametrize(
    ("world_size", "error"), [(0, ValueError), (None, TypeError), ("8", TypeError), (8.0, TypeError)]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_world_size_is_checked(strategy: str, world_size: int, error: type[Exception]) -> None:
    """The world size is an int of at least 1 as well."""
    with pytest.raises(error, match="^world_size="):
        plan_topologies(strategy, ParallelismSizes(), world_size)


@settings(deadline=None, database=None)
@given(st.integers(1, 5_000))
def test_divisors_equal_trial_division(number: int) -> None:
    """Divisors are all numbers that divide the number, ascending."""
    assert divisors(number) == [candidate for candidate in range(1, number + 1) if number % candidate == 0]


@settings(deadline=None, database=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 6), max_size=3), st.integers(1, 500))
def test_dp_size_is_inferred_exactly_when_the_rest_divides(dp: int, rest: list[int], world: int) -> None:
    """The inferred dp_size fills the ranks; it is an error if none does, or if another one is given."""
    factors = {f"size_{index}": size for index, size in enumerate(rest)}
    full = dp * prod(rest)
    assert infer_dp_size(None, full, factors) == dp
    assert infer_dp_size(dp, full, factors) == dp
    with pytest.raises(ValueError, match=rf"dp_size={dp + 1} does not fit.*Give dp_size={dp}, or None"):
        infer_dp_size(dp + 1, full, factors)
    if world % prod(rest):
        with pytest.raises(ValueError, match=rf"world_size={world} is not divisible by"):
            infer_dp_size(None, world, factors)


# ------------------------------------------------------------------------------------------------------------
# Messages: strategy, field, value, and valid values


@pytest.mark.parametrize(
    ("strategy", "sizes", "message"),
    [
        (
            "fsdp2",
            {"tp_size": 3},
            (
                "fsdp2: world_size=8 is not divisible by tp_size * cp_size * pp_size = 3 * 1 * 1 = 3, so "
                "no dp_size fits. Give tp_size as one of 1, 2, 4, 8, leaving the other sizes as they are."
            ),
        ),
        (
            "fsdp2",
            {"dp_size": 2, "tp_size": 2, "cp_size": 8},
            (
                "fsdp2: world_size=8 is not divisible by tp_size * cp_size * pp_size = 2 * 8 * 1 = 16, so"
                " no dp_size fits (dp_size=2 was given). Give tp_size as 1, or cp_size as one of 1, 2, 4,"
                " leaving the other sizes as they are."
            ),
        ),
        (
            "fsdp2",
            {"tp_size": 3, "cp_size": 5},
            (
                "fsdp2: world_size=8 is not divisible by tp_size * cp_size * pp_size = 3 * 5 * 1 = 15, so"
                " no dp_size fits. Changing one of them is not enough: tp_size * cp_size * pp_size "
                "must be one of 1, 2, 4, 8."
            ),
        ),
        (
            "fsdp2",
            {"dp_size": 2, "tp_size": 2},
            (
                "fsdp2: dp_size=2 does not fit: dp_size * tp_size * cp_size * pp_size = 2 * 2 * 1 * 1 = "
                "4, but world_size=8. Give dp_size=4, or None to have it inferred; or keep dp_size=2 and "
                "give tp_size=4 or cp_size=2 or pp_size=2."
            ),
        ),
        (
            "fsdp2",
            {"dp_size": 3},
            (
                "fsdp2: dp_size=3 does not fit: dp_size * tp_size * cp_size * pp_size = 3 * 1 * 1 * 1 = "
                "3, but world_size=8. Give dp_size=8, or None to have it inferred."
            ),
        ),
        (
            "fsdp2",
            {"dp_replicate_size": 3, "tp_size": 2},
            (
                "fsdp2: dp_replicate_size=3 does not divide dp_size=4, inferred from world_size=8: give "
                "one of 1, 2, 4, or None for 1"
            ),
        ),
        (
            "fsdp2",
            {"dp_size": 8, "dp_replicate_size": 16},
            ("fsdp2: dp_replicate_size=16 does not divide dp_size=8: give one of 1, 2, 4, 8, or None for 1"),
        ),
        (
            "fsdp2",
            {"tp_size": 2, "pp_size": 2, "ep_size": 8},
            (
                "fsdp2: ep_size=8 does not divide the ranks of a pipeline stage, dp_size * cp_size * "
                "tp_size = 2 * 1 * 2 = 4: give one of 1, 2, 4"
            ),
        ),
        (
            "megatron_fsdp",
            {"pp_size": 2},
            (
                "megatron_fsdp: pp_size=2, but megatron_fsdp does not support pipeline parallelism: give "
                "pp_size=1, or use strategy 'fsdp2'"
            ),
        ),
        (
            "megatron_fsdp",
            {"ep_size": 2},
            (
                "megatron_fsdp: ep_size=2, but megatron_fsdp does not support expert parallelism: give "
                "ep_size=1, or use strategy 'fsdp2'"
            ),
        ),
        (
            "megatron_fsdp",
            {"dp_replicate_size": 2},
            (
                "megatron_fsdp: dp_replicate_size=2, but megatron_fsdp does not support replicated "
                "(hybrid) sharding: give dp_replicate_size=1 or None, or use strategy 'fsdp2'"
            ),
        ),
        (
            "megatron_fsdp",
            {"dp_size": 8, "cp_size": 2},
            (
                "megatron_fsdp: dp_size=8 does not fit: dp_size * tp_size * cp_size = 8 * 1 * 2 = 16, but"
                " world_size=8. Give dp_size=4, or None to have it inferred; or keep dp_size=8 and give "
                "cp_size=1."
            ),
        ),
        (
            "ddp",
            {"dp_size": 4},
            (
                "ddp: dp_size=4 does not fit: dp_size = 4, but world_size=8. Give dp_size=8, or None to "
                "have it inferred."
            ),
        ),
        (
            "ddp",
            {"tp_size": 2},
            ("ddp: tp_size=2, but ddp does not support tensor parallelism: give tp_size=1, or use strategy 'fsdp2'"),
        ),
        (
            "ddp",
            {"cp_size": 2},
            ("ddp: cp_size=2, but ddp does not support context parallelism: give cp_size=1, or use strategy 'fsdp2'"),
        ),
    ],
)
def test_a_size_that_does_not_fit_is_reported_with_those_that_would(
    strategy: str, sizes: Mapping[str, int], message: str
) -> None:
    """The message has the strategy, the size, its value and the valid values."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_topologies(strategy, ParallelismSizes(**sizes), 8)


@pytest.mark.parametrize("field", ["pp_size", "ep_size", "dp_replicate_size"])
def test_ddp_takes_no_other_size(field: str) -> None:
    """DDP refuses every size but dp that is not 1."""
    with pytest.raises(ValueError, match=rf"^ddp: {field}=2, but ddp does not support"):
        plan_topologies("ddp", ParallelismSizes(**{field: 2}), 8)


def test_the_planner_accepts_every_remedy_of_a_message() -> None:
    """The planner accepts every tp_size that a message lists, and the message lists all that it accepts."""
    accepted = []
    for tp in range(1, 25):
        try:
            plan_topologies("fsdp2", ParallelismSizes(tp_size=tp, cp_size=2), 24)
        except ValueError:
            continue
        accepted.append(tp)
    with pytest.raises(ValueError, match=f"Give tp_size as one of {', '.join(map(str, accepted))}, leaving"):
        plan_topologies("fsdp2", ParallelismSizes(tp_size=5, cp_size=2), 24)


def test_long_choices_are_shortened() -> None:
    """In a message, a long list of divisors is shortened."""
    with pytest.raises(ValueError, match=r"one of 1, 2, 3, 4, 5, 6, 7, 8, \.\.\., 360360, 720720, leaving"):
        plan_topologies("fsdp2", ParallelismSizes(tp_size=17), 720_720)


@pytest.mark.parametrize("strategy", ["fsdp", "", None, 3])
def test_an_unknown_strategy_is_refused(strategy: str) -> None:
    """An unknown strategy is refused with the names of the known ones."""
    with pytest.raises(ValueError, match=r"strategy=.* is not known.*: give one of 'fsdp2', 'megatron_fsdp', 'ddp'"):
        plan_topologies(strategy, ParallelismSizes(), 8)


def test_an_unknown_axis_is_refused_with_those_there_are() -> None:
    """Each method with an unknown axis raises a KeyError, at the call, that lists native and derived axes."""
    root = plan_topologies("megatron_fsdp", ParallelismSizes(), 8).root
    expected = r"no axis 'pp' here: the native axes are dp, cp, tp; the derived axes are dp_cp"
    for ask in (root.size, root.layout, root.groups, root.number_of_groups):
        with pytest.raises(KeyError, match=expected):
            ask("pp")
    with pytest.raises(KeyError, match=expected):
        root.group_of(0, "pp")
    with pytest.raises(KeyError, match="the derived axes are none"):
        Topology(("a",), (2,)).size("b")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axes": (), "shape": ()}, ValueError, "axes is empty"),
        ({"axes": ("a",), "shape": (1, 2)}, ValueError, "2 sizes .* 1 names"),
        ({"axes": ("a", "a"), "shape": (1, 2)}, ValueError, "repeats a"),
        ({"axes": ("a", ""), "shape": (1, 2)}, ValueError, r"axes\[1\] is an empty string"),
        ({"axes": ("a", 1), "shape": (1, 2)}, TypeError, r"axes\[1\]=1 is of type int"),
        ({"axes": ("a",), "shape": (0,)}, ValueError, r"shape\[0\]=0 is less than 1"),
        ({"axes": ("a",), "shape": (2.0,)}, TypeError, r"shape\[0\]=2.0 is of type float"),
        ({"derived": {"a": ("b",)}}, ValueError, "has the name of a native axis"),
        ({"derived": {"x": ()}}, ValueError, r"derived\['x'\] is empty"),
        ({"derived": {"x": ("a", "q")}}, ValueError, r"folds unknown axes \['q'\]: choose from \('a', 'b'\)"),
        ({"derived": {"x": ("b", "a")}}, ValueError, r"in grid order: \('a', 'b'\)"),
        ({"derived": {"x": ("a", "a")}}, ValueError, "repeats a: give each name once"),
        ({"ranks": [0, 1, 2]}, ValueError, r"ranks has 3 entries, but shape=\(2, 2\) needs 4"),
        ({"ranks": [0, 1, 2, 2]}, ValueError, r"ranks\[3\]=2 repeats"),
    ],
)
def test_a_malformed_grid_is_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    """A topology whose arguments contradict each other raises an error that says how."""
    whole: dict[str, object] = {"axes": ("a", "b"), "shape": (2, 2), **arguments}
    with pytest.raises(error, match=message):
        Topology(**whole)  # type: ignore[arg-type]


def test_topologies_over_different_ranks_are_not_compared() -> None:
    """Counting common groups of grids over different ranks is refused: their positions mean different ranks."""
    with pytest.raises(ValueError, match=r"different ranks, 0, 1 and 2, 3"):
        shared_layouts(Topology(("a",), (2,)), Topology(("a",), (2,), ranks=[2, 3]))


# ------------------------------------------------------------------------------------------------------------
# The class


def test_a_topology_cannot_be_changed() -> None:
    """Fields and the mapping of derived axes are read-only, and independent of the arguments."""
    derived: dict[str, tuple[str, ...]] = {"ab": ("a", "b")}
    grid = Topology(["a", "b"], [2, 2], derived)
    derived["b"] = ("a",)
    assert dict(grid.derived) == {"ab": ("a", "b")}
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.shape = (4, 1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        grid.derived["b"] = ("a",)  # type: ignore[index]


@pytest.mark.parametrize("ranks", [None, [1, 2, 4, 8]])
def test_a_topology_survives_pickle_copy_and_replace(ranks: list[int] | None) -> None:
    """A topology that is pickled, deep-copied or replaced without changes is equal and has the same hash."""
    grid = Topology(("a", "b"), (2, 2), {"ab": ("a", "b")}, ranks)
    reloaded = pickle.loads(pickle.dumps(grid))
    for other in (reloaded, copy.deepcopy(grid), dataclasses.replace(grid)):
        assert other == grid
        assert hash(other) == hash(grid)


def test_str_enum_names_are_stored_as_plain_strings() -> None:
    """Names of axes from a str enum are stored as plain strings, and methods accept both."""

    class Name(str, Enum):
        PP = "pp"
        TP = "tp"
        ALL = "all"

    grid = Topology((Name.PP, Name.TP), (2, 2), {Name.ALL: (Name.PP, Name.TP)})
    assert [type(axis) for axis in (*grid.all_axes, *grid.derived["all"])] == [str] * 5
    assert grid == Topology(("pp", "tp"), (2, 2), {"all": ("pp", "tp")})
    assert grid.size(Name.ALL) == grid.size("all") == 4
    assert list(grid.groups(Name.TP)) == [(0, 1), (2, 3)]


def test_check_functions_return_what_they_checked() -> None:
    """Evenly spaced ranks are returned as a range, others as a tuple, and a valid size raises nothing."""
    assert checked_ranks([4, 6, 8]) == range(4, 10, 2)
    assert checked_ranks([7]) == range(7, 8)
    assert checked_ranks([1, 2, 4], 5) == (1, 2, 4)
    check_size("anything", 1)
    check_size("anything", None, optional=True)


@pytest.mark.parametrize(
    "module", [checks, errors, keywords, layouts, sizes_module, strategies_module, topology_module]
)
def test_the_modules_need_only_the_standard_library(module: ModuleType) -> None:
    """The modules import only the standard library, and each other."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported = {name for name in imported if not name.startswith("automodel_mesh.topology.")}
    imported -= {"automodel_mesh.checks", "automodel_mesh.errors", "automodel_mesh.keywords"}
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)
