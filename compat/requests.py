"""Checks of requests about a mesh: each error names the input, what is there, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias, cast

from torch._C._distributed_c10d import Backend
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import is_int
from automodel_mesh.compat.groups import DEFAULT_SPEC, GroupSpec
from automodel_mesh.errors import MeshArgumentError, UnknownAxisError, UnnamedMeshError

BackendChoice: TypeAlias = "str | Backend.Options | tuple[str | None, Backend.Options | None] | GroupSpec"
"""What can be asked of the process group of an axis: a backend, options, both as a pair, or a whole `GroupSpec`."""


def axis_names(mesh: DeviceMesh) -> tuple[str, ...]:
    """Return the names of a mesh, which it must have."""
    names = mesh.mesh_dim_names
    if not names:
        raise UnnamedMeshError(
            f"{mesh} has no axis names, and this operation works by name: build it with mesh_dim_names."
        )
    return names


def require_product(sizes: tuple[int, ...], size: int, what: str) -> None:
    """Refuse sizes that do not multiply to the size of the axis they split."""
    if math.prod(sizes) != size:
        raise MeshArgumentError(
            f"{what}: the sizes {sizes} multiply to {math.prod(sizes)}, but the axis has {size} ranks."
        )


def require_known(wanted: tuple[str, ...], own: tuple[str, ...], folded: Mapping[str, DeviceMesh]) -> None:
    """Refuse names that are neither axes of a mesh nor flattened axes of its family."""
    unknown = [name for name in wanted if name not in own and name not in folded]
    if unknown:
        raise UnknownAxisError(
            f"no axis {', '.join(map(repr, unknown))}: this mesh has the axes {list(own)}, and its family the "
            f"flattened axes {list(folded)}. Ask for one of these, or make it with flatten."
        )


def dim_index(mesh: DeviceMesh, dim: int | str) -> int:
    """Return the index of an axis given by name or by index, negative ones too."""
    if isinstance(dim, str):
        names = axis_names(mesh)
        if dim not in names:
            raise UnknownAxisError(f"{mesh} has no axis {str.__str__(dim)!r}; its axes are {list(names)}.")
        return names.index(dim)
    if not is_int(dim):
        raise TypeError(f"an axis is given by name or index, got {dim!r} of type {type(dim).__name__}")
    if not -mesh.ndim <= dim < mesh.ndim:
        raise MeshArgumentError(f"axis {dim} is out of range: {mesh} has {mesh.ndim} axes.")
    return dim % mesh.ndim


def group_specs(
    override: Mapping[int | str, BackendChoice] | None, count: int, names: tuple[str, ...] | None
) -> list[GroupSpec]:
    """Read `backend_override`, keyed by index or name, as one spec for each axis; the mapping is not changed."""
    specs = [DEFAULT_SPEC] * count
    chosen: set[int] = set()
    for key, choice in (override or {}).items():
        index = names.index(key) if isinstance(key, str) and names and key in names else key
        if not is_int(index) or not 0 <= index < count:
            raise MeshArgumentError(
                f"backend_override has the key {key!r}; valid keys are 0 to {count - 1} and "
                f"the names {list(names or ())}."
            )
        if index in chosen:
            raise MeshArgumentError(f"backend_override names axis {index} twice, by index and by name: keep one.")
        chosen.add(index)
        specs[index] = group_spec(choice)
    return specs


def group_spec(choice: BackendChoice | None) -> GroupSpec:
    """Read one choice of backend, options, or both."""
    if choice is None:
        return DEFAULT_SPEC
    if isinstance(choice, GroupSpec):
        return choice
    if isinstance(choice, str):
        return GroupSpec(backend=choice)
    if isinstance(choice, Backend.Options):
        return GroupSpec(options=choice)
    pair = cast("object", choice)  # callers without a type checker may pass anything
    if isinstance(pair, tuple) and len(pair) == 2:
        return GroupSpec(*pair)
    raise TypeError(f"a backend override is a backend name, its options, or a pair of both, got {choice!r}")
