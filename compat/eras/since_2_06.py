"""torch 2.6 - 2.9: a module-level registry maps meshes to their roots, by mesh equality and for each thread apart.

That registry confuses unrelated meshes over the same ranks, has a mesh only in the thread that made it, and keeps each
mesh alive until the process ends. So its three tables are replaced, when this module is imported, by tables with the
same interface that store each entry on its mesh, as torch itself does from 2.10 on. These releases do not change any
more, so neither must this code. Delete the module when the floor reaches 2.10.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.device_mesh import DeviceMesh, _mesh_resources

from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.worlds import live_meshes
from automodel_mesh.topology.layouts import Layout, first_position, fold, native_layouts, size_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ROOT = "_automodel_mesh_root"
_AXES = "_automodel_mesh_axes"


class _TableOnMeshes(MutableMapping[DeviceMesh, Any]):
    """One table of the registry, its entries stored on the meshes, by identity and for every thread.

    Args:
        name: of the table.
        meshes: those that torch has made already. Only they take over an entry of torch's table that is found by mesh
            equality, as torch finds it.
    """

    def __init__(self, name: str, meshes: Iterable[DeviceMesh]) -> None:
        self._attribute = f"_automodel_mesh_registry_{name}"
        self._holders: weakref.WeakValueDictionary[int, DeviceMesh] = weakref.WeakValueDictionary()
        earlier: dict[DeviceMesh, Any] = _mesh_resources.__dict__.get(name, {})
        for mesh in meshes:
            if mesh in earlier:
                self[mesh] = earlier[mesh]
        earlier.clear()  # it would keep them alive

    def __getitem__(self, mesh: DeviceMesh) -> Any:
        try:
            return vars(mesh)[self._attribute]
        except TypeError:  # torch asks about None too
            raise KeyError(mesh) from None

    def __setitem__(self, mesh: DeviceMesh, entry: Any) -> None:
        vars(mesh)[self._attribute] = entry
        self._holders[id(mesh)] = mesh

    def setdefault(self, mesh: DeviceMesh, default: Any = None) -> Any:
        """Return the entry of a mesh, the default if it had none: the same object for threads that ask at once."""
        if self._attribute not in vars(mesh):
            self._holders[id(mesh)] = mesh
        return vars(mesh).setdefault(self._attribute, default)

    def __delitem__(self, mesh: DeviceMesh) -> None:
        del vars(mesh)[self._attribute]
        self._holders.pop(id(mesh), None)

    def __iter__(self) -> Iterator[DeviceMesh]:
        return iter(list(self._holders.values()))

    def __len__(self) -> int:
        return len(self._holders)


_TABLES = ("child_to_root_mapping", "root_to_flatten_mapping", "flatten_name_to_root_dims")


_registry: Any = type(_mesh_resources)


def _replace_tables() -> list[_TableOnMeshes]:
    # Usually there are no meshes yet, or none that was sliced or flattened, which fills torch's tables.
    meshes = live_meshes() if any(vars(_mesh_resources).get(name) for name in _TABLES) else []
    return [_replace_table(name, meshes) for name in _TABLES]


def _replace_table(name: str, meshes: Iterable[DeviceMesh]) -> _TableOnMeshes:
    table = _TableOnMeshes(name, meshes)
    # A property of the class, because the registry is a threading.local: its constructor runs again in every thread and
    # assigns an empty dictionary, which the setter ignores.
    setattr(_registry, name, property(lambda _: table, lambda _, __: None))
    return table


_roots, _flattened, _flattened_dims = _replace_tables()
# Newer releases have neither, and do not use this module; it can be imported there all the same.
_torchs_flatten = vars(_registry).get("create_flatten_mesh")
_torchs_slice = vars(_registry).get("create_sub_mesh")


def take_over(flatten: Callable[..., DeviceMesh], slice_mesh: Callable[..., DeviceMesh]) -> None:
    """Have torch flatten and slice the meshes that we made with these functions.

    An unflattened mesh is a root in the registry, so torch takes the slice of each rank for the whole mesh: slices
    would make groups of different ranks under one name, and wait for ever. And torch shows wrong ranks for a flattened
    axis that is not contiguous.
    """

    @wraps(_torchs_flatten)
    def flattened_by_us(registry: Any, mesh: DeviceMesh, name: str | None = None, *override: Any) -> Any:
        if _AXES in vars(mesh):
            return flatten(mesh, name or None, backend_override=override[0] if override else None)
        return _torchs_flatten(registry, mesh, name, *override)

    @wraps(_torchs_slice)
    def sliced_by_us(registry: Any, mesh: DeviceMesh, names: tuple[str, ...], dims: Any) -> Any:
        return slice_mesh(mesh, names) if _AXES in vars(mesh) else _torchs_slice(registry, mesh, names, dims)

    _set_functions(flattened_by_us, sliced_by_us)


def restore_torch() -> None:
    """Restore torch's own tables and functions."""
    for name in _TABLES:
        delattr(_registry, name)
    _set_functions(_torchs_flatten, _torchs_slice)


def _set_functions(flatten: Callable[..., DeviceMesh], slice_mesh: Callable[..., DeviceMesh]) -> None:
    _registry.create_flatten_mesh, _registry.create_sub_mesh = flatten, slice_mesh


def root_of(mesh: DeviceMesh) -> DeviceMesh:
    """Follow the registry to the true root: in that of 2.9 the root of a slice of a slice is its immediate parent."""
    while True:
        parent = vars(mesh).get(_ROOT) or _roots.get(mesh)
        if parent is None or parent is mesh:
            return mesh
        mesh = parent


def keeps_order(root: DeviceMesh) -> bool:
    """Return `False`: torch sorts the ranks of every group."""
    return False


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
    else:
        mesh = DeviceMesh(device_type, grid, mesh_dim_names=names, _init_backend=False)
    vars(mesh)[_AXES] = native_layouts(tuple(grid.shape))
    return mesh


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


def forget_groups(root: DeviceMesh, names: Sequence[str]) -> None:
    """Do nothing: meshes have the names of their groups only."""


def forget_meshes() -> bool:
    """Clear the registry, including the entries made before this module was imported."""
    for table in (_roots, _flattened, _flattened_dims):
        table.clear()
    return True


def outside_the_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs this one while `torch.compile` is off, on 2.6: later its frames can be skipped."""
    if facts.FRAMES_CAN_BE_SKIPPED:
        return function
    # Newer releases do not have it.
    from torch._C._dynamo.eval_frame import skip_code  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]

    def run(*args: Any, **kwargs: Any) -> Any:
        with _compiler_off():
            return function(*args, **kwargs)

    skip_code(run.__code__)
    return wraps(function)(run)


@contextmanager
def _compiler_off() -> Generator[None, None, None]:
    from torch._C._dynamo.eval_frame import set_eval_frame

    compiler = set_eval_frame(None)
    try:
        yield
    finally:
        set_eval_frame(compiler)


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
