"""Meshes that torch made: what is found about them, by several threads at once too, and in which family they are."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from tests.compat import plain

THREADS = 16
NAMES = ("dp", "cp", "tp")


def at_once(ask: Callable[[], Any]) -> list[Any]:
    """Ask in many threads at the same time; return the answers."""
    ready = threading.Barrier(THREADS)

    def wait_and_ask(_: int) -> Any:
        ready.wait()
        return ask()

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads interrupt each other in every function
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(wait_and_ask, range(THREADS)))
    finally:
        sys.setswitchinterval(switching)


def check_one_object(ask: Callable[[DeviceMesh], Any], make: Callable[[], DeviceMesh]) -> None:
    """Require that the first requests of all threads about a new mesh give one object, which later ones give too."""
    for _ in range(20):
        mesh = make()
        found = at_once(lambda: ask(mesh))  # noqa: B023 - it is called in this round
        found.append(ask(mesh))
        assert all(one is found[0] for one in found)


LOOKUPS: dict[str, Callable[[DeviceMesh], Any]] = {
    "slice_mesh": lambda mesh: compat.slice_mesh(mesh, ("a", "b")),
    "concatenate": lambda mesh: compat.concatenate([compat.slice_mesh(mesh, "a"), compat.slice_mesh(mesh, "c")]),
    "flatten": lambda mesh: compat.flatten(mesh, "all"),
    "unflatten": lambda mesh: compat.unflatten(mesh, "a", (1, 1), ("d", "e")),
    "get_group": lambda mesh: compat.get_group(mesh, "a"),
}


@pytest.mark.ranks(1)
@pytest.mark.parametrize("name", LOOKUPS)
def test_first_requests_of_many_threads_give_one_object(name: str) -> None:
    """Sixteen threads that ask first about a mesh of torch's at the same time get the identical object."""
    names = ("a", "b", "c")
    check_one_object(LOOKUPS[name], lambda: plain.init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=names))
    check_one_object(LOOKUPS[name], lambda: compat.init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=names))


@pytest.mark.ranks(4)
def test_threads_that_flatten_a_mesh_of_torchs_make_one_group() -> None:
    """Threads that flatten the same axes of a mesh of torch's at once make one process group, on every rank."""
    root = plain.init_device_mesh("cpu", (1, 2, 2), mesh_dim_names=NAMES)
    groups = worlds.live_process_groups()
    flat = at_once(lambda: compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "x", backend_override="gloo"))
    assert all(one is flat[0] for one in flat)
    assert len(worlds.live_process_groups()) == len(groups) + 1
    assert dict(compat.flattened_meshes(root)) == {"x": flat[0]}
    dist.barrier()


@pytest.mark.ranks(8)
def test_the_groups_of_torchs_meshes_are_listed() -> None:
    """The list has every group of a mesh that torch made: of the root, its slices, its flattened axes, any backend."""
    worlds.register_fake_backend()
    root = plain.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    part = compat.slice_mesh(root, ("dp", "cp"))
    assert {report.axes for report in compat.list_process_groups(part)} == {(name,) for name in NAMES}
    ours, theirs = compat.flatten(part, "ours"), plain.flatten(root["cp", "tp"], "theirs")
    again = plain.flatten(root["dp", "cp"], "again")
    listed = {report.axes: report for report in compat.list_process_groups(root)}
    assert listed["theirs",].ranks == tuple(theirs.mesh.tolist())
    assert not listed["theirs",].made_here
    assert listed["ours",].made_here
    assert listed["again",].name == again.get_group().group_name
    assert compat.get_group(part, "again") is again.get_group() is not ours.get_group()
    assert compat.flatten(part, "again") is compat.slice_mesh(part, "again") is again
    assert compat.get_group(compat.flatten(root, "theirs", dims=("cp", "tp"))) is theirs.get_group()
    split = compat.unflatten(compat.flatten(part, "ours"), "ours", (4, 1), ("a", "b"))
    assert compat.get_group(split, "a") is ours.get_group()
    with suppress(AttributeError):  # up to 2.9 torch cannot split axes
        made = plain.unflatten(root, 0, (1, 2), ("p", "q"))
        assert {("p",), ("q",)} <= {report.axes for report in compat.list_process_groups(made)}


@pytest.mark.ranks(4)
def test_groups_of_another_kind_are_listed_and_not_shared() -> None:
    """Groups of another backend are listed, and never given to an axis of the default kind; names are not needed."""
    worlds.register_fake_backend()
    rows: Any = [dist.new_group(ranks, backend="fake") for ranks in ([0, 1], [2, 3])]
    columns: Any = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    row, column = divmod(dist.get_rank(), 2)
    grid: Any = [[0, 1], [2, 3]]
    mesh = DeviceMesh.from_group([columns[column], rows[row]], "cpu", grid, mesh_dim_names=("x", "y"))
    listed = {report.axes: report for report in compat.list_process_groups(mesh)}
    assert (listed["x",].backend, listed["y",].backend) == ("gloo", "fake")
    assert listed["y",].ranks == (2 * row, 2 * row + 1)
    split = compat.unflatten(mesh, "y", (2, 1), ("a", "b"))
    assert dist.get_backend(compat.get_group(split, "a")) == "gloo"
    assert compat.get_group(split, "x") is columns[column]
    nameless = plain.init_device_mesh("cpu", (2, 2))
    assert {report.axes for report in compat.list_process_groups(nameless)} == {("dim_0",), ("dim_1",)}
    dist.destroy_process_group(nameless.get_group(0))
    assert {report.axes for report in compat.list_process_groups(nameless)} == {("dim_1",)}


@pytest.mark.ranks(4)
def test_a_slice_that_torch_makes_of_our_mesh_lists_each_group_once() -> None:
    """A group is listed once for a slice of torch's too, and as ours, also where it was made with a timeout."""
    names = ("dp", "tp")
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=names, timeout=timedelta(seconds=50))
    listed = compat.list_process_groups(root)
    assert compat.list_process_groups(plain.slice_mesh(root, "tp")) == listed
    assert all(report.made_here for report in listed)


@pytest.mark.ranks(8)
def test_halves_of_the_world_flatten_apart() -> None:
    """A mesh that each half of the world has over its own groups is flattened on both halves at once."""
    half = dist.get_rank() // 4
    groups: dict[tuple[int, ...], Any] = {}
    for one in (0, 4):
        for ranks in ((one, one + 1), (one + 2, one + 3), (one, one + 2), (one + 1, one + 3)):
            groups[ranks] = dist.new_group(list(ranks))
    own = [group for ranks, group in groups.items() if dist.get_rank() in ranks]
    rows, columns = own
    first = 4 * half
    grid: Any = [[first, first + 1], [first + 2, first + 3]]
    mesh = DeviceMesh.from_group([columns, rows], "cpu", grid, mesh_dim_names=("x", "y"))
    flat = compat.flatten(mesh, "all")
    assert dist.get_process_group_ranks(compat.get_group(flat)) == flat.mesh.tolist() == list(range(first, first + 4))
    dist.barrier(compat.get_group(flat))
    assert {report.axes for report in compat.list_process_groups(mesh)} == {("x",), ("y",), ("all",)}


BEFORE_THE_IMPORT = """
import gc
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

def make():
    return init_device_mesh("cpu", (1, 1, 1), mesh_dim_names=("a", "b", "c"))

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
old = make()
part, same_part = old["a", "b"], old["a", "b"]
flat = part._flatten("a_and_b")

from automodel_mesh import compat

assert compat.get_root_mesh(part) is compat.get_root_mesh(same_part) is compat.get_root_mesh(flat) is old
assert dict(compat.flattened_meshes(old)) == {"a_and_b": flat}
assert compat.slice_mesh(part, "a_and_b") is flat
assert part.get_group("a_and_b") is flat.get_group()

new = make()
line = DeviceMesh("cpu", [0], mesh_dim_names=("a",))
assert new == old
assert not compat.flattened_meshes(new)
assert compat.get_root_mesh(new) is new
assert compat.get_root_mesh(line) is line
assert compat.flatten(compat.slice_mesh(new, ("b", "c")), "a_and_b") is not flat
assert compat.get_root_mesh(compat.slice_mesh(new, ("a", "b"))) is new

del old, part, same_part, flat, new, line
compat.reset_mesh_registry()
gc.collect()
assert not [thing for thing in gc.get_objects() if type(thing) is DeviceMesh]
dist.destroy_process_group()
"""


def test_only_meshes_made_before_the_import_have_what_torch_knew_then() -> None:
    """Meshes made before the import keep root and flattened axes; equal ones made later have none of theirs."""
    subprocess.run([sys.executable, "-c", BEFORE_THE_IMPORT], check=True, timeout=100)
