"""The `automodel-mesh` command: reads the command line, and hands over to the subcommand it names.

    automodel-mesh doctor   checks the contract on the installed torch: `doctor/command.py`
    automodel-mesh track    says what a torch changes of the private names we use: `tracking/command.py`

The report of a subcommand goes to stdout; with `--json` stdout has one JSON document and nothing else. The module of
each subcommand says what is in its document, and which exit statuses it has. All share these: 0 where all is well, 1
where it is not, 2 where the arguments are wrong or there is nothing to report on (then stdout is empty, and stderr says
why), 130 after Ctrl-C.

torch is imported by `doctor` only, and not before its arguments are read.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Final

from automodel_mesh.doctor import command as doctor_command
from automodel_mesh.tracking import command as track_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from automodel_mesh.doctor.checks import Check

INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None, *, checks: Sequence[Check] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments after the command's name; by default those of this process.
        checks: what `doctor` checks, for tests of the command itself; by default the whole contract.

    Returns:
        The exit status; see the description of this module.

    Raises:
        SystemExit: `--help`, `--version` or wrong arguments, as argparse does it.
    """
    options = _parser().parse_args(argv)
    try:
        if options.command == "track":
            return track_command.run(options)
        return doctor_command.run(options, version=_version(), checks=checks)
    except KeyboardInterrupt:
        sys.stderr.write("\nautomodel-mesh: interrupted\n")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="automodel-mesh",
        description="One DeviceMesh API with one meaning on every PyTorch release from 2.6 on.",
    )
    parser.add_argument("--version", action="version", version=f"automodel-mesh {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    doctor_command.add_parser(commands)
    track_command.add_parser(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("automodel-mesh")
    except metadata.PackageNotFoundError:
        return "(not installed)"
