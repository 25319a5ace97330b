"""Checks what callers ask for, with errors that name the input, what is there, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from torch._C._distributed_c10d import Backend
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.errors import MeshArgumentError, UnknownAxisError, UnnamedMeshError
from automodel_mesh.compat.making import DEFAULT_SPEC, GroupSpec

BackendChoice: TypeAlias = "str | Backend.Options | tuple[str | None, Backend.Options | None] | GroupSpec"
"""What one axis may ask of its process group: a backend, options, both, or all there is to ask in a `GroupSpec`."""


def axis_names(mesh: DeviceMesh) -> tuple[str, ...]:
    """Return the names of a mesh, which it must have."""
    names = mesh.mesh_dim_names
    if not names:
        raise UnnamedMeshError(
            f"{mesh} has no axis names, and this operation works by name: build it with mesh_dim_names."
        )
    return names


def requested_names(names: str | Sequence[str], what: str) -> tuple[str, ...]:
    """Turn a name or a sequence of names, plain strings or string enums, into a tuple of distinct plain strings."""
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"{what}: axis names are strings, got {name!r} of type {type(name).__name__}")
    if not given:
        raise MeshArgumentError(f"{what}: no axis name was given; name at least one.")
    plain = tuple(str.__str__(name) for name in given)
    repeated = sorted({name for name in plain if plain.count(name) > 1})
    if repeated:
        raise MeshArgumentError(f"{what}: the names {plain} repeat {', '.join(repeated)}; name each axis once.")
    return plain


def requested_sizes(sizes: Sequence[int], what: str) -> tuple[int, ...]:
    """Check sizes of axes: integers of at least 1, at least one of them."""
    given = tuple(sizes)
    for size in given:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{what}: sizes are integers, got {size!r} of type {type(size).__name__} in {given}")
        if size < 1:
            raise MeshArgumentError(f"{what}: sizes are at least 1, got {size} in {given}")
    if not given:
        raise MeshArgumentError(f"{what}: no size was given; an axis needs one.")
    return given


def requested_ranks(ranks: Sequence[int], world: int) -> tuple[int, ...]:
    """Check global ranks: distinct integers of the world, ascending as the ranks of a process group do."""
    given = tuple(ranks)
    for rank in given:
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(f"ranks are integers, got {rank!r} of type {type(rank).__name__}")
    if any(left >= right for left, right in pairwise(given)) or not set(given) <= set(range(world)):
        raise MeshArgumentError(f"ranks are distinct, ascending and from 0 to {world - 1}, got {list(given)}.")
    return given


def require_same_length(sizes: tuple[int, ...], names: tuple[str, ...], what: str) -> None:
    """Refuse a different number of names and sizes."""
    if len(sizes) != len(names):
        raise MeshArgumentError(
            f"{what}: {len(sizes)} sizes {sizes} but {len(names)} names {names}; give one name for each size."
        )


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
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"an axis is given by name or index, got {dim!r} of type {type(dim).__name__}")
    if not -mesh.ndim <= dim < mesh.ndim:
        raise MeshArgumentError(f"axis {dim} is out of range: {mesh} has {mesh.ndim} axes.")
    return dim % mesh.ndim


def group_specs(
    override: Mapping[int | str, BackendChoice] | None, count: int, names: tuple[str, ...] | None
) -> list[GroupSpec]:
    """Read `backend_override`, keyed by index or name, as one spec for each axis; the mapping is left as it is."""
    specs = [DEFAULT_SPEC] * count
    chosen: set[int] = set()
    for key, choice in (override or {}).items():
        index = names.index(key) if isinstance(key, str) and names and key in names else key
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
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
    pair: object = choice  # what callers without a type checker pass
    if isinstance(pair, tuple) and len(pair) == 2:
        return GroupSpec(*pair)
    raise TypeError(f"a backend override is a backend name, its options, or a pair of both, got {choice!r}")
