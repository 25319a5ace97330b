"""The all-reduces by which `doctor` checks a process group of a launch, and their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from automodel_mesh.compat.devices import device_module
from automodel_mesh.doctor.board import Measured
from automodel_mesh.doctor.world import require_equal

_BYTES_ON_CPU: Final = 1 << 22
_BYTES: Final = 1 << 26


def measure(group: ProcessGroup | None, ranks: Sequence[int], device: torch.device) -> Measured:
    """Check that a group adds up its ranks, and measure a small all-reduce and a large one.

    Args:
        group: the process group; `None` for the default one.
        ranks: the global ranks that it must have, more than one.
        device: of the tensors.

    Raises:
        ContractBrokenError: the group has other ranks, or the sum is wrong.
    """
    require_equal("the ranks of the process group", dist.get_process_group_ranks(group), list(ranks))
    told = torch.tensor([1, dist.get_rank()], device=device)
    dist.all_reduce(told, group=group)
    count, total = told.tolist()
    require_equal("the number of ranks in the sum, and the sum", (count, total), (len(ranks), sum(ranks)))
    size = _BYTES_ON_CPU if device.type == "cpu" else _BYTES
    small, large = (torch.zeros(number // 4, device=device) for number in (4, size))
    seconds = _median_seconds(partial(dist.all_reduce, small, group=group), 5, device)
    seconds_for_large = _median_seconds(partial(dist.all_reduce, large, group=group), 3, device)
    return Measured(count, total, seconds, 2 * (count - 1) / count * size / seconds_for_large)


def _median_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    times: list[float] = []
    for _ in range(repeats):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times)


def _synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        device_module(device.type).synchronize()
