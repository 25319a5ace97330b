"""Shows a run of `automodel-mesh doctor` on stdout or stderr: what is being checked, each result, and the report."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from automodel_mesh.doctor.report import failure_lines, total_line
from automodel_mesh.doctor.run import Listener
from automodel_mesh.terminal import ERASE_LINE, hint_at_rich, rich_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from automodel_mesh.doctor.checks import Check
    from automodel_mesh.doctor.report import CheckResult, Report

_MARKS: Final = {"passed": "ok", "failed": "FAILED", "not run": "not run"}
_COLOURS: Final = {"passed": "green", "failed": "bold red", "not run": "yellow"}


class Display(Listener, Protocol):
    """Shows a run while it goes on, and its report: `begin` first, `show` last."""

    def begin(self, heading: Sequence[str]) -> None:
        """Show the lines above the checks."""

    def running(self) -> AbstractContextManager[Any]:
        """Return a context manager that is entered while checks run."""
        ...

    def show(self, report: Report) -> None:
        """Show what went wrong, and the total."""


def open_display(number: int, *, as_json: bool) -> Display:
    """Choose how to show a run.

    Args:
        number: how many checks will run.
        as_json: whether stdout is reserved for a JSON document.

    Returns:
        A table, if stdout is a terminal and rich is installed; otherwise lines, which go to stderr with `as_json`.
    """
    if as_json:
        return _PlainDisplay(sys.stderr, sys.stderr)
    if sys.stdout.isatty() and (console := rich_module("console")) is not None:
        return _RichDisplay(console.Console(highlight=False), number)
    return _PlainDisplay(sys.stdout, sys.stderr)


class _PlainDisplay(Display):
    """A line for each check when it has ended, and on a terminal one with the check that is running."""

    def __init__(self, lines: TextIO, live: TextIO) -> None:
        self._lines = lines
        self._live = live if live.isatty() else None

    def begin(self, heading: Sequence[str]) -> None:
        self._write([*heading, ""])

    def running(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def started(self, check: Check) -> None:
        self._write_live(f"{ERASE_LINE}checking {check.name} ...")

    def finished(self, result: CheckResult) -> None:
        self._write_live(ERASE_LINE)
        self._write([f"{_MARKS[result.status]:7} {result.seconds:6.2f} s  {result.name:22}  {result.promise}"])

    def show(self, report: Report) -> None:
        for result in report.results:
            for heading, details in failure_lines(result):
                self._write(["", heading, *details])
        self._write(["", total_line(report)])
        if self._lines.isatty():
            hint_at_rich("a table")

    def _write(self, lines: Sequence[str]) -> None:
        # Flushed, so that the lines are seen at once, and not written again by ranks that are forked later.
        self._lines.write("".join(f"{line}\n" for line in lines))
        self._lines.flush()

    def _write_live(self, text: str) -> None:
        if self._live is not None:
            self._live.write(text)
            self._live.flush()


class _RichDisplay(Display):
    """A progress bar while checks run, then a table."""

    def __init__(self, console: Console, number: int) -> None:
        import rich.progress as bars  # noqa: PLC0415

        self._console = console
        # Drawn when a check starts or ends only: auto_refresh would start a thread, while ranks are forked.
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
        for line in heading:
            self._console.print(line, markup=False)

    def running(self) -> AbstractContextManager[Any]:
        return self._progress

    def started(self, check: Check) -> None:
        self._progress.update(self._task, description=check.name, refresh=True)

    def finished(self, result: CheckResult) -> None:
        if not result.passed:
            self._progress.console.print(f"{_MARKS[result.status]} {result.name}", style=_COLOURS[result.status])
        self._progress.update(self._task, advance=1, refresh=True)

    def show(self, report: Report) -> None:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table("", "check", "promise")
        table.add_column("time", justify="right", no_wrap=True)
        for result in report.results:
            mark = Text(_MARKS[result.status], style=_COLOURS[result.status])
            table.add_row(mark, result.name, result.promise, f"{result.seconds:.2f} s")
        self._console.print(table)
        for result in report.results:
            for heading, details in failure_lines(result):
                self._console.print(f"\n{heading}", style="bold red", markup=False)
                self._console.print("\n".join(details), markup=False)
        style = "bold green" if report.passed else "bold red"
        self._console.print(f"\n{total_line(report)}", style=style, markup=False)
