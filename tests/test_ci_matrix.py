"""ci_matrix/torch.toml is consistent, and nox runs exactly what it lists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from automodel_mesh.compat import MINIMUM_TORCH, NEWEST_TESTED_TORCH
from automodel_mesh.compat.eras.support import era_name

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent
MATRIX: dict[str, Any] = tomli.loads((ROOT / "ci_matrix/torch.toml").read_text())
ROWS: list[dict[str, Any]] = MATRIX["rows"]
NEXT_PYTHON: str = MATRIX["next_python"]
PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASES = [Version(row["torch"]) for row in ROWS]

each_row = pytest.mark.parametrize("row", ROWS, ids=[row["torch"] for row in ROWS])


def list_sessions(*arguments: str) -> dict[str, dict[str, Any]]:
    """Ask nox for its sessions, by name."""
    command = [sys.executable, "-m", "nox", "--list", "--json", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return {entry["session"]: entry for entry in json.loads(answer.stdout)}


def label(release: Version) -> str:
    """Return the name of a release in the names of sessions."""
    short = f"{release.major}.{release.minor}"
    newest = max(other for other in RELEASES if (other.major, other.minor) == (release.major, release.minor))
    return short if release == newest else str(release)


def labels_by_era() -> list[list[str]]:
    """Return the names of the releases of each era."""
    eras: dict[str, list[str]] = {}
    for release in RELEASES:
        eras.setdefault(era_name(release), []).append(label(release))
    return list(eras.values())


def short_run() -> list[str]:
    """Return the names of the releases of the short run."""
    marked = [release for release, row in zip(RELEASES, ROWS, strict=True) if row.get("short_run")]
    return [label(release) for release in sorted({*marked, RELEASES[-1]})]


def test_rows_are_sorted_and_unique() -> None:
    """The rows go from the oldest torch to the newest, each listed once."""
    assert sorted(set(RELEASES)) == RELEASES


def test_rows_span_the_supported_releases() -> None:
    """The first row is the oldest torch that compat supports, the last is `NEWEST_TESTED_TORCH`."""
    assert (RELEASES[0], RELEASES[-1]) == (MINIMUM_TORCH, NEWEST_TESTED_TORCH)


def test_rows_leave_out_no_release() -> None:
    """Every minor release between the oldest and the newest has a row."""
    first, last = RELEASES[0], RELEASES[-1]
    assert {release.minor for release in RELEASES} == set(range(first.minor, last.minor + 1))


def test_oldest_row_is_the_requirement() -> None:
    """The package requires the oldest torch of the matrix and no newer one."""
    assert f"torch>={MINIMUM_TORCH}" in PROJECT["dependencies"]


def test_readme_names_the_releases() -> None:
    """The first sentence of the README names the oldest and the newest release of the matrix."""
    newest = f"{NEWEST_TESTED_TORCH.major}.{NEWEST_TESTED_TORCH.minor}"
    assert f"on every PyTorch release from {MINIMUM_TORCH} to {newest}." in (ROOT / "README.md").read_text()


@each_row
def test_the_python_of_a_row_is_supported(row: dict[str, Any]) -> None:
    """A row's Python is one that both the torch wheel and this package accept."""
    python = Version(row["python"])
    assert python in SpecifierSet(row["requires_python"])
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_pythons_of_the_classifiers_are_covered() -> None:
    """The rows, and the Python that is tried on the newest torch, are those that the package says it supports."""
    prefix = "Programming Language :: Python :: 3."
    claimed = {line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)}
    assert {python.removeprefix("3.") for python in (*(row["python"] for row in ROWS), NEXT_PYTHON)} == claimed
    assert max(map(Version, (row["python"] for row in ROWS))) < Version(NEXT_PYTHON)


def test_the_next_python_is_tried() -> None:
    """Nox has a session for it, and the workflow runs that."""
    assert list_sessions("-s", "next-python")["next-python"]["python"] == NEXT_PYTHON
    assert "- run: nox -s next-python\n" in (ROOT / ".github/workflows/ci.yml").read_text()


@each_row
def test_backends_of_a_row_are_known(row: dict[str, Any]) -> None:
    """A row names gloo and fake for the CPU, and NCCL or gloo for CUDA."""
    assert set(row["backends"]) == {"gloo", "fake"}
    assert row["cuda_backends"]
    assert set(row["cuda_backends"]) <= {"nccl", "gloo"}


@each_row
def test_rows_have_no_unknown_keys(row: dict[str, Any]) -> None:
    """A row has only keys that the comment at the top of the file explains, so that a misspelt key is found."""
    known = {"torch", "python", "requires_python", "backends", "cuda_backends", "short_run", "expected_failures"}
    assert set(row) <= known
    assert row.get("short_run", True) is True


@each_row
def test_expected_failures_name_tests_and_reasons(row: dict[str, Any]) -> None:
    """An expected failure names a test function that exists, and has a reason."""
    for node, reason in row.get("expected_failures", {}).items():
        path, *_, function = node.partition("[")[0].split("::")
        assert f"def {function}(" in (ROOT / path).read_text()
        assert len(reason.split()) > 2


def test_matrix_sessions_are_the_rows() -> None:
    """`nox -t matrix` runs one tests session per row, on the row's Python, and nothing else."""
    listed = {name: entry["python"] for name, entry in list_sessions("-t", "matrix").items()}
    rows = zip(RELEASES, ROWS, strict=True)
    assert listed == {f"tests-{label(release)}": row["python"] for release, row in rows}


def test_examples_run_on_the_short_run() -> None:
    """`nox -s examples` runs on the rows marked `short_run` and on the newest."""
    assert set(list_sessions("-t", "examples")) == {f"examples-{name}" for name in short_run()}


def test_bench_runs_at_the_bounds_of_each_era() -> None:
    """`nox -s bench` runs on the first and the last release of each era."""
    bounds = {name for era in labels_by_era() for name in (era[0], era[-1])}
    assert set(list_sessions("-t", "bench")) == {f"bench-{name}" for name in bounds}


def test_cuda_sessions_are_the_rows() -> None:
    """There is one cuda session per row, named as its tests session is."""
    runs = tomli.loads((ROOT / "ci_matrix/nemo.toml").read_text())["runs"]
    labels = {label(release) for release in RELEASES}
    wanted = {f"drop-in-{run['nemo']}-{run['torch']}" for run in runs if run["torch"] in labels}
    assert set(list_sessions("-t", "drop-in")) == wanted
    assert set(list_sessions("-t", "cuda")) == {f"cuda-{label(release)}" for release in RELEASES}


def test_downstream_sessions_are_the_runs() -> None:
    """There is one session per package and torch release that it runs on."""
    runs = tomli.loads((ROOT / "ci_matrix/downstream.toml").read_text())["runs"]
    labels = {label(release) for release in RELEASES}
    wanted = {
        f"downstream-{run['package']}-{release}"
        for run in runs
        for release in run["torch"]
        if {release, run.get("saved", release)} <= labels
    }
    assert set(list_sessions("-t", "downstream")) == wanted


def test_plain_nox_runs_the_short_list() -> None:
    """Plain `nox` runs lint, typing, releases, and the tests on the releases of the short run."""
    assert set(list_sessions()) == {"lint", "typing", "releases", *(f"tests-{name}" for name in short_run())}


def test_each_session_installs_the_row_of_its_name() -> None:
    """A short name such as `tests-2.9` installs the newest listed patch; another patch has its full number."""
    sessions = list_sessions("-t", "matrix")
    for release in RELEASES:
        assert f"torch {release}," in sessions[f"tests-{label(release)}"]["description"]


def test_every_session_says_what_it_does() -> None:
    """Each session has a description in nox's list."""
    command = [sys.executable, "-m", "nox", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    lines = [line for line in listed.stdout.splitlines() if line.startswith(("* ", "- "))]
    assert len(lines) > len(ROWS)
    assert [line for line in lines if " -> " not in line] == []


def test_workflow_runs_what_plain_nox_runs() -> None:
    """The GitHub workflow runs each session of plain `nox`; the tests sessions come from the matrix."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    (named,) = re.findall(r"^ *session: \[(.*)\]$", workflow, re.MULTILINE)
    assert {name for name in list_sessions() if not name.startswith("tests-")} <= set(named.split(", "))


def test_workflow_takes_its_matrix_from_nox() -> None:
    """The GitHub workflow names no torch release, and no Python of the matrix."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert "nox --list --json -t matrix" in workflow
    assert [row["torch"] for row in ROWS if row["torch"] in workflow] == []
    assert [name for name in list_sessions("-t", "matrix") if name in workflow] == []
