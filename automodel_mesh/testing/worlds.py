"""Leak checks, fake worlds of any size, and which devices and backends this machine has."""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.compat.devices import device_module
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.testing.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Generator


class LeakError(AssertionError):
    """Code under `leak_check` left process groups or meshes behind; the message names each."""


class DeviceBackend(NamedTuple):
    """A device type and a backend for it: the value of fixture `device_backend`."""

    device_type: str
    """`"cpu"`, or that of an accelerator, such as `"cuda"`."""
    backend: str
    """`"gloo"`, or that of the accelerator, such as `"nccl"`."""


@contextlib.contextmanager
def leak_check(*, reset_registry: bool = False) -> Generator[None, None, None]:
    """Fail if the block leaves behind a process group or a `DeviceMesh` that did not exist before.

    Garbage is collected before the check, so a mesh counts only if something still refers to it; a block that
    raises is not checked. Torch itself refers to some meshes: below 2.10 its registry holds derived ones, and on
    every release DTensor's caches hold the meshes of the operations that have run.

    Args:
        reset_registry: empty torch's mesh registry before the check, where there is one (torch below 2.10).

    Raises:
        LeakError: something was left behind; the message names each group, with its ranks, and each mesh.
    """
    groups_before = set(worlds.live_process_groups().items())
    meshes_before = [weakref.ref(mesh) for mesh in worlds.live_meshes()]
    yield
    if reset_registry:
        compat.reset_mesh_registry()
    known = [mesh for reference in meshes_before if (mesh := reference()) is not None]
    # Compared by identity: two meshes over the same ranks are equal.
    meshes = [shown_mesh(mesh) for mesh in worlds.live_meshes() if not any(mesh is old for old in known)]
    groups = [item for item in worlds.live_process_groups().items() if item not in groups_before]
    if groups or meshes:
        raise LeakError(_leak_message(groups, meshes))


def _leak_message(groups: list[tuple[str, tuple[int, ...]]], meshes: list[str]) -> str:
    lines = [f"left behind: {len(groups)} process group(s), {len(meshes)} mesh(es)"]
    lines += [f"  process group {name!r} of ranks {list(ranks)}" for name, ranks in groups]
    if groups:
        lines.append("  destroy each with torch.distributed.destroy_process_group(group)")
    lines += [f"  mesh {mesh}" for mesh in meshes]
    if meshes:
        lines.append(
            "  drop every reference to each; those that only torch's registry holds (torch below 2.10) go "
            "with fixture mesh_registry_reset or leak_check(reset_registry=True)"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def fake_world(world_size: int, rank: int = 0) -> Generator[None, None, None]:
    """Make this process one rank of a world without other processes, for tests of scale in a single process.

    The process group has torch's fake backend: collectives return at once and move no data. It is destroyed at
    the end.

    Args:
        world_size: the number of ranks to simulate, at least 1.
        rank: which of them this process is, ``0 <= rank < world_size``.

    Raises:
        RuntimeError: this process already belongs to a process group.
        ValueError: ``world_size`` or ``rank`` is out of range.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in a world of {world_size}; give 0 <= rank < world_size")
    if dist.is_initialized():
        raise RuntimeError(
            f"this process belongs to a process group of {dist.get_world_size()} ranks; a fake world needs a "
            "process without one: call torch.distributed.destroy_process_group() first"
        )
    worlds.init_fake_world(world_size, rank)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def unavailable_reason(pair: DeviceBackend, world_size: int) -> str | None:
    """Return the reason why this machine cannot run that many ranks on a device and backend.

    No accelerator is initialised in this process.

    Args:
        pair: one of the values of fixture `device_backend`.
        world_size: the number of ranks.

    Returns:
        The reason, one line of text; `None` if the ranks can run.

    Raises:
        RuntimeError: ranks cannot be forked from this process, and one has to count the devices: see `run_ranks`.
    """
    if not dist.is_backend_available(pair.backend):
        return f"torch {torch.__version__} is built without {pair.backend}"
    if pair.device_type == "cpu":
        return None
    devices = _device_count(pair.device_type)
    if not devices:
        return f"no device of type {pair.device_type!r}: torch {torch.__version__} sees none on this machine"
    if pair.backend == "nccl" and world_size > devices:
        return f"NCCL takes one GPU for each rank: {world_size} ranks, {devices} GPU(s) on this machine"
    return None


@functools.cache
def _device_count(device_type: str) -> int:
    """Count the devices on a forked rank: for CUDA, counting initialises it where NVML is missing."""
    return int(run_ranks(_count_devices, 1, device_type, backend=None)[0])


def _count_devices(device_type: str) -> int:
    module = device_module(device_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver without a device warns; we report that ourselves
        return 0 if module is None else int(module.device_count())
