"""ci_matrix/downstream.toml, the programs of tests/downstream/ and the results agree; `nox -s downstream` runs them."""

from __future__ import annotations

import re
import time
from collections import Counter
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch.distributed as dist
from packaging.version import Version

from tests import results
from tests.downstream import ranks, table

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent
RUNS: list[dict[str, Any]] = table.load()["runs"]
FAILURES: list[dict[str, Any]] = table.load()["failures"]
PAIRS = [(run["package"], release) for run in RUNS for release in run["torch"]]
RESULTS = {result.session: result for result in results.read("downstream")}


LABELS = {row["torch"].rpartition(".")[0] for row in tomli.loads((ROOT / "ci_matrix/torch.toml").read_text())["rows"]}


def is_known(label: str) -> bool:
    """Tell whether a label is that of a release of the matrix, or of one that has been dropped."""
    return label in LABELS or Version(label) < min(map(Version, LABELS))


def names_of(package: str) -> set[str]:
    """Return the names of a program's checks; those of the checkpoints of another torch are in the results alone."""
    program = import_module(f"tests.downstream.{package.replace('-', '_')}")
    recorded = [RESULTS[f"downstream-{package}-{release}"].rows for name, release in PAIRS if name == package]
    return {check.what for check in program.CHECKS} | {row["what"] for rows in recorded for row in rows}


@pytest.mark.parametrize("run", RUNS, ids=[f"{run['package']}-{run['torch'][0]}" for run in RUNS])
def test_a_run_is_complete(run: dict[str, Any]) -> None:
    """It has a program, releases of the matrix, exact versions of what its results are about, and no other keys."""
    assert {"package", "about", "torch", "with", "without"} <= run.keys()
    assert run.keys() <= {"package", "about", "torch", "with", "without", "python", "saved"}
    assert all(map(is_known, (*run["torch"], run.get("saved", run["torch"][0]))))
    assert set(run["about"]) <= {line.partition("==")[0] for line in (*run["with"], *run["without"])}
    assert import_module(f"tests.downstream.{run['package'].replace('-', '_')}").CHECKS


def test_runs_are_unique() -> None:
    """A package runs once on a release."""
    assert [pair for pair, number in Counter(PAIRS).items() if number > 1] == []


@pytest.mark.parametrize("failure", FAILURES, ids=[f"{each['package']}-{each['why'][:30]}" for each in FAILURES])
def test_an_expected_failure_is_complete(failure: dict[str, Any]) -> None:
    """It names checks that exist, on releases that are run, with a regular expression and a reason."""
    assert failure.keys() == {"package", "torch", "what", "meshes", "error", "why"}
    assert {(failure["package"], release) for release in failure["torch"]} <= set(PAIRS)
    assert set(failure["meshes"]) <= set(table.MESHES)
    assert len(failure["why"].split()) > 2
    re.compile(failure["error"])
    names = names_of(failure["package"])
    assert [each for each in failure["what"] if not any(fnmatchcase(name, each) for name in names)] == []


def test_each_run_has_a_result_and_no_other_has() -> None:
    """What a run found is recorded, and what was recorded for a run that is gone is deleted."""
    assert RESULTS.keys() == {f"downstream-{package}-{release}" for package, release in PAIRS}


@pytest.mark.parametrize(("package", "release"), PAIRS)
def test_results_are_as_expected(package: str, release: str) -> None:
    """What is recorded agrees with the expected failures, of the versions that are installed now."""
    result, run = RESULTS[f"downstream-{package}-{release}"], table.find_run(package, release)
    assert [row for row in result.rows if table.unexpected(package, release, row)] == []
    installed = dict(line.split("==") for line in (*run["with"], *run["without"]) if "==" in line)
    assert {name: result.packages[name] for name in run["about"]} == {name: installed[name] for name in run["about"]}


def test_a_failure_that_does_not_come_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So are another error, and a check that fails though it must work."""
    failure = {"package": "a", "torch": ["2.9"], "what": ["t*"], "meshes": ["plain"], "error": "no .*mesh", "why": ""}
    monkeypatch.setattr(table, "load", lambda: {"failures": [failure]})
    row = {"what": "trains", "plain": "KeyError: no such mesh", "ours": "works"}
    assert table.unexpected("a", "2.9", row) == {}
    assert table.unexpected("a", "2.9", {**row, "plain": "works"}) == {"plain": "no .*mesh"}
    assert table.unexpected("a", "2.9", {**row, "plain": "ValueError", "ours": "hangs"}) == {
        "plain": "no .*mesh",
        "ours": "works",
    }
    assert table.unexpected("a", "2.10", row) == {"plain": "works"}


def fails_on_one() -> None:
    """Fail on rank 1, while rank 0 waits for it."""
    if dist.get_rank() == 1:
        raise ValueError("no such file: '/tmp/some/place/file.py'\nmore")
    dist.barrier()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails_on_one, "ValueError: no such file: 'file.py'"),
        (lambda: time.sleep(600), "did not end within 1 s"),
    ],
)
def test_what_happened_on_the_ranks_is_said_in_a_line(function: Any, message: str) -> None:
    """The first failure is reported, and ranks that do not end are stopped."""
    with pytest.raises(ranks.RankError) as caught:
        ranks.run(function, 2, seconds=1 if "end" in message else 60)
    assert str(caught.value) == message


def test_the_ranks_return_in_their_order() -> None:
    """Each returns what the function did."""
    assert ranks.run(dist.get_rank, 3) == [0, 1, 2]
