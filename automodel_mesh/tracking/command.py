"""`automodel-mesh track`: says what a torch changes of the private names that this library relies on.

It reads torch's Python sources and neither installs nor imports torch. The report goes to stdout, as text, with
`--markdown` as an issue for GitHub, with `--json` as one JSON document:

    schema         1; a higher number where a key is renamed or removed, which a new key is no reason for
    verdict        the worst of all findings: "known" (there are none, or harmless ones), "needs a look" (our code
                   might behave differently) or "breaks" (our code would fail)
    torch          the version that was read, such as "2.15.0", "2.16.0rc1" or "2.16.0.dev20261119"
    origin         where it was read, in words
    recorded       whether the ledger has this very release
    compared_with  the releases of the ledger that it was compared with: itself, or its neighbours
    names          how many names of the ledger were looked up
    findings       one object for each difference, breaks first:
        name       as the ledger has it, `module:Class.attribute`
        change     "vanished", "appeared", "signature" or "body"
        verdict    as above
        before     the signature in the release compared with; empty for what appeared
        after      the signature now; empty for what vanished
        diff       the sources' difference, unified; empty where it cannot be shown
        used_by    our functions that use the name, as `module.function` inside compat/
        reaches    the public functions of automodel_mesh.compat that depend on those
        use        in which way we rely on it
        remedy     what to do if it goes or changes
    notes          sentences on the comparison itself, such as why a difference is not shown

Exit status: 0 if the torch is known, 1 if it breaks our code, 3 if it needs a look, 130 after Ctrl-C, and 2 where the
arguments are wrong, the sources or the ledger cannot be read, or a torch cannot be recorded. Then stderr says why, and
stdout is empty, except where the ledger could not be written, which is tried after the report.

Progress is shown on stderr where that is a terminal, on one line that goes at the end; rich makes it a bar, and colours
the text on a terminal, where it is installed and `NO_COLOR` is not set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from automodel_mesh.terminal import ERASE_LINE, rich_module
from automodel_mesh.tracking import markdown, report

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import ModuleType

    from automodel_mesh.tracking.findings import Comparison, Verdict
    from automodel_mesh.tracking.ledger import Ledger
    from automodel_mesh.tracking.sources import Sources, Watch

UNUSABLE: Final = 2
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
_EXTRA: Final = "automodel-mesh[track]"
_SECONDS_PER_REDRAW: Final = 0.1
# Below this a total is taken for a number of files, above it for a number of bytes.
_MANY: Final = 50_000

_DESCRIPTION: Final = """\
Read the Python sources of a torch without installing it, compare them with the ledger of the private names that
automodel-mesh relies on, and say what vanished, what changed, and which of our functions that touches."""

_EPILOG: Final = """\
WHAT is one of
  2.15.0, 2.15, 2.16.0rc1   a release or a candidate on the package index; 2.15 is the newest 2.15.x
  newest                    the newest release on the package index
  nightly                   the newest build of all, where --index-url names an index of nightlies
  dist/torch-2.16.0-cp312-cp312-linux_x86_64.whl
                            a wheel file
  ../pytorch, .venv         a folder: a checkout of PyTorch, a site-packages folder, or an environment
  installed                 the torch of this environment, which is read and not imported

examples:
  automodel-mesh track newest
  automodel-mesh track 2.16.0rc1 --markdown > issue.md
  automodel-mesh track ../pytorch --json | jq .verdict
  automodel-mesh track 2.16.0 --record

The JSON document has schema (1), verdict, torch, origin, recorded, compared_with, names, notes, and findings, each with
name, change (vanished, appeared, signature or body), verdict, before, after, diff, used_by, reaches, use and remedy.

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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    track.add_argument("what", metavar="WHAT", help="a release, newest, nightly, a wheel file, a folder, or installed")
    track.add_argument(
        "--index-url",
        metavar="URL",
        help="the package index to read releases from, or a folder that is one (default: what PIP_INDEX_URL, "
        "UV_DEFAULT_INDEX or UV_INDEX_URL say, else the public one)",
    )
    track.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="the folder that keeps what was read of releases (default: AUTOMODEL_MESH_CACHE if set, else "
        "automodel-mesh in XDG_CACHE_HOME or ~/.cache)",
    )
    output = track.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document")
    output.add_argument("--markdown", action="store_true", help="print Markdown that fits into an issue on GitHub")
    ledger = track.add_mutually_exclusive_group()
    ledger.add_argument(
        "--record",
        action="store_true",
        help="enter the release into the ledger, after the report; needs a checkout of automodel-mesh",
    )
    ledger.add_argument(
        "--forget",
        action="store_true",
        help="take the release out of the ledger, as its support ends, and do nothing else; needs a checkout",
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
    # Not at the top: only a run needs them, and `--help` is to answer at once.
    from automodel_mesh.tracking.ledger import LedgerError  # noqa: PLC0415
    from automodel_mesh.tracking.sources import SourcesError  # noqa: PLC0415

    if options.forget:
        return _forget(options.what)
    try:
        comparison, recorded = _look(options)
    except (LedgerError, SourcesError, ImportError) as error:
        return _fail(error)
    _show(comparison, options)
    if recorded is not None:
        try:
            path = recorded.save()
        except (LedgerError, OSError) as error:
            return _fail(error)
        sys.stderr.write(f"recorded torch {comparison.torch} in {path}\n")
    return STATUSES[comparison.verdict]


def _forget(release: str) -> int:
    from automodel_mesh.tracking.ledger import LedgerError, load_ledger  # noqa: PLC0415

    try:
        path = load_ledger().forget(release).save()
    except (LedgerError, ImportError, OSError) as error:
        return _fail(error)
    sys.stderr.write(f"took torch {release} out of {path}\n")
    return STATUSES["known"]


def _fail(error: Exception) -> int:
    text = str(error)
    if isinstance(error, ImportError) and _EXTRA not in text:
        text = f"{text}: `track` needs more than the library itself, which `pip install '{_EXTRA}'` installs"
    sys.stderr.write(f"automodel-mesh: {text}\n")
    return UNUSABLE


def _look(options: argparse.Namespace) -> tuple[Comparison, Ledger | None]:
    """Compare the torch with the ledger, and with `--record` make the ledger that knows it."""
    from automodel_mesh.tracking.cache import default_cache  # noqa: PLC0415
    from automodel_mesh.tracking.compare import compare  # noqa: PLC0415
    from automodel_mesh.tracking.ledger import load_ledger  # noqa: PLC0415
    from automodel_mesh.tracking.reading import read_sources  # noqa: PLC0415

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


# --- the report


def _show(comparison: Comparison, options: argparse.Namespace) -> None:
    if options.json:
        _write(json.dumps(report.as_document(comparison), indent=2))
    elif options.markdown:
        _write(markdown.as_markdown(comparison))
    elif not sys.stdout.isatty():
        _write(report.as_text(comparison))
    elif (console := rich_module("console")) is None:
        _write(report.as_text(comparison, width=_columns()))
    else:
        _show_coloured(comparison, console)


def _show_coloured(comparison: Comparison, console_module: ModuleType) -> None:
    from rich.text import Text  # noqa: PLC0415 - an extra, and used on terminals only

    console = console_module.Console(highlight=False)
    for line in report.as_lines(comparison, width=console.width):
        console.print(Text(line.text, style=_COLOURS.get(line.kind, "")), soft_wrap=True)


def _write(text: str) -> None:
    # Sources may hold characters that stdout cannot write.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


# --- progress


def _progress() -> AbstractContextManager[Watch]:
    """Show what is being done while the block runs, where stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(_be_silent)
    if rich_module("progress") is not None:
        return _bar()
    return _line(sys.stderr)


def _be_silent(step: str, done: int = 0, total: int = 0) -> None:
    """Take note of nothing."""
    del step, done, total


@contextmanager
def _line(stream: TextIO) -> Generator[Watch, None, None]:
    """Show steps on one line that is rewritten, and erase it in the end."""
    line = _Line(stream, _columns())
    try:
        yield line
    finally:
        stream.write(ERASE_LINE)
        stream.flush()


class _Line:
    """Rewrites one line; not more often than can be seen."""

    def __init__(self, stream: TextIO, columns: int) -> None:
        self._stream = stream
        self._columns = columns
        self._step = ""
        self._written = -_SECONDS_PER_REDRAW

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        if step == self._step and now - self._written < _SECONDS_PER_REDRAW:
            return
        self._step, self._written = step, now
        text = " ".join(filter(None, [step, _amount(done, total)]))
        self._stream.write(ERASE_LINE + text[: self._columns - 1])  # a longer one would leave its first lines behind
        self._stream.flush()


@contextmanager
def _bar() -> Generator[Watch, None, None]:
    """Show steps with a bar that goes in the end."""
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

        def watch(step: str, done: int = 0, total: int = 0) -> None:
            nonlocal shown, task
            if step != shown:  # a total can be changed, but not taken back
                progress.remove_task(task)
                shown, task = step, progress.add_task(step, total=None, amount="")
            progress.update(task, completed=done, total=total or None, amount=_amount(done, total))

        yield watch


def _amount(done: int, total: int) -> str:
    """Put an amount into words: bytes where there are many, else files; nothing where it is not known."""
    if max(done, total) >= _MANY:
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
    return f"{done} of {total}" if total else ""


def _columns() -> int:
    return shutil.get_terminal_size().columns
