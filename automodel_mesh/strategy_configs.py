"""The configurations of the built-in strategies, and the configuration's class for each name of a strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, cast

import torch

from automodel_mesh.checks import is_int, wrong_type
from automodel_mesh.dtypes import check_dtype
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import (
    as_dict,
    check_at_least_one,
    check_choice,
    check_config,
    check_flags,
    check_names,
    check_positive,
    is_config,
    one_of_names,
)
from automodel_mesh.keywords import suggest_keywords
from automodel_mesh.multimodal_configs import (
    ActivationCheckpointingScope,
    MultimodalDistributedConfig,
    normalize_activation_checkpointing_scope,
)
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
    "check_strategy_config",
    "resolve_activation_checkpointing",
]

ActivationCheckpointing: TypeAlias = bool | Literal["full", "selective"]
"""What is recomputed in the backward pass instead of kept: nothing, everything, or what a policy selects.

`True` and `"full"` mean the same; a `DistributedSetup` keeps both as `True`.
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


class MixedPrecisionField:
    """A field `mp_policy`. Its default is made when it is read: `torch.distributed.fsdp` takes seconds to import.

    Args:
        **default: the arguments of the default `MixedPrecisionPolicy`.
    """

    def __init__(self, **default: Any) -> None:
        self._default = default

    def __get__(self, config: object | None, owner: type | None = None) -> MixedPrecisionPolicy | None:
        if config is None:  # dataclasses asks the class for the default of the argument
            return None
        if vars(config)["mp_policy"] is None:
            from torch.distributed.fsdp import MixedPrecisionPolicy  # noqa: PLC0415 - see above

            vars(config)["mp_policy"] = MixedPrecisionPolicy(**self._default)
        return cast("MixedPrecisionPolicy", vars(config)["mp_policy"])

    def __set__(self, config: object, value: MixedPrecisionPolicy | None) -> None:
        vars(config)["mp_policy"] = value


_MP_POLICY: Any = MixedPrecisionField(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


@suggest_keywords
@dataclass
class FSDP2Config:
    """Fully sharded data parallelism by torch's `fully_shard`, with any mix of the other axes.

    Fields can be changed. They are checked when the configuration is used, by `check`.

    Raises:
        TypeError: `multimodal` has the wrong class.
        ValueError: `activation_checkpointing_scope` has an unknown name.
    """

    strategy: ClassVar[str] = "fsdp2"
    """The strategy's name."""

    sequence_parallel: bool = False
    """Whether tensor parallel layers shard their activations along the sequence too. By default `False`."""

    tp_plan: str | Mapping[str, Any] | None = None
    """How modules are split for tensor parallelism: the name of a plan, or a plan, module names or patterns to parallel
    styles. By default `None`: the model's own plan."""

    patch_is_packed_sequence: bool = False
    """Whether transformers is told that no sequence is packed, which saves a wait for the GPU at each attention layer.
    By default `False`."""

    mp_policy: MixedPrecisionPolicy | None = _MP_POLICY
    """The `torch.distributed.fsdp.MixedPrecisionPolicy` for `fully_shard`. By default, and for `None`, parameters are
    cast to bfloat16 to compute, and gradients are reduced in float32."""

    offload_policy: OffloadPolicy | None = None
    """The `torch.distributed.fsdp.OffloadPolicy` for `fully_shard`, such as `CPUOffloadPolicy()`. By default `None`:
    parameters stay on the device."""

    autocast_dtype: torch.dtype | str | None = None
    """The dtype for `torch.autocast` around the forward pass, a `torch.dtype` or its name. By default `None`: no
    autocast."""

    activation_checkpointing: ActivationCheckpointing = False
    """`False`, `True` or `"full"`, which mean the same, or `"selective"`. By default `False`."""

    activation_checkpointing_scope: ActivationCheckpointingScope = "all"
    """The parts of the model that recompute activations, kept as a tuple; see
    `normalize_activation_checkpointing_scope`. By default `"all"`."""

    defer_fsdp_grad_sync: bool = True
    """Whether, with gradient accumulation, gradients are reduced at the last micro-batch only. By default `True`."""

    reshard_after_forward: bool | int | None = None
    """Whether parameters are freed between forward and backward: `True` or `False`, or, as an int of at least 1, the
    number of ranks to reshard to. By default `None`: the loader's choice. `fully_shard` itself takes no `None` before
    torch 2.8."""

    enable_async_tensor_parallel: bool = False
    """Whether tensor parallel communication overlaps computation; it needs `sequence_parallel`. By default `False`."""

    enable_compile: bool = False
    """Whether each layer is compiled. By default `False`."""

    enable_fsdp2_prefetch: bool = False
    """Whether the order in which units are gathered ahead of their use is set explicitly. By default `False`."""

    fsdp2_backward_prefetch_depth: int = 2
    """The number of units gathered ahead in the backward pass, at least 1. By default 2."""

    fsdp2_forward_prefetch_depth: int = 1
    """The number of units gathered ahead in the forward pass, at least 1. By default 1."""

    multimodal: MultimodalDistributedConfig = field(default_factory=MultimodalDistributedConfig)
    """How parts for images and sound are distributed. By default `MultimodalDistributedConfig()`."""

    def __post_init__(self) -> None:
        _settle_scope(self)
        if not is_config(MultimodalDistributedConfig, self.multimodal):
            raise wrong_type("multimodal", self.multimodal, "a MultimodalDistributedConfig")

    def check(self) -> None:
        """Refuse values that are not valid.

        Raises:
            TypeError: a field has a value of the wrong type.
            ValueError: a field has a value that is not valid; the message lists what is.
        """
        check_flags(self, "sequence_parallel", "patch_is_packed_sequence", "defer_fsdp_grad_sync")
        check_flags(self, "enable_async_tensor_parallel", "enable_compile", "enable_fsdp2_prefetch")
        check_at_least_one(self, "fsdp2_backward_prefetch_depth", "fsdp2_forward_prefetch_depth")
        _check_tp_plan(self.tp_plan)
        check_dtype(self, "autocast_dtype")
        if not isinstance(self.reshard_after_forward, bool):
            _check_reshard_to(self.reshard_after_forward)
        _check_checkpointing(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


_ZERO_STRATEGIES: Final = ("no_shard", "optim", "optim_grads", "optim_grads_params")


@suggest_keywords
@dataclass
class MegatronFSDPConfig:
    """Megatron-FSDP: one data parallel axis, with context and tensor parallelism.

    The fields are arguments of `megatron_fsdp.fully_shard`, which is a package of its own. They can be changed, and are
    checked when the configuration is used, by `check`.
    """

    strategy: ClassVar[str] = "megatron_fsdp"
    """The strategy's name."""

    megatron_fsdp_unit_modules: Sequence[str] | None = None
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
    """Whether gradients are checked for NaN before they are reduced; from megatron-fsdp 0.5 on it has no effect. By
    default `True`."""

    report_nan_in_param_grad: bool = False
    """Whether the gradient of each parameter is checked for NaN, which is slow; from megatron-fsdp 0.5 on. By default
    `False`."""

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
    """`False`, `True` or `"full"`, which mean the same; `"selective"` is not supported. By default `False`."""

    sequence_parallel: bool = field(default=False, kw_only=True)
    """Not supported with this strategy: a setup refuses `True`. By default `False`."""

    tp_plan: str | Mapping[str, Any] | None = field(default=None, kw_only=True)
    """How modules are split for tensor parallelism: the name of a plan, or a plan, module names or patterns to parallel
    styles. By default `None`: the model's own plan."""

    def check(self) -> None:
        """Refuse values that are not valid.

        Raises:
            TypeError: a field has a value of the wrong type.
            ValueError: a field has a value that is not valid; the message lists what is.
        """
        check_flags(self, "sequence_parallel", "init_fsdp_with_meta_device", "grad_reduce_in_fp32")
        check_flags(self, "preserve_fp32_weights", "overlap_grad_reduce", "overlap_param_gather")
        check_flags(self, "check_for_nan_in_grad", "report_nan_in_param_grad", "average_in_collective")
        check_flags(self, "disable_bucketing", "calculate_per_token_loss", "keep_fp8_transpose_cache")
        check_flags(self, "nccl_ub", "fsdp_double_buffer")
        _check_tp_plan(self.tp_plan)
        check_names(self, "megatron_fsdp_unit_modules")
        check_choice(self, "zero_dp_strategy", (*range(len(_ZERO_STRATEGIES)), *_ZERO_STRATEGIES))
        _check_checkpointing(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


@suggest_keywords
@dataclass
class DDPConfig:
    """`DistributedDataParallel`: every rank holds the whole model.

    Fields can be changed. They are checked when the configuration is used, by `check`.

    Raises:
        ValueError: `activation_checkpointing_scope` has an unknown name.
    """

    strategy: ClassVar[str] = "ddp"
    """The strategy's name."""

    activation_checkpointing: ActivationCheckpointing = False
    """`False`, `True` or `"full"`, which mean the same, or `"selective"`. By default `False`."""

    activation_checkpointing_scope: ActivationCheckpointingScope = "all"
    """The parts of the model that recompute activations, kept as a tuple; see
    `normalize_activation_checkpointing_scope`. By default `"all"`."""

    broadcast_buffers: bool = False
    """Whether the first rank sends its buffers, such as running means, at each forward pass. By default `False`; that
    of `DistributedDataParallel` is `True`. From torch 2.13 on it is called `forward_sync_buffers` there, and the older
    name gives a warning."""

    find_unused_parameters: bool = False
    """Whether parameters without a gradient are looked for at each pass. By default `False`."""

    static_graph: bool = False
    """Whether every pass uses the same parameters, so that DDP can optimise more. By default `False`."""

    bucket_cap_mb: float | None = None
    """Size of the buckets in which gradients are reduced, in MiB, above 0. By default `None`: torch's own, 25."""

    gradient_as_bucket_view: bool = False
    """Whether gradients are views of the buckets, which saves a copy of them. By default `False`."""

    autocast_dtype: torch.dtype | str | None = None
    """The dtype for `torch.autocast` around the forward pass, a `torch.dtype` or its name. By default `None`: no
    autocast."""

    def __post_init__(self) -> None:
        _settle_scope(self)

    def check(self) -> None:
        """Refuse values that are not valid.

        Raises:
            TypeError: a field has a value of the wrong type.
            ValueError: a field has a value that is not valid; the message lists what is.
        """
        check_flags(self, "broadcast_buffers", "find_unused_parameters", "gradient_as_bucket_view", "static_graph")
        check_positive("bucket_cap_mb", self.bucket_cap_mb, "MiB", default="torch's own")
        check_dtype(self, "autocast_dtype")
        _check_checkpointing(self)

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


def check_strategy_config(config: object) -> None:
    """Refuse a strategy's configuration with values that are not valid.

    Args:
        config: a configuration of a built-in strategy, or of the class of the same name in another package. That of
            another strategy is not checked: its package knows what is valid.

    Raises:
        TypeError: a field has a value of the wrong type.
        ValueError: a field has a value that is not valid; the message lists what is.
    """
    for kind in (FSDP2Config, MegatronFSDPConfig, DDPConfig):
        if is_config(kind, config):
            check_config(kind, config)


def _check_checkpointing(config: DistributedStrategyConfig) -> None:
    resolve_activation_checkpointing(config.activation_checkpointing, strategy_for(config))


def _settle_scope(config: FSDP2Config | DDPConfig) -> None:
    config.activation_checkpointing_scope = normalize_activation_checkpointing_scope(
        config.activation_checkpointing_scope
    )


def _check_tp_plan(value: object) -> None:
    wanted = "the name of a plan, a dict from module names to parallel styles, or None for the model's own plan"
    if value is None:
        return
    if not isinstance(value, (str, Mapping)):
        raise wrong_type("tp_plan", value, wanted)
    if value == "":
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
