"""What is said about ranks that did not return: `RankFailure` for one of them, `RanksFailed` for a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Kind = Literal["died", "raised", "hung", "stopped"]


@dataclass(frozen=True)
class RankFailure:
    """What one rank did instead of returning.

    Attributes:
        rank: the rank's number.
        kind: ``"raised"`` an exception; ``"died"`` by a signal or an exit; ``"hung"``: still running at the
            time limit; ``"stopped"``: still running when the grace after another rank's failure was over.
        summary: one line, such as ``"raised ValueError: no such axis"`` or ``"died by SIGKILL"``.
        details: the full traceback, or the Python stacks of a rank that was stuck or crashed; may be empty.
        output: what the rank wrote to stdout and stderr; empty with ``capture=False``.
        seconds: when it happened, counted from the start of the first rank.
    """

    rank: int
    kind: Kind
    summary: str
    details: str
    output: str
    seconds: float


class RanksFailed(AssertionError):  # noqa: N818 - it reads as the verdict of a test
    """Ranks raised, died or did not end in time; the message holds each one's report, the cause first.

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
        """Pickle what the message was made from, not the message."""
        return type(self), (self.failures, self.world_size)


def _report(failures: Sequence[RankFailure], world_size: int) -> str:
    lines = [f"{len(failures)} of {world_size} ranks did not return"]
    lines += [f"  {_ranks(ranks)} {first.summary}" for first, ranks in _alike(failures, lambda one: one.summary)]
    if returned := sorted(set(range(world_size)) - {failure.rank for failure in failures}):
        lines.append(f"  {_ranks(returned)} returned")
    for first, ranks in _alike(failures, lambda one: one.summary + one.details):
        seconds = "" if first.seconds == float("inf") else f" after {first.seconds:.2f} s"
        lines += ["", f"=== {_ranks(ranks)} {first.summary}{seconds}"]
        if first.details:
            lines.append(first.details.rstrip())
    for failure in failures:
        if failure.output.strip():
            lines += ["", f"--- output of rank {failure.rank}", failure.output.rstrip()]
    return "\n".join(lines)


def _alike(
    failures: Sequence[RankFailure], key: Callable[[RankFailure], str]
) -> Iterator[tuple[RankFailure, list[int]]]:
    """Put failures that read the same together: the first of them, and all their ranks."""
    groups: dict[str, list[RankFailure]] = {}
    for failure in failures:
        groups.setdefault(failure.kind + key(failure), []).append(failure)
    for members in groups.values():
        yield members[0], sorted(member.rank for member in members)


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and ranks[-1] - ranks[0] == len(ranks) - 1:
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return "ranks " + ", ".join(map(str, ranks))
