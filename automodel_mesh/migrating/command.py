"""`automodel-mesh migrate`: its arguments and exit status.

The report goes to stdout: what would change and what is left, with `--diff` a unified diff (then the rest goes to
stderr), with `--json` one JSON document, whose keys docs/how-to/migrate.md describes. With `--write` the files are
changed, each in one step. torch is not imported, and no code is run.

Exit status: 0 if there is nothing to change, or all was written; 1 if there are changes that were not written, or a
file could not be read or written; 2 if the arguments are wrong, there is no Python file, or libcst is not installed
(then stdout is empty, and stderr says why); 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from automodel_mesh.exit_status import FAILED, PASSED
from automodel_mesh.migrating import files, report
from automodel_mesh.python_files import FileError, python_files
from automodel_mesh.terminal import refuse, rich_module, visible, write, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from automodel_mesh.migrating.rewriting import Rewriting

_COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}
"""By the first character of a line of a diff."""

_EPILOG: Final = """\
examples:
  automodel-mesh migrate src
  automodel-mesh migrate src tests --diff > migrate.patch
  automodel-mesh migrate src --write
  automodel-mesh migrate train.py --json | jq '.files[].left'

Exit status: 0 there is nothing to change, or all was written, 1 there are changes that were not written, or a file
could not be read or written, 2 wrong arguments, no Python file, or libcst is missing (stderr says why), 130 after
Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    parser = commands.add_parser(
        "migrate",
        help="rewrite private calls of torch's meshes to this library's functions",
        description=(
            "Rewrite code that uses private calls of torch's DeviceMesh, or NeMo AutoModel's mesh modules, so that it "
            "uses this library. What has no sure equivalent is left, and listed. By default nothing is written. Needs "
            "automodel-mesh[migrate], and no torch."
        ),
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a Python file, or a folder with some")
    parser.add_argument("--write", action="store_true", help="change the files")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--diff", action="store_true", help="print a unified diff, which git apply takes")
    output.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: the arguments that `add_parser` has added, parsed.

    Returns:
        The exit status; see the description of this module.
    """
    try:
        # Not at the top: libcst is an extra.
        from automodel_mesh.migrating.rewriting import rewrite  # noqa: PLC0415
    except ImportError as error:
        return refuse(f"migrate needs libcst: pip install 'automodel-mesh[migrate]' ({error})")
    try:
        found = list(python_files(options.paths))
    except FileError as error:
        return refuse(str(error))
    if not found:
        return refuse(f"there is no Python file below {', '.join(map(str, options.paths))}")
    migrated = [_migrated(path, rewrite, write=options.write) for path in found]
    _show(migrated, options)
    is_done = all(not file.problem and (file.written or not file.changes) for file in migrated)
    return PASSED if is_done else FAILED


def _migrated(path: Path, rewrite: Callable[[str], Rewriting], *, write: bool) -> report.File:
    """Rewrite a file, and write it if that is asked for."""
    file = report.File(str(path))
    try:
        text = files.read(path)
        file = replace(file, before=text.code, rewriting=rewrite(text.code))
        if write and file.changes and file.rewriting is not None:
            files.write(path, replace(text, code=file.rewriting.source))
            return replace(file, written=True)
    except FileError as error:
        return replace(file, problem=str(error))
    except SyntaxError as error:
        return replace(file, problem=f"it is not Python code that libcst can read: line {error.lineno}")
    except RecursionError:
        return replace(file, problem="its expressions are nested too deeply")
    return file


def _show(migrated: list[report.File], options: argparse.Namespace) -> None:
    if options.json:
        write_json(report.as_document(migrated))
    elif options.diff:
        _write_diff(report.as_diff(migrated))
        left = [*report.left_lines(migrated), report.summary(migrated)]
        sys.stderr.write("".join(f"{visible(line)}\n" for line in left))
    else:
        _write(f"{visible(line)}\n" for line in report.as_lines(migrated))


def _write(lines: Iterable[str]) -> None:
    if text := "".join(lines):
        write(text.removesuffix("\n"))


def _write_diff(lines: Iterable[str]) -> None:
    """Write a diff, with colours on a terminal, if rich is installed."""
    if not sys.stdout.isatty() or (module := rich_module("console")) is None:
        _write(lines)
        return
    console = module.Console(highlight=False)
    for line in lines:
        text = visible(line.removesuffix("\n"))
        console.print(text, style=_COLOURS.get(line[0], ""), markup=False, emoji=False, soft_wrap=True)
