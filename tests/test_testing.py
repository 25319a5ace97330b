"""`automodel_mesh.testing`: forked ranks, the pytest plugin, leak checks, fake worlds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist

import automodel_mesh
from automodel_mesh import compat
from automodel_mesh.testing import (
    DeviceBackend,
    LeakError,
    RankFailure,
    RanksFailed,
    fake_world,
    leak_check,
    process,
    run_ranks,
    unavailable_reason,
    worlds,
)
from automodel_mesh.testing.process import own_stacks
from tests import toy_device

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

FOREVER = 600


LAUNCHED = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), "3"),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), "8"),
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_NAME": "default",
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
"""What torchrun sets on a rank; no store listens on that port."""


def failures_of(function: Callable[..., Any], world_size: int, *args: Any, **kwargs: Any) -> RanksFailed:
    """Run ranks that are expected to fail."""
    with pytest.raises(RanksFailed) as caught:
        run_ranks(function, world_size, *args, **kwargs)
    return caught.value


def open_descriptors() -> list[str]:
    """List the open file descriptors of this process, with their files."""
    found = []
    for link in Path("/dev/fd/").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
            status = os.fstat(int(link.name))
            found.append(f"{link.name} {status.st_dev} {status.st_ino}")
    return sorted(found)


def rank_and_sum(offset: int) -> tuple[int, int]:
    """Return this rank and the sum of all ranks and offsets, computed by a collective."""
    number = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(number)
    return dist.get_rank(), int(number)


def barrier_but(rank: int, otherwise: Callable[[], Any]) -> None:
    """Wait at a barrier on every rank but one, which calls `otherwise`."""
    if dist.get_rank() == rank:
        otherwise()
    else:
        dist.barrier()


def fail_loudly() -> None:
    """Write to both streams, then raise."""
    sys.stdout.write("written to stdout\n")
    os.write(2, b"written to descriptor 2\n")
    raise ValueError("no such axis")


# --- run_ranks: return values


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_values_come_back_in_rank_order(world_size: int) -> None:
    """Every rank runs the function in one process group, and the list has its value at the rank's index."""
    total = sum(range(world_size)) + 3 * world_size
    assert run_ranks(rank_and_sum, world_size, 3) == [(rank, total) for rank in range(world_size)]


def test_keyword_arguments_reach_the_function() -> None:
    """Keyword arguments that `run_ranks` does not have itself go to the function."""
    assert run_ranks(lambda *, offset: rank_and_sum(offset)[1], 2, offset=1) == [3, 3]


def test_without_a_backend_there_is_no_process_group() -> None:
    """`backend=None` runs the function outside of any process group."""
    assert run_ranks(dist.is_initialized, 3, backend=None) == [False] * 3


def test_ranks_see_the_environment_that_torchrun_sets() -> None:
    """Ranks can be initialised from torchrun's environment variables, and the parent's environment does not change."""
    before = dict(os.environ)

    def environment() -> tuple[int, int, int]:
        dist.init_process_group("gloo", init_method="env://")
        return dist.get_rank(), int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    assert run_ranks(environment, 2, backend=None) == [(0, 0, 2), (1, 1, 2)]
    assert dict(os.environ) == before


def test_the_variables_of_a_launcher_do_not_reach_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that torchrun has started, ranks have a world of their own, also one they make themselves."""
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)

    def world_from_the_environment() -> tuple[int, list[str]]:
        dist.init_process_group("gloo")
        dist.barrier()
        return dist.get_world_size(), [name for name in os.environ if name.startswith(("TORCHELASTIC", "ROLE_"))]

    assert run_ranks(world_from_the_environment, 2, backend=None, timeout=20) == [(2, [])] * 2
    assert run_ranks(rank_and_sum, 2, 1, timeout=20) == [(0, 3), (1, 3)]


def test_large_values_and_tensors_come_back() -> None:
    """Values much larger than the capacity of a pipe are returned from all ranks; tensors keep dtype and content."""

    def value() -> tuple[bytes, torch.Tensor]:
        return bytes(20_000_000), torch.full((3,), dist.get_rank(), dtype=torch.bfloat16)

    for rank, (data, tensor) in enumerate(run_ranks(value, 4)):
        assert len(data) == 20_000_000
        assert tensor.dtype == torch.bfloat16
        assert tensor.tolist() == [rank] * 3


def test_a_value_that_cannot_be_pickled_is_an_error_that_names_it() -> None:
    """The report names the return value, its type, and what may be returned."""
    error = failures_of(threading.Lock, 2)
    assert "the return value, of type lock, cannot be sent" in str(error)
    assert "Return plain data" in str(error)


def test_no_rank_leaves_before_the_slowest_has_finished() -> None:
    """A rank that returns early does not close its connections to the others."""
    pending: list[Any] = []

    def late() -> None:
        if dist.get_rank() == 0:
            time.sleep(0.3)
            for peer in range(1, 4):
                dist.send(torch.ones(1), peer)
        else:  # gloo receives this in the background, while the rank waits to exit
            number = torch.zeros(1)
            pending.extend((number, dist.irecv(number, 0)))

    run_ranks(late, 4, timeout=20)


# --- run_ranks: failures


def test_a_failing_rank_is_reported_first_with_its_traceback_and_output() -> None:
    """The report begins with the first failure, with the frames of the test and the rank's output; others follow."""
    error = failures_of(barrier_but, 4, 2, fail_loudly)
    first = error.failures[0]
    assert (first.rank, first.kind, first.summary) == (2, "raised", "raised ValueError: no such axis")
    assert first.details.splitlines()[1].endswith("in barrier_but")
    assert 'raise ValueError("no such axis")' in first.details
    assert first.output == "written to stdout\nwritten to descriptor 2\n"
    assert str(error).startswith("4 of 4 ranks did not return\n  rank 2 raised ValueError: no such axis\n")
    assert "--- output of rank 2\nwritten to stdout" in str(error)


def test_ranks_that_wait_for_a_failed_one_are_stopped_within_seconds() -> None:
    """A failure ends the run within seconds, not at the time limit; the report has the other ranks' stacks."""
    error = failures_of(lambda: 1 / 0 if dist.get_rank() == 1 else time.sleep(FOREVER), 3, timeout=FOREVER)
    assert [(one.rank, one.kind) for one in error.failures] == [(1, "raised"), (0, "stopped"), (2, "stopped")]
    assert "ranks 0, 2 did not end within 2 s of the first failure" in str(error)
    assert "test_testing.py" in error.failures[1].details


@pytest.mark.release_independent
@pytest.mark.parametrize("below", ['  File "/parent.py", line 3 in main', "  <invalid frame>", "  ..."])
def test_stacks_end_with_the_function_of_the_test(below: str) -> None:
    """What the parent has called is left out, whatever Python writes for it; other threads stay."""
    thread = ["Thread 0x1 (most recent call first):", '  File "/other.py", line 1 in wait', ""]
    current = ["Current thread 0x2 (most recent call first):", '  File "/test.py", line 2 in hang']
    ours = f'  File "{process.__file__}", line 9 in call_function'
    assert own_stacks("\n".join([*thread, *current, ours, below, "the end"])).splitlines() == [
        *thread,
        *current,
        "the end",
    ]


def test_ranks_that_hang_are_killed_at_the_time_limit() -> None:
    """The report has the stacks of ranks that hang, in Python or in a collective, and names those that returned."""

    def hang() -> None:
        if dist.get_rank() == 0:
            return
        if dist.get_rank() == 1:
            time.sleep(FOREVER)
        dist.barrier()

    error = failures_of(hang, 4, timeout=5)
    assert [(one.rank, one.kind) for one in error.failures] == [(1, "hung"), (2, "hung"), (3, "hung")]
    assert "ranks 1-3 did not end within the time limit of 5 s\n  rank 0 returned" in str(error)
    assert "in barrier" in error.failures[1].details
    for one in error.failures:
        assert one.details.splitlines()[-1].endswith("in hang"), "frames of automodel_mesh.testing are left out"


@pytest.mark.parametrize(
    ("death", "summary"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "died by SIGKILL"),
        (lambda: os._exit(7), "left with exit status 7"),
        (lambda: os._exit(0), "left with exit status 0"),
    ],
)
def test_a_rank_that_dies_is_reported_with_its_signal_or_exit_status(death: Callable[[], None], summary: str) -> None:
    """A rank that exits without raising is reported before the ranks that fail because of it."""
    error = failures_of(barrier_but, 3, 1, death)
    assert (error.failures[0].rank, error.failures[0].kind) == (1, "died")
    assert error.failures[0].summary == summary


def test_a_crash_shows_the_python_stack() -> None:
    """The report has the Python stack of a rank that was killed by a fatal signal such as SIGSEGV."""
    error = failures_of(lambda: os.kill(os.getpid(), signal.SIGSEGV), 1, backend=None)
    assert error.failures[0].summary == "died by SIGSEGV"
    assert "Segmentation fault" in error.failures[0].details
    assert "test_testing.py" in error.failures[0].details


def test_identical_failures_are_reported_once() -> None:
    """Identical failures are printed once, with their ranks."""

    def fail() -> None:
        raise KeyError("tp")

    error = failures_of(fail, 4)
    assert len(error.failures) == 4
    assert str(error).count("Traceback") == 1
    assert "=== ranks 0-3 raised KeyError: 'tp' after " in str(error)


def test_failures_that_differ_in_numbers_are_reported_once_and_the_cause_comes_first() -> None:
    """Failures that differ in numbers only are printed once, before lost connections, and exit statuses stay apart."""

    def fail() -> None:
        if dist.get_rank() == 0:
            raise RuntimeError("Connection reset by peer")
        time.sleep(0.2)
        raise KeyError(f"rank {dist.get_rank()}")

    error = failures_of(fail, 4)
    assert error.failures[-1].rank == 0
    assert "ranks 1-3 raised KeyError: 'rank " in str(error)
    assert str(error).count("Traceback") == 2
    error = failures_of(lambda: os._exit(dist.get_rank() + 3), 2)
    assert {one.summary for one in error.failures} == {"left with exit status 3", "left with exit status 4"}
    assert "left with exit status 4" in str(error)


def test_the_error_can_be_pickled() -> None:
    """`RanksFailed` survives pickling, so that test runners can send it between processes."""
    error = RanksFailed([RankFailure(1, "died", "died by SIGKILL", "", "", 0.5)], 2)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.failures, str(copy)) == (error.failures, str(error))


@pytest.mark.parametrize(
    "outcome", [pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception, unittest.SkipTest]
)
def test_a_skip_of_every_rank_is_a_skip(outcome: type[BaseException]) -> None:
    """A skip or another outcome exception that every rank raises is raised in the parent, with its reason."""

    def stop() -> None:
        raise outcome("not on this torch")

    with pytest.raises(outcome, match="not on this torch"):
        run_ranks(stop, 3)


def test_a_skip_of_some_ranks_is_a_failure() -> None:
    """A skip that not every rank raises is reported as the failure of the ranks that raised it."""
    error = failures_of(lambda: dist.get_rank() == 0 and pytest.skip("not me"), 2)
    assert [one.rank for one in error.failures] == [0]
    assert "raised Skipped: not me (passed on only when every rank raises it)" in str(error)


# --- run_ranks: limits and cleaning up


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"world_size": 0}, "world_size is 0"),
        ({"world_size": True}, "world_size is True"),
        ({"world_size": 1, "timeout": 0}, "timeout is 0"),
        ({"world_size": 1, "device_type": "tpu"}, "device_type is 'tpu'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    """The error names the argument and its value."""
    with pytest.raises(ValueError, match=match):
        run_ranks(os.getpid, **arguments)


def test_a_process_with_a_process_group_cannot_start_ranks() -> None:
    """Ranks would inherit the group without its connections, so it is an error that says what to do."""
    with (
        fake_world(4, rank=2),
        pytest.raises(RuntimeError, match=r"is rank 2 of a process group of 4.*destroy"),
    ):
        run_ranks(os.getpid, 1)


def test_a_process_that_uses_an_accelerator_cannot_start_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator cannot be used after a fork, so it is an error (CUDA is mocked: no GPU needed)."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        with pytest.raises(RuntimeError, match="'cuda' is initialised in this process.* PYTORCH_NVML_BASED_CUDA_CHECK"):
            run_ranks(os.getpid, 1)
    toy = toy_device.register()
    assert run_ranks(toy.is_initialized, 1) == [False]
    toy.set_device(1)
    with pytest.raises(RuntimeError, match=r"'toy' is initialised in this process, .* \(device_type='toy'\)$"):
        run_ranks(os.getpid, 1)


def test_ranks_use_the_devices_of_any_accelerator_in_turn() -> None:
    """Each rank selects its device, the rank modulo the number of devices; a device type without any is an error."""
    toy = toy_device.register()
    assert run_ranks(toy.current_device, 6, backend="toyccl", device_type="toy") == [0, 1, 2, 3, 0, 1]
    assert unavailable_reason(DeviceBackend("toy", "toyccl"), 8) is None
    with pytest.raises(RanksFailed, match="device_type is 'meta', and torch sees no such device here"):
        run_ranks(os.getpid, 1, device_type="meta")


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("ending", ["return", "raise", "hang"])
def test_a_run_leaves_nothing_behind(
    world_size: int, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run, successful or not, there is no additional process, zombie, descriptor, thread or temporary file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors, threads = open_descriptors(), threading.active_count()

    def end() -> None:
        if ending == "raise":
            raise ValueError
        if ending == "hang":
            time.sleep(FOREVER)

    try:
        run_ranks(end, world_size, timeout=1 if ending == "hang" else 60)
    except RanksFailed:
        assert ending != "return"
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_child_of_a_rank_that_keeps_the_pipe_open_does_not_delay_the_run() -> None:
    """A run ends when its ranks have, even if a process that a rank has started is still running."""
    reader, writer = os.pipe()

    def leave_a_child() -> None:
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)  # returns once this test has closed the other end
            os._exit(0)
        os._exit(5)

    error = failures_of(leave_a_child, 1, backend=None)
    assert error.failures[0].summary == "left with exit status 5"
    os.close(writer)
    os.close(reader)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can kill a process when its parent ends")
def test_ranks_die_with_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the parent is killed, its ranks are killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a killed parent cannot remove the ranks' files
    reader, writer = os.pipe()

    def report_and_hang() -> None:
        os.write(writer, os.getpid().to_bytes(4, "little"))
        time.sleep(FOREVER)

    parent = os.fork()
    if parent == 0:
        try:
            run_ranks(report_and_hang, 1, backend=None)
        finally:
            os._exit(0)
    rank = int.from_bytes(os.read(reader, 4), "little")
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(writer)
    assert os.read(reader, 1) == b"", f"rank {rank} still runs: its end of the pipe is open"
    os.close(reader)


def test_uncaptured_ranks_write_where_the_parent_writes(capfd: pytest.CaptureFixture[str]) -> None:
    """With `capture=False` ranks write where the parent writes; otherwise a success shows none of their output."""
    run_ranks(lambda: os.write(1, b"kept\n"), 1, backend=None)
    run_ranks(lambda: os.write(1, b"shown\n"), 1, backend=None, capture=False)
    assert capfd.readouterr().out == "shown\n"


def test_threads_of_the_parent_raise_no_warning_and_ranks_compute() -> None:
    """With torch's thread pool and another thread in the parent, ranks start without a warning and do not hang."""
    _ = torch.ones(600, 600) @ torch.ones(600, 600)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        values = run_ranks(lambda: float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()), 2)
    finally:
        done.set()
        thread.join()
    assert values == [600.0**3] * 2


@hypothesis.settings(deadline=None, max_examples=5, database=None)
@hypothesis.given(world_size=st.integers(1, 4), offset=st.integers(0, 9))
def test_ranks_run_inside_a_property_test(world_size: int, offset: int) -> None:
    """Each example of a hypothesis test can start its own ranks."""
    hypothesis.assume(world_size * offset != 4)
    total = sum(range(world_size)) + offset * world_size
    assert run_ranks(rank_and_sum, world_size, offset) == [(rank, total) for rank in range(world_size)]


# --- leaks and worlds


@pytest.mark.ranks(2)
def test_a_leaked_process_group_is_named() -> None:
    """The leak check names the group and its ranks, and passes once the group is destroyed."""
    groups: list[Any] = []
    with pytest.raises(LeakError, match=r"process group '.+' of ranks \[0, 1\]"), leak_check():
        groups.append(dist.new_group([0, 1]))
    dist.barrier()  # no rank closes a connection that another one is still making
    with leak_check():
        dist.destroy_process_group(groups.pop())
    with leak_check():
        groups.append(dist.new_group([1, 0]))
        dist.barrier()
        dist.destroy_process_group(groups.pop())


@pytest.mark.ranks(2)
def test_a_leaked_mesh_is_named() -> None:
    """The leak check shows a mesh that is still referred to, and passes once it is not."""
    kept: list[Any] = []
    with (
        pytest.raises(LeakError, match=r"0 process group\(s\), 1 mesh\(es\)\n  mesh DeviceMesh"),
        leak_check(),
    ):
        kept.append(compat.init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)))
    with leak_check():
        kept.clear()
    with leak_check():
        compat.init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))


@pytest.mark.ranks(2)
def test_what_existed_before_the_block_is_no_leak() -> None:
    """Only groups and meshes made in the block are leaks, even if an equal mesh existed before."""
    meshes = [compat.init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))]
    with leak_check():
        pass
    with pytest.raises(LeakError, match=r"1 mesh\(es\)"), leak_check():
        meshes.append(compat.init_device_mesh("cpu", (2,), mesh_dim_names=("dp",)))
    assert meshes[0] == meshes[1]


def test_a_block_that_raises_keeps_its_own_exception() -> None:
    """A block that raises is not checked for leaks: its own exception is raised."""
    with pytest.raises(ZeroDivisionError), leak_check():
        _ = 1 / 0


@pytest.mark.ranks(4)
def test_a_clean_test_on_ranks_passes_the_check(no_leaks: None) -> None:
    """`no_leaks` on ranks accepts the default group that `run_ranks` made, and meshes without references."""
    compat.init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))


def test_a_fake_world_ends_with_its_block(fake_world: Callable[..., Any], no_leaks: None) -> None:
    """A fake world has the given size and rank, and is destroyed at the end of its block, also after an error."""
    with fake_world(16384, rank=3):
        assert (dist.get_rank(), dist.get_world_size()) == (3, 16384)
    with pytest.raises(KeyError), fake_world(8):
        raise KeyError
    assert not dist.is_initialized()


@pytest.mark.parametrize(("world_size", "rank"), [(0, 0), (4, 4), (4, -1)])
def test_a_rank_outside_the_fake_world_is_refused(world_size: int, rank: int) -> None:
    """The error names rank and world size."""
    with (
        pytest.raises(ValueError, match=f"rank {rank} is not in a world of {world_size}"),
        fake_world(world_size, rank),
    ):
        pass


def test_a_second_fake_world_is_refused() -> None:
    """A process has one world at a time, and the error names the size of the one it has."""
    with (
        fake_world(8),
        pytest.raises(RuntimeError, match="belongs to a process group of 8 ranks"),
        fake_world(4),
    ):
        pass


def test_the_mesh_registry_is_empty_at_the_start_of_a_test(mesh_registry_reset: None) -> None:
    """With the fixture a test starts with an empty mesh registry, and meshes work as usual."""
    with fake_world(8, rank=5):
        mesh = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        assert compat.get_root_mesh(compat.slice_mesh(mesh, ("tp",))) is mesh


# --- the plugin, used by this suite


@pytest.fixture
def made_once() -> int:
    """Return the id of the process that computes the fixture."""
    return os.getpid()


@pytest.mark.ranks(3)
@pytest.mark.parametrize("factor", [1, 5])
def test_fixtures_are_computed_once_in_the_parent(made_once: int, factor: int) -> None:
    """Ranks inherit fixtures and parameters, and run in processes of their own."""
    assert made_once == os.getppid()
    assert rank_and_sum(factor)[1] == 3 + 3 * factor


@pytest.mark.ranks(2)
class TestOnRanks:
    """The marker works on a class, and a test's own marker overrides it."""

    def test_a_test_inherits_the_marker_of_its_class(self) -> None:
        """A test without a marker of its own has the marker of its class."""
        assert dist.get_world_size() == 2

    @pytest.mark.ranks(3, backend="gloo", timeout=30)
    def test_a_marker_of_a_test_overrides_that_of_its_class(self) -> None:
        """A test's own marker overrides that of its class."""
        assert dist.get_world_size() == 3


@pytest.mark.ranks(2, backend=None)
def test_ranks_without_a_backend_have_no_process_group() -> None:
    """With `backend=None` in the marker, ranks have no process group."""
    assert not dist.is_initialized()


@pytest.mark.ranks(2)
@hypothesis.settings(deadline=None, max_examples=5, database=None)
@hypothesis.given(offset=st.integers(0, 1000))
def test_every_rank_gets_the_same_example(offset: int) -> None:
    """With @given, examples are drawn in the parent; `assume` works on ranks."""
    hypothesis.assume(offset != 4)
    assert rank_and_sum(offset)[1] == 1 + 2 * offset


@pytest.mark.ranks(2)
def test_a_rank_test_runs_on_each_device_and_backend(device_backend: DeviceBackend) -> None:
    """The process group has the fixture's backend, and reduces a tensor on the fixture's device."""
    assert dist.get_backend() == device_backend.backend
    number = torch.ones(1, device=device_backend.device_type)
    dist.all_reduce(number)
    assert number.item() == 2


# --- the plugin, used by another suite

CONFTEST = 'pytest_plugins = ["automodel_mesh.testing"]'


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Return a function that runs a test module as a user's suite which loads the plugin; warnings are errors."""
    pytester.makeconftest(CONFTEST)

    def run(body: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile("import os, time, pytest, torch, torch.distributed as dist\n" + body)
        return pytester.runpytest_inprocess("-rA", "-W", "error", "-p", "no:cacheprovider", *options)

    return run


def test_a_report_shows_the_ranks_and_no_frames_of_the_plugin(suite: Callable[..., pytest.RunResult]) -> None:
    """The report of a failed test has each rank's traceback and output; that of a passed test, the output."""
    result = suite(
        """
@pytest.mark.ranks(2)
def test_rank_1_fails():
    print("hello from rank", dist.get_rank())
    assert dist.get_rank() == 0

@pytest.mark.ranks(2)
def test_all_ranks_pass():
    print("greetings from rank", dist.get_rank())
"""
    )
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert "assert 1 == 0" in text
    assert "hello from rank 1" in text
    assert "greetings from rank 0" in text
    assert "run_job" not in text
    assert "testing/ranks.py" not in text


def test_outcomes_of_tests_on_ranks_are_counted_as_usual(suite: Callable[..., pytest.RunResult]) -> None:
    """Skips, expected failures, leaks and wrong markers are counted like those of other tests."""
    result = suite(
        """
import unittest

@pytest.mark.ranks(2)
def test_all_ranks_skip():
    pytest.skip("skipped by all ranks")

@pytest.mark.ranks(2)
@pytest.mark.xfail(raises=AssertionError, strict=True)
def test_an_expected_failure():
    assert False

@pytest.mark.ranks(2)
def test_a_leak_on_ranks(no_leaks):
    dist.new_group([0, 1])

def test_a_leak_in_this_process(no_leaks):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

def test_the_group_of_a_leak_is_still_there():
    dist.destroy_process_group()

@pytest.mark.ranks("two")
def test_a_marker_with_a_wrong_value(): pass

@pytest.mark.ranks(2, ranks=3)
def test_a_marker_with_an_unknown_argument(): pass

@pytest.mark.ranks(2)
async def test_a_marked_coroutine(): pass

class TestUnit(unittest.TestCase):
    @pytest.mark.ranks(2)
    def test_a_marked_method_of_unittest(self): pass
"""
    )
    text = result.stdout.str()
    assert "skipped by all ranks" in text
    assert "of ranks [0, 1]" in text
    assert "world_size is 'two'" in text
    assert "unexpected keyword argument 'ranks'" in text
    assert "on plain functions: call asyncio.run() inside" in text
    assert "on functions and plain classes" in text
    # Leak on ranks: a failure. Leak in this process: the body passed, the check after it is the error. The
    # four wrong uses are errors of the set-up.
    result.assert_outcomes(passed=2, failed=1, errors=5, skipped=1, xfailed=1)


def test_tests_without_their_device_are_skipped(
    suite: Callable[..., pytest.RunResult],
) -> None:
    """Each device and backend is one test, skipped with the reason; those on a GPU carry `cuda`."""
    body = """
@pytest.mark.ranks(2)
def test_the_group_has_the_backend(device_backend):
    assert dist.get_backend() == device_backend.backend
"""
    result = suite(body, "-m", "not cuda")
    result.assert_outcomes(passed=1, deselected=2)
    if torch.cuda.device_count() == 0:
        result = suite(body, "-m", "cuda")
        result.assert_outcomes(skipped=2, deselected=1)
        result.stdout.fnmatch_lines("*no device of type 'cuda': torch * sees none on this machine*")


def test_nccl_tests_are_skipped_with_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL needs one GPU for each rank, gloo ranks can share one (the count is mocked: no GPU needed)."""
    monkeypatch.setattr(worlds, "_device_count", lambda _: 1)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    reason = unavailable_reason(DeviceBackend("cuda", "nccl"), 8)
    assert reason == "NCCL takes one GPU for each rank: 8 ranks, 1 GPU(s) on this machine"
    assert unavailable_reason(DeviceBackend("cuda", "nccl"), 1) is None
    assert unavailable_reason(DeviceBackend("cuda", "gloo"), 8) is None
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert unavailable_reason(DeviceBackend("cuda", "nccl"), 1) == f"torch {torch.__version__} is built without nccl"


@pytest.mark.release_independent
def test_this_suite_runs_each_test_in_a_process_of_its_own() -> None:
    """Plain `pytest` forks each test of this suite, so that no process group reaches the next one."""
    assert multiprocessing.parent_process() is not None  # pytest-forked starts it; that of pytest-xdist has none


PROGRAM = """
import sys
sys.modules["pytest"] = None  # importing it raises, as if it were not installed
from automodel_mesh.testing.ranks import run_ranks
print(run_ranks(int, 2))
del sys.modules["pytest"]
import automodel_mesh.testing
"""


def test_ranks_need_no_pytest_and_raise_no_warning() -> None:
    """Ranks run without pytest installed; imports and ranks give no warning with `python -W error`."""
    root = Path(automodel_mesh.__file__).parent.parent
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[0, 0]\n", "")
