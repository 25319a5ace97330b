"""The beginning and the end of a rank: its process group, its device, its place in the world, and a clean exit."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import weakref
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat.worlds import end_world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "DistInfo",
    "get_local_rank_preinit",
    "get_local_world_size_preinit",
    "get_rank_safe",
    "get_world_size_safe",
    "initialize_distributed",
]

logger = logging.getLogger(__name__)

LAUNCHER_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process that it starts."""

EXIT_SECONDS: Final = 5.0
"""How long, at most, the end of the interpreter waits for a world to shut down."""

_BACKENDS: Final = {
    "gloo": frozenset({"gloo"}),
    "nccl": frozenset({"nccl"}),
    "cpu:gloo,cuda:nccl": frozenset({"gloo", "nccl"}),
    "cuda:nccl,cpu:gloo": frozenset({"gloo", "nccl"}),
}
_A_YEAR: Final = 60.0 * 24 * 365


@dataclass(frozen=True)
class DistInfo:
    """Who this process is among the ranks of a run.

    Attributes:
        backend: The backend that was asked for, such as `"nccl"`.
        rank: Number of this process in the world, from 0 to `world_size - 1`.
        world_size: Number of processes, at least 1.
        local_rank: Number of this process on its machine, from 0 to `local_world_size - 1`.
        local_world_size: Number of processes on this machine, at least 1.
        device: The device to compute on: `cuda:<local_rank>` with NCCL, else `cpu`.
        is_main: Whether this is rank 0, which logs and saves for all.
    """

    backend: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    is_main: bool


class _Place(NamedTuple):
    """A process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def initialize_distributed(backend: str, timeout_minutes: float = 10.0) -> DistInfo:
    """Make this process a rank: choose its device, and create the default process group.

    Under torchrun, or any launcher that sets `LAUNCHER_VARIABLES`, the ranks meet at `MASTER_ADDR:MASTER_PORT`.
    Without any of these variables the process is a world of its own, which opens no port for others to meet at.
    Where `torch.distributed` is initialised already, that world and its device stay as they are, `timeout_minutes` has
    no effect, and the local rank and local world size are what the environment says, else 0 and 1.

    The end of the interpreter (also by an exception, `sys.exit` or Ctrl+C) shuts the world down, if it is one that this
    function made, and if the program has not done so itself. Where all collectives are over, this takes milliseconds
    and waits for no other rank. Collectives that this rank has started and not waited for get `EXIT_SECONDS` (none, in
    a group that the program still refers to); then the process ends without them, be the other ranks dead, late or
    stuck.

    SIGTERM keeps its meaning. Its default action ends the process at once, in whatever it waits, and the system closes
    its connections, so that the other ranks' gloo collectives fail instead of waiting. A handler of Python's could not
    do that: it runs when a collective has returned, and where each rank waits for another, none returns until torchrun
    kills them after 30 s. A handler that the program installs, before or after this call, is kept and called as
    always; one that leaves by `sys.exit` gets the shutdown described above.

    Args:
        backend: `"gloo"` to compute on CPUs; `"nccl"` to compute on GPUs; `"cpu:gloo,cuda:nccl"` to compute on GPUs
            and have collectives for tensors on the CPU as well.
        timeout_minutes: How long the ranks wait for each other, here and in each collective, in minutes; more than 0
            and at most a year. The default is torch's own for NCCL.

    Returns:
        Who this process is.

    Raises:
        TypeError: `backend` is not a str, or `timeout_minutes` is not a number.
        ValueError: An argument has another value than listed; the environment has some of the launcher's variables and
            lacks others, or one of them is malformed or contradicts another; or the world that there is already lacks a
            backend asked for.
        RuntimeError: NCCL is asked for where this torch has none or sees no GPU, or there are fewer GPUs than local
            ranks; torch is built without gloo; or the ranks did not meet in time (torch's own error).

    Torch releases:
        The same on all. Without this function a rank of torch 2.6 to 2.13 that ends with a collective under way stays
        until the other ranks have come to it, or the timeout is over.

    Source:
        `torch.distributed.init_process_group`; the variables are those of torchrun.
    """
    names = _backend_names(backend)
    timeout = _timeout(timeout_minutes)
    if dist.is_initialized():
        return _join_existing(backend, names)
    launched = any(name in os.environ for name in LAUNCHER_VARIABLES)
    place = _launched_place() if launched else _Place(0, 1, 0, 1)
    _require_backends(backend, names)
    device = _choose_device(names, place.local_rank)
    # A store in this process's memory meets no other process. It is documented; torch's stubs forget to export it.
    store = None if launched else dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=timeout, rank=place.rank, world_size=place.world_size, store=store)
    _keeper_of(os.getpid()).keep(device)
    logger.info("rank %d of %d: %s on %s", place.rank, place.world_size, backend, device)
    return DistInfo(backend, *place, device, is_main=place.rank == 0)


def get_rank_safe() -> int:
    """Return this process's rank, before or after `torch.distributed` is initialised.

    Returns:
        The rank in the default process group; without one, the environment's `RANK`; without that, 0.

    Raises:
        ValueError: `RANK` is needed, and is not a whole number from 0 on.
    """
    return dist.get_rank() if dist.is_initialized() else _read("RANK", 0)


def get_world_size_safe() -> int:
    """Return the number of ranks, before or after `torch.distributed` is initialised.

    Returns:
        The size of the default process group; without one, the environment's `WORLD_SIZE`; without that, 1.

    Raises:
        ValueError: `WORLD_SIZE` is needed, and is not a whole number from 1 on.
    """
    return dist.get_world_size() if dist.is_initialized() else _read("WORLD_SIZE", 1, least=1)


def get_local_rank_preinit() -> int:
    """Return this process's number on its machine, which no process group is needed for.

    Returns:
        The environment's `LOCAL_RANK`, else 0.

    Raises:
        ValueError: `LOCAL_RANK` is not a whole number from 0 on.
    """
    return _read("LOCAL_RANK", 0)


def get_local_world_size_preinit() -> int:
    """Return the number of processes on this machine, which no process group is needed for.

    Returns:
        The environment's `LOCAL_WORLD_SIZE`, else 1.

    Raises:
        ValueError: `LOCAL_WORLD_SIZE` is not a whole number from 1 on.
    """
    return _read("LOCAL_WORLD_SIZE", 1, least=1)


# --- arguments and environment


def _backend_names(backend: object) -> frozenset[str]:
    valid = ", ".join(repr(name) for name in _BACKENDS)
    if not isinstance(backend, str):
        raise TypeError(f"backend={backend!r} is of type {type(backend).__name__}: give one of {valid}")
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown: give one of {valid}")
    return _BACKENDS[backend]


def _timeout(minutes: object) -> timedelta:
    if isinstance(minutes, bool) or not isinstance(minutes, (int, float)):
        raise TypeError(
            f"timeout_minutes={minutes!r} is of type {type(minutes).__name__}: give a number of minutes, such as 10"
        )
    if not 0 < minutes <= _A_YEAR:  # NaN is neither
        raise ValueError(
            f"timeout_minutes={minutes} is out of range: give minutes, more than 0 and at most {_A_YEAR:.0f} (a year)"
        )
    return timedelta(minutes=minutes)


def _read(name: str, default: int, *, least: int = 0) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    # int() would also take "1_0", " 1" and digits of other scripts, which no launcher writes.
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ValueError(
            f"the environment variable {name} is {text!r}: it must be a whole number from {least} on, as torchrun "
            f"sets it; correct it, or unset it for {default}"
        )
    return int(text)


def _launched_place() -> _Place:
    """Read where a launcher has put this process."""
    missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name)]
    if missing:
        there = [name for name in LAUNCHER_VARIABLES if name not in missing]
        raise ValueError(
            f"the environment lacks {', '.join(missing)}, and has {', '.join(there) or 'empty values only'}: start the "
            "program with torchrun, which sets all of them, or unset them all to run as one process"
        )
    _read("MASTER_PORT", 0)
    place = _Place(
        _read("RANK", 0), _read("WORLD_SIZE", 1, least=1), _read("LOCAL_RANK", 0), _read("LOCAL_WORLD_SIZE", 1, least=1)
    )
    _require_order("RANK", place.rank, "WORLD_SIZE", place.world_size - 1)
    _require_order("LOCAL_RANK", place.local_rank, "LOCAL_WORLD_SIZE", place.local_world_size - 1)
    _require_order("LOCAL_WORLD_SIZE", place.local_world_size, "WORLD_SIZE", place.world_size)
    return place


def _require_order(name: str, value: int, size_name: str, most: int) -> None:
    if value > most:
        raise ValueError(
            f"the environment contradicts itself: {name}={value} with {size_name}={os.environ[size_name]}; "
            f"{name} can be {most} at most. Set both as torchrun does"
        )


# --- worlds and devices


def _join_existing(backend: str, names: frozenset[str]) -> DistInfo:
    """Describe the world that somebody else has made, or an earlier call."""
    config = dist.get_backend_config()  # such as "cpu:gloo,cuda:gloo"
    there = {pair.rpartition(":")[2] for pair in config.split(",")}
    if any(name.startswith("nccl") for name in there):
        there.add("nccl")  # torch 2.15 has several, such as "nccl2"
    if not names <= there:
        raise ValueError(
            f"backend={backend!r} was asked for, and this process is in a world with {config!r} already: ask for a "
            "backend that it has, or call torch.distributed.destroy_process_group() first"
        )
    device = torch.device("cuda", torch.cuda.current_device()) if "nccl" in names else torch.device("cpu")
    rank = dist.get_rank()
    place = _Place(rank, dist.get_world_size(), get_local_rank_preinit(), get_local_world_size_preinit())
    logger.info("torch.distributed is initialised already, with %s: rank %d of %d", config, rank, place.world_size)
    return DistInfo(backend, *place, device, is_main=rank == 0)


def _require_backends(backend: str, names: frozenset[str]) -> None:
    if "gloo" in names and not dist.is_gloo_available():
        raise RuntimeError(f"backend={backend!r} needs gloo, and torch {compat.TORCH_VERSION} is built without it")
    if "nccl" not in names:
        return
    if not dist.is_nccl_available():
        why = f"torch {compat.TORCH_VERSION} is built without it"
    elif not torch.cuda.is_available():
        why = f"torch {compat.TORCH_VERSION} sees no GPU it could use (is there a driver for one?)"
    else:
        return
    raise RuntimeError(f"backend={backend!r} needs NCCL, and {why}: ask for backend='gloo' to compute on the CPU")


def _choose_device(names: frozenset[str], local_rank: int) -> torch.device:
    """Return the rank's device; a GPU becomes the current one, which NCCL and torch's own calls go by."""
    if "nccl" not in names:
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise RuntimeError(
            f"LOCAL_RANK={local_rank} has no GPU: this process sees {gpus} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}). Start at most {gpus} "
            "processes on this machine, or make all of its GPUs visible to each"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


# --- the end


class _Keeper:
    """Shuts down the world of `initialize_distributed` when the interpreter ends, in a thread of its own.

    The thread does two things that the main thread cannot. It may be left behind, should a backend not come to an end.
    And it holds the backends of groups that the program holds until the process is gone: a reference anywhere else is
    dropped before, and who drops the last one waits for the collectives under way. It starts with the world, because
    Python 3.12 and newer start no thread at the end.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._made: weakref.ref[ProcessGroup] | None = None
        self._device = torch.device("cpu")
        self._asked = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._wait_and_end, name="automodel-mesh-exit", daemon=True).start()
        atexit.register(self._at_exit)

    def keep(self, device: torch.device) -> None:
        """Take charge of the world that has just been made; an earlier one is gone."""
        world = dist.group.WORLD
        self._made = None if world is None else weakref.ref(world)
        self._device = device

    def _at_exit(self) -> None:
        # A forked child has the handler, but neither the thread nor a world that it could use.
        if os.getpid() != self._pid or not self._has_world():
            return
        self._asked.set()
        if not self._ended.wait(EXIT_SECONDS):
            logger.warning(
                "the process group did not shut down within %g s: is a collective under way, and another rank dead or "
                "late? The process ends without it",
                EXIT_SECONDS,
            )

    def _has_world(self) -> bool:
        """Tell whether the world made here is still the current one; no reference to it may outlive this."""
        return self._made is not None and self._made() is not None and self._made() is dist.group.WORLD

    def _wait_and_end(self) -> None:
        self._asked.wait()
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # each thread has a current device of its own
            _hold_for_ever(self._ended, end_world())
        except RuntimeError as error:
            logger.warning("the process group did not shut down cleanly: %s", error)
        finally:
            self._ended.set()


def _hold_for_ever(ended: threading.Event, _kept: object) -> None:
    """Say that the end has come, and keep what was given until the process is gone."""
    ended.set()
    threading.Event().wait()


@functools.cache
def _keeper_of(_pid: int) -> _Keeper:
    """Make the one keeper of a process; a fork inherits its parent's without the thread, and makes its own."""
    return _Keeper()
