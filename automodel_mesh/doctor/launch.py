"""`check_launch`: one rank's part in checking a launch. Each rank of it runs this; one of them reports.

A thread takes the steps, and may never return from one: a collective waits in C++ for a rank that has stopped. Another
thread talks to the other ranks through the store. The main thread waits for that one, up to a limit.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.build import Meshes, build_meshes
from automodel_mesh.doctor.board import Board, Ending, How, Measured, Member, served_by_launcher
from automodel_mesh.doctor.measure import measure
from automodel_mesh.init_utils import RankInfo, initialize_distributed
from automodel_mesh.topology.description import RankGroup
from automodel_mesh.topology.plans import MeshPlan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from automodel_mesh.topology.records import Strategy
    from automodel_mesh.topology.sizes import ParallelismSizes

GRACE_SECONDS: Final = 3.0
"""How long ranks have to say how they ended, after the first of them has, or after the time limit."""

ARRIVAL, VERSIONS, START = range(3)
"""The first steps, by index."""

_POLL_SECONDS: Final = 0.1


class Step(NamedTuple):
    """A step of a launch."""

    name: str
    promise: str


@dataclass(frozen=True)
class LaunchRequest:
    """What to check.

    Attributes:
        place: this rank.
        strategy: the strategy of the mesh.
        sizes: its sizes.
        planned: its plan.
        backend: of the default process group.
        timeout: seconds for the whole launch.
        versions: what is the same on all ranks of a sound launch: the versions of this library and of torch.
    """

    place: RankInfo
    strategy: Strategy
    sizes: ParallelismSizes
    planned: MeshPlan
    backend: str
    timeout: float
    versions: Mapping[str, str]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, the same on all ranks."""
        return (
            Step("arrival", "Every rank of the launch comes."),
            Step("versions", "All ranks have the same versions of automodel-mesh and torch."),
            Step("start", f"The default process group connects all ranks: {self.backend}."),
            Step("mesh", "All ranks make the process groups of the mesh."),
            *(
                Step(name, f"In each group of {len(group.ranks)} ranks, an all-reduce adds up these ranks only.")
                for name, group in self.groups_of(0).items()
            ),
        )

    def groups_of(self, rank: int) -> dict[str, RankGroup]:
        """Return the groups of a rank that have several ranks, by the name of the step: the default one at the end."""
        groups = [group for group in self.planned.groups_of(rank) if len(group.ranks) > 1]
        if self.place.world_size > 1 and not any(group.default_group for group in groups):
            world = range(self.place.world_size)
            groups.append(RankGroup(("default group",), world, self.planned.nodes, default_group=True))
        return {("axis " * (group.axes[0] != "default group")) + group.axes[0]: group for group in groups}


class LaunchLost(Exception):  # noqa: N818 - it ends one rank only, and is shown as a line
    """This rank has lost the store, through which the ranks report."""


def check_launch(request: LaunchRequest, report: Callable[[Board], int]) -> int:
    """Check a launch, as one of its ranks.

    Args:
        request: what to check, the same on all ranks but for `place`.
        report: is called on one rank, usually rank 0, when all ranks have ended or do not answer; it returns the exit
            status for all of them.

    Returns:
        The exit status. If it is not 0, a thread of this process may still wait in a collective: end with `os._exit`.

    Raises:
        LaunchLost: the store cannot be reached, or no rank has reported.
    """
    part = _Part(request, report)
    thread = threading.Thread(target=part.talk, name="automodel-mesh-doctor", daemon=True)
    # A launcher ends the ranks of its node when one of them has failed: this one says so before it goes.
    previous = signal.signal(signal.SIGTERM, lambda *_: part.told_to_end.set())
    try:
        thread.start()
        thread.join(request.timeout + 4 * GRACE_SECONDS)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if part.status is None:
        raise LaunchLost(_what_was_lost(part))
    return part.status


def _what_was_lost(part: _Part) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    server = "the launcher on the first node" if served_by_launcher() else "rank 0"
    why = f" ({part.lost})" if part.lost else ""
    return (
        f"rank {part.request.place.rank} on {socket.gethostname()}: the store of the launch at {address}, which "
        f"{server} serves, does not answer{why}: {server} was stopped or killed, or its host cannot be reached"
    )


class _Part:
    """What one rank does in a launch."""

    def __init__(self, request: LaunchRequest, report: Callable[[Board], int]) -> None:
        self.request = request
        self.status: int | None = None
        self.lost = ""
        self.told_to_end = threading.Event()
        self._report = report
        self._started = time.monotonic()

    def talk(self) -> None:
        """Talk to the other ranks, until the exit status of all is known."""
        try:
            board = Board(self.request.place, self.request.timeout)
            work = _Work(self.request, board)
            self._take_part(board, work)
            self.status = self._agreed_status(board)
        except RuntimeError as error:  # of the store
            self.lost = str(error).splitlines()[0]

    def _take_part(self, board: Board, work: _Work) -> None:
        place = self.request.place
        versions = dict(self.request.versions)
        board.begin(ARRIVAL)
        same = board.agree_on(versions)
        if not same:
            board.stop()  # before it comes: no rank goes on to the next step
        board.come(Member(socket.gethostname(), os.getpid(), place.local_rank, place.local_world_size, versions))
        self._wait(board, board.all_came)
        work.seconds.append(time.monotonic() - self._started)
        if board.all_came():
            work.step = VERSIONS
            if not board.stopped():
                work.seconds.append(0.0)
                work.start()
                self._wait(board, lambda: work.finished.wait(_POLL_SECONDS))
        how: How = "raised" if work.error else "finished" if work.finished.is_set() else "waiting"
        if how == "waiting" and self.told_to_end.is_set():
            how = "ended"
        ending = work.ending(how, time.monotonic() - self._started)
        if how != "finished":
            board.stop()
        board.end(ending)

    def _wait(self, board: Board, condition: Callable[[], bool]) -> None:
        """Wait for a condition, unless this rank has to end."""
        while not (condition() or board.stopped() or self._time_is_over() or self.told_to_end.is_set()):
            time.sleep(_POLL_SECONDS / 10)

    def _time_is_over(self) -> bool:
        return time.monotonic() - self._started > self.request.timeout

    def _agreed_status(self, board: Board) -> int | None:
        """Report, or wait until another rank has: rank 0, and if it does not, the first one that finds that out."""
        first = self.request.place.rank == 0
        patience = GRACE_SECONDS * (1 if first else 1.5)
        since: float | None = None
        while (status := board.status()) is None:
            if since is None and (self.told_to_end.is_set() or self._time_is_over() or board.stopped()):
                board.stop()
                since = time.monotonic()
            late = since is not None and time.monotonic() - since > patience
            if (late or (first and board.all_ended())) and board.claim_report():
                status = self._report(board)
                board.decide(status)
                return status
            if since is not None and time.monotonic() - since > 3 * GRACE_SECONDS:
                self.lost = "a rank was about to report, and did not"
                return None
            time.sleep(_POLL_SECONDS / 2)
        return status


class _Work:
    """The steps after arrival, in a thread of their own."""

    def __init__(self, request: LaunchRequest, board: Board) -> None:
        self.step = ARRIVAL
        self.seconds: list[float] = []
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._request = request
        self._board = board
        self._groups: dict[str, Measured] = {}
        self._device = torch.device("cpu")
        self._thread = threading.Thread(target=self._run, name="automodel-mesh-steps", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ending(self, how: How, elapsed: float) -> Ending:
        """Return how this rank has ended, and how far it came."""
        error, details = "", ""
        if self.error is not None:
            error = traceback.format_exception_only(type(self.error), self.error)[0].splitlines()[0]
            mistake = isinstance(self.error, (ValueError, compat.RanksDisagreeError))
            details = "" if mistake else "".join(traceback.format_exception(self.error))
        elif how == "waiting" and self._thread.is_alive():
            details = _stacks()
        return Ending(how, self.step, elapsed, list(self.seconds), dict(self._groups), error, details)

    def _run(self) -> None:
        try:
            for self.step, action in enumerate(self._actions(), START):  # noqa: B020 - read by the other thread
                self._board.begin(self.step)
                started = time.monotonic()
                action()
                self.seconds.append(time.monotonic() - started)
        except BaseException as error:  # noqa: BLE001 - of whatever kind it is, it is reported
            self.error = error
        finally:
            self.finished.set()

    def _actions(self) -> Iterator[Callable[[], None]]:
        made: list[Meshes] = []
        request = self._request
        yield self._start_world
        yield lambda: made.append(build_meshes(request.strategy, request.sizes))
        for name, group in request.groups_of(request.place.rank).items():
            yield partial(self._measure, name, group, made[0])

    def _start_world(self) -> None:
        seconds = self._request.timeout + 4 * GRACE_SECONDS  # so that no rank raises before the launch is ended
        self._device = initialize_distributed(self._request.backend, seconds / 60).device

    def _measure(self, name: str, expected: RankGroup, meshes: Meshes) -> None:
        group = _process_group(self._request.planned, expected, meshes)
        self._groups[name] = measure(group, expected.ranks, self._device)


def _stacks() -> str:
    """Return the stack of each thread of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def _process_group(planned: MeshPlan, group: RankGroup, meshes: Meshes) -> ProcessGroup | None:
    """Return the process group of an axis; `None`, which means the default one, where no axis has it."""
    axis = group.axes[0]
    if axis == "default group":
        return dist.group.WORLD
    expert = planned.axis(axis).kind == "expert"
    return compat.get_group(meshes.moe if expert and meshes.moe is not None else meshes.root, axis)
