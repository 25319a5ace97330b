"""The report of `automodel-mesh doctor`: its data, its lines of text, and its JSON document.

The keys of the document:

    schema        1; a higher number when a key has been renamed or removed, not when one has been added
    passed        whether every check passed
    environment   versions as text: automodel_mesh, torch, python, platform, era (the module of
                  automodel_mesh.compat that serves this torch), minimum_torch, newest_tested_torch
    ranks         number of ranks
    mesh_shape    sizes of the axes pp, dp and tp of the mesh that most checks share; in a launch, of its native axes
    hosts         in a launch: the ranks that came, by host; else empty
    seconds       how long the run took, without the import of torch
    checks        one object for each check, in the order in which they ran:
        name, promise
        status    "passed", "failed", or "not run" (the ranks did not start)
        seconds   until the last rank had finished it
        failures  one object for each rank that did not finish it, the cause first:
            rank
            kind       "raised", "died", "hung" (still running at the time limit) or "stopped" (still running
                       some seconds after another rank had failed); in a launch also "missing" (it did not come),
                       "silent" (it does not answer any more) or "differs" (in its versions, or its RANK is taken)
            error      one line
            traceback  the full traceback, or the stacks of a rank that hung, was stopped or crashed; may be empty
            output     what the rank wrote to stdout and stderr
            seconds    when the rank failed, from the start of its ranks; null if that is not known
        groups    in a launch, one object for each process group of the axis:
            axes       the axes that use it
            ranks
            count, sum what an all-reduce has added up: ranks, and their numbers
            seconds    of such a small all-reduce, on the slowest rank
            bandwidth  bytes per second of a large one, on the slowest rank
    backport      what compat.backport() would give to this torch, a line for each thing; empty on the newest

`--list --json` prints `schema` and `checks`, each with its `name` and `promise`.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch

from automodel_mesh import compat
from automodel_mesh.checks import shown_ranks
from automodel_mesh.doctor.world import World, mesh_shape
from automodel_mesh.tables import Table
from automodel_mesh.terminal import write_json
from automodel_mesh.testing.report import RankFailure, group_identical, is_consequence, name_ranks, without_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from automodel_mesh.doctor.checks import Check

JSON_SCHEMA: Final = 1

Status = Literal["passed", "failed", "not run"]


class GroupResult(NamedTuple):
    """What the ranks of a process group have measured in a launch."""

    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    number: int
    total: int
    seconds: float
    bandwidth: float


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: the name of the check.
        promise: its promise.
        status: `"passed"` on every rank, `"failed"` on at least one, or `"not run"` because the ranks did not start.
        seconds: how long it took, until the last rank had finished it.
        failures: what each rank that did not finish it did instead, the cause first; empty if it passed.
        groups: what was measured, if the check is of the axis of a launch.
    """

    name: str
    promise: str
    status: Status
    seconds: float
    failures: tuple[RankFailure, ...] = ()
    groups: tuple[GroupResult, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the promise held on every rank."""
        return self.status == "passed"


@dataclass(frozen=True)
class Report:
    """The results of a run.

    Attributes:
        ranks: the number of ranks.
        results: one for each check, in the order in which they ran.
        seconds: how long the run took.
        mesh_shape: the sizes of the native axes of the mesh that the ranks share.
        hosts: in a launch, the ranks that came, by host.
    """

    ranks: int
    results: tuple[CheckResult, ...]
    seconds: float
    mesh_shape: tuple[int, ...]
    hosts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(result.passed for result in self.results)


def describe_environment(version: str) -> dict[str, str]:
    """Return the versions in use, with the keys of `environment` in the JSON document.

    Args:
        version: the version of this library.
    """
    return {
        "automodel_mesh": version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "era": compat.ERA_NAME,
        "minimum_torch": str(compat.MINIMUM_TORCH),
        "newest_tested_torch": str(compat.NEWEST_TESTED_TORCH),
    }


# --- text

_VERSIONS: Final = """\
automodel-mesh {automodel_mesh} doctor
torch {torch}, Python {python}, {platform}
era {era}; supported: torch {minimum_torch} and newer, tested up to {newest_tested_torch}
"""


def version_lines(environment: dict[str, str]) -> list[str]:
    """Return the first lines of a report: the versions."""
    lines = _VERSIONS.format(**environment).splitlines()
    if compat.torch_at_least(str(newest := compat.NEWEST_TESTED_TORCH)) and newest != compat.TORCH_VERSION:
        lines.append(f"(this torch is newer than {newest}, the newest one that automodel-mesh was tested on)")
    return lines


def heading_lines(environment: dict[str, str], ranks: int) -> list[str]:
    """Return the lines above the checks: the versions, and the local ranks that the checks run on."""
    shape = mesh_shape(ranks)
    axes = ", ".join(f"{name}={size}" for name, size in zip(World.names, shape, strict=True))
    lines = [*version_lines(environment), f"{ranks} local gloo ranks as {axes}"]
    if min(shape) == 1:
        lines.append("(an axis of one rank cannot show everything: with 8 ranks three axes have more than one)")
    return lines


def launch_tables(report: Report) -> list[Table]:
    """Return the hosts of a launch, and for each axis the number of groups and what the slowest of them measured."""
    hosts = tuple((host, name_ranks(ranks).partition(" ")[2]) for host, ranks in report.hosts.items())
    rows: list[tuple[str, ...]] = []
    for result in report.results:
        if result.groups:
            slowest = max(result.groups, key=lambda group: group.seconds)
            fastest = min(group.seconds for group in result.groups)
            rows.append(
                (
                    ", ".join(slowest.axes),
                    f"{len(slowest.ranks):,}",
                    f"{len(result.groups):,}",
                    shown_ranks(slowest.ranks),
                    f"{slowest.total:,}",
                    f"{slowest.seconds * 1000:.2f} ms",
                    f"{fastest * 1000:.2f} ms",
                    f"{slowest.bandwidth / 1e9:.2f} GB/s",
                )
            )
    columns = ("axes", "size", "groups", "slowest group", "sum", "time", "fastest", "bandwidth")
    numbers = frozenset({"size", "groups", "sum", "time", "fastest", "bandwidth"})
    tables = [Table("hosts", ("host", "ranks"), hosts)]
    return [*tables, Table("all-reduce", columns, tuple(rows), numbers)] if rows else tables


def backport_lines() -> list[str]:
    """Return what `backport()` would give to this torch, under a heading; nothing on the newest torch."""
    features = compat.backport(dry_run=True).installed
    heading = f"what torch {compat.NEWEST_TESTED_TORCH} does, and this torch only after compat.backport():"
    return [heading, *(f"    {feature}" for feature in features), ""] if features else []


def failure_lines(result: CheckResult) -> Iterator[tuple[str, list[str]]]:
    """Yield a heading and lines of detail for the ranks that did not finish a check; what is identical is grouped."""
    known = any(not is_consequence(failure) for failure in result.failures)
    for title, group in group_identical(_shortened(failure, known) for failure in result.failures):
        lines = group[0].details.rstrip().splitlines()
        outputs: dict[str, list[RankFailure]] = {}
        for failure in group:
            outputs.setdefault(without_numbers(failure.output.strip()), []).append(failure)
        for same in outputs.values():
            if same[0].output.strip():
                ranks = name_ranks(failure.rank for failure in same)
                lines += [f"output of {ranks}:", *same[0].output.rstrip().splitlines()]
        yield f"{result.name}: {title}", [f"    {line}" for line in lines]


def _shortened(failure: RankFailure, cause_is_known: bool) -> RankFailure:
    """Leave out of a consequence what JSON has: where the rank waited for the one that failed, and how that ended."""
    if failure.kind == "stopped":
        return replace(failure, details="")
    if cause_is_known and is_consequence(failure):
        return replace(failure, summary="lost their connections or timed out because of that", details="", output="")
    return failure


def total_line(report: Report) -> str:
    """Return the last line: how many checks passed, and which did not."""
    count = len(report.results)
    where = f"on {report.ranks} ranks in {report.seconds:.1f} s"
    bad = [result.name for result in report.results if not result.passed]
    if not bad:
        return f"all {count} checks passed {where}"
    return f"{len(bad)} of {count} checks did not pass {where}: {', '.join(bad)}"


# --- JSON


def write_list(checks: Sequence[Check], *, as_json: bool) -> None:
    """Write the name and the promise of each check to stdout."""
    if as_json:
        write_json(
            {"schema": JSON_SCHEMA, "checks": [{"name": check.name, "promise": check.promise} for check in checks]}
        )
        return
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        sys.stdout.write(f"{check.name:{width}}  {check.promise}\n")


def document(report: Report, environment: dict[str, str]) -> dict[str, Any]:
    """Return the JSON document of a run."""
    return {
        "schema": JSON_SCHEMA,
        "passed": report.passed,
        "environment": environment,
        "ranks": report.ranks,
        "mesh_shape": list(report.mesh_shape),
        "hosts": {host: list(ranks) for host, ranks in report.hosts.items()},
        "seconds": round(report.seconds, 3),
        "checks": [
            {
                "name": result.name,
                "promise": result.promise,
                "status": result.status,
                "seconds": round(result.seconds, 3),
                "failures": [_failure_object(failure) for failure in result.failures],
                "groups": [_group_object(group) for group in result.groups],
            }
            for result in report.results
        ],
        "backport": list(compat.backport(dry_run=True).installed),
    }


def _group_object(group: GroupResult) -> dict[str, Any]:
    axes, ranks, count, total, seconds, bandwidth = group
    measured = {"count": count, "sum": total, "seconds": seconds, "bandwidth": round(bandwidth)}
    return {"axes": list(axes), "ranks": list(ranks), **measured}


def _failure_object(failure: RankFailure) -> dict[str, Any]:
    return {
        "rank": failure.rank,
        "kind": failure.kind,
        "error": failure.summary,
        "traceback": failure.details,
        "output": failure.output,
        "seconds": round(failure.seconds, 3) if math.isfinite(failure.seconds) else None,  # JSON has no infinity
    }
