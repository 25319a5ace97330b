"""The doctor itself: how it runs checks on ranks, what it makes of failures, and that its checks can fail."""

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

from automodel_mesh import compat
from automodel_mesh.doctor import checks as doctor_checks
from automodel_mesh.doctor import run as doctor
from automodel_mesh.doctor.checks import Check, World
from automodel_mesh.doctor.run import CheckResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.device_mesh import DeviceMesh


class Recorder:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def started(self, check: Check) -> None:
        """Note the beginning of a check."""
        self.told.append(("started", check.name))

    def finished(self, result: CheckResult) -> None:
        """Note the end of a check."""
        self.told.append((result.status, result.name))


def fine(world: World) -> None:
    """Do what a passing check does."""


def broken_on_rank_1(world: World) -> None:
    """Fail on one rank, while the other one waits for it."""
    if world.rank == 1:
        raise doctor_checks.ContractBrokenError("rank one is not amused")
    dist.barrier()


def hangs(world: World) -> None:
    """Never end on rank 0."""
    if world.rank == 0:
        time.sleep(1000)


def dies(world: World) -> None:
    """Lose a rank without a word."""
    if world.rank == 1:
        os._exit(3)


def checks_named(*names: str) -> list[Check]:
    """Make a check of each function above that is named."""
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
def test_mesh_shape(ranks: int, shape: tuple[int, int, int]) -> None:
    """Ranks are spread over three axes as evenly as their factors allow, the largest first."""
    assert doctor_checks.mesh_shape(ranks) == shape


@pytest.mark.release_independent
@settings(deadline=None)
@given(st.integers(1, 4096))
def test_mesh_shape_uses_every_rank(ranks: int) -> None:
    """The sizes of the three axes multiply to the number of ranks."""
    assert math.prod(doctor_checks.mesh_shape(ranks)) == ranks


@pytest.mark.release_independent
@settings(deadline=None)
@given(st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_ranks_along(data: st.DataObject, shape: list[int]) -> None:
    """The ranks counted out for a group are those that NumPy finds by moving its axes to the end."""
    dims = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True).map(sorted))
    others = [dim for dim in range(len(shape)) if dim not in dims]
    ranks = np.arange(math.prod(shape)).reshape(shape)
    groups = ranks.transpose(others + dims).reshape(-1, math.prod(shape[dim] for dim in dims))
    for group in groups.tolist():
        for rank in group:
            assert doctor_checks.ranks_along(rank, shape, dims) == group


@pytest.mark.release_independent
def test_passing_checks() -> None:
    """Checks that raise on no rank pass, in order, and the watcher is told of each beginning and end."""
    watch = Recorder()
    checks = [Check("one", "first", fine), Check("two", "second", fine)]
    report = doctor.run_checks(2, checks=checks, watch=watch)
    assert report.passed
    assert [(result.name, result.promise, result.status) for result in report.results] == [
        ("one", "first", "passed"),
        ("two", "second", "passed"),
    ]
    assert watch.told == [("started", "one"), ("passed", "one"), ("started", "two"), ("passed", "two")]


@pytest.mark.release_independent
def test_no_checks() -> None:
    """A run of no checks starts no ranks and passes."""
    report = doctor.run_checks(2, checks=[])
    assert report.passed
    assert report.results == ()


@pytest.mark.release_independent
def test_failure_on_one_rank() -> None:
    """A check that raises on one rank only has failed, with that rank and its traceback first."""
    report = doctor.run_checks(2, checks=checks_named("broken_on_rank_1"))
    assert not report.passed
    (result,) = report.results
    assert result.status == "failed"
    assert (result.failures[0].rank, result.failures[0].kind) == (1, "raised")
    assert "rank one is not amused" in result.failures[0].summary
    assert "in broken_on_rank_1" in result.failures[0].details


@pytest.mark.release_independent
def test_checks_after_a_failure() -> None:
    """A failed check does not keep the remaining ones from being run, on new ranks."""
    watch = Recorder()
    checks = checks_named("fine", "broken_on_rank_1", "dies")
    report = doctor.run_checks(2, checks=[*checks, Check("last", "still asked", fine)], watch=watch)
    assert [result.status for result in report.results] == ["passed", "failed", "failed", "passed"]
    assert watch.told[-2:] == [("started", "last"), ("passed", "last")]


@pytest.mark.release_independent
def test_hanging_rank() -> None:
    """A hanging rank is stopped at the time limit, reported with its stack, and holds up no other check."""
    report = doctor.run_checks(2, timeout=1.5, checks=checks_named("hangs", "fine"))
    assert [result.status for result in report.results] == ["failed", "passed"]
    failures = {failure.rank: failure for failure in report.results[0].failures}
    assert failures[0].kind == "hung"
    assert "hangs" in failures[0].details


@pytest.mark.release_independent
def test_dying_rank() -> None:
    """A rank that leaves without raising has failed its check, and the report has its exit status."""
    (result,) = doctor.run_checks(2, checks=checks_named("dies")).results
    assert result.status == "failed"
    assert (result.failures[0].rank, result.failures[0].kind) == (1, "died")
    assert "3" in result.failures[0].summary


@pytest.mark.release_independent
def test_own_world() -> None:
    """A check that asks for its own world may destroy it: the checks before and after it have others."""

    def destroys(world: World) -> None:
        dist.destroy_process_group()

    def has_a_world(world: World) -> None:
        dist.barrier()

    checks = [
        Check("before", "a world is there", has_a_world),
        Check("destroys", "ends it", destroys, own_world=True),
        Check("after", "a world is there", has_a_world),
    ]
    assert [result.status for result in doctor.run_checks(2, checks=checks).results] == ["passed"] * 3


@pytest.mark.release_independent
def test_ranks_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ranks cannot meet, the first check has failed with the reason and no other one is tried."""

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no network today")

    monkeypatch.setattr(dist, "init_process_group", fails)
    report = doctor.run_checks(2, checks=[*checks_named("fine"), Check("second", "is not tried", fine)])
    assert [result.status for result in report.results] == ["failed", "not run"]
    assert "no network today" in report.results[0].failures[0].summary


@pytest.mark.release_independent
@pytest.mark.parametrize(("ranks", "timeout"), [(1, 10.0), (0, 10.0), (-3, 10.0), (2, 0.0), (2, -1.0)])
def test_arguments_out_of_range(ranks: int, timeout: float) -> None:
    """Fewer than two ranks and a time limit of nothing are refused."""
    with pytest.raises(ValueError, match="ranks|timeout"):
        doctor.run_checks(ranks, timeout=timeout, checks=checks_named("fine"))


@pytest.mark.release_independent
def test_names_of_the_checks() -> None:
    """Each check has a name of its own that fits the report, and one sentence as its promise."""
    names = [check.name for check in doctor_checks.CHECKS]
    assert len(set(names)) == len(names)
    assert all(name == name.lower().replace(" ", "-") and len(name) <= 22 for name in names)
    assert all(check.promise.count(".") == 1 and check.promise.endswith(".") for check in doctor_checks.CHECKS)


@pytest.mark.parametrize("ranks", [2, 6])
def test_contract_on_few_ranks(ranks: int) -> None:
    """The whole contract holds on numbers of ranks that leave axes of size 1."""
    report = doctor.run_checks(ranks)
    assert [(result.name, result.failures) for result in report.results if not result.passed] == []


@pytest.mark.release_independent
def test_each_check_alone() -> None:
    """No check relies on another one before it: after a failure the next one is the first on its ranks."""
    alone = [replace(check, own_world=True) for check in doctor_checks.CHECKS]
    report = doctor.run_checks(2, checks=alone)
    assert [(result.name, result.failures) for result in report.results if not result.passed] == []


# --- the checks can fail: each of these is the library with one promise broken


def failed_checks(*names: str) -> set[str]:
    """Run some of the checks on 8 ranks and return the names of those that failed."""
    checks = [check for check in doctor_checks.CHECKS if check.name in names]
    assert len(checks) == len(names)
    return {result.name for result in doctor.run_checks(8, checks=checks).results if result.status == "failed"}


@pytest.mark.release_independent
def test_wrong_groups_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that has other ranks than its axis shows fails the checks that look at groups, and the sums."""

    def everybody(mesh: DeviceMesh, mesh_dim: int | str | None = None) -> object:
        return dist.group.WORLD

    monkeypatch.setattr(compat, "get_group", everybody)
    names = (
        "root-mesh",
        "singletons",
        "flatten-contiguous",
        "flatten-apart",
        "unflatten-stage",
        "collectives",
    )
    assert failed_checks(*names) == set(names)


def test_plain_torch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own slicing, flattened axes cannot be had from a submesh, on any release."""

    def native(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
        return mesh[names if isinstance(names, str) else tuple(names)]

    monkeypatch.setattr(compat, "slice_mesh", native)
    assert failed_checks("flattened-from-submesh") == {"flattened-from-submesh"}


@pytest.mark.release_independent
def test_a_lost_root_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh that takes itself for the root fails every check about roots."""

    def itself(mesh: DeviceMesh) -> DeviceMesh:
        return mesh

    monkeypatch.setattr(compat, "get_root_mesh", itself)
    names = ("slice-of-slice", "concatenate", "second-thread", "separate-families", "unflatten-stage")
    assert failed_checks(*names) == set(names)


@pytest.mark.release_independent
def test_meshes_kept_alive_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that keeps a reference to each flattened mesh fails the check about dropped meshes."""
    kept: list[DeviceMesh] = []
    flatten = compat.flatten

    def keeping(mesh: DeviceMesh, mesh_dim_name: str | None = None) -> DeviceMesh:
        kept.append(flatten(mesh, mesh_dim_name))
        return kept[-1]

    monkeypatch.setattr(compat, "flatten", keeping)
    assert failed_checks("dropped-meshes") == {"dropped-meshes"}


@pytest.mark.release_independent
def test_warnings_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning from a lookup fails the check about warnings."""
    get_coordinate = compat.get_coordinate

    def warning(mesh: DeviceMesh) -> tuple[int, ...] | None:
        warnings.warn("this will be deprecated", FutureWarning, stacklevel=1)
        return get_coordinate(mesh)

    monkeypatch.setattr(compat, "get_coordinate", warning)
    assert failed_checks("no-warnings") == {"no-warnings"}


@pytest.mark.release_independent
def test_missing_refusals_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that answers instead of refusing fails the checks about refusals and destroyed worlds."""
    slice_mesh = compat.slice_mesh

    def obliging(mesh: DeviceMesh, names: str | Sequence[str]) -> DeviceMesh:
        try:
            return slice_mesh(mesh, names)
        except (KeyError, ValueError, RuntimeError, IndexError):
            return mesh

    monkeypatch.setattr(compat, "slice_mesh", obliging)
    names = ("refusals", "outside-rank", "destroyed-world")
    assert failed_checks(*names) == set(names)
