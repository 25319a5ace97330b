"""The time of building a mesh, compared with plain torch: `nox -s bench`. No test asserts a time."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from tests.measuring import (
    OURS,
    TORCH,
    Footprint,
    build,
    in_fake_world,
    prepare,
    report,
    reported,
    time_of,
)

WORLDS = [8, 256, 4096, 16384, 65536]
EVERY_AXIS = (8, 8, 64, 2, 8)  # 65,536 ranks
FIRST_MESH = """
import resource, sys, time, warnings
warnings.simplefilter("ignore")
from tests.measuring import build, prepare, root_of
from automodel_mesh import get_flat_mesh
from automodel_mesh.testing import fake_world
whose = sys.argv[1]
with fake_world(8, rank=5):
    prepare(whose)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    root = root_of(built := build(whose, (1, 1, 4, 1, 2)))
    get_flat_mesh(root, "tp") if whose == "ours" else root["tp"]
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def two_axes(world: int) -> tuple[int, ...]:
    """Shards and tensor parallelism; the other axes have one rank."""
    tp = 2 if world == 8 else 8
    return (1, 1, world // tp, 1, tp)


CASES = [*((two_axes(world), 0) for world in WORLDS), (EVERY_AXIS, 0), (EVERY_AXIS, 1024)]


def measure_building(whose: str, shape: tuple[int, ...], outside: int) -> tuple[list[float], dict[str, int]]:
    """Build three times, or once if it takes long; count what the first build adds to the process."""
    prepare(whose)
    footprint, kept = Footprint(), []
    seconds = [time_of(lambda: kept.append(build(whose, shape, outside)))]
    added = footprint.added()
    for _ in range(0 if whose == TORCH and shape == two_axes(WORLDS[-1]) else 2):
        kept.clear()
        seconds.append(time_of(lambda: kept.append(build(whose, shape, outside))))
    return seconds, added


@reported
@pytest.mark.parametrize("whose", [OURS, TORCH])
@pytest.mark.parametrize(("shape", "outside"), CASES, ids=lambda value: str(value).replace(", ", "x"))
def test_time_of_building(benchmark: Any, shape: tuple[int, ...], outside: int, whose: str) -> None:
    """Building the root mesh and its derived axes in a fake world is measured, also with ranks outside the mesh."""
    benchmark.group = f"build {'x'.join(map(str, shape))}, {outside} ranks outside"
    seconds, added = in_fake_world(math.prod(shape) + outside, measure_building, whose, shape, outside)
    report(benchmark, seconds, **added)


@reported
@pytest.mark.parametrize("whose", [OURS, TORCH])
def test_time_of_the_first_mesh_of_a_process(benchmark: Any, whose: str) -> None:
    """Building the first mesh of a process and slicing one axis of it, in a fake world of 8 ranks, is measured."""
    benchmark.group = "first mesh of a process"
    seconds, memory = [], 0
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_MESH, whose], check=True, capture_output=True, text=True, timeout=300
        )
        took, kilobytes = done.stdout.split()[-2:]
        seconds.append(float(took))
        memory = int(kilobytes) * 1024
    report(benchmark, seconds, bytes=memory)
