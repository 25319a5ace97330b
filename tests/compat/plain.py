"""Torch's own calls under the names of the contract, for comparisons in tests and benchmarks.

The library does not use this module. If a release has no such call, it fails as torch fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.eras.support import torch_at_least

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def restore_torch() -> None:
    """Undo what the import of `automodel_mesh.compat` changes in torch."""
    era.restore_torch()


def forget_meshes() -> None:
    """Clear the tables of torch's registry, up to 2.9, in which it finds what was made for an equal mesh."""
    if torch_at_least("2.10"):
        return
    for name in ("child_to_root_mapping", "root_to_flatten_mapping", "flatten_name_to_root_dims"):
        getattr(device_mesh._mesh_resources, name).clear()


def init_device_mesh(device_type: str, mesh_shape: tuple[int, ...], **options: Any) -> DeviceMesh:
    """Call `torch.distributed.device_mesh.init_device_mesh`."""
    return device_mesh.init_device_mesh(device_type, mesh_shape, **options)


def set_debug_level(name: str) -> None:
    """Set what TORCH_DISTRIBUTED_DEBUG sets, such as `"DETAIL"`; torch's stubs do not export these names."""
    level = dist.DebugLevel.__members__[name]  # type: ignore[attr-defined]
    dist.set_debug_level(level)  # type: ignore[attr-defined]


def get_root_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Read the root from the registry up to 2.9, from the mesh from 2.10 on."""
    if torch_at_least("2.10"):
        return mesh._get_root_mesh()
    return device_mesh._mesh_resources.get_root_mesh(mesh)


def flattened_meshes(mesh: DeviceMesh) -> Mapping[str, DeviceMesh]:
    """Read the flattened axes from the registry up to 2.9, from the root from 2.10 on."""
    if torch_at_least("2.10"):
        return get_root_mesh(mesh)._flatten_mapping
    table: Mapping[str, DeviceMesh] = device_mesh._mesh_resources.root_to_flatten_mapping.get(get_root_mesh(mesh), {})
    return table


def flatten(mesh: DeviceMesh, mesh_dim_name: str | None = None, **options: Any) -> DeviceMesh:
    """Call `DeviceMesh._flatten`."""
    return mesh._flatten(mesh_dim_name, **options)


def slice_mesh(mesh: DeviceMesh, names: str | tuple[str, ...]) -> DeviceMesh:
    """Call `DeviceMesh.__getitem__`."""
    return mesh[names]


def unflatten(
    mesh: DeviceMesh, dim: int | str, mesh_sizes: tuple[int, ...], mesh_dim_names: tuple[str, ...], **options: Any
) -> DeviceMesh:
    """Call `DeviceMesh._unflatten`, which exists from 2.10 on."""
    return mesh._unflatten(dim, mesh_sizes, mesh_dim_names, **options)


def concatenate(meshes: Sequence[DeviceMesh]) -> DeviceMesh:
    """Call `DeviceMesh._concatenate`, which exists from 2.10 on."""
    return DeviceMesh._concatenate(list(meshes))


def get_group(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> ProcessGroup:
    """Call `DeviceMesh.get_group`."""
    return mesh.get_group(mesh_dim)


def get_coordinate(mesh: DeviceMesh) -> Any:
    """Call `DeviceMesh.get_coordinate`."""
    return mesh.get_coordinate()


def ranks_along(mesh: DeviceMesh, dim: int) -> list[int]:
    """Return the ranks that a mesh shows along an axis, on this rank of it."""
    index: Any = list(mesh.get_coordinate() or ())
    index[dim] = slice(None)
    ranks: list[int] = mesh.mesh[tuple(index)].tolist()
    return ranks


def set_timeout(options: Any, timeout: timedelta) -> None:
    """Set the timeout in a backend's options, where it has a private name."""
    options._timeout = timeout


def fake_tensor_mode() -> Any:
    """Return the mode in which torch traces models: tensors made in it have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()
