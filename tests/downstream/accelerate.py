"""accelerate: the meshes of `ParallelismConfig`, `prepare` with FSDP2, and data loaders."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from tests import tiny_llama
from tests.downstream.program import Check, check_mesh, check_ranks, main

HSDP: Final = {"dp_replicate_size": 2, "dp_shard_size": 2}


def config_with_mesh(which: str, **sizes: int) -> Any:
    """Return a `ParallelismConfig` with its own mesh, or with one of ours."""
    accelerate: Any = import_module("accelerate")
    config = accelerate.ParallelismConfig(**sizes)
    if which == "ours":
        layer: Any = import_module("automodel_mesh")
        ours = {name: size for name, size in sizes.items() if name != "dp_shard_size"}
        config.device_mesh = layer.MeshContext.build(layer.FSDP2Config(), layer.ParallelismSizes(**ours)).device_mesh
    return config


def meshes(which: str) -> None:
    """Look up the axes that accelerate uses, each with the right ranks."""
    config = config_with_mesh(which, **HSDP, cp_size=2)
    mesh = config.get_device_mesh("cpu")
    rank = dist.get_rank()
    check_mesh(mesh["cp"], [rank // 2 * 2, rank // 2 * 2 + 1], "cp")
    first = rank // 4 * 4
    both = mesh[tuple(config.fsdp_dim_names)]
    assert both.mesh.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]], both.mesh.tolist()
    check_ranks(both.get_group("dp_shard_cp"), range(first, first + 4), "dp_shard_cp")
    check_ranks(mesh.get_group("dp_cp"), range(8), "dp_cp")
    check_ranks(mesh.get_group("dp"), range(rank % 2, 8, 2), "dp")


def accelerator(which: str) -> None:
    """Make an `Accelerator` with the mesh."""
    accelerate: Any = import_module("accelerate")
    accelerate.Accelerator(cpu=True, parallelism_config=config_with_mesh(which, **HSDP))


def train(which: str, **sizes: int) -> list[float]:
    """Train a model that `prepare` has sharded with FSDP2."""
    accelerate: Any = import_module("accelerate")
    config = config_with_mesh(which, **sizes)
    mesh = config.get_device_mesh("cpu")
    made = accelerate.Accelerator(cpu=True)
    # On accelerators its arguments do this; on CPU they are refused, see above.
    made.state.parallelism_config, made.state.device_mesh = config, mesh
    made.state.distributed_type = accelerate.PartialState().distributed_type = accelerate.utils.DistributedType.FSDP
    made.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    model = tiny_llama.new_model()
    if "tp_size" in sizes:
        tiny_llama.shard(model, mesh["tp"])
        vars(model)["_tp_size"] = 2  # accelerate asks for it, and transformers' own plans set it
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=tiny_llama.RATE)
    model, optimizer = made.prepare(model, optimizer)
    assert all(parameter.device_mesh.ndim == len(sizes) for parameter in model.parameters())
    group = mesh.get_group("dp")
    return tiny_llama.train(model, dist.get_rank(group), dist.get_world_size(group), group, optimizer=optimizer)


def train_hsdp(which: str) -> list[float]:
    """Train with two replicas of two shards each."""
    return train(which, **HSDP)


def train_hsdp_tp(which: str) -> list[float]:
    """Train with two replicas of two shards each, of a model that is tensor parallel over two ranks."""
    return train(which, **HSDP, tp_size=2)


def loader(which: str) -> None:
    """Give each data parallel rank its own part of the data, and tensor parallel ranks the same."""
    data_loader: Any = import_module("accelerate.data_loader")
    import_module("accelerate").PartialState(cpu=True)
    mesh = config_with_mesh(which, **HSDP, tp_size=2).get_device_mesh("cpu")
    batches: DataLoader[Any] = DataLoader(TensorDataset(torch.arange(8)), batch_size=2)
    ((found,),) = data_loader.prepare_data_loader(batches, put_on_device=False, torch_device_mesh=mesh)
    part = dist.get_rank() // 2
    assert found.tolist() == [2 * part, 2 * part + 1], found.tolist()


CHECKS: Final = (
    Check("meshes of `ParallelismConfig`: HSDP with context parallelism", 8, meshes),
    Check("`Accelerator(cpu=True, parallelism_config=...)`", 4, accelerator),
    Check("`prepare` with FSDP2, and training: HSDP", 4, train_hsdp, tiny_llama.reference),
    Check("`prepare` with FSDP2, and training: HSDP with tensor parallelism", 8, train_hsdp_tp, tiny_llama.reference),
    Check("`prepare_data_loader`: HSDP with tensor parallelism", 8, loader),
)

if __name__ == "__main__":
    main(CHECKS, ["accelerate", "transformers.models.llama"])
