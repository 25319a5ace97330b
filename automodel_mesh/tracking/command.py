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
from typing import TYPE_CHECKING, Final

from automodel_mesh.terminal import hint_at_rich, refuse, rich_module, terminal_width, write, write_json
from automodel_mesh.tracking import report
from automodel_mesh.tracking.arguments import add_index_options, cache_of, read_sources
from automodel_mesh.tracking.comparison import Comparison, Verdict, compare
from automodel_mesh.tracking.ledger import Ledger, LedgerError, load_ledger
from automodel_mesh.tracking.progress import progress
from automodel_mesh.tracking.sources import Sources, SourcesError

if TYPE_CHECKING:
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
    add_index_options(track)
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
        return refuse(str(error))
    except OSError:  # of stdout: those of sources are SourcesErrors
        raise
    except Exception as error:  # noqa: BLE001 - Python would exit with 1, which means that the torch breaks our code
        reason = f"{type(error).__name__}: {str(error)[:500]}"
        return refuse(
            f"torch {options.what[:80]} could not be read or compared: {reason}; give another index with --index-url, "
            "or a wheel or a folder with torch"
        )
    return STATUSES[comparison.verdict]


def _compare(options: argparse.Namespace) -> tuple[Comparison, Ledger | None]:
    """Compare the torch with the ledger; with `--record`, return the ledger with that torch added."""
    ledger = load_ledger()
    if options.ledger_until is not None:
        ledger = ledger.cut(options.ledger_until)
    with progress() as watch:

        def read(what: str) -> Sources:
            return read_sources(what, ledger.paths, index_url=options.index_url, cache=cache_of(options), watch=watch)

        sources = read(options.what)
        watch("comparing")
        comparison = compare(ledger, sources, fetch=read)
    return comparison, ledger.record(sources) if options.record else None


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
