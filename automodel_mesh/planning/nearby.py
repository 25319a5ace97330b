"""Sizes that fit, near sizes that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from math import lcm, prod
from typing import TYPE_CHECKING

from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.topology.sizes import ParallelismSizes, divisors
from automodel_mesh.topology.strategies import plan_topologies

if TYPE_CHECKING:
    from automodel_mesh.topology.records import Strategy

__all__ = ["fits", "nearest_possible"]


def fits(strategy: Strategy, sizes: ParallelismSizes, world_size: int) -> bool:
    """Return whether a mesh of these sizes is possible."""
    try:
        plan_topologies(strategy, sizes, world_size)
    except MeshArgumentError:
        return False
    return True


def nearest_possible(strategy: Strategy, sizes: ParallelismSizes, world_size: int) -> Mapping[str, tuple[int, ...]]:
    """Return the values that fit if one number is changed and the others are kept.

    Args:
        strategy: the strategy.
        sizes: the requested sizes, which do not fit.
        world_size: number of ranks.

    Returns:
        For `"world_size"` and each field of `sizes` that was given: the nearest value below that fits and the nearest
        above; what has neither is left out.
    """
    found = {
        "world_size": _around(
            world_size, (world for world in _worlds(strategy, sizes, world_size) if fits(strategy, sizes, world))
        )
    }
    for field in fields(sizes):
        value = getattr(sizes, field.name)
        if value is not None:
            other = ((size, replace(sizes, **{field.name: size})) for size in divisors(world_size))
            found[field.name] = _around(value, (size for size, changed in other if fits(strategy, changed, world_size)))
    return {name: values for name, values in found.items() if values}


def _around(value: int, possible: Iterable[int]) -> tuple[int, ...]:
    """Return the greatest value below and the smallest above."""
    known = [*possible]
    below, above = [other for other in known if other < value], [other for other in known if other > value]
    return (*([max(below)] if below else ()), *([min(above)] if above else ()))


def _worlds(strategy: Strategy, sizes: ParallelismSizes, world_size: int) -> Iterable[int]:
    """Return numbers of ranks among which the nearest ones that fit are, if there are any."""
    values = {field.name: getattr(sizes, field.name) or 1 for field in fields(sizes)}
    values["dp_size"] = sizes.dp_size or values["dp_replicate_size"]  # the least that has these replicas
    unit = prod(strategy.factors(strategy.axes, values).values())
    if sizes.dp_size is not None:
        return (unit,)
    outside = [axis for axis in strategy.axes if axis not in strategy.expert_axes]
    step = lcm(unit, sizes.ep_size * prod(strategy.factors(outside, values).values()))
    nearest = world_size // step
    return (step * number for number in (nearest - 1, nearest, nearest + 1) if number > 0)
