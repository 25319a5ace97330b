"""`describe`: the groups of every axis of a mesh, those of all ranks. It makes nothing and asks no other rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import check_size, shown_ranks
from automodel_mesh.compat.compiled import never_compiled
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import in_use, native_group, require_mesh
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.topology.description import AxisKind, MeshDescription, NamedLayout, describe_axes
from automodel_mesh.topology.layouts import Layout, first_position, fold

if TYPE_CHECKING:
    from automodel_mesh.compat.family import Family


@never_compiled
def describe(
    mesh: DeviceMesh, expert_mesh: DeviceMesh | None = None, *, ranks_per_node: int | None = None
) -> MeshDescription:
    """Describe a mesh: its axes and the flattened ones of its family, and the ranks of each of their groups.

    `list_process_groups` knows the groups of this rank; this knows those of all ranks, by arithmetic.

    Args:
        mesh: any mesh. Of a slice, the groups of all slices like it are described.
        expert_mesh: a mesh over the same ranks whose axes are described too, such as (ep_shard, ep).
        ranks_per_node: number of ranks on each node, at least 1; by default the launcher's `LOCAL_WORLD_SIZE`, and
            without a launcher all ranks count as one node.

    Returns:
        The description; `description.groups("tp")` yields the ranks of each group. It prints on one line, and shows as
        a table with a drawing in a notebook. An axis without a name is called `"dim_0"` and so on. On a rank outside
        the mesh there are no flattened axes.

    Raises:
        TypeError: `mesh` or `expert_mesh` is not a `DeviceMesh`; `ranks_per_node` is not an int.
        ValueError: the two meshes are over different ranks; `ranks_per_node` is less than 1.
        ProcessGroupDestroyedError: the family is closed, or its world was destroyed.
    """
    check_size("ranks_per_node", ranks_per_node, optional=True)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    with in_use(mesh) as family:
        ranks = family.groups.ranks
        named = [*_native(mesh, family, "native"), *_flattened(mesh, family)]
    if expert_mesh is not None:
        with in_use(require_mesh(expert_mesh, "expert_mesh")) as experts:
            if experts is not family and list(experts.groups.ranks) != list(ranks):
                raise MeshArgumentError(
                    f"expert_mesh: {shown_mesh(expert_mesh)} is over the ranks {shown_ranks(experts.groups.ranks)}, "
                    f"and {shown_mesh(mesh)} over {shown_ranks(ranks)}: describe each by itself."
                )
            taken = {axis.name for axis in named}
            named.extend(axis for axis in _native(expert_mesh, experts, "expert") if axis.name not in taken)
    per_node = _ranks_per_node(world_size) if ranks_per_node is None else int(ranks_per_node)
    return MeshDescription(world_size, per_node, ranks, describe_axes(named, ranks, per_node))


def _native(mesh: DeviceMesh, family: Family, kind: AxisKind) -> Iterator[NamedLayout]:
    names = mesh.mesh_dim_names or [f"dim_{dim}" for dim in range(mesh.ndim)]
    for dim, (name, layout) in enumerate(zip(names, era.axes_of(mesh), strict=True)):
        yield NamedLayout(name, kind, (), layout, _same_groups(mesh, dim, layout, family))


def _flattened(mesh: DeviceMesh, family: Family) -> Iterator[NamedLayout]:
    own = {name: fold([layout]) for name, layout in zip(mesh.mesh_dim_names or (), era.axes_of(mesh), strict=False)}
    for name, flat in era.flattened(family.root).items():
        if name not in own:
            layout = fold(era.axes_of(flat))
            yield NamedLayout(name, "derived", _folds(layout, own), layout, _same_groups(flat, 0, layout, family))


def _folds(layout: Layout, own: dict[str, Layout]) -> tuple[str, ...]:
    """Return the axes of more than one rank that a flattened axis folds; none if they do not make it up."""
    inside = {
        name: axis
        for name, axis in own.items()
        if axis and all(first_position([layout], stride) == 0 for _, stride in axis)
    }
    return tuple(inside) if fold(inside.values()) == layout else ()


def _same_groups(mesh: DeviceMesh, dim: int, layout: Layout, family: Family) -> object:
    """Return what tells whether two axes use the same process groups; `None` for the default group."""
    if family.root.get_coordinate() is None:
        return fold([layout])
    group = native_group(mesh, dim)
    return None if group is dist.group.WORLD else group.group_name


def _ranks_per_node(world_size: int) -> int:
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(told) if told.isdecimal() and int(told) > 0 else world_size
