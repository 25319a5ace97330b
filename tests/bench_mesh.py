"""Benchmarks, side by side with plain torch in the same run: `nox -s bench`. They compare, and assert nothing of time.

Below 2.10 plain torch runs on the registry's tables as `automodel_mesh.compat` leaves them, which changes where an
entry is kept and not how a slice is made.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed import device_mesh

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, get_flat_mesh, get_fsdp_dp_mesh, get_submesh
from automodel_mesh.compat import making, plain
from automodel_mesh.testing import fake_world

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
DERIVED = {
    "dp": ("dp_replicate", "dp_shard"),
    "dp_shard_cp": ("dp_shard", "cp"),
    "dp_cp": ("dp_replicate", "dp_shard", "cp"),
}
MIXED = ("dp_replicate", "dp_shard_cp")


@pytest.fixture(params=[8, 256, 4096, 16384, 65536])
def world(request: pytest.FixtureRequest) -> Iterator[int]:
    """A fake world of this many ranks, seen from rank 5."""
    with fake_world(request.param, rank=5):
        yield request.param


def build_plain(shape: tuple[int, ...]) -> Any:
    """Build the root and its derived axes with torch alone."""
    root = plain.init_device_mesh("cpu", shape, mesh_dim_names=AXES)
    for name, axes in DERIVED.items():
        plain.flatten(root[axes], name)
    return root


def sizes_of(world: int) -> ParallelismSizes:
    """Shards and tensor parallelism, two replicas from 256 ranks on."""
    return ParallelismSizes(tp_size=2 if world == 8 else 8, dp_replicate_size=1 if world == 8 else 2)


REQUESTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "axis": {"ours": lambda mesh: get_flat_mesh(mesh, "tp"), "torch": lambda mesh: mesh["tp"]},
    "mixed": {"ours": lambda mesh: get_submesh(mesh, MIXED), "torch": lambda mesh: mesh[MIXED]},
    "fsdp": {"ours": get_fsdp_dp_mesh, "torch": lambda mesh: mesh["dp_replicate", "dp_shard"]},
}


@pytest.mark.parametrize("whose", ["ours", "torch"])
@pytest.mark.parametrize("request_", list(REQUESTS))
def test_repeated_lookup(benchmark: Any, world: int, request_: str, whose: str) -> None:
    """A lookup that was made before."""
    benchmark.group = f"repeated lookup, {request_}, {world} ranks"
    look = REQUESTS[request_][whose]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about slicing flattened axes
        mesh = MeshContext.build(FSDP2Config(), sizes_of(world)).device_mesh
        look(mesh)
        benchmark.pedantic(look, args=(mesh,), rounds=7, iterations=2000 if whose == "ours" else 5)


@pytest.mark.parametrize("whose", ["ours", "ours, every group by all ranks", "torch"])
def test_build(benchmark: Any, world: int, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the root mesh and its derived axes; also the number of `new_group` calls."""
    benchmark.group = f"build, {world} ranks"
    calls = _count_calls(monkeypatch)
    if whose == "ours, every group by all ranks":
        monkeypatch.setattr(making, "LOCAL_FROM", 2 * world)
    with MeshContext.build(FSDP2Config(), sizes_of(world)) as context:
        mesh = context.device_mesh
        assert mesh is not None
        shape = mesh.shape

    def build() -> None:
        calls.clear()
        if whose == "torch":
            build_plain(shape)
        else:
            MeshContext.build(FSDP2Config(), sizes_of(world)).close()

    benchmark.pedantic(build, rounds=3, iterations=1)
    benchmark.extra_info["new_group calls"] = len(calls)


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    real = dist.new_group

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return real(*arguments, **options)

    monkeypatch.setattr(dist, "new_group", counted)
    monkeypatch.setattr(device_mesh, "new_group", counted)
    return calls
