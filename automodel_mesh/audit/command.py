"""`automodel-mesh audit`: reports on which torch releases some Python code runs, and where it breaks.

It reads the code and neither runs nor imports it, nor torch; what each release of torch has is recorded in this
package. The report goes to stdout: a table and sentences, with `--markdown` in Markdown, with `--json` as one JSON
document:

    schema           1; raised when a key is renamed or removed, not when one is added
    verdict          the most serious verdict of all releases: "fits", "cannot tell" or "breaks"
    verdicts         the verdict for each release, oldest first
    files            the paths of the files that use torch
    other_files      how many files were read that do not
    findings         one object for each use of torch that does not do the same on all releases, in their order:
        file         the path of the file
        line         the line, from 1
        column       the column, from 1, in characters
        kind         "missing-name", "missing-argument" or "changed-behaviour"
        name         what is used, as a dotted path, with an argument in brackets
        breaks       the releases on which it raises an error, oldest first
        cannot_tell  the releases on which it may, or gives another result
        guarded      the releases that do not have it, but where the code does not get here, or handles the error
        when         "import" if it runs when the file is imported, "call" if it runs when a function is called
        message      what is missing or different where, in a sentence
        guard        what protects it on the guarded releases; if there are none, the check that nothing can be told of
        instead      what to use on all releases; empty if nothing is known
    unread           one object for each file that could not be read: its `file`, and `why`
    notes            one object for each comment that ignores nothing: its `file` and `line`, a `text` that says why,
                     and `is_error` if it is not written as it must be

`--sarif FILE` writes the findings as SARIF 2.1.0 too. Without `--all`, none of these has what the code takes care of
on all releases, as with `hasattr` or `except ImportError`.

Exit status: 0 if nothing fails, 1 if something does: by default what breaks on one of the releases; 2 if the arguments
are wrong, or there is nothing to read (then stdout is empty, and stderr says why), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, TypeAlias

from automodel_mesh.audit.baseline import Baseline, Entry
from automodel_mesh.audit.errors import AuditError
from automodel_mesh.audit.findings import Audit, Verdict
from automodel_mesh.audit.judging import audit
from automodel_mesh.audit.other_torch import read_other
from automodel_mesh.audit.report import as_document, as_parts
from automodel_mesh.audit.sarif import as_sarif
from automodel_mesh.audit.selection import select
from automodel_mesh.audit.torch_names import add_names, known_releases, recorded_releases
from automodel_mesh.exit_status import FAILED, PASSED
from automodel_mesh.python_files import FileError, python_files
from automodel_mesh.tables import show
from automodel_mesh.terminal import one_line, refuse, tell, write_json
from automodel_mesh.tracking.arguments import add_index_options, cache_of
from automodel_mesh.tracking.progress import progress
from automodel_mesh.tracking.sources import SourcesError

FailOn: TypeAlias = Literal["breaks", "cannot-tell", "never"]

_FAILING: Final[dict[FailOn, tuple[Verdict, ...]]] = {
    "breaks": ("breaks",),
    "cannot-tell": ("breaks", "cannot tell"),
    "never": (),
}

_DESCRIPTION: Final = """\
Read Python code, and report which torch releases have all that it uses of torch: names, and arguments of functions. The
code is not run. Needs no torch."""

_EPILOG: Final = """\
RELEASES is one of
  2.6-2.15, 2.9,2.11   spans and releases; 2.9 means all patches of 2.9
  newest               the newest release that is recorded
  '>=2.8'              a specifier, as in the requirement of a package

examples:
  automodel-mesh audit src
  automodel-mesh audit src tests --releases '>=2.8' --fail-on cannot-tell
  automodel-mesh audit src --write-baseline audit-baseline.json
  automodel-mesh audit src --baseline audit-baseline.json --sarif audit.sarif
  automodel-mesh audit src --torch nightly --index-url URL-OF-AN-INDEX-OF-NIGHTLIES
  automodel-mesh audit src --torch torch-2.16.0.dev20261119+cpu-cp312-cp312-linux_x86_64.whl
  automodel-mesh audit src --json | jq .verdicts

A comment at the end of a line, # audit: ignore[NAME] REASON, leaves out what the report calls NAME in that line.

The JSON document has the verdict for each release, and the findings. `python -m pydoc automodel_mesh.audit.command`
describes all keys.

Exit status: 0 nothing fails, 1 something does (see --fail-on), 2 wrong arguments, or nothing to read (stderr says why),
130 after Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    parser = commands.add_parser(
        "audit",
        help="say which torch releases your code runs on, and where it breaks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a Python file, or a folder with some")
    parser.add_argument("--releases", metavar="RELEASES", help="the torch releases (default: all that are recorded)")
    parser.add_argument(
        "--torch",
        metavar="WHAT",
        help="a torch that is not recorded: a wheel, a folder with one, installed, or on a package index a release, "
        "newest or nightly; alone, or after RELEASES",
    )
    add_index_options(parser)
    parser.add_argument(
        "--fail-on",
        choices=list(_FAILING),
        default="breaks",
        metavar="WHAT",
        help="what gives the exit status 1: breaks (the default), cannot-tell for that too, or never",
    )
    parser.add_argument("--all", action="store_true", help="also report what the code takes care of itself")
    baseline = parser.add_mutually_exclusive_group()
    baseline.add_argument("--baseline", type=Path, metavar="FILE", help="leave out the findings that are in this file")
    baseline.add_argument(
        "--write-baseline", type=Path, metavar="FILE", help="write all findings into this file, and report nothing"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    output.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="also write the findings into this file, as SARIF 2.1.0"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: the arguments that `add_parser` has added, parsed.

    Returns:
        The exit status; see the description of this module.
    """
    try:
        found = _audited(options)
        if options.write_baseline is not None:
            return _write_baseline(found, options.write_baseline)
        if options.baseline is not None:
            found = _without(Baseline.read(options.baseline), found, options)
        shown = found if options.all else _without_harmless(found)
        if options.sarif is not None:
            _write_sarif(shown, options.sarif)
    except (AuditError, FileError, SourcesError) as error:
        return refuse(one_line(str(error)))
    _tell_notes(found)
    if options.json:
        write_json(as_document(shown))
    else:
        hidden = len(found.findings) - len(shown.findings)
        show(as_parts(shown, hidden=hidden, markdown=options.markdown), markdown=options.markdown)
    failing = _FAILING[options.fail_on]
    return FAILED if any(found.verdict(release) in failing for release in found.releases) else PASSED


def _audited(options: argparse.Namespace) -> Audit:
    """Audit the paths on the releases that are chosen."""
    if not list(python_files(options.paths)):
        raise AuditError(f"there is no Python file in {', '.join(map(str, options.paths))}")
    releases = known_releases() if options.releases is None else select(options.releases, recorded_releases())
    if options.torch is not None:
        releases = (*(releases if options.releases is not None else ()), _read_torch(options))
    return audit(options.paths, releases)


def _read_torch(options: argparse.Namespace) -> str:
    """Read the names of the torch that is not recorded, and return its version."""
    with progress() as watch:
        names = read_other(options.torch, index_url=options.index_url, cache=cache_of(options), watch=watch)
    add_names(names)
    return names.releases[0]


def _without_harmless(found: Audit) -> Audit:
    return replace(found, findings=tuple(one for one in found.findings if not one.is_harmless))


# --- baselines


def _write_baseline(found: Audit, path: Path) -> int:
    baseline = Baseline.of(found.findings)
    baseline.write(path)
    number = sum(baseline.counts.values())
    _tell(f"{number} finding{'s' * (number != 1)} written to {path}")
    _tell_notes(found)
    for one in found.unread:
        _tell(f"{one.file} is not in it, as it cannot be read: {one.why}")
    return PASSED


def _without(baseline: Baseline, found: Audit, options: argparse.Namespace) -> Audit:
    """Leave out the findings that a baseline has, and say which of its entries can be deleted."""
    new, left = baseline.new(found.findings)
    unread = {one.file for one in found.unread}

    def could_occur(entry: Entry) -> bool:
        was_read = any(_is_within(Path(entry.file), path) for path in options.paths) and entry.file not in unread
        return was_read and not {*entry.breaks, *entry.cannot_tell}.isdisjoint(found.releases)

    for entry, count in sorted(left.within(could_occur).counts.items()):
        times = f", {count} times" if count > 1 else ""
        _tell(f"{options.baseline}: {entry.file} has no {entry.kind} {entry.name} any more{times}: it can be deleted")
    return replace(found, findings=new)


def _is_within(file: Path, path: Path) -> bool:
    return file.resolve().is_relative_to(path.resolve())


# --- output


def _write_sarif(found: Audit, path: Path) -> None:
    document = as_sarif(found, version=_version(), root=Path.cwd())
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise AuditError(f"{path} cannot be written: {error.strerror}; give another file") from error


def _version() -> str:
    try:
        return metadata.version("automodel-mesh")
    except metadata.PackageNotFoundError:
        return "0"


def _tell_notes(found: Audit) -> None:
    for note in found.notes:
        _tell(f"{note.file}:{note.line}: {'error' if note.is_error else 'note'}: {note.text}")


def _tell(text: str) -> None:
    tell(one_line(text))
