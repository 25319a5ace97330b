"""The contract on every available device and backend: gloo on the CPU, NCCL and gloo on CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.testing import DeviceBackend, fake_world
from tests.compat.oracle import Grid


def check_every_axis(device_type: str, shape: tuple[int, ...]) -> None:
    """Build a mesh of this shape, derive from it, and sum the ranks along every axis on the device."""
    grid, rank = Grid(shape), dist.get_rank()
    root = compat.init_device_mesh(device_type, shape, mesh_dim_names=("dp", "cp", "tp"))
    flat = compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "dp_tp")
    split = compat.unflatten(flat, "dp_tp", (shape[0], shape[2]), ("a", "b"))
    joined = compat.concatenate([compat.slice_mesh(root, "cp"), flat])
    expected = {
        (root, "dp"): (0,),
        (root, "cp"): (1,),
        (root, "tp"): (2,),
        (flat, "dp_tp"): (0, 2),
        (split, "a"): (0,),
        (split, "b"): (2,),
        (joined, "cp"): (1,),
    }
    for (mesh, name), axis in expected.items():
        assert mesh.device_type == device_type
        total = torch.tensor([rank], device=device_type)
        dist.all_reduce(total, group=compat.get_group(mesh, name))
        assert total.tolist() == [sum(grid.group(axis, rank))], (name, axis)


@pytest.mark.ranks(1)
def test_one_rank_on_each_device_and_backend(device_backend: DeviceBackend) -> None:
    """A mesh of one rank works on each device and backend: with NCCL a GPU can have one rank only."""
    check_every_axis(device_backend.device_type, (1, 1, 1))


@pytest.mark.ranks(4)
def test_several_ranks_on_each_device_and_backend(device_backend: DeviceBackend) -> None:
    """Collectives along every axis of every kind of mesh sum the right ranks, on each device and backend."""
    check_every_axis(device_backend.device_type, (2, 1, 2))


@pytest.mark.parametrize("name", ["cpu", "cuda", "hpu", "meta", "privateuseone", "mps", "xpu", "npu"])
@pytest.mark.ranks(1)
def test_a_mesh_can_be_built_for_any_device_type(name: str) -> None:
    """Every name that torch builds meshes for is taken, also without such a device or the package that brings it."""
    assert compat.init_device_mesh(name, (1,), mesh_dim_names=("dp",)).device_type == name


@pytest.mark.ranks(1)
def test_a_mesh_can_be_built_for_a_renamed_device_type() -> None:
    """The name that an out-of-tree device was given may have digits and underscores."""
    torch.utils.rename_privateuse1_backend("my_npu_2")
    assert compat.init_device_mesh("my_npu_2", (1,)).device_type == "my_npu_2"


def test_a_device_is_taken_as_its_type() -> None:
    """`torch.device("cpu")` becomes "cpu": the mesh is equal to the one built by name."""
    with fake_world(4):
        mesh = compat.init_device_mesh(torch.device("cpu"), (4,))  # type: ignore[arg-type]
        assert type(mesh.device_type) is str
        assert mesh == compat.init_device_mesh("cpu", (4,))


@pytest.mark.parametrize(
    ("given", "meant"),
    [("cuda:0", "cuda"), ("gpu", "cuda"), ("CPU", "cpu"), ("gpu:1", "cuda"), (torch.device("xpu", 1), "xpu")],
)
def test_a_device_that_is_no_type_is_refused_with_the_type(given: Any, meant: str) -> None:
    """A device with an index and the names "gpu" and "CPU" are refused, with the right spelling."""
    if meant == "cuda" and "gpu" in str(given):
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        meant = meant if accelerator is None else accelerator.type
    with fake_world(4), pytest.raises(ValueError, match=f"without an index.*give '{meant}'"):
        compat.init_device_mesh(given, (4,))
