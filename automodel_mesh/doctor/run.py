"""`run_checks` runs checks on local gloo ranks of the installed torch, and returns a `Report`."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

import torch.distributed as dist

from automodel_mesh.doctor.checks import CHECKS, Check
from automodel_mesh.doctor.report import CheckResult, Report, Status
from automodel_mesh.doctor.world import World, mesh_shape
from automodel_mesh.testing.ranks import run_ranks
from automodel_mesh.testing.report import RankFailure, RanksFailed

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


class Listener(Protocol):
    """Gets the progress of a run: one call at a time, not always from the same thread."""

    def started(self, check: Check) -> None:
        """Called when a check starts."""

    def finished(self, result: CheckResult) -> None:
        """Called when a check has ended on all ranks."""


def run_checks(
    ranks: int,
    *,
    timeout: float = 60.0,
    checks: Sequence[Check] = CHECKS,
    listener: Listener | None = None,
) -> Report:
    """Run checks on local gloo ranks.

    Checks run one after the other on the same ranks. When one fails, its ranks are ended and the remaining checks
    run on new ones, so a rank that hangs costs its time limit and no other check.

    Args:
        ranks: how many ranks to start, at least 1. With fewer than 8 some axes have one rank only, and no
            flattened axis is really non-contiguous.
        timeout: seconds that one set of ranks may take, more than 0.
        checks: the checks; by default the whole contract.
        listener: is called when a check starts and ends.

    Returns:
        The report. A check that fails is a result, not an exception.

    Raises:
        ValueError: `ranks` or `timeout` is out of range.
        OSError: the listener raised it, as when it writes to a closed pipe.
        RuntimeError: this process cannot be forked: it has initialised CUDA, or belongs to a process group.
    """
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}: give the number of ranks to start, at least 1")
    start_time = time.perf_counter()
    run = _Run(checks, listener)
    while len(run.results) < len(checks):
        run.run_on_new_ranks(ranks, timeout)
    return Report(ranks, tuple(run.results), time.perf_counter() - start_time, mesh_shape(ranks))


class _Run:
    """Runs checks on one set of ranks after the other, and collects their results.

    Rank 0 writes a line to a pipe when a check starts, and one when it has passed on all ranks.
    """

    def __init__(self, checks: Sequence[Check], listener: Listener | None) -> None:
        self.results: list[CheckResult] = []
        self._checks = checks
        self._listener = listener
        self._output_error: OSError | None = None
        self._check_started: float | None = None  # when the running check started on the current ranks

    def run_on_new_ranks(self, ranks: int, timeout: float) -> None:
        """Run the next checks on one set of ranks, up to the first that fails."""
        seconds = 0.0
        failures: tuple[RankFailure, ...] = ()
        with self._reading_events() as pipe:
            try:
                seconds = run_ranks(_run_on_rank, ranks, self._checks_for_one_world(), pipe, timeout=timeout)[0]
            except RanksFailed as error:
                failures = error.failures
        if failures and self._check_started is not None:
            seconds = time.perf_counter() - self._check_started
        # The last check has passed only when all ranks have ended without a failure, so no rank reports it.
        self._add("failed" if failures else "passed", seconds, failures)
        if self._output_error is not None:
            raise self._output_error
        if self._check_started is None:  # the ranks did not start
            while len(self.results) < len(self._checks):
                self._add("not run", 0.0)

    def _checks_for_one_world(self) -> Sequence[Check]:
        left = self._checks[len(self.results) :]
        if left[0].own_world:
            return left[:1]
        end = next((index for index, check in enumerate(left) if check.own_world), len(left))
        return left[:end]

    @contextmanager
    def _reading_events(self) -> Generator[int, None, None]:
        """Yield the writing end of a pipe, whose lines a thread reads until the block ends.

        The ranks are forked while the thread runs. That is safe: the thread waits in a read, and holds no lock that a
        rank could need, because nothing is written before all ranks have been forked.
        """
        self._check_started = None
        reader, writer = os.pipe()
        thread = threading.Thread(target=self._read_events, args=(reader,), daemon=True)
        thread.start()
        try:
            yield writer
        finally:
            os.close(writer)
            thread.join()

    def _read_events(self, reader: int) -> None:
        with open(reader) as lines:
            for line in lines:
                event, _, seconds = line.partition(" ")
                if event == "passed":
                    self._add("passed", float(seconds))
                else:
                    self._check_started = time.perf_counter()
                    check = self._checks[len(self.results)]
                    self._report("started", check)

    def _add(self, status: Status, seconds: float, failures: tuple[RankFailure, ...] = ()) -> None:
        check = self._checks[len(self.results)]
        result = CheckResult(check.name, check.promise, status, seconds, failures)
        self.results.append(result)
        self._report("finished", result)

    def _report(self, event: Literal["started", "finished"], what: Check | CheckResult) -> None:
        """Call the listener, until it cannot write any more: the reader of its output may have gone."""
        if self._listener is None or self._output_error is not None:
            return
        try:
            getattr(self._listener, event)(what)
        except OSError as error:
            self._output_error = error  # raised by the main thread, once the ranks have ended


def _run_on_rank(checks: Sequence[Check], pipe: int) -> float:
    """Run checks on one rank; rank 0 reports each start and pass. Return the seconds that the last check took."""
    world = World(dist.get_rank(), dist.get_world_size())

    def report(event: str) -> None:
        if world.rank == 0:
            os.write(pipe, f"{event}\n".encode())

    seconds = 0.0
    for check in checks:
        report("started")
        start_time = time.perf_counter()
        check.run(world)
        if check is not checks[-1]:
            # Passed means passed on all ranks; and no rank starts the next check while another one can still fail.
            dist.barrier()
        seconds = time.perf_counter() - start_time
        if check is not checks[-1]:
            report(f"passed {seconds}")
    return seconds
