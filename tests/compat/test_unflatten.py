"""Splitting an axis."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat.oracle import Grid


def check_groups(api: ModuleType, mesh: object, grid: Grid, axes: list[tuple[int, ...]]) -> None:
    """Compare the ranks a mesh shows, and those of each of its groups, with the grid."""
    rank = dist.get_rank()
    assert mesh.mesh.tolist() == grid.mesh(axes, rank)  # type: ignore[attr-defined]
    for dim, axis in enumerate(axes):
        assert dist.get_process_group_ranks(api.get_group(mesh, dim)) == grid.group(axis, rank)


@pytest.mark.ranks(8)
@pytest.mark.parametrize("dim", ["rest", 1, -1])
def test_an_axis_is_split_by_name_or_index(api: ModuleType, dim: str | int) -> None:
    """The new axes stand where the old one was, with the right ranks and groups, and the root is kept."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    mesh = api.unflatten(root, dim, (2, 2), ("dp", "tp"))
    assert mesh.mesh_dim_names == ("pp", "dp", "tp")
    assert api.get_root_mesh(mesh) is root
    check_groups(api, mesh, Grid((2, 2, 2)), [(0,), (1,), (2,)])


@pytest.mark.ranks(8, timeout=30)
def test_a_mesh_that_does_not_span_the_world_is_split_on_all_ranks_without_a_hang(api: ModuleType) -> None:
    """Each pipeline stage splits its own line of ranks; every rank gets its stage's groups, and they communicate."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    stage = api.slice_mesh(root, "rest")
    mesh = api.unflatten(stage, "rest", (2, 2), ("dp", "tp"))
    grid, rank = Grid((2, 2, 2)), dist.get_rank()
    check_groups(api, mesh, grid, [(1,), (2,)])
    assert api.get_root_mesh(mesh) is root
    for name, axis in {"dp": (1,), "tp": (2,)}.items():
        total = torch.tensor(rank)
        dist.all_reduce(total, group=api.get_group(mesh, name))
        assert total.item() == sum(grid.group(axis, rank))


@pytest.mark.ranks(8)
def test_one_world_axis_is_split_and_refolded_as_torchtitan_does(api: ModuleType) -> None:
    """Several views of one world share their root, and a slice of a view can be flattened."""
    world = api.init_device_mesh("cpu", (8,), mesh_dim_names=("world",))
    dense = api.unflatten(world, 0, (2, 2, 2), ("pp", "fsdp", "tp"))
    sparse = api.unflatten(world, 0, (2, 1, 4), ("pp2", "efsdp", "ep"))
    loss = api.flatten(api.slice_mesh(dense, ("pp", "fsdp")), "loss")
    check_groups(api, dense, Grid((2, 2, 2)), [(0,), (1,), (2,)])
    check_groups(api, sparse, Grid((2, 1, 4)), [(0,), (1,), (2,)])
    check_groups(api, loss, Grid((2, 2, 2)), [(0, 1)])
    assert all(api.get_root_mesh(mesh) is world for mesh in (dense, sparse, loss))


@pytest.mark.ranks(8)
def test_the_same_request_again_creates_nothing(api: ModuleType) -> None:
    """Splitting twice returns the same mesh and no process group more."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    first = api.unflatten(root, 1, (2, 2), ("dp", "tp"))
    groups = worlds.live_process_groups()
    assert api.unflatten(root, 1, (2, 2), ("dp", "tp")) is first
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_a_name_that_the_mesh_has_already_is_refused(api: ModuleType) -> None:
    """No mesh comes out with two axes of one name: `ValueError`."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    with pytest.raises(ValueError, match="pp"):
        api.unflatten(root, 1, (2, 2), ("pp", "tp"))


@pytest.mark.ranks(8)
def test_new_axes_share_the_groups_of_equal_ranks() -> None:
    """An axis split off that joins the ranks of another one uses its group, and size 1 the single-rank group."""
    root = compat.init_device_mesh("cpu", (2, 1, 4), mesh_dim_names=("dp", "cp", "tp"))
    flat = compat.flatten(root, "all")
    groups = worlds.live_process_groups()
    mesh = compat.unflatten(flat, "all", (2, 4, 1), ("a", "b", "c"))
    assert compat.get_group(mesh, "a") is compat.get_group(root, "dp")
    assert compat.get_group(mesh, "b") is compat.get_group(root, "tp")
    assert compat.get_group(mesh, "c") is compat.get_group(root, "cp")
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_backend_override_reaches_the_new_axes(api: ModuleType) -> None:
    """A new axis with a backend of its own gets groups of that backend; the caller's mapping is left alone."""
    worlds.register_fake_backend()
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
    override = {"tp": "fake"}
    mesh = api.unflatten(root, 1, (2, 2), ("dp", "tp"), backend_override=override)
    assert dist.get_backend(api.get_group(mesh, "dp")) == "gloo"
    assert dist.get_backend(api.get_group(mesh, "tp")) == "fake"
    assert override == {"tp": "fake"}


@pytest.mark.ranks(8)
def test_ranks_outside_take_part_and_are_then_refused() -> None:
    """Splitting a mesh of part of the world neither hangs its ranks nor gives the others a mesh."""
    root = compat.init_device_mesh("cpu", (6,), mesh_dim_names=("all",))
    if dist.get_rank() < 6:
        mesh = compat.unflatten(root, 0, (3, 2), ("dp", "tp"))
        check_groups(compat, mesh, Grid((3, 2)), [(0,), (1,)])
    else:
        with pytest.raises(compat.RankNotInMeshError):
            compat.unflatten(root, 0, (3, 2), ("dp", "tp"))
    dist.barrier()


@pytest.mark.parametrize(
    ("dim", "sizes", "names", "error", "message"),
    [
        ("rest", (3, 2), ("a", "b"), ValueError, r"multiply to 6, but the axis has 4"),
        ("rest", (2, 2), ("a",), ValueError, r"2 sizes \(2, 2\) but 1 names"),
        ("rest", (2, 2), ("a", "a"), ValueError, r"repeats a"),
        ("rest", (2, 2), ("a", "pp"), ValueError, r"repeats pp"),
        ("rest", (2, 2), ("a", "flat"), ValueError, r"'flat' is taken"),
        ("rest", (4, 1), ("a", "rest"), ValueError, r"'rest' is taken"),
        ("rest", (-2, -2), ("a", "b"), ValueError, r"mesh_sizes\[0\]=-2 is less than 1: give an int of at least 1"),
        ("rest", (2.0, 2), ("a", "b"), TypeError, r"mesh_sizes\[0\]=2.0 is of type float: give an int of at least 1"),
        ("rest", (), (), ValueError, r"mesh_sizes is empty: give a list or tuple of sizes"),
        ("tp", (2, 2), ("a", "b"), KeyError, r"no axis 'tp'; its axes are \['pp', 'rest'\]"),
        (2, (2, 2), ("a", "b"), ValueError, r"axis 2 is out of range"),
        (-3, (2, 2), ("a", "b"), ValueError, r"axis -3 is out of range"),
        (None, (2, 2), ("a", "b"), TypeError, r"by name or index, got None"),
    ],
)
def test_requests_that_no_axis_can_fulfil(
    dim: object, sizes: tuple[int, ...], names: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """Wrong products, numbers, names and axes are refused before any process group is made."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", "rest"))
        compat.flatten(root, "flat")
        groups = worlds.live_process_groups()
        with pytest.raises(error, match=message):
            compat.unflatten(root, dim, sizes, names)  # type: ignore[arg-type]
        assert worlds.live_process_groups() == groups


def test_a_fold_across_a_gap_is_not_split_elsewhere() -> None:
    """An axis folded from parts that are not contiguous is split at its seam, or the error says where it is."""
    with fake_world(12):
        root = compat.init_device_mesh("cpu", (2, 2, 3), mesh_dim_names=("a", "b", "c"))
        gapped = compat.flatten(compat.slice_mesh(root, ("a", "c")), "ac")
        assert compat.unflatten(gapped, 0, (2, 3), ("x", "y")).shape == (2, 3)
        with pytest.raises(ValueError, match=r"folded from parts of \(2, 3\)"):
            compat.unflatten(gapped, 0, (3, 2), ("u", "v"))
