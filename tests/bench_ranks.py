"""The time of building and lookups on 8 real gloo ranks: `nox -s bench`. No test asserts a time."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import pytest
import torch.distributed as dist

from automodel_mesh import MeshContext
from automodel_mesh.compat.agreement import operation
from automodel_mesh.testing import run_ranks
from tests.bench_lookups import REQUESTS, first_lookup
from tests.measuring import OURS, TORCH, Footprint, build, meet_through_tcp, prepare, report, reported, root_of, time_of

SHAPES = {"dp_shard 4 x tp 2": (1, 1, 4, 1, 2), "dp_replicate 2 x dp_shard 2 x tp 2": (1, 2, 2, 1, 2)}


def measure_rank(whose: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Build five times, on all ranks, and look up axes for the first time on each mesh."""
    meet_through_tcp()
    prepare(whose)
    kept: list[Any] = []
    seconds: list[float] = []
    first: list[dict[str, float]] = []
    added: dict[str, int] = {}
    footprint = Footprint()
    for _ in range(5):
        dist.barrier()
        seconds.append(time_of(lambda: kept.append(build(whose, shape))))
        added = footprint.added()
        dist.barrier()
        first.append({request: first_lookup(root_of(kept[-1]), whose, request) for request in REQUESTS})
    dist.barrier()
    for built in kept:
        if isinstance(built, MeshContext):
            built.close()
    return {
        "seconds": seconds,
        "added": {what: count // len(kept) for what, count in added.items()},
        "first": {request: median(found[request] for found in first) for request in REQUESTS},
    }


@reported
@pytest.mark.parametrize("whose", [OURS, TORCH])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_time_on_eight_gloo_ranks(benchmark: Any, shape: str, whose: str) -> None:
    """Building on 8 connected ranks is measured, with first lookups and the groups, threads and files of rank 0."""
    benchmark.group = f"8 gloo ranks, {shape}"
    found = run_ranks(measure_rank, 8, whose, SHAPES[shape], timeout=120.0)
    report(benchmark, found[0]["seconds"], first=found[0]["first"], **found[0]["added"])


def measure_meeting(rounds: int) -> list[float]:
    """Agree on an operation that makes nothing, and confirm it."""
    meet_through_tcp()
    seconds: list[float] = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        with operation("nothing", range(dist.get_world_size())) as current:
            current.agree("")
        seconds.append(time.perf_counter() - start)
    return seconds


@reported
def test_the_meeting_of_eight_ranks(benchmark: Any) -> None:
    """What agreeing on an operation adds to it, on 8 ranks that meet through a TCP store."""
    benchmark.group = "8 gloo ranks, the meeting alone"
    report(benchmark, run_ranks(measure_meeting, 8, 20, timeout=120.0)[0])
