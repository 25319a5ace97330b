"""A device type of our own, `toy`, and backends for it: an accelerator that needs no hardware, for tests.

Its tensors cannot be made. Each rank, or each test's process, calls `register` for itself: torch can rename its
`privateuse1` device once only.
"""

from __future__ import annotations

from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

DEVICES = 4


class ToyModule(ModuleType):
    """`torch.toy`: what torch asks of the module of a device."""

    selected: int | None = None

    def is_available(self) -> bool:
        """Tell whether there is such a device."""
        return True

    def device_count(self) -> int:
        """Return how many there are."""
        return DEVICES

    def is_initialized(self) -> bool:
        """Tell whether a device was selected."""
        return self.selected is not None

    def current_device(self) -> int:
        """Return the index of the selected one."""
        return self.selected or 0

    def set_device(self, device: Any) -> None:
        """Select one, by its index or as a `torch.device`."""
        self.selected = device if isinstance(device, int) else torch.device(device).index


class PythonGroup(dist.ProcessGroup):
    """A process group in Python, as a plugin may have it: it passes on what the tests need to gloo."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._name = ""

    def allreduce(self, tensors: Any, opts: Any) -> Any:  # type: ignore[override]  # as torch calls it
        """Sum tensors over the group."""
        return self._gloo.allreduce(tensors, opts)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return the name of the backend."""
        return "toypy"

    @property
    def group_name(self) -> Any:
        """The name of the group."""
        return self._name

    def _set_group_name(self, name: str) -> None:
        self._name = name


def make_gloo(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    """Make a gloo backend."""
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def register() -> ToyModule:
    """Register the device type `toy`, and for it the backends `toyccl`, which is gloo, and `toypy`, in Python."""
    torch.utils.rename_privateuse1_backend("toy")
    module = ToyModule("torch.toy")
    setattr(torch, "toy", module)  # noqa: B010 - torch's stubs have no such device
    dist.Backend.register_backend("toyccl", make_gloo, devices=["toy"])
    dist.Backend.register_backend("toypy", PythonGroup, devices=["toy"])
    return module
