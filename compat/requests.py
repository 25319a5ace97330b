"""Checks of requests about a mesh: each error names the input, what is there, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeAlias, cast

from torch._C._distributed_c10d import Backend
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import check_timeout, is_int, nearest, shown, wrong_type
from automodel_mesh.compat.groups import DEFAULT_SPEC, GroupSpec
from automodel_mesh.errors import (
    MeshArgumentError,
    MeshIndexError,
    MeshTypeError,
    UnknownAxisError,
    UnnamedMeshError,
)

BackendChoice: TypeAlias = "str | Backend.Options | tuple[str | None, Backend.Options | None] | GroupSpec"
"""What can be asked of the process group of an axis: a backend, options, both as a pair, or a whole `GroupSpec`."""


def shown_mesh(mesh: DeviceMesh) -> str:
    """Print the axes and sizes of a mesh for a message.

    torch's own repr needs the world of the mesh on some releases if TORCH_DISTRIBUTED_DEBUG is DETAIL.
    """
    sizes = map(str, mesh.shape)
    names = mesh.mesh_dim_names
    parts = sizes if names is None else map("=".join, zip(map(str.__str__, names), sizes, strict=True))
    return f"DeviceMesh({', '.join(parts)})"


def axis_names(mesh: DeviceMesh) -> tuple[str, ...]:
    """Return the names of a mesh, which it must have."""
    names = mesh.mesh_dim_names
    if not names:
        raise UnnamedMeshError(
            f"{shown_mesh(mesh)} has no axis names, and this operation works by name: build it with mesh_dim_names."
        )
    return names


def require_product(sizes: tuple[int, ...], size: int, what: str) -> None:
    """Refuse sizes that do not multiply to the size of the axis they split."""
    if math.prod(sizes) != size:
        raise MeshArgumentError(
            f"{what}: the sizes {sizes} multiply to {shown(math.prod(sizes))}, but the axis has {size} ranks."
        )


def require_known(wanted: tuple[str, ...], own: tuple[str, ...], folded: Mapping[str, DeviceMesh]) -> None:
    """Refuse names that are neither axes of a mesh nor flattened axes of its family."""
    unknown = [name for name in wanted if name not in own and name not in folded]
    if unknown:
        named = ", ".join(f"{name!r}{nearest(name, [*own, *folded])}" for name in unknown)
        raise UnknownAxisError(
            f"no axis {named}: this mesh has the axes {list(own)}, and its family the "
            f"flattened axes {list(folded)}. Ask for one of these, or make it with flatten."
        )


def dim_index(mesh: DeviceMesh, dim: int | str, argument: str = "dim") -> int:
    """Return the index of an axis given by name or by index, negative ones too."""
    if isinstance(dim, str):
        names, name = axis_names(mesh), str.__str__(dim)
        if name not in names:
            raise UnknownAxisError(
                f"{shown_mesh(mesh)} has no axis {name!r}; its axes are {list(names)}{nearest(name, names)}."
            )
        return names.index(name)
    if not is_int(dim):
        raise MeshTypeError(
            f"{argument}: an axis is given by name or index, got {shown(dim)} of type {type(dim).__name__}"
        )
    if not -mesh.ndim <= dim < mesh.ndim:
        raise MeshIndexError(f"{argument}: axis {dim} is out of range: {shown_mesh(mesh)} has {mesh.ndim} axes.")
    return int(dim) % mesh.ndim


def group_specs(
    override: Mapping[int | str, BackendChoice] | None, count: int, names: tuple[str, ...] | None
) -> list[GroupSpec]:
    """Read `backend_override`, keyed by index or name, as one spec for each axis; the mapping is not changed."""
    specs = [DEFAULT_SPEC] * count
    chosen: set[int] = set()
    for key, choice in checked_override(override).items():
        index = names.index(key) if isinstance(key, str) and names and key in names else key
        if not is_int(index) or not 0 <= index < count:
            raise UnknownAxisError(
                f"backend_override has the key {shown(key)}{nearest(key, names or ())}; valid keys are 0 to "
                f"{count - 1} and the names {list(names or ())}."
            )
        index = int(index)
        if index in chosen:
            raise MeshArgumentError(f"backend_override names axis {index} twice, by index and by name: keep one.")
        chosen.add(index)
        specs[index] = group_spec(choice)
    return specs


def checked_override(override: Mapping[Any, BackendChoice] | None) -> Mapping[Any, BackendChoice]:
    """Return `backend_override`, which must be a mapping or `None`; empty for `None`."""
    if override is not None and not isinstance(cast("object", override), Mapping):
        raise wrong_type("backend_override", override, "a dict from axes to backends, or None")
    return {} if override is None else override


def group_spec(choice: BackendChoice | None) -> GroupSpec:
    """Read one choice of backend, options, or both."""
    if choice is None:
        return DEFAULT_SPEC
    spec: object = choice  # callers without a type checker may pass anything
    if isinstance(choice, str):
        spec = GroupSpec(backend=choice)
    elif isinstance(choice, Backend.Options):
        spec = GroupSpec(options=choice)
    elif type(choice) is tuple and len(choice) == 2:
        spec = GroupSpec(*choice)
    kinds = (str, NoneType), (Backend.Options, NoneType)
    if not isinstance(spec, GroupSpec) or not all(map(isinstance, spec, kinds)):
        raise MeshTypeError(
            "backend_override: a backend override is a backend name, its options, or a pair of both, got "
            f"{shown(choice)}"
        )
    if spec.backend == "":  # torch takes it for the default backend
        raise MeshArgumentError("backend_override: the backend is an empty string: give its name, or None")
    check_timeout("backend_override: timeout", spec.timeout)
    return spec
