"""Mesh families: a root mesh and everything derived from it, with their process groups and cached lookups.

All of it is kept in attributes of the mesh objects: a table elsewhere would have to be keyed by mesh equality, which
confuses unrelated meshes over the same ranks, and would keep unused meshes alive.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from automodel_mesh.checks import shown, shown_ranks
from automodel_mesh.compat.compiled import never_compiled
from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.groups import SORTS_RANKS, AxisRequest, GroupTable, made_by_all_ranks
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.compat.worlds import current_world, is_current
from automodel_mesh.errors import MeshArgumentError, MeshTypeError, ProcessGroupDestroyedError, RankNotInMeshError
from automodel_mesh.topology.layouts import Layout, fold, group_at, is_ascending

if TYPE_CHECKING:
    from types import TracebackType

    from torch.distributed import ProcessGroup

    from automodel_mesh.compat.agreement import Operation

_FAMILY = "_automodel_mesh_family"
_LOOKUPS = "_automodel_mesh_lookups"
_starting: Final = threading.Lock()
_closing: Final = threading.Lock()


class StaysHere:
    """An attribute of a mesh that is not copied or pickled with it: an empty dictionary takes its place."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        # A class that every torch lets into a checkpoint (`torch.load(..., weights_only=True)`), without our package.
        return OrderedDict, ()


class Lookups(StaysHere):
    """The cached lookups of a mesh, valid as long as the world of its family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.answers: dict[str, dict[Any, DeviceMesh]] = {}


class Family(StaysHere):
    """A root mesh, the groups of all its axes, and the meshes derived from it."""

    def __init__(self, root: DeviceMesh, groups: GroupTable | None = None) -> None:
        world = current_world()
        if world is None:
            raise ProcessGroupDestroyedError(
                f"{shown_mesh(root)} cannot be used: torch.distributed is not initialised. Call init_process_group, "
                "then build the mesh."
            )
        self.root = root
        self.world: Callable[[], ProcessGroup | None] = weakref.ref(world)
        self.groups = groups or GroupTable(_ranks_of(root), root.device_type)
        self.closed = False
        self.unflattened: dict[str, set[Layout]] = {}
        self._derived: dict[Any, DeviceMesh] = {}
        # The meshes, by id, whose groups are known to have the ranks that the mesh shows. Others, which torch made, are
        # compared with their groups at each use.
        self._sound = set() if groups is None else {id(root)}

    @staticmethod
    def known(mesh: DeviceMesh) -> Family | None:
        """Return the family of a mesh if it was used before, even if it is closed now."""
        family = era.root_of(require_mesh(mesh)).__dict__.get(_FAMILY)
        return family if isinstance(family, Family) else None

    def require_open(self, mesh: DeviceMesh) -> None:
        """Refuse a request about a mesh of the family after its end."""
        if self.closed:
            raise ProcessGroupDestroyedError(
                f"{shown_mesh(mesh)} was closed, its process groups are destroyed: build the mesh again."
            )
        if not is_current(self.world):
            raise ProcessGroupDestroyedError(
                f"{shown_mesh(mesh)} was made in a world of process groups that has been destroyed since: build the "
                "mesh again after init_process_group."
            )

    def close(self) -> list[ProcessGroup] | None:
        """Refuse all requests from here on, cached lookups too; return the groups to destroy, `None` the second time.

        What another thread makes after that, it destroys itself.
        """
        with _closing:
            if self.closed:
                return None
            self.closed = True
        self.world = _no_world
        for mesh in (self.root, *self._derived.values()):
            vars(mesh).pop(_LOOKUPS, None)
        self._derived.clear()
        self._sound.clear()
        return self.groups.groups_made_here()

    def along(self, mesh: DeviceMesh, dim: int) -> ProcessGroup:
        """Return the process group along an axis of a mesh of the family.

        Raises:
            RankNotInMeshError: this rank has none.
            ProcessGroupDestroyedError: it was destroyed.
            MeshArgumentError: torch made the mesh, and the group has other ranks than the mesh shows.
        """
        self.require_member(mesh)
        group = native_group(mesh, dim)
        if id(mesh) not in self._sound:
            self._require_ranks(mesh, dim, group)
        return group

    def require_member(self, mesh: DeviceMesh) -> None:
        """Refuse a request about a mesh that this rank is not in."""
        if mesh.get_coordinate() is None:
            raise RankNotInMeshError(
                f"rank {dist.get_rank()} is not in {shown_mesh(mesh)}, which has the ranks "
                f"{shown_ranks(self.groups.ranks)}: only those have slices and process groups of it. Ask on those "
                "ranks only."
            )

    @never_compiled
    def derive(
        self,
        axes: tuple[Layout, ...],
        names: tuple[str, ...],
        groups: Sequence[ProcessGroup],
        parent: DeviceMesh,
        *,
        folded: bool = False,
    ) -> DeviceMesh:
        """Return the mesh with these axes over these groups: the existing one, or a new one."""
        key = (axes, names, tuple(group.group_name for group in groups), id(era.registered_root_of(parent)))
        mesh = self._derived.get(key)
        if mesh is None:
            # A cached mesh must hold real tensors, also when the request comes from inside a fake tensor mode.
            with Use(self, parent), _disable_current_modes():
                mesh = era.make_derived(self.root, axes, names, groups, parent, folded=folded)
            mesh = self._derived.setdefault(key, mesh)
            self._sound.add(id(mesh))
            if self.closed:  # by another thread: the root must not hold the groups again
                era.forget_groups(self.root, key[2])
        return mesh

    @contextmanager
    def operation(self, what: str, mesh: DeviceMesh) -> Generator[Operation, None, None]:
        """Begin an operation on a mesh of the family that may make groups.

        Raises:
            RankNotInMeshError: this rank is outside the mesh, and torch does not want it for the groups of others.
        """
        with Use(self, mesh):
            if not made_by_all_ranks():
                self.require_member(mesh)
            with self.groups.operation(what) as current:
                yield current

    def make_groups(self, requests: Sequence[AxisRequest], current: Operation) -> list[ProcessGroup]:
        """Find or make this rank's groups along some axes; see `GroupTable.find_or_make`.

        Raises:
            MeshArgumentError: the ranks along an axis do not ascend, and no mesh of this torch has such an order.
        """
        for name, layout, _ in [] if facts.PRESERVES_RANK_ORDER else requests:
            if not (self.groups.ascending and is_ascending(layout)):
                raise MeshArgumentError(
                    f"axis {name!r}: its ranks would not be in ascending order, and {SORTS_RANKS}. Name outer axes "
                    "before inner ones, in a mesh over ascending ranks."
                )
        self.adopt_groups()
        made = self.groups.find_or_make(requests, current)
        self.require_open(self.root)
        return made

    def adopt_groups(self, *more: DeviceMesh) -> None:
        """Remember the groups that torch made for the root, its flattened axes and more meshes, to list and share."""
        if self.root.get_coordinate() is None:
            return
        # Groups of torch's making are shared where they are of the default kind and in order: all ranks see that alike.
        default, keeps_order = dist.get_backend(), era.keeps_order(self.root)
        for mesh in (self.root, *era.flattened(self.root).values(), *more):
            if id(mesh) in self._sound or mesh.get_coordinate() is None:
                continue
            names = mesh.mesh_dim_names or [f"dim_{dim}" for dim in range(mesh.ndim)]
            for dim, (layout, name) in enumerate(zip(era.axes_of(mesh), names, strict=True)):
                with suppress(ProcessGroupDestroyedError):
                    group = native_group(mesh, dim)
                    shared = (
                        (keeps_order or (self.groups.ascending and is_ascending(layout)))
                        and dist.get_backend(group) == default
                        and self._ranks_along(layout) == _ranks_in(group)
                    )
                    self.groups.adopt(name, layout, group, shared=shared)

    def _ranks_along(self, layout: Layout) -> tuple[int, ...]:
        ranks = self.groups.ranks
        # Folded: an axis of one rank has a stride of 0 in torch 2.10.
        return group_at(fold([layout]), ranks.index(dist.get_rank()), ranks)

    def _require_ranks(self, mesh: DeviceMesh, dim: int, group: ProcessGroup) -> None:
        shown, found = self._ranks_along(era.axes_of(mesh)[dim]), _ranks_in(group)
        if shown != found:
            raise MeshArgumentError(
                f"axis {dim} of {shown_mesh(mesh)} shows the ranks {shown_ranks(shown)}, but its process group has "
                f"{shown_ranks(found)}: a collective would not match the mesh. Build the mesh over ranks in ascending "
                f"order{', or with preserve_rank_order=True' if facts.PRESERVES_RANK_ORDER else ''}."
            )


def family_of(mesh: DeviceMesh) -> Family:
    """Return the family of any mesh; for a mesh that torch made, start one.

    Raises:
        TypeError: `mesh` is no `DeviceMesh`.
        ProcessGroupDestroyedError: the world of the mesh is gone.
    """
    root = era.root_of(require_mesh(mesh))
    family = root.__dict__.get(_FAMILY)
    if not isinstance(family, Family):
        family = _family_of_torchs(root)
    family.require_open(mesh)
    return family


def in_use(mesh: DeviceMesh) -> Use:
    """Return the family of a mesh, for a `with` block that asks it for something; raises what `family_of` raises."""
    return Use(family_of(mesh), mesh)


class Use:
    """A block that asks a family for something.

    Another thread may close the family meanwhile: whatever fails because of that is a `ProcessGroupDestroyedError`.
    """

    # A class, because a generator takes twice the time.
    def __init__(self, family: Family, mesh: DeviceMesh) -> None:
        self._family = family
        self._mesh = mesh

    def __enter__(self) -> Family:
        return self._family

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or (isinstance(error, Exception) and not isinstance(error, ProcessGroupDestroyedError)):
            self._family.require_open(self._mesh)


def start_family(family: Family) -> Family:
    """Attach a family to its root mesh."""
    vars(family.root)[_FAMILY] = family
    return family


def _family_of_torchs(root: DeviceMesh) -> Family:
    """Start the family of a root that torch made, or that was copied or unpickled; one for all threads."""
    with _starting:
        family = vars(root).get(_FAMILY)
        if not isinstance(family, Family):
            family = Family(root)
            family.adopt_groups()
            start_family(family)
    return family


def lookups_of(mesh: DeviceMesh, family: Family) -> Lookups:
    """Return the cached lookups of a mesh."""
    lookups = vars(mesh).get(_LOOKUPS)
    if not isinstance(lookups, Lookups) or lookups.family is not family:
        lookups = vars(mesh)[_LOOKUPS] = Lookups(family)
    return lookups


def require_mesh(mesh: object, argument: str = "mesh") -> DeviceMesh:
    """Refuse anything that is not a `DeviceMesh`."""
    if not isinstance(mesh, DeviceMesh):
        remedy = " Give its .device_mesh." if isinstance(getattr(mesh, "device_mesh", None), DeviceMesh) else ""
        kind = type(mesh).__name__
        raise MeshTypeError(f"{argument}: expected a torch DeviceMesh, got {kind}: {shown(mesh)}.{remedy}")
    return mesh


def native_group(mesh: DeviceMesh, dim: int) -> ProcessGroup:
    """Return the group torch keeps for a dim, with one error for a destroyed group on every release."""
    try:
        return era.group_along(mesh, dim)
    except (KeyError, RuntimeError) as error:  # KeyError: up to 2.9, of a mesh that was made without groups
        raise ProcessGroupDestroyedError(
            f"the process group along axis {dim} of {shown_mesh(mesh)} does not exist: it was destroyed, or the mesh "
            "was made without groups. Build the mesh again."
        ) from error


def _ranks_in(group: ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def _no_world() -> None:
    """Return `None`, as the weak reference to a destroyed world does; a closed family has this in its place."""


def _ranks_of(root: DeviceMesh) -> tuple[int, ...]:
    with _disable_current_modes():
        return tuple(root.mesh.flatten().tolist())
