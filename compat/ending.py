"""How process groups end: destroyed by all of their ranks, or aborted by one that must not wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

from automodel_mesh.compat import facts

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend


def destroy_groups(groups: list[ProcessGroup]) -> None:
    """Destroy process groups and empty the list that holds them."""
    _end(groups, dist.destroy_process_group)


def abort_groups(groups: list[ProcessGroup]) -> None:
    """End process groups without waiting for their other members, and empty the list that holds them."""
    _end(groups, _abort)


def _end(groups: list[ProcessGroup], end: Callable[[ProcessGroup], None]) -> None:
    backends = _backends(groups)
    while groups:
        end(groups.pop())
    backends.clear()


def _backends(groups: list[ProcessGroup]) -> list[Backend]:
    """Return what must outlive the groups, so that the last reference is one whose end releases the GIL.

    A group of torch 2.6 and 2.7 joins the threads of its gloo backend while it holds the GIL. A thread that still has
    to let go of a tensor of Python's waits for the GIL then, and both wait for ever.
    """
    if not facts.GROUPS_END_UNDER_THE_GIL:
        return []
    return [group._get_backend(device) for group in groups for device in group._device_types]


def _abort(group: ProcessGroup) -> None:
    if facts.ABORT_IS_FOR_NCCL_ONLY and "nccl" not in str(dist.get_backend(group)):
        dist.destroy_process_group(group)  # of other backends it waits for nobody
    else:
        distributed_c10d._abort_process_group(group)
