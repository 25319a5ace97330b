"""What the ranks of a launch have said, made into the report of `doctor`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from automodel_mesh.doctor.board import Board, Ending, Member
from automodel_mesh.doctor.launch import ARRIVAL, VERSIONS, LaunchRequest
from automodel_mesh.doctor.report import CheckResult, GroupResult, Report, Status
from automodel_mesh.testing.report import RankFailure, is_consequence, name_ranks


class Told(NamedTuple):
    """What the ranks have said; a rank that has not said it is left out."""

    members: Mapping[int, Member]
    twice: Mapping[int, Member]
    steps: Mapping[int, int]
    endings: Mapping[int, Ending]


def diagnose(request: LaunchRequest, board: Board, seconds: float) -> Report:
    """Return the report on a launch, from what its ranks have said until now.

    Args:
        request: what was asked for.
        board: what the ranks have said.
        seconds: how long the launch took.
    """
    told = Told(board.members(), board.members("twice"), board.steps(), board.endings())
    failures: list[list[RankFailure]] = [[] for _ in request.steps]
    for number, failure in _failures(request, told, seconds):
        failures[number].append(failure)
    causes = any(not is_consequence(failure) for of_step in failures for failure in of_step)
    reached = min(_reached(request, told, rank) for rank in range(request.place.world_size))
    results: list[CheckResult] = []
    for index, (step, of_step) in enumerate(zip(request.steps, failures, strict=True)):
        of_step.sort(key=lambda failure: (is_consequence(failure), failure.seconds, failure.rank))
        done = [ending.seconds[index] for ending in told.endings.values() if len(ending.seconds) > index]
        only_consequences = causes and all(map(is_consequence, of_step))
        status: Status = "failed"
        if not of_step or only_consequences:
            status = "passed" if not of_step and reached > index else "not run"
        groups = _groups(request, told, step.name)
        results.append(CheckResult(step.name, step.promise, status, max(done, default=0.0), tuple(of_step), groups))
    hosts: dict[str, list[int]] = {}
    for rank, member in sorted(told.members.items()):
        hosts.setdefault(member.host, []).append(rank)
    shape = tuple(axis.size for axis in request.planned.axes if axis.kind == "native")
    return Report(request.place.world_size, tuple(results), seconds, shape, hosts)


def _reached(request: LaunchRequest, told: Told, rank: int) -> int:
    """Return how many steps a rank has finished."""
    ending = told.endings.get(rank)
    if ending is not None and ending.how == "finished":
        return len(request.steps)
    return told.steps.get(rank, ARRIVAL) if ending is None else ending.step


def _failures(request: LaunchRequest, told: Told, seconds: float) -> Iterator[tuple[int, RankFailure]]:
    """Yield what each rank that did not finish did instead, with the step."""
    causes = len(told.endings) < request.place.world_size
    for rank, summary in _other_versions(told.members):
        yield VERSIONS, RankFailure(rank, "differs", summary, "", "", math.inf)
        causes = True
    causes = causes or any(ending.how == "raised" for ending in told.endings.values())
    for rank in range(request.place.world_size):
        member, ending = told.members.get(rank), told.endings.get(rank)
        if rank in told.twice and member is not None:
            both = " and ".join(f"{one.host} (pid {one.pid})" for one in (member, told.twice[rank]))
            yield ARRIVAL, RankFailure(rank, "differs", f"came twice: two processes have this RANK, {both}", "", "", 0)
        if member is None:
            yield (
                ARRIVAL,
                RankFailure(rank, "missing", _missing(request, told.members, rank, seconds), "", "", math.inf),
            )
        elif ending is None:
            where = f"on {member.host} (pid {member.pid}) does not answer"
            summary = f"{where}: it was stopped or killed, or its host cannot be reached"
            yield told.steps.get(rank, ARRIVAL), RankFailure(rank, "silent", summary, "", "", math.inf)
        elif ending.how == "raised":
            summary = f"raised {ending.error}"
            yield ending.step, RankFailure(rank, "raised", summary, ending.details, "", ending.elapsed)
        elif ending.how == "ended":
            yield (
                ending.step,
                RankFailure(rank, "stopped", "got SIGTERM from the launcher", "", "", math.inf),
            )
        elif ending.how == "waiting" and ending.step > VERSIONS:
            if causes:
                yield ending.step, RankFailure(rank, "stopped", "waited in this step until the end", "", "", math.inf)
            else:
                summary = f"did not finish this step within {request.timeout:g} s"
                yield ending.step, RankFailure(rank, "hung", summary, ending.details, "", math.inf)


def _missing(request: LaunchRequest, members: Mapping[int, Member], rank: int, seconds: float) -> str:
    """Say that a rank did not come, and which ranks of its node did."""
    until = f"within {request.timeout:g} s" if seconds >= request.timeout else f"in the {seconds:.1f} s of the launch"
    there = [
        other
        for other, member in members.items()
        if 0 <= rank - (other - member.local_rank) < member.local_world_size  # ranks on a node are consecutive
    ]
    if not there:
        return f"did not come {until}: its host is not known, and no rank of its node came"
    hosts = ", ".join(sorted({members[other].host for other in there}))
    return f"did not come {until}: of its node, {hosts}, {name_ranks(there)} came"


def _other_versions(members: Mapping[int, Member]) -> Iterator[tuple[int, str]]:
    """Yield the ranks that have other versions than most, and what they have."""
    found = Counter(tuple(member.versions.items()) for _, member in sorted(members.items()))
    if len(found) < 2:
        return
    usual = dict(found.most_common(1)[0][0])
    for rank, member in members.items():
        own = [f"{name} {version}" for name, version in member.versions.items() if version != usual.get(name)]
        other = [f"{name} {version}" for name, version in usual.items() if version != member.versions.get(name)]
        if own or other:
            yield rank, f"on {member.host} has {', '.join(own)}, and most ranks have {', '.join(other)}"


def _groups(request: LaunchRequest, told: Told, step: str) -> tuple[GroupResult, ...]:
    """Return what the ranks have measured in each process group of a step."""
    found: dict[tuple[int, ...], GroupResult] = {}
    for rank, ending in sorted(told.endings.items()):
        if step not in ending.groups:
            continue
        measured, group = ending.groups[step], request.groups_of(rank)[step]
        ranks = tuple(group.ranks)
        slower = found.get(ranks)
        seconds = max(measured.seconds, slower.seconds if slower else 0.0)
        bandwidth = min(measured.bandwidth, slower.bandwidth if slower else math.inf)
        found[ranks] = GroupResult(group.axes, ranks, measured.number, measured.total, seconds, bandwidth)
    return tuple(found.values())
