"""Closing a family of meshes: what it frees, and what other threads that use the meshes meanwhile are told."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import (
    DDPConfig,
    FSDP2Config,
    MeshContext,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
)
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world

SIZES = ParallelismSizes(dp_replicate_size=2, cp_size=2, tp_size=2, ep_size=4)


def resources() -> tuple[int, int, int]:
    """Count the threads, open descriptors and process groups of this process."""
    threads, descriptors = (len([*Path("/proc/self", of).iterdir()]) for of in ("task", "fd"))
    return threads, descriptors, len(worlds.live_process_groups())


def assert_no_more_than(before: tuple[int, int, int]) -> None:
    """Compare with a count of before, when a connection of the default group may not have been closed yet."""
    assert all(now <= then for now, then in zip(resources(), before, strict=True)), (resources(), before)


@pytest.mark.ranks(8)
@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("used", [False, True])
def test_closing_frees_threads_and_descriptors_of_meshes_that_are_held(abort: bool, used: bool) -> None:
    """While somebody holds the context, its meshes and slices, no thread, descriptor or group of it is left."""
    dist.all_reduce(torch.ones(1))  # the default group has all of its own from here on
    dist.barrier()
    before = resources()
    context = MeshContext.build(FSDP2Config(), SIZES)
    axes = ("pp", "dp_replicate", "dp_shard", "cp", "tp", "dp", "dp_shard_cp", "dp_cp", "ep", "ep_shard")
    held = [context, context.root_mesh(), context.expert_mesh(), *map(context.flat_mesh, axes), context.fsdp_mesh()]
    held.append(compat.flatten(context.submesh(("dp_shard", "tp")), "more"))
    held.append(compat.unflatten(context.flat_mesh("dp_cp"), 0, (1, 4), ("x", "y")))
    if used:
        for axis in axes:
            dist.all_reduce(torch.ones(1), group=compat.get_group(context.flat_mesh(axis)))
    assert resources() > before
    if abort:
        dist.barrier()  # abort itself waits for nobody
        context.abort()
    else:
        context.close()
    gc.collect()
    assert_no_more_than(before)
    assert len(held) == 16
    dist.barrier()


@pytest.mark.ranks(3)
def test_closing_frees_what_a_context_without_a_mesh_holds() -> None:
    """With DDP, on a part of the world, nothing is left while somebody holds the context."""
    dist.all_reduce(torch.ones(1))
    before = resources()
    context = MeshContext.build(DDPConfig(), ranks=range(2))
    if context.process_group is not None:
        dist.all_reduce(torch.ones(1), group=context.process_group)
        assert resources() > before
    context.close()
    gc.collect()
    assert_no_more_than(before)
    assert context.device_mesh is None
    dist.barrier()


@pytest.mark.ranks(2, timeout=120)
def test_a_hundred_builds_without_a_collective_between_them_leave_nothing(tmp_path: Path) -> None:
    """No thread, descriptor, process group, key of the store, mesh or other object is left, however many there were."""
    rank = dist.get_rank()
    dist.destroy_process_group()
    store = dist.FileStore(str(tmp_path / "store"), 2)  # type: ignore[attr-defined] # public, says torch's manual
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)

    def build(number: int) -> None:
        sizes = ParallelismSizes(tp_size=2) if number % 2 else ParallelismSizes(dp_replicate_size=2)
        separate = ("dp_cp", "tp") if number % 3 else ("tp",)  # the ranks are two, so other axes use the default group
        with MeshContext.build(FSDP2Config(), sizes, separate_groups=separate) as context:
            assert context.submesh(("dp_cp", "tp")) is not context.fsdp_mesh()

    def everything() -> tuple[int, ...]:
        dist.barrier()
        gc.collect()
        found = (*resources(), store.num_keys(), len(worlds.live_meshes()), len(gc.get_objects()))
        dist.barrier()
        return found

    for number in range(6):  # every kind of build once
        build(number)
    everything()
    before = everything()
    for number in range(102):
        build(number)
    *grown, objects = (now - then for now, then in zip(everything(), before, strict=True))
    assert max(grown) <= 0, grown
    assert objects < 102 / 2


LOOKUPS: dict[str, Callable[[Any, int], object]] = {
    "slice_mesh": lambda root, turn: compat.slice_mesh(root, ("dp_shard", "tp") if turn % 2 else "cp"),
    "slice_mesh of a list": lambda root, _: compat.slice_mesh(root, ["dp_shard", "tp"]),
    "find_submesh": lambda root, _: compat.find_submesh(root, ("dp_cp", "tp")),
    "get_flat_mesh": lambda root, turn: get_flat_mesh(root, "dp_cp" if turn % 2 else "tp"),
    "get_fsdp_dp_mesh": lambda root, _: get_fsdp_dp_mesh(root),
    "get_group": lambda root, turn: compat.get_group(root, "dp_cp" if turn % 2 else 1),
    "concatenate": lambda root, _: compat.concatenate([get_flat_mesh(root, "cp"), get_flat_mesh(root, "tp")]),
    "list_process_groups": lambda root, _: compat.list_process_groups(root),
    "flatten": lambda root, turn: compat.flatten(root, f"flat_{turn}", dims=("dp_shard", "tp")),
    "unflatten": lambda root, turn: compat.unflatten(get_flat_mesh(root, "dp_cp"), 0, (4, 4), (f"a{turn}", f"b{turn}")),
    "flatten with a group": lambda root, turn: compat.flatten(
        root, f"own_{turn}", dims=("tp",), backend_override="fake"
    ),
}


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let Python change the thread that runs as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_while(action: Callable[[], None], others: Sequence[Callable[[int], object]]) -> list[Exception | None]:
    """Run an action while threads repeat a call each until it raises; return the errors of the calls.

    After the action each call is made at least once more; `None` where it did not raise even then.
    """
    errors: list[Exception | None] = []
    together, over = threading.Barrier(len(others) + 1), threading.Event()

    def repeat(call: Callable[[int], object]) -> None:
        together.wait()
        for turn in count():
            last = over.is_set()
            try:
                call(turn)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
                errors.append(error)
                return
            if last:
                errors.append(None)
                return

    threads = [threading.Thread(target=repeat, args=(call,)) for call in others]
    for thread in threads:
        thread.start()
    together.wait()
    action()
    over.set()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("end", ["close", "abort", "destroy the world"])
def test_a_lookup_while_another_thread_closes_gives_the_documented_error(end: str, quick_switches: None) -> None:
    """Whatever is asked meanwhile works, or is a `ProcessGroupDestroyedError`; after the end it always is one."""
    for _ in range(15):
        with fake_world(32, rank=5):
            context = MeshContext.build(FSDP2Config(), SIZES)
            root = context.root_mesh()
            ends = {"close": context.close, "abort": context.abort, "destroy the world": dist.destroy_process_group}
            errors = run_while(ends[end], [partial(lookup, root) for lookup in LOOKUPS.values()])
            for error in errors:
                if type(error) is not compat.ProcessGroupDestroyedError:
                    raise AssertionError(f"{end}: {error!r}") from error
            for lookup, turn in product(LOOKUPS.values(), range(3)):
                with pytest.raises(compat.ProcessGroupDestroyedError):
                    lookup(root, turn)
            if end == "destroy the world":
                worlds.init_fake_world(32)
            assert len(worlds.live_process_groups()) == 1


def test_closing_in_several_threads_at_once_is_no_error(quick_switches: None) -> None:
    """A context that threads close and abort at the same time is closed once, and closing again is no error."""
    with fake_world(32):
        for _ in range(20):
            context = MeshContext.build(FSDP2Config(), SIZES)
            ends = [context.close, context.abort, context.close]
            errors = run_while(context.abort, [lambda _, end=end: end() for end in ends])  # type: ignore[misc]
            assert errors == [None] * len(ends)
            assert len(worlds.live_process_groups()) == 1


@pytest.mark.ranks(4)
def test_lookups_on_real_ranks_while_each_rank_closes(quick_switches: None) -> None:
    """With gloo's groups, whose end waits for threads, the lookups of other threads are told so as well."""
    for _ in range(3):
        context = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2))
        root = context.root_mesh()
        asked = [partial(lookup, root) for name, lookup in LOOKUPS.items() if "flatten" not in name]
        errors = run_while(context.close, asked)
        assert [type(error) for error in errors] == [compat.ProcessGroupDestroyedError] * len(asked), errors
        assert len(worlds.live_process_groups()) == 1
