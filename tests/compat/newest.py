"""The calls of the newest torch: with `backport` they work on every release.

They are here under the names of the contract, and as one probe for each feature of `compat/eras/newest.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh

from tests.compat.plain import (
    concatenate,
    flatten,
    get_coordinate,
    get_group,
    init_device_mesh,
    slice_mesh,
    unflatten,
)

__all__ = ["concatenate", "flatten", "get_coordinate", "get_group", "init_device_mesh", "slice_mesh", "unflatten"]

DIFFERS: Final = {
    "test_overlapping_meshes_are_refused",
    "test_meshes_of_another_root_are_refused",
    "test_axes_of_one_rank_share_one_group",
    "test_plain_names_are_stored_whatever_kind_of_string_was_given",
    "test_a_mesh_of_part_of_the_world_leaves_the_other_ranks_outside",
    "test_backend_override_reaches_the_groups_of_its_axis",
    "test_a_family_without_references_is_freed",
    "test_a_second_thread_finds_the_root_and_the_flattened_axes",
    "test_a_flattened_axis_is_sliced_from_the_root_and_from_any_slice",
    "test_a_non_contiguous_flattened_axis_keeps_its_ranks",
    "test_the_same_request_again_creates_nothing",
    "test_the_same_request_again_returns_the_same_object",
    "test_building_and_slicing_do_not_import_dynamo",
    "test_an_axis_is_split_by_name_or_index[newest--1]",
    "test_a_name_that_the_mesh_has_already_is_refused",
    "test_backend_override_reaches_the_new_axes",
}
"""The tests of the contract that the newest torch fails; docs/eras.md says how."""


def get_root_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Call `DeviceMesh._get_root_mesh`."""
    return mesh._get_root_mesh()


def flattened_meshes(mesh: DeviceMesh) -> Mapping[str, DeviceMesh]:
    """Read `DeviceMesh._flatten_mapping` of the root."""
    return mesh._get_root_mesh()._flatten_mapping


def cube() -> DeviceMesh:
    """Make a mesh of eight ranks with torch's function."""
    return device_mesh.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "cp", "tp"))


def slices_a_slice() -> bool:
    """Slice a slice; warnings are errors."""
    return cube()["dp", "cp"]["cp"].mesh_dim_names == ("cp",)


def slices_a_flattened_axis_with_a_gap() -> bool:
    """Slice a flattened axis from the root, of which the newest torch warns."""
    root = cube()
    flat = root["dp", "tp"]._flatten("dp_tp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return root["dp_tp"].mesh.tolist() == flat.mesh.tolist()


def flattens_with_a_backend() -> bool:
    """Flatten with a backend of its own."""
    flat = cube()["dp", "cp"]._flatten("with_backend", backend_override="gloo")
    return dist.get_backend(flat.get_group()) == "gloo"


def refuses_a_name_in_use() -> bool:
    """Flatten other axes to the name of a flattened axis, and of a native one."""
    root = cube()
    root["dp", "cp"]._flatten("taken")
    refused = 0
    for name in ("taken", "tp"):
        with suppress(ValueError):
            root["dp", "tp"]._flatten(name)
            continue
        refused += 1
    return refused == 2


def flattens_an_axis_to_itself() -> bool:
    """Flatten a mesh of one axis to the name it has."""
    line = cube()["tp"]
    return line._flatten("tp") is line


def splits(dim: int | str) -> bool:
    """Split the axis of a mesh of eight ranks."""
    line = device_mesh.init_device_mesh("cpu", (8,), mesh_dim_names=("world",))
    split = line._unflatten(dim, (2, 4), ("a", "b"))
    return split.shape == (2, 4) and split.mesh_dim_names == ("a", "b")


def joins() -> bool:
    """Concatenate two slices."""
    root = cube()
    return DeviceMesh._concatenate([root["dp"], root["tp"]]).mesh_dim_names == ("dp", "tp")


def knows_the_root() -> bool:
    """Look up the root of a slice, and of itself."""
    root = cube()
    return root["dp"]._get_root_mesh() is root._get_root_mesh() is root


def knows_the_flattened_axes() -> bool:
    """Read the flattened axes of the root, and those of a slice, which has none; both can be written to."""
    root = cube()
    part = root["dp", "cp"]
    flat = part._flatten("dp_cp")
    found = dict(root._flatten_mapping) == {"dp_cp": flat} and not part._flatten_mapping
    for mesh in (root, part):
        mesh._flatten_mapping["another"] = flat
    return found and root._flatten_mapping["another"] is part._flatten_mapping["another"] is flat


def knows_who_is_in_it() -> bool:
    """Ask on ranks in a mesh and outside of it."""
    part = DeviceMesh("cpu", torch.arange(4))
    return part._is_current_rank_part_of_mesh() is (dist.get_rank() < 4)


def finds_every_group() -> bool:
    """Look up the group of a flattened axis from an unflattened mesh, and all groups of a mesh."""
    root = cube()
    flat = root["dp", "cp"]._flatten("dp_cp")
    split = root._unflatten(2, (2, 1), ("a", "b"))
    return split.get_group("dp_cp") is flat.get_group() and len(split.get_all_groups()) == 4


def has_a_tuple_as_coordinate() -> bool:
    """Look up the coordinate, and that of a rank outside."""
    part = DeviceMesh("cpu", torch.arange(4))
    wanted = (dist.get_rank(),) if dist.get_rank() < 4 else None
    return isinstance(cube().get_coordinate(), tuple) and part.get_coordinate() == wanted


def aborts() -> bool:
    """Abort the groups of a mesh, flattened axes included, and refuse a slice."""
    root = cube()
    part = root["dp", "cp"]
    flat, group = part._flatten("to_abort"), root.get_group("tp")
    dist.barrier()  # an abort waits for no rank, and another one may still connect
    with suppress(RuntimeError):
        part.abort()
        return False
    root.abort()
    living = dist.distributed_c10d._world.pg_map
    return group not in living and len(living) >= 1 and flat.size() == 4


def makers() -> list[Callable[..., DeviceMesh]]:
    """Return `init_device_mesh` as two modules of torch have it now."""
    public: Any = dist  # torch does not say in its types that it has it
    return [device_mesh.init_device_mesh, public.init_device_mesh]


def makes_a_mesh_with_a_backend() -> bool:
    """Make a mesh with a backend for one axis, by the functions of every module of torch that has it."""
    meshes = [
        make("cpu", (2, 4), mesh_dim_names=("a", "b"), backend_override={"a": "gloo", 1: "gloo"}) for make in makers()
    ]
    return all(dist.get_backend(mesh.get_group("a")) == "gloo" for mesh in meshes)


def constructs(**options: Any) -> bool:
    """Make a mesh by its constructor."""
    return DeviceMesh("cpu", torch.arange(8), mesh_dim_names=("world",), **options).size() == 8


PROBES: Final[Mapping[str, Callable[[], bool]]] = {
    "`mesh[...]` of a slice, without a warning": slices_a_slice,
    "`mesh[...]` of a flattened axis that is not contiguous": slices_a_flattened_axis_with_a_gap,
    "`mesh._flatten(backend_override=...)`": flattens_with_a_backend,
    "`mesh._flatten` to a name in use is an error": refuses_a_name_in_use,
    "`mesh._flatten` of one axis to its own name gives the mesh itself": flattens_an_axis_to_itself,
    "`mesh._unflatten` of an axis by its index": lambda: splits(0),
    "`mesh._unflatten` of an axis by its name": lambda: splits("world"),
    "`DeviceMesh._concatenate`": joins,
    "`mesh._get_root_mesh`": knows_the_root,
    "`root._flatten_mapping`": knows_the_flattened_axes,
    "`mesh._is_current_rank_part_of_mesh`": knows_who_is_in_it,
    "`mesh.get_group`, `get_all_groups`: of each axis of every mesh": finds_every_group,
    "`mesh.get_coordinate` as a tuple": has_a_tuple_as_coordinate,
    "`mesh.abort`": aborts,
    "`init_device_mesh(backend_override=...)`": makes_a_mesh_with_a_backend,
    "`DeviceMesh(preserve_rank_order=False)`": lambda: constructs(preserve_rank_order=False),
    "`DeviceMesh(preserve_rank_order=True)`": lambda: constructs(preserve_rank_order=True),
    "`DeviceMesh(backend_override=...)`": lambda: constructs(backend_override=(("gloo", None),)),
    "`mesh._layout`, `mesh._rank_map`": lambda: bool(cube()._layout) and cube()._rank_map.numel() == 8,
}
"""For each feature, what fails, or returns `False`, on a torch that does not have it; for eight ranks."""


def features_found() -> set[str]:
    """Try each probe; return the features that this torch has now."""
    found: set[str] = set()
    for feature, probe in PROBES.items():
        with suppress(Exception):
            if probe():
                found.add(feature)
        dist.barrier()
    return found


def abort(mesh: DeviceMesh) -> None:
    """Call `DeviceMesh.abort`, which torch's types have from 2.15 on."""
    mesh.abort()


Refused = Callable[[DeviceMesh, DeviceMesh], object]
REFUSED: Final[Mapping[str, tuple[Refused, type[Exception]]]] = {
    "slicing by an unknown name": (lambda root, _: root["cp"], KeyError),
    "slicing in another order": (lambda root, _: root["tp", "dp"], KeyError),
    "slicing without names": (lambda _, nameless: nameless["dp"], RuntimeError),
    "flattening without names": (lambda _, nameless: nameless._flatten("all"), RuntimeError),
    "flattening to the name of an axis": (lambda root, _: root._flatten("dp"), ValueError),
    "splitting into a wrong number of ranks": (lambda root, _: root._unflatten(0, (3,), ("a",)), ValueError),
    "splitting with a name too few": (lambda root, _: root._unflatten(0, (2, 1), ("a",)), RuntimeError),
    "splitting an axis that is not there": (lambda root, _: root._unflatten(2, (2,), ("a",)), ValueError),
    "splitting an axis by a wrong name": (lambda root, _: root._unflatten("cp", (2,), ("a",)), ValueError),
    "concatenating overlapping meshes": (lambda root, _: DeviceMesh._concatenate([root, root["dp"]]), RuntimeError),
    "concatenating nothing": (lambda *_: DeviceMesh._concatenate([]), IndexError),
    "the group of an unknown axis": (lambda root, _: root.get_group("cp"), KeyError),
    "the group of an index out of range": (lambda root, _: root.get_group(2), IndexError),
    "one group of several": (lambda root, _: root.get_group(), RuntimeError),
    "making a mesh with a name twice": (
        lambda *_: device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "a")),
        RuntimeError,
    ),
    "making a mesh larger than the world": (lambda *_: device_mesh.init_device_mesh("cpu", (5,)), RuntimeError),
}
"""What the newest torch refuses of a mesh of two axes of two ranks, `dp` and `tp`, and of one without names."""
