"""What each strategy makes of the sizes: its axes, derived axes and expert grid, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple, Protocol

from automodel_mesh.checks import check_size, checked_ranks
from automodel_mesh.topology.grid import Topology
from automodel_mesh.topology.sizes import (
    OPTIONAL_FIELDS,
    ParallelismSizes,
    check_sizes,
    divisors,
    equation,
    infer_dp_size,
    one_of,
)

__all__ = [
    "EXPERT_AXES",
    "STRATEGIES",
    "UNSUPPORTED_SIZES",
    "StrategyConfig",
    "Topologies",
    "check_supported_sizes",
    "plan_topologies",
    "strategy_name",
]

# The expert mesh re-folds every axis of a pipeline stage. NeMo AutoModel's `_create_moe_mesh` flattens these
# four axes and unflattens the result to (ep_shard, ep), so ep_shard * ep == dp_size * cp_size * tp_size:
# replicas and tensor-parallel ranks count, pipeline stages do not (NVIDIA-NeMo/Automodel,
# distributed/mesh_utils.py, 2026). Its earlier versions left tp out (dp_size * cp_size) and built a separate
# mesh (pp, ep_shard, ep); the two agree where tp_size is 1. torchtitan folds tp in as well, but never crosses
# replicas (dp_shard * cp * tp).
EXPERT_AXES: Final = ("dp_replicate", "dp_shard", "cp", "tp")

_FEATURES: Final = {
    "dp_replicate_size": "replicated (hybrid) sharding",
    "tp_size": "tensor parallelism",
    "pp_size": "pipeline parallelism",
    "cp_size": "context parallelism",
    "ep_size": "expert parallelism",
}

UNSUPPORTED_SIZES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "fsdp2": (),
        "megatron_fsdp": ("pp_size", "ep_size", "dp_replicate_size"),
        "ddp": ("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size"),
    }
)
"""For each strategy, the sizes that it has no axis for: they can only be 1."""


# By name: strategies are planned without the classes, which know of torch.
_CONFIGS: Final = {"fsdp2": "FSDP2Config", "megatron_fsdp": "MegatronFSDPConfig", "ddp": "DDPConfig"}


class StrategyConfig(Protocol):
    """What `strategy_name` reads of a strategy's configuration."""

    strategy: ClassVar[str]
    """The strategy's name, one of `STRATEGIES`."""


class Topologies(NamedTuple):
    """The grids of one request."""

    root: Topology
    """The grid that the device mesh is built from."""
    moe: Topology | None
    """The expert grid over the same ranks, axes (pp, ep_shard, ep), or `None` when `ep_size` is 1.

    The mesh that a rank holds is its own pipeline stage's part of it, (ep_shard, ep).
    """


class _Ranks(NamedTuple):
    """The ranks to lay out, and what to call their number in messages."""

    ranks: Sequence[int]
    counted_as: str


def strategy_name(config: StrategyConfig) -> str:
    """Return the name under which `plan_topologies` knows a strategy.

    Args:
        config: An instance of a strategy's class, which names the strategy in its class variable `strategy`.

    Returns:
        `"fsdp2"`, `"megatron_fsdp"` or `"ddp"`.

    Raises:
        TypeError: `config` is none of them; the message lists what is.
    """
    name = getattr(type(config), "strategy", None)
    if not isinstance(name, str) or name not in STRATEGIES:
        raise TypeError(
            f"a strategy is an instance of {', '.join(_CONFIGS.values())}, got {type(config).__name__}: {config!r}"
        )
    return name


def check_supported_sizes(strategy: str, sizes: ParallelismSizes) -> None:
    """Require that sizes which a strategy has no axis for are 1, or `None` where that means 1.

    Args:
        strategy: One of `STRATEGIES`.
        sizes: The sizes asked for; whether they fill the ranks is the planner's question, not this function's.

    Raises:
        ValueError: A size above 1 that the strategy does not support; the message says what would do.
    """
    for name in UNSUPPORTED_SIZES[strategy]:
        value = getattr(sizes, name)
        if value is None or value == 1:
            continue
        other = " or None" if name in OPTIONAL_FIELDS else ""
        raise ValueError(
            f"{strategy}: {name}={value}, but {strategy} does not support {_FEATURES[name]}: "
            f"give {name}=1{other}, or use strategy 'fsdp2'"
        )


def plan_topologies(
    strategy: str, sizes: ParallelismSizes, world_size: int, *, ranks: Sequence[int] | None = None
) -> Topologies:
    """Lay out the ranks for a strategy.

    - `fsdp2`: axes (pp, dp_replicate, dp_shard, cp, tp), derived axes dp, dp_shard_cp and dp_cp; an expert
      grid when `ep_size` is more than 1.
    - `megatron_fsdp`: axes (dp, cp, tp), derived axis dp_cp.
    - `ddp`: one axis, dp. The seed library builds no mesh for DDP; this is for reports.

    Args:
        strategy: One of `STRATEGIES`.
        sizes: The sizes asked for.
        world_size: Number of ranks in the world, at least 1.
        ranks: The global ranks to use, strictly ascending, or `None` for the whole world. The sizes then have
            to fill these ranks.

    Returns:
        The root grid and, for `fsdp2` with `ep_size` of more than 1, the expert grid.

    Raises:
        TypeError: A size, the world size or a rank is not an int.
        ValueError: An unknown strategy; a size below 1, one that the strategy does not support, or sizes that
            do not fill the ranks; ranks that `checked_ranks` refuses. The message says which values would do.
    """
    plan = next((plan for name, plan in _PLANS.items() if name == strategy), None)
    if plan is None:
        raise ValueError(f"strategy={strategy!r} is not known: give one of {', '.join(map(repr, STRATEGIES))}")
    check_sizes(sizes)
    check_size("world_size", world_size)
    if ranks is None:
        return plan(sizes, _Ranks(range(world_size), "world_size"))
    return plan(sizes, _Ranks(checked_ranks(ranks, world_size), "len(ranks)"))


def _plan_fsdp2(sizes: ParallelismSizes, where: _Ranks) -> Topologies:
    tp, cp, pp = sizes.tp_size, sizes.cp_size, sizes.pp_size
    factors = {"tp_size": tp, "cp_size": cp, "pp_size": pp}
    count = len(where.ranks)
    dp = infer_dp_size(sizes.dp_size, count, factors, strategy="fsdp2", counted_as=where.counted_as)
    replicas = 1 if sizes.dp_replicate_size is None else sizes.dp_replicate_size
    if dp % replicas:
        origin = "" if sizes.dp_size is not None else f", inferred from {where.counted_as}={count}"
        raise ValueError(
            f"fsdp2: dp_replicate_size={replicas} does not divide dp_size={dp}{origin}: "
            f"give {one_of(divisors(dp))}, or None for 1"
        )
    # dp_shard of 1 with several replicas is a grid like any other and accepted; NeMo AutoModel refuses it.
    root = Topology(
        axes=("pp", "dp_replicate", "dp_shard", "cp", "tp"),
        shape=(pp, replicas, dp // replicas, cp, tp),
        derived={
            "dp": ("dp_replicate", "dp_shard"),
            "dp_shard_cp": ("dp_shard", "cp"),
            "dp_cp": ("dp_replicate", "dp_shard", "cp"),
        },
        ranks=where.ranks,
    )
    return Topologies(root, _plan_experts(root, sizes.ep_size))


def _plan_experts(root: Topology, ep_size: int) -> Topology | None:
    """Re-fold each pipeline stage of an FSDP2 grid to (ep_shard, ep); None without expert parallelism."""
    if ep_size == 1:
        return None
    stage = prod(root.size(axis) for axis in EXPERT_AXES)
    if stage % ep_size:
        factors = {"dp_size": root.size("dp"), "cp_size": root.size("cp"), "tp_size": root.size("tp")}
        raise ValueError(
            f"fsdp2: ep_size={ep_size} does not divide the ranks of a pipeline stage, {equation(factors)}: "
            f"give {one_of(divisors(stage))}"
        )
    # pp is the outermost axis and the expert axes are all the others, so each stage is one run of places.
    shape = (root.size("pp"), stage // ep_size, ep_size)
    return Topology(axes=("pp", "ep_shard", "ep"), shape=shape, ranks=root.ranks)


def _plan_megatron_fsdp(sizes: ParallelismSizes, where: _Ranks) -> Topologies:
    check_supported_sizes("megatron_fsdp", sizes)
    factors = {"tp_size": sizes.tp_size, "cp_size": sizes.cp_size}
    dp = infer_dp_size(sizes.dp_size, len(where.ranks), factors, strategy="megatron_fsdp", counted_as=where.counted_as)
    root = Topology(
        axes=("dp", "cp", "tp"),
        shape=(dp, sizes.cp_size, sizes.tp_size),
        derived={"dp_cp": ("dp", "cp")},
        ranks=where.ranks,
    )
    return Topologies(root, None)


def _plan_ddp(sizes: ParallelismSizes, where: _Ranks) -> Topologies:
    check_supported_sizes("ddp", sizes)
    dp = infer_dp_size(sizes.dp_size, len(where.ranks), {}, strategy="ddp", counted_as=where.counted_as)
    return Topologies(Topology(axes=("dp",), shape=(dp,), ranks=where.ranks), None)


_PLANS: Final[Mapping[str, Callable[[ParallelismSizes, _Ranks], Topologies]]] = MappingProxyType(
    {"fsdp2": _plan_fsdp2, "megatron_fsdp": _plan_megatron_fsdp, "ddp": _plan_ddp}
)
STRATEGIES: Final = tuple(_PLANS)
"""Names of the strategies that can be planned."""
