"""The backends of process groups: which devices they serve, and which of them torch can make here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from automodel_mesh.checks import nearest
from automodel_mesh.compat.devices import accelerator, is_device_type
from automodel_mesh.compat.eras.support import TORCH_VERSION
from automodel_mesh.errors import MeshArgumentError


def devices_of(backend: str, *, shown: str | None = None) -> dict[str, str]:
    """Return the name of the backend for each device type that a backend or a list of backends serves.

    Args:
        backend: a name or a list that torch knows, as `torch.distributed.get_backend` returns it.
        shown: what to call it in messages; by default itself.

    Raises:
        ValueError: a list is malformed, or a package that offers a backend cannot be loaded.
    """
    try:
        return dict(dist.BackendConfig(dist.Backend(backend)).get_device_backend_map())
    except (ValueError, TypeError, RuntimeError) as error:
        raise MeshArgumentError(
            f"backend {(shown or backend)!r} cannot be read ({' '.join(str(error).split())}): give a name, or a list "
            "such as 'cpu:gloo,cuda:nccl' with each device once."
        ) from error


def checked_backend(backend: str) -> dict[str, str]:
    """Check that torch can make groups of a backend, and return the devices that these groups serve.

    Args:
        backend: its name, in any case, or a list such as `"cpu:gloo,cuda:nccl"`.

    Returns:
        The name of the backend for each device type.

    Raises:
        ValueError: a name or a device type is not known to torch, the list is malformed, this torch was built without
            a backend, or NCCL has no GPU.

    Torch releases:
        From 2.14 on an installed package can offer a backend by an entry point, which torch loads when it is asked for.
    """
    asked = backend.lower()
    # As a list, because torch warns of a single name that it does not know, and takes it for one that serves the CPU.
    pairs = devices_of(asked if ":" in asked else f"cpu:{asked}", shown=asked)
    known = [name for name in dist.Backend.backend_list if name != dist.Backend.UNDEFINED]
    for device, name in pairs.items():
        if not is_device_type(device):
            raise MeshArgumentError(f"backend {backend!r}: torch knows no device type {device!r}.")
        if name not in known:
            raise MeshArgumentError(
                f"backend {name!r} is not known to torch{nearest(name, known)}: give one of {', '.join(known)}, or "
                "register it with torch.distributed.Backend.register_backend on every rank."
            )
        if not dist.is_backend_available(name):
            raise MeshArgumentError(f"backend {name!r}: this torch was built without it; give another one.")
        if name.startswith("nccl") and not torch.cuda.is_available():
            raise MeshArgumentError(
                f"backend {name!r} needs a GPU, and torch {TORCH_VERSION} sees none that it could use (is "
                "there a driver for one?): give 'gloo' to communicate on the CPU."
            )
    return devices_of(asked)


def check_backend(backend: str | None, device_type: str) -> None:
    """Refuse a backend that cannot serve the devices of a mesh, or that torch would fail to make groups of.

    A backend that has not told torch which devices it serves is taken to serve all, and so is any backend where torch
    knows none for the device type.

    Args:
        backend: its name, or a list such as `"cpu:gloo,cuda:nccl"`; `None` for that of the default group.
        device_type: the device type of the mesh.

    Raises:
        ValueError: as `checked_backend`; or the backend does not serve the device type.
    """
    if backend is None:
        return
    devices = checked_backend(backend)
    capable = [name for name, served in dist.Backend.backend_capability.items() if device_type in served]
    listed = devices.get(device_type)
    if listed is None:
        serves = not capable or _may_serve_any(backend, devices)
    else:
        # A list can name a device beyond those that a backend has told torch, unless it is for accelerators only.
        serves = listed in capable or "cpu" in dist.Backend.backend_capability.get(listed, ["cpu"])
    if not serves:
        able = ", ".join(filter(dist.is_backend_available, capable)) or "none that this torch was built with"
        raise MeshArgumentError(
            f"backend {backend!r} cannot serve a mesh on {device_type!r}: it serves {', '.join(devices)}. Backends "
            f"that can: {able}. Give one of them, or a list with one for {device_type!r}, or None for that of the "
            "default group."
        )


def device_type_for(backend: str) -> str:
    """Return the device type to compute on with a default group of some backend: the accelerator's, or `"cpu"`.

    The accelerator is chosen if the backend serves it; but gloo, where it serves the CPU too, is chosen for the CPU.

    Args:
        backend: a name or a list that torch knows, as `torch.distributed.get_backend` returns it.
    """
    kind = accelerator()
    if kind is None:
        return "cpu"
    devices = devices_of(backend)
    serves = kind in devices or _may_serve_any(backend, devices)
    for_the_cpu = devices.get(kind) == dist.Backend.GLOO and "cpu" in devices
    return kind if serves and not for_the_cpu else "cpu"


def _may_serve_any(backend: str, devices: Mapping[str, str]) -> bool:
    """Tell whether a name is of a backend, from outside of torch, that perhaps has not said which devices it serves.

    Torch then assumes the CPU and CUDA, or the CPU and the accelerator. `fake` is such a backend, too.
    """
    custom = dist.Backend.backend_type_map.get(backend.lower()) == dist.ProcessGroup.BackendType.CUSTOM
    return custom and "cpu" in devices
