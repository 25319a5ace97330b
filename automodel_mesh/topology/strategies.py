"""The registered strategies, and the topology that each plans for some sizes; without torch.

The three built-in strategies are at the end, registered in the same way as a framework registers its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import prod
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from automodel_mesh.checks import check_size, checked_ranks, nearest, shown, shown_ranks, wrong_type
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.records import EXPERT_MESH_AXES, Strategy
from automodel_mesh.topology.sizes import ParallelismSizes, divisors, equation, infer_dp_size, one_of

__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyConfig",
    "Topologies",
    "check_supported_option",
    "check_supported_sizes",
    "find_strategy",
    "fully_shard_strategy",
    "plan_topologies",
    "register_strategy",
    "strategy_for",
    "strategy_name",
    "strategy_named",
]

_REGISTERED: Final[dict[str, Strategy]] = {}

STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(_REGISTERED)
"""The registered strategies by name, the built-in ones first."""

_FEATURES: Final = {
    "dp_replicate_size": "replicated (hybrid) sharding",
    "tp_size": "tensor parallelism",
    "pp_size": "pipeline parallelism",
    "cp_size": "context parallelism",
    "ep_size": "expert parallelism",
}


class StrategyConfig(Protocol):
    """A strategy's configuration: an object of any class that `strategy_for` recognises."""

    @property
    def activation_checkpointing(self) -> bool | str:
        """`False`, `True`, `"full"` or `"selective"`; `False` if there is no such attribute."""
        ...


class Topologies(NamedTuple):
    """The result of `plan_topologies`."""

    root: Topology
    """The topology of the root mesh."""
    moe: Topology | None
    """The same ranks with `ep_shard` and `ep` in place of the expert axes, or `None` if `ep_size` is 1. The expert mesh
    of a rank is a slice of it, (ep_shard, ep).
    """

    def describe(self) -> str:
        """Describe the axes and ranks on one line."""
        meshes = (topology for topology in self if topology is not None)
        told = [", ".join(f"{axis}={topology.size(axis)}" for axis in topology.all_axes) for topology in meshes]
        return f"{'; experts: '.join(told)} over the ranks {shown_ranks(self.root.ranks)}"


def register_strategy(strategy: Strategy) -> Strategy:
    """Add a strategy to `STRATEGIES`, so that `MeshContext.build`, `DistributedSetup.build` and the rest accept it.

    Register it in every process, for example in the module that defines its configuration. Registering an equal record
    again has no effect.

    Args:
        strategy: The record.

    Returns:
        The same record.

    Raises:
        ValueError: Another strategy has the same name or alias, a configuration class of the same name, or the same
            axes with different `fully_shard_axes`.
    """
    for known in STRATEGIES.values():
        if strategy == known:
            return known
        taken = [name for name in strategy.names if name in known.names]
        if taken:
            raise MeshArgumentError(
                f"strategy {strategy.name!r}: {taken} is a name of strategy {known.name!r}: choose another"
            )
        if strategy.config_name == known.config_name:
            raise MeshArgumentError(
                f"strategy {strategy.name!r}: a configuration of a class called {known.config_name} is for strategy "
                f"{known.name!r}: choose another name for the class"
            )
        both = (strategy.fully_shard_axes, known.fully_shard_axes)
        if tuple(strategy.axes) == tuple(known.axes) and all(both) and both[0] != both[1]:
            raise MeshArgumentError(
                f"strategy {strategy.name!r}: its axes are those of strategy {known.name!r}, by which get_fsdp_dp_mesh "
                f"knows to take {known.fully_shard_axes}: give the same fully_shard_axes, or name an axis differently"
            )
    _REGISTERED[strategy.name] = strategy
    return strategy


def strategy_named(name: str) -> Strategy:
    """Return a strategy by its name or one of its aliases, in any case.

    Raises:
        ValueError: There is none; the message lists the names.
    """
    found = _by_name(name)
    if found is None:
        known = ", ".join(map(repr, STRATEGIES))
        raise MeshArgumentError(f"strategy={shown(name)} is not known{nearest(name, STRATEGIES)}: give one of {known}")
    return found


def find_strategy(config: object) -> Strategy | None:
    """Return the strategy that a configuration is for, `None` if it is not a strategy's configuration.

    Args:
        config: Any object. It is a configuration if its class or a base class, the nearest first, has the name of a
            strategy in a class variable `strategy`, or the name of a strategy's configuration class, in any package.
    """
    by_class = {strategy.config_name: strategy for strategy in STRATEGIES.values()}
    for kind in type(config).__mro__:
        found = _by_name(vars(kind).get("strategy")) or by_class.get(kind.__name__)
        if found is not None:
            return found
    return None


def strategy_for(config: StrategyConfig) -> Strategy:
    """Return the strategy that a configuration is for, as `find_strategy` does.

    Raises:
        TypeError: `config` is not a configuration; the message lists the classes.
    """
    found = find_strategy(config)
    if found is None:
        known = ", ".join(strategy.config_name for strategy in STRATEGIES.values())
        raise wrong_type("strategy_config", config, f"an instance of one of {known}")
    return found


def strategy_name(config: StrategyConfig) -> str:
    """Return the name of the strategy that a configuration is for, such as `"fsdp2"`.

    Raises:
        TypeError: `config` is not a configuration; the message lists the classes.
    """
    return strategy_for(config).name


def fully_shard_strategy(axes: Sequence[str]) -> Strategy:
    """Return the strategy that uses `fully_shard` and has exactly these axes, else the first that uses it."""
    sharding = [strategy for strategy in STRATEGIES.values() if strategy.fully_shard_axes]
    return next((strategy for strategy in sharding if tuple(strategy.axes) == tuple(axes)), sharding[0])


def check_supported_sizes(strategy: Strategy, sizes: ParallelismSizes) -> None:
    """Require that the sizes that a strategy does not support are 1, or `None` if the field allows it.

    Args:
        strategy: The strategy.
        sizes: The requested sizes. Whether they fill the ranks is checked by `plan_topologies`.

    Raises:
        TypeError: A size is not an int.
        ValueError: A size is less than 1, or above 1 and not supported by the strategy; the message has valid values.
    """
    for name, (value, optional) in _read_sizes(strategy, sizes).items():
        if value not in {None, 1} and not strategy.supports(name):
            others = [other for other in STRATEGIES.values() if other.supports(name)]
            raise MeshArgumentError(
                f"{strategy.name}: {name}={value}, but {strategy.name} does not support {_FEATURES.get(name, name)}: "
                f"give {name}=1{' or None' if optional else ''}{_or_use(others)}"
            )


def check_supported_option(strategy: Strategy, option: str, value: object, remedy: str) -> None:
    """Require that a field of a configuration does not have the value that a strategy does not support.

    Args:
        strategy: The strategy.
        option: The field.
        value: Its value.
        remedy: What to give instead, for the message.

    Raises:
        ValueError: The strategy does not support the value.
    """
    if strategy.accepts(option, value):
        return
    others = [other for other in STRATEGIES.values() if other.accepts(option, value)]
    raise MeshArgumentError(
        f"{option}={value!r}, but {strategy.name} does not support it: give {remedy}{_or_use(others)}"
    )


def plan_topologies(
    strategy: str | Strategy, sizes: ParallelismSizes, world_size: int, *, ranks: Sequence[int] | None = None
) -> Topologies:
    """Compute the axes of a strategy with these sizes, and the ranks of their groups.

    - `fsdp2`: axes (pp, dp_replicate, dp_shard, cp, tp), derived axes dp, dp_shard_cp and dp_cp; an expert mesh if
      `ep_size` is above 1.
    - `megatron_fsdp`: axes (dp, cp, tp), derived axis dp_cp.
    - `ddp`: the axis dp. A `MeshContext` has its process group and no mesh.

    Args:
        strategy: A strategy, or the name or an alias of a registered one.
        sizes: The requested sizes. A field of the strategy's sizes that they do not have gets its default.
        world_size: Number of ranks in the world, at least 1.
        ranks: The global ranks to use, strictly ascending, or `None` for the whole world. The sizes then have
            to fill these ranks.

    Returns:
        The topology of the root mesh, and that of the expert mesh if `ep_size` is above 1.

    Raises:
        TypeError: A size, the world size or a rank is not an int.
        ValueError: An unknown strategy; a size below 1, one that the strategy does not support, or sizes that
            do not fill the ranks; ranks that `checked_ranks` refuses. The message has valid values.
    """
    chosen = strategy if isinstance(strategy, Strategy) else strategy_named(strategy)
    given = _read_sizes(chosen, sizes)
    check_size("world_size", world_size)
    world_size = int(world_size)
    used = range(world_size) if ranks is None else checked_ranks(ranks, world_size)
    counted_as = "world_size" if ranks is None else "len(ranks)"
    check_supported_sizes(chosen, sizes)
    values = {name: value or 1 for name, (value, _) in given.items()}
    # Innermost axis first: messages begin with tensor parallelism.
    factors = chosen.factors(reversed([*chosen.axes]), values)
    del factors["dp_size"]
    dp_size, _ = given["dp_size"]
    values["dp_size"] = infer_dp_size(dp_size, len(used), factors, strategy=chosen.name, counted_as=counted_as)
    origin = f", inferred from {counted_as}={len(used)}" if dp_size is None else ""
    shape = [_axis_size(chosen, axis, values, origin) for axis in chosen.axes]
    root = Topology(tuple(chosen.axes), shape, chosen.derived, used)
    return Topologies(root, _plan_experts(chosen, root, values))


def _by_name(name: object) -> Strategy | None:
    wanted = name.lower() if isinstance(name, str) else None
    return next((strategy for strategy in STRATEGIES.values() if wanted in strategy.names), None)


def _or_use(others: Sequence[Strategy]) -> str:
    """Return the part of a message that suggests the first of some strategies."""
    return f", or use strategy {others[0].name!r}" if others else ""


def _read_sizes(strategy: Strategy, sizes: object) -> dict[str, tuple[int | None, bool]]:
    """Return the checked value of each size, and whether it can be `None`: the strategy's fields, then other fields."""
    if not any(hasattr(sizes, size.name) for size in fields(strategy.sizes)):
        raise wrong_type("sizes", sizes, f"{strategy.sizes.__name__}, such as {strategy.sizes.__name__}(dp_size=2)")
    known = [*fields(strategy.sizes), *(fields(sizes) if isinstance(sizes, ParallelismSizes) else ())]
    found: dict[str, tuple[int | None, bool]] = {}
    for size in known:
        default: Any = size.default
        value = getattr(sizes, size.name, default)
        check_size(size.name, value, optional=default is None)
        found[size.name] = value, default is None
    return found


def _axis_size(strategy: Strategy, axis: str, values: Mapping[str, int], origin: str) -> int:
    """Return the size of an axis, after a check that it is a whole number."""
    whole, *rest = strategy.quotient(axis)
    size = values[whole]
    for divisor in rest:
        if size % values[divisor]:
            optional = next(known.default is None for known in fields(strategy.sizes) if known.name == divisor)
            raise MeshArgumentError(
                f"{strategy.name}: {divisor}={values[divisor]} does not divide {whole}={size}"
                f"{origin if whole.startswith('dp_size') else ''}: "
                f"give {one_of(divisors(size))}{', or None for 1' if optional else ''}"
            )
        whole, size = f"{whole} / {divisor}", size // values[divisor]
    return size


def _plan_experts(strategy: Strategy, root: Topology, values: Mapping[str, int]) -> Topology | None:
    """Replace the expert axes by (ep_shard, ep); `None` without expert parallelism."""
    ep_size, axes, experts = values["ep_size"], root.axes, strategy.expert_axes
    if ep_size == 1 or not experts:
        return None
    total = prod(root.size(axis) for axis in experts)
    if total % ep_size:
        stage = [strategy.axes[axis] for axis in axes if axis not in experts] == ["pp_size"]
        where = "a pipeline stage" if stage else f"the axes {', '.join(experts)}"
        raise MeshArgumentError(
            f"{strategy.name}: ep_size={ep_size} does not divide the ranks of {where}, "
            f"{equation(strategy.factors(experts, values))}: give {one_of(divisors(total))}"
        )
    # The expert axes are adjacent, so the new ones can replace them.
    first = axes.index(experts[0])
    last = first + len(experts)
    return Topology(
        axes=(*axes[:first], *EXPERT_MESH_AXES, *axes[last:]),
        shape=(*root.shape[:first], total // ep_size, ep_size, *root.shape[last:]),
        ranks=root.ranks,
    )


# All axes of a pipeline stage are expert axes, as in NeMo AutoModel's `_create_moe_mesh`, so ep_shard * ep is dp_size *
# cp_size * tp_size (NVIDIA-NeMo/Automodel, distributed/mesh_utils.py, 2026). Its earlier versions left tp out; the two
# agree if tp_size is 1. torchtitan has tp among the expert axes too, but never dp_replicate. A dp_shard of 1 with
# several replicas, which NeMo AutoModel refuses, is allowed here.
register_strategy(
    Strategy(
        name="fsdp2",
        config="automodel_mesh.strategy_configs:FSDP2Config",
        axes={
            "pp": "pp_size",
            "dp_replicate": "dp_replicate_size",
            "dp_shard": "dp_size / dp_replicate_size",
            "cp": "cp_size",
            "tp": "tp_size",
        },
        derived={
            "dp": ("dp_replicate", "dp_shard"),
            "dp_shard_cp": ("dp_shard", "cp"),
            "dp_cp": ("dp_replicate", "dp_shard", "cp"),
        },
        expert_axes=("dp_replicate", "dp_shard", "cp", "tp"),
        fully_shard_axes=("dp_replicate", "dp_shard_cp"),
    )
)
register_strategy(
    Strategy(
        name="megatron_fsdp",
        config="automodel_mesh.strategy_configs:MegatronFSDPConfig",
        aliases=("megatron-fsdp", "mfsdp"),
        axes={"dp": "dp_size", "cp": "cp_size", "tp": "tp_size"},
        derived={"dp_cp": ("dp", "cp")},
        unsupported_options={"sequence_parallel": True, "activation_checkpointing": "selective"},
    )
)
register_strategy(
    Strategy(
        name="ddp",
        config="automodel_mesh.strategy_configs:DDPConfig",
        axes={"dp": "dp_size"},
        has_mesh=False,
    )
)
