"""Folding axes into one and splitting them: the operations on a mesh that may make process groups.

All ranks of the mesh's family make the same requests in the same order, as they do with torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import check_same_length, checked_name, checked_names, checked_sizes
from automodel_mesh.compat.compiled import forget_compiled_lookups, never_compiled
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import Family, family_of
from automodel_mesh.compat.groups import DEFAULT_SPEC, AxisRequest
from automodel_mesh.compat.requests import (
    BackendChoice,
    axis_names,
    dim_index,
    group_spec,
    group_specs,
    require_product,
)
from automodel_mesh.compat.slicing import slice_mesh
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.topology.layouts import Layout, fold, size_of, split

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from automodel_mesh.compat.agreement import Operation


@never_compiled
def flatten(
    mesh: DeviceMesh,
    mesh_dim_name: str | None = None,
    *,
    dims: Sequence[str] | None = None,
    backend_override: BackendChoice | None = None,
) -> DeviceMesh:
    """Fold axes of a mesh into one flattened axis, known by name in the whole family.

    Called on every rank of the world. The process group is the one that these ranks have already, else a new one.

    Args:
        mesh: any mesh with names; its axes contiguous or not, in ascending order, or, from torch 2.15 on, in any order.
        mesh_dim_name: the name of the new axis; by default the names of the axes joined by `_`.
        dims: the names of the axes to fold; by default all. A rank outside the mesh, which holds no slice of it, takes
            part by naming them here.
        backend_override: a backend, its options, or both as a pair, for the group of the new axis.

    Returns:
        The 1-D mesh. The same request again returns the same object; a 1-D mesh asked for under its own name is
        returned as it is.

    Raises:
        ValueError: the name is taken by another axis, or was made with another backend; the axes are not in
            ascending order, and this torch sorts the ranks of a mesh's groups.
        RankNotInMeshError: this rank is outside the mesh; it has taken part in making the group.
        ProcessGroupDestroyedError: the world of the mesh is gone.

    Torch releases:
        2.6 - 2.9 return another axis's mesh where the name is taken, or corrupt later lookups; 2.6 - 2.8 have no
        `backend_override`. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._flatten`.
    """
    family = family_of(mesh)
    if mesh.ndim == 1 and dims is None and mesh_dim_name in (None, *axis_names(mesh)):
        group_spec(backend_override)
        return mesh  # the mesh itself, on a rank outside too
    with family.operation("flatten", mesh) as current:
        names, axes = _chosen(mesh, dims)
        name = "_".join(names) if mesh_dim_name is None else checked_name("flatten: mesh_dim_name", mesh_dim_name)
        axis, spec = fold(axes), group_spec(backend_override)
        if names == (name,):
            family.require_member(mesh)
            return mesh if mesh.ndim == 1 else slice_mesh(mesh, name)
        known = _flattened_as(family, name, axis, mesh)
        if known is not None:
            group = family.along(known, 0)  # refuses one of torch's making whose ranks are in another order
            if spec != DEFAULT_SPEC and family.groups.find(axis, spec) is not group:
                raise MeshArgumentError(
                    f"flatten: axis {name!r} exists with another backend or other options; choose another name."
                )
            return known
        groups = family.make_groups([AxisRequest(name, axis, spec)], current)
    family.require_member(mesh)
    flat = family.derive((axis,), (name,), groups, mesh, folded=True)
    era.register_flattened(family.root, name, flat, mesh, names)
    forget_compiled_lookups()
    return flat


@never_compiled
def unflatten(
    mesh: DeviceMesh,
    dim: int | str,
    mesh_sizes: Sequence[int],
    mesh_dim_names: Sequence[str],
    *,
    backend_override: Mapping[int | str, BackendChoice] | None = None,
) -> DeviceMesh:
    """Split one axis of a mesh into several.

    Called on every rank of the world, also where the mesh is one slice of it (a pipeline stage): every rank makes
    the groups of all slices, in the same order, so no rank waits for another. Ranks that have a group keep it.

    Args:
        mesh: any mesh with names.
        dim: the axis to split, by name or index (negative ones count from the end).
        mesh_sizes: sizes of the new axes, outermost first; they multiply to the size of the axis.
        mesh_dim_names: their names, distinct, none of them an axis of the mesh or of its family.
        backend_override: for a new axis, by index among the new ones or by name: backend, options, or both.

    Returns:
        The mesh with the new axes in place of the old one; its root is the root of `mesh`. The same request again
        returns the same object and creates nothing.

    Raises:
        ValueError: a wrong product, unlike numbers of sizes and names, a repeated or taken name, an index out of
            range, a folded axis that has no such parts.
        UnknownAxisError: (a `KeyError`) no axis of that name.
        RankNotInMeshError: this rank is outside the mesh; it has taken part in making the groups.
        ProcessGroupDestroyedError: the world of the mesh is gone.

    Torch releases:
        2.6 - 2.9 have none; 2.10 and 2.11 refuse every axis name; all newer ones make new groups at each call and
        accept a name that the mesh has already. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._unflatten`.
    """
    family = family_of(mesh)
    with family.operation("unflatten", mesh) as current:
        old_names = axis_names(mesh)
        index = dim_index(mesh, dim)
        sizes = checked_sizes("unflatten: mesh_sizes", mesh_sizes)
        names = checked_names("unflatten: mesh_dim_names", mesh_dim_names, single=False)
        check_same_length(names, sizes, "unflatten")
        axes = era.axes_of(mesh)
        require_product(sizes, size_of(axes[index]), f"unflatten of {old_names[index]!r}")
        parts = _parts(axes[index], sizes, old_names[index])
        all_names = checked_names("unflatten: names of all axes", (*old_names[:index], *names, *old_names[index + 1 :]))
        others = [] if mesh.get_coordinate() is None else [other for other in range(mesh.ndim) if other != index]
        kept = [family.along(mesh, other) for other in others]
        groups = _groups_of_parts(family, dict(zip(names, parts, strict=True)), backend_override, current)
    _remember_parts(family, mesh, names, parts)
    return family.derive(
        (*axes[:index], *parts, *axes[index + 1 :]),
        all_names,
        [*kept[:index], *groups, *kept[index:]],
        mesh,
    )


@never_compiled
def refold(
    mesh: DeviceMesh,
    dims: Sequence[str],
    mesh_sizes: Sequence[int],
    mesh_dim_names: Sequence[str],
    *,
    backend_override: Mapping[int | str, BackendChoice] | None = None,
) -> DeviceMesh:
    """Fold axes of a mesh into one and split that into others, without a group for what lies between.

    Called on every rank of the world; ranks that have a group keep it. Expert parallelism lays the ranks of a pipeline
    stage out anew this way.

    Args:
        mesh: any mesh with names.
        dims: the names of the axes to fold, in an order in which the ranks along each new axis ascend, or, from torch
            2.15 on, in any order.
        mesh_sizes: sizes of the new axes, outermost first; they multiply to the number of ranks folded.
        mesh_dim_names: their names, distinct, none of them an axis of the family.
        backend_override: for a new axis, by index or name: backend, options, or both.

    Returns:
        The mesh of the new axes alone; its root is the root of `mesh`. The same request again returns the same object
        and creates nothing.

    Raises:
        ValueError: a wrong product, unlike numbers of sizes and names, a repeated or taken name, a new axis whose ranks
            would not ascend, a fold that has no such parts.
        UnknownAxisError: (a `KeyError`) no axis of that name.
        RankNotInMeshError: this rank is outside the mesh; it has taken part in making the groups.
        ProcessGroupDestroyedError: the world of the mesh is gone.
    """
    family = family_of(mesh)
    with family.operation("refold", mesh) as current:
        names, axes = _chosen(mesh, dims)
        sizes = checked_sizes("refold: mesh_sizes", mesh_sizes)
        new_names = checked_names("refold: mesh_dim_names", mesh_dim_names, single=False)
        check_same_length(new_names, sizes, "refold")
        folded = fold(axes)
        require_product(sizes, size_of(folded), f"refold of {names}")
        parts = _parts(folded, sizes, "_".join(names))
        groups = _groups_of_parts(family, dict(zip(new_names, parts, strict=True)), backend_override, current)
    _remember_parts(family, mesh, new_names, parts)
    return family.derive(parts, new_names, groups, mesh)


def _chosen(mesh: DeviceMesh, dims: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[Layout, ...]]:
    """Return the names and axes of some dims of a mesh, of all by default."""
    names, axes = axis_names(mesh), era.axes_of(mesh)
    if dims is None:
        return names, axes
    wanted = checked_names("dims", dims)
    return wanted, tuple(axes[dim_index(mesh, name)] for name in wanted)


def _groups_of_parts(
    family: Family,
    parts: Mapping[str, Layout],
    backend_override: Mapping[int | str, BackendChoice] | None,
    current: Operation,
) -> list[ProcessGroup]:
    """Find or make the groups of new axes, after a check that their names are free."""
    names = tuple(parts)
    specs = group_specs(backend_override, len(names), names)
    _require_free(family, parts)
    return family.make_groups(list(map(AxisRequest, names, parts.values(), specs)), current)


def _remember_parts(family: Family, mesh: DeviceMesh, names: Sequence[str], parts: Sequence[Layout]) -> None:
    """Note which ranks the names of new axes mean in the family; refuse a rank outside."""
    family.require_member(mesh)
    for name, part in zip(names, parts, strict=True):
        family.unflattened.setdefault(name, set()).add(fold([part]))


def _flattened_as(family: Family, name: str, axis: Layout, mesh: DeviceMesh) -> DeviceMesh | None:
    """Return the flattened axis of this name and these ranks, `None` where the name is free."""
    known = era.flattened(family.root).get(name)
    if known is not None and fold(era.axes_of(known)) == axis:
        family.require_member(mesh)
        return known
    others = family.unflattened.get(name, set()) - {axis}
    if known is not None or others or name in axis_names(family.root):
        raise MeshArgumentError(
            f"flatten: the name {name!r} is taken by another axis of this family (native: "
            f"{list(axis_names(family.root))}, flattened: {list(era.flattened(family.root))}, "
            f"unflattened: {list(family.unflattened)}); choose another name."
        )
    return None


def _require_free(family: Family, parts: Mapping[str, Layout]) -> None:
    """Refuse a name that means other ranks elsewhere in the family: torch would look up the wrong group by it."""
    root = family.root
    taken = {name: fold(era.axes_of(flat)) for name, flat in dict(era.flattened(root)).items()}
    taken.update({name: fold([axis]) for name, axis in zip(root.mesh_dim_names or (), era.axes_of(root), strict=False)})
    clashes = [name for name, part in parts.items() if name in taken and taken[name] != fold([part])]
    if clashes:
        raise MeshArgumentError(
            f"unflatten: {', '.join(map(repr, clashes))} is taken by another axis of this family (native: "
            f"{list(root.mesh_dim_names or ())}, flattened: {list(era.flattened(root))}); choose another name."
        )


def _parts(axis: Layout, sizes: tuple[int, ...], name: str) -> tuple[Layout, ...]:
    parts = split(axis, sizes)
    if parts is None:
        folded = tuple(size for size, _ in fold([axis]))
        raise MeshArgumentError(
            f"unflatten: axis {name!r} is folded from parts of {folded} ranks that are not contiguous; it cannot "
            f"be split into {sizes}. Choose sizes that keep these parts whole."
        )
    return parts
