"""`automodel-mesh doctor`: how it runs checks on ranks, how it reports failures, and that its checks can fail."""

from __future__ import annotations

import math
import os
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from automodel_mesh import compat
from automodel_mesh.doctor.checks import CHECKS, Check
from automodel_mesh.doctor.report import CheckResult, describe_environment, failure_lines, heading_lines
from automodel_mesh.doctor.run import run_checks
from automodel_mesh.doctor.world import ContractBrokenError, World, mesh_shape, ranks_along
from automodel_mesh.testing import RankFailure, fake_world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.device_mesh import DeviceMesh


class Recorder:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def started(self, check: Check) -> None:
        """Record that a check has started."""
        self.calls.append(("started", check.name))

    def finished(self, result: CheckResult) -> None:
        """Record the result of a check."""
        self.calls.append((result.status, result.name))


def fine(world: World) -> None:
    """Pass."""


def broken_on_rank_1(world: World) -> None:
    """Raise on one rank, while the other one waits for it."""
    if world.rank == 1:
        raise ContractBrokenError("wrong on rank one")
    dist.barrier()


def hangs(world: World) -> None:
    """Never return on rank 0."""
    if world.rank == 0:
        time.sleep(1000)


def dies(world: World) -> None:
    """Exit on rank 1 without an exception."""
    if world.rank == 1:
        os._exit(3)


def checks_named(*names: str) -> list[Check]:
    """Return a check for each of these functions above."""
    return [Check(name, f"promise of {name}", globals()[name]) for name in names]


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("ranks", "shape"),
    [
        (1, (1, 1, 1)),
        (2, (2, 1, 1)),
        (6, (3, 2, 1)),
        (7, (7, 1, 1)),
        (8, (2, 2, 2)),
        (12, (3, 2, 2)),
        (16, (4, 2, 2)),
    ],
)
def test_ranks_are_spread_evenly_over_three_axes(ranks: int, shape: tuple[int, int, int]) -> None:
    """Ranks are spread over three axes as evenly as their factors allow, the largest first."""
    assert mesh_shape(ranks) == shape


@pytest.mark.release_independent
@settings(deadline=None)
@given(st.integers(1, 4096))
def test_the_three_axes_hold_every_rank(ranks: int) -> None:
    """The sizes of the three axes multiply to the number of ranks."""
    assert math.prod(mesh_shape(ranks)) == ranks


@pytest.mark.release_independent
@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_ranks_along_axes_are_those_that_numpy_finds(data: st.DataObject, shape: list[int]) -> None:
    """The ranks of a group are those that NumPy finds by moving its axes to the end."""
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True).map(sorted))
    others = [dim for dim in range(len(shape)) if dim not in dims]
    ranks = np.arange(math.prod(shape)).reshape(shape)
    groups = ranks.transpose(others + dims).reshape(-1, math.prod(shape[dim] for dim in dims))
    for group in groups.tolist():
        for rank in group:
            assert ranks_along(rank, shape, dims) == group


@pytest.mark.release_independent
def test_checks_that_raise_on_no_rank_pass() -> None:
    """Checks that raise on no rank pass, in order, and the listener is called when each starts and ends."""
    listener = Recorder()
    checks = [Check("one", "first", fine), Check("two", "second", fine)]
    report = run_checks(2, checks=checks, listener=listener)
    assert report.passed
    assert [(result.name, result.promise, result.status) for result in report.results] == [
        ("one", "first", "passed"),
        ("two", "second", "passed"),
    ]
    assert listener.calls == [("started", "one"), ("passed", "one"), ("started", "two"), ("passed", "two")]


@pytest.mark.release_independent
def test_a_run_without_checks_passes() -> None:
    """A run of no checks starts no ranks and passes."""
    report = run_checks(2, checks=[])
    assert report.passed
    assert report.results == ()


@pytest.mark.release_independent
def test_a_check_that_raises_on_one_rank_has_failed() -> None:
    """A check that raises on one rank only has failed, with that rank and its traceback first."""
    report = run_checks(2, checks=checks_named("broken_on_rank_1"))
    assert not report.passed
    (result,) = report.results
    assert result.status == "failed"
    assert (result.failures[0].rank, result.failures[0].kind) == (1, "raised")
    assert "wrong on rank one" in result.failures[0].summary
    assert "in broken_on_rank_1" in result.failures[0].details


@pytest.mark.release_independent
def test_identical_failures_of_ranks_are_grouped() -> None:
    """Ranks with identical failures share a heading; what stopped ranks did is left out, what they wrote is not."""
    raised, stopped = "raised KeyError: 'tp'", "did not end within 2 s of the first failure"
    failures = (
        RankFailure(2, "raised", raised, "Traceback\n", "", 0.1),
        RankFailure(0, "raised", raised, "Traceback\n", "", 0.2),
        RankFailure(1, "stopped", stopped, "in barrier\n", "written by rank 1\n", math.inf),
        RankFailure(3, "stopped", stopped, "in all_reduce\n", "", math.inf),
    )
    assert list(failure_lines(CheckResult("name", "promise", "failed", 0.2, failures))) == [
        (f"name: ranks 0, 2 {raised}", ["    Traceback"]),
        (f"name: ranks 1, 3 {stopped}", ["    output of rank 1:", "    written by rank 1"]),
    ]


@pytest.mark.release_independent
def test_the_cause_is_shown_and_consequences_are_counted() -> None:
    """Failures that differ in numbers only share a heading, and ranks that lost a connection to them are counted."""
    lost = "raised RuntimeError: [pair.cc:545] Read error [127.0.0.1]:{}: Connection reset by peer"
    failures = (
        *(
            RankFailure(one, "raised", f"raised KeyError: rank {one}", f"in f, line 5\n{one}", "x 1\n", 0.1)
            for one in (2, 3)
        ),
        RankFailure(4, "raised", "raised KeyError: rank 4", "in f, line 6\n4", "", 0.1),
        *(RankFailure(one, "raised", lost.format(one), f"frame {one}", "lost\n", 0.2) for one in (0, 1)),
    )
    assert list(failure_lines(CheckResult("name", "promise", "failed", 0.2, failures))) == [
        (
            "name: ranks 2, 3 raised KeyError: rank 2",
            ["    in f, line 5", "    2", "    output of ranks 2, 3:", "    x 1"],
        ),
        ("name: rank 4 raised KeyError: rank 4", ["    in f, line 6", "    4"]),
        ("name: ranks 0, 1 lost their connections or timed out because of that", []),
    ]
    (shown,) = failure_lines(CheckResult("name", "promise", "failed", 0.2, failures[3:]))
    assert shown == (f"name: ranks 0, 1 {lost.format(0)}", ["    frame 0", "    output of ranks 0, 1:", "    lost"])


@pytest.mark.release_independent
@pytest.mark.parametrize(("newest", "newer"), [(Version("2.5.9"), True), (compat.TORCH_VERSION, False)])
def test_a_torch_newer_than_tested_is_said(newest: Version, newer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heading says if the installed torch is newer than the newest tested one, and only then."""
    monkeypatch.setattr(compat, "NEWEST_TESTED_TORCH", newest)
    text = "\n".join(heading_lines(describe_environment("1.0"), 8))
    assert (f"newer than {newest}, the newest one" in text) == newer


@pytest.mark.release_independent
def test_checks_after_a_failure_run_on_new_ranks() -> None:
    """After a failed check the remaining ones run, on new ranks."""
    listener = Recorder()
    checks = checks_named("fine", "broken_on_rank_1", "dies")
    report = run_checks(2, checks=[*checks, Check("last", "still run", fine)], listener=listener)
    assert [result.status for result in report.results] == ["passed", "failed", "failed", "passed"]
    assert listener.calls[-2:] == [("started", "last"), ("passed", "last")]


@pytest.mark.release_independent
def test_a_rank_that_hangs_is_killed_at_the_time_limit() -> None:
    """A rank that hangs is killed at the time limit and reported with its stack, and the next check runs."""
    report = run_checks(2, timeout=1.5, checks=checks_named("hangs", "fine"))
    assert [result.status for result in report.results] == ["failed", "passed"]
    failures = {failure.rank: failure for failure in report.results[0].failures}
    assert failures[0].kind == "hung"
    assert "hangs" in failures[0].details


@pytest.mark.release_independent
def test_a_rank_that_exits_has_failed_its_check() -> None:
    """A rank that exits without raising has failed its check, and the report has its exit status."""
    (result,) = run_checks(2, checks=checks_named("dies")).results
    assert result.status == "failed"
    assert (result.failures[0].rank, result.failures[0].kind) == (1, "died")
    assert "3" in result.failures[0].summary


@pytest.mark.release_independent
def test_a_check_with_its_own_world_may_destroy_it() -> None:
    """A check with `own_world` may destroy its world: the checks before and after it have others."""

    def destroys(world: World) -> None:
        dist.destroy_process_group()

    def has_a_world(world: World) -> None:
        dist.barrier()

    checks = [
        Check("before", "a world is there", has_a_world),
        Check("destroys", "ends it", destroys, own_world=True),
        Check("after", "a world is there", has_a_world),
    ]
    assert [result.status for result in run_checks(2, checks=checks).results] == ["passed"] * 3


@pytest.mark.release_independent
def test_ranks_that_cannot_start_fail_the_first_check_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """If ranks cannot initialise their process group, the first check fails with the reason and no other one runs."""

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(dist, "init_process_group", fails)
    report = run_checks(2, checks=[*checks_named("fine"), Check("second", "is not run", fine)])
    assert [result.status for result in report.results] == ["failed", "not run"]
    assert "no network" in report.results[0].failures[0].summary


@pytest.mark.release_independent
@pytest.mark.parametrize(("ranks", "timeout"), [(0, 10.0), (-3, 10.0), (2, 0.0), (2, -1.0)])
def test_too_few_ranks_or_seconds_are_refused(ranks: int, timeout: float) -> None:
    """Fewer than one rank and a time limit of zero are refused."""
    with pytest.raises(ValueError, match="ranks|timeout"):
        run_checks(ranks, timeout=timeout, checks=checks_named("fine"))


@pytest.mark.release_independent
def test_each_check_has_a_name_and_a_sentence_of_its_own() -> None:
    """Each check has a name of its own that fits the column of the report, and one sentence as its promise."""
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(name == name.lower().replace(" ", "-") and len(name) <= 22 for name in names)
    assert all(check.promise.count(".") == 1 and check.promise.endswith(".") for check in CHECKS)


@pytest.mark.parametrize("ranks", [1, 2, 6, 16])
def test_the_contract_holds_on_other_numbers_of_ranks(ranks: int) -> None:
    """The whole contract holds on numbers of ranks that leave axes of size 1, and on more than 8."""
    report = run_checks(ranks)
    assert [(result.name, result.failures) for result in report.results if not result.passed] == []


@pytest.mark.release_independent
@pytest.mark.parametrize("ranks", range(1, 33))
def test_the_checks_expect_the_right_ranks(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every number of ranks up to 32 each check that needs no other rank passes on the first and the last rank."""

    def no_sum(world: World, mesh: DeviceMesh) -> None:
        """A fake process group adds up nothing."""

    monkeypatch.setattr(World, "require_sum", no_sum)
    real = {"backend-override", "destroyed-world"}  # they start gloo groups
    for rank in {0, ranks - 1}:
        with fake_world(ranks, rank):
            for check in CHECKS:
                if check.name not in real:
                    check.run(World(rank, ranks))


def test_the_contract_holds_with_the_debug_level_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole contract holds with TORCH_DISTRIBUTED_DEBUG=DETAIL, with which torch wraps each process group."""
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    dist.set_debug_level_from_env()  # type: ignore[attr-defined]
    report = run_checks(2)
    assert [(result.name, result.failures) for result in report.results if not result.passed] == []


@pytest.mark.release_independent
def test_each_check_passes_alone() -> None:
    """No check needs another one before it: after a failure the next one is the first on its ranks."""
    alone = [replace(check, own_world=True) for check in CHECKS]
    report = run_checks(2, checks=alone)
    assert [(result.name, result.failures) for result in report.results if not result.passed] == []


# --- the checks can fail: each of these tests breaks a part of the library


def failed_checks(*names: str) -> set[str]:
    """Run some of the checks on 8 ranks and return the names of those that failed."""
    checks = [check for check in CHECKS if check.name in names]
    assert len(checks) == len(names)
    return {result.name for result in run_checks(8, checks=checks).results if result.status == "failed"}


@pytest.mark.release_independent
def test_wrong_groups_fail_the_checks_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that has other ranks than its axis shows fails the checks that look at groups, and the sums."""

    def default_group(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> object:
        return dist.group.WORLD

    monkeypatch.setattr(compat, "get_group", default_group)
    names = (
        "root-mesh",
        "singletons",
        "flatten-contiguous",
        "flatten-noncontiguous",
        "unflatten-stage",
        "collectives",
    )
    assert failed_checks(*names) == set(names)


def test_slicing_by_torch_itself_fails_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own slicing, the check that looks flattened axes up from a submesh fails on every release."""

    def native(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
        return mesh[names if isinstance(names, str) else tuple(names)]

    monkeypatch.setattr(compat, "slice_mesh", native)
    assert failed_checks("flattened-from-submesh") == {"flattened-from-submesh"}


@pytest.mark.release_independent
def test_wrong_roots_fail_the_checks_of_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """If each mesh is returned as its own root, every check about roots fails."""

    def itself(mesh: DeviceMesh) -> DeviceMesh:
        return mesh

    monkeypatch.setattr(compat, "get_root_mesh", itself)
    names = ("slice-of-slice", "concatenate", "second-thread", "separate-families", "unflatten-stage")
    assert failed_checks(*names) == set(names)


@pytest.mark.release_independent
def test_meshes_kept_alive_fail_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that keeps a reference to each flattened mesh fails the check about dropped meshes."""
    kept: list[DeviceMesh] = []
    flatten = compat.flatten

    def keeping(mesh: DeviceMesh, mesh_dim_name: str | None = None) -> DeviceMesh:
        kept.append(flatten(mesh, mesh_dim_name))
        return kept[-1]

    monkeypatch.setattr(compat, "flatten", keeping)
    assert failed_checks("dropped-meshes") == {"dropped-meshes"}


@pytest.mark.release_independent
def test_warnings_fail_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning from a lookup fails the check about warnings."""
    get_coordinate = compat.get_coordinate

    def warning(mesh: DeviceMesh) -> tuple[int, ...] | None:
        warnings.warn("this will be deprecated", FutureWarning, stacklevel=1)
        return get_coordinate(mesh)

    monkeypatch.setattr(compat, "get_coordinate", warning)
    assert failed_checks("no-warnings") == {"no-warnings"}


@pytest.mark.release_independent
def test_missing_errors_fail_the_checks_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """If lookups return a mesh instead of raising, the checks about errors and destroyed worlds fail."""
    slice_mesh = compat.slice_mesh

    def never_raising(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
        try:
            return slice_mesh(mesh, names)
        except (KeyError, ValueError, RuntimeError, IndexError):
            return mesh

    monkeypatch.setattr(compat, "slice_mesh", never_raising)
    names = ("refusals", "outside-rank", "destroyed-world")
    assert failed_checks(*names) == set(names)
