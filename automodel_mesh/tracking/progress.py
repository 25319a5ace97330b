"""Shows the progress of reading a torch on stderr: on a line that is rewritten, or with a bar of rich."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, TextIO

from automodel_mesh.terminal import ERASE_LINE, rich_module, terminal_width, visible
from automodel_mesh.tracking.sources import Unit, Watch, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Generator

_SECONDS_PER_REDRAW: Final = 0.1


def progress() -> AbstractContextManager[Watch]:
    """Show progress on stderr while the block runs, if that is a terminal; the block gets a callback for steps."""
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
