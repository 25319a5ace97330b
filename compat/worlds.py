"""The world of process groups that this process belongs to: which one it is, what it has, and a fake one for tests."""

from __future__ import annotations

import gc
import importlib
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.eras import facts
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from datetime import timedelta

    from torch._C._distributed_c10d import Backend
    from torch.distributed import ProcessGroup


_left_in_store: Final[WeakKeyDictionary[ProcessGroup, list[str]]] = WeakKeyDictionary()
"""For a world, the keys that groups which were ended have left in its store."""


def current_world() -> ProcessGroup | None:
    """Return the default process group, `None` where there is none.

    `torch.distributed.group.WORLD` says the same in 600 ns, which is more than a whole lookup may cost.
    """
    return distributed_c10d._world.default_pg


_LAUNCHER_VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # those that torch reads
_timeouts: WeakKeyDictionary[ProcessGroup, timedelta] = WeakKeyDictionary()


def start_launched_world(what: str, timeout: timedelta | None) -> None:
    """Initialise the default process group from the variables that a launcher has set.

    Args:
        what: the function that needs the group, for the message.
        timeout: as for `start_world`.

    Raises:
        ValueError: variables are missing; the message says what to start or to call instead.
    """
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise MeshArgumentError(
            f"{what}: torch.distributed is not initialised, and the environment lacks {', '.join(missing)}. Start the "
            "program with a launcher, as in 'torchrun --nproc-per-node 8 program.py', or call "
            "torch.distributed.init_process_group before. automodel_mesh.initialize_distributed('gloo') needs no "
            "launcher for a single process."
        )
    start_world(timeout)


def start_world(timeout: timedelta | None, **arguments: Any) -> None:
    """Initialise the default process group, and remember its timeout, for `timeout_of`.

    Args:
        timeout: that of the group; `None` for that of its backend.
        **arguments: of `torch.distributed.init_process_group`.
    """
    dist.init_process_group(timeout=timeout, **arguments)
    world = current_world()
    if world is not None and timeout is not None:
        _timeouts[world] = timeout


def timeout_of(world: ProcessGroup) -> timedelta | None:
    """Return the timeout that `start_world` was given for a default group; torch does not tell that of others."""
    return _timeouts.get(world)


def is_current(world: Callable[[], ProcessGroup | None]) -> bool:
    """Tell whether a stored world is the current one: not destroyed, and not replaced by another."""
    remembered = world()
    return remembered is not None and remembered is current_world()


def is_alive(group: ProcessGroup) -> bool:
    """Tell whether a process group is still registered: one that was destroyed may live on in somebody's variable."""
    return group in distributed_c10d._world.pg_map


def live_process_groups() -> dict[str, tuple[int, ...]]:
    """List the process groups that this process belongs to.

    Returns:
        For each group, by its name, the global ranks in it; the default group is among them. Empty where
        `torch.distributed` is not initialised.
    """
    world = distributed_c10d._world
    return {world.pg_names[group]: tuple(dist.get_process_group_ranks(group)) for group in list(world.pg_map)}


def find_process_group(name: str) -> ProcessGroup:
    """Return a live process group by its name.

    Args:
        name: one of the names that `live_process_groups` lists.

    Returns:
        The group.

    Raises:
        KeyError: this process has no such group; the message lists those it has.
    """
    names = distributed_c10d._world.pg_names
    for group, its_name in list(names.items()):
        if its_name == name:
            return group
    raise KeyError(f"no process group {name!r} in this process: it has {sorted(names.values())}")


def live_meshes() -> list[DeviceMesh]:
    """List the `DeviceMesh` objects that are alive in this process, whoever made them.

    Returns:
        The meshes, after a full garbage collection, so that cycles between a root and its slices do not count.
    """
    gc.collect()
    # By the type, not isinstance, which reads __class__: a deprecated object of torch's warns when it is read.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), DeviceMesh)]


def init_fake_world(world_size: int, rank: int = 0) -> None:
    """Initialise `torch.distributed` with torch's fake backend: any world size in one process, no communication.

    Args:
        world_size: number of ranks to pretend, at least 1.
        rank: which of them this process is, from 0 to `world_size - 1`.

    Raises:
        ValueError: `rank` is not a rank of that world, or `torch.distributed` is initialised already.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a world of {world_size}: give a rank from 0 to {world_size - 1}")
    register_fake_backend()
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with unwrapped_groups():
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def named_group(name: str) -> AbstractContextManager[None]:
    """Give the process groups that this thread makes in the block a name, instead of one that torch makes up.

    torch names a group after the number of groups, which differs between ranks that are not in the same groups, and up
    to 2.13 comes again after groups were destroyed.
    """
    return _replaced("_process_group_name", lambda *_, **__: name)


def unwrapped_groups() -> AbstractContextManager[None]:
    """Make the process groups of this thread in the block without the wrapper of TORCH_DISTRIBUTED_DEBUG=DETAIL.

    The wrapper makes a gloo group, to compare each collective with those of the other ranks. Groups of the backend
    `fake` fail with it on every release, and they have no other ranks.
    """
    return _replaced("_create_process_group_wrapper", lambda *, wrapped_pg, **_: wrapped_pg)


@contextmanager
def _replaced(name: str, ours: Callable[..., Any]) -> Generator[None, None, None]:
    """Replace a function of torch's process groups in the block, for this thread."""
    original = getattr(distributed_c10d, name)
    thread = threading.get_ident()

    def choose(*args: Any, **kwargs: Any) -> Any:
        return (ours if threading.get_ident() == thread else original)(*args, **kwargs)

    setattr(distributed_c10d, name, choose)
    try:
        yield
    finally:
        setattr(distributed_c10d, name, original)


def end_groups(groups: list[ProcessGroup], *, abort: bool = False) -> None:
    """Destroy process groups, or abort them without waiting for their other members; empties the list."""
    backends = (
        [backend for group in groups for backend in _backends_of(group)] if facts.GROUPS_END_UNDER_THE_GIL else []
    )
    while groups:
        group = groups.pop()
        try:
            _end_group(group, abort=abort)
        except (KeyError, ValueError):
            if is_alive(group):
                raise
            # Another thread has destroyed it, or the world, in the meantime.
        del group
    backends.clear()


def _end_group(group: ProcessGroup, *, abort: bool) -> None:
    world, whole = distributed_c10d._world, current_world()
    # Without a world, which another thread has destroyed, a group that was being made is there all the same.
    tag, keys = world.pg_to_tag.get(group), [] if whole is None else _keys_of(group)
    if abort and not (facts.ABORT_IS_FOR_NCCL_ONLY and "nccl" not in str(dist.get_backend(group))):
        distributed_c10d._abort_process_group(group)
    else:
        dist.destroy_process_group(group)
    if tag is not None and not world.tags_to_pg.get(tag, [group]):
        world.tags_to_pg.pop(tag, None)  # torch leaves an empty list
    if whole is not None:
        _left_in_store.setdefault(whole, []).extend(keys)


def delete_what_groups_left() -> None:
    """Delete this rank's keys of groups that were ended from the default store, where torch leaves them.

    Not when a group ends: the process that serves the store may have stopped by then, and would be waited for.
    """
    world = current_world()
    keys = [] if world is None else _left_in_store.pop(world, [])
    if keys:
        store = distributed_c10d._get_default_store()
        with suppress(RuntimeError):  # the store is gone, as whoever goes on to use it will find
            for key in keys:
                store.delete_key(key)


def _keys_of(group: ProcessGroup) -> list[str]:
    """Return the keys in the default store under which gloo has put this rank's address in a group."""
    rank = dist.get_group_rank(group, dist.get_rank())
    backends = dict(part.split(":") for part in dist.get_backend_config(group).split(","))
    devices = [device for device, backend in backends.items() if backend == "gloo"]
    # A backend that serves all devices uses the name of the first.
    used = devices[:1] if len(devices) == len(backends) else devices
    return [f"{group.group_name}//{device}//0/{rank}" for device in used]


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
        2.6 and 2.7 would wait with the GIL held (`GROUPS_END_UNDER_THE_GIL`). NCCL shuts down its communicators on
        every release.

    Source:
        `torch.distributed.destroy_process_group`.
    """
    held = [(weakref.ref(group), _backends_of(group)) for group in distributed_c10d._world.pg_map]
    dist.destroy_process_group()
    for group, backends in held:
        if group() is None:
            backends.clear()  # waits for the threads of this group, while the list above keeps those of the others
    return [backends for _, backends in held]


def _backends_of(group: ProcessGroup) -> list[Backend]:
    return [group._get_backend(device) for device in group._device_types]


def register_fake_backend() -> None:
    """Make the backend name `"fake"` known to torch, for groups that exist and communicate with nobody."""
    # Importing the module is what registers the backend; it is not imported with torch.
    importlib.import_module("torch.testing._internal.distributed.fake_pg")
