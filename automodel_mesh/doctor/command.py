"""`automodel-mesh doctor`: its arguments and exit status.

Exit status: 0 if every check passed, 1 if one did not, 2 if the arguments are wrong or the installed torch is not
supported (then stdout is empty), 130 after Ctrl-C.

With `--json`, stdout has one JSON document and nothing else, which `report.py` describes; the progress goes to stderr.

torch is imported by `run` only, so that `--help` and wrong arguments are answered at once, and an unsupported torch
gives a message instead of a traceback.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from typing import TYPE_CHECKING, Final

from automodel_mesh.arguments import whole_number
from automodel_mesh.terminal import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from automodel_mesh.doctor.checks import Check

PASSED: Final = 0
FAILED: Final = 1
UNUSABLE: Final = 2

_EPILOG: Final = """\
examples:
  automodel-mesh doctor
  automodel-mesh doctor --ranks 16 --timeout 120
  automodel-mesh doctor --json | jq .passed
  automodel-mesh doctor --list

Exit status: 0 all checks passed, 1 one did not, 2 wrong arguments or an unsupported torch (stderr says why), 130 after
Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    doctor = commands.add_parser(
        "doctor",
        help="check the contract on the installed torch, on local gloo ranks",
        description="Start local gloo ranks on the installed torch, check the contract on them, and report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "--ranks",
        type=whole_number(1),
        default=8,  # the fewest that give three axes more than one rank, which the hardest cases need
        metavar="N",
        help="how many ranks to start, at least 1 (default: %(default)s)",
    )
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,  # about twenty times what the checks need on two cores
        metavar="SECONDS",
        help="stop ranks that are still running after this time (default: %(default)g)",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document, and the progress to stderr")
    doctor.add_argument("--list", action="store_true", help="list the checks and run none")


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
    # Torch needs no NumPy here, and warns without it when it is imported.
    warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
    try:
        # Not at the top: they import torch, and `compat` raises ImportError for a torch that is not supported.
        from automodel_mesh.doctor.checks import CHECKS  # noqa: PLC0415
        from automodel_mesh.doctor.display import open_display  # noqa: PLC0415
        from automodel_mesh.doctor.report import (  # noqa: PLC0415
            describe_environment,
            document,
            heading_lines,
            write_list,
        )
        from automodel_mesh.doctor.run import run_checks  # noqa: PLC0415
    except ImportError as error:
        sys.stderr.write(f"automodel-mesh: {error}\n")
        return UNUSABLE
    checks = CHECKS if checks is None else checks
    if options.list:
        write_list(checks, as_json=options.json)
        return PASSED
    environment = describe_environment(version)
    display = open_display(len(checks), as_json=options.json)
    display.begin(heading_lines(environment, options.ranks))
    with display.running():
        report = run_checks(options.ranks, timeout=options.timeout, checks=checks, listener=display)
    if options.json:
        write_json(document(report, environment))
    else:
        display.show(report)
    return PASSED if report.passed else FAILED
