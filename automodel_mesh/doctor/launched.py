"""`automodel-mesh doctor` in a launch: one rank prints the report, and all end with the same exit status."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Final

import torch.distributed as dist

from automodel_mesh.compat.backends import checked_backend, device_type_for
from automodel_mesh.compat.devices import accelerator
from automodel_mesh.doctor.board import served_by_launcher
from automodel_mesh.doctor.diagnosis import diagnose
from automodel_mesh.doctor.display import open_display
from automodel_mesh.doctor.launch import LaunchLost, LaunchRequest, check_launch
from automodel_mesh.doctor.report import document, launch_tables, version_lines
from automodel_mesh.exit_status import FAILED, INTERRUPTED, PASSED, UNUSABLE
from automodel_mesh.init_utils import RankInfo, read_rank_info
from automodel_mesh.planning.arguments import planned_mesh, sizes_of, strategy_of
from automodel_mesh.tables import show
from automodel_mesh.terminal import tell, write_json

if TYPE_CHECKING:
    import argparse

    from automodel_mesh.doctor.board import Board

_SECONDS_FOR_RANK_0: Final = 10.0


def run_launched(options: argparse.Namespace, environment: dict[str, str]) -> int:
    """Check the launch that this process is a rank of.

    Args:
        options: the parsed arguments.
        environment: what `describe_environment` returns.

    Returns:
        The exit status, if it is `PASSED` or `UNUSABLE`; else the process ends here, because one of its threads may
        still wait in a collective.
    """
    try:
        request = _request(options, environment)
    except ValueError as error:
        _say_once(str(error))
        return UNUSABLE
    _keep_stdout_for_the_report()
    reporter = _Reporter(options, environment, request)
    try:
        status = check_launch(request, reporter.report)
    except LaunchLost as error:
        if _speaks_for_its_node(request.place):
            tell(str(error))
        status = FAILED
    except KeyboardInterrupt:
        if request.place.rank == 0:
            sys.stderr.write("\nautomodel-mesh: interrupted\n")
        status = INTERRUPTED
    if status != PASSED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _speaks_for_its_node(place: RankInfo) -> bool:
    """Tell whether this rank says what none can ask another one: the first of its node, or the one after rank 0.

    Where rank 0 serves the store and is lost, it cannot say so itself.
    """
    lost = place.rank == place.local_rank and not served_by_launcher()  # on the node of rank 0
    return place.local_rank == 0 or (lost and place.local_rank == 1)


def _say_once(mistake: str) -> None:
    """Write on rank 0 what all ranks would write; the others let it: a launcher ends all when the first has failed."""
    if os.environ.get("RANK", "0") == "0":
        tell(mistake)
        sys.stderr.flush()
    else:
        time.sleep(_SECONDS_FOR_RANK_0)


def _request(options: argparse.Namespace, environment: dict[str, str]) -> LaunchRequest:
    place = read_rank_info()
    planned = planned_mesh(
        options, place.world_size, ranks_per_node=place.local_world_size, world_option="number of ranks"
    )
    kind = accelerator()
    backend = options.backend or ("gloo" if kind is None else dist.get_default_backend_for_device(kind))
    checked_backend(backend)
    versions = {"automodel-mesh": environment["automodel_mesh"], "torch": environment["torch"]}
    strategy, sizes = strategy_of(options), sizes_of(options)
    return LaunchRequest(place, strategy, sizes, planned, backend, options.timeout, versions)


def _keep_stdout_for_the_report() -> None:
    """Let what torch writes to stdout go to stderr: gloo of 2.7 to 2.9 does, on every rank, and NCCL's log."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding="utf-8")


class _Reporter:
    """Prints the report; on rank 0 its first lines at once."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str], request: LaunchRequest) -> None:
        self._json: bool = options.json
        self._environment = environment
        self._request = request
        self._started = time.monotonic()
        self._display = open_display(len(request.steps), as_json=self._json)
        if request.place.rank == 0:
            self._display.begin(self._heading())

    def report(self, board: Board) -> int:
        """Print the report, and return the exit status of all ranks."""
        report = diagnose(self._request, board, time.monotonic() - self._started)
        if self._request.place.rank != 0:
            self._display.begin([*self._heading(), f"(reported by rank {self._request.place.rank})"])
        for result in report.results:
            self._display.finished(result)
        if self._json:
            write_json(document(report, self._environment))
        else:
            sys.stdout.write("\n")
            show(launch_tables(report))
            self._display.show(report)
        return PASSED if report.passed else FAILED

    def _heading(self) -> list[str]:
        request = self._request
        axes = ", ".join(f"{axis.name}={axis.size}" for axis in request.planned.axes if axis.size > 1)
        return [
            *version_lines(self._environment),
            f"in a launch, found by RANK and WORLD_SIZE: {request.backend} on {device_type_for(request.backend)}, "
            f"at most {request.timeout:g} s",
            f"{request.planned.heading}: {axes or 'no axis of several ranks'}",
        ]
