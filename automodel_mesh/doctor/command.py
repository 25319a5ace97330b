"""`automodel-mesh doctor`: checks the contract on local gloo ranks of the installed torch, and shows what it found.

The report goes to stdout. With `--json` stdout has one JSON document and nothing else, and the progress goes to
stderr:

    schema        1; a higher number where a key is renamed or removed, which a new key is no reason for
    passed        whether every check passed
    environment   versions as text: automodel_mesh, torch, python, platform, era (the module of
                  automodel_mesh.compat that serves this torch), minimum_torch, newest_tested_torch
    ranks         number of ranks
    mesh_shape    sizes of the axes pp, dp and tp of the mesh that most checks share
    seconds       how long all of it took, without the import of torch
    checks        one object for each check, in the order they ran:
        name, promise
        status    "passed", "failed", or "not run" (where no ranks could be started)
        seconds   until the last rank had finished it
        failures  one object for each rank that did not finish it, the cause first:
            rank
            kind       "raised", "died", "hung" (still running at the time limit) or "stopped" (it waited for
                       a rank that had failed)
            error      one line
            traceback  the whole traceback, or the stacks of a rank that was stuck; may be empty
            output     what the rank wrote to stdout and stderr
            seconds    when it happened, from the start of its ranks; null where the rank was stopped

`--list --json` prints `schema` and `checks`, each with its `name` and `promise`.

Exit status: 0 if every check passed, 1 if one did not, 2 where the arguments are wrong or the installed torch
is not supported (then stdout is empty), 130 after Ctrl-C.

torch is imported by `run` only, so that `--help` and wrong arguments answer at once, and an unsupported torch gives
its message instead of a traceback. rich is used where it is installed and stdout is a terminal.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from automodel_mesh.terminal import ERASE_LINE, rich_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from automodel_mesh.doctor.checks import Check
    from automodel_mesh.doctor.run import CheckResult, Environment, Report
    from automodel_mesh.testing.report import RankFailure

JSON_SCHEMA: Final = 1

PASSED: Final = 0
FAILED: Final = 1
UNUSABLE: Final = 2

_MARKS: Final = {"passed": "ok", "failed": "FAILED", "not run": "not run"}
_COLOURS: Final = {"passed": "green", "failed": "bold red", "not run": "yellow"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: what `ArgumentParser.add_subparsers` gave.
    """
    doctor = commands.add_parser(
        "doctor",
        help="check the contract on the installed torch, on local gloo ranks",
        description="Start local gloo ranks on the installed torch, check the contract on them, and report.",
        epilog="Exit status: 0 all checks passed, 1 one did not, 2 wrong arguments or an unsupported torch.",
    )
    doctor.add_argument(
        "--ranks",
        type=_rank_count,
        default=8,
        metavar="N",
        help="how many ranks to start, at least 2 (default: 8)",
    )
    doctor.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="stop ranks that are still running after so long (default: 60)",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON document, and the progress to stderr")
    doctor.add_argument("--list", action="store_true", help="list the checks and run none")


def _rank_count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 2")
    return count


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
        options: what the parser made of the arguments that `add_parser` added.
        version: which automodel-mesh this is, for the report.
        checks: what is checked; by default the whole contract.

    Returns:
        The exit status; see the description of this module.
    """
    try:
        # Not at the top: they import torch, and the gate refuses a torch that is not supported.
        from automodel_mesh.doctor import checks as contract  # noqa: PLC0415
        from automodel_mesh.doctor.run import describe_environment, run_checks  # noqa: PLC0415
    except ImportError as error:
        sys.stderr.write(f"automodel-mesh: {error}\n")
        return UNUSABLE
    checks = contract.CHECKS if checks is None else checks
    if options.list:
        _show_list(checks, as_json=options.json)
        return PASSED
    display = _display(as_json=options.json, number=len(checks), version=version)
    shape = contract.mesh_shape(options.ranks)
    display.begin(_heading(version, describe_environment(), options.ranks, shape))
    with display.running():
        report = run_checks(options.ranks, timeout=options.timeout, checks=checks, watch=display)
    display.show(report)
    return PASSED if report.passed else FAILED


def _show_list(checks: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        _write_json({"checks": [{"name": check.name, "promise": check.promise} for check in checks]})
        return
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        sys.stdout.write(f"{check.name:{width}}  {check.promise}\n")


# --- displays


class _Display(Protocol):
    """Shows a run while it goes on, and its report."""

    def begin(self, heading: Sequence[str]) -> None: ...
    def running(self) -> AbstractContextManager[Any]: ...
    def started(self, check: Check) -> None: ...
    def finished(self, result: CheckResult) -> None: ...
    def show(self, report: Report) -> None: ...


def _display(*, as_json: bool, number: int, version: str) -> _Display:
    if as_json:
        return _JsonDisplay(sys.stderr, sys.stderr, version)
    if sys.stdout.isatty() and (console := rich_module("console")) is not None:
        return _RichDisplay(console.Console(highlight=False), number)
    return _PlainDisplay(sys.stdout, sys.stderr)


class _PlainDisplay:
    """A line for each check as it ends, and on a terminal one that says what is being checked."""

    def __init__(self, lines: TextIO, live: TextIO) -> None:
        self._lines = lines
        self._live = live if live.isatty() else None

    def begin(self, heading: Sequence[str]) -> None:
        """Say what is examined."""
        self._write([*heading, ""])

    def running(self) -> AbstractContextManager[None]:
        """Nothing has to be held open while checks run."""
        return nullcontext()

    def started(self, check: Check) -> None:
        """Say what is being checked, on a line that goes when it ends."""
        if self._live is not None:
            self._live.write(f"{ERASE_LINE}checking {check.name} ...")
            self._live.flush()

    def finished(self, result: CheckResult) -> None:
        """Write the line of a check."""
        if self._live is not None:
            self._live.write(ERASE_LINE)
            self._live.flush()
        self._write([f"{_MARKS[result.status]:7} {result.seconds:6.2f} s  {result.name:22}  {result.promise}"])

    def show(self, report: Report) -> None:
        """Write what went wrong, and the total."""
        for result in report.results:
            for heading, details in _failures(result):
                self._write(["", heading, *details])
        self._write(["", _total(report)])

    def _write(self, lines: Sequence[str]) -> None:
        # Flushed, because ranks are forked later on, and so that the lines come when they are due.
        self._lines.write("".join(f"{line}\n" for line in lines))
        self._lines.flush()


class _JsonDisplay(_PlainDisplay):
    """Lines on stderr while checks run, then one JSON document on stdout."""

    def __init__(self, lines: TextIO, live: TextIO, version: str) -> None:
        super().__init__(lines, live)
        self._version = version

    def show(self, report: Report) -> None:
        """Write the document."""
        _write_json(_document(report, self._version))


class _RichDisplay:
    """A progress bar while checks run, then a table, for terminals."""

    def __init__(self, console: Console, number: int) -> None:
        import rich.progress as bars  # noqa: PLC0415

        self._console = console
        # It draws itself at our events only: left to itself it would start a thread, while ranks are forked.
        self._progress: Progress = bars.Progress(
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID = self._progress.add_task("starting ranks", total=number)

    def begin(self, heading: Sequence[str]) -> None:
        """Say what is examined."""
        for line in heading:
            self._console.print(line, markup=False)

    def running(self) -> AbstractContextManager[Any]:
        """Keep the bar on the screen while checks run."""
        return self._progress

    def started(self, check: Check) -> None:
        """Say beside the bar what is being checked."""
        self._progress.update(self._task, description=check.name, refresh=True)

    def finished(self, result: CheckResult) -> None:
        """Let the bar grow; a failure is told at once."""
        if not result.passed:
            self._progress.console.print(f"{_MARKS[result.status]} {result.name}", style=_COLOURS[result.status])
        self._progress.update(self._task, advance=1, refresh=True)

    def show(self, report: Report) -> None:
        """Draw the table, then what went wrong, and the total."""
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table("", "check", "promise")
        table.add_column("time", justify="right", no_wrap=True)
        for result in report.results:
            mark = Text(_MARKS[result.status], style=_COLOURS[result.status])
            table.add_row(mark, result.name, result.promise, f"{result.seconds:.2f} s")
        self._console.print(table)
        for result in report.results:
            for heading, details in _failures(result):
                self._console.print(f"\n{heading}", style="bold red", markup=False)
                self._console.print("\n".join(details), markup=False)
        self._console.print(f"\n{_total(report)}", style="bold green" if report.passed else "bold red", markup=False)


# --- texts


def _heading(version: str, environment: Environment, ranks: int, shape: tuple[int, ...]) -> list[str]:
    axes = ", ".join(f"{name}={size}" for name, size in zip(("pp", "dp", "tp"), shape, strict=True))
    lines = [
        f"automodel-mesh {version} doctor",
        f"torch {environment.torch}, Python {environment.python}, {environment.platform}",
        f"era {environment.era}; supported: torch {environment.minimum_torch} and newer, tested up to "
        f"{environment.newest_tested_torch}",
        f"{ranks} local gloo ranks as {axes}",
    ]
    if min(shape) == 1:
        lines.append("(an axis of one rank cannot show everything: with 8 ranks three axes have more than one)")
    return lines


def _failures(result: CheckResult) -> Iterator[tuple[str, list[str]]]:
    """Put into words what each rank did that did not finish a check; ranks with the same tale share it."""
    told: dict[tuple[str, str], list[RankFailure]] = {}
    for failure in result.failures:
        # What a rank does that waits for a rank that failed tells nothing; JSON has it.
        details = "" if failure.kind == "stopped" else failure.details
        told.setdefault((failure.summary, details), []).append(failure)
    for (summary, details), failures in told.items():
        ranks = ", ".join(str(failure.rank) for failure in sorted(failures, key=lambda failure: failure.rank))
        first = summary.splitlines()[0] if summary else "did not finish"
        lines = details.rstrip().splitlines()
        for failure in failures:
            if failure.output.strip():
                lines += [f"output of rank {failure.rank}:", *failure.output.rstrip().splitlines()]
        yield (
            f"{result.name}: rank{'s' if len(failures) > 1 else ''} {ranks} {first}",
            [f"    {line}" for line in lines],
        )


def _total(report: Report) -> str:
    count = len(report.results)
    where = f"on {report.ranks} ranks in {report.seconds:.1f} s"
    bad = [result.name for result in report.results if not result.passed]
    if not bad:
        return f"all {count} checks passed {where}"
    return f"{len(bad)} of {count} checks did not pass {where}: {', '.join(bad)}"


def _document(report: Report, version: str) -> dict[str, Any]:
    return {
        "passed": report.passed,
        "environment": {"automodel_mesh": version, **asdict(report.environment)},
        "ranks": report.ranks,
        "mesh_shape": list(report.mesh_shape),
        "seconds": round(report.seconds, 3),
        "checks": [
            {
                "name": result.name,
                "promise": result.promise,
                "status": result.status,
                "seconds": round(result.seconds, 3),
                "failures": [_failure_object(failure) for failure in result.failures],
            }
            for result in report.results
        ],
    }


def _failure_object(failure: RankFailure) -> dict[str, Any]:
    return {
        "rank": failure.rank,
        "kind": failure.kind,
        "error": failure.summary,
        "traceback": failure.details,
        "output": failure.output,
        # JSON has no infinity, which stands for "stopped by the time limit".
        "seconds": round(failure.seconds, 3) if math.isfinite(failure.seconds) else None,
    }


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"schema": JSON_SCHEMA, **document}, indent=2) + "\n")
    sys.stdout.flush()
