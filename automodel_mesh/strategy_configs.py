"""The configurations of the built-in strategies, and the configuration's class for each name of a strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from automodel_mesh.checks import is_int, wrong_type
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import as_dict, check_choice, check_flags, check_names, check_positive, one_of_names
from automodel_mesh.keywords import suggest_keywords
from automodel_mesh.topology.strategies import STRATEGIES, Strategy, check_supported_option, strategy_for

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy, OffloadPolicy

__all__ = [
    "STRATEGY_MAP",
    "ActivationCheckpointing",
    "DDPConfig",
    "DistributedStrategyConfig",
    "FSDP2Config",
    "MegatronFSDPConfig",
    "resolve_activation_checkpointing",
]

ActivationCheckpointing: TypeAlias = bool | Literal["full", "selective"]
"""What is recomputed in the backward pass instead of kept: nothing, everything, or what a policy selects.

`True` and `"full"` mean the same; configurations keep both as `True`.
"""


def resolve_activation_checkpointing(value: object, strategy: Strategy | None = None) -> ActivationCheckpointing:
    """Return the mode that is meant, `True` for `"full"`, after a check that the strategy supports it.

    Args:
        value: `False`, `True`, `"full"` or `"selective"`.
        strategy: the strategy; by default every mode is valid.

    Returns:
        `False`, `True` or `"selective"`.

    Raises:
        TypeError: the value is neither a bool nor a string.
        ValueError: a string that is not a mode, or a mode that the strategy does not support.
    """
    modes = (False, True, "full", "selective")
    if not isinstance(value, (bool, str)):
        raise wrong_type("activation_checkpointing", value, f"one of {one_of_names(modes)}")
    if value not in modes:
        raise MeshArgumentError(f"activation_checkpointing={value!r} is not known: give one of {one_of_names(modes)}")
    if strategy is not None:
        name = "activation_checkpointing"
        remedy = f"one of {one_of_names(mode for mode in modes if strategy.accepts(name, mode))}"
        check_supported_option(strategy, name, value, remedy)
    return "selective" if value == "selective" else bool(value)


@suggest_keywords
@dataclass(frozen=True)
class FSDP2Config:
    """Fully sharded data parallelism by torch's `fully_shard`, with any mix of the other axes.

    Raises:
        TypeError: a field has a value of the wrong type.
        ValueError: a field has a value that is not valid; the message lists what is.
    """

    strategy: ClassVar[str] = "fsdp2"
    """The strategy's name."""

    sequence_parallel: bool = False
    """Whether tensor parallel layers shard their activations along the sequence too. By default `False`."""

    tp_plan: str | Mapping[str, Any] | None = field(default=None, hash=False)
    """How modules are split for tensor parallelism: the name of a plan, or a plan, module names or patterns to parallel
    styles. By default `None`: the model's own plan."""

    mp_policy: MixedPrecisionPolicy | None = field(default=None, hash=False)
    """The `torch.distributed.fsdp.MixedPrecisionPolicy` for `fully_shard`. By default `None`: torch's own, which
    computes in the dtype of the parameters."""

    offload_policy: OffloadPolicy | None = field(default=None, hash=False)
    """The `torch.distributed.fsdp.OffloadPolicy` for `fully_shard`, such as `CPUOffloadPolicy()`. By default `None`:
    parameters stay on the device."""

    reshard_after_forward: bool | int | None = None
    """Whether parameters are freed between forward and backward: `True` or `False`, or, as an int of at least 1, the
    number of ranks to reshard to. By default `None`: torch's own choice, made by leaving the argument out, since
    `fully_shard` takes no `None` before torch 2.8."""

    defer_fsdp_grad_sync: bool = True
    """Whether, with gradient accumulation, gradients are reduced at the last micro-batch only. By default `True`."""

    activation_checkpointing: ActivationCheckpointing = False
    """`False`, `True` or `"full"` (kept as `True`), or `"selective"`. By default `False`."""

    def __post_init__(self) -> None:
        check_flags(self, "sequence_parallel", "defer_fsdp_grad_sync")
        _check_tp_plan(self.tp_plan)
        if not isinstance(self.reshard_after_forward, bool):
            _check_reshard_to(self.reshard_after_forward)
        _settle_activation_checkpointing(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


_ZERO_STRATEGIES: Final = ("no_shard", "optim", "optim_grads", "optim_grads_params")


@suggest_keywords
@dataclass(frozen=True)
class MegatronFSDPConfig:
    """Megatron-FSDP: one data parallel axis, with context and tensor parallelism.

    The fields are arguments of `megatron_fsdp.fully_shard`, which is a package of its own.

    Raises:
        TypeError: a field has a value of the wrong type.
        ValueError: a field has a value that is not valid; the message lists what is.
    """

    strategy: ClassVar[str] = "megatron_fsdp"
    """The strategy's name."""

    sequence_parallel: bool = False
    """Not supported with this strategy: a setup refuses `True`. By default `False`."""

    tp_plan: str | Mapping[str, Any] | None = field(default=None, hash=False)
    """How modules are split for tensor parallelism: the name of a plan, or a plan, module names or patterns to parallel
    styles. By default `None`: the model's own plan."""

    megatron_fsdp_unit_modules: Sequence[str] | None = field(default=None, hash=False)
    """The import paths of the module classes to shard as units. By default `None`: the loader's choice."""

    zero_dp_strategy: int | str = 3
    """What is sharded: 0 or `"no_shard"`, 1 or `"optim"` (the optimizer's state), 2 or `"optim_grads"` (gradients too),
    3 or `"optim_grads_params"` (parameters too). By default 3."""

    init_fsdp_with_meta_device: bool = False
    """Whether the model is on the meta device and is materialised shard by shard. By default `False`."""

    grad_reduce_in_fp32: bool = False
    """Whether gradients are reduced in 32 bits. By default `False`: in the dtype of the gradients."""

    preserve_fp32_weights: bool = False
    """Whether the optimizer works on 32-bit copies of the parameters. By default `False`."""

    overlap_grad_reduce: bool = True
    """Whether gradients are reduced during the backward pass. By default `True`."""

    overlap_param_gather: bool = True
    """Whether parameters are gathered while the previous module computes. By default `True`."""

    check_for_nan_in_grad: bool = True
    """Whether gradients are checked for NaN before they are reduced. By default `True`."""

    average_in_collective: bool = False
    """Whether the collective averages gradients, instead of scaling them before. By default `False`."""

    disable_bucketing: bool = False
    """Whether each parameter is communicated on its own, for debugging. By default `False`."""

    calculate_per_token_loss: bool = False
    """Whether gradients are left unscaled, because the loss is divided by its tokens. By default `False`."""

    keep_fp8_transpose_cache: bool = False
    """Whether transposed 8-bit weights are kept: faster, for more memory. By default `False`."""

    nccl_ub: bool = False
    """Whether communication buffers are registered with NCCL; implies double buffers there. By default `False`."""

    fsdp_double_buffer: bool = False
    """Whether communication uses persistent double buffers: fewer allocations, for more memory. By default `False`."""

    activation_checkpointing: ActivationCheckpointing = False
    """`False`, `True` or `"full"` (kept as `True`); `"selective"` is not supported. By default `False`."""

    def __post_init__(self) -> None:
        check_flags(self, "sequence_parallel", "init_fsdp_with_meta_device", "grad_reduce_in_fp32")
        check_flags(self, "preserve_fp32_weights", "overlap_grad_reduce", "overlap_param_gather")
        check_flags(self, "check_for_nan_in_grad", "average_in_collective", "disable_bucketing")
        check_flags(self, "calculate_per_token_loss", "keep_fp8_transpose_cache", "nccl_ub", "fsdp_double_buffer")
        _check_tp_plan(self.tp_plan)
        check_names(self, "megatron_fsdp_unit_modules")
        check_choice(self, "zero_dp_strategy", (*range(len(_ZERO_STRATEGIES)), *_ZERO_STRATEGIES))
        _settle_activation_checkpointing(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


@suggest_keywords
@dataclass(frozen=True)
class DDPConfig:
    """`DistributedDataParallel`: every rank holds the whole model.

    Raises:
        TypeError: a field has a value of the wrong type.
        ValueError: a field has a value that is not valid; the message lists what is.
    """

    strategy: ClassVar[str] = "ddp"
    """The strategy's name."""

    broadcast_buffers: bool = True
    """Whether the first rank sends its buffers, such as running means, at each forward pass. By default `True`. From
    torch 2.13 on, `DistributedDataParallel` calls this `forward_sync_buffers` and warns of the older name. `True` is
    its default on every release, so a loader can leave it out."""

    bucket_cap_mb: float | None = None
    """Size of the buckets in which gradients are reduced, in MiB, above 0. By default `None`: torch's own, 25."""

    find_unused_parameters: bool = False
    """Whether parameters without a gradient are looked for at each pass. By default `False`."""

    gradient_as_bucket_view: bool = False
    """Whether gradients are views of the buckets, which saves a copy of them. By default `False`."""

    static_graph: bool = False
    """Whether every pass uses the same parameters, so that DDP can optimise more. By default `False`."""

    activation_checkpointing: ActivationCheckpointing = False
    """`False`, `True` or `"full"` (kept as `True`), or `"selective"`. By default `False`."""

    def __post_init__(self) -> None:
        check_flags(self, "broadcast_buffers", "find_unused_parameters", "gradient_as_bucket_view", "static_graph")
        check_positive("bucket_cap_mb", self.bucket_cap_mb, "MiB", default="torch's own")
        _settle_activation_checkpointing(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


DistributedStrategyConfig: TypeAlias = FSDP2Config | MegatronFSDPConfig | DDPConfig
"""The configuration of any built-in strategy."""


class _ConfigClasses(Mapping[str, type[Any]]):
    """The class of the configuration for each name and alias of a registered strategy."""

    def __getitem__(self, name: str) -> type[Any]:
        for strategy in STRATEGIES.values():
            if name in strategy.names:
                config = strategy.config
                return resolve_name(config) if isinstance(config, str) else config
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for strategy in STRATEGIES.values() for name in strategy.names)

    def __len__(self) -> int:
        return len(list(iter(self)))


STRATEGY_MAP: Final[Mapping[str, type[Any]]] = _ConfigClasses()
"""The configuration's class for each name and alias of a strategy, those of strategies registered later included."""


def _settle_activation_checkpointing(config: DistributedStrategyConfig) -> None:
    """Check the mode of a configuration, and keep `True` for `"full"`."""
    mode = resolve_activation_checkpointing(config.activation_checkpointing, strategy_for(config))
    object.__setattr__(config, "activation_checkpointing", mode)


def _check_tp_plan(value: object) -> None:
    wanted = "the name of a plan, a dict from module names to parallel styles, or None for the model's own plan"
    if value is None:
        return
    if not isinstance(value, (str, Mapping)):
        raise wrong_type("tp_plan", value, wanted)
    if not value:
        raise MeshArgumentError(f"tp_plan={value!r} is empty: give {wanted}")
    wrong = [] if isinstance(value, str) else [key for key in value if not isinstance(key, str)]
    if wrong:
        raise wrong_type("a key of tp_plan", wrong[0], wanted)


def _check_reshard_to(value: object) -> None:
    wanted = "True, False, an int of at least 1, or None for torch's own choice"
    if value is None:
        return
    if not is_int(value):
        raise wrong_type("reshard_after_forward", value, wanted)
    if value < 1:
        raise MeshArgumentError(f"reshard_after_forward={value} is less than 1: give {wanted}")
