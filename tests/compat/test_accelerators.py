"""The contract on an accelerator that is not CUDA: the device `toy`, with backends that are registered for it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, compat, initialize_distributed
from automodel_mesh.build import default_device_type
from automodel_mesh.testing import run_ranks
from tests import toy_device
from tests.compat.oracle import Grid

RANKS = 4
SHAPE = (2, 1, 2)
WORLDS = ["toyccl", "TOYCCL", "toypy", "toy:toyccl", "cpu:gloo,toy:toyccl", "gloo"]


@pytest.fixture(autouse=True)
def toy() -> toy_device.ToyModule:
    """The module of the device `toy`, which the ranks inherit."""
    return toy_device.register()


def check_every_axis(*, communicates: bool = True) -> None:
    """Build a mesh on the toy device and derive from it; compare the ranks of every axis, and sum them."""
    root = compat.init_device_mesh("toy", SHAPE, mesh_dim_names=("dp", "cp", "tp"))
    grid, rank = Grid(SHAPE), dist.get_rank()
    flat = compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "dp_tp")
    split = compat.unflatten(flat, "dp_tp", (2, 2), ("a", "b"))
    refolded = compat.refold(root, ("dp", "cp", "tp"), (1, 4), ("ep_shard", "ep"))
    expected: Mapping[tuple[DeviceMesh, str], tuple[int, ...]] = {
        (root, "dp"): (0,),
        (root, "cp"): (1,),
        (compat.slice_mesh(root, ("cp", "tp")), "tp"): (2,),
        (flat, "dp_tp"): (0, 2),
        (compat.slice_mesh(root, "dp_tp"), "dp_tp"): (0, 2),
        (split, "a"): (0,),
        (split, "b"): (2,),
        (refolded, "ep"): (0, 1, 2),
        (compat.concatenate([compat.slice_mesh(root, "cp"), flat]), "cp"): (1,),
    }
    for (mesh, name), axes in expected.items():
        group, ranks = compat.get_group(mesh, name), grid.group(axes, rank)
        assert mesh.device_type == "toy"
        assert compat.get_root_mesh(mesh) is root
        assert tuple(dist.get_process_group_ranks(group)) == tuple(ranks)
        if communicates:
            total = torch.tensor([rank])  # on the CPU: the toy device has no tensors
            dist.all_reduce(total, group=group)
            assert total.tolist() == [sum(ranks)]
    end = compat.abort_process_groups if communicates else compat.destroy_process_groups
    end(root)


@pytest.mark.parametrize("backend", WORLDS)
def test_meshes_on_an_accelerator(backend: str) -> None:
    """Meshes of every kind have the right groups, whatever backends the default group has; torch selects a device."""
    communicates = backend in {"toypy", "cpu:gloo,toy:toyccl", "gloo"}

    def body() -> None:
        check_every_axis(communicates=communicates)
        assert torch.get_device_module("toy").current_device() == dist.get_rank()

    run_ranks(body, RANKS, backend=backend)


@pytest.mark.ranks(RANKS, backend=None)
def test_a_mesh_starts_a_world_with_the_backend_of_the_accelerator() -> None:
    """Without a world, `init_device_mesh` starts one that serves the accelerator, as torch does."""
    try:
        dist.BackendConfig(dist.Backend(dist.Backend.UNDEFINED))
    except RuntimeError as error:
        pytest.skip(f"this torch finds no default backend for a device without hooks in C++: {error}")
    check_every_axis(communicates=False)
    assert dist.get_backend_config() in {"toy:toyccl", "toy:toypy"}  # torch's default is the first or last registered


@pytest.mark.parametrize(
    ("backend", "kind"),
    [("toyccl", "toy"), ("cpu:gloo,toy:toyccl", "toy"), ("toy:gloo", "toy"), ("gloo", "cpu"), ("cpu:gloo", "cpu")],
)
def test_a_context_is_on_the_accelerator_if_the_world_serves_it(backend: str, kind: str) -> None:
    """The meshes of a framework are on the accelerator if the default group has a backend for it that is not gloo's."""

    def body() -> None:
        assert default_device_type() == kind
        with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
            assert context.device_mesh is not None
            assert context.device_mesh.device_type == kind
            assert len(context.process_groups()) > 1

    run_ranks(body, RANKS, backend=backend)


@pytest.mark.parametrize("backend", ["toyccl", "ToyPy", "toy:toyccl", "cpu:gloo,toy:toyccl"])
def test_initialize_distributed_selects_the_accelerator(backend: str) -> None:
    """Any backend registered with torch does, and the device is the accelerator of the local rank."""

    def body() -> None:
        info = initialize_distributed(backend, timeout_minutes=1)
        rank = dist.get_rank()
        device = torch.device("toy", rank)
        assert (info.backend, info.device, info.rank, info.world_size) == (backend.lower(), device, rank, RANKS)
        assert torch.get_device_module("toy").current_device() == rank
        assert initialize_distributed(backend) == info
        parts = [part.rpartition(":")[2] for part in backend.split(",")]
        assert initialize_distributed(parts[-1]).device == device
        if parts[0] == "gloo":
            assert initialize_distributed("gloo").device == torch.device("cpu")
        with pytest.raises(ValueError, match=r"backend='toy:gloo' was asked for, and this process is in a world with"):
            initialize_distributed("toy:gloo")
        check_every_axis(communicates=backend == "cpu:gloo,toy:toyccl")

    run_ranks(body, RANKS, backend=None)


@pytest.mark.parametrize("backend", ["gloo", "cpu:gloo"])
@pytest.mark.ranks(RANKS, backend=None)
def test_gloo_is_for_the_cpu_beside_an_accelerator(backend: str) -> None:
    """With gloo, which serves the CPU, the device is the CPU, and no accelerator is selected."""
    assert initialize_distributed(backend).device == torch.device("cpu")
    assert not torch.get_device_module("toy").is_initialized()


def test_a_local_rank_without_an_accelerator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """More local ranks than devices, and a backend whose device is not here, are errors, before a world is started."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, str(toy_device.DEVICES))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(toy_device.DEVICES + 1))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(RuntimeError, match=r"LOCAL_RANK=4 has no device: this process sees 4 of type 'toy'\. Start at"):
        initialize_distributed("toyccl")
    dist.Backend.register_backend("xpuccl", toy_device.make_gloo, devices=["xpu"])
    with pytest.raises(RuntimeError, match=r"backend='xpuccl' serves xpu, and torch .* can use no such device here"):
        initialize_distributed("xpuccl")
    assert not dist.is_initialized()
