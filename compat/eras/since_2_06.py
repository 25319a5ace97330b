"""torch 2.6 - 2.9: a module-level registry maps meshes to their roots, by mesh equality and for each thread apart.

That registry confuses unrelated meshes over the same ranks, has a mesh only in the thread that made it, and keeps each
mesh alive until the process ends. So its three tables are replaced, when this module is imported, by tables with the
same interface that store each entry on its mesh, as torch itself does from 2.10 on. These releases do not change any
more, so neither must this code. Delete the module when the floor reaches 2.10.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.device_mesh import DeviceMesh, _mesh_resources

from automodel_mesh.compat.eras import facts
from automodel_mesh.topology.layouts import Layout, first_position, fold, native_layouts, size_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ROOT = "_automodel_mesh_root"
_AXES = "_automodel_mesh_axes"


class _TableOnMeshes(MutableMapping[DeviceMesh, Any]):
    """One table of the registry, its entries stored on the meshes, by identity and for every thread."""

    def __init__(self, name: str) -> None:
        self._attribute = f"_automodel_mesh_registry_{name}"
        self._holders: weakref.WeakValueDictionary[int, DeviceMesh] = weakref.WeakValueDictionary()
        # The entries made before this module was imported; looked up by mesh equality, as torch does.
        self._earlier: dict[DeviceMesh, Any] = _mesh_resources.__dict__.get(name, {})

    def __getitem__(self, mesh: DeviceMesh) -> Any:
        try:
            return vars(mesh)[self._attribute]
        except (KeyError, AttributeError):
            return self._earlier[mesh]

    def __setitem__(self, mesh: DeviceMesh, entry: Any) -> None:
        vars(mesh)[self._attribute] = entry
        self._holders[id(mesh)] = mesh

    def __delitem__(self, mesh: DeviceMesh) -> None:
        if vars(mesh).pop(self._attribute, None) is None:
            del self._earlier[mesh]
        self._holders.pop(id(mesh), None)

    def __iter__(self) -> Iterator[DeviceMesh]:
        yield from list(self._holders.values())
        yield from list(self._earlier)

    def __len__(self) -> int:
        return len(self._holders) + len(self._earlier)


_TABLES = ("child_to_root_mapping", "root_to_flatten_mapping", "flatten_name_to_root_dims")


def restore_registry() -> None:
    """Restore torch's own tables, for comparisons with plain torch; this module must not be used afterwards."""
    for name in _TABLES:
        delattr(type(_mesh_resources), name)


def _replace_table(name: str) -> _TableOnMeshes:
    table = _TableOnMeshes(name)
    # A property of the class, because the registry is a threading.local: its constructor runs again in every thread and
    # assigns an empty dictionary, which the setter ignores.
    setattr(type(_mesh_resources), name, property(lambda _: table, lambda _, __: None))
    return table


_roots, _flattened, _flattened_dims = (_replace_table(name) for name in _TABLES)


def root_of(mesh: DeviceMesh) -> DeviceMesh:
    """Follow the registry to the true root: in that of 2.9 the root of a slice of a slice is its immediate parent."""
    while True:
        parent = vars(mesh).get(_ROOT) or _roots.get(mesh)
        if parent is None or parent is mesh:
            return mesh
        mesh = parent


def axes_of(mesh: DeviceMesh) -> tuple[Layout, ...]:
    """Return the axes stored on a mesh that we made; those of torch's slices are found by their names in the root."""
    if _AXES in vars(mesh):
        kept: tuple[Layout, ...] = vars(mesh)[_AXES]
        return kept
    root = root_of(mesh)
    of_root = native_layouts(tuple(root.mesh.shape))
    if mesh is root:
        return of_root
    by_name = dict(zip(root.mesh_dim_names or (), of_root, strict=True))
    dims = _flattened_dims.get(root, {})
    return tuple(
        by_name[name] if name in by_name else fold(of_root[dim] for dim in dims[name])
        for name in mesh.mesh_dim_names or ()
    )


def make_root(
    device_type: str,
    grid: torch.Tensor,
    names: tuple[str, ...] | None,
    groups: Sequence[ProcessGroup],
) -> DeviceMesh:
    """Make a root mesh without letting torch make its groups."""
    if groups:
        # From 2.7 on, from_group requires names for several groups; a mesh without names gets placeholders first.
        placeholders = names or tuple(f"dim_{dim}" for dim in range(grid.ndim))
        mesh = DeviceMesh.from_group(list(groups), device_type, grid, mesh_dim_names=placeholders)
        vars(mesh)["mesh_dim_names"] = names  # a plain attribute in these releases
        return mesh
    return DeviceMesh(device_type, grid, mesh_dim_names=names, _init_backend=False)


def make_derived(
    root: DeviceMesh,
    axes: tuple[Layout, ...],
    names: tuple[str, ...],
    groups: Sequence[ProcessGroup],
    parent: DeviceMesh,
    *,
    folded: bool,
) -> DeviceMesh:
    """Make the slice that contains this rank; torch would make one mesh for every slice of the world."""
    mesh = DeviceMesh.from_group(list(groups), root.device_type, _ranks_along(root, axes), mesh_dim_names=names)
    vars(mesh)[_ROOT] = root
    vars(mesh)[_AXES] = axes
    _register_root(mesh, root, parent)
    return mesh


def flattened(root: DeviceMesh) -> Mapping[str, DeviceMesh]:
    """Return the flattened axes that the registry has for a root."""
    table: Mapping[str, DeviceMesh] = _flattened.setdefault(root, {})
    return table


def registered_root_of(mesh: DeviceMesh) -> DeviceMesh:
    """Return the root that torch's own code finds; FSDP2, for example, slices it by the names of the mesh's axes.

    An axis that only an unflattened mesh has cannot be sliced from the true root by name. So the registry has an
    unflattened mesh as its own root, and as the root of all meshes derived from it.
    """
    root: DeviceMesh = _roots.get(mesh, mesh)
    return root


def group_along(mesh: DeviceMesh, dim: int) -> ProcessGroup:
    """Find the group by its name: `DeviceMesh.get_group` takes quadratic time up to 2.7, a second for 8,192 ranks."""
    kept = vars(mesh)
    name = kept["_dim_group_infos"][dim][2] if facts.GROUPS_ARE_KEPT_AS_RANKS else kept["_dim_group_names"][dim]
    return _resolve_process_group(name)


def register_flattened(
    root: DeviceMesh, name: str, mesh: DeviceMesh, parent: DeviceMesh, folded: tuple[str, ...]
) -> None:
    """Add a flattened axis to the registry, for the true root and for the root that torch finds."""
    seen = registered_root_of(parent)
    for holder in {id(root): root, id(seen): seen}.values():
        _flattened.setdefault(holder, {})[name] = mesh
        dims = _dims_in(holder, folded)
        if dims is not None:
            _flattened_dims.setdefault(holder, {})[name] = dims
            _roots[mesh] = holder


def forget_meshes() -> bool:
    """Clear the registry, including the entries made before this module was imported."""
    for table in (_roots, _flattened, _flattened_dims):
        table.clear()
    return True


def _ranks_along(root: DeviceMesh, axes: tuple[Layout, ...]) -> torch.Tensor:
    """Return the slice of the root's ranks along these axes that contains this rank."""
    every_rank = root.mesh.contiguous()
    coordinate = tuple(root.get_coordinate() or ())
    own = sum(place * stride for place, stride in zip(coordinate, every_rank.stride(), strict=True))
    # Not folded: the tensor has the order of the axes.
    pairs = [pair for axis in axes for pair in axis]
    start = every_rank.storage_offset() + first_position(axes, own)
    view = every_rank.as_strided([size for size, _ in pairs], [stride for _, stride in pairs], start)
    # A copy: pickling a view would include the tensor of the whole root.
    return view.reshape([size_of(axis) for axis in axes]).clone()


def _register_root(mesh: DeviceMesh, root: DeviceMesh, parent: DeviceMesh) -> None:
    for holder in (registered_root_of(parent), root):
        if _axis_names(holder).issuperset(mesh.mesh_dim_names or ()):
            _roots[mesh] = holder
            return


def _axis_names(holder: DeviceMesh) -> set[str]:
    return {*(holder.mesh_dim_names or ()), *_flattened_dims.get(holder, {})}


def _dims_in(holder: DeviceMesh, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the dims of the holder that some axes consist of; `None` if an axis is not one of its axes."""
    if not _axis_names(holder).issuperset(names):
        return None
    native = holder.mesh_dim_names or ()
    folded = _flattened_dims.get(holder, {})
    return tuple(dim for name in names for dim in ((native.index(name),) if name in native else folded[name]))
