"""diffusers: context parallelism on the mesh that `ContextParallelConfig` makes, and on a part of a larger mesh."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.downstream import plain
from tests.downstream.program import Check, check_mesh, main

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

AXES: Final = ("ring", "ulysses")


def mesh_with_data(which: str, ring: int, ulysses: int) -> DeviceMesh:
    """Make a mesh of two data parallel ranks, and the axes of context parallelism."""
    if which == "ours":
        compat: Any = import_module("automodel_mesh.compat")
        mesh: DeviceMesh = compat.init_device_mesh("cpu", (2, ring, ulysses), mesh_dim_names=("dp", *AXES))
        return mesh
    return init_device_mesh("cpu", (2, ring, ulysses), mesh_dim_names=("dp", *AXES))


def split_mesh(which: str, ring: int, ulysses: int) -> DeviceMesh:
    """Split the context parallel axis of a mesh with two data parallel ranks, as frameworks do."""
    if which == "ours":
        layer: Any = import_module("automodel_mesh")
        sizes = layer.ParallelismSizes(dp_size=2, cp_size=ring * ulysses)
        root = layer.MeshContext.build(layer.FSDP2Config(), sizes).device_mesh
        split: DeviceMesh = layer.create_ring_ulysses_mesh(root, ring_degree=ring, ulysses_degree=ulysses)
        return split
    root = init_device_mesh("cpu", (2, ring * ulysses), mesh_dim_names=("dp", "cp"))
    return plain.split(root["cp"], (ring, ulysses), AXES)


def setup(mesh: DeviceMesh | None, ring: int, ulysses: int) -> Any:
    """Set a configuration up, as `enable_parallelism` does."""
    diffusers: Any = import_module("diffusers")
    config = diffusers.ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=mesh)
    config.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh)
    return config


def check_axes(config: Any) -> None:
    """Look at the meshes that attention uses, of two ranks by two."""
    rank = dist.get_rank()
    first = rank // 4 * 4
    along_ulysses, along_ring, along_both = plain.attention_meshes(config)
    check_mesh(along_ulysses, [rank // 2 * 2, rank // 2 * 2 + 1], "ulysses")
    check_mesh(along_ring, [first + rank % 2, first + rank % 2 + 2], "ring")
    check_mesh(along_both, range(first, first + 4), "both")


def larger_mesh(which: str) -> None:
    """Take both axes from a mesh with data parallelism."""
    check_axes(setup(mesh_with_data(which, 2, 2), 2, 2))


def split_axis(which: str) -> None:
    """Take both axes from a mesh of an axis that was split."""
    check_axes(setup(split_mesh(which, 2, 2), 2, 2))


def new_model() -> nn.Module:
    """Make a tiny Flux, the same in every process."""
    diffusers: Any = import_module("diffusers")
    torch.manual_seed(0)
    model: nn.Module = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    return model.eval()


@torch.no_grad()
def forward(model: nn.Module) -> list[float]:
    """Run the model, and return a number that all of its output changes."""
    seed = torch.Generator().manual_seed(1)
    (output,) = model(
        hidden_states=torch.randn(1, 16, 4, generator=seed),
        encoder_hidden_states=torch.randn(1, 8, 32, generator=seed),
        pooled_projections=torch.randn(1, 32, generator=seed),
        timestep=torch.tensor([0.5]),
        img_ids=torch.randn(16, 3, generator=seed),
        txt_ids=torch.zeros(8, 3),
        return_dict=False,
    )
    return [(output * torch.arange(output.numel()).reshape(output.shape)).square().mean().item()]


def enable(mesh: DeviceMesh, *, counted: bool) -> list[float]:
    """Run a model with context parallelism over two ranks."""
    if not counted:
        torch.accelerator.device_count = lambda: 1
    diffusers: Any = import_module("diffusers")
    model: Any = new_model()
    model.enable_parallelism(config=diffusers.ContextParallelConfig(ulysses_degree=2, mesh=mesh))
    return forward(model)


def enable_on_cpu(which: str) -> list[float]:
    """Call `enable_parallelism` as it is."""
    return enable(mesh_with_data(which, 1, 2), counted=True)


def forward_on_larger_mesh(which: str) -> list[float]:
    """Run the model on a mesh with data parallelism."""
    return enable(mesh_with_data(which, 1, 2), counted=False)


def forward_on_split_axis(which: str) -> list[float]:
    """Run the model on a mesh of an axis that was split."""
    return enable(split_mesh(which, 1, 2), counted=False)


def reference() -> list[float]:
    """Return what one process gives."""
    return forward(new_model())


CHECKS: Final = (
    Check("axes of `ContextParallelConfig(mesh=...)`: a mesh with data parallelism", 8, larger_mesh),
    Check("axes of `ContextParallelConfig(mesh=...)`: an axis that was split", 8, split_axis),
    Check("`enable_parallelism` on CPU", 4, enable_on_cpu, reference),
    Check("output of Flux: a mesh with data parallelism", 4, forward_on_larger_mesh, reference),
    Check("output of Flux: an axis that was split", 4, forward_on_split_axis, reference),
)

if __name__ == "__main__":
    main(CHECKS, ["diffusers.models.transformers.transformer_flux", "diffusers"])
