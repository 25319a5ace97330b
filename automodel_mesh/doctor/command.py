"""`automodel-mesh doctor`: its arguments and exit status.

Started by a launcher, such as torchrun, it checks that launch: `launched.py`. Else it starts local ranks.

Exit status: 0 if every check passed, 1 if one did not, 2 if the arguments are wrong or the installed torch is not
supported (then stdout is empty), 130 after Ctrl-C. In a launch, all ranks that answer have the same.

With `--json`, stdout has one JSON document and nothing else, which `report.py` describes; the progress goes to stderr.

torch is imported by `run` only, so that `--help` and wrong arguments are answered at once, and an unsupported torch
gives a message instead of a traceback.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from typing import TYPE_CHECKING, Final

from automodel_mesh.arguments import whole_number
from automodel_mesh.exit_status import FAILED, PASSED
from automodel_mesh.planning.arguments import add_mesh_arguments, given_options
from automodel_mesh.terminal import refuse, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from automodel_mesh.doctor.checks import Check

MOST_RANKS: Final = 256
"""Local ranks have a connection from each to each other: more need more than the usual limits of a machine."""

_DEFAULT_RANKS: Final = 8  # the fewest that give three axes more than one rank, which the hardest cases need

_EPILOG: Final = """\
examples:
  automodel-mesh doctor
  automodel-mesh doctor --ranks 16 --timeout 120
  automodel-mesh doctor --json | jq .passed
  automodel-mesh doctor --list
  torchrun --nproc-per-node 8 -m automodel_mesh doctor --tp 2 --dp-replicate 2

Exit status: 0 all checks passed, 1 one did not, 2 wrong arguments or an unsupported torch (stderr says why), 130 after
Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    doctor = commands.add_parser(
        "doctor",
        help="check the contract on the installed torch, on local gloo ranks, or check a launch",
        description="Start local gloo ranks on the installed torch, check the contract on them, and report. Started by "
        "a launcher, check instead that its ranks come, connect, and communicate along each axis of a mesh.",
        epilog=_EPILOG,
    )
    doctor.add_argument(
        "--ranks",
        type=_local_ranks,
        metavar="N",
        help=f"how many local ranks to start, 1 to {MOST_RANKS} (default: {_DEFAULT_RANKS})",
    )
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,  # about twenty times what the checks need on two cores
        metavar="SECONDS",
        help="stop ranks that are still running after this time; of a launch, all of it (default: %(default)g)",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document, and the progress to stderr")
    doctor.add_argument("--list", action="store_true", help="list the checks and run none")
    launch = doctor.add_argument_group("in a launch")
    launch.add_argument(
        "--under-launcher",
        action="store_true",
        help="check the launch that this process is a rank of, as is done by itself if RANK and WORLD_SIZE are set and "
        "--ranks is not given",
    )
    launch.add_argument("--backend", metavar="NAME", help="of the default group (default: that of the device)")
    add_mesh_arguments(launch)


def _local_ranks(text: str) -> int:
    ranks = whole_number(1)(text)
    if ranks > MOST_RANKS:
        raise argparse.ArgumentTypeError(
            f"{ranks} local ranks cannot be started: each is a process, connected to all others; give {MOST_RANKS} at "
            "most, or start doctor with a launcher on several machines"
        )
    return ranks


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def run(options: argparse.Namespace, *, version: str, checks: Sequence[Check] | None = None) -> int:
    """Run the command.

    Args:
        options: the arguments that `add_parser` has added, parsed.
        version: the version of automodel-mesh, for the report.
        checks: the checks; by default the whole contract.

    Returns:
        The exit status; see the description of this module.
    """
    launched = options.under_launcher or (options.ranks is None and {"RANK", "WORLD_SIZE"} <= os.environ.keys())
    if contradiction := None if options.list else _contradiction(options, launched=launched):
        return refuse(contradiction)
    # Torch needs no NumPy here, and warns without it when it is imported.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    try:
        # Not at the top: they import torch, and `compat` raises ImportError for a torch that is not supported.
        from automodel_mesh.doctor.checks import CHECKS  # noqa: PLC0415
        from automodel_mesh.doctor.display import open_display  # noqa: PLC0415
        from automodel_mesh.doctor.launched import run_launched  # noqa: PLC0415
        from automodel_mesh.doctor.report import (  # noqa: PLC0415
            backport_lines,
            describe_environment,
            document,
            heading_lines,
            write_list,
        )
        from automodel_mesh.doctor.run import run_checks  # noqa: PLC0415
    except ImportError as error:
        return refuse(str(error))
    checks = CHECKS if checks is None else checks
    if options.list:
        write_list(checks, as_json=options.json)
        return PASSED
    environment = describe_environment(version)
    if launched and checks is CHECKS:
        return run_launched(options, environment)
    ranks = options.ranks or _DEFAULT_RANKS
    display = open_display(len(checks), as_json=options.json)
    display.begin(heading_lines(environment, ranks))
    with display.running():
        report = run_checks(ranks, timeout=options.timeout, checks=checks, listener=display)
    if options.json:
        write_json(document(report, environment))
    else:
        sys.stdout.writelines(f"{line}\n" for line in backport_lines())
        display.show(report)
    return PASSED if report.passed else FAILED


def _contradiction(options: argparse.Namespace, *, launched: bool) -> str:
    """Say which arguments contradict each other; return an empty string if none do."""
    given = [*given_options(options), *(["--backend"] if options.backend is not None else [])]
    if options.under_launcher and options.ranks is not None:
        return "--ranks starts local ranks, and --under-launcher checks those of a launcher: give one of them"
    if given and not launched:
        return (
            f"{', '.join(given)}: only for the ranks of a launcher. Start doctor with one, and without --ranks: "
            f"torchrun --nproc-per-node 8 -m automodel_mesh doctor {given[0]} ..."
        )
    return ""
