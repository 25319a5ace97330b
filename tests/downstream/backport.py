"""Packages that are written for a newer torch's meshes, or use what only newer ones do, without and with `backport()`.

All meshes are plain torch's.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader, TensorDataset

from tests.downstream import accelerate, plain, torchtitan
from tests.downstream.program import Check, check_ranks, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh


def on_torchs_meshes(which: str, check: Callable[[str], None]) -> None:
    """Make a check on plain torch's meshes, after a call of `backport`, or without."""
    if which == "ours":
        compat: Any = import_module("automodel_mesh.compat")
        compat.backport()
    check("plain")


def stage() -> DeviceMesh:
    """Return the part of a mesh that is this rank's pipeline stage."""
    names = ("pp", "dp_shard", "cp", "tp")
    return init_device_mesh("cpu", (1, 2, 2, 2), mesh_dim_names=names)["dp_shard", "cp", "tp"]


def loader(_which: str) -> None:
    """Give each data parallel rank its own part of the data, with the mesh of a pipeline stage."""
    import_module("accelerate").PartialState(cpu=True)
    batches: DataLoader[Any] = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    prepare: Any = import_module("accelerate.data_loader").prepare_data_loader
    ((found,),) = prepare(batches, put_on_device=False, torch_device_mesh=stage())
    part = dist.get_rank() // 4
    assert found.tolist() == [2 * part, 2 * part + 1], found.tolist()


def index(_which: str) -> None:
    """Look up the axes of FSDP in the mesh of a pipeline stage."""
    utils: Any = import_module("megatron_fsdp.utils")
    groups = utils.FSDPDistributedIndex(stage(), dp_shard_dim="dp_shard", tp_dim="tp")
    rank = dist.get_rank()
    check_ranks(groups.fsdp_group, [rank % 4, rank % 4 + 4], "dp_shard")
    check_ranks(groups.get_submesh("tp").get_group(), [rank // 2 * 2, rank // 2 * 2 + 1], "tp")


def names(_which: str) -> None:
    """List the names of the axes, flattened ones too, of the family of a pipeline stage."""
    utils: Any = import_module("megatron_fsdp.utils")
    mesh = stage()
    plain.flatten(mesh, "all_of_it")
    found = utils.get_mesh_names(mesh)
    assert found == ["dp_shard", "cp", "tp", "all_of_it"], found


CHECKS: Final = tuple(
    Check(what, 8, partial(on_torchs_meshes, check=check))
    for what, check in {
        "torchtitan: meshes of `ParallelDims`": torchtitan.meshes,
        "accelerate: meshes of `ParallelismConfig`": accelerate.meshes,
        "accelerate: `prepare_data_loader` with the mesh of a pipeline stage": loader,
        "megatron-fsdp: groups that it looks up in the mesh of a pipeline stage": index,
        "megatron-fsdp: names of the axes of the mesh of a pipeline stage": names,
    }.items()
)

if __name__ == "__main__":
    with suppress(ModuleNotFoundError):
        import_module("spmd_types")
    # It cannot be imported below torch 2.12; the meshes of torchtitan need no more of it than annotations do.
    sys.modules.setdefault("spmd_types", ModuleType("spmd_types"))
    main(CHECKS, ["accelerate", "megatron_fsdp.utils", "torchtitan.distributed.parallel_dims"])
