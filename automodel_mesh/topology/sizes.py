"""The sizes that a user requests: strict checks, and the data parallel size that fills the world; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isqrt, prod

from automodel_mesh.checks import check_size
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.keywords import suggest_keywords

__all__ = ["ParallelismSizes", "check_sizes", "divisors", "infer_dp_size"]


@suggest_keywords
@dataclass(frozen=True, kw_only=True)
class ParallelismSizes:
    """The sizes that a user requests, checked when the object is made; those of the meshes are read from `MeshContext`.

    Args:
        dp_size: Data-parallel size, including replicas; at least 1, or `None` to infer it from the number of
            ranks.
        dp_replicate_size: Number of replicas inside `dp_size`; at least 1, or `None` for 1.
        tp_size: Tensor-parallel size, at least 1.
        pp_size: Pipeline-parallel size, at least 1.
        cp_size: Context-parallel size, at least 1.
        ep_size: Expert-parallel size, at least 1; it uses the ranks of the other sizes.

    Raises:
        TypeError: A size is not an int (a bool, a float, a string), or is `None` and cannot be inferred.
        ValueError: A size is less than 1.
    """

    dp_size: int | None = None
    dp_replicate_size: int | None = None
    tp_size: int = 1
    pp_size: int = 1
    cp_size: int = 1
    ep_size: int = 1

    def __post_init__(self) -> None:
        check_sizes(self)
        for size in fields(self):
            value = getattr(self, size.name)
            if value is not None:
                object.__setattr__(self, size.name, int(value))  # NumPy's integers are taken, plain ones kept


def check_sizes(sizes: ParallelismSizes) -> None:
    """Require that every size is an int of at least 1, or `None` if that is the field's default.

    Args:
        sizes: The sizes. `plan_topologies` checks whether they fit the number of ranks.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is less than 1.
    """
    for size in fields(sizes):
        check_size(size.name, getattr(sizes, size.name), optional=size.default is None)


def divisors(number: int) -> list[int]:
    """Return the divisors of a number.

    Args:
        number: At least 1.

    Returns:
        All divisors, ascending, 1 and `number` included.

    Raises:
        TypeError: `number` is not an int.
        ValueError: `number` is less than 1.
    """
    check_size("number", number)
    small = [candidate for candidate in range(1, isqrt(number) + 1) if number % candidate == 0]
    large = [number // candidate for candidate in reversed(small) if candidate * candidate != number]
    return small + large


def infer_dp_size(
    dp_size: int | None,
    world_size: int,
    factors: Mapping[str, int],
    *,
    strategy: str = "fsdp2",
    counted_as: str = "world_size",
) -> int:
    """Return the data-parallel size that fills the ranks, or check the one given.

    Args:
        dp_size: The requested size, at least 1, or `None` to infer it.
        world_size: Number of ranks to fill, at least 1.
        factors: The other sizes, whose product with `dp_size` is the number of ranks: field name to size, each at
            least 1, in the order of the message.
        strategy: Name of the strategy, for messages.
        counted_as: The name of `world_size` in messages; `len(ranks)` if only part of the world is used.

    Returns:
        The size with `dp_size * product of factors == world_size`.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is less than 1; the factors do not divide `world_size`; or `dp_size` was given and
            the product differs from `world_size`. The message lists valid values.
    """
    check_size("dp_size", dp_size, optional=True)
    check_size(counted_as, world_size)
    for name, value in factors.items():
        check_size(name, value)
    rest = prod(factors.values())
    if world_size % rest:
        raise MeshArgumentError(_indivisible(dp_size, world_size, factors, strategy, counted_as))
    if dp_size is not None and dp_size * rest != world_size:
        raise MeshArgumentError(_misfit(dp_size, world_size, factors, strategy, counted_as))
    return world_size // rest


def _indivisible(
    dp_size: int | None, world_size: int, factors: Mapping[str, int], strategy: str, counted_as: str
) -> str:
    """Return the message that no dp_size fits, with the valid values of each other size if the rest is unchanged."""
    rest = prod(factors.values())
    remedies: list[str] = []
    for name, value in factors.items():
        others = rest // value
        if world_size % others == 0:
            remedies.append(f"{name} as {one_of(divisors(world_size // others))}")
    if remedies:
        remedy = f"Give {', or '.join(remedies)}, leaving the other sizes as they are"
    else:
        names = _product(factors)
        remedy = f"Changing one of them is not enough: {names} must be {one_of(divisors(world_size))}"
    given = "" if dp_size is None else f" (dp_size={dp_size} was given)"
    return (
        f"{strategy}: {counted_as}={world_size} is not divisible by {equation(factors)}, "
        f"so no dp_size fits{given}. {remedy}."
    )


def _misfit(dp_size: int, world_size: int, factors: Mapping[str, int], strategy: str, counted_as: str) -> str:
    """Return the message that the given dp_size does not fit, with the one that fits, and other sizes that fit it."""
    rest = prod(factors.values())
    kept: list[str] = []
    for name, value in factors.items():
        others = dp_size * (rest // value)
        if world_size % others == 0:
            kept.append(f"{name}={world_size // others}")
    instead = f"; or keep dp_size={dp_size} and give {' or '.join(kept)}" if kept else ""
    every = {"dp_size": dp_size, **factors}
    return (
        f"{strategy}: dp_size={dp_size} does not fit: {equation(every)}, but {counted_as}={world_size}. "
        f"Give dp_size={world_size // rest}, or None to have it inferred{instead}."
    )


def _product(factors: Mapping[str, int]) -> str:
    """Return the names of sizes as a product in text."""
    return " * ".join(factors) or "1"


def equation(factors: Mapping[str, int]) -> str:
    """Return a product of sizes as text: `tp_size * cp_size = 2 * 3 = 6`, or `tp_size = 2` for one size."""
    total = prod(factors.values())
    if len(factors) < 2:
        return f"{_product(factors)} = {total}"
    return f"{_product(factors)} = {' * '.join(map(str, factors.values()))} = {total}"


def one_of(values: Sequence[int]) -> str:
    """Return a choice of values as text, shortened in the middle: a large world has hundreds of divisors."""
    if len(values) == 1:
        return str(values[0])
    if len(values) > 12:
        return f"one of {', '.join(map(str, values[:8]))}, ..., {', '.join(map(str, values[-2:]))}"
    return f"one of {', '.join(map(str, values))}"
