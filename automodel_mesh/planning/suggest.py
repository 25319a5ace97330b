"""Suggests sizes for a world: all that fit, ranked by rules that docs/how-to/plan.md states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.planning.document import JSON_SCHEMA
from automodel_mesh.tables import Table
from automodel_mesh.topology.plans import MeshPlan, plan
from automodel_mesh.topology.sizes import ParallelismSizes, divisors

if TYPE_CHECKING:
    from automodel_mesh.topology.records import Strategy

__all__ = ["CHOSEN_BY_DEFAULT", "Request", "Suggestion", "suggest", "suggestions_document", "suggestions_table"]

SHOWN: Final = ("tp_size", "pp_size", "cp_size", "dp_size", "dp_replicate_size", "ep_size")

CHOSEN_BY_DEFAULT: Final = ("tp_size", "pp_size", "cp_size")
"""The sizes that are chosen if none is named: those that say how a model is split, which are free if it fits."""

MOST: Final = 5_000
"""Combinations of sizes that are compared, so that an answer takes seconds."""


class Request(NamedTuple):
    """What sizes are asked for."""

    strategy: Strategy
    """The strategy."""
    world_size: int
    """Number of ranks."""
    ranks_per_node: int
    """Ranks on each node."""
    kept: ParallelismSizes
    """The sizes that are kept; those to choose are 1 in it."""
    chosen: Sequence[str]
    """The fields of `ParallelismSizes` to choose."""
    least: int
    """The least value of these."""


class Suggestion(NamedTuple):
    """Sizes that fit, and what they are ranked by."""

    sizes: ParallelismSizes
    """All sizes; `dp_size` is what fills the ranks."""
    plan: MeshPlan
    """The plan with these sizes."""

    @property
    def tp_in_a_node(self) -> bool:
        """Whether each tensor parallel group stays inside a node."""
        return all(axis.nodes_per_group == 1 for axis in self.plan.axes if axis.name == "tp")

    @property
    def order(self) -> tuple[bool, int, int, tuple[int, ...]]:
        """What suggestions are sorted by, the best first."""
        sizes = tuple(getattr(self.sizes, name) for name in SHOWN)
        return not self.tp_in_a_node, self.plan.groups_across_nodes, self.plan.process_groups.in_job, sizes


def suggest(request: Request) -> list[Suggestion]:
    """Return all sizes that fit, the best first.

    Raises:
        ValueError: there are more than `MOST` combinations to compare.
    """
    found: list[Suggestion] = []
    for number, candidate in enumerate(_candidates(request, request.kept, request.chosen, _ranks_to_split(request))):
        if number == MOST:
            names = ", ".join(map(short_name, request.chosen))
            raise MeshArgumentError(f"more than {MOST:,} combinations of {names} to compare: give some of these sizes")
        with suppress(MeshArgumentError):  # such as an ep_size that does not divide the ranks of a stage
            planned = plan(request.strategy, candidate, request.world_size, ranks_per_node=request.ranks_per_node)
            root = planned.topologies.root
            dp_size = prod(root.size(axis) for axis in request.strategy.axes_of("dp_size"))
            replicas = candidate.dp_replicate_size or 1
            found.append(Suggestion(replace(candidate, dp_size=dp_size, dp_replicate_size=replicas), planned))
    return sorted(found, key=lambda suggestion: suggestion.order)


def suggestions_table(suggestions: Sequence[Suggestion]) -> Table:
    """Return the sizes of suggestions, and what they are ranked by."""
    rows = (
        (
            *(f"{getattr(suggestion.sizes, name):,}" for name in SHOWN),
            "yes" if suggestion.tp_in_a_node else "no",
            f"{suggestion.plan.groups_across_nodes:,}",
            f"{suggestion.plan.process_groups.in_job:,}",
        )
        for suggestion in suggestions
    )
    sizes = tuple(short_name(name) for name in SHOWN)
    columns = (*sizes, "tp in a node", "groups across nodes", "process groups of the job")
    numbers = frozenset({*sizes, "groups across nodes", "process groups of the job"})
    return Table("sizes that fit, the best first", columns, tuple(rows), numbers)


def suggestions_document(suggestions: Sequence[Suggestion]) -> dict[str, Any]:
    """Return suggestions as types that JSON has."""
    return {
        "schema": JSON_SCHEMA,
        "suggestions": [
            {
                "sizes": asdict(suggestion.sizes),
                "tp_in_a_node": suggestion.tp_in_a_node,
                "groups_across_nodes": suggestion.plan.groups_across_nodes,
                "process_groups": suggestion.plan.process_groups._asdict(),
            }
            for suggestion in suggestions
        ],
    }


def short_name(size: str) -> str:
    """Return the name of a size as options and tables have it: `tp` for `tp_size`."""
    return size.removesuffix("_size")


def _ranks_to_split(request: Request) -> int:
    """Return the number of ranks that the sizes to choose divide, 0 if the sizes that are kept do not divide it."""
    kept = prod(getattr(request.kept, name) for name in CHOSEN_BY_DEFAULT)
    return 0 if request.world_size % kept else request.world_size // kept


def _candidates(
    request: Request, sizes: ParallelismSizes, chosen: Sequence[str], left: int
) -> Iterator[ParallelismSizes]:
    """Yield sizes in which the chosen ones take every value that divides what the ones before left of the ranks."""
    if not left:
        return
    if not chosen:
        yield sizes
        return
    name, *others = chosen
    experts = name == "ep_size"  # they use the ranks of the other sizes
    for size in divisors(request.world_size if experts else left):
        if size >= request.least:
            remaining = left if experts else left // size
            yield from _candidates(request, replace(sizes, **{name: size}), others, remaining)
