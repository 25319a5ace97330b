"""megatron-fsdp: the groups that it looks up in a mesh, and `fully_shard` with the mesh."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from tests.downstream import plain
from tests.downstream.program import Check, check_mesh, check_ranks, main

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def fsdp_mesh(which: str) -> DeviceMesh:
    """Make a mesh whose data and context parallel axes shard together."""
    if which == "ours":
        layer: Any = import_module("automodel_mesh")
        sizes = layer.ParallelismSizes(cp_size=2, tp_size=2)
        mesh: DeviceMesh = layer.MeshContext.build(layer.MegatronFSDPConfig(), sizes).device_mesh
        return mesh
    mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "cp", "tp"))
    plain.flatten(mesh["dp", "cp"], "dp_cp")
    return mesh


def hsdp_mesh(which: str) -> DeviceMesh:
    """Make a mesh with replicas, whose other data parallel axis shards together with context parallelism."""
    if which == "ours":
        layer: Any = import_module("automodel_mesh")
        sizes = layer.ParallelismSizes(dp_replicate_size=2, cp_size=2)
        mesh: DeviceMesh = layer.MeshContext.build(layer.FSDP2Config(), sizes).device_mesh
        return mesh
    names = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
    mesh = init_device_mesh("cpu", (1, 2, 2, 2, 1), mesh_dim_names=names)
    for axis, parts in {"dp_shard_cp": ("dp_shard", "cp"), "dp_cp": ("dp_replicate", "dp_shard", "cp")}.items():
        plain.flatten(mesh[parts], axis)
    return mesh


def index_of_fsdp(which: str) -> None:
    """Look up the axes of FSDP."""
    utils: Any = import_module("megatron_fsdp.utils")
    index = utils.FSDPDistributedIndex(fsdp_mesh(which), dp_shard_dim="dp_cp", tp_dim="tp")
    rank = dist.get_rank()
    check_ranks(index.fsdp_group, range(rank % 2, 8, 2), "dp_cp")
    check_mesh(index.get_submesh("tp"), [rank // 2 * 2, rank // 2 * 2 + 1], "tp")
    check_mesh(index.get_submesh("dp_cp"), range(rank % 2, 8, 2), "dp_cp")
    assert index.get_submesh(("dp_cp", "tp")).mesh.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def index_of_hsdp(which: str) -> None:
    """Look up the axes of HSDP."""
    utils: Any = import_module("megatron_fsdp.utils")
    mesh = hsdp_mesh(which)
    axes = {"dp_shard_dim": "dp_shard_cp", "dp_outer_dim": "dp_replicate", "tp_dim": "tp"}
    index = utils.FSDPDistributedIndex(mesh, **axes, hybrid_fsdp_group=mesh.get_group("dp_cp"))
    rank = dist.get_rank()
    first = rank // 4 * 4
    check_ranks(index.fsdp_group, range(first, first + 4), "dp_shard_cp")
    check_ranks(index.outer_fsdp_group, [rank % 4, rank % 4 + 4], "dp_replicate")
    check_ranks(index.hybrid_fsdp_group, range(8), "dp_cp")
    both = index.get_submesh(("dp_replicate", "dp_shard_cp"))
    assert both.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]], both.mesh.tolist()


def shard(which: str) -> None:
    """Shard a model."""
    package: Any = import_module("megatron_fsdp")
    package.fully_shard_model(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        device_mesh=fsdp_mesh(which),
        dp_shard_dim="dp_cp",
        tp_dim="tp",
        fsdp_unit_modules=[nn.Linear],
        device=torch.device("cpu"),
    )


CHECKS: Final = (
    Check("groups that it looks up: data with context parallelism, and tensor parallelism", 8, index_of_fsdp),
    Check("groups that it looks up: HSDP with context parallelism", 8, index_of_hsdp),
    Check("`fully_shard_model` on CPU", 8, shard),
)

if __name__ == "__main__":
    main(CHECKS, ["megatron_fsdp"])
