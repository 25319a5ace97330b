"""The process groups of a mesh family: one for each distinct set of ranks, made when it is first needed.

The ranks agree before the first group of a call is made (`agreement.py`). A rank makes only the groups that it is in,
unless torch wants every rank for each. The ranks of a group come from arithmetic on layouts.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import torch.distributed as dist

from automodel_mesh.checks import shown_ranks
from automodel_mesh.compat.agreement import Operation, operation
from automodel_mesh.compat.backends import check_backend
from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.eras.support import TORCH_VERSION
from automodel_mesh.compat.splitting import Way, way_to_make
from automodel_mesh.compat.worlds import current_world, is_alive, named_group, timeout_of, unwrapped_groups
from automodel_mesh.errors import ProcessGroupDestroyedError
from automodel_mesh.topology.layouts import Layout, fold, group_at, groups

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend
    from torch.distributed import ProcessGroup


logger = logging.getLogger(__name__)


class GroupSpec(NamedTuple):
    """What a process group is asked to be; `None` means as the default group is.

    Specs are equal when they ask for the same: options are compared by identity.
    """

    backend: str | None = None
    """The backend, such as `"gloo"`."""
    options: Backend.Options | None = None
    """The options of the backend."""
    timeout: timedelta | None = None
    """The timeout of operations on the group."""
    owner: str | None = None
    """The name of the axis that wants a communicator of its own."""

    def creation_timeout(self) -> timedelta | None:
        """Return the timeout to make groups with: c10d overwrites the one inside the options with its default."""
        if self.timeout is None and self.options is not None:
            inside: timedelta = self.options._timeout
            return inside
        return self.timeout

    def describe(self) -> str:
        """Describe what is asked, in the same words on every rank that asks for the same; options by their type."""
        asked = self._replace(options=None)._asdict() | {"options": self.options and type(self.options).__name__}
        return ", ".join(f"{key}={value}" for key, value in asked.items() if value is not None)


DEFAULT_SPEC: Final = GroupSpec()

SORTS_RANKS: Final = (
    f"torch {TORCH_VERSION} sorts the ranks of a mesh's process groups: before torch 2.15 a mesh keeps no other order"
)
"""Why an order of ranks is refused where `facts.PRESERVES_RANK_ORDER` is false."""

_KEEP_ORDER: Final[dict[str, Any]] = {"sort_ranks": False} if facts.PRESERVES_RANK_ORDER else {}
"""What makes `new_group` keep the order of the ranks that it is given, where a mesh can have its own order."""


class GroupReport(NamedTuple):
    """What `list_process_groups` reports of one process group."""

    name: str
    """The name of the group."""
    axes: tuple[str, ...]
    """The axes that use it."""
    ranks: tuple[int, ...]
    """Its global ranks, in their order in the group."""
    backend: str
    """Its backend, such as `"gloo"`."""
    options: object | None
    """The options that were asked for; `None` for the default."""
    timeout: timedelta | None
    """The timeout that was asked for; `None` for the default."""
    made_here: bool
    """Whether this library made it."""


class AxisRequest(NamedTuple):
    """An axis that wants a process group: its name and layout, and what the group is asked to be."""

    name: str
    layout: Layout
    spec: GroupSpec


@dataclass
class _Entry:
    """This rank's group, `None` if it is in none; weak, so that a destroyed group can go before its mesh does."""

    group: weakref.ref[ProcessGroup] | None
    made_in: Operation | None = None
    axes: list[str] = field(default_factory=list)

    def alive(self) -> ProcessGroup | None:
        """Return the group if it still exists."""
        group = None if self.group is None else self.group()
        return group if group is not None and is_alive(group) else None

    def use_for(self, name: str) -> None:
        """Note that an axis uses the group."""
        if name not in self.axes:
            self.axes.append(name)


class GroupTable:
    """The process groups of one mesh family, by the ranks they join and by what was asked of them.

    Args:
        ranks: the global ranks of the root mesh, in its row-major order.
        device_type: the device type of the mesh.
        timeout: the timeout of every group made here; `None` for the default of its backend.
    """

    def __init__(self, ranks: Sequence[int], device_type: str, timeout: timedelta | None = None) -> None:
        self.ranks = ranks
        self._device_type = device_type
        self._timeout = timeout
        self._member = dist.get_rank() in ranks
        world = range(dist.get_world_size())
        self._spans_the_world = ranks == world if isinstance(ranks, range) else list(ranks) == list(world)
        self.ascending = isinstance(ranks, range) or all(left < right for left, right in pairwise(ranks))
        # The specs in the keys keep the options alive, so that their identity, their only equality, stays theirs.
        self._entries: dict[tuple[Layout, GroupSpec], _Entry] = {}

    def operation(self, what: str) -> AbstractContextManager[Operation]:
        """Begin an operation of the family that may make groups; see `agreement.operation`."""
        return operation(what, range(dist.get_world_size()) if made_by_all_ranks() else self.ranks, self._timeout)

    def adopt(self, name: str, layout: Layout, group: ProcessGroup, *, shared: bool) -> None:
        """Remember a group that torch made for an axis, to report it and to share it with axes of the same ranks.

        Args:
            name: the axis.
            layout: its layout.
            group: this rank's group.
            shared: whether other axes may use it: it is of the default kind, and its ranks have the order of the axis.
        """
        entry = next((entry for entry in list(self._entries.values()) if entry.alive() is group), None)
        if entry is None:
            ranks = fold([layout])
            own = not shared or (ranks, DEFAULT_SPEC) in self._entries  # such as a second group of the same ranks
            entry = _Entry(weakref.ref(group))
            self._entries[ranks, GroupSpec(owner=group.group_name) if own else DEFAULT_SPEC] = entry
        entry.use_for(name)

    def find_or_make(self, requests: Sequence[AxisRequest], current: Operation) -> list[ProcessGroup]:
        """Return this rank's group along each axis, made now if the family has none; an empty list outside the mesh.

        Args:
            requests: the axes. All ranks that take part in the operation give the same layouts and equal specs.
            current: the operation. The ranks agree on it, if they have not yet, before a group is made.

        Raises:
            RanksDisagreeError: the ranks do not ask for the same, or not all come.
            MeshArgumentError: a backend is not known, does not serve the device, or this torch was built without it.
            ProcessGroupDestroyedError: the group of an axis was destroyed.
        """
        keys = [self._key(request) for request in requests]
        named = list(zip(keys, (request.name for request in requests), strict=True))
        missing = {key: request for key, request in zip(keys, requests, strict=True) if self._entry(key) is None}
        for key, name in named:
            if key not in missing:
                self._use(key, name)  # raises for a destroyed group, before the others are made
        for _, spec in missing:
            check_backend(spec.backend, self._device_type)
        if missing and not current.agreed:
            current.agree(self._describe(missing.values()))
        for key, request in missing.items():
            own = self._make(key, request.name, current)
            self._entries[key] = _Entry(None if own is None else weakref.ref(own), current)
        found = (self._use(key, name) for key, name in named)
        return [group for group in found if group is not None]

    def find(self, layout: Layout, spec: GroupSpec) -> ProcessGroup | None:
        """Return this rank's group along an axis if the family has one of this spec; none is made."""
        entry = self._entry(self._key(AxisRequest("", layout, spec)))
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
                made_here=entry.made_in is not None,
            )
            for (_, spec), entry in list(self._entries.items())
            if self._member and (group := entry.alive()) is not None
        ]

    def groups_made_here(self) -> list[ProcessGroup]:
        """Return the living groups that this table made on this rank, in the order it made them."""
        made = (entry.alive() for entry in list(self._entries.values()) if entry.made_in)
        return [group for group in made if group is not None]

    def _key(self, request: AxisRequest) -> tuple[Layout, GroupSpec]:
        spec = request.spec
        if spec.timeout is None and self._timeout is not None:
            spec = spec._replace(timeout=self._timeout)
        return fold([request.layout]), spec

    def _entry(self, key: tuple[Layout, GroupSpec]) -> _Entry | None:
        """Return the entry of a group, made or found now if it is the default group; `None` if it must be made."""
        layout, spec = key
        # The default group has one order, ascending from 0, and so has an axis that folds to a single pair.
        whole = self._spans_the_world and layout == fold([((len(self.ranks), 1),)])
        if whole and key not in self._entries and (world := current_world()) is not None:
            alike = spec in {DEFAULT_SPEC, GroupSpec(timeout=timeout_of(world))}
            self._entries |= {key: _Entry(weakref.ref(world))} if alike else {}
        entry = self._entries.get(key)
        failed = entry is not None and entry.made_in is not None and entry.made_in.failed
        return None if failed else entry

    def _use(self, key: tuple[Layout, GroupSpec], name: str) -> ProcessGroup | None:
        """Return a group for an axis; `None` if this rank is outside the mesh."""
        entry = self._entries[key]
        group = entry.alive()
        if entry.group is not None and group is None:
            raise ProcessGroupDestroyedError(
                f"the ranks of axis {name!r} had a process group, which has been destroyed: build the mesh again."
            )
        entry.use_for(name)
        return group

    def _describe(self, requests: Iterable[AxisRequest]) -> str:
        """Describe what is to be made, in the same words on every rank that asks for the same."""
        told: list[str] = []
        for name, layout, spec in requests:
            sizes = " x ".join(f"{size} at stride {stride}" for size, stride in fold([layout])) or "1"
            told.append(f"{name} ({', '.join(filter(None, (sizes, spec.describe())))})")
        way = way_to_make()  # it differs on ranks whose default group is not bound to a device as that of others is
        by = "" if way is Way.BY_MEMBERS else f", {way.value}"
        return f"{', '.join(told)} over the ranks {shown_ranks(self.ranks)}{by}"

    def _make(self, key: tuple[Layout, GroupSpec], axis: str, current: Operation) -> ProcessGroup | None:
        """Make this rank's group along an axis, `None` if it has none, and those of the others if torch needs that."""
        layout, spec = key
        description, start = f"mesh_{axis}", time.perf_counter()
        way = way_to_make(spec.backend, spec.options)
        own = group_at(layout, self.ranks.index(dist.get_rank()), self.ranks) if self._member else None
        made: dict[tuple[int, ...], ProcessGroup] = {}
        if way is Way.BY_SPLITTING:
            every = list(groups(layout, self.ranks))
            with named_group(current.name_group(own or self.ranks)):
                split = dist.split_group(
                    split_ranks=list(map(list, every)),
                    timeout=spec.creation_timeout(),
                    pg_options=spec.options,
                    group_desc=description,
                )
            made = dict.fromkeys(every, cast("ProcessGroup", split))
        elif way is Way.BY_ALL_RANKS:
            for ranks in groups(layout, self.ranks):
                made[ranks] = _new_group(ranks, spec, description, current.name_group(ranks))
        elif own is not None:
            name = current.name_group(own)
            made[own] = _new_group(own, spec, description, name, use_local_synchronization=True)
        if own is None:
            return None
        group = made[own]
        current.made.append(group)
        logger.info(
            "rank %d made process group %s for axis %s: ranks %s, backend %s, %.0f ms",
            *(dist.get_rank(), group.group_name, axis, shown_ranks(own)),
            *(dist.get_backend(group), 1e3 * (time.perf_counter() - start)),
        )
        return group


def _new_group(
    ranks: Sequence[int], spec: GroupSpec, description: str, name: str, *, use_local_synchronization: bool = False
) -> ProcessGroup:
    silent = "fake" in (spec.backend or dist.get_backend()).lower()
    with named_group(name), unwrapped_groups() if silent else nullcontext():
        group = dist.new_group(
            list(ranks),
            spec.creation_timeout(),
            spec.backend,
            spec.options,
            use_local_synchronization=use_local_synchronization,
            group_desc=description,
            **_KEEP_ORDER,
        )
    return cast("ProcessGroup", group)


def made_by_all_ranks() -> bool:
    """Tell whether every rank of the world takes part in making each group, those outside the mesh included."""
    return way_to_make() is not Way.BY_MEMBERS
