"""`Strategy`: the record of a strategy, checked when it is made; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, Final

from automodel_mesh.checks import check_each_name, checked_names, nearest, wrong_type
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.keywords import suggest_keywords
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.sizes import ParallelismSizes

__all__ = ["EXPERT_MESH_AXES", "Strategy"]

EXPERT_MESH_AXES: Final = ("ep_shard", "ep")
"""The axes of an expert mesh: parameters of an expert are sharded along the first, experts spread along the second."""


@suggest_keywords
@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A strategy: its names, the class of its configuration, and the axes of its mesh.

    A size that no axis comes from is not supported: it can only be 1.

    Args:
        name: The name, in messages and for `DistributedSetup.build`.
        config: The class of its configuration, or `"package.module:Class"`, which is imported when it is first needed.
            A configuration is recognised by the name of its class, or by a class variable `strategy` with `name`.
        axes: The axes of the mesh, outermost first, each with a field of `sizes`, such as `"tp_size"`, or with a field
            divided by others, such as `"dp_size / dp_replicate_size"`. The size of the axis that comes from
            `dp_size` is inferred from the number of ranks, if it is not given.
        derived: The names of derived axes, each with the axes that it folds.
        aliases: Other names.
        sizes: `ParallelismSizes`, or a subclass with more fields, each with a default.
        expert_axes: Adjacent axes that the expert mesh replaces by `EXPERT_MESH_AXES` if `ep_size` is above 1. By
            default none: the strategy does not support `ep_size`.
        fully_shard_axes: The axes of the mesh for `fully_shard`: the axis that parameters are sharded over, after the
            axis of replicas if there is one. By default none: the strategy does not use `fully_shard`.
        has_mesh: Whether a `MeshContext` builds the mesh. If not, it only has the process group of all ranks.
        unsupported_options: Fields of the configuration, each with the value that the strategy does not support.

    Raises:
        TypeError: A name is not a string, or `config` or `sizes` is not as described.
        ValueError: The parts of the record contradict each other; the message says which.
    """

    name: str
    config: type[Any] | str
    axes: Mapping[str, str] = field(hash=False)
    derived: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    aliases: Sequence[str] = ()
    sizes: type[ParallelismSizes] = ParallelismSizes
    expert_axes: Sequence[str] = ()
    fully_shard_axes: Sequence[str] = ()
    has_mesh: bool = True
    unsupported_options: Mapping[str, object] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        name, *aliases = checked_names("name and aliases", [self.name, *self.aliases])
        grid = Topology(tuple(self.axes), (1,) * len(self.axes), self.derived)
        check_each_name("the sizes of axes", [*self.axes.values()])
        settled = {
            "name": name,
            "aliases": tuple(aliases),
            "axes": MappingProxyType(dict(zip(grid.axes, self.axes.values(), strict=True))),
            "derived": grid.derived,
            "expert_axes": tuple(self.expert_axes),
            "fully_shard_axes": tuple(self.fully_shard_axes),
            "unsupported_options": MappingProxyType(dict(self.unsupported_options)),
        }
        for attribute, value in settled.items():
            object.__setattr__(self, attribute, value)  # the class is frozen
        _check_config(self)
        _check_sizes(self)
        _check_expert_axes(self)
        _check_fully_shard_axes(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A mapping proxy can be neither pickled nor deep-copied, so the constructor is called again.
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        plain: dict[str, Any] = {
            name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in given.items()
        }
        return partial(type(self), **plain), ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases, in lower case."""
        return tuple(name.lower() for name in (self.name, *self.aliases))

    @property
    def config_name(self) -> str:
        """The name of the configuration's class."""
        return self.config.rpartition(":")[2] if isinstance(self.config, str) else self.config.__name__

    @property
    def all_axes(self) -> tuple[str, ...]:
        """The axes of the mesh, then the derived ones."""
        return (*self.axes, *self.derived)

    def quotient(self, axis: str) -> tuple[str, ...]:
        """Return the field of `sizes` that an axis comes from, then the fields that divide it."""
        return tuple(part.strip() for part in self.axes[axis].split("/"))

    def axes_of(self, size: str) -> tuple[str, ...]:
        """Return the axes whose sizes multiply to a field of `sizes`; none if no axis comes from it."""
        owners = {self.quotient(axis)[0]: axis for axis in self.axes}
        return tuple(owners[part] for part in self.quotient(owners[size])) if size in owners else ()

    def supports(self, size: str) -> bool:
        """Return whether a field of `sizes` can be above 1."""
        return bool(self.axes_of(size)) or (size == "ep_size" and bool(self.expert_axes))

    def accepts(self, option: str, value: object) -> bool:
        """Return whether a field of the configuration can have a value, according to `unsupported_options`."""
        return option not in self.unsupported_options or self.unsupported_options[option] != value

    def factors(self, axes: Iterable[str], values: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes that multiply to the number of ranks along some axes, by name.

        For `dp_replicate` and `dp_shard`, with the sizes `dp_replicate_size` and `dp_size / dp_replicate_size`, this is
        `dp_size`; for `dp_shard` alone, `dp_size / dp_replicate_size`.

        Args:
            axes: Some of the axes.
            values: The value of each field of `sizes`.
        """
        quotients = [self.quotient(axis) for axis in axes]
        plain = {size for size, *divisors in quotients if not divisors}
        cancelled = {divisor for _, *divisors in quotients for divisor in divisors if divisor in plain}
        left = [[part for part in parts if part not in cancelled] for parts in quotients if parts[0] not in cancelled]
        return {" / ".join(parts): values[parts[0]] // prod(values[part] for part in parts[1:]) for parts in left}


def _check_config(strategy: Strategy) -> None:
    config: object = strategy.config
    parts = config.split(":") if isinstance(config, str) else []
    if not isinstance(config, type) and not (len(parts) == 2 and all(parts)):
        raise wrong_type("config", config, 'the class of the configuration, or "package.module:Class"')


def _check_sizes(strategy: Strategy) -> None:
    """Require that each axis comes from a different field, and one of them from `dp_size`."""
    kind: Any = strategy.sizes
    if not isinstance(kind, type) or not issubclass(kind, ParallelismSizes):
        raise wrong_type("sizes", kind, "ParallelismSizes or a subclass of it")
    missing = [size.name for size in fields(kind) if size.default is MISSING]
    if missing:
        raise MeshArgumentError(f"sizes: {kind.__name__} has no default for {missing}: give each field one, such as 1")
    known = [size.name for size in fields(kind)]
    owners: dict[str, str] = {}
    for axis in strategy.axes:
        size, *divisors = strategy.quotient(axis)
        for part in (size, *divisors):
            if part not in known:
                raise MeshArgumentError(
                    f"axis {axis!r} has the size {strategy.axes[axis]!r}, but {part!r} is not a field of "
                    f"{kind.__name__}{nearest(part, known)}: choose from {known}"
                )
        if size in owners:
            raise MeshArgumentError(
                f"the axes {owners[size]!r} and {axis!r} both come from {size}: give each a size of its own"
            )
        owners[size] = axis
    if "dp_size" not in owners:
        raise MeshArgumentError(
            "no axis comes from dp_size, the size that fills the ranks: give one of the axes that size"
        )
    _check_divisors(strategy)


def _check_divisors(strategy: Strategy) -> None:
    """Require that each field that divides a size has an axis, so that all axes multiply to a product of fields."""
    plain = [size for size, *divisors in map(strategy.quotient, strategy.axes) if not divisors and size != "dp_size"]
    for axis in strategy.axes:
        for divisor in strategy.quotient(axis)[1:]:
            if divisor not in plain:
                raise MeshArgumentError(
                    f"axis {axis!r} has the size {strategy.axes[axis]!r}: {divisor} must also be the size of one axis, "
                    "and divide one size only"
                )
            plain.remove(divisor)


def _check_expert_axes(strategy: Strategy) -> None:
    axes, experts = tuple(strategy.axes), strategy.expert_axes
    if not experts:
        return
    first = axes.index(experts[0]) if experts[0] in axes else 0
    if axes[first : first + len(experts)] != experts:
        raise MeshArgumentError(
            f"expert_axes={experts}: give neighbouring axes, each once and in their order, from {axes}"
        )
    taken = [axis for axis in EXPERT_MESH_AXES if axis in strategy.all_axes]
    if taken or strategy.axes_of("ep_size"):
        raise MeshArgumentError(
            f"expert_axes={experts} makes an expert mesh with the axes {EXPERT_MESH_AXES}, from ep_size: no other axis "
            "can have one of these names, or that size"
        )


def _check_fully_shard_axes(strategy: Strategy) -> None:
    axes, order = strategy.fully_shard_axes, list(strategy.axes)
    unknown = [axis for axis in axes if axis not in strategy.all_axes]
    if unknown or len(axes) > 2:
        raise MeshArgumentError(
            f"fully_shard_axes={axes}: give the axis that parameters are sharded over, or that of replicas and it, "
            f"from {strategy.all_axes}"
        )
    places = [[order.index(source) for source in strategy.derived.get(axis, (axis,))] for axis in axes]
    if len(places) == 2 and max(places[0]) >= min(places[1]):
        raise MeshArgumentError(
            f"fully_shard_axes={axes}: the axis of replicas must be outside of those that parameters are sharded over, "
            f"and the axes are {tuple(order)}"
        )
