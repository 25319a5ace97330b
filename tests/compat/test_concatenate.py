"""`concatenate`: meshes of one family become one mesh."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat.oracle import Grid

NAMES = ("dp", "cp", "tp")


@pytest.mark.ranks(8)
def test_meshes_are_concatenated_in_any_order_without_a_new_group(api: ModuleType) -> None:
    """The result has the axes of all meshes in the given order, their groups, and their root."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = api.flatten(api.slice_mesh(root, ("cp", "tp")), "cp_tp")
    groups, grid, rank = worlds.live_process_groups(), Grid((2, 2, 2)), dist.get_rank()
    line = api.slice_mesh(root, "dp")
    for meshes, axes in (([line, flat], [(0,), (1, 2)]), ([flat, line], [(1, 2), (0,)])):
        joined = api.concatenate(meshes)
        assert joined.mesh.tolist() == grid.mesh(axes, rank)
        assert api.get_root_mesh(joined) is root
        for dim, axis in enumerate(axes):
            assert dist.get_process_group_ranks(api.get_group(joined, dim)) == grid.group(axis, rank)
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_the_same_meshes_again_give_the_same_object() -> None:
    """Concatenating the same meshes twice gives the same object, and a single mesh is returned unchanged."""
    root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    dp, tp = compat.slice_mesh(root, "dp"), compat.slice_mesh(root, "tp")
    assert compat.concatenate([dp, tp]) is compat.concatenate([dp, tp])
    assert compat.concatenate([dp]) is dp


@pytest.mark.ranks(8)
def test_overlapping_meshes_are_refused(api: ModuleType) -> None:
    """Concatenating meshes that share an axis is a `ValueError`."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    with pytest.raises(ValueError, match="overlap"):
        api.concatenate([api.slice_mesh(root, ("dp", "cp")), api.flatten(api.slice_mesh(root, ("cp", "tp")), "cp_tp")])


@pytest.mark.ranks(8)
def test_meshes_of_another_root_are_refused(api: ModuleType) -> None:
    """Concatenating meshes of different roots is a `ValueError`, even if the roots are equal."""
    roots = [api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp")) for _ in range(2)]
    with pytest.raises(ValueError, match="has another root than"):
        api.concatenate([api.slice_mesh(roots[0], "dp"), api.slice_mesh(roots[1], "tp")])


def test_names_must_differ_and_there_must_be_a_mesh() -> None:
    """No mesh, equal names, and meshes without names are refused with the reason."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        with pytest.raises(ValueError, match="no mesh was given"):
            compat.concatenate([])
        with pytest.raises(ValueError, match="repeats dp"):
            compat.concatenate([compat.slice_mesh(root, "dp"), compat.slice_mesh(root, ("dp", "tp"))])
        with pytest.raises(ValueError, match="has no axis names"):
            compat.concatenate([compat.init_device_mesh("cpu", (2, 4))])
