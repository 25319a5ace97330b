"""Who takes part in making a process group: its members alone, or all ranks where torch splits the default group."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch.distributed as dist

from automodel_mesh.compat.backends import devices_of
from automodel_mesh.compat.devices import accelerator
from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.worlds import current_world

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


class Way(Enum):
    """How a process group is made."""

    BY_MEMBERS = "by its members"
    BY_ALL_RANKS = "by new_group on all ranks"
    BY_SPLITTING = "by split_group on all ranks"


def way_to_make(backend: str | None = None, options: object = None) -> Way:
    """Choose how to make process groups; all ranks choose alike, from what the default group is.

    Torch splits the communicator of a default group that is bound to a device: by `split_group`, or inside `new_group`
    on all ranks, those outside the new group included. Neither is possible for every default group.

    Args:
        backend: that of the groups; `None` for that of the default group.
        options: those of the backend.
    """
    default = dist.get_backend()
    if "mpi" in default:
        return Way.BY_ALL_RANKS
    world = current_world()
    device: torch.device | None = getattr(world, "bound_device_id", None)
    source = None if world is None or device is None else world._get_backend(device)
    # Under TORCH_DISTRIBUTED_DEBUG=DETAIL, the source is a wrapper, which supports splitting on some releases.
    if world is None or device is None or source is None or not source.supports_splitting:
        return Way.BY_MEMBERS
    source = getattr(source, "wrapped_pg", source)
    served = devices_of(default)
    if backend in {None, default} and device.type == accelerator() and _can_be_split(world, served, options):
        return Way.BY_SPLITTING
    alike = backend is None or devices_of(backend).get(device.type) == served.get(device.type)
    return Way.BY_ALL_RANKS if alike and hasattr(source, "perform_nocolor_split") else Way.BY_MEMBERS


def _can_be_split(world: ProcessGroup, served: dict[str, str], options: object) -> bool:
    """Tell whether `split_group` makes right groups from the default group."""
    names = set(served.values())
    if not facts.SPLITS_ANY_BACKEND:
        return dist.get_backend() == "nccl"
    # Torch gives the same options, and the same part of the store, to all backends of the new group.
    if options is not None and len(names) > 1:
        return False
    backends = [world._get_backend(device) for device in world._device_types]
    return all(one.supports_splitting for one in backends) and len({one.name() for one in backends}) == len(names)
