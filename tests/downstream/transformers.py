"""transformers: training by its plans for tensor parallelism and FSDP2, and `device_mesh` of `from_pretrained`."""

from __future__ import annotations

import tempfile
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests import tiny_llama
from tests.downstream.program import Check, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh


def new_mesh(which: str, names: tuple[str, ...], sizes: tuple[int, ...]) -> DeviceMesh:
    """Make a mesh of torch's or of ours."""
    if which == "ours":
        compat: Any = import_module("automodel_mesh.compat")
        mesh: DeviceMesh = compat.init_device_mesh("cpu", sizes, mesh_dim_names=names)
        return mesh
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def meshes_of(which: str, config: Any) -> Any:
    """Return the two meshes of a `DistributedConfig`: for experts, ours is another view of the same ranks."""
    if which == "plain":
        return import_module("transformers.distributed.utils").initialize_distributed_mesh(config)[1]
    compat: Any = import_module("automodel_mesh.compat")
    names = ("pp", "dp_replicate", "fsdp", "tp")
    dense = new_mesh(which, names, (config.pp_size, config.dp_replicate_size, config.fsdp_size, config.tp_size))
    experts = compat.refold(dense, ("fsdp", "tp"), (config.efsdp_size, config.ep_size), ("efsdp", "ep"))
    return import_module("transformers.distributed.utils").TransformersDeviceMesh(dense, experts)


def new_mixture() -> Any:
    """Make a tiny Qwen3 with experts, the same in every process."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
    config = transformers.Qwen3MoeConfig(**{**tiny_llama.SIZES, **sizes})
    return transformers.Qwen3MoeForCausalLM(config)


def train(which: str, new_model: Callable[[], Any], sizes: dict[str, int]) -> list[float]:
    """Train a model that transformers has distributed by its own plans."""
    config = import_module("transformers.distributed").DistributedConfig(**sizes)
    meshes = meshes_of(which, config)
    model = new_model()
    model = type(model).maybe_distribute_model(model, config, meshes)
    sharded = [parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh")]
    assert max(mesh.ndim for mesh in sharded) == sum(size > 1 for name, size in sizes.items() if name != "ep_size")
    parts = dist.get_world_size() // config.tp_size
    losses = tiny_llama.train(model, dist.get_rank() // config.tp_size, parts, dist.group.WORLD)
    return [loss / config.tp_size for loss in losses]


def given(which: str) -> list[float]:
    """Load with a plan over one axis of a given mesh of two axes, and train the same on the other axis."""
    transformers: Any = import_module("transformers")
    mesh = new_mesh(which, ("dp", "tp"), (2, 2))
    with tempfile.TemporaryDirectory() as folder:
        folders = [folder]
        dist.broadcast_object_list(folders)  # that of rank 0, which alone saves
        model: Any = tiny_llama.new_model()
        model.save_pretrained(folders[0])
        dist.barrier()
        model = transformers.AutoModelForCausalLM.from_pretrained(folders[0], tp_plan="auto", device_mesh=mesh)
        dist.barrier()
    shards = next(each for name, each in model.named_parameters() if name.endswith("q_proj.weight"))
    assert shards.device_mesh.size() == 2, f"the weights are sharded over {shards.device_mesh.size()} ranks"
    return tiny_llama.train(model, 0, 1)


def reference_of_mixture() -> list[float]:
    """Return the losses of one process that trains the whole model with experts."""
    return tiny_llama.train(new_mixture(), 0, 1)


HSDP_TP: Final = {"dp_replicate_size": 2, "fsdp_size": 2, "tp_size": 2}
EXPERTS: Final = {"fsdp_size": 2, "tp_size": 2, "ep_size": 2}
on_llama, on_mixture = partial(train, new_model=tiny_llama.new_model), partial(train, new_model=new_mixture)

CHECKS: Final = (
    Check("training by its plans: tensor parallel", 2, partial(on_llama, sizes={"tp_size": 2}), tiny_llama.reference),
    Check("training by its plans: HSDP, tensor parallel", 8, partial(on_llama, sizes=HSDP_TP), tiny_llama.reference),
    Check(
        "training by its plans: FSDP, tensor parallel, experts",
        4,
        partial(on_mixture, sizes=EXPERTS),
        reference_of_mixture,
    ),
    Check('`from_pretrained(tp_plan="auto", device_mesh=mesh)`', 4, given, tiny_llama.reference),
)

if __name__ == "__main__":
    main(CHECKS, ["transformers.models.llama", "transformers.models.qwen3_moe", "transformers.distributed"])
