"""Failures of ranks: `RankFailure` says what one rank did instead of returning, `RanksFailed` reports all of a run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Kind = Literal["died", "raised", "hung", "stopped", "missing", "silent", "differs"]


@dataclass(frozen=True)
class RankFailure:
    """What one rank did instead of returning.

    Attributes:
        rank: the rank's number.
        kind: ``"raised"`` an exception; ``"died"`` by a signal or an exit; ``"hung"``: still running at the
            time limit; ``"stopped"``: still running some seconds after another rank had failed. In a launch that
            ``automodel-mesh doctor`` checks also ``"missing"``: it did not come; ``"silent"``: it does not answer any
            more; ``"differs"``: it has other versions, or the RANK of another process.
        summary: one line, such as ``"raised ValueError: no such axis"`` or ``"died by SIGKILL"``.
        details: the full traceback, or the Python stacks of a rank that hung, was stopped or crashed; may be empty.
        output: what the rank wrote to stdout and stderr; empty with ``capture=False``.
        seconds: when the rank failed, counted from the start of the run; infinity for ``"hung"`` and ``"stopped"``.
    """

    rank: int
    kind: Kind
    summary: str
    details: str
    output: str
    seconds: float


class RanksFailed(AssertionError):  # noqa: N818 - it reads as the verdict of a test
    """Ranks raised, died or did not end in time; the message has a report of each, the cause first.

    Attributes:
        failures: one `RankFailure` for each rank that did not return, in the order of the report.
        world_size: how many ranks were run.
    """

    failures: tuple[RankFailure, ...]
    world_size: int

    def __init__(self, failures: Sequence[RankFailure], world_size: int) -> None:
        self.failures = tuple(failures)
        self.world_size = world_size
        super().__init__(_report(self.failures, world_size))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the failures and the world size, from which the message is made again."""
        return type(self), (self.failures, self.world_size)


_NUMBER = re.compile(r"0x[0-9a-fA-F]+|(?<!line )(?<!\d)\d+")  # a line number says where a rank failed
_CONNECTION = re.compile(
    r"raised (\w+\.)*(RuntimeError|Dist\w*Error|Connection\w*Error|BrokenPipeError|TimeoutError): .*"
    r"(connection (was )?(closed|reset|refused)|broken pipe|socket|time(d )?out)",
    re.IGNORECASE,
)


def is_consequence(failure: RankFailure) -> bool:
    """Tell whether a rank failed as ranks do when another one has failed: it was stopped, or lost a connection."""
    return failure.kind == "stopped" or _CONNECTION.match(failure.summary) is not None


def without_numbers(text: str) -> str:
    """Return a text with each number replaced, so that texts that differ in ranks or ports only are equal."""
    return _NUMBER.sub("#", text)


def group_identical(failures: Iterable[RankFailure]) -> list[tuple[str, list[RankFailure]]]:
    """Group the failures whose summaries and details are the same, or differ in the numbers of what they raised only.

    Args:
        failures: failures of different ranks.

    Returns:
        A heading, such as ``"ranks 0-3 raised KeyError: 'tp'"``, with the summary of the first failure of the group,
        and the failures of each group.
    """
    groups: dict[tuple[str, str], list[RankFailure]] = {}
    for failure in failures:
        exact = failure.kind in {"died", "missing", "silent", "differs"}
        summary = failure.summary if exact else without_numbers(failure.summary)
        groups.setdefault((summary, without_numbers(failure.details)), []).append(failure)
    return [(f"{name_ranks(one.rank for one in group)} {group[0].summary}", group) for group in groups.values()]


def _report(failures: Sequence[RankFailure], world_size: int) -> str:
    lines = [f"{len(failures)} of {world_size} ranks did not return"]
    lines += [f"  {heading}" for heading, _ in group_identical(replace(failure, details="") for failure in failures)]
    if returned := set(range(world_size)) - {failure.rank for failure in failures}:
        lines.append(f"  {name_ranks(returned)} returned")
    for heading, (first, *_) in group_identical(failures):
        after = f" after {first.seconds:.2f} s" if math.isfinite(first.seconds) else ""
        lines += ["", f"=== {heading}{after}"]
        if first.details:
            lines.append(first.details.rstrip())
    for failure in failures:
        if failure.output.strip():
            lines += ["", f"--- output of rank {failure.rank}", failure.output.rstrip()]
    return "\n".join(lines)


def name_ranks(numbers: Iterable[int]) -> str:
    """Return `rank 3`, `ranks 0-3` or `ranks 0, 2`."""
    ranks = sorted(numbers)
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))
