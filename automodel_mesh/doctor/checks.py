"""The checks that `automodel-mesh doctor` makes: each promise of the contract, and how to find out whether it holds.

What each group should be is worked out here by counting, without the library's own arithmetic.
"""

from __future__ import annotations

import enum
import math
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from gc import collect
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.errors import (
    MeshArgumentError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    UnknownAxisError,
    UnnamedMeshError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Check:
    """One promise of the contract, and the function that finds out whether it holds.

    Attributes:
        name: what it is called, in lower case with hyphens; distinct among the checks of a run.
        promise: one sentence: what is promised.
        run: called on every rank, with the same kind of world; it raises where the promise does not hold.
        own_world: run on ranks of its own, because it destroys the world or needs a fresh one.
    """

    name: str
    promise: str
    run: Callable[[World], None]
    own_world: bool = False


class ContractBrokenError(AssertionError):
    """The library did something else than its contract says."""


def mesh_shape(ranks: int) -> tuple[int, int, int]:
    """Spread a number of ranks over three axes, as evenly as its factors allow, the largest first.

    Args:
        ranks: at least 1.

    Returns:
        Three sizes that multiply to `ranks`: 8 gives `(2, 2, 2)`, 12 `(3, 2, 2)`, 6 `(3, 2, 1)`.
    """
    sizes = [1, 1, 1]
    for factor in sorted(_prime_factors(ranks), reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] *= factor
    largest, middle, least = sorted(sizes, reverse=True)
    return largest, middle, least


def _prime_factors(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            yield factor
            number //= factor


# --- what a check works with


class World:
    """The ranks a check runs on, as one of them sees it; it keeps the mesh that most checks share.

    Attributes:
        rank: this rank.
        size: the number of ranks.
        shape: the sizes of the axes of the shared mesh.
    """

    names: Final = ("pp", "dp", "tp")
    """The axes of the shared mesh, outermost first."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.shape = mesh_shape(size)

    @cached_property
    def root(self) -> DeviceMesh:
        """The mesh with the axes pp, dp and tp over all ranks."""
        return compat.init_device_mesh("cpu", self.shape, mesh_dim_names=self.names)

    def folded(self, *names: str) -> DeviceMesh:
        """Flatten axes of the shared mesh; the flattened axis is called by their names, joined by `_`."""
        return compat.flatten(compat.slice_mesh(self.root, names))

    def require_axes(self, mesh: DeviceMesh, *names: str) -> None:
        """Require that a mesh of the shared family has these axes, with the right ranks and groups.

        An axis is named as the shared mesh and `folded` name it: `"dp"` is native, `"pp_tp"` flattened.
        """
        parts = [[self.names.index(part) for part in name.split("_")] for name in names]
        require_axes(mesh, self.rank, self.shape, parts)
        require_equal(f"the names of {mesh}", mesh.mesh_dim_names, names)
        require(compat.get_root_mesh(mesh) is self.root, f"the root of {mesh} is not the mesh it was derived from")


def ranks_along(rank: int, shape: Sequence[int], dims: Iterable[int]) -> list[int]:
    """Count out the ranks of the group that a rank is in, along one or several axes of a root mesh.

    Args:
        rank: one of the ranks of the mesh, which has them in order, the last axis running fastest.
        shape: the sizes of its axes.
        dims: the indices of the axes that the group runs along.

    Returns:
        The ranks that have the same place as `rank` on all other axes, ascending.
    """
    fixed = [dim for dim in range(len(shape)) if dim not in set(dims)]
    here = place_of(rank, shape)
    places = ((other, place_of(other, shape)) for other in range(math.prod(shape)))
    return [other for other, place in places if all(place[dim] == here[dim] for dim in fixed)]


def place_of(rank: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the coordinates of a rank in a mesh of all ranks in order."""
    place: list[int] = []
    for size in reversed(shape):
        rank, index = divmod(rank, size)
        place.append(index)
    return tuple(reversed(place))


def require(condition: bool, otherwise: str) -> None:
    """Raise `ContractBrokenError` with this text where the condition does not hold."""
    if not condition:
        raise ContractBrokenError(otherwise)


def require_equal(what: str, found: object, expected: object) -> None:
    """Raise `ContractBrokenError` where two values differ, showing both."""
    require(found == expected, f"{what}: expected {expected}, found {found}")


def require_axes(mesh: DeviceMesh, rank: int, shape: Sequence[int], parts: Sequence[Sequence[int]]) -> None:
    """Require of each axis of a mesh that it shows the right ranks, and that its group has exactly these.

    Args:
        mesh: a mesh that this rank is in.
        rank: this rank.
        shape: the sizes of the axes of its root.
        parts: for each axis of the mesh, the indices of the root's axes that it is made of.
    """
    require_equal(f"the number of axes of {mesh}", mesh.ndim, len(parts))
    place = compat.get_coordinate(mesh)
    if place is None:
        raise ContractBrokenError(f"rank {rank} has no coordinate in {mesh}")
    for dim, dims in enumerate(parts):
        expected = ranks_along(rank, shape, dims)
        line = tuple(slice(None) if other == dim else place[other] for other in range(mesh.ndim))
        require_equal(f"the ranks that {mesh} shows along axis {dim}", mesh.mesh[line].tolist(), expected)
        require_equal(f"the ranks of the group of axis {dim} of {mesh}", ranks_of(mesh, dim), expected)
    everything = ranks_along(rank, shape, {dim for dims in parts for dim in dims})
    require_equal(f"the ranks of {mesh}", sorted(mesh.mesh.flatten().tolist()), everything)


def ranks_of(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> list[int]:
    """Return the ranks of the process group along an axis."""
    return list(dist.get_process_group_ranks(compat.get_group(mesh, mesh_dim)))


@contextmanager
def new_groups(count: int) -> Generator[None, None, None]:
    """Require that the block makes this many process groups on this rank."""
    before = worlds.live_process_groups()
    yield
    made = {name: ranks for name, ranks in worlds.live_process_groups().items() if name not in before}
    require(len(made) == count, f"expected {count} new process groups, found {len(made)}: {made}")


def require_error(expected: type[Exception], mentioning: str, call: Callable[[], Any]) -> None:
    """Require that a call raises this error, and that the message mentions what was wrong."""
    try:
        returned = call()
    except expected as error:
        require(mentioning in str(error), f"the {expected.__name__} does not mention {mentioning!r}: {error}")
    else:
        raise ContractBrokenError(f"no {expected.__name__} that mentions {mentioning!r}: the call returned {returned}")


# --- the checks


def _no_warnings(world: World) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stage = compat.slice_mesh(world.root, ("dp", "tp"))
        apart = world.folded("pp", "tp")
        flat = world.folded("dp", "tp")
        for mesh in (world.root, stage, apart, flat):
            compat.get_root_mesh(mesh)
            compat.get_coordinate(mesh)
            compat.get_group(mesh, "dp_tp")
            compat.slice_mesh(mesh, "pp_tp")
            compat.flattened_meshes(mesh)
        compat.slice_mesh(compat.slice_mesh(stage, "dp"), "dp")
        compat.slice_mesh(world.root, ("pp", "dp_tp"))
        compat.unflatten(flat, -1, world.shape[1:], ("row", "column"))
        compat.concatenate([compat.slice_mesh(world.root, "pp"), flat])


def _root_mesh(world: World) -> None:
    world.require_axes(world.root, *world.names)
    require_equal("the coordinate", compat.get_coordinate(world.root), place_of(world.rank, world.shape))
    for dim, name in enumerate(world.names):
        by_name, by_index = (
            compat.get_group(world.root, name),
            compat.get_group(world.root, dim - len(world.names)),
        )
        require(by_name is by_index, f"axis {name} has one group by name and another one by index")


def _unnamed_mesh(world: World) -> None:
    mesh = compat.init_device_mesh("cpu", world.shape)
    require_axes(mesh, world.rank, world.shape, ((0,), (1,), (2,)))
    require(mesh.mesh_dim_names is None, f"{mesh} was given names")
    require_error(UnnamedMeshError, "names", lambda: compat.slice_mesh(mesh, "dp"))
    require_error(UnnamedMeshError, "names", lambda: compat.flatten(mesh, "flat"))


def _default_group(world: World) -> None:
    root, everybody = world.root, dist.group.WORLD
    with new_groups(0):
        line = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("everybody",))
        folded = compat.flatten(root, "everything")
    for mesh in (line, folded):
        require_equal(f"the ranks of {mesh}", ranks_of(mesh), list(range(world.size)))
        require(compat.get_group(mesh) is everybody, f"{mesh} has another group than the default one")


def _singletons(world: World) -> None:
    with new_groups(1):
        mesh = compat.init_device_mesh("cpu", (1, world.size, 1, 1), mesh_dim_names=("pp", "dp", "cp", "tp"))
    for name in ("pp", "cp", "tp"):
        require_equal(f"the ranks along {name}", ranks_of(mesh, name), [world.rank])
        require(compat.get_group(mesh, name) is compat.get_group(mesh, "pp"), f"pp and {name} have a group each")


def _flatten_contiguous(world: World) -> None:
    flat = world.folded("dp", "tp")
    world.require_axes(flat, "dp_tp")
    require(compat.flattened_meshes(world.root)["dp_tp"] is flat, "the flattened axis is not listed by the root")
    require(compat.slice_mesh(world.root, "dp_tp") is flat, "the root gives another mesh under the name dp_tp")
    require(
        compat.get_group(world.root, "dp_tp") is compat.get_group(flat),
        "the root has another group for dp_tp",
    )


def _flatten_apart(world: World) -> None:
    flat = world.folded("pp", "tp")
    world.require_axes(flat, "pp_tp")
    require(compat.slice_mesh(world.root, "pp_tp") is flat, "the root gives another mesh under the name pp_tp")
    require(
        compat.get_group(world.root, "pp_tp") is compat.get_group(flat),
        "the root has another group for pp_tp",
    )


def _same_object(world: World) -> None:
    def requests() -> list[DeviceMesh]:
        flat = world.folded("dp", "tp")
        return [
            flat,
            world.folded("pp", "tp"),
            compat.slice_mesh(world.root, ("pp", "dp")),
            compat.slice_mesh(world.root, ("pp", "dp_tp")),
            compat.unflatten(flat, "dp_tp", world.shape[1:], ("row", "column")),
            compat.concatenate([compat.slice_mesh(world.root, "tp"), compat.slice_mesh(world.root, "pp")]),
        ]

    first = requests()
    with new_groups(0):
        again = requests()
    for one, other in zip(first, again, strict=True):
        require(one is other, f"the same request gave two meshes: {one} and {other}")


def _slice_of_slice(world: World) -> None:
    world.folded("pp", "tp")
    with new_groups(0):
        stage = compat.slice_mesh(world.root, ("dp", "tp"))
        world.require_axes(stage, "dp", "tp")
        for name in ("dp", "tp"):
            world.require_axes(compat.slice_mesh(stage, name), name)


def _flattened_from_submesh(world: World) -> None:
    together, apart = world.folded("dp", "tp"), world.folded("pp", "tp")
    stage = compat.slice_mesh(world.root, ("dp", "tp"))
    with new_groups(0):
        for submesh in (stage, compat.slice_mesh(stage, "tp"), apart):
            require(compat.slice_mesh(submesh, "dp_tp") is together, f"{submesh} gives another mesh for dp_tp")
            require(compat.slice_mesh(submesh, "pp_tp") is apart, f"{submesh} gives another mesh for pp_tp")
            require(compat.get_group(submesh, "pp_tp") is compat.get_group(apart), f"{submesh} has another group")


def _mixed_slice(world: World) -> None:
    world.folded("dp", "tp")
    world.folded("pp", "tp")
    with new_groups(0):
        for names in (("pp", "dp_tp"), ("pp_tp", "dp")):
            world.require_axes(compat.slice_mesh(world.root, names), *names)


def _unflatten_stage(world: World) -> None:
    # Two axes, so that the parts of a stage are ranks that no group joins yet, and groups have to be made.
    stages = next(_prime_factors(world.size))
    outer, inner, _ = mesh_shape(world.size // stages)
    root = compat.init_device_mesh("cpu", (stages, outer * inner), mesh_dim_names=("pp", "stage"))
    stage = compat.slice_mesh(root, "stage")
    require_equal("the size of a stage", stage.size(), outer * inner)
    split = compat.unflatten(stage, "stage", (outer, inner), ("shard", "tp"))
    require_axes(split, world.rank, (stages, outer, inner), ((1,), (2,)))
    require_equal("the names", split.mesh_dim_names, ("shard", "tp"))
    require(compat.get_root_mesh(split) is root, "the unflattened mesh has lost its root")
    # An exchange within each part: a group made with other ranks somewhere would wait for ever.
    for name in ("shard", "tp"):
        _require_sum(world, compat.slice_mesh(split, name))


def _concatenate(world: World) -> None:
    outer, inner = compat.slice_mesh(world.root, "pp"), compat.slice_mesh(world.root, "tp")
    flat = world.folded("dp", "tp")
    with new_groups(0):
        world.require_axes(compat.concatenate([outer, inner]), "pp", "tp")
        world.require_axes(compat.concatenate([inner, outer]), "tp", "pp")
        world.require_axes(compat.concatenate([outer, flat]), "pp", "dp_tp")


def _backend_override(world: World) -> None:
    # Gloo for tensors on the CPU only: in torch's books another backend than plain gloo, the default.
    chosen = "cpu:gloo"
    root = compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names, backend_override={"dp": chosen})
    flat = compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "flat", backend_override=chosen)
    split = compat.unflatten(root, "pp", (world.shape[0], 1), ("a", "b"), backend_override={"a": chosen})
    require_axes(root, world.rank, world.shape, ((0,), (1,), (2,)))
    require_axes(flat, world.rank, world.shape, ((1, 2),))
    require_axes(split, world.rank, (*world.shape[:1], 1, *world.shape[1:]), ((0,), (1,), (2,), (3,)))
    for mesh, name in ((root, "dp"), (flat, "flat"), (split, "a")):
        found = dist.get_backend_config(compat.get_group(mesh, name))
        require_equal(f"the backend of axis {name} of {mesh}", found, chosen)
    for mesh, name in ((root, "pp"), (root, "tp"), (split, "b")):
        found = dist.get_backend_config(compat.get_group(mesh, name))
        require_equal(f"the backend of axis {name} of {mesh}", found, dist.get_backend_config())


def _refusals(world: World) -> None:
    root, flat, apart = world.root, world.folded("dp", "tp"), world.folded("pp", "tp")
    pp, tp, size = compat.slice_mesh(root, "pp"), compat.slice_mesh(root, "tp"), world.shape[0]
    outer = compat.slice_mesh(root, ("pp", "dp"))
    foreign = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("dp",))
    unknown, wrong = UnknownAxisError, MeshArgumentError
    with new_groups(0):
        for expected, mentioning, call in (
            (unknown, "absent", lambda: compat.slice_mesh(root, ("pp", "absent"))),
            (unknown, "pp_tp", lambda: compat.slice_mesh(flat, "absent")),
            (unknown, "absent", lambda: compat.get_group(root, "absent")),
            (unknown, "absent", lambda: compat.unflatten(root, "absent", (1, 1), ("a", "b"))),
            (wrong, "3", lambda: compat.get_group(root, 3)),
            (wrong, "name", lambda: compat.slice_mesh(root, ())),
            (wrong, "repeat", lambda: compat.slice_mesh(root, ("dp", "dp"))),
            (wrong, "order", lambda: compat.slice_mesh(root, ("dp", "pp"))),
            (wrong, "overlap", lambda: compat.slice_mesh(root, ("pp", "pp_tp"))),
            (wrong, "overlap", lambda: compat.concatenate([pp, apart])),
            (wrong, "root", lambda: compat.concatenate([tp, foreign])),
            (wrong, "'tp'", lambda: compat.flatten(outer, "tp")),
            (wrong, "'dp_tp'", lambda: compat.flatten(outer, "dp_tp")),
            (wrong, "multiply", lambda: compat.unflatten(root, "pp", (size, 2), ("a", "b"))),
            (wrong, "names", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "b", "c"))),
            (wrong, "repeat", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "a"))),
            (wrong, "repeat", lambda: compat.unflatten(root, "pp", (size, 1), ("a", "tp"))),
            (wrong, "'dp_tp'", lambda: compat.unflatten(root, "pp", (size, 1), ("dp_tp", "a"))),
            (wrong, "ranks", lambda: compat.init_device_mesh("cpu", (world.size + 1,))),
            (
                wrong,
                "names",
                lambda: compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=("a", "b")),
            ),
        ):
            require_error(expected, mentioning, call)


def _outside_rank(world: World) -> None:
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
    """Axis names as frameworks often define them; `enum.StrEnum` is for Python 3.11 and newer."""

    PP = "pp"
    DP = "dp"
    TP = "tp"


def _string_enums(world: World) -> None:
    flat = world.folded("dp", "tp")
    stage = compat.slice_mesh(world.root, (_Axis.DP, _Axis.TP))
    require(
        stage is compat.slice_mesh(world.root, ("dp", "tp")),
        "dp and tp give another mesh when enums name them",
    )
    require(compat.flatten(stage) is flat, "the axes have other names when enums gave them")
    require(compat.get_group(world.root, _Axis.PP) is compat.get_group(world.root, "pp"), "pp has another group")
    root = compat.init_device_mesh("cpu", (world.size,), mesh_dim_names=(_Axis.DP,))
    split = compat.unflatten(root, _Axis.DP, (world.size, 1), (_Axis.PP, _Axis.TP))
    names = [*(stage.mesh_dim_names or ()), *(root.mesh_dim_names or ()), *(split.mesh_dim_names or ())]
    require_equal("the names", names, ["dp", "tp", "dp", "pp", "tp"])
    require(all(type(name) is str for name in names), f"the meshes keep enums, not plain strings: {names}")


def _second_thread(world: World) -> None:
    stage, apart = compat.slice_mesh(world.root, ("dp", "tp")), world.folded("pp", "tp")

    def in_another_thread() -> None:
        for mesh in (stage, apart, compat.slice_mesh(stage, "dp")):
            require(compat.get_root_mesh(mesh) is world.root, f"{mesh} has another root in a second thread")
        require(compat.slice_mesh(stage, "pp_tp") is apart, "pp_tp is another mesh in a second thread")
        world.require_axes(apart, "pp_tp")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(in_another_thread).result()


def _collectives(world: World) -> None:
    for name in world.names:
        _require_sum(world, compat.slice_mesh(world.root, name))
    for names in (("dp", "tp"), ("pp", "tp"), ("pp", "dp")):
        _require_sum(world, world.folded(*names))


def _require_sum(world: World, mesh: DeviceMesh) -> None:
    """Add up, over a 1-D mesh, a 1 from each rank at its own place: the sum shows who took part."""
    counts = torch.zeros(world.size, dtype=torch.int64)
    counts[world.rank] = 1
    dist.all_reduce(counts, group=compat.get_group(mesh))
    shown = set(mesh.mesh.tolist())
    expected = [int(rank in shown) for rank in range(world.size)]
    require_equal(f"contributions of each rank to a sum over {mesh}", counts.tolist(), expected)


def _separate_families(world: World) -> None:
    one, other = (compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names) for _ in range(2))
    flat = compat.flatten(compat.slice_mesh(one, ("dp", "tp")), "flat")
    require_equal("the flattened axes of an equal mesh", list(compat.flattened_meshes(other)), [])
    apart = compat.flatten(compat.slice_mesh(other, ("pp", "tp")), "flat")
    require_axes(flat, world.rank, world.shape, ((1, 2),))
    require_axes(apart, world.rank, world.shape, ((0, 2),))
    require(compat.get_root_mesh(flat) is one, "the flattened axis of one mesh has the other as its root")
    require(compat.get_root_mesh(apart) is other, "the flattened axis of the other mesh has the first as its root")


def _dropped_meshes(world: World) -> None:
    root = compat.init_device_mesh("cpu", world.shape, mesh_dim_names=world.names)
    stage = compat.slice_mesh(root, ("dp", "tp"))
    flat = compat.flatten(stage)
    split = compat.unflatten(flat, 0, world.shape[1:], ("row", "column"))
    joined = compat.concatenate([compat.slice_mesh(root, "pp"), flat])
    kept = [weakref.ref(mesh) for mesh in (root, stage, flat, split, joined)]
    del root, stage, flat, split, joined
    collect()
    alive = [str(mesh) for reference in kept if (mesh := reference()) is not None]
    require_equal("meshes that nobody holds any more and that are alive", alive, [])


def _destroyed_world(world: World) -> None:
    stage, flat = compat.slice_mesh(world.root, ("dp", "tp")), world.folded("pp", "tp")
    compat.slice_mesh(world.root, "pp_tp")
    dist.barrier()
    dist.destroy_process_group()
    _require_refused(world, stage, flat)
    dist.init_process_group("gloo")  # finds the other ranks as under torchrun, by what the environment says
    _require_refused(world, stage, flat)
    del world.root  # made anew at the next use
    world.require_axes(world.root, *world.names)
    world.require_axes(world.folded("pp", "tp"), "pp_tp")


def _require_refused(world: World, *meshes: DeviceMesh) -> None:
    error = ProcessGroupDestroyedError
    for mesh in (world.root, *meshes):
        require_error(error, "destroyed", partial(compat.get_group, mesh, 0))
        require_error(error, "destroyed", partial(compat.flatten, mesh, "anew"))
        for names in (("dp", "tp"), "pp_tp", "pp"):  # the first two were asked for when the world was there
            require_error(error, "destroyed", partial(compat.slice_mesh, mesh, names))


CHECKS: Final = (
    Check(
        "root-mesh",
        "Each axis of a new mesh shows the ranks that plain arithmetic gives; its group has exactly these.",
        _root_mesh,
    ),
    Check(
        "unnamed-mesh",
        "A mesh without names has the right groups by index, and refuses what works by name.",
        _unnamed_mesh,
    ),
    Check(
        "default-group",
        "An axis that joins the whole world uses the default process group.",
        _default_group,
    ),
    Check(
        "singletons",
        "All axes of size 1 share one process group of a single rank.",
        _singletons,
    ),
    Check(
        "flatten-contiguous",
        "Neighbouring axes fold into one with the right ranks and group, known to the root by name.",
        _flatten_contiguous,
    ),
    Check(
        "flatten-apart",
        "Axes that do not lie side by side fold into one with the right ranks and group.",
        _flatten_apart,
    ),
    Check(
        "same-object",
        "The same request again returns the same mesh and makes no process group.",
        _same_object,
    ),
    Check(
        "slice-of-slice",
        "A slice of a slice has the right ranks and the original root, and makes no process group.",
        _slice_of_slice,
    ),
    Check(
        "flattened-from-submesh",
        "Every mesh of a family finds the flattened axes by name, with their groups.",
        _flattened_from_submesh,
    ),
    Check(
        "mixed-slice",
        "Native and flattened axes can be sliced together, and no process group is made.",
        _mixed_slice,
    ),
    Check(
        "unflatten-stage",
        "Each pipeline stage can be split into axes with working groups of their own, and no rank hangs.",
        _unflatten_stage,
    ),
    Check(
        "concatenate",
        "Meshes of one root join in any order, and no process group is made.",
        _concatenate,
    ),
    Check(
        "backend-override",
        "A backend chosen for an axis reaches new, flattened and unflattened meshes, and no other axis.",
        _backend_override,
    ),
    Check(
        "refusals",
        "Unknown, repeated or taken names, overlaps, wrong orders and products give the documented errors.",
        _refusals,
    ),
    Check(
        "outside-rank",
        "A rank outside a mesh is told so, and the ranks inside are not kept waiting.",
        _outside_rank,
    ),
    Check(
        "string-enums",
        "Members of a string enum name axes as plain strings do.",
        _string_enums,
    ),
    Check(
        "second-thread",
        "A second thread knows roots and flattened axes as the first one does.",
        _second_thread,
    ),
    Check(
        "collectives",
        "A sum over an axis, native or flattened, adds up exactly the ranks that the axis shows.",
        _collectives,
    ),
    Check(
        "separate-families",
        "Two meshes over the same ranks with the same names do not share flattened axes.",
        _separate_families,
    ),
    Check(
        "dropped-meshes",
        "Meshes that nobody holds any more are collected.",
        _dropped_meshes,
    ),
    # On fresh ranks, because torch gives some warnings once in a process.
    Check(
        "no-warnings",
        "All of it raises no warning, also where warnings are errors.",
        _no_warnings,
        own_world=True,
    ),
    Check(
        "destroyed-world",
        "Meshes of a destroyed world are refused, in a new world too, where new meshes work.",
        _destroyed_world,
        own_world=True,
    ),
)
"""The whole contract, in the order it is checked."""
