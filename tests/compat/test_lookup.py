"""Lookups of roots, groups and coordinates, and which meshes are one family."""

from __future__ import annotations

import threading
import tracemalloc
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat import plain
from tests.compat.oracle import Grid

NAMES = ("dp", "cp", "tp")


@pytest.mark.ranks(8)
def test_every_kind_of_derived_mesh_has_the_root(api: ModuleType) -> None:
    """Slices of slices and flattened, unflattened and concatenated meshes all have the identical root."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    part = api.slice_mesh(root, ("dp", "cp"))
    flat = api.flatten(part, "dp_cp")
    derived = [
        part,
        api.slice_mesh(part, "cp"),
        flat,
        api.unflatten(flat, 0, (2, 2), ("x", "y")),
        api.concatenate([api.slice_mesh(root, "tp"), flat]),
    ]
    assert all(api.get_root_mesh(mesh) is root for mesh in (root, *derived))


@pytest.mark.ranks(8)
def test_a_second_thread_finds_the_root_and_the_flattened_axes(api: ModuleType) -> None:
    """A second thread can look up root, flattened axes, groups and new slices of a mesh that the first one built."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    part = api.slice_mesh(root, ("dp", "cp"))
    api.flatten(part, "dp_cp")
    answers: dict[str, Any] = {}

    def ask() -> None:
        answers["root"] = api.get_root_mesh(part)
        answers["flattened"] = dict(api.flattened_meshes(part))
        answers["slice"] = api.slice_mesh(root, "dp_cp").mesh.tolist()
        answers["group"] = dist.get_process_group_ranks(api.get_group(part, "dp_cp"))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    expected = Grid((2, 2, 2)).group((0, 1), dist.get_rank())
    assert answers["root"] is root
    assert answers["flattened"].keys() == {"dp_cp"}
    assert answers["slice"] == answers["group"] == expected


def test_a_slice_has_no_list_of_all_ranks_of_its_own() -> None:
    """Each slice of a large mesh takes less memory than a number for each rank would: it shares the root's list."""
    sizes = (64, 16, 8)
    with fake_world(8192):
        kept: list[Any] = []
        for turn in range(2):
            root = compat.init_device_mesh("cpu", sizes, mesh_dim_names=NAMES)
            for name in ("tp", ("dp", "cp"), ("cp", "tp")):
                tracemalloc.start()
                kept.append(compat.slice_mesh(root, name))
                added, _ = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert added < 8192 * 8 or turn == 0  # what the first use of torch's functions adds is not the slice's
            assert kept[-1] == compat.slice_mesh(root, ("cp", "tp"))
            assert hash(kept[-1]) == hash(compat.slice_mesh(root, ("cp", "tp")))


@pytest.mark.ranks(8)
def test_equal_roots_do_not_share_flattened_axes(api: ModuleType) -> None:
    """Two roots over the same ranks with the same names are two families: each has its own flattened axes."""
    first, second = (api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES) for _ in range(2))
    flat = api.flatten(api.slice_mesh(first, ("dp", "cp")), "x")
    assert not api.flattened_meshes(second)
    other = api.flatten(api.slice_mesh(second, ("cp", "tp")), "x")
    assert other.mesh.tolist() == Grid((2, 2, 2)).group((1, 2), dist.get_rank())
    assert api.flattened_meshes(first)["x"] is flat
    assert api.get_root_mesh(flat) is first
    assert api.get_root_mesh(other) is second


@pytest.mark.ranks(8)
def test_a_root_that_equals_a_slice_is_still_a_root(api: ModuleType) -> None:
    """A 1-D root over the ranks of another family's slice, under its name, is its own root."""
    big = api.init_device_mesh("cpu", (1, 8), mesh_dim_names=("pp", "dp"))
    line = api.slice_mesh(big, "dp")
    small = api.init_device_mesh("cpu", (8,), mesh_dim_names=("dp",))
    assert api.get_root_mesh(small) is small
    assert api.get_root_mesh(line) is big


@pytest.mark.ranks(8)
def test_the_group_of_a_flattened_axis_is_found_from_any_mesh_of_the_family(api: ModuleType) -> None:
    """`get_group` takes native axes of the mesh by name or index and flattened axes of the family by name."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = api.flatten(api.slice_mesh(root, ("dp", "cp")), "dp_cp")
    part = api.slice_mesh(root, ("cp", "tp"))
    expected = Grid((2, 2, 2)).group((0, 1), dist.get_rank())
    for mesh in (root, part, flat):
        assert dist.get_process_group_ranks(api.get_group(mesh, "dp_cp")) == expected
    assert api.get_group(flat) is api.get_group(flat, 0)
    assert api.get_group(part, -1) is api.get_group(root, "tp")


@pytest.mark.ranks(8)
def test_the_coordinate_is_a_tuple(api: ModuleType) -> None:
    """The coordinate is a tuple on every release."""
    root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
    assert api.get_coordinate(root) == divmod(dist.get_rank(), 4)


@pytest.mark.parametrize(
    ("dim", "error", "message"),
    [
        ("pp", KeyError, r"no axis 'pp': .*\['dp', 'cp', 'tp'\].*\['dp_cp'\]"),
        (3, ValueError, r"axis 3 is out of range"),
        (None, ValueError, r"has 3 axes: say which one"),
        (1.0, TypeError, r"by name or index, got 1.0"),
    ],
)
def test_the_group_of_an_unknown_axis_is_refused(dim: Any, error: type[Exception], message: str) -> None:
    """Looking up the group of an unknown axis is an error that lists the axes."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        compat.flatten(compat.slice_mesh(root, ("dp", "cp")), "dp_cp")
        with pytest.raises(error, match=message):
            compat.get_group(root, dim)


def test_the_view_of_flattened_axes_is_updated_and_read_only() -> None:
    """The mapping includes axes flattened later, and is read-only."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        view = compat.flattened_meshes(root)
        flat = compat.flatten(root, "all")
        assert dict(view) == {"all": flat}
        with pytest.raises(TypeError):
            view["x"] = flat  # type: ignore[index]


def test_lookups_under_fake_tensors_have_real_ranks() -> None:
    """A mesh that is first looked up in a fake tensor mode has real ranks, in the mode and after it."""
    with fake_world(8, rank=5):
        root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        with plain.fake_tensor_mode():
            inside = compat.slice_mesh(root, "tp")
        assert type(inside.mesh) is torch.Tensor
        assert inside.mesh.tolist() == [4, 5, 6, 7]
        assert compat.slice_mesh(root, "tp") is inside


def test_meshes_of_torchs_own_making_belong_to_their_family() -> None:
    """Lookups on a root, a slice and a flattened mesh made by torch work as on ours, and their groups are shared."""
    with fake_world(8, rank=5):
        root = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        part = root["dp", "cp"]
        groups = worlds.live_process_groups()
        assert compat.get_root_mesh(part) is root
        assert compat.slice_mesh(part, "cp").mesh.tolist() == [5, 7]
        assert compat.flatten(part, "dp_cp").mesh.tolist() == [1, 3, 5, 7]
        assert len(worlds.live_process_groups()) == len(groups) + 1
        assert compat.get_group(compat.unflatten(part, "cp", (2, 1), ("a", "b")), "a") is root.get_group("cp")


def test_an_axis_of_descending_ranks_is_refused() -> None:
    """Torch sorts the ranks of a group, so looking up the group of an axis with descending ranks is an error."""
    with fake_world(4):
        root = DeviceMesh("cpu", [[3, 2], [1, 0]], mesh_dim_names=("dp", "tp"))
        with pytest.raises(ValueError, match=r"shows the ranks 1, 0, but its process group has 0, 1"):
            compat.get_group(root, "tp")
