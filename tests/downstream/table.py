"""Reads ci_matrix/downstream.toml, and compares results with it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Final

import tomli

MESHES: Final = ("plain", "ours")
WORKS: Final = "works"
PATH: Final = Path(__file__).parents[2] / "ci_matrix/downstream.toml"


@cache
def load() -> dict[str, Any]:
    """Return the table."""
    return tomli.loads(PATH.read_text(encoding="utf-8"))


def find_run(package: str, release: str) -> dict[str, Any]:
    """Return the run of a package on a torch release."""
    (run,) = (run for run in load()["runs"] if run["package"] == package and release in run["torch"])
    found: dict[str, Any] = run
    return found


def expected_failure(package: str, release: str, what: str, meshes: str) -> str | None:
    """Return the regular expression of a failure that is expected, `None` if a check must work."""
    for failure in load()["failures"]:
        if (
            failure["package"] == package
            and release in failure["torch"]
            and any(fnmatchcase(what, pattern) for pattern in failure["what"])
            and meshes in failure["meshes"]
        ):
            error: str = failure["error"]
            return error
    return None


def unexpected(package: str, release: str, row: dict[str, str]) -> dict[str, str]:
    """Return what was expected instead, for the meshes with which a check did something else."""
    wrong: dict[str, str] = {}
    for meshes in MESHES:
        failure = expected_failure(package, release, row["what"], meshes)
        if not (row[meshes] == WORKS if failure is None else re.search(failure, row[meshes])):
            wrong[meshes] = failure or WORKS
    return wrong
