"""How process groups end: destroyed by all of their ranks, or aborted by one that must not wait."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d

from automodel_mesh.compat.eras import facts

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend


def destroy_groups(groups: list[ProcessGroup]) -> None:
    """Destroy process groups and empty the list that holds them."""
    _end(groups, dist.destroy_process_group)


def abort_groups(groups: list[ProcessGroup]) -> None:
    """End process groups without waiting for their other members, and empty the list that holds them."""
    _end(groups, _abort)


def leave_world() -> list[list[Backend]]:
    """End all process groups of a process that is about to exit; to be called in a thread that may be left behind.

    It waits for the collectives under way in the groups that torch alone holds, so that no thread of gloo's is left to
    ask for the GIL when the interpreter is gone. The groups that the program still holds are not waited for.

    Returns:
        The backends of those groups. Dropping the last reference to one waits for its threads, up to the timeout: so
        they must be held until the process is gone, beyond the end of the interpreter.

    Raises:
        ValueError: there is no world.
        RuntimeError: a backend failed to shut down; NCCL's may, after a peer has died.

    Torch releases:
        2.6 and 2.7 would wait with the GIL held (see `_backends`). NCCL shuts down its communicators on every release.

    Source:
        `torch.distributed.destroy_process_group`.
    """
    held = [(weakref.ref(group), _backends_of(group)) for group in distributed_c10d._world.pg_map]
    dist.destroy_process_group()
    for group, backends in held:
        if group() is None:
            backends.clear()  # should this last for ever, the list above holds the rest for ever
    return [backends for _, backends in held]


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
    return [backend for group in groups for backend in _backends_of(group)]


def _backends_of(group: ProcessGroup) -> list[Backend]:
    return [group._get_backend(device) for device in group._device_types]


def _abort(group: ProcessGroup) -> None:
    if facts.ABORT_IS_FOR_NCCL_ONLY and "nccl" not in str(dist.get_backend(group)):
        dist.destroy_process_group(group)  # of other backends it waits for nobody
    else:
        distributed_c10d._abort_process_group(group)
