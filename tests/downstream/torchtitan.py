"""torchtitan: the meshes of `ParallelDims`, and its Llama in training with tensor parallelism and HSDP."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from tests import tiny_llama
from tests.downstream import plain
from tests.downstream.program import Check, check_mesh, main

if TYPE_CHECKING:
    from collections.abc import Callable


BACKEND: Final = "partial_dtensor"  # of the three of torchtitan, the one that runs on CPU


def our_root(_device_type: str, sizes: tuple[int, ...], *, mesh_dim_names: tuple[str, ...]) -> Any:
    """Make a mesh of ours that torch's `_unflatten` splits, as `build_mesh` is written."""
    compat: Any = import_module("automodel_mesh.compat")
    return compat.init_device_mesh("cpu", sizes, mesh_dim_names=mesh_dim_names)


def our_world(_device_type: str, sizes: tuple[int, ...], *, mesh_dim_names: tuple[str, ...]) -> Any:
    """Make a mesh of ours that our `unflatten` splits: `ParallelDims.build_mesh` makes all others of it."""
    compat: Any = import_module("automodel_mesh.compat")
    return plain.world_split_by(compat.unflatten, our_root("cpu", sizes, mesh_dim_names=mesh_dim_names))


def new_dims(which: str, make_ours: Callable[..., Any] = our_world, **sizes: int) -> Any:
    """Return the dimensions of a parallel training, with their meshes."""
    module: Any = import_module("torchtitan.distributed.parallel_dims")
    # torchtitan takes CUDA where there is no accelerator, so its meshes on CPU are made here on both sides.
    world: Callable[..., Any] = lambda _type, *args, **options: init_device_mesh("cpu", *args, **options)  # noqa: E731
    module.init_device_mesh = make_ours if which == "ours" else world
    whole = {"dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1, "pp": 1, "ep": 1, **sizes}
    dims = module.ParallelDims(**whole, world_size=dist.get_world_size(), spmd_backend=BACKEND)
    dims.build_mesh()
    return dims


def meshes(which: str, make_ours: Callable[..., Any] = our_world) -> None:
    """Look up the meshes of a training with FSDP, context and tensor parallelism and experts."""
    dims = new_dims(which, make_ours, dp_shard=2, cp=2, tp=2, ep=2)
    rank = dist.get_rank()
    check_mesh(dims.get_mesh("tp"), [rank // 2 * 2, rank // 2 * 2 + 1], "tp")
    check_mesh(dims.get_mesh("cp"), [rank // 4 * 4 + rank % 2, rank // 4 * 4 + rank % 2 + 2], "cp")
    check_mesh(dims.get_mesh("batch"), [rank % 4, rank % 4 + 4], "batch")
    check_mesh(dims.get_mesh("loss"), range(rank % 2, 8, 2), "loss")
    check_mesh(dims.get_mesh("fsdp"), range(rank % 2, 8, 2), "fsdp")
    check_mesh(dims.get_mesh("ep"), [rank // 2 * 2, rank // 2 * 2 + 1], "ep")
    check_mesh(dims.get_mesh("efsdp"), range(rank % 2, 8, 2), "efsdp")
    assert dims.get_mesh(["fsdp", "tp"]).mesh.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def new_model(parallelism: Any) -> nn.Module:
    """Make torchtitan's tiny Llama, the same in every process."""
    llama: Any = import_module("torchtitan.models.llama3")
    attention: Any = import_module("torchtitan.models.common.attention")
    config = llama.llama3_configs["debugmodel"](attn_backend="flex")
    for layer in config.layers:  # flex attention has no backward on CPU
        layer.attention.inner_attention = attention.ScaledDotProductAttention.Config()
    config.update_from_config(config=SimpleNamespace(parallelism=parallelism))
    torch.manual_seed(0)
    model: Any = config.build()
    with torch.no_grad():
        model.init_weights(buffer_device=torch.device("cpu"))
    return model.train()  # type: ignore[no-any-return]


def steps(model: nn.Module, index: int, parts: int, group: Any = None) -> list[float]:
    """Train; torchtitan has FSDP2 add gradients up."""
    return tiny_llama.train(model, index, parts, group, rate=0.1, call=nn.Module.__call__, gradients_added=True)


def train(which: str) -> list[float]:
    """Train with two replicas of two shards each, tensor parallel over two ranks."""
    config: Any = import_module("torchtitan.config")
    import_module("torchtitan.distributed.utils").set_spmd_backend(BACKEND)
    parallelism = config.ParallelismConfig(
        data_parallel_replicate_degree=2,
        data_parallel_shard_degree=2,
        tensor_parallel_degree=2,
        spmd_backend=BACKEND,
    )
    dims = new_dims(which, dp_replicate=2, dp_shard=2, tp=2)
    model = import_module("torchtitan.models.llama3").parallelize_llama(
        new_model(parallelism),
        parallel_dims=dims,
        training=config.TrainingConfig(mixed_precision_param="float32"),
        parallelism=parallelism,
        compile_config=config.CompileConfig(),
        ac_config=None,
        dump_folder="",
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot add and divide in one step
    batch = dims.get_mesh("batch")
    return steps(model, batch.get_local_rank(), batch.size(), batch.get_group())


def reference() -> list[float]:
    """Return the losses of one process that trains the whole model."""
    config: Any = import_module("torchtitan.config")
    return steps(new_model(config.ParallelismConfig(spmd_backend=BACKEND)), 0, 1)


def meshes_of_torch(which: str) -> None:
    """Look them up where torch splits a root of ours."""
    meshes(which, our_root)


CHECKS: Final = (
    Check("meshes of `ParallelDims`: FSDP, context and tensor parallelism, experts", 8, meshes),
    Check("meshes of `ParallelDims`, where torch's `_unflatten` splits a world of ours", 8, meshes_of_torch),
    Check("training of its Llama: HSDP with tensor parallelism", 8, train, reference),
)

if __name__ == "__main__":
    main(CHECKS, ["torchtitan.distributed.parallel_dims", "torchtitan.models.llama3"])
