"""What the sessions that need other packages found: written into ci_matrix/results/, shown by docs/compatibility.md.

A session such as `downstream-accelerate-2.9` has one file, with its date, the versions of the packages, and its rows.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FOLDER: Final = Path(__file__).parents[1] / "ci_matrix/results"

Row = dict[str, str]
"""`what` was tried; what came of it on `plain` torch, or with the package's own modules; and with `ours`."""


@dataclass(frozen=True)
class Result:
    """What one session found.

    Attributes:
        session: its name.
        date: the day, in UTC, as `2026-11-27`.
        python: the version of Python.
        packages: the versions of the packages that it is about, torch among them.
        rows: what was tried.
    """

    session: str
    date: str
    python: str
    packages: dict[str, str]
    rows: list[Row] = field(default_factory=list[Row])


def record(session: str, packages: Iterable[str], rows: Iterable[Row], folder: Path = FOLDER) -> Path:
    """Write what a session found, and return the file.

    Args:
        session: its name; the file is named after it, and an older file of that name is replaced.
        packages: the names of installed packages that it is about; torch is added.
        rows: one for each thing that was tried, with the keys `what`, `plain` and `ours`.
        folder: where to write.
    """
    versions = {name: metadata.version(name) for name in dict.fromkeys((*packages, "torch"))}
    versions = {name: version.partition("+")[0] for name, version in versions.items()}  # without the build, `+cu130`
    rows = [{key: row[key] for key in ("what", "plain", "ours")} for row in rows]
    today = datetime.now(tz=timezone.utc).date().isoformat()
    result = Result(session, today, platform.python_version(), versions, rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{session}.json"
    path.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(prefix: str, folder: Path = FOLDER) -> list[Result]:
    """Return what the sessions whose names start with `<prefix>-` found, by package, oldest torch first."""
    files: list[dict[str, Any]] = [json.loads(path.read_text("utf-8")) for path in folder.glob(f"{prefix}-*.json")]
    results = [Result(**each) for each in files]
    return sorted(results, key=lambda each: (about(each), Version(each.packages["torch"]), each.session))


def about(result: Result) -> str:
    """Name the packages of a session with their versions, without torch if there are others."""
    others = [f"{name} {version}" for name, version in result.packages.items() if name != "torch"]
    return ", ".join(others) or "torch"


def table(prefix: str, headings: Sequence[str], folder: Path = FOLDER, *, but: str | None = None) -> list[str]:
    """Show what the sessions of a prefix found in Markdown: a table for each package.

    Torch releases on which the same came of something share a line.

    Args:
        prefix: what the names of the sessions start with, without the hyphen.
        headings: those of the columns `plain` and `ours`.
        folder: where the files are.
        but: a prefix of sessions that are left out.
    """
    found: dict[tuple[str, ...], list[Result]] = {}
    left_out = [] if but is None else [result.session for result in read(but, folder)]
    for result in read(prefix, folder):
        if result.session in left_out:
            continue
        for row in result.rows:
            ours = "the same" if row["ours"] == row["plain"] != "works" else row["ours"]
            found.setdefault((about(result), row["what"], row["plain"], ours), []).append(result)
    order = list(dict.fromkeys(key[:2] for key in found))
    rows = sorted(found.items(), key=lambda item: order.index(item[0][:2]))
    lines: list[str] = []
    for package, of_package in groupby(rows, key=lambda item: item[0][0]):
        of_this = list(of_package)
        dates = sorted({result.date for _, by in of_this for result in by})
        lines += [f"**{package}**, run on {' and '.join(dates)}", ""]
        lines += [f"| what | torch | {' | '.join(headings)} |", "|---" * 4 + "|"]
        for (_, what, *came), by in of_this:
            cells = (what, ", ".join(result.packages["torch"] for result in by), *came)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return lines or ["Not run yet."]
