"""Initialise and shut down torch.distributed: the rank and device of a process, its default process group, its exit."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.checks import timeout_of_minutes, wrong_type
from automodel_mesh.compat.backends import checked_backend, device_type_for, devices_of
from automodel_mesh.compat.devices import current_device, device_module, select_device
from automodel_mesh.compat.worlds import end_world, start_world
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "DistInfo",
    "destroy_global_state",
    "get_local_rank_preinit",
    "get_local_world_size_preinit",
    "get_rank_safe",
    "get_world_size_safe",
    "initialize_distributed",
]

logger = logging.getLogger(__name__)

LAUNCHER_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that torchrun sets for each process that it starts."""

EXIT_SECONDS: Final = 5.0
"""How long the interpreter waits at its exit, at most, for the process groups to shut down."""


@dataclass
class DistInfo:
    """The rank and the device of this process, and the number of ranks.

    Attributes:
        backend: The backend that was asked for, such as `"nccl"`.
        rank: The rank of this process, from 0 to `world_size - 1`.
        world_size: Number of ranks, at least 1.
        device: The device to compute on: the accelerator of the local rank, such as `cuda:<local_rank>` with NCCL, or
            `cpu`.
        is_main: Whether this is rank 0, which usually logs and saves.
        local_rank: The rank of this process among those on its machine, from 0 to `local_world_size - 1`.
        local_world_size: Number of ranks on this machine, at least 1.
    """

    backend: str
    rank: int
    world_size: int
    device: torch.device
    is_main: bool
    local_rank: int = 0
    local_world_size: int = 1


class RankInfo(NamedTuple):
    """The rank of a process and the number of ranks, in the world and on its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    def describe(self, backend: str, device: torch.device) -> DistInfo:
        """Return it together with the backend and the device."""
        is_main = self.rank == 0
        return DistInfo(backend, self.rank, self.world_size, device, is_main, self.local_rank, self.local_world_size)


def initialize_distributed(backend: str, timeout_minutes: float | None = 10.0) -> DistInfo:
    """Initialise torch.distributed in this process: select its device, and create the default process group.

    Under torchrun, or any launcher that sets `LAUNCHER_VARIABLES`, the ranks connect at `MASTER_ADDR:MASTER_PORT`.
    If none of these variables is set, the world is this process alone, and no port is opened. If `torch.distributed` is
    initialised already, its process group and device are not changed, `timeout_minutes` has no effect, and the local
    rank and local world size are read from the environment, else 0 and 1.

    When the interpreter exits (also by an exception, `sys.exit` or Ctrl+C), the process groups are destroyed, if this
    function created the default group and the program has not destroyed it itself. If all collectives are finished,
    this takes milliseconds and waits for no other rank. Collectives that this rank has started and not waited for have
    `EXIT_SECONDS` to finish (no time, in a group that the program still refers to); then the process exits without
    them, even if other ranks are dead, late or stuck.

    SIGTERM is not handled. Its default action ends the process at once, even while it waits, and the system closes its
    connections, so that the other ranks' gloo collectives fail instead of waiting. A signal handler in Python could not
    do that: it runs only after the current collective has returned, and if each rank waits for another, none returns
    until torchrun kills them after 30 s. A handler that the program installs, before or after this call, is kept and
    called as usual; if it calls `sys.exit`, the shutdown described above follows.

    Args:
        backend: Any backend that torch knows, also one that was registered with it, or a list of backends for device
            types: `"gloo"` to compute on CPUs, `"nccl"` to compute on GPUs, `"cpu:gloo,cuda:nccl"` to compute on GPUs
            and have collectives for tensors on the CPU as well. The device is the accelerator, if the backend serves
            it, else the CPU; with `"gloo"`, which serves both, it is the CPU.
        timeout_minutes: How long ranks wait for each other, in this call and in each collective, in minutes, above 0.
            The default is torch's own for NCCL; `None` means that of the backend.

    Returns:
        The rank and the device of this process, and the number of ranks.

    Raises:
        TypeError: `backend` is not a str, or `timeout_minutes` is not a number.
        ValueError: `backend` is malformed, or torch does not know it; a timeout that torch cannot wait for; the
            environment has some of the launcher's variables and lacks others, or one of them is malformed or
            contradicts another; or the existing process group lacks a requested backend.
        RuntimeError: This torch is built without the backend, or has no device that it serves, or there are fewer
            devices than local ranks; or the ranks did not connect in time (torch's own error).

    Torch releases:
        The same on all. Without this function, a rank of torch 2.6 to 2.13 that exits during a collective waits until
        the other ranks have joined it, or until the timeout.

    Source:
        `torch.distributed.init_process_group`; the variables are those of torchrun.
    """
    asked = _checked_name(backend)
    timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
    if dist.is_initialized():
        return _describe_existing_world(asked)
    launched = any(name in os.environ for name in LAUNCHER_VARIABLES)
    info = read_rank_info() if launched else RankInfo(0, 1, 0, 1)
    device = _select_device(asked, info.local_rank)
    # A store in the memory of this process, which opens no port. It is documented; torch's stubs do not export it.
    store = None if launched else dist.HashStore()  # type: ignore[attr-defined]
    start_world(timeout, backend=asked, rank=info.rank, world_size=info.world_size, store=store)
    info = info._replace(rank=dist.get_rank(), world_size=dist.get_world_size())
    _shutdown_of_process(os.getpid()).register_world(device)
    logger.info("rank %d of %d: %s on %s", info.rank, info.world_size, asked, device)
    return info.describe(asked, device)


def destroy_global_state() -> None:
    """Destroy the process groups of this process, the default one too; for use at the end of a program.

    If `torch.distributed` is not initialised it does nothing. A process that `initialize_distributed` has initialised
    does the same at exit, within `EXIT_SECONDS`. If NeMo AutoModel has made a buffer of DeepEP, that is freed first:
    `destroy_process_group` would wait for it.

    Raises:
        RuntimeError: A backend failed to shut down; NCCL's may, after a peer has died.
    """
    _free_deep_ep_buffer()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
    """Return the rank of this process among those on its machine; no process group is needed.

    Returns:
        The environment's `LOCAL_RANK`, else 0.

    Raises:
        ValueError: `LOCAL_RANK` is not a whole number from 0 on.
    """
    return _read("LOCAL_RANK", 0)


def get_local_world_size_preinit() -> int:
    """Return the number of ranks on this machine; no process group is needed.

    Returns:
        The environment's `LOCAL_WORLD_SIZE`, else 1.

    Raises:
        ValueError: `LOCAL_WORLD_SIZE` is not a whole number from 1 on.
    """
    return _read("LOCAL_WORLD_SIZE", 1, least=1)


# --- arguments and environment


def _checked_name(backend: object) -> str:
    if not isinstance(backend, str):
        raise wrong_type("backend", backend, "the name of a backend, such as 'gloo', or a list: 'cpu:gloo,cuda:nccl'")
    return str.__str__(backend).lower()


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


def read_rank_info() -> RankInfo:
    """Read what a launcher has set, and check that it is complete and consistent."""
    missing = [name for name in LAUNCHER_VARIABLES if not os.environ.get(name)]
    if missing:
        there = [name for name in LAUNCHER_VARIABLES if name not in missing]
        raise ValueError(
            f"the environment lacks {', '.join(missing)}, and has {', '.join(there) or 'empty values only'}: start the "
            "program with torchrun, which sets all of them, or unset them all to run as one process"
        )
    _read("MASTER_PORT", 0)
    info = RankInfo(
        _read("RANK", 0), _read("WORLD_SIZE", 1, least=1), _read("LOCAL_RANK", 0), _read("LOCAL_WORLD_SIZE", 1, least=1)
    )
    _require_at_most("RANK", info.rank, "WORLD_SIZE", info.world_size - 1)
    _require_at_most("LOCAL_RANK", info.local_rank, "LOCAL_WORLD_SIZE", info.local_world_size - 1)
    _require_at_most("LOCAL_WORLD_SIZE", info.local_world_size, "WORLD_SIZE", info.world_size)
    return info


def _require_at_most(name: str, value: int, size_name: str, most: int) -> None:
    if value > most:
        raise ValueError(
            f"the environment contradicts itself: {name}={value} with {size_name}={os.environ[size_name]}; "
            f"{name} can be {most} at most. Set both as torchrun does"
        )


# --- worlds and devices


def _describe_existing_world(asked: str) -> DistInfo:
    """Describe a process group that exists already, made by an earlier call or by other code."""
    whole = dist.get_backend()
    there = devices_of(whole)
    if ":" in asked:
        wanted = devices_of(asked)
        lacks = not wanted.items() <= there.items()
    else:
        # From 2.14 on torch has several backends that are NCCL's, such as "nccl2".
        wanted = {kind: name for kind, name in there.items() if name == asked or asked == "nccl" == name[:4]}
        lacks = not wanted
    if lacks:
        config = ",".join(f"{kind}:{name}" for kind, name in there.items())
        raise MeshArgumentError(
            f"backend={asked!r} was asked for, and this process is in a world with {config!r} already: ask for a "
            "backend that it has, or call torch.distributed.destroy_process_group() first"
        )
    kind = device_type_for(asked if asked == whole else ",".join(map(":".join, wanted.items())))
    rank = dist.get_rank()
    info = RankInfo(rank, dist.get_world_size(), get_local_rank_preinit(), get_local_world_size_preinit())
    logger.info("torch.distributed is initialised already, with %s: rank %d of %d", whole, rank, info.world_size)
    return info.describe(asked, current_device(kind))


def _select_device(asked: str, local_rank: int) -> torch.device:
    """Return the rank's device; an accelerator is also made the current device, which torch uses by default."""
    served = checked_backend(asked)
    kind = device_type_for(asked)
    if kind == "cpu":
        if "cpu" not in served:
            raise MeshArgumentError(
                f"backend={asked!r} serves {', '.join(served)}, and torch {compat.TORCH_VERSION} can use no such "
                "device here (is there a driver for one?): ask for backend='gloo' to compute on the CPU"
            )
        return torch.device("cpu")
    count = device_module(kind).device_count()
    if local_rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        of_cuda = f" (CUDA_VISIBLE_DEVICES={visible})" if kind == "cuda" else ""
        raise MeshArgumentError(
            f"LOCAL_RANK={local_rank} has no device: this process sees {count} of type {kind!r}{of_cuda}. Start at "
            f"most {count} processes on this machine, or make all of its devices visible to each"
        )
    return select_device(kind, local_rank)


# --- shutdown


class _WorldShutdown:
    """Destroys the process groups of `initialize_distributed` when the interpreter exits, in a thread of its own.

    A thread, for two reasons. If a backend does not shut down, the process can exit without it. And the thread holds a
    reference to the backends of groups that the program still refers to until the process is gone: any other reference
    is dropped earlier, and dropping the last one waits for the collectives in progress. The thread is started together
    with the process group, because Python 3.12 and newer start no thread at exit.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._world: weakref.ref[ProcessGroup] | None = None
        self._device = torch.device("cpu")
        self._requested = threading.Event()
        self._finished = threading.Event()
        threading.Thread(target=self._wait_and_shut_down, name="automodel-mesh-exit", daemon=True).start()
        atexit.register(self._at_exit)

    def register_world(self, device: torch.device) -> None:
        """Register the default group that was just created, to be destroyed at exit; it replaces an earlier one."""
        world = dist.group.WORLD
        self._world = None if world is None else weakref.ref(world)
        self._device = device

    def _at_exit(self) -> None:
        # A forked child inherits this handler, but neither the thread nor a usable process group.
        if os.getpid() != self._pid or not self._has_world():
            return
        self._requested.set()
        if not self._finished.wait(EXIT_SECONDS):
            logger.warning(
                "the process group did not shut down within %g s: is a collective under way, and another rank dead or "
                "late? The process ends without it",
                EXIT_SECONDS,
            )

    def _has_world(self) -> bool:
        """Return whether the registered group is still the default one; no reference to it may outlive this call."""
        return self._world is not None and self._world() is not None and self._world() is dist.group.WORLD

    def _wait_and_shut_down(self) -> None:
        self._requested.wait()
        try:
            if self._device.type != "cpu":
                select_device(self._device.type, self._device.index)  # each thread has a current device of its own
            _free_deep_ep_buffer()
            _signal_and_hold(self._finished, end_world())
        except RuntimeError as error:
            logger.warning("the process group did not shut down cleanly: %s", error)
        finally:
            self._finished.set()


def _free_deep_ep_buffer() -> None:
    """Free the buffer through which NeMo AutoModel's DeepEP sends tokens to experts, if its module is imported."""
    free = getattr(sys.modules.get("nemo_automodel.components.moe.megatron.fused_a2a"), "free_buffer", None)
    if free is None:
        return
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        free()
    except Exception as error:  # noqa: BLE001 - of DeepEP's, whatever it is; the process groups are to be destroyed all the same
        logger.warning("the buffer of DeepEP was not freed: %s", error)


def _signal_and_hold(finished: threading.Event, _held: object) -> None:
    """Signal that the shutdown is finished, and hold a reference to an object until the process is gone."""
    finished.set()
    threading.Event().wait()


@functools.cache
def _shutdown_of_process(_pid: int) -> _WorldShutdown:
    """Return the shutdown of a process, created once; a forked child creates another, as it inherits no thread."""
    return _WorldShutdown()
