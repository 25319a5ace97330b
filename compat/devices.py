"""Device types, and the accelerator of this process."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from automodel_mesh.checks import shown, wrong_type
from automodel_mesh.errors import MeshArgumentError


def is_device_type(name: str) -> bool:
    """Tell whether torch knows a device type of this name, whether or not such a device is here."""
    try:
        return torch.device(name).type == name
    except RuntimeError:
        return False


def checked_device_type(argument: str, given: object) -> str:
    """Return the name of a device type, also where torch has no such device here, as with `npu` or `meta`.

    Args:
        argument: what the device type is called in messages.
        given: the name, or a `torch.device` without an index.

    Raises:
        TypeError: it is neither.
        ValueError: it has an index, or is no name; the message has the right spelling where there is one.
    """
    if not isinstance(given, (str, torch.device)):
        raise wrong_type(argument, given, "a name, such as 'cpu' or 'cuda'")
    name = str(given) if isinstance(given, torch.device) else str.__str__(given)
    kind = name.partition(":")[0]
    meant = kind if is_device_type(kind) else kind.lower()
    if meant == "gpu" and not is_device_type(meant):
        meant = accelerator() or "cuda"
    if name != meant and is_device_type(meant):
        remedy = f": give {meant!r}"
    elif not name.isidentifier():
        remedy = ""
    else:
        return name
    raise MeshArgumentError(
        f"{argument} is a name without an index, such as 'cpu' or 'cuda', got {shown(given)}{remedy}."
    )


def accelerator() -> str | None:
    """Return the device type of the accelerator that this process can use; `None` without one.

    The module of the device is asked: `torch.accelerator.is_available` of 2.6 fails for a device whose package has no
    hooks in C++.
    """
    try:
        current = torch.accelerator.current_accelerator()
    except RuntimeError:  # 2.6 raises where there is none
        return None
    module = None if current is None else device_module(current.type)
    if current is None or module is None:
        return None
    is_here = getattr(module, "is_available", None) or module.device_count
    return current.type if is_here() else None


def initialised_device_types() -> list[str]:
    """Return the types of the accelerators that this process has begun to use, so that it must not be forked.

    Only modules are looked at: to ask which accelerator there is starts CUDA on 2.6.
    """
    modules = {name: module for name, module in vars(torch).items() if isinstance(module, ModuleType)}
    return [
        name
        for name, module in modules.items()
        if name != "cpu" and is_device_type(name) and hasattr(module, "is_initialized") and module.is_initialized()
    ]


def device_module(device_type: str) -> Any:
    """Return torch's module for a device type, such as `torch.cuda`; `None` where there is none."""
    return getattr(torch, device_type, None) if is_device_type(device_type) else None


def current_device(device_type: str) -> torch.device:
    """Return the current device of this thread, of a type that can be used here."""
    if device_type == "cpu":
        return torch.device("cpu")
    module = device_module(device_type)
    return torch.device(device_type, module.current_device() if hasattr(module, "current_device") else 0)


def select_device(device_type: str, index: int) -> torch.device:
    """Make an accelerator the current device of this thread, where devices of its type can be selected; return it."""
    module = device_module(device_type)
    if hasattr(module, "set_device"):
        module.set_device(index)
    return torch.device(device_type, index)
