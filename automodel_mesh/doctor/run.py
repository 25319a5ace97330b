"""Runs the contract of `automodel_mesh.compat` for real, on local gloo ranks of the installed torch.

`run_checks` returns what it found as plain dataclasses. The checks themselves are in `checks.py`; `command.py` shows
the results.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.doctor.checks import CHECKS, Check, World, mesh_shape
from automodel_mesh.testing.ranks import run_ranks
from automodel_mesh.testing.report import RankFailure, RanksFailed

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence


DEFAULT_RANKS: Final = 8
"""The smallest number of ranks that gives three axes of more than one rank, which the hardest cases need."""

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds one set of ranks may take: about twenty times what it needs on two cores."""

Status = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        name: the name of the check.
        promise: its promise.
        status: `"passed"` on every rank, `"failed"` on one at least, or `"not run"` where no ranks could be
            started.
        seconds: how long it took, until the last rank had finished it.
        failures: what each rank did that did not finish it, the cause first; empty if it passed.
    """

    name: str
    promise: str
    status: Status
    seconds: float
    failures: tuple[RankFailure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the promise held on every rank."""
        return self.status == "passed"


@dataclass(frozen=True)
class Environment:
    """What is being examined: versions as text.

    Attributes:
        torch: the full version of the installed torch, local parts such as `+cu130` included.
        python: the version of Python.
        platform: the operating system and machine.
        era: the module of `automodel_mesh.compat` that serves this torch.
        minimum_torch: the oldest supported torch.
        newest_tested_torch: the newest torch the suite has run on.
    """

    torch: str
    python: str
    platform: str
    era: str
    minimum_torch: str
    newest_tested_torch: str


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        environment: what was examined.
        ranks: the number of ranks.
        mesh_shape: the sizes of the axes `pp`, `dp` and `tp` of the mesh that most checks share.
        results: one for each check, in the order they ran.
        seconds: how long all of it took.
    """

    environment: Environment
    ranks: int
    mesh_shape: tuple[int, int, int]
    results: tuple[CheckResult, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(result.passed for result in self.results)


class Watcher(Protocol):
    """Is told how a run goes on. One call at a time, not always from the same thread."""

    def started(self, check: Check) -> None:
        """A check begins."""

    def finished(self, result: CheckResult) -> None:
        """A check has ended, on all ranks."""


# --- running


def describe_environment() -> Environment:
    """Name the versions in use.

    Returns:
        The versions of torch, Python and the platform, and the torch releases that are supported.
    """
    return Environment(
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        era=compat.ERA_NAME,
        minimum_torch=str(compat.MINIMUM_TORCH),
        newest_tested_torch=str(compat.NEWEST_TESTED_TORCH),
    )


def run_checks(
    ranks: int = DEFAULT_RANKS,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    checks: Sequence[Check] | None = None,
    watch: Watcher | None = None,
) -> Report:
    """Run checks on local gloo ranks, and report what came of each.

    Checks share one set of ranks, one after the other. Where one fails the ranks are given up, whatever state
    they are in, and the remaining checks run on new ones; so a rank that hangs costs its time limit and no
    further check.

    Args:
        ranks: how many ranks to start, at least 2. With fewer than 8 some axes have one rank only, and a
            flattened axis whose ranks do not lie side by side cannot be had.
        timeout: seconds that one set of ranks may take, more than 0.
        checks: what to check; by default the whole contract, `CHECKS`.
        watch: is told when a check begins and ends.

    Returns:
        The report. A check that fails is a result, not an exception.

    Raises:
        ValueError: `ranks` or `timeout` is out of range.
        RuntimeError: this process cannot be forked: it has initialised CUDA, or belongs to a process group
            itself.
    """
    if ranks < 2:
        raise ValueError(f"ranks is {ranks}: a process group worth checking has at least 2")
    began = time.perf_counter()
    results: list[CheckResult] = []
    planned = CHECKS if checks is None else tuple(checks)
    while left := planned[len(results) :]:
        progress = _run_world(_checks_of_one_world(left), ranks, timeout, watch)
        results += progress.results
        if not progress.started:
            results += [_not_run(check, watch) for check in planned[len(results) :]]
    seconds = time.perf_counter() - began
    return Report(describe_environment(), ranks, mesh_shape(ranks), tuple(results), seconds)


def _checks_of_one_world(left: Sequence[Check]) -> Sequence[Check]:
    if left[0].own_world:
        return left[:1]
    end = next((index for index, check in enumerate(left) if check.own_world), len(left))
    return left[:end]


def _run_world(checks: Sequence[Check], ranks: int, timeout: float, watch: Watcher | None) -> _Progress:
    """Run checks on one set of ranks, up to the first that fails."""
    progress = _Progress(checks, watch)
    last_seconds = 0.0
    failures: tuple[RankFailure, ...] = ()
    with progress.following() as pipe:
        try:
            last_seconds = run_ranks(_on_rank, ranks, checks, pipe, timeout=timeout)[0]
        except RanksFailed as error:
            failures = error.failures
    # The last check is not passed before all ranks have ended well, so it is told here and not by a rank.
    progress.end(last_seconds, failures)
    return progress


def _not_run(check: Check, watch: Watcher | None) -> CheckResult:
    result = CheckResult(check.name, check.promise, "not run", 0.0)
    if watch is not None:
        watch.finished(result)
    return result


class _Progress:
    """Follows the first rank through the checks of one world, and passes on what it tells."""

    def __init__(self, checks: Sequence[Check], watch: Watcher | None) -> None:
        self.results: list[CheckResult] = []
        self._checks = checks
        self._watch = watch
        self._began: float | None = None

    @property
    def started(self) -> bool:
        """Whether the ranks have met and begun."""
        return self._began is not None

    @contextmanager
    def following(self) -> Generator[int, None, None]:
        """Read what a rank writes to the pipe whose end this gives, in a thread, until the block ends.

        The thread is there when the ranks are forked, which is safe: it then waits in a read, holding nothing
        that a rank could ask for, as no rank writes before all of them have met.
        """
        reader, writer = os.pipe()
        thread = threading.Thread(target=self._follow, args=(reader,), daemon=True)
        thread.start()
        try:
            yield writer
        finally:
            os.close(writer)
            thread.join()

    def end(self, seconds: float, failures: tuple[RankFailure, ...]) -> None:
        """Take in how the world ended: the check that was under way failed, or the last one has passed."""
        if failures:
            seconds = 0.0 if self._began is None else time.perf_counter() - self._began
        self._add("failed" if failures else "passed", seconds, failures)

    def _follow(self, reader: int) -> None:
        with open(reader) as lines:
            for line in lines:
                event, _, seconds = line.partition(" ")
                if event == "passed":
                    self._add("passed", float(seconds))
                else:
                    self._began = time.perf_counter()
                    if self._watch is not None:
                        self._watch.started(self._checks[len(self.results)])

    def _add(self, status: Status, seconds: float, failures: tuple[RankFailure, ...] = ()) -> None:
        check = self._checks[len(self.results)]
        result = CheckResult(check.name, check.promise, status, seconds, failures)
        self.results.append(result)
        if self._watch is not None:
            self._watch.finished(result)


def _on_rank(checks: Sequence[Check], pipe: int) -> float:
    """Run checks on one rank, telling how far they are; return how many seconds the last one took."""
    world = World(dist.get_rank(), dist.get_world_size())
    seconds = 0.0
    for check in checks:
        _tell(world, pipe, "started")
        began = time.perf_counter()
        check.run(world)
        if check is checks[-1]:
            return time.perf_counter() - began
        # Passed means passed everywhere; and no rank may be at the next check when another one fails.
        dist.barrier()
        seconds = time.perf_counter() - began
        _tell(world, pipe, f"passed {seconds}")
    return seconds


def _tell(world: World, pipe: int, event: str) -> None:
    if world.rank == 0:
        os.write(pipe, f"{event}\n".encode())
