"""Listing the process groups of a mesh family, and ending them: by all of their ranks, or by one that must not wait."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.family import Family, family_of
from automodel_mesh.compat.groups import GroupReport

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend


def list_process_groups(mesh: DeviceMesh) -> list[GroupReport]:
    """List the process groups of a mesh's family that this rank belongs to.

    Args:
        mesh: any mesh of the family.

    Returns:
        For each group: its name, the axes that use it, its global ranks, its backend, the options and timeout that
        were asked for (`None`: the default), and whether this library made it.

    Raises:
        ProcessGroupDestroyedError: the family is closed, or its world was destroyed.
    """
    return family_of(mesh).groups.report()


def destroy_process_groups(mesh: DeviceMesh) -> None:
    """Destroy exactly the process groups that this library made for a mesh's family, and close the family.

    Called on every rank of the family, after all of them have built it. The default group and groups that torch made
    stay. Meshes of a closed family are refused afterwards. If the world of the family was destroyed already, the family
    is only marked closed.

    Args:
        mesh: any mesh of the family.

    Raises:
        TypeError: `mesh` is no `DeviceMesh`.

    Source:
        `torch.distributed.destroy_process_group`.
    """
    _close(mesh, dist.destroy_process_group)


def abort_process_groups(mesh: DeviceMesh) -> None:
    """Abort the process groups that this library made for a mesh's family, derived axes included, and close it.

    For a rank that must not wait for its peers, because one of them is gone.

    Args:
        mesh: any mesh of the family.

    Raises:
        TypeError: `mesh` is no `DeviceMesh`.

    Torch releases:
        2.15 has `DeviceMesh.abort`, which knows the axes of the mesh itself and its flattened axes only. Here the
        groups of unflattened axes are covered too, on every release. NCCL's collectives under way fail; gloo does
        not interrupt one that a thread is waiting for, on any release.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.abort`.
    """
    _close(mesh, _abort)


def end_world() -> list[list[Backend]]:
    """End all process groups of a process that is about to exit; to be called in a daemon thread.

    It waits for the collectives under way in the groups that only torch refers to, so that no thread of gloo asks for
    the GIL after the interpreter is gone. Groups that the program still refers to are not waited for.

    Returns:
        The backends of those groups. Dropping the last reference to one waits for its threads, up to the timeout, so
        the caller must keep them until the process is gone.

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
            backends.clear()  # waits for the threads of this group, while the list above keeps those of the others
    return [backends for _, backends in held]


def _close(mesh: DeviceMesh, end: Callable[[ProcessGroup], None]) -> None:
    family = Family.known(mesh)
    if family is None or family.closed:
        return
    groups = family.groups.groups_made_here()
    backends = _backends(groups)
    while groups:
        end(groups.pop())
    backends.clear()
    family.closed = True
    family.forget_lookups()


def _backends(groups: list[ProcessGroup]) -> list[Backend]:
    """Return what must outlive the groups, so that the last reference is to an object that releases the GIL as it ends.

    A group of torch 2.6 and 2.7 joins the threads of its gloo backend while it holds the GIL. A thread that still has
    to release a Python tensor waits for the GIL then, and both wait for ever.
    """
    if not facts.GROUPS_END_UNDER_THE_GIL:
        return []
    return [backend for group in groups for backend in _backends_of(group)]


def _backends_of(group: ProcessGroup) -> list[Backend]:
    return [group._get_backend(device) for device in group._device_types]


def _abort(group: ProcessGroup) -> None:
    if facts.ABORT_IS_FOR_NCCL_ONLY and "nccl" not in str(dist.get_backend(group)):
        dist.destroy_process_group(group)  # with other backends it waits for nobody
    else:
        distributed_c10d._abort_process_group(group)
