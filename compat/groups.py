"""The process groups of a mesh family: each distinct set of ranks has one, made when it is first needed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

from automodel_mesh.compat import making
from automodel_mesh.compat.errors import ProcessGroupDestroyedError
from automodel_mesh.compat.making import DEFAULT_SPEC, GroupSpec
from automodel_mesh.compat.worlds import current_world, is_alive
from automodel_mesh.topology.layouts import Axis, fold

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class GroupReport(NamedTuple):
    """What `list_process_groups` says of one process group."""

    name: str
    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    backend: str
    options: object | None
    timeout: timedelta | None
    made_here: bool


@dataclass
class _Entry:
    """A group of this rank, `None` where it is in none; weak, so that a destroyed group can go before its mesh does."""

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
        self._entries: dict[tuple[Axis, GroupSpec], _Entry] = {}

    def adopt(self, axis: Axis, group: ProcessGroup, name: str) -> None:
        """Remember a group that torch made, so that an axis of the same ranks shares it."""
        entry = self._entries.setdefault((fold([axis]), DEFAULT_SPEC), _Entry(weakref.ref(group), made_here=False))
        entry.axes.append(name)

    def find_or_make(self, axis: Axis, spec: GroupSpec, name: str) -> ProcessGroup | None:
        """Return this rank's group along an axis, made now if the family has none; `None` outside the mesh.

        Every rank of the world must come here with the same axis and an equal spec.
        """
        key = self._key(axis, spec)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = self._make(*key, name)
        elif entry.group is not None and entry.alive() is None:
            raise ProcessGroupDestroyedError(
                f"the ranks of axis {name!r} had a process group, which has been destroyed: build the mesh again."
            )
        if name not in entry.axes:
            entry.axes.append(name)
        # Ranks outside the mesh have helped to make groups, a single-rank one among them, and have none of its axes.
        return entry.alive() if self._member else None

    def find_or_make_all(
        self, axes: Sequence[Axis], specs: Sequence[GroupSpec], names: Sequence[str]
    ) -> list[ProcessGroup]:
        """Return this rank's groups along several axes, none outside the mesh. Every rank of the world comes here."""
        found = [self.find_or_make(*asked) for asked in zip(axes, specs, names, strict=True)]
        return [group for group in found if group is not None]

    def find(self, axis: Axis, spec: GroupSpec) -> ProcessGroup | None:
        """Return this rank's group along an axis if the family has one of this spec; none is made."""
        entry = self._entries.get(self._key(axis, spec))
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

    def groups_made_here(self) -> Iterator[ProcessGroup]:
        """Yield the living groups that this table made on this rank, in the order it made them."""
        for entry in self._entries.values():
            if entry.made_here and (group := entry.alive()) is not None:
                yield group

    def _key(self, axis: Axis, spec: GroupSpec) -> tuple[Axis, GroupSpec]:
        if spec.timeout is None and self._timeout is not None:
            spec = spec._replace(timeout=self._timeout)
        return fold([axis]), spec

    def _make(self, axis: Axis, spec: GroupSpec, name: str) -> _Entry:
        # The default group has one order, ascending from 0, and so has an axis that folds to a single pair.
        if spec == DEFAULT_SPEC and self._spans_the_world and axis == fold([((len(self.ranks), 1),)]):
            world = current_world()
            return _Entry(None if world is None else weakref.ref(world), made_here=False)
        group = making.make_groups(axis, self.ranks, spec, f"mesh_{name}", spans_the_world=self._spans_the_world)
        return _Entry(None if group is None else weakref.ref(group), made_here=True)
