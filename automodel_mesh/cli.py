"""The `automodel-mesh` command: parses the command line and runs the subcommand that it names.

    automodel-mesh audit    says which torch releases your code runs on: `audit/command.py`
    automodel-mesh doctor   checks the contract on the installed torch: `doctor/command.py`
    automodel-mesh migrate  rewrites private calls of torch's meshes: `migrating/command.py`
    automodel-mesh plan     says what a mesh needs before it runs: `planning/command.py`
    automodel-mesh releases lists the supported releases of torch: `tracking/releases.py`
    automodel-mesh run      runs a program that is written for the newest torch: `running.py`
    automodel-mesh track    says what a torch changes of the private names we use: `tracking/command.py`

The report of a subcommand goes to stdout; with `--json` stdout has one JSON document and nothing else. Each of these
modules describes, or says where to find, the keys of its document and its exit statuses. All share these: 0 if all is
well, 1 if it is not, 2 if the arguments are wrong or there is nothing to report on (then stdout is empty, and stderr
says why) or stdout cannot be written, 130 after Ctrl-C, 141 if the reader of stdout has gone, as `head` does.

torch is imported by `doctor` and `run` only, after their arguments have been parsed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh import running
from automodel_mesh.arguments import HelpFormatter
from automodel_mesh.audit import command as audit_command
from automodel_mesh.doctor import command as doctor_command
from automodel_mesh.exit_status import INTERRUPTED, PIPE_CLOSED
from automodel_mesh.migrating import command as migrate_command
from automodel_mesh.planning import command as plan_command
from automodel_mesh.terminal import refuse
from automodel_mesh.tracking import command as track_command
from automodel_mesh.tracking import releases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from automodel_mesh.doctor.checks import Check

_EPILOG: Final = """\
examples:
  automodel-mesh audit src
  automodel-mesh doctor
  automodel-mesh plan --world-size 64 --tp 8
  automodel-mesh run train.py
  automodel-mesh track newest

pip install 'automodel-mesh[cli]' adds tables, colours (not with NO_COLOR=1) and shell completion,
'automodel-mesh[track]' reads releases on a package index, and 'automodel-mesh[migrate]' is for migrate.

Exit status: 0 all is well, 1 it is not, 2 wrong arguments, nothing to report on, or stdout cannot be written (stderr
says why), 130 after Ctrl-C, 141 if the reader of stdout has gone. A command that has others lists them in its help."""


def main(argv: Sequence[str] | None = None, *, checks: Sequence[Check] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments after the command's name; by default those of this process.
        checks: the checks of `doctor`, for tests of the command itself; by default the whole contract.

    Returns:
        The exit status; see the description of this module.

    Raises:
        SystemExit: for `--help`, `--version` or wrong arguments, by argparse.
    """
    _open_closed_streams()
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        try:
            options = _parser().parse_args(argv)
            if options.command == "doctor":
                return doctor_command.run(options, version=_version(), checks=checks)
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
        finally:
            sys.stdout.flush()  # here, not when the interpreter exits and could only print a failure
    except KeyboardInterrupt:
        sys.stderr.write("\nautomodel-mesh: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:  # stdout is a full disk, for one
        _drop_output()
        return refuse(str(error))


def _open_closed_streams() -> None:
    """Give a process that was started with stdout or stderr closed streams that lead nowhere; Python has `None`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))


def _drop_output() -> None:
    """Let what is left in the buffer of stdout go nowhere, when the interpreter exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complete() -> None:
    """Answer a shell that completes a command line, and exit; return if argcomplete, an extra, is missing."""
    with contextlib.suppress(ImportError):
        import argcomplete  # noqa: PLC0415 - an extra, and used by shells only

        argcomplete.autocomplete(_parser())


class _Parser(argparse.ArgumentParser):
    """Formats descriptions and epilogs; argparse makes the parsers of the commands of the same class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="automodel-mesh",
        description="One DeviceMesh API with one meaning on every PyTorch release from 2.6 on.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"automodel-mesh {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in (audit_command, doctor_command, migrate_command, plan_command, releases, running, track_command):
        command.add_parser(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("automodel-mesh")
    except metadata.PackageNotFoundError:
        return "(not installed)"
