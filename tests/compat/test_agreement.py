"""Ranks that do not do the same: each operation that makes groups ends in time, on every rank, and leaves nothing."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, compat
from automodel_mesh.compat import agreement, worlds
from automodel_mesh.errors import RanksDisagreeError
from automodel_mesh.testing import RanksFailed, fake_world, ranks, run_ranks
from tests.pages import blocks, run

WAIT: Final = 1.0
"""Seconds that an operation of these tests waits; a store in a file counts whole seconds."""

RANKS: Final = 4
ODD: Final = 2
"""The rank that does not do what the others do."""

Operation = Callable[[DeviceMesh, str], Any]


def own_group(*names: str) -> dict[Any, Any]:
    """Ask for groups that no other axis uses, so that they must be made."""
    return {name: compat.GroupSpec(owner=name) for name in names}


def init(root: DeviceMesh, tag: str) -> DeviceMesh:
    """Make a root mesh."""
    names = (f"a{tag}", f"b{tag}")
    return compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=names, timeout=timedelta(seconds=WAIT))


def flatten(root: DeviceMesh, tag: str) -> DeviceMesh:
    """Fold both axes of the root."""
    return compat.flatten(root, f"flat{tag}", backend_override=compat.GroupSpec(owner=tag))


def unflatten(root: DeviceMesh, tag: str) -> DeviceMesh:
    """Split an axis of the root."""
    names = (f"c{tag}", f"d{tag}")
    return compat.unflatten(root, "y", (2, 1), names, backend_override=own_group(*names))


def refold(root: DeviceMesh, tag: str) -> DeviceMesh:
    """Fold both axes of the root and split the result."""
    names = (f"e{tag}", f"f{tag}")
    return compat.refold(root, ("x", "y"), (1, 4), names, backend_override=own_group(*names))


def build(root: DeviceMesh, tag: str) -> DeviceMesh:
    """Build a context; the tag asks for other sizes."""
    sizes = ParallelismSizes(tp_size=4 if tag.startswith("other") else 2)
    mesh = MeshContext.build(FSDP2Config(), sizes, timeout_minutes=WAIT / 60).device_mesh
    assert mesh is not None
    return mesh


OPERATIONS: Final[dict[str, Operation]] = {
    "init_device_mesh": init,
    "flatten": flatten,
    "unflatten": unflatten,
    "refold": refold,
    "MeshContext.build": build,
}

each_operation = pytest.mark.parametrize("name", OPERATIONS)


def make_root() -> DeviceMesh:
    """Make the mesh that the operations work on; what is derived from it waits as long as it does."""
    return compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"), timeout=timedelta(seconds=WAIT))


def check_communication(mesh: DeviceMesh) -> None:
    """Require that the groups of a mesh are there and add up."""
    for dim in range(mesh.ndim):
        group = compat.get_group(mesh, dim)
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total, group=group)
        assert int(total) == sum(dist.get_process_group_ranks(group))


def check_failure_and_recovery(name: str, fault: Callable[[Operation, DeviceMesh], Any]) -> str:
    """Have one rank misbehave and all others call an operation; return the message of this rank's error.

    Required of every cell: an error on every rank, in time; nothing left behind; the next operation works.
    """
    operation = OPERATIONS[name]
    root = make_root()
    groups = worlds.live_process_groups()
    began = time.monotonic()
    message = ""
    try:
        if dist.get_rank() == ODD:
            fault(operation, root)
        else:
            operation(root, "1")
    except (RanksDisagreeError, ValueError, OSError) as error:
        message = str(error)
    assert message or dist.get_rank() == ODD
    # Another rank may still wait for the one that is late: at most as long again, and a leader's time to look around.
    assert time.monotonic() - began < 4 * WAIT + 5
    assert worlds.live_process_groups() == groups
    dist.barrier()
    check_communication(operation(root, "2"))
    return message


def run_on_ranks(body: Callable[[], Any]) -> list[Any]:
    """Run a body on the ranks of these tests, and return what each returned."""
    return run_ranks(body, RANKS, timeout=40.0)


def do_nothing(operation: Operation, root: DeviceMesh) -> None:
    """Do not come."""


def ask_for_more(operation: Operation, root: DeviceMesh) -> None:
    """Call the same function with other arguments."""
    operation(root, "other")


def split(operation: Operation, root: DeviceMesh) -> None:
    """Call another function."""
    unflatten(root, "1")


@each_operation
def test_a_rank_that_does_not_come_is_named(name: str) -> None:
    """The other ranks wait no longer than the timeout, and say which rank is missing and what they asked for."""
    messages = run_on_ranks(partial(check_failure_and_recovery, name, do_nothing))
    for message in messages[:ODD] + messages[ODD + 1 :]:
        assert f"within 1 s, rank {ODD} did not call this" in message
        assert message.startswith(name)
    assert not messages[ODD]


@each_operation
def test_a_rank_that_comes_late_is_refused_too(name: str) -> None:
    """A rank that calls after the others gave up gets the same kind of error."""

    def late(operation: Operation, root: DeviceMesh) -> None:
        time.sleep(2.5 * WAIT)
        operation(root, "1")

    messages = run_on_ranks(partial(check_failure_and_recovery, name, late))
    assert f"rank {ODD} did not call this" in messages[0]
    assert "ranks 0, 1, 3 did not call this" in messages[ODD]


@each_operation
def test_ranks_that_ask_for_different_things_are_told_who_asked_what(name: str) -> None:
    """At once, not at the timeout, on every rank; nothing was made."""
    messages = run_on_ranks(partial(check_failure_and_recovery, name, ask_for_more))
    for message in messages:
        assert f"rank {ODD} asks for {name}" in message
        assert "No process group was made" in message


def test_ranks_that_call_different_functions_are_told_which() -> None:
    """The message has both calls."""
    messages = run_on_ranks(partial(check_failure_and_recovery, "flatten", split))
    for message in messages:
        assert f"rank {ODD} asks for unflatten(" in message
        assert " asks for flatten(" in message


@each_operation
def test_a_refusal_on_one_rank_reaches_all(name: str) -> None:
    """The rank that asked for something impossible gets its own error, the others that this rank was refused."""

    def wrong(operation: Operation, root: DeviceMesh) -> Any:
        if name == "init_device_mesh":
            return compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "x"))
        if name == "MeshContext.build":
            return MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=3))
        if name == "flatten":
            return compat.flatten(root, "x")
        if name == "unflatten":
            return compat.unflatten(root, "y", (3, 1), ("c", "d"))
        return compat.refold(root, ("x", "y"), (3, 1), ("c", "d"))

    messages = run_on_ranks(partial(check_failure_and_recovery, name, wrong))
    for message in messages[:ODD] + messages[ODD + 1 :]:
        assert f"rank {ODD} was refused (" in message
    assert messages[ODD]
    assert "was refused" not in messages[ODD]


@each_operation
def test_groups_that_one_rank_cannot_make_are_undone_on_all(name: str) -> None:
    """An error in the middle of making groups is shown on every rank, and no group stays."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no descriptor left")

    def in_the_middle(operation: Operation, root: DeviceMesh) -> None:
        real = dist.new_group
        dist.new_group = fail
        try:
            operation(root, "1")
        finally:
            dist.new_group = real

    messages = run_on_ranks(partial(check_failure_and_recovery, name, in_the_middle))
    assert messages[ODD] == "no descriptor left"
    for message in messages[:ODD] + messages[ODD + 1 :]:
        assert f"rank {ODD} could not make its groups: OSError: no descriptor left" in message


@each_operation
def test_a_stopped_rank_is_named_and_can_go_on_later(name: str, tmp_path: Path) -> None:
    """A rank that is suspended is like one that does not come; once it goes on, the next operation works."""
    pid_file = tmp_path / "pid"

    def suspended(operation: Operation, root: DeviceMesh) -> None:
        pid_file.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        operation(root, "1")

    def body() -> str:
        operation, root, message = OPERATIONS[name], make_root(), ""
        try:
            if dist.get_rank() == ODD:
                suspended(operation, root)
            else:
                operation(root, "1")
        except RanksDisagreeError as error:
            message = str(error)
        if dist.get_rank() == 0:
            os.kill(int(pid_file.read_text()), signal.SIGCONT)
        dist.barrier()
        check_communication(operation(root, "2"))
        return message

    messages = run_on_ranks(body)
    for message in messages[:ODD] + messages[ODD + 1 :]:
        assert f"rank {ODD} did not call this" in message


@each_operation
def test_a_killed_rank_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The survivors end within the timeout, with an error that names the dead rank."""
    monkeypatch.setattr(ranks, "GRACE_SECONDS", 20.0)

    def body() -> None:
        root = make_root()
        if dist.get_rank() == ODD:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            OPERATIONS[name](root, "1")
        except RanksDisagreeError as error:
            (tmp_path / str(dist.get_rank())).write_text(str(error))

    with pytest.raises(RanksFailed) as caught:
        run_on_ranks(body)
    assert [failure.rank for failure in caught.value.failures] == [ODD]
    for rank in set(range(RANKS)) - {ODD}:
        assert f"rank {ODD} did not call this" in (tmp_path / str(rank)).read_text()


@pytest.mark.ranks(RANKS)
def test_the_example_of_the_documentation_prints_what_it_says() -> None:
    """The how-to's program runs as written, and each rank prints the message shown, whoever comes first."""
    page = (Path(__file__).parents[2] / "docs/how-to/ranks-that-disagree.md").read_text()
    (program,), (shown,) = blocks(page, "python"), blocks(page, "text")
    printed = run("disagree.py", program.replace("dist.destroy_process_group()", ""))
    words = [" ".join(text.split()) for text in (printed, shown)]
    asked = [set(re.findall(r"rank \d asks for refold\(.*?0, 1, 2, 3\)", text)) for text in words]
    assert len(asked[0]) == 2
    numbers = [{re.sub(r"rank \d", "rank N", request) for request in requests} for requests in asked]
    assert numbers[0] == numbers[1]
    assert words[0].partition(":")[0] == words[1].partition(":")[0]
    assert words[0].rpartition(")")[2] == words[1].rpartition(")")[2]


@pytest.mark.ranks(RANKS)
def test_a_backend_that_torch_does_not_have_is_refused_before_a_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown or missing backend is a `ValueError` on every rank, and what is asked for afterwards works."""
    root = make_root()
    groups = worlds.live_process_groups()
    with pytest.raises(
        ValueError, match=r"backend 'glooo' is not known to torch \(did you mean 'gloo'\?\): give one of gloo"
    ):
        compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"), backend_override={"b": "glooo"})
    with pytest.raises(ValueError, match="backend 'glooo' is not known"):
        compat.flatten(root, "all", backend_override="cpu:glooo")
    monkeypatch.setattr(dist, "is_backend_available", lambda _: False)
    with pytest.raises(ValueError, match="backend 'gloo': this torch was built without it"):
        compat.flatten(root, "all", backend_override="gloo")
    monkeypatch.undo()
    assert worlds.live_process_groups() == groups
    check_communication(compat.flatten(root, "all", backend_override="gloo"))


@pytest.mark.ranks(RANKS)
def test_lookups_do_not_meet() -> None:
    """Whatever makes no group can be called on one rank alone."""
    root = make_root()
    flat = compat.flatten(root, "flat")
    if dist.get_rank() == ODD:
        assert compat.flatten(root, "flat") is flat
        assert compat.slice_mesh(root, "flat") is flat
        compat.concatenate([compat.slice_mesh(root, "x"), compat.slice_mesh(root, "y")])
        compat.flatten(root, "everything")  # the ranks of the world have a group
    dist.barrier()


@pytest.mark.ranks(RANKS)
def test_meshes_of_two_halves_of_the_world_are_folded_apart() -> None:
    """Each half agrees with itself: a mesh that torch made over existing groups is flattened on both at once."""
    half = dist.get_rank() // 2
    halves: list[Any] = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mesh = DeviceMesh.from_group(halves[half], "cpu", mesh_dim_names=("h",))
    split = compat.unflatten(mesh, "h", (2, 1), ("a", "b"))
    check_communication(split)
    assert dist.get_process_group_ranks(compat.get_group(split, "a")) == [2 * half, 2 * half + 1]


@pytest.mark.ranks(RANKS)
def test_threads_of_a_rank_make_one_group() -> None:
    """Two threads that flatten the same axes at once get one mesh."""
    root = make_root()
    with ThreadPoolExecutor(4) as pool:
        meshes = list(pool.map(lambda _: flatten(root, "t"), range(4)))
    assert all(mesh is meshes[0] for mesh in meshes)
    dist.barrier()


def test_an_operation_that_is_over_refers_to_no_process_group() -> None:
    """What the ranks made stays with the mesh and with torch alone, so that a destroyed group can be freed."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        compat.flatten(root, "all", backend_override=compat.GroupSpec(owner="all"))
        over = [thing for thing in gc.get_objects() if type(thing) is agreement.Operation]
        assert [operation.made for operation in over] == [[], []]


@pytest.mark.parametrize("world", [2, 65_536])
def test_the_number_of_store_operations_does_not_grow_with_the_world(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank calls the store as often in a world of 65,536 as in one of two."""
    counted: list[str] = []

    class Counted:
        """A store in memory in which all other ranks have come already."""

        timeout = timedelta(seconds=WAIT)

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                counted.append(name)
                return {"add": world, "check": True, "compare_set": args[-1], "get": b"{}"}.get(name)

            return call

    with fake_world(world):
        monkeypatch.setattr(agreement, "PrefixStore", lambda *_: Counted())
        monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
        with agreement.operation("nothing", range(world)) as current:
            current.agree("")
    # The last to come deletes what the operation before has left.
    kept = [name for name in counted if name != "delete_key"]
    assert sorted(kept) == sorted([*["add"] * 3, *["compare_set"] * 3, *["set"] * 2, *["wait"] * 2, *["get"] * 2])
    assert counted.count("delete_key") == 7
