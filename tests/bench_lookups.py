"""The time of lookups of axes, compared with plain torch: `nox -s bench`. No test asserts a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from operator import getitem
from statistics import median
from typing import Any

import pytest

from automodel_mesh import get_flat_mesh, get_fsdp_dp_mesh, get_submesh
from automodel_mesh.compat.worlds import live_process_groups
from tests.measuring import OURS, TORCH, build, in_fake_world, prepare, report, reported, root_of, time_of

MIXED = ("dp_replicate", "dp_shard_cp")
SHAPES = {
    8: (1, 2, 2, 1, 2),
    256: (1, 2, 16, 1, 8),
    4096: (1, 2, 256, 1, 8),
    16384: (1, 2, 1024, 1, 8),
    65536: (1, 2, 4096, 1, 8),
}
REQUESTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    'get_flat_mesh(mesh, "tp")': {
        OURS: lambda mesh: partial(get_flat_mesh, mesh, "tp"),
        TORCH: lambda mesh: partial(getitem, mesh, "tp"),
    },
    'get_submesh(mesh, ("dp_replicate", "dp_shard_cp"))': {
        OURS: lambda mesh: partial(get_submesh, mesh, MIXED),
        TORCH: lambda mesh: partial(getitem, mesh, MIXED),
    },
    "get_fsdp_dp_mesh(mesh)": {
        OURS: lambda mesh: partial(get_fsdp_dp_mesh, mesh),
        TORCH: lambda mesh: partial(getitem, mesh, ("dp_replicate", "dp_shard")),
    },
}
"""For each request, the call of either side, made of a mesh."""


def first_lookup(root: Any, whose: str, request: str) -> float:
    """Return the seconds that a lookup takes on a mesh on which only another axis was looked up before."""
    (partial(get_flat_mesh, root, "pp") if whose == OURS else partial(getitem, root, "pp"))()
    return time_of(REQUESTS[request][whose](root))


def measure_lookups(whose: str, shape: tuple[int, ...], request: str) -> tuple[float, list[float], int]:
    """Return the seconds of a first lookup, those of repeated ones, and the number of groups created by all of them."""
    prepare(whose)
    kept, first, groups = [], [], 0
    for _ in range(1 if whose == TORCH and prod(shape) > 16384 else 3):
        kept.append(build(whose, shape))
        groups = len(live_process_groups())
        first.append(first_lookup(root_of(kept[-1]), whose, request))
    look = REQUESTS[request][whose](root_of(kept[-1]))
    repeated = [time_of(look, calls=5000 if whose == OURS else 5) for _ in range(7)]
    return median(first), repeated, len(live_process_groups()) - groups


@reported
@pytest.mark.parametrize("whose", [OURS, TORCH])
@pytest.mark.parametrize("request_", list(REQUESTS))
@pytest.mark.parametrize("world", list(SHAPES))
def test_time_of_lookups(benchmark: Any, world: int, request_: str, whose: str) -> None:
    """A repeated lookup in a fake world is measured, and the first one of the same axes."""
    benchmark.group = f"{request_}, {world} ranks"
    first, repeated, groups = in_fake_world(world, measure_lookups, whose, SHAPES[world], request_)
    report(benchmark, repeated, first=first, groups=groups)
