"""Makes the process groups along an axis, in one of torch's ways.

Every rank of the world makes the same calls in the same order, whatever slice of the mesh it is in, so no rank can
wait for another that never comes. The ranks of each group come from arithmetic on axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import torch
import torch.distributed as dist

from automodel_mesh.compat.worlds import current_world, local_groups_are_safe
from automodel_mesh.topology.layouts import Axis, axis_size, first_position, group_starts, offsets

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend
    from torch.distributed import ProcessGroup

LOCAL_FROM: Final = 8
"""From this many groups along an axis on, each rank makes only its own, where the ranks agree that this is safe.

Each call that all ranks make is a rendezvous of the world, and so is the collective in which they agree; what is saved
with fewer groups is not worth the other way of naming them."""


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


def make_groups(
    axis: Axis, ranks: Sequence[int], spec: GroupSpec, description: str, *, spans_the_world: bool
) -> ProcessGroup | None:
    """Make the groups along an axis of a root mesh and return this rank's; `None` where it is in none of them.

    Args:
        axis: the axis, folded; the empty axis stands for a group of each rank alone.
        ranks: the global ranks of the root mesh.
        spec: what the groups are asked to be.
        description: what torch's logs call the groups.
        spans_the_world: whether `ranks` are all ranks of the world.
    """
    if _default_group_can_be_split(spec):
        # Where the default group is bound to a device its communicator exists already, and torch splits it.
        split = dist.split_group(
            split_ranks=list(_ranks_of_each(axis, ranks)),
            timeout=spec.creation_timeout(),
            pg_options=spec.options,
            group_desc=description,
        )
        return cast("ProcessGroup", split) if dist.get_rank() in ranks else None
    if not axis:
        # Every rank of the world makes one at the same place, each for itself, those outside the mesh too: that counts
        # as one group everywhere. Not as a locally made group, whose name torch can give twice in a world.
        return _new_group([dist.get_rank()], spec, description, local=False)
    many = len(ranks) // axis_size(axis) >= LOCAL_FROM
    if many and spans_the_world and local_groups_are_safe():
        start = first_position([axis], ranks.index(dist.get_rank()))
        return _new_group([ranks[start + step] for step in offsets(axis)], spec, description, local=True)
    return _make_each(axis, ranks, spec, description)


def _make_each(axis: Axis, ranks: Sequence[int], spec: GroupSpec, description: str) -> ProcessGroup | None:
    mine: ProcessGroup | None = None
    for some in _ranks_of_each(axis, ranks):
        group = _new_group(some, spec, description, local=False)
        if dist.get_rank() in some:
            mine = group
    return mine


def _ranks_of_each(axis: Axis, ranks: Sequence[int]) -> list[list[int]]:
    steps = offsets(axis)
    return [[ranks[start + step] for step in steps] for start in group_starts(axis, len(ranks))]


def _new_group(ranks: list[int], spec: GroupSpec, description: str, *, local: bool) -> ProcessGroup:
    group = dist.new_group(
        ranks,
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
