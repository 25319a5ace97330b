"""The world of process groups that this process belongs to: which one it is, what it has, and a fake one for tests."""

from __future__ import annotations

import gc
import importlib
import weakref
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.eras import facts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def current_world() -> ProcessGroup | None:
    """Return the default process group, `None` where there is none.

    `torch.distributed.group.WORLD` says the same in 600 ns, which is more than a whole lookup may cost.
    """
    return distributed_c10d._world.default_pg


def is_current(world: weakref.ref[ProcessGroup]) -> bool:
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
    for group, its_name in names.items():
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

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def local_groups_are_safe() -> bool:
    """Let all ranks of the world find out whether each may make its own groups without the others.

    Torch names such a group after its ranks and a count. All members must have the same count, and in torch up to 2.13,
    which counts the living groups, it must not be one that earlier groups were named after: a new group would find the
    addresses of a closed one. One small all-reduce; every rank of the world must call it.
    """
    world = distributed_c10d._world
    living, made = len(world.pg_names), world.group_count
    fresh = not facts.LOCAL_NAMES_COUNT_LIVING_GROUPS or living > _last_named.after()
    safe = _equal_everywhere([living, made, int(fresh)]) and fresh
    if safe:
        _last_named.remember(living)
    return safe


class _LastNamed:
    """The largest number of living groups after which locally made groups were named, in the current world."""

    def __init__(self) -> None:
        self._world: weakref.ref[ProcessGroup] | None = None
        self._living = 0

    def after(self) -> int:
        """Return the number, 0 in a world where none was named yet."""
        return self._living if self._world is not None and is_current(self._world) else 0

    def remember(self, living: int) -> None:
        """Note that groups are being named after this number."""
        default = current_world()
        self._world = None if default is None else weakref.ref(default)
        self._living = living


_last_named = _LastNamed()


def _equal_everywhere(numbers: list[int]) -> bool:
    on_cpu = "nccl" not in str(dist.get_backend())
    device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
    # The largest number and the largest negative: both are ours on every rank only where all are equal.
    largest = torch.tensor([*numbers, *(-number for number in numbers)], device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    everywhere = [int(largest[place]) == -int(largest[place + len(numbers)]) for place in range(len(numbers))]
    return all(everywhere)


def register_fake_backend() -> None:
    """Make the backend name `"fake"` known to torch, for groups that exist and communicate with nobody."""
    # Importing the module is what registers the backend; it is not imported with torch.
    importlib.import_module("torch.testing._internal.distributed.fake_pg")
