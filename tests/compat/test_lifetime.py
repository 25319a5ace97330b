"""The lifetime of meshes, process groups and worlds, and copies and pickles of meshes."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat.oracle import Grid

NAMES = ("dp", "cp", "tp")


def build(api: Any = compat) -> Any:
    """Build a root with a slice, a flattened, an unflattened and a concatenated mesh; look some of them up twice."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = api.flatten(api.slice_mesh(root, ("dp", "cp")), "dp_cp")
    api.slice_mesh(root, ("dp", "cp"))
    api.slice_mesh(root, "dp_cp")
    if api is compat:
        compat.unflatten(flat, 0, (4, 1), ("x", "y"))
        compat.concatenate([compat.slice_mesh(root, "tp"), flat])
    return root


@pytest.mark.ranks(8)
def test_a_family_without_references_is_freed(api: ModuleType) -> None:
    """When the last reference to a mesh family is dropped, all its meshes are freed."""
    root = build(api)
    gone = [
        weakref.ref(root),
        weakref.ref(api.flattened_meshes(root)["dp_cp"]),
        weakref.ref(api.slice_mesh(root, "tp")),
    ]
    del root
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]


@pytest.mark.ranks(8)
def test_a_slice_keeps_its_family_alive() -> None:
    """A reference to one slice is enough to find the root and the flattened axes."""
    part = compat.slice_mesh(build(), "tp")
    gc.collect()
    assert compat.get_root_mesh(part).mesh_dim_names == NAMES
    assert set(compat.flattened_meshes(part)) == {"dp_cp"}


def test_a_mesh_of_a_destroyed_world_is_refused_in_the_next_one() -> None:
    """After the process groups were destroyed and initialised again, older meshes raise, and new ones are right."""
    with fake_world(8):
        old = build()
        part = compat.slice_mesh(old, "tp")
    requests: list[Callable[[], object]] = [
        lambda: compat.slice_mesh(old, ("dp", "cp")),
        lambda: compat.get_group(part),
        lambda: compat.flatten(old, "all"),
        lambda: compat.unflatten(part, 0, (2, 1), ("p", "q")),
        lambda: compat.concatenate([part]),
    ]
    for request in requests:
        with pytest.raises(compat.ProcessGroupDestroyedError, match="build the mesh again"):
            request()
    with fake_world(8, rank=5):
        for request in requests:
            with pytest.raises(compat.ProcessGroupDestroyedError, match="build the mesh again"):
                request()
        assert compat.slice_mesh(build(), "dp_cp").mesh.tolist() == [1, 3, 5, 7]


@pytest.mark.ranks(4)
def test_a_new_world_has_none_of_the_old_flattened_axes(api: ModuleType, tmp_path: Path) -> None:
    """After torch.distributed is initialised again, flattening gives a mesh with a new group, not the destroyed one."""
    old = api.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    api.flatten(old, "all")
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    store = dist.FileStore(str(tmp_path / "store"), world)  # type: ignore[attr-defined] # public, says torch's manual
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    new = api.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    flat = api.flatten(new, "all")
    total = torch.ones(1)
    dist.all_reduce(total, group=api.get_group(flat))
    assert total.item() == 4
    assert api.flattened_meshes(old)["all"] is not flat


@pytest.mark.ranks(4)
def test_a_destroyed_group_is_named() -> None:
    """If the group of one axis was destroyed, looking it up is an error that names it, and the others work."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    dist.destroy_process_group(compat.get_group(root, "tp"))
    with pytest.raises(compat.ProcessGroupDestroyedError, match="axis 1 of"):
        compat.get_group(root, "tp")
    with pytest.raises(compat.ProcessGroupDestroyedError, match="axis 'x' had a process group"):
        compat.unflatten(root, "tp", (2, 1), ("x", "y"))
    assert dist.get_process_group_ranks(compat.get_group(root, "dp")) == Grid((2, 2)).group((0,), dist.get_rank())


@pytest.mark.ranks(2)
def test_closing_lets_the_threads_of_a_group_finish() -> None:
    """A collective in progress can finish while its group is closed: closing does not hold the GIL meanwhile."""
    root = compat.init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    flat = compat.flatten(root, "all", backend_override="gloo")
    groups = [compat.get_group(mesh, axis) for mesh, axis in ((root, "tp"), (flat, "all"))]
    made_here = [group for group in groups if group is not dist.group.WORLD]
    if dist.get_rank() == 0:
        while made_here:
            dist.all_reduce(torch.ones(4), group=made_here.pop(), async_op=True)  # the thread keeps the tensor alive
        groups.clear()
    else:
        time.sleep(1)  # by then rank 0 waits for its thread
        while made_here:
            dist.all_reduce(torch.ones(4), group=made_here.pop())
    compat.destroy_process_groups(root)
    dist.barrier()


@pytest.mark.ranks(8)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copied_family_shares_groups_and_flattened_axes(how: str) -> None:
    """Copies of a root and its slice have the copied root, the flattened axes, and the same groups."""
    root = build()
    pair = (root, compat.slice_mesh(root, ("cp", "tp")))
    new_root, new_part = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert compat.get_root_mesh(new_part) is new_root
    assert compat.get_root_mesh(pair[1]) is root
    assert new_root == root
    groups = worlds.live_process_groups()
    flat = compat.slice_mesh(new_part, "dp_cp")
    assert flat is compat.flattened_meshes(new_root)["dp_cp"]
    assert flat is not compat.flattened_meshes(root)["dp_cp"]
    assert compat.get_group(flat) is compat.get_group(root, "dp_cp")
    assert compat.get_group(compat.unflatten(new_root, "tp", (2,), ("a",)), "a") is compat.get_group(root, "tp")
    assert worlds.live_process_groups() == groups


def test_a_pickled_mesh_does_not_need_this_library_to_be_loaded() -> None:
    """A pickle of one of our meshes names no class of this library, so it can be loaded without it."""
    with fake_world(8):
        root = build()
        compat.slice_mesh(root, "tp")
        for mesh in (root, compat.slice_mesh(root, "tp")):
            assert b"automodel_mesh.compat" not in pickle.dumps(mesh)


def test_a_checkpoint_with_a_mesh_loads_with_weights_only() -> None:
    """`torch.load(weights_only=True)` loads a DTensor on one of our meshes, as on torch's own."""
    with fake_world(8):
        mesh = compat.slice_mesh(build(), "tp")
        buffer = io.BytesIO()
        torch.save({"w": DTensor.from_local(torch.ones(2), mesh, [Replicate()])}, buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)["w"]
        assert loaded.to_local().tolist() == [1.0, 1.0]


def test_a_lookup_without_a_process_group_says_what_to_do() -> None:
    """A lookup on a mesh while torch.distributed is not initialised is an error that says what to do."""
    with fake_world(8):
        mesh = init_device_mesh("cpu", (8,), mesh_dim_names=("dp",))
    with pytest.raises(compat.ProcessGroupDestroyedError, match="init_process_group"):
        compat.slice_mesh(mesh, "dp")


def test_resetting_the_registry_returns_whether_there_is_one() -> None:
    """`reset_mesh_registry` returns whether there is a registry, and new meshes work afterwards."""
    with fake_world(8):
        build()
        assert compat.reset_mesh_registry() is (compat.ERA_NAME == "since_2_06")
        assert compat.slice_mesh(build(), "dp_cp").mesh.tolist() == [0, 2, 4, 6]
