"""torch 2.10 and newer: a mesh stores its root, and its layout over the root's ranks; a root its flattened axes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed._mesh_layout import _MeshLayout
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.eras import facts
from automodel_mesh.topology.layouts import Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_OURS = "_automodel_mesh_ours"
_torchs_flatten = DeviceMesh._create_flatten_mesh


def take_over(flatten: Callable[..., DeviceMesh], slice_mesh: Callable[..., DeviceMesh]) -> None:
    """Have torch flatten the meshes of our roots with our function: so the ranks meet, and no group is made twice.

    Slices are torch's own: they are right or refused.
    """

    @wraps(_torchs_flatten)
    def flattened_by_us(mesh: DeviceMesh, name: str | None = None, backend_override: Any = (None, None)) -> Any:
        if _OURS in vars(mesh._get_root_mesh()):
            flatten(mesh, name or None, backend_override=backend_override)
        # Finds what we made. It returns the mesh on 2.10 and 2.11 only, and torch.compile does not accept one later.
        return _torchs_flatten(mesh, name, backend_override)  # type: ignore[arg-type]  # None is for 2.10 and 2.11

    DeviceMesh._create_flatten_mesh = flattened_by_us  # type: ignore[method-assign, assignment]


def restore_torch() -> None:
    """Restore torch's own function."""
    DeviceMesh._create_flatten_mesh = _torchs_flatten  # type: ignore[method-assign]


def root_of(mesh: DeviceMesh) -> DeviceMesh:
    """Return the root that torch stores on the mesh."""
    return mesh._get_root_mesh()


def keeps_order(root: DeviceMesh) -> bool:
    """Return what torch was told when the root was made."""
    return facts.PRESERVES_RANK_ORDER and root._preserve_rank_order


def axes_of(mesh: DeviceMesh) -> tuple[Layout, ...]:
    """Return the axes of torch's layout."""
    layout = mesh._layout
    return tuple(tuple(layout[dim].sizes_and_strides) for dim in range(len(layout)))


def make_root(
    device_type: str,
    grid: torch.Tensor,
    names: tuple[str, ...] | None,
    groups: Sequence[ProcessGroup],
) -> DeviceMesh:
    """Make a root mesh without letting torch make its groups."""
    options: dict[str, Any] = {"mesh_dim_names": names, "_init_backend": False}
    if facts.OVERLAP_IS_FOUND_BY_LISTING:
        layout_class: Any = _MeshLayout  # its arguments changed in 2.13
        layout = layout_class(grid.size(), grid.stride())  # the layout that torch would make from the grid
        with _known_not_to_overlap(layout):
            mesh = DeviceMesh(device_type, _layout=layout, _rank_map=grid.flatten(), **options)
    else:
        if facts.PRESERVES_RANK_ORDER and bool((grid.flatten().diff() < 0).any()):
            options["preserve_rank_order"] = True
        mesh = DeviceMesh(device_type, grid, **options)
    _attach(mesh, mesh, groups)
    vars(mesh)[_OURS] = True
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
    """Make a mesh over the root's rank map.

    It calls the constructor instead of slicing: from 2.14 on torch's slicing imports `torch._dynamo`, which takes 0.8 s
    and 150 MB.
    """
    inherited: dict[str, Any] = {"preserve_rank_order": root._preserve_rank_order} if facts.PRESERVES_RANK_ORDER else {}
    layout = _layout(axes, folded=folded)
    rank_map = root._rank_map.view(-1)
    vars(rank_map)["tolist"] = lambda: root._flatten_rank_map  # torch would list all ranks again, for each mesh
    with _known_not_to_overlap(layout):
        mesh = DeviceMesh(
            root.device_type,
            _layout=layout,
            _rank_map=rank_map,
            mesh_dim_names=names,
            _root_mesh=root,
            _init_backend=False,
            **inherited,
        )
    mesh._rank_map = root._rank_map
    _attach(mesh, root, groups)
    return mesh


def flattened(root: DeviceMesh) -> Mapping[str, DeviceMesh]:
    """Return the flattened axes that torch stores on the root."""
    return root._flatten_mapping


def registered_root_of(mesh: DeviceMesh) -> DeviceMesh:
    """Return the root that torch's own code finds: always the true root."""
    return root_of(mesh)


def register_flattened(
    root: DeviceMesh, name: str, mesh: DeviceMesh, parent: DeviceMesh, folded: tuple[str, ...]
) -> None:
    """Add a flattened axis to those of the root."""
    root._flatten_mapping[name] = mesh


def group_along(mesh: DeviceMesh, dim: int) -> ProcessGroup:
    """Return the group, which torch finds by the name that it stores."""
    return mesh.get_group(dim)


def forget_groups(root: DeviceMesh, names: Sequence[str]) -> None:
    """Drop the groups that the root holds; they keep their threads and connections as long as anything holds them."""
    if facts.ROOT_HOLDS_ITS_GROUPS:
        for name in names:
            root._pg_registry.pop(name, None)


def forget_meshes() -> bool:
    """Return `False`: torch stores everything on the meshes themselves."""
    return False


def outside_the_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function: its frames can be skipped."""
    return function


@contextmanager
def _known_not_to_overlap(layout: Any) -> Generator[None, None, None]:
    """Skip, while torch makes a mesh, its two checks for overlapping axes, which list all ranks of the layout."""
    if not facts.OVERLAP_IS_FOUND_BY_LISTING:
        yield
        return
    attributes = vars(layout)
    attributes["check_non_overlap"] = lambda: True  # an attribute of the object precedes the method of its class
    try:
        yield
    finally:
        del attributes["check_non_overlap"]


def _attach(mesh: DeviceMesh, root: DeviceMesh, groups: Sequence[ProcessGroup]) -> None:
    mesh._dim_group_names = [group.group_name for group in groups]
    if facts.ROOT_HOLDS_ITS_GROUPS:
        root._pg_registry.update((group.group_name, group) for group in groups)


def _layout(axes: tuple[Layout, ...], *, folded: bool) -> Any:
    layout_class: Any = _MeshLayout  # its arguments changed in 2.13
    if facts.LAYOUT_IS_A_LIST_OF_AXES:
        from torch.distributed._mesh_layout import _FlatLayout

        return layout_class(
            [_FlatLayout(tuple(size for size, _ in axis), tuple(stride for _, stride in axis)) for axis in axes]
        )
    whole = [axis or ((1, facts.SIZE_ONE_STRIDE),) for axis in axes]
    if folded and len(whole[0]) == 1:
        return layout_class(*whole[0][0])  # torch does not nest it; equality depends on that
    return layout_class(
        tuple(_nested(size for size, _ in axis) for axis in whole),
        tuple(_nested(stride for _, stride in axis) for axis in whole),
    )


def _nested(numbers: Any) -> Any:
    # In a layout a single pair is not nested; several pairs are in a tuple of their own.
    found = tuple(numbers)
    return found[0] if len(found) == 1 else found
