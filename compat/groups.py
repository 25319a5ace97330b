"""Makes the process groups of a mesh family: each distinct set of ranks gets one, and only if it has none yet.

Every rank of the world makes the same calls in the same order, whatever slice of the mesh it is in, so no rank can
wait for another that never comes. The ranks of each group come from arithmetic on axes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.distributed as dist

from automodel_mesh.compat.axes import Axis, fold, group_starts, offsets
from automodel_mesh.compat.errors import ProcessGroupDestroyedError
from automodel_mesh.compat.worlds import current_world, is_alive

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend
    from torch.distributed import ProcessGroup


class GroupSpec(NamedTuple):
    """What a process group is asked to be: a backend and its options, `None` for those of the default group."""

    backend: str | None = None
    options: Backend.Options | None = None

    @property
    def timeout(self) -> timedelta | None:
        """The timeout inside the options: c10d would otherwise overwrite it with its default."""
        return None if self.options is None else self.options._timeout


DEFAULT_SPEC = GroupSpec()


class GroupTable:
    """The process groups of one mesh family, by the ranks they join and by what was asked of them."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = ranks
        self._spans_the_world = list(ranks) == list(range(dist.get_world_size()))
        # Weak, so that a destroyed group can go while its mesh is still about; None on ranks outside the mesh.
        self._groups: dict[tuple[Axis, str | None, int | None], weakref.ref[ProcessGroup] | None] = {}
        # Options have no equality of their own; holding them keeps the ids in the keys from being used again.
        self._options: list[Backend.Options] = []

    def adopt(self, axis: Axis, group: ProcessGroup) -> None:
        """Remember a group that torch made, so that an axis of the same ranks shares it."""
        self._groups.setdefault((fold([axis]), None, None), weakref.ref(group))

    def find_or_make(self, axis: Axis, spec: GroupSpec, name: str) -> ProcessGroup | None:
        """Return this rank's group along an axis, made now if the family has none; `None` outside the mesh.

        Every rank of the world must come here with the same axis and an equal spec.
        """
        canonical = fold([axis])
        key = (canonical, spec.backend, None if spec.options is None else id(spec.options))
        if key in self._groups:
            return _alive(self._groups[key], name)
        group = self._make(canonical, spec, f"mesh_{name}")
        self._groups[key] = None if group is None else weakref.ref(group)
        if spec.options is not None:
            self._options.append(spec.options)
        return group

    def _make(self, axis: Axis, spec: GroupSpec, description: str) -> ProcessGroup | None:
        world = current_world()
        # The default group has one order, ascending from 0, and so has an axis that folds to a single pair.
        if spec == DEFAULT_SPEC and self._spans_the_world and axis == fold([((len(self.ranks), 1),)]):
            return world
        device_id = getattr(world, "bound_device_id", None)
        if device_id is not None and _default_backend_fits(spec, device_id):
            return self._split_world(axis, spec, description)
        if not axis:
            return self._make_single_rank_group(spec, description)
        return self._make_each(axis, spec, description)

    def _ranks_of_each_group(self, axis: Axis) -> list[list[int]]:
        steps = offsets(axis)
        return [[self.ranks[start + step] for step in steps] for start in group_starts(axis, len(self.ranks))]

    def _make_each(self, axis: Axis, spec: GroupSpec, description: str) -> ProcessGroup | None:
        mine: ProcessGroup | None = None
        for ranks in self._ranks_of_each_group(axis):
            group = dist.new_group(ranks, spec.timeout, spec.backend, spec.options, group_desc=description)
            if dist.get_rank() in ranks:
                mine = cast("ProcessGroup", group)
        return mine

    def _make_single_rank_group(self, spec: GroupSpec, description: str) -> ProcessGroup | None:
        # Local creation: nobody else is in the group, so nobody has to be waited for. Every rank of the world makes
        # one, those outside the mesh too: from torch 2.14 on later groups hang where the numbers of locally made
        # groups differ between ranks.
        rank = dist.get_rank()
        group = dist.new_group(
            [rank], spec.timeout, spec.backend, spec.options, use_local_synchronization=True, group_desc=description
        )
        return cast("ProcessGroup", group) if rank in self.ranks else None

    def _split_world(self, axis: Axis, spec: GroupSpec, description: str) -> ProcessGroup | None:
        # Where the default group is bound to a device its communicator exists already, and torch splits it.
        ranks = self._ranks_of_each_group(axis)
        group = dist.split_group(
            split_ranks=ranks, timeout=spec.timeout, pg_options=spec.options, group_desc=description
        )
        return cast("ProcessGroup", group) if any(dist.get_rank() in some for some in ranks) else None


def _alive(reference: weakref.ref[ProcessGroup] | None, name: str) -> ProcessGroup | None:
    if reference is None:
        return None
    group = reference()
    if group is None or not is_alive(group):
        raise ProcessGroupDestroyedError(
            f"the ranks of axis {name!r} had a process group, which has been destroyed: build the mesh again."
        )
    return group


def _default_backend_fits(spec: GroupSpec, device_id: torch.device) -> bool:
    world = current_world()
    if world is None or not torch.accelerator.is_available():
        return False
    return spec.backend is None or world._get_backend(torch.device(device_id.type)).name() == spec.backend
