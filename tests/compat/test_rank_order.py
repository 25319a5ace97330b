"""Ranks in an order of their own: a mesh keeps it where torch's can, and is refused elsewhere, with the reason."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat import plain

PRESERVING: Final = "preserve_rank_order" in inspect.signature(DeviceMesh).parameters
"""Whether a mesh of this torch can keep the order of its ranks."""

ORDER: Final = [0, 2, 3, 1]


def made_or_refused() -> Any:
    """Expect the error that gives the reason where this torch sorts the ranks of a mesh's groups."""
    return nullcontext() if PRESERVING else pytest.raises(ValueError, match=r"torch \d.* sorts the ranks of a mesh's")


def check(mesh: DeviceMesh) -> None:
    """Require that each group has the order that the mesh shows, for `dist` and for a collective."""
    for dim in range(mesh.ndim):
        line, group = plain.ranks_along(mesh, dim), compat.get_group(mesh, dim)
        assert dist.get_process_group_ranks(group) == line
        assert line[dist.get_rank(group)] == dist.get_rank()
        gathered = [torch.zeros(1, dtype=torch.long) for _ in line]
        dist.all_gather(gathered, torch.tensor([dist.get_rank()]), group=group)
        assert [int(one) for one in gathered] == line


@pytest.mark.ranks(4)
def test_a_root_keeps_the_order_that_it_is_given() -> None:
    """`init_device_mesh(ranks=[0, 2, 3, 1])` has that order in all groups, those of what is derived from it too."""
    groups = worlds.live_process_groups()
    with made_or_refused():
        root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"), ranks=ORDER)
    if not PRESERVING:
        assert worlds.live_process_groups() == groups
        return
    assert root.mesh.tolist() == [[0, 2], [3, 1]]
    flat = compat.flatten(root, "all")
    line = compat.unflatten(flat, "all", (4, 1), ("a", "b"))
    for mesh in (
        root,
        flat,
        line,
        compat.slice_mesh(root, "y"),
        compat.concatenate([flat]),
        plain.flatten(root, "all"),
    ):
        check(mesh)
    assert plain.flatten(root, "all") is flat
    assert flat.get_group() is compat.get_group(line, "a") is not dist.group.WORLD
    whole = torch.arange(16.0).reshape(4, 4)
    tensor = distribute_tensor(whole, root, [Shard(0), Shard(1)]).redistribute(root, [Replicate(), Shard(0)])
    assert torch.equal(tensor.full_tensor(), whole)


@pytest.mark.ranks(4)
def test_a_fold_in_descending_order_keeps_it() -> None:
    """A mesh concatenated inner axis first is flattened with its ranks in that order, and its own group."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"))
    crossed = compat.concatenate([compat.slice_mesh(root, "y"), compat.slice_mesh(root, "x")])
    groups = worlds.live_process_groups()
    for flatten in (compat.flatten, plain.flatten):
        with made_or_refused():
            check(flatten(crossed, "y_x"))
    with made_or_refused():
        check(compat.flatten(root, "again", dims=("y", "x")))
    if PRESERVING:
        assert compat.slice_mesh(root, "y_x").mesh.tolist() == [0, 2, 1, 3]
        assert compat.get_group(root, "again") is compat.get_group(root, "y_x") is not dist.group.WORLD
        check(compat.unflatten(compat.slice_mesh(root, "y_x"), "y_x", (4, 1), ("a", "b")))
    else:
        assert worlds.live_process_groups() == groups
    check(compat.refold(crossed, ("y", "x"), (2, 2), ("inner", "outer")))  # each axis alone ascends


@pytest.mark.ranks(4)
def test_ranks_in_any_order_must_be_distinct_and_of_the_world() -> None:
    """Repeated ranks, and those outside the world, are refused wherever in the list they are."""
    for ranks, message in [([0, 2, 2, 1], "repeats"), ([3, 4, 1, 0], r"ranks\[1\]=4 is outside the world")]:
        with pytest.raises(ValueError, match=message if PRESERVING else "ranks"):
            compat.init_device_mesh("cpu", (2, 2), ranks=ranks)
    if PRESERVING:
        check(compat.init_device_mesh("cpu", (2, 2), ranks=range(3, -1, -1)))


def torchs(**options: Any) -> DeviceMesh:
    """Let torch make a mesh of ranks that do not ascend."""
    return DeviceMesh("cpu", [ORDER[:2], ORDER[2:]], mesh_dim_names=("x", "y"), **options)


@pytest.mark.ranks(4)
@pytest.mark.skipif(not PRESERVING, reason="no mesh of this torch keeps an order of its own")
def test_a_mesh_of_torchs_with_its_own_order_is_used_as_any_other() -> None:
    """A mesh that torch made with `preserve_rank_order` can be looked up, flattened, split and listed."""
    root = torchs(preserve_rank_order=True)
    before = {report.ranks for report in compat.list_process_groups(root)}
    assert before == {tuple(dist.get_process_group_ranks(root.get_group(dim))) for dim in range(2)}
    flat = compat.flatten(root, "all")
    for mesh in (root, flat, compat.slice_mesh(root, "y"), compat.unflatten(root, "y", (2, 1), ("a", "b"))):
        check(mesh)
    assert compat.get_group(compat.unflatten(root, "y", (2, 1), ("a", "b")), "a") is root.get_group("y")
    assert {report.axes for report in compat.list_process_groups(root)} == {("x",), ("y", "a"), ("all",), ("b",)}
    assert root["y"] == compat.slice_mesh(root, "y")


@pytest.mark.ranks(4)
def test_a_mesh_of_torchs_with_sorted_groups_is_refused_and_listed() -> None:
    """Where torch's groups have not the order of its mesh, lookups raise, and the list has the groups as they are."""
    root = torchs()
    for ask in (lambda: compat.get_group(root, "x"), lambda: compat.slice_mesh(root, "x")):
        if dist.get_rank() in {1, 2}:  # (2, 1) is not sorted
            with pytest.raises(ValueError, match=r"shows the ranks 2, 1, but its process group has 1, 2"):
                ask()
    listed = {report.axes: report.ranks for report in compat.list_process_groups(root)}
    assert listed == {(name,): tuple(dist.get_process_group_ranks(root.get_group(name))) for name in ("x", "y")}
    with made_or_refused():
        check(compat.flatten(root, "all"))
    # x stays, and its group is wrong on some ranks: the others are told.
    with pytest.raises((ValueError, compat.RanksDisagreeError)):
        compat.unflatten(root, "y", (2, 1), ("a", "b"))
    with made_or_refused():
        check(compat.refold(root, ("x",), (2, 1), ("c", "d")))


def test_torch_sorts_nothing_in_a_mesh_of_ours_that_ascends() -> None:
    """A mesh of ascending ranks equals torch's own, which keeps no other order."""
    with fake_world(4):
        ours = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"), ranks=[0, 1, 2, 3])
        assert ours == DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("x", "y"))
