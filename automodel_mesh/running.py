"""`automodel-mesh run`: runs a program, which may be written for the newest torch, on this one.

It calls `automodel_mesh.compat.backport()`, and runs the program as `python` does: as `__main__`, with its arguments
in `sys.argv` and its folder, or with `-m` the current one, at the start of `sys.path`. A traceback begins with the
program's own frames. A process that the program starts with another interpreter, as the start method `spawn` of
`multiprocessing` does, is not changed.

Exit status: that of the program; 2 if it is not there, if the arguments are wrong, or if torch is not supported (stderr
says why). Nothing is written to stdout but what the program writes.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from automodel_mesh.exit_status import FAILED
from automodel_mesh.terminal import refuse

if TYPE_CHECKING:
    from types import TracebackType

_NOT_THE_PROGRAMS: Final = {__file__, runpy.__file__, "<frozen runpy>"}

_EPILOG: Final = """\
examples:
  automodel-mesh run train.py --tp 8
  automodel-mesh run -m package.train --tp 8
  automodel-mesh run train.py --help

With torchrun: torchrun --nproc-per-node 8 -m automodel_mesh run train.py --tp 8

Exit status: 0 the program has ended without an error, 1 it has raised one, 2 it is not there, the arguments are wrong,
or torch is not supported (stderr says why), or what the program exits with."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    parser = commands.add_parser(
        "run",
        help="run a program that is written for the newest torch on this one",
        description=(
            "Call automodel_mesh.compat.backport(), which gives this torch the DeviceMesh calls of the newest tested "
            "release, and run a program."
        ),
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("-m", dest="is_module", action="store_true", help="PROGRAM is the name of a module")
    parser.add_argument("program", metavar="PROGRAM", help="the file of the program, or with -m its module")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="the arguments of the program")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: the arguments that `add_parser` has added, parsed.

    Returns:
        The exit status of a program that ends without `sys.exit`, or that is not run.

    Raises:
        SystemExit: by the program.
    """
    program: str = options.program
    try:
        # Not at the top: it imports torch, and raises ImportError for a torch that is not supported.
        from automodel_mesh.compat import backport  # noqa: PLC0415
    except ImportError as error:
        return refuse(str(error))
    if not options.is_module and not Path(program).exists():
        return refuse(f"there is no file {program!r}")
    backport()
    if not getattr(sys.flags, "safe_path", False):  # from Python 3.11 on; then it begins with another folder
        sys.path[:1] = [str(Path.cwd()) if options.is_module else str(Path(program).resolve().parent)]
    sys.argv[:] = [program, *options.arguments]
    try:
        if options.is_module:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except Exception as error:  # noqa: BLE001 - whatever the program has not caught
        trace = _of_the_program(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return FAILED
    return 0


def _of_the_program(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames that come before the program's own."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _NOT_THE_PROGRAMS:
        trace = trace.tb_next
    return trace
