"""Deriving meshes from a mesh: folding axes into one, slicing, splitting an axis, joining meshes.

All ranks of the world make the same requests in the same order, as they do with torch. Only `flatten` and
`unflatten` can make process groups; they take ranks outside of the mesh along, then refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.axes import Axis, axis_size, fold, is_ascending, overlap, split
from automodel_mesh.compat.errors import MeshArgumentError, UnknownAxisError
from automodel_mesh.compat.family import Family, family_of, lookups_of, native_group
from automodel_mesh.compat.gate import era
from automodel_mesh.compat.making import DEFAULT_SPEC
from automodel_mesh.compat.requests import (
    BackendChoice,
    axis_names,
    dim_index,
    group_spec,
    group_specs,
    requested_names,
    requested_sizes,
    require_product,
    require_same_length,
)
from automodel_mesh.compat.worlds import is_current

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def flatten(
    mesh: DeviceMesh, mesh_dim_name: str | None = None, *, backend_override: BackendChoice | None = None
) -> DeviceMesh:
    """Fold all axes of a mesh into one flattened axis, known by name in the whole family.

    Called on every rank of the world. The process group is the one that these ranks have already, else a new one.

    Args:
        mesh: any mesh with names; its axes in ascending order, side by side or not.
        mesh_dim_name: the name of the new axis; by default the names of the axes joined by `_`.
        backend_override: a backend, its options, or both as a pair, for the group of the new axis.

    Returns:
        The 1-D mesh. The same request again returns the same object; a 1-D mesh asked for under its own name is
        returned as it is.

    Raises:
        ValueError: the name is taken by another axis, or was made with another backend; the axes are not in
            ascending order (torch would make a group whose ranks are in another order than the mesh shows).
        RankNotInMeshError: this rank is outside the mesh; it has taken part in making the group.
        ProcessGroupDestroyedError: the world of the mesh is gone.

    Torch releases:
        2.6 - 2.9 return another axis's mesh where the name is taken, or corrupt later lookups; 2.6 - 2.8 have no
        `backend_override`. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._flatten`.
    """
    family = family_of(mesh)
    names = axis_names(mesh)
    (name,) = requested_names("_".join(names) if mesh_dim_name is None else mesh_dim_name, "flatten")
    if names == (name,):
        family.require_member(mesh)
        return mesh
    axis = fold(era.axes_of(mesh))
    known = _flattened_as(family, name, axis, mesh)
    spec = group_spec(backend_override)
    if known is None:
        _require_ascending(axis, names)
        groups = family.make_groups([axis], [name], [spec])
        family.require_member(mesh)
        known = family.derive((axis,), (name,), groups, mesh)
        era.register_flattened(family.root, name, known, mesh)
    elif spec != DEFAULT_SPEC and family.make_groups([axis], [name], [spec]) != [native_group(known, 0)]:
        raise MeshArgumentError(
            f"flatten: axis {name!r} exists with another backend or other options; choose another name."
        )
    return known


def slice_mesh(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
    """Return the submesh along some axes. No process group is made, ever.

    Args:
        mesh: any mesh with names.
        names: one name or several: axes of this mesh and flattened axes of its family, in ascending order (by their
            outermost rank stride).

    Returns:
        The submesh that contains this rank; its root is the root of `mesh`. All names of the mesh in order give the
        mesh itself, the name of a flattened axis alone the mesh that `flatten` made. The same request again returns
        the same object and costs a dictionary access.

    Raises:
        UnknownAxisError: (a `KeyError`) no such axis; the message lists those there are.
        ValueError: repeated names, none at all, overlapping axes, descending order, a mesh without names.
        RankNotInMeshError: this rank is outside the mesh.
        ProcessGroupDestroyedError: the world of the mesh is gone.

    Torch releases:
        2.6 - 2.8 cannot slice a slice, 2.9 warns and takes the immediate parent for the root; 2.10 and newer warn
        about flattened axes; only 2.13 and newer give the right ranks for one that does not lie side by side; from
        2.14 on torch's own slicing imports `torch._dynamo`. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.__getitem__`.
    """
    try:
        lookups = mesh._automodel_mesh_lookups  # type: ignore[attr-defined]
        if is_current(lookups.world):
            known: DeviceMesh = lookups.slices[names]
            return known
    except (AttributeError, KeyError, TypeError):
        pass  # not asked before, or not askable: a list, say, is no key
    found = _slice(mesh, names)
    if isinstance(names, (str, tuple)):
        lookups_of(mesh, family_of(mesh)).slices[names] = found
    return found


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
    old_names = axis_names(mesh)
    index = dim_index(mesh, dim)
    sizes = requested_sizes(mesh_sizes, "unflatten")
    names = requested_names(mesh_dim_names, "unflatten")
    require_same_length(sizes, names, "unflatten")
    axes = era.axes_of(mesh)
    require_product(sizes, axis_size(axes[index]), f"unflatten of {old_names[index]!r}")
    specs = group_specs(backend_override, len(sizes), names)
    parts = _parts(axes[index], sizes, old_names[index])
    all_names = requested_names((*old_names[:index], *names, *old_names[index + 1 :]), "unflatten")
    _require_free(family, dict(zip(names, parts, strict=True)))

    groups = family.make_groups(parts, names, specs)
    family.require_member(mesh)
    for name, part in zip(names, parts, strict=True):
        family.unflattened.setdefault(name, set()).add(fold([part]))
    kept = [native_group(mesh, other) for other in range(mesh.ndim)]
    return family.derive(
        (*axes[:index], *parts, *axes[index + 1 :]),
        all_names,
        [*kept[:index], *groups, *kept[index + 1 :]],
        mesh,
    )


def concatenate(meshes: Sequence[DeviceMesh]) -> DeviceMesh:
    """Join meshes of one family into one mesh that has all their axes. No process group is made.

    Args:
        meshes: at least one mesh with names, all derived from one root, in any order; no rank step in two of them.

    Returns:
        The mesh with the axes of all, in the order given; its root is theirs. The same request again returns the
        same object; one mesh alone is returned as it is.

    Raises:
        ValueError: no mesh, meshes of different roots, overlapping axes, repeated names, a mesh without names.
        RankNotInMeshError: this rank is outside the meshes.
        ProcessGroupDestroyedError: the world of the meshes is gone.

    Torch releases:
        2.6 - 2.9 have none; newer ones accept equal names. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh._concatenate`.
    """
    given = list(meshes)
    if not given:
        raise MeshArgumentError("concatenate: no mesh was given; give at least one.")
    family = family_of(given[0])
    for mesh in given[1:]:
        if family_of(mesh) is not family:
            raise MeshArgumentError(
                f"concatenate: {mesh} has another root than {given[0]}: only meshes of one root can be joined."
            )
    names = requested_names([name for mesh in given for name in axis_names(mesh)], "concatenate")
    axes = tuple(axis for mesh in given for axis in era.axes_of(mesh))
    _require_disjoint(axes, names, "concatenate")
    groups = [family.along(mesh, dim) for mesh in given for dim in range(mesh.ndim)]
    return given[0] if len(given) == 1 else family.derive(axes, names, groups, given[0])


def _slice(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
    family = family_of(mesh)
    own = axis_names(mesh)
    wanted = requested_names(names, "slice_mesh")
    family.require_member(mesh)
    if wanted == own:
        return mesh
    folded = era.flattened(family.root)
    _require_known(wanted, own, folded)
    if len(wanted) == 1 and wanted[0] not in own:
        family.along(folded[wanted[0]], 0)
        return folded[wanted[0]]
    holders = [(mesh, own.index(name)) if name in own else (folded[name], 0) for name in wanted]
    axes = tuple(era.axes_of(holder)[dim] for holder, dim in holders)
    _require_disjoint(axes, wanted, "slice_mesh")
    _require_order([(holder is mesh, dim, axis) for (holder, dim), axis in zip(holders, axes, strict=True)], wanted)
    groups: list[ProcessGroup] = [family.along(holder, dim) for holder, dim in holders]
    return family.derive(axes, wanted, groups, mesh)


def _flattened_as(family: Family, name: str, axis: Axis, mesh: DeviceMesh) -> DeviceMesh | None:
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


def _require_free(family: Family, parts: Mapping[str, Axis]) -> None:
    """Refuse a name that means other ranks elsewhere in the family: torch would look up the wrong group by it."""
    root = family.root
    taken = {name: fold(era.axes_of(flat)) for name, flat in era.flattened(root).items()}
    taken.update({name: fold([axis]) for name, axis in zip(root.mesh_dim_names or (), era.axes_of(root), strict=False)})
    clashes = [name for name, part in parts.items() if name in taken and taken[name] != fold([part])]
    if clashes:
        raise MeshArgumentError(
            f"unflatten: {', '.join(map(repr, clashes))} is taken by another axis of this family (native: "
            f"{list(root.mesh_dim_names or ())}, flattened: {list(era.flattened(root))}); choose another name."
        )


def _parts(axis: Axis, sizes: tuple[int, ...], name: str) -> tuple[Axis, ...]:
    parts = split(axis, sizes)
    if parts is None:
        folded = tuple(size for size, _ in fold([axis]))
        raise MeshArgumentError(
            f"unflatten: axis {name!r} is folded from parts of {folded} ranks that do not lie side by side; it cannot "
            f"be split into {sizes}. Choose sizes that keep these parts whole."
        )
    return parts


def _require_known(wanted: tuple[str, ...], own: tuple[str, ...], folded: Mapping[str, DeviceMesh]) -> None:
    unknown = [name for name in wanted if name not in own and name not in folded]
    if unknown:
        raise UnknownAxisError(
            f"no axis {', '.join(map(repr, unknown))}: this mesh has the axes {list(own)}, and its family the "
            f"flattened axes {list(folded)}. Ask for one of these, or make it with flatten."
        )


def _require_disjoint(axes: tuple[Axis, ...], names: tuple[str, ...], what: str) -> None:
    if overlap(axes):
        raise MeshArgumentError(f"{what}: the axes {names} overlap: some of their ranks are reached in two ways.")


def _require_ascending(axis: Axis, names: tuple[str, ...]) -> None:
    if not is_ascending(axis):
        raise MeshArgumentError(
            f"flatten: the axes {names} are not in ascending order, and the ranks of a process group always are: "
            "flatten a mesh that has them in the order of the root."
        )


def _require_order(axes: Sequence[tuple[bool, int, Axis]], names: tuple[str, ...]) -> None:
    """Refuse axes of this mesh out of its own order, and flattened ones out of the order of their strides."""
    for (own, dim, axis), (next_own, next_dim, next_axis) in pairwise(axes):
        if own and next_own:
            ascending = dim < next_dim
        else:
            outer, inner = fold([axis]), fold([next_axis])
            ascending = not outer or not inner or outer[0][1] > inner[0][1]
        if not ascending:
            raise MeshArgumentError(
                f"slice_mesh: {names} are not in ascending order: name outer axes before inner ones."
            )
