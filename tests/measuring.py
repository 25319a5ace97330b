"""How the benchmarks measure: each in its own forked process, so that it can patch torch without effect on others."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes
from automodel_mesh.compat import TORCH_VERSION
from automodel_mesh.compat.worlds import live_process_groups
from automodel_mesh.testing import fake_world, run_ranks
from tests.compat import plain

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
DERIVED = {
    "dp": ("dp_replicate", "dp_shard"),
    "dp_shard_cp": ("dp_shard", "cp"),
    "dp_cp": ("dp_replicate", "dp_shard", "cp"),
}
OURS, TORCH = "ours", "torch"


class _ReportedClock:
    """A clock that is set forward by the times that other processes measured."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Set the clock forward."""
        self._now += seconds


_clock = _ReportedClock()
reported = pytest.mark.benchmark(timer=_clock)
"""For benchmarks that pass their times to `report`."""


def report(benchmark: Any, seconds: Iterable[float], **counts: object) -> None:
    """Pass the seconds of each round, and other numbers, to pytest-benchmark."""
    rounds = list(seconds)
    left = iter(rounds)
    benchmark.pedantic(lambda: _clock.advance(next(left)), rounds=len(rounds), iterations=1)
    benchmark.extra_info.update(counts, torch=str(TORCH_VERSION))


def in_fake_world(world: int, measure: Callable[..., Any], *arguments: Any) -> Any:
    """Measure in a process that is one rank of a large fake world."""

    def on_rank() -> Any:
        with fake_world(world, rank=world // 2 + 1):
            return measure(*arguments)

    return run_ranks(on_rank, 1, backend=None, timeout=600.0)[0]


def meet_through_tcp() -> None:
    """Start the world of this rank again over a TCP store, as launchers do; a file store is asked every 10 ms only."""
    port = torch.zeros(1, dtype=torch.int)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, says torch's manual
    served = [tcp_store("127.0.0.1", 0, is_master=True, wait_for_workers=False)] if rank == 0 else []
    port.fill_(served[0].port if served else 0)
    dist.broadcast(port, 0)
    dist.destroy_process_group()
    store = served[0] if served else tcp_store("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)


def prepare(whose: str) -> None:
    """Make this process, a forked one, torch's or ours; torch's warnings about its own slices say nothing here."""
    if whose == TORCH:
        plain.restore_torch()
        warnings.simplefilter("ignore")


def build(whose: str, shape: Sequence[int], outside: int = 0) -> Any:
    """Build the five axes and the three derived ones; the caller keeps a reference to the result.

    The first ranks of the world, as many as `outside` says, do not belong to the mesh.
    """
    ranks = range(outside, outside + math.prod(shape))
    if whose == TORCH:
        plain.forget_meshes()  # up to 2.9 the flattened axes of an equal mesh made before would be found
        if outside:
            root = DeviceMesh("cpu", torch.tensor(ranks).view(tuple(shape)), mesh_dim_names=AXES)
        else:
            root = plain.init_device_mesh("cpu", tuple(shape), mesh_dim_names=AXES)
        return root, [plain.flatten(plain.slice_mesh(root, axes), name) for name, axes in DERIVED.items()]
    pp, replicate, _, cp, tp = shape
    sizes = ParallelismSizes(pp_size=pp, dp_replicate_size=replicate, cp_size=cp, tp_size=tp)
    return MeshContext.build(FSDP2Config(), sizes, ranks=ranks if outside else None)


def root_of(built: Any) -> Any:
    """Return the root mesh of what `build` returned."""
    return built.device_mesh if isinstance(built, MeshContext) else built[0]


def time_of(function: Callable[[], object], calls: int = 1) -> float:
    """Return the seconds that one call takes, the mean of several."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


class Footprint:
    """What building adds to a process: calls that create groups, groups, memory, threads and open files."""

    def __init__(self) -> None:
        self._calls = 0
        self._process = psutil.Process()
        self._before = self._counts()
        real = dist.new_group

        def counted(*arguments: Any, **options: Any) -> Any:
            self._calls += 1
            return real(*arguments, **options)

        patch = pytest.MonkeyPatch()
        patch.setattr(dist, "new_group", counted)
        patch.setattr(device_mesh, "new_group", counted)

    def added(self) -> dict[str, int]:
        """Return what was added since this object was made."""
        return {name: count - self._before[name] for name, count in self._counts().items()}

    def _counts(self) -> dict[str, int]:
        process = self._process
        return {
            "new_group calls": self._calls,
            "groups": len(live_process_groups()),
            "bytes": process.memory_info().rss,
            "threads": process.num_threads(),
            "open files": process.num_fds(),
        }
