"""The contract on every available device and backend: gloo on the CPU, NCCL and gloo on CUDA."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.testing import DeviceBackend
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
