"""The process groups of a mesh family: one for each distinct set of ranks, made when it is first needed.

Every rank of the world makes the same calls in the same order, whatever slice of the mesh it is in, so no rank waits
for another that never comes. The ranks of each group come from arithmetic on layouts.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
import torch.distributed as dist

from automodel_mesh.compat.worlds import current_world, is_alive, local_groups_are_safe
from automodel_mesh.errors import ProcessGroupDestroyedError
from automodel_mesh.topology.layouts import Layout, fold, group_at, groups, size_of

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend
    from torch.distributed import ProcessGroup

LOCAL_FROM: Final = 8
"""From this many groups along an axis on, each rank makes only its own, if the ranks agree that this is safe.

Each call that all ranks make is a rendezvous of the world, and so is the collective in which they agree: with fewer
groups there is nothing to gain."""


class GroupSpec(NamedTuple):
    """What a process group is asked to be; `None` means as the default group is.

    Specs are equal when they ask for the same: options by identity, and `owner`, the name of an axis that wants a
    communicator which no other axis uses.
    """

    backend: str | None = None
    options: Backend.Options | None = None
    timeout: timedelta | None = None
    owner: str | None = None

    def creation_timeout(self) -> timedelta | None:
        """Return the timeout to make groups with: c10d overwrites the one inside the options with its default."""
        if self.timeout is None and self.options is not None:
            inside: timedelta = self.options._timeout
            return inside
        return self.timeout


DEFAULT_SPEC: Final = GroupSpec()


class GroupReport(NamedTuple):
    """What `list_process_groups` reports of one process group."""

    name: str
    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    backend: str
    options: object | None
    timeout: timedelta | None
    made_here: bool


class AxisRequest(NamedTuple):
    """An axis that wants a process group: its name and layout, and what the group is asked to be."""

    name: str
    layout: Layout
    spec: GroupSpec


@dataclass
class _Entry:
    """This rank's group, `None` if it is in none; weak, so that a destroyed group can go before its mesh does."""

    group: weakref.ref[ProcessGroup] | None
    made_here: bool
    axes: list[str] = field(default_factory=list)

    def alive(self) -> ProcessGroup | None:
        """Return the group if it still exists."""
        group = None if self.group is None else self.group()
        return group if group is not None and is_alive(group) else None


class GroupTable:
    """The process groups of one mesh family, by the ranks they join and by what was asked of them.

    Args:
        ranks: the global ranks of the root mesh, in its row-major order.
        timeout: the timeout of every group made here; `None` for the default of its backend.
    """

    def __init__(self, ranks: Sequence[int], timeout: timedelta | None = None) -> None:
        self.ranks = ranks
        self._timeout = timeout
        self._member = dist.get_rank() in ranks
        world = range(dist.get_world_size())
        self._spans_the_world = ranks == world if isinstance(ranks, range) else list(ranks) == list(world)
        self.ascending = isinstance(ranks, range) or all(left < right for left, right in pairwise(ranks))
        # The specs in the keys keep the options alive, so that their identity, their only equality, stays theirs.
        self._entries: dict[tuple[Layout, GroupSpec], _Entry] = {}

    def adopt(self, name: str, layout: Layout, group: ProcessGroup) -> None:
        """Remember a group that torch made, so that other axes of the same ranks share it."""
        entry = self._entries.setdefault((fold([layout]), DEFAULT_SPEC), _Entry(weakref.ref(group), made_here=False))
        entry.axes.append(name)

    def find_or_make(self, requests: Iterable[AxisRequest]) -> list[ProcessGroup]:
        """Return this rank's group along each axis, made now if the family has none; an empty list outside the mesh.

        Every rank of the world must call this with the same layouts and equal specs.
        """
        found: list[ProcessGroup] = []
        for request in requests:
            key = self._key(request.layout, request.spec)
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = self._make(*key, f"mesh_{request.name}")
            group = entry.alive()
            if entry.group is not None and group is None:
                raise ProcessGroupDestroyedError(
                    f"the ranks of axis {request.name!r} had a process group, which has been destroyed: build the mesh "
                    "again."
                )
            if request.name not in entry.axes:
                entry.axes.append(request.name)
            # A rank outside the mesh has helped to make the groups, and may be in a single-rank one: not one of the
            # mesh.
            if group is not None and self._member:
                found.append(group)
        return found

    def find(self, layout: Layout, spec: GroupSpec) -> ProcessGroup | None:
        """Return this rank's group along an axis if the family has one of this spec; none is made."""
        entry = self._entries.get(self._key(layout, spec))
        return None if entry is None else entry.alive()

    def report(self) -> list[GroupReport]:
        """Describe the groups of this rank, in the order they came."""
        return [
            GroupReport(
                name=group.group_name,
                axes=tuple(entry.axes),
                ranks=tuple(dist.get_process_group_ranks(group)),
                backend=dist.get_backend(group),
                options=spec.options,
                timeout=spec.timeout,
                made_here=entry.made_here,
            )
            for (_, spec), entry in self._entries.items()
            if self._member and (group := entry.alive()) is not None
        ]

    def groups_made_here(self) -> list[ProcessGroup]:
        """Return the living groups that this table made on this rank, in the order it made them."""
        made = (entry.alive() for entry in self._entries.values() if entry.made_here)
        return [group for group in made if group is not None]

    def _key(self, layout: Layout, spec: GroupSpec) -> tuple[Layout, GroupSpec]:
        if spec.timeout is None and self._timeout is not None:
            spec = spec._replace(timeout=self._timeout)
        return fold([layout]), spec

    def _make(self, layout: Layout, spec: GroupSpec, description: str) -> _Entry:
        """Make the groups along an axis and remember this rank's."""
        # The default group has one order, ascending from 0, and so has an axis that folds to a single pair.
        if spec == DEFAULT_SPEC and self._spans_the_world and layout == fold([((len(self.ranks), 1),)]):
            world = current_world()
            return _Entry(None if world is None else weakref.ref(world), made_here=False)
        own = self._make_groups(layout, spec, description)
        return _Entry(None if own is None else weakref.ref(own), made_here=True)

    def _make_groups(self, layout: Layout, spec: GroupSpec, description: str) -> ProcessGroup | None:
        """Make the groups along an axis, in one of torch's ways, and return this rank's; `None` if it is in none."""
        if _default_group_can_be_split(spec):
            # A default group that is bound to a device has its communicator already, and torch splits it.
            split = dist.split_group(
                split_ranks=[list(ranks) for ranks in groups(layout, self.ranks)],
                timeout=spec.creation_timeout(),
                pg_options=spec.options,
                group_desc=description,
            )
            return cast("ProcessGroup", split) if self._member else None
        if not layout:
            # Every rank of the world makes one at the same time, ranks outside the mesh too: that counts as one group
            # on all of them. Not with local synchronization, whose names torch can give twice in a world.
            return _new_group((dist.get_rank(),), spec, description, local=False)
        many = len(self.ranks) // size_of(layout) >= LOCAL_FROM
        if many and self._spans_the_world and local_groups_are_safe():
            own = group_at(layout, self.ranks.index(dist.get_rank()), self.ranks)
            return _new_group(own, spec, description, local=True)
        mine: ProcessGroup | None = None
        for ranks in groups(layout, self.ranks):
            group = _new_group(ranks, spec, description, local=False)
            if dist.get_rank() in ranks:
                mine = group
        return mine


def _new_group(ranks: Sequence[int], spec: GroupSpec, description: str, *, local: bool) -> ProcessGroup:
    group = dist.new_group(
        list(ranks),
        spec.creation_timeout(),
        spec.backend,
        spec.options,
        use_local_synchronization=local,
        group_desc=description,
    )
    return cast("ProcessGroup", group)


def _default_group_can_be_split(spec: GroupSpec) -> bool:
    world = current_world()
    device_id: torch.device | None = getattr(world, "bound_device_id", None)
    if world is None or device_id is None or not torch.accelerator.is_available():
        return False
    return spec.backend is None or world._get_backend(torch.device(device_id.type)).name() == spec.backend
