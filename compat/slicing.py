"""Slicing a mesh, and joining meshes: no process group is ever made here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import checked_names, is_list, listed
from automodel_mesh.compat.compiled import constant_when_compiled
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import Lookups, family_of, in_use, lookups_of, require_mesh
from automodel_mesh.compat.requests import axis_names, require_known, shown_mesh
from automodel_mesh.errors import AxisOrderError, MeshArgumentError, MeshIndexError
from automodel_mesh.topology.layouts import Layout, fold, overlap

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup


@constant_when_compiled
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
        about flattened axes; only 2.13 and newer give the right ranks for one whose parts are not contiguous; from
        2.14 on torch's own slicing imports `torch._dynamo`. Here all releases behave as described.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.__getitem__`.
    """
    return remembered(mesh, names, _slice)


@constant_when_compiled
def find_submesh(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
    """Return the submesh along some axes of a mesh or of its root. No process group is made, ever.

    As `slice_mesh`, but a part of a mesh can be asked for the root's other axes too.

    Args:
        mesh: any mesh with names.
        names: one name or several, in ascending order: all of them axes of this mesh or flattened axes, or all of
            them axes of the root or flattened axes.

    Returns:
        The submesh that contains this rank; its root is the root of `mesh`. The same request again returns the same
        object and costs a dictionary access.

    Raises:
        UnknownAxisError: (a `KeyError`) no such axis; the message lists those there are.
        ValueError: repeated names, none at all, overlapping axes, descending order, a mesh without names.
        RankNotInMeshError: this rank is outside the mesh.
        ProcessGroupDestroyedError: the world of the mesh is gone.
    """
    return remembered(mesh, names, _find, "find")


def remembered(
    mesh: DeviceMesh, request: Any, answer: Callable[[DeviceMesh, Any], DeviceMesh], kind: str = ""
) -> DeviceMesh:
    """Return the cached result of a lookup in this mesh, or compute and cache it.

    Args:
        mesh: the mesh.
        request: what is looked up; the result is cached if this is a string, a tuple or a list.
        answer: computes the result from `mesh` and `request`.
        kind: a name for this kind of lookup, so that equal requests of two kinds have a result each.
    """
    try:
        lookups: Lookups = mesh._automodel_mesh_lookups  # type: ignore[attr-defined]
        world = lookups.family.world()
        # `worlds.is_current`, written out: its calls would take as long as all of this.
        if world is not None and world is distributed_c10d._world._default_pg:
            return lookups.answers[kind][request]
    except (AttributeError, KeyError, TypeError):
        pass  # not cached yet, or not hashable, as a list
    if isinstance(request, list):
        return remembered(mesh, tuple(request), answer, kind)
    with in_use(mesh) as family:
        found = answer(mesh, request)
        if isinstance(request, (str, tuple)):
            lookups_of(mesh, family).answers.setdefault(kind, {})[request] = found
    return found


@constant_when_compiled
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
    if is_list(meshes) and not meshes:
        raise MeshIndexError("concatenate: meshes: no mesh was given; give at least one.")
    items = listed("concatenate: meshes", meshes, "a list or tuple of meshes")
    given = [require_mesh(item, f"concatenate: meshes[{index}]") for index, item in enumerate(items)]
    with in_use(given[0]) as family:
        for mesh in given[1:]:
            if family_of(mesh) is not family:
                raise MeshArgumentError(
                    f"concatenate: {shown_mesh(mesh)} has another root than {shown_mesh(given[0])}: only meshes of one "
                    "root can be joined."
                )
        family.require_member(given[0])
        names = checked_names("concatenate: names of the axes", [name for mesh in given for name in axis_names(mesh)])
        axes = tuple(axis for mesh in given for axis in era.axes_of(mesh))
        _require_disjoint(axes, names, "concatenate")
        groups = [family.along(mesh, dim) for mesh in given for dim in range(mesh.ndim)]
        return given[0] if len(given) == 1 else family.derive(axes, names, groups, given[0])


def _slice(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
    family = family_of(mesh)
    own = axis_names(mesh)
    wanted = checked_names("slice_mesh: names", names)
    family.require_member(mesh)
    if wanted == own:
        return mesh
    folded = era.flattened(family.root)
    require_known(wanted, own, folded)
    if len(wanted) == 1 and wanted[0] not in own:
        family.along(folded[wanted[0]], 0)
        return folded[wanted[0]]
    holders = [(mesh, own.index(name)) if name in own else (folded[name], 0) for name in wanted]
    axes = tuple(era.axes_of(holder)[dim] for holder, dim in holders)
    _require_disjoint(axes, wanted, "slice_mesh")
    _require_order([(holder is mesh, dim, axis) for (holder, dim), axis in zip(holders, axes, strict=True)], wanted)
    groups: list[ProcessGroup] = [family.along(holder, dim) for holder, dim in holders]
    return family.derive(axes, wanted, groups, mesh)


def _find(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
    wanted = checked_names("find_submesh: names", names)
    root = family_of(mesh).root
    here = {*axis_names(mesh), *era.flattened(root)}
    # The root's axes only where this mesh has not all of them: an unflattened mesh has axes the root has not.
    return slice_mesh(mesh if here.issuperset(wanted) or mesh is root else root, wanted)


def _require_disjoint(axes: tuple[Layout, ...], names: tuple[str, ...], what: str) -> None:
    if overlap(axes):
        raise MeshArgumentError(f"{what}: the axes {names} overlap: some of their ranks are reached in two ways.")


def _require_order(axes: Sequence[tuple[bool, int, Layout]], names: tuple[str, ...]) -> None:
    """Refuse axes of this mesh out of its own order, and flattened ones out of the order of their strides."""
    for (own, dim, axis), (next_own, next_dim, next_axis) in pairwise(axes):
        if own and next_own:
            ascending = dim < next_dim
        else:
            outer, inner = fold([axis]), fold([next_axis])
            ascending = not outer or not inner or outer[0][1] > inner[0][1]
        if not ascending:
            raise AxisOrderError(f"slice_mesh: {names} are not in ascending order: name outer axes before inner ones.")
