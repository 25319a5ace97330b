"""The checks of `automodel-mesh doctor`: the docstring of each is a promise of the contract, its body tests it."""

from __future__ import annotations

import enum
import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.doctor.world import (
    World,
    coordinate_of,
    ranks_of,
    require,
    require_axes,
    require_equal,
    require_error,
    require_new_groups,
    stage_shape,
)
from automodel_mesh.errors import (
    MeshArgumentError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    UnknownAxisError,
    UnnamedMeshError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Check:
    """One promise of the contract, and the function that tests it.

    Attributes:
        name: lower case with hyphens; distinct among the checks of a run.
        promise: one sentence.
        run: called on every rank, in the same kind of world; it raises if the promise does not hold.
        own_world: whether the check needs new ranks to itself: it destroys the world, or must be the first in it.
    """

    name: str
    promise: str
    run: Callable[[World], None]
    own_world: bool = False


def root_mesh(world: World) -> None:
    """Each axis of a new mesh has the ranks that plain arithmetic gives, and so has its process group."""
    world.require_axes(world.root, *world.names)
    require_equal("the coordinate", compat.get_coordinate(world.root), coordinate_of(world.rank, world.shape))
    for dim, name in enumerate(world.names):
        by_name, by_index = (compat.get_group(world.root, axis) for axis in (name, dim - len(world.names)))
        require(by_name is by_index, f"axis {name} has one group by name and another one by index")


def unnamed_mesh(world: World) -> None:
    """A mesh without axis names has the right groups by index, and raises where a name is needed."""
    mesh = compat.init_device_mesh("cpu", world.shape)
    require_axes(mesh, world.rank, world.shape, ((0,), (1,), (2,)))
    require(mesh.mesh_dim_names is None, f"{shown_mesh(mesh)} was given names")
    require_error(UnnamedMeshError, "names", lambda: compat.slice_mesh(mesh, "dp"))
    require_error(UnnamedMeshError, "names", lambda: compat.flatten(mesh, "flat"))


def default_group(world: World) -> None:
    """An axis over all ranks uses the default process group."""
    root = world.root
    with require_new_groups(0):
        line = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("all",))
        flat = compat.flatten(root, "flat")
    for mesh in (line, flat):
        require_equal(f"the ranks of {shown_mesh(mesh)}", ranks_of(mesh), list(range(world.size)))
        require(compat.get_group(mesh) is dist.group.WORLD, f"{shown_mesh(mesh)} has not the default group")


def singletons(world: World) -> None:
    """All axes of size 1 share one process group of a single rank."""
    with require_new_groups(int(world.size > 1)):  # the default group of one rank is that group
        mesh = compat.init_device_mesh("cpu", (1, world.size, 1, 1), mesh_dim_names=("pp", "dp", "cp", "tp"))
    for name in ("pp", "cp", "tp"):
        require_equal(f"the ranks along {name}", ranks_of(mesh, name), [world.rank])
        require(compat.get_group(mesh, name) is compat.get_group(mesh, "pp"), f"pp and {name} have a group each")


def flatten_contiguous(world: World) -> None:
    """Contiguous axes flatten into one with the right ranks and group, which the root finds by name."""
    flat = world.flatten("dp", "tp")
    world.require_axes(flat, "dp_tp")
    require(compat.flattened_meshes(world.root)["dp_tp"] is flat, "the flattened axis is not listed by the root")
    _require_found_by_name(world.root, "dp_tp", flat)


def flatten_noncontiguous(world: World) -> None:
    """Axes that are not contiguous flatten into one with the right ranks and group."""
    flat = world.flatten("pp", "tp")
    world.require_axes(flat, "pp_tp")
    _require_found_by_name(world.root, "pp_tp", flat)


def _require_found_by_name(mesh: DeviceMesh, name: str, flat: DeviceMesh) -> None:
    require(compat.slice_mesh(mesh, name) is flat, f"{shown_mesh(mesh)} gives another mesh for {name}")
    require(compat.get_group(mesh, name) is compat.get_group(flat), f"{shown_mesh(mesh)} has another group for {name}")


def same_object(world: World) -> None:
    """The same call again returns the same mesh and makes no process group."""

    def make_meshes() -> list[DeviceMesh]:
        flat = world.flatten("dp", "tp")
        return [
            flat,
            world.flatten("pp", "tp"),
            compat.slice_mesh(world.root, ("pp", "dp")),
            compat.slice_mesh(world.root, ("pp", "dp_tp")),
            compat.unflatten(flat, "dp_tp", world.shape[1:], ("row", "column")),
            compat.concatenate([compat.slice_mesh(world.root, "tp"), compat.slice_mesh(world.root, "pp")]),
        ]

    first = make_meshes()
    with require_new_groups(0):
        again = make_meshes()
    for one, other in zip(first, again, strict=True):
        require(one is other, f"the same call gave two meshes: {one} and {other}")


def slice_of_slice(world: World) -> None:
    """A slice of a slice has the right ranks and the original root, and makes no process group."""
    world.flatten("pp", "tp")
    with require_new_groups(0):
        stage = compat.slice_mesh(world.root, ("dp", "tp"))
        world.require_axes(stage, "dp", "tp")
        for name in ("dp", "tp"):
            world.require_axes(compat.slice_mesh(stage, name), name)


def flattened_from_submesh(world: World) -> None:
    """Every mesh derived from a root finds the root's flattened axes by name, with their groups."""
    dp_tp, pp_tp = world.flatten("dp", "tp"), world.flatten("pp", "tp")
    stage = compat.slice_mesh(world.root, ("dp", "tp"))
    with require_new_groups(0):
        for submesh in (stage, compat.slice_mesh(stage, "tp"), pp_tp):
            _require_found_by_name(submesh, "dp_tp", dp_tp)
            _require_found_by_name(submesh, "pp_tp", pp_tp)


def mixed_slice(world: World) -> None:
    """Native and flattened axes can be sliced together, and no process group is made."""
    world.flatten("dp", "tp")
    world.flatten("pp", "tp")
    with require_new_groups(0):
        for names in (("pp", "dp_tp"), ("pp_tp", "dp")):
            world.require_axes(compat.slice_mesh(world.root, names), *names)


def unflatten_stage(world: World) -> None:
    """Each pipeline stage can be split into axes with working groups of their own, and no rank hangs."""
    # A stage is one axis of the root, so that no group joins the ranks of its parts yet: unflatten has to make groups.
    stages, outer, inner = stage_shape(world.size)
    root = compat.init_device_mesh("cpu", (stages, outer * inner), mesh_dim_names=("pp", "stage"))
    stage = compat.slice_mesh(root, "stage")
    require_equal("the size of a stage", stage.size(), outer * inner)
    split = compat.unflatten(stage, "stage", (outer, inner), ("shard", "tp"))
    require_axes(split, world.rank, (stages, outer, inner), ((1,), (2,)))
    require_equal("the names", split.mesh_dim_names, ("shard", "tp"))
    require(compat.get_root_mesh(split) is root, "the unflattened mesh has another root")
    # If a group had other members on some rank, this would hang or give another sum.
    for name in ("shard", "tp"):
        world.require_sum(compat.slice_mesh(split, name))


def concatenate(world: World) -> None:
    """Meshes with one root concatenate in any order, and no process group is made."""
    outer, inner = compat.slice_mesh(world.root, "pp"), compat.slice_mesh(world.root, "tp")
    flat = world.flatten("dp", "tp")
    with require_new_groups(0):
        world.require_axes(compat.concatenate([outer, inner]), "pp", "tp")
        world.require_axes(compat.concatenate([inner, outer]), "tp", "pp")
        world.require_axes(compat.concatenate([outer, flat]), "pp", "dp_tp")


def backend_override(world: World) -> None:
    """A backend chosen for an axis reaches new, flattened and unflattened meshes, and no other axis."""
    # Gloo for CPU tensors only: its backend configuration differs from that of plain "gloo", the default.
    chosen = "cpu:gloo"
    root = compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names, backend_override={"dp": chosen})
    flat = compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "flat", backend_override=chosen)
    split = compat.unflatten(root, "pp", (world.shape[0], 1), ("a", "b"), backend_override={"a": chosen})
    require_axes(root, world.rank, world.shape, ((0,), (1,), (2,)))
    require_axes(flat, world.rank, world.shape, ((1, 2),))
    require_axes(split, world.rank, (*world.shape[:1], 1, *world.shape[1:]), ((0,), (1,), (2,), (3,)))
    for mesh, name in ((root, "dp"), (flat, "flat"), (split, "a")):
        found = dist.get_backend_config(compat.get_group(mesh, name))
        require_equal(f"the backend of axis {name} of {shown_mesh(mesh)}", found, chosen)
    for mesh, name in ((root, "pp"), (root, "tp"), (split, "b")):
        found = dist.get_backend_config(compat.get_group(mesh, name))
        require_equal(f"the backend of axis {name} of {shown_mesh(mesh)}", found, dist.get_backend_config())


def refusals(world: World) -> None:
    """Unknown, repeated or taken names, overlaps, wrong orders and products raise the documented errors."""
    root, dp_tp, pp_tp = world.root, world.flatten("dp", "tp"), world.flatten("pp", "tp")
    pp, tp, size = compat.slice_mesh(root, "pp"), compat.slice_mesh(root, "tp"), world.shape[0]
    outer = compat.slice_mesh(root, ("pp", "dp"))
    foreign = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("dp",))
    unknown, wrong = UnknownAxisError, MeshArgumentError
    of_several_ranks = (  # axes of one rank neither overlap nor differ
        (wrong, "overlap", lambda: compat.slice_mesh(root, ("pp", "pp_tp"))),
        (wrong, "overlap", lambda: compat.concatenate([pp, pp_tp])),
        (wrong, "'dp_tp'", lambda: compat.flatten(outer, "dp_tp")),
        (wrong, "'dp_tp'", lambda: compat.unflatten(root, "pp", (size, 1), ("dp_tp", "a"))),
    )
    with require_new_groups(0):
        for expected, mentioning, call in (
            *(of_several_ranks if world.size > 1 else ()),
            (unknown, "absent", lambda: compat.slice_mesh(root, ("pp", "absent"))),
            (unknown, "pp_tp", lambda: compat.slice_mesh(dp_tp, "absent")),
            (unknown, "absent", lambda: compat.get_group(root, "absent")),
            (unknown, "absent", lambda: compat.unflatten(root, "absent", (1, 1), ("a", "b"))),
            (wrong, "3", lambda: compat.get_group(root, 3)),
            (wrong, "name", lambda: compat.slice_mesh(root, ())),
            (wrong, "repeat", lambda: compat.slice_mesh(root, ("dp", "dp"))),
            (wrong, "order", lambda: compat.slice_mesh(root, ("dp", "pp"))),
            (wrong, "root", lambda: compat.concatenate([tp, foreign])),
            (wrong, "'tp'", lambda: compat.flatten(outer, "tp")),
            (wrong, "multiply", lambda: compat.unflatten(root, "pp", (size, 2), ("a", "b"))),
            (wrong, "names", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "b", "c"))),
            (wrong, "repeat", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "a"))),
            (wrong, "repeat", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "tp"))),
            (wrong, "ranks", lambda: compat.init_device_mesh("cpu", (world.size + 1,))),
            (wrong, "names", lambda: compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("a", "b"))),
        ):
            require_error(expected, mentioning, call)


def outside_rank(world: World) -> None:
    """On a rank outside a mesh, calls raise an error that says so, and the ranks inside do not wait for it."""
    if world.size == 1:
        return  # no mesh leaves out the only rank
    inside = world.rank < world.size - 1
    mesh = compat.init_device_mesh("cpu", (world.size - 1, 1), mesh_dim_names=("dp", "tp"))
    if inside:
        require_axes(compat.flatten(mesh), world.rank, (world.size - 1, 1), ((0, 1),))
        require_axes(compat.slice_mesh(mesh, "dp"), world.rank, (world.size - 1, 1), ((0,),))
        return
    mentioning = f"rank {world.rank}"
    require_equal("the coordinate of a rank outside the mesh", compat.get_coordinate(mesh), None)
    require_error(RankNotInMeshError, mentioning, lambda: compat.flatten(mesh))
    require_error(RankNotInMeshError, mentioning, lambda: compat.slice_mesh(mesh, "dp"))
    require_error(RankNotInMeshError, mentioning, lambda: compat.get_group(mesh, "dp"))


class _Axis(str, enum.Enum):
    """Axis names as frameworks often define them; `enum.StrEnum` needs Python 3.11."""

    PP = "pp"
    DP = "dp"
    TP = "tp"


def string_enums(world: World) -> None:
    """Axes can be named by members of a string enum as by plain strings."""
    flat = world.flatten("dp", "tp")
    stage = compat.slice_mesh(world.root, (_Axis.DP, _Axis.TP))
    require(stage is compat.slice_mesh(world.root, ("dp", "tp")), "enums for dp and tp give another mesh")
    require(compat.flatten(stage) is flat, "a slice by enums flattens into another mesh")
    require(compat.get_group(world.root, _Axis.PP) is compat.get_group(world.root, "pp"), "pp has another group")
    root = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=(_Axis.DP,))
    split = compat.unflatten(root, _Axis.DP, (world.size, 1), (_Axis.PP, _Axis.TP))
    names = [*(stage.mesh_dim_names or ()), *(root.mesh_dim_names or ()), *(split.mesh_dim_names or ())]
    require_equal("the names", names, ["dp", "tp", "dp", "pp", "tp"])
    require(all(type(name) is str for name in names), f"the meshes keep enums, not plain strings: {names}")


def second_thread(world: World) -> None:
    """Roots and flattened axes are the same in a second thread."""
    stage, pp_tp = compat.slice_mesh(world.root, ("dp", "tp")), world.flatten("pp", "tp")

    def in_another_thread() -> None:
        for mesh in (stage, pp_tp, compat.slice_mesh(stage, "dp")):
            require(compat.get_root_mesh(mesh) is world.root, f"{shown_mesh(mesh)} has another root in a second thread")
        require(compat.slice_mesh(stage, "pp_tp") is pp_tp, "pp_tp is another mesh in a second thread")
        world.require_axes(pp_tp, "pp_tp")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_another_thread).result()


def collectives(world: World) -> None:
    """A sum over an axis, native or flattened, adds up exactly the ranks that the axis shows."""
    for name in world.names:
        world.require_sum(compat.slice_mesh(world.root, name))
    for names in (("dp", "tp"), ("pp", "tp"), ("pp", "dp")):
        world.require_sum(world.flatten(*names))


def separate_families(world: World) -> None:
    """Two meshes over the same ranks with the same names do not share flattened axes."""
    one, other = (compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names) for _ in range(2))
    dp_tp = compat.flatten(compat.slice_mesh(one, ("dp", "tp")), "flat")
    require_equal("the flattened axes of an equal mesh", list(compat.flattened_meshes(other)), [])
    pp_tp = compat.flatten(compat.slice_mesh(other, ("pp", "tp")), "flat")
    require_axes(dp_tp, world.rank, world.shape, ((1, 2),))
    require_axes(pp_tp, world.rank, world.shape, ((0, 2),))
    require(compat.get_root_mesh(dp_tp) is one, "the root of dp_tp is not the mesh it was derived from")
    require(compat.get_root_mesh(pp_tp) is other, "the root of pp_tp is not the mesh it was derived from")


def dropped_meshes(world: World) -> None:
    """Meshes that nothing refers to any more are garbage-collected."""
    root = compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names)
    stage = compat.slice_mesh(root, ("dp", "tp"))
    flat = compat.flatten(stage)
    split = compat.unflatten(flat, 0, world.shape[1:], ("row", "column"))
    joined = compat.concatenate([compat.slice_mesh(root, "pp"), flat])
    kept = [weakref.ref(mesh) for mesh in (root, stage, flat, split, joined)]
    del root, stage, flat, split, joined
    gc.collect()
    alive = [str(mesh) for reference in kept if (mesh := reference()) is not None]
    require_equal("meshes that are alive without a reference", alive, [])


def no_warnings(world: World) -> None:
    """Making meshes, deriving meshes from them and looking them up raises no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage = compat.slice_mesh(world.root, ("dp", "tp"))
        pp_tp, dp_tp = world.flatten("pp", "tp"), world.flatten("dp", "tp")
        for mesh in (world.root, stage, pp_tp, dp_tp):
            compat.get_root_mesh(mesh)
            compat.get_coordinate(mesh)
            compat.get_group(mesh, "dp_tp")
            compat.slice_mesh(mesh, "pp_tp")
            compat.flattened_meshes(mesh)
        compat.slice_mesh(compat.slice_mesh(stage, "dp"), "dp")
        compat.slice_mesh(world.root, ("pp", "dp_tp"))
        compat.unflatten(dp_tp, -1, world.shape[1:], ("row", "column"))
        compat.concatenate([compat.slice_mesh(world.root, "pp"), dp_tp])


def destroyed_world(world: World) -> None:
    """Meshes of a destroyed world raise an error, also in a new world, where new meshes work."""
    stage, flat = compat.slice_mesh(world.root, ("dp", "tp")), world.flatten("pp", "tp")
    compat.slice_mesh(world.root, "pp_tp")
    dist.barrier()
    dist.destroy_process_group()
    _require_destroyed_error(world, stage, flat)
    dist.init_process_group("gloo")  # by the environment variables that torchrun sets
    _require_destroyed_error(world, stage, flat)
    del world.root  # the next access makes it again
    world.require_axes(world.root, *world.names)
    world.require_axes(world.flatten("pp", "tp"), "pp_tp")


def _require_destroyed_error(world: World, *meshes: DeviceMesh) -> None:
    error = ProcessGroupDestroyedError
    for mesh in (world.root, *meshes):
        require_error(error, "destroyed", partial(compat.get_group, mesh, 0))
        require_error(error, "destroyed", partial(compat.flatten, mesh, "new"))
        for names in (("dp", "tp"), "pp_tp", "pp"):  # the first two were looked up before the world was destroyed
            require_error(error, "destroyed", partial(compat.slice_mesh, mesh, names))


def _check(function: Callable[[World], None], *, own_world: bool = False) -> Check:
    return Check(function.__name__.replace("_", "-"), function.__doc__ or "", function, own_world)


CHECKS: Final = (
    _check(root_mesh),
    _check(unnamed_mesh),
    _check(default_group),
    _check(singletons),
    _check(flatten_contiguous),
    _check(flatten_noncontiguous),
    _check(same_object),
    _check(slice_of_slice),
    _check(flattened_from_submesh),
    _check(mixed_slice),
    _check(unflatten_stage),
    _check(concatenate),
    _check(backend_override),
    _check(refusals),
    _check(outside_rank),
    _check(string_enums),
    _check(second_thread),
    _check(collectives),
    _check(separate_families),
    _check(dropped_meshes),
    _check(no_warnings, own_world=True),  # torch gives some warnings only once in a process
    _check(destroyed_world, own_world=True),
)
"""The whole contract, in the order in which it is checked."""
