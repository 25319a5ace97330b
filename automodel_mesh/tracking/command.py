"""`automodel-mesh track`: reports what a torch changes of the private names that this library relies on.

It reads torch's Python sources and neither installs nor imports torch. The report goes to stdout: as text, with
`--markdown` as an issue for GitHub, with `--json` as one JSON document:

    schema         1; raised when a key is renamed or removed, not when one is added
    verdict        the most serious verdict of all findings: "known" (our code is not affected), "needs a look" (our
                   code might behave differently) or "breaks" (our code would fail)
    torch          the version that was read, such as "2.15.0", "2.16.0rc1" or "2.16.0.dev20261119"
    origin         where it was read, in words
    recorded       whether the ledger has this release itself
    compared_with  the releases of the ledger that it was compared with: itself, or its neighbours
    names          how many names of the ledger were looked up
    findings       one object for each difference, the most serious first:
        name       as the ledger has it, `module:Class.attribute`
        change     "vanished", "appeared", "signature" or "body"
        verdict    as above
        before     the signature in the release compared with; empty for what appeared
        after      the signature now; empty for what vanished
        diff       the difference of the sources as a unified diff; empty if it cannot be shown
        used_by    our functions that use the name, as `module.function` inside compat/
        reaches    the public functions of automodel_mesh.compat that depend on those
        use        how we rely on it
        remedy     what to do if it vanishes or changes
    notes          remarks on the comparison itself, such as why a diff is missing

Exit status: 0 if the torch is known, 1 if it breaks our code, 3 if it needs a look, 130 after Ctrl-C, and 2 if the
arguments are wrong, the sources or the ledger cannot be read, or a torch cannot be recorded. Then stderr says why, and
stdout is empty, except if the ledger could not be written, which is tried after the report.

Progress is shown on stderr if that is a terminal, on one line that is erased at the end. If rich is installed, it makes
the line a progress bar, and colours the text on terminals unless `NO_COLOR` is set.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from automodel_mesh.exit_status import UNUSABLE
from automodel_mesh.terminal import ERASE_LINE, hint_at_rich, rich_module, terminal_width, visible, write, write_json
from automodel_mesh.tracking import report
from automodel_mesh.tracking.comparison import Comparison, Verdict, compare
from automodel_mesh.tracking.index import NEWEST, NIGHTLY, default_cache, read_release
from automodel_mesh.tracking.ledger import Ledger, LedgerError, load_ledger
from automodel_mesh.tracking.sources import (
    ACCEPTED,
    Sources,
    SourcesError,
    Unit,
    Watch,
    ignore_progress,
    read_installed,
    read_path,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from types import ModuleType

STATUSES: Final[dict[Verdict, int]] = {"known": 0, "breaks": 1, "needs a look": 3}

_COLOURS: Final[dict[report.LineKind, str]] = {
    "known": "bold green",
    "needs a look": "bold yellow",
    "breaks": "bold red",
    "name": "bold",
    "added": "green",
    "removed": "red",
    "hunk": "cyan",
}
_SECONDS_PER_REDRAW: Final = 0.1

_DESCRIPTION: Final = """\
Read the Python sources of a torch without installing it, compare them with the ledger of the private names that
automodel-mesh relies on, and report what vanished, what changed, and which of our functions that affects."""

_EPILOG: Final = """\
WHAT is one of
  2.15.0, 2.15, 2.16.0rc1   a release or a candidate on the package index; 2.15 is the newest 2.15.x
  newest                    the newest release on the package index
  nightly                   the newest build of all, if --index-url names an index of nightlies
  dist/torch-2.16.0-cp312-cp312-linux_x86_64.whl
                            a wheel file
  ../pytorch, .venv         a folder: a checkout of PyTorch, a site-packages folder, or an environment
  installed                 the torch of this environment, which is read and not imported

examples:
  automodel-mesh track newest
  automodel-mesh track 2.16.0rc1 --markdown > issue.md
  automodel-mesh track ../pytorch --json | jq .verdict
  automodel-mesh track 2.16.0 --record

The JSON document has the verdict, the torch that was read, and the findings, each with the name, its change and a
remedy. `python -m pydoc automodel_mesh.tracking.command` describes all keys.

All requests for a release may take 15 minutes together; a slower server, or one that sends too much, is not read on.

Exit status: 0 known, 1 breaks, 3 needs a look, 2 wrong arguments, or nothing could be read or recorded (stderr says
why), 130 after Ctrl-C."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: What `ArgumentParser.add_subparsers` gave.
    """
    track = commands.add_parser(
        "track",
        help="say what a torch, installed or not, changes of the private names we rely on",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    track.set_defaults(run=run)
    track.add_argument("what", metavar="WHAT", help="a release, newest, nightly, a wheel file, a folder, or installed")
    track.add_argument(
        "--index-url",
        metavar="URL",
        help="the package index to read releases from, or a folder that is one (default: PIP_INDEX_URL, "
        "UV_DEFAULT_INDEX or UV_INDEX_URL if set, else the public one)",
    )
    track.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="the folder that stores what was read of releases (default: AUTOMODEL_MESH_CACHE if set, else "
        "automodel-mesh in XDG_CACHE_HOME or ~/.cache)",
    )
    output = track.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    output.add_argument("--markdown", action="store_true", help="print Markdown that fits into an issue on GitHub")
    ledger = track.add_mutually_exclusive_group()
    ledger.add_argument(
        "--record",
        action="store_true",
        help="add the release to the ledger, after the report; needs a checkout of automodel-mesh",
    )
    ledger.add_argument(
        "--forget",
        action="store_true",
        help="remove the release from the ledger, when its support ends, and do nothing else; needs a checkout",
    )
    ledger.add_argument(
        "--ledger-until",
        metavar="RELEASE",
        help="use the ledger as it was when RELEASE, such as 2.9, was the newest",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: What the parser made of the arguments that `add_parser` added.

    Returns:
        The exit status; see the description of this module.
    """
    try:
        if options.forget:
            path = load_ledger().forget(options.what).save()
            sys.stderr.write(f"removed torch {options.what} from {path}\n")
            return STATUSES["known"]
        comparison, recorded = _compare(options)
        _show(comparison, options)
        if recorded is not None:
            sys.stderr.write(f"recorded torch {comparison.torch} in {recorded.save()}\n")
    except (LedgerError, SourcesError, ImportError) as error:
        sys.stderr.write(f"automodel-mesh: {visible(str(error))}\n")
        return UNUSABLE
    except OSError:  # of stdout: those of sources are SourcesErrors
        raise
    except Exception as error:  # noqa: BLE001 - Python would exit with 1, which means that the torch breaks our code
        reason = visible(f"{type(error).__name__}: {str(error)[:500]}")
        sys.stderr.write(
            f"automodel-mesh: torch {visible(options.what[:80])} could not be read or compared: {reason}; give another "
            "index with --index-url, or a wheel or a folder with torch\n"
        )
        return UNUSABLE
    return STATUSES[comparison.verdict]


def _compare(options: argparse.Namespace) -> tuple[Comparison, Ledger | None]:
    """Compare the torch with the ledger; with `--record`, return the ledger with that torch added."""
    cache = default_cache() if options.cache is None else options.cache
    ledger = load_ledger()
    if options.ledger_until is not None:
        ledger = ledger.cut(options.ledger_until)
    with _progress() as watch:

        def read(what: str) -> Sources:
            return read_sources(what, ledger.paths, index_url=options.index_url, cache=cache, watch=watch)

        sources = read(options.what)
        watch("comparing")
        comparison = compare(ledger, sources, fetch=read)
    return comparison, ledger.record(sources) if options.record else None


def read_sources(
    what: str,
    paths: Collection[str],
    *,
    index_url: str | None = None,
    cache: Path | None = None,
    watch: Watch = ignore_progress,
) -> Sources:
    """Read source files of the torch that WHAT names.

    Args:
        what: `"installed"`, the path of a wheel or folder (see `read_path`), or a release (see `read_release`). An
            existing path is read as such even if its name is also a version.
        paths: The files, as a wheel names them, such as `"torch/distributed/device_mesh.py"`.
        index_url: The package index for releases; see `read_release`.
        cache: The folder that stores what is read of releases; see `read_release`.
        watch: Called with each step.

    Returns:
        The version, where it was read, and those of the files that this torch has.

    Raises:
        SourcesError: `what` is none of these, or the torch cannot be read.
    """
    if what == "installed":
        return read_installed(paths, watch)
    path = None if what in {NEWEST, NIGHTLY} else _existing(what)
    if path is not None:
        return read_path(path, paths, watch)
    if "/" in what or "\\" in what or what.endswith(".whl"):
        raise SourcesError(f"{what!r} does not exist: {ACCEPTED}")
    return read_release(what, paths, index_url=index_url, cache=cache, watch=watch)


def _existing(what: str) -> Path | None:
    try:
        path = Path(what).expanduser()
        return path if what.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, or the home of an unknown user
        return None


# --- the report


def _show(comparison: Comparison, options: argparse.Namespace) -> None:
    if options.json:
        write_json(report.as_document(comparison))
    elif options.markdown:
        write(report.as_markdown(comparison))
    elif not sys.stdout.isatty():
        write(report.as_text(comparison))
    elif (console := rich_module("console")) is None:
        write(report.as_text(comparison, width=terminal_width()))
        hint_at_rich("colours")
    else:
        _show_coloured(comparison, console)


def _show_coloured(comparison: Comparison, console_module: ModuleType) -> None:
    from rich.text import Text  # noqa: PLC0415 - an extra, and used on terminals only

    console = console_module.Console(highlight=False)
    for line in report.as_lines(comparison, width=console.width):
        console.print(Text(line.text, style=_COLOURS.get(line.kind, "")), soft_wrap=True)


# --- progress


def _progress() -> AbstractContextManager[Watch]:
    """Show progress while the block runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(ignore_progress)
    if rich_module("progress") is not None:
        return _bar()
    return _line(sys.stderr)


@contextmanager
def _line(stream: TextIO) -> Generator[Watch, None, None]:
    """Show steps on one line that is rewritten, and erase it at the end."""
    line = _Line(stream, terminal_width())
    try:
        yield line
    finally:
        stream.write(ERASE_LINE)
        stream.flush()


class _Line:
    """A line of progress, rewritten for each step, and at most ten times a second within a step."""

    def __init__(self, stream: TextIO, columns: int) -> None:
        self._stream = stream
        self._columns = columns
        self._step = ""
        self._written = -_SECONDS_PER_REDRAW

    def __call__(self, step: str, done: int = 0, total: int = 0, unit: Unit = "files") -> None:
        now = time.monotonic()
        if step == self._step and now - self._written < _SECONDS_PER_REDRAW:
            return
        self._step, self._written = step, now
        text = " ".join(filter(None, [visible(step), _amount(done, total, unit)]))
        self._stream.write(ERASE_LINE + text[: self._columns - 1])  # a wrapped line could not be erased
        self._stream.flush()


@contextmanager
def _bar() -> Generator[Watch, None, None]:
    """Show steps with a progress bar, and remove it at the end."""
    import rich.console  # noqa: PLC0415 - an extra, and used on terminals only
    import rich.progress as bars  # noqa: PLC0415

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[amount]}", markup=False),
    )
    with bars.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as progress:
        shown = ""
        task = progress.add_task(shown, total=None, amount="")

        def watch(step: str, done: int = 0, total: int = 0, unit: Unit = "files") -> None:
            nonlocal shown, task
            if step != shown:  # a total can be changed, but not removed
                progress.remove_task(task)
                shown, task = step, progress.add_task(visible(step), total=None, amount="")
            progress.update(task, completed=done, total=total or None, amount=_amount(done, total, unit))

        yield watch


def _amount(done: int, total: int, unit: Unit) -> str:
    """Put an amount into words; nothing if it is not known."""
    if unit == "files":
        return f"{done} of {total}" if total else ""
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
