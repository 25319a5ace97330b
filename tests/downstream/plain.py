"""The private names of torch and of packages that the programs need, without an import of this library."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def flatten(mesh: DeviceMesh, name: str) -> DeviceMesh:
    """Flatten a mesh."""
    return mesh._flatten(name)


def split(axis: DeviceMesh, sizes: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """Split a mesh of one axis. Torch up to 2.9 has no call for it, and NeMo AutoModel, for one, does this."""
    if hasattr(axis, "_unflatten"):
        mesh: DeviceMesh = axis._unflatten(0, sizes, names)
        return mesh
    return DeviceMesh(axis.device_type, axis.mesh.reshape(sizes), mesh_dim_names=names)


def world_split_by(unflatten: Callable[..., DeviceMesh], world: DeviceMesh) -> Any:
    """Return what a function splits when torchtitan calls torch's `_unflatten`."""

    def called(dim: int, degrees: Sequence[int], names: Sequence[str], **_fake_groups: Any) -> DeviceMesh:
        return unflatten(world, dim, degrees, names)

    return SimpleNamespace(_unflatten=called)


def attention_meshes(config: Any) -> tuple[DeviceMesh, DeviceMesh, DeviceMesh]:
    """Return the meshes that attention of diffusers uses: ulysses, ring, and both flattened."""
    return config._ulysses_mesh, config._ring_mesh, config._flattened_mesh
