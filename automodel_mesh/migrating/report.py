"""The report of `automodel-mesh migrate`: lines, a unified diff, or a JSON document."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from automodel_mesh.migrating.rewriting import Rewriting

SCHEMA: Final = 1


@dataclass(frozen=True)
class File:
    """A file of the report.

    Attributes:
        path: as it was found below the paths that were given.
        before: its code as it was.
        rewriting: the code as it is now, the changes, and what was left; `None` if the file could not be read.
        problem: why it could not be read or written; empty if it could.
        written: whether the new code is in the file.
    """

    path: str
    before: str = ""
    rewriting: Rewriting | None = None
    problem: str = ""
    written: bool = False

    @property
    def changes(self) -> int:
        """How many changes there are."""
        return len(self.rewriting.changes) if self.rewriting is not None else 0


def as_lines(files: Sequence[File]) -> Iterator[str]:
    """Yield the lines for readers: changes, what was left, problems, and the sum."""
    for file in files:
        if file.rewriting is not None:
            for change in file.rewriting.changes:
                yield f"{file.path}:{change.line}: {change.before} -> {change.after}"
    yield from left_lines(files)
    yield summary(files)


def left_lines(files: Iterable[File]) -> Iterator[str]:
    """Yield the lines on what was left, and on files that could not be read or written."""
    for file in files:
        for left in file.rewriting.left if file.rewriting is not None else ():
            yield f"{file.path}:{left.line}: left: {left.code}: {left.why}"
        if file.problem:
            yield f"{file.path}: {file.problem}"


def summary(files: Sequence[File]) -> str:
    """Return the last line."""
    changed = [file for file in files if file.changes]
    written = [file for file in changed if file.written]
    changes = sum(file.changes for file in changed)
    left = sum(len(file.rewriting.left) for file in files if file.rewriting is not None)
    problems = sum(1 for file in files if file.problem)
    end = f", {_counted(problems, 'file')} not read or written" if problems else ""
    done = f", {len(written)} written" if written else ""
    return f"{_counted(changes, 'change')} in {_counted(len(changed), 'file')}{done}, {left} left{end}"


def as_diff(files: Iterable[File]) -> Iterator[str]:
    """Yield the lines of a unified diff that `git apply` and `patch -p1` take."""
    for file in files:
        if file.rewriting is None or not file.changes:
            continue
        path = file.path.lstrip("/")
        before, after = _lines(file.before), _lines(file.rewriting.source)
        for line in difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def as_document(files: Iterable[File]) -> dict[str, Any]:
    """Return the JSON document; docs/how-to/migrate.md describes its keys."""
    return {"schema": SCHEMA, "files": [_as_object(file) for file in files if file.rewriting is None or _is_news(file)]}


def _is_news(file: File) -> bool:
    return bool(file.changes or file.problem or (file.rewriting is not None and file.rewriting.left))


def _as_object(file: File) -> dict[str, Any]:
    changes = [] if file.rewriting is None else [asdict(change) for change in file.rewriting.changes]
    left = [] if file.rewriting is None else [asdict(one) for one in file.rewriting.left]
    return {"path": file.path, "changes": changes, "left": left, "problem": file.problem, "written": file.written}


def _lines(text: str) -> list[str]:
    """Split at newlines alone: Python code may contain a form feed."""
    return list(io.StringIO(text, newline="\n"))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
