"""`flatten`: axes are folded into one, a 1-D mesh with a name."""

from __future__ import annotations

from itertools import combinations
from types import ModuleType

import pytest
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat.oracle import Grid

NAMES = ("dp", "cp", "tp")


@pytest.mark.ranks(8)
def test_every_set_of_axes_flattens_to_the_right_ranks_and_group(api: ModuleType) -> None:
    """The flattened mesh of axes, contiguous or not, has their ranks, a group of these ranks, and their root."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    grid, rank = Grid((2, 2, 2)), dist.get_rank()
    for dims in combinations(range(3), 2):
        names = tuple(NAMES[dim] for dim in dims)
        flat = api.flatten(api.slice_mesh(root, names), "_".join(names))
        assert flat.mesh.tolist() == grid.group(dims, rank)
        assert dist.get_process_group_ranks(api.get_group(flat)) == grid.group(dims, rank)
        assert dist.get_process_group_ranks(api.get_group(root, "_".join(names))) == grid.group(dims, rank)
        assert api.get_root_mesh(flat) is root


@pytest.mark.ranks(8)
def test_the_name_joins_the_axes_by_default(api: ModuleType) -> None:
    """Without a name the flattened axis has the names of its axes, joined."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = api.flatten(api.slice_mesh(root, ("dp", "cp")))
    assert flat.mesh_dim_names == ("dp_cp",)
    assert dict(api.flattened_meshes(root)) == {"dp_cp": flat}


@pytest.mark.ranks(8)
def test_the_same_axes_again_give_the_same_mesh_and_no_new_group(api: ModuleType) -> None:
    """Flattening the same axes again returns the same object and creates no group."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    first = api.flatten(api.slice_mesh(root, ("dp", "cp")), "dp_cp")
    groups = worlds.live_process_groups()
    assert api.flatten(api.slice_mesh(root, ("dp", "cp")), "dp_cp") is first
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_a_second_name_for_the_same_ranks_shares_their_group() -> None:
    """A flattened axis over the ranks of another axis, flattened or native, shares its process group."""
    root = compat.init_device_mesh("cpu", (4, 1, 2), mesh_dim_names=("dp_shard", "cp", "tp"))
    groups = worlds.live_process_groups()
    shard_cp = compat.flatten(compat.slice_mesh(root, ("dp_shard", "cp")), "dp_shard_cp")
    again = compat.flatten(compat.slice_mesh(root, ("dp_shard", "cp")), "other")
    assert compat.get_group(shard_cp) is compat.get_group(root, "dp_shard")
    assert compat.get_group(again) is compat.get_group(root, "dp_shard")
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_a_taken_name_is_refused(api: ModuleType) -> None:
    """Flattening to the name of another axis, flattened or native, is a `ValueError` and changes no later lookup."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    api.flatten(api.slice_mesh(root, ("dp", "cp")), "loss")
    with pytest.raises(ValueError, match="loss"):
        api.flatten(api.slice_mesh(root, ("cp", "tp")), "loss")
    with pytest.raises(ValueError, match="dp"):
        api.flatten(api.slice_mesh(root, ("cp", "tp")), "dp")
    assert api.slice_mesh(root, ("dp", "cp")).mesh.tolist() == Grid((2, 2, 2)).mesh([(0,), (1,)], dist.get_rank())


@pytest.mark.ranks(8)
def test_one_axis_flattened_to_its_own_name_is_itself(api: ModuleType) -> None:
    """Flattening a 1-D mesh to its own name returns the mesh and registers nothing."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    line = api.slice_mesh(root, "tp")
    assert api.flatten(line, "tp") is line
    assert not api.flattened_meshes(root)


@pytest.mark.ranks(8)
def test_backend_override_reaches_the_flattened_group(api: ModuleType) -> None:
    """A flattened axis with a backend of its own gets a group of that backend, even over the whole world."""
    worlds.register_fake_backend()
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    part = api.flatten(api.slice_mesh(root, ("dp", "cp")), "part", backend_override="fake")
    whole = api.flatten(root, "whole", backend_override="fake")
    assert [dist.get_backend(api.get_group(mesh)) for mesh in (part, whole)] == ["fake", "fake"]


@pytest.mark.ranks(8)
def test_another_backend_under_the_same_name_is_refused() -> None:
    """Flattening again with another backend is an error; with the same backend it is not."""
    worlds.register_fake_backend()
    root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    line = compat.slice_mesh(root, ("dp", "cp"))
    flat = compat.flatten(line, "x", backend_override="fake")
    assert compat.flatten(line, "x") is flat
    assert compat.flatten(line, "x", backend_override="fake") is flat
    groups = worlds.live_process_groups()
    with pytest.raises(ValueError, match="exists with another backend"):
        compat.flatten(line, "x", backend_override="gloo")
    assert worlds.live_process_groups() == groups


def test_a_mesh_without_names_cannot_be_flattened() -> None:
    """A mesh without names is refused, with what to do: flattening works by name."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 4))
        with pytest.raises(ValueError, match="has no axis names.*mesh_dim_names"):
            compat.flatten(root, "all")


@pytest.mark.ranks(8)
def test_ranks_outside_take_part_and_are_then_refused() -> None:
    """Flattening a mesh of part of the world returns on its ranks, and raises on the ranks outside."""
    root = compat.init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=NAMES)
    rank = dist.get_rank()
    if rank < 4:
        flat = compat.flatten(root, "all")
        assert flat.mesh.tolist() == [0, 1, 2, 3]
        assert dist.get_process_group_ranks(compat.get_group(flat)) == [0, 1, 2, 3]
    else:
        with pytest.raises(compat.RankNotInMeshError):
            compat.flatten(root, "all")
    dist.barrier()


def test_a_line_asked_for_under_its_own_name_is_itself_on_every_rank() -> None:
    """Flattening a 1-D mesh under its own name, or under none, makes nothing and is no error on a rank outside."""
    for rank in (0, 5):
        with fake_world(8, rank):
            line = compat.init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
            groups = worlds.live_process_groups()
            assert compat.flatten(line) is line
            assert compat.flatten(line, "dp") is line
            assert worlds.live_process_groups() == groups
