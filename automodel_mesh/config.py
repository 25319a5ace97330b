"""`DistributedSetup`: the meshes and settings for loading a model, checked before any process group is created."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.build import checked_with_the_other_ranks, resolve_world_size
from automodel_mesh.checks import is_int, timeout_of_minutes, wrong_type
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import as_dict, brief, check_config, from_dict, is_config, one_of_names
from automodel_mesh.keywords import suggest_keywords
from automodel_mesh.lookups import MeshLookups
from automodel_mesh.mesh import MeshContext
from automodel_mesh.moe_config import MoEParallelizerConfig
from automodel_mesh.multimodal_configs import (
    ActivationCheckpointingScope,
    MultimodalDistributedConfig,
    MultimodalVisionConfig,
    normalize_activation_checkpointing_scope,
)
from automodel_mesh.nemo.config import *  # noqa: F403 - more names that NeMo AutoModel's code imports from here
from automodel_mesh.pipelining.config import PipelineConfig
from automodel_mesh.strategy_configs import (
    STRATEGY_MAP,
    ActivationCheckpointing,
    DDPConfig,
    DistributedStrategyConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    check_strategy_config,
    resolve_activation_checkpointing,
)
from automodel_mesh.topology.sizes import ParallelismSizes, check_sizes
from automodel_mesh.topology.strategies import (
    STRATEGIES,
    Strategy,
    StrategyConfig,
    check_supported_option,
    check_supported_sizes,
    find_strategy,
    strategy_for,
    strategy_name,
    strategy_named,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "STRATEGY_MAP",
    "ActivationCheckpointing",
    "ActivationCheckpointingScope",
    "DDPConfig",
    "DistributedSetup",
    "DistributedStrategyConfig",
    "FSDP2Config",
    "MegatronFSDPConfig",
    "MoEParallelizerConfig",
    "MultimodalDistributedConfig",
    "MultimodalVisionConfig",
    "PipelineConfig",
    "normalize_activation_checkpointing_scope",
    "strategy_name",
]


@suggest_keywords
@dataclass(frozen=True)
class DistributedSetup(MeshLookups):
    """The meshes of a model and the settings for it, in one object to pass to a loader.

    `build` also builds the meshes. A setup that is made directly has the meshes of `mesh_context`, or settings for
    meshes that are not built yet. It is a context manager that closes itself at the end of the block.

    A configuration can also be one of NeMo AutoModel's own: it is recognised by the name and the fields of its class.

    Args:
        mesh_context: the meshes; by default none. If the setup has a strategy, settings for experts or activation
            checkpointing, its `mesh_context` is a context of the same meshes with these settings.
        strategy_config: the strategy's configuration; `None` for meshes without settings.
        pipeline_config: how the model is split into stages; needs `pp_size` above 1.
        moe_parallel_config: how experts are parallelised; needs `ep_size` above 1.
        activation_checkpointing: `False`, `True` or `"full"` (kept as `True`), or `"selective"`, which megatron_fsdp
            does not support. If it is `False`, it gets the value of `strategy_config`: read it here, not there.
        parallelism_sizes: the requested sizes; those of the meshes are read from `mesh_context`.

    Raises:
        TypeError: an argument, or a field of a configuration, has the wrong type.
        ValueError: a field has a value that is not valid, or arguments contradict each other; the message names the
            field, its value and valid values.
    """

    mesh_context: MeshContext = field(default_factory=MeshContext)
    strategy_config: StrategyConfig | None = None
    pipeline_config: PipelineConfig | None = None
    moe_parallel_config: MoEParallelizerConfig | None = None
    activation_checkpointing: ActivationCheckpointing = False
    parallelism_sizes: ParallelismSizes | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_types(self)
        _check_configs(self)
        strategy = None if self.strategy_config is None else strategy_for(self.strategy_config)
        sizes = _sizes_of(self, strategy)
        if strategy is not None:
            check_supported_sizes(strategy, sizes)
        _check_needed(self, "pipeline_config", "pp_size", sizes, strategy)
        _check_needed(self, "moe_parallel_config", "ep_size", sizes, strategy)
        mode = _resolve_checkpointing(self.activation_checkpointing, self.strategy_config, strategy)
        if strategy is not None:
            _check_options(self.strategy_config, strategy)
        object.__setattr__(self, "activation_checkpointing", mode)
        object.__setattr__(self, "mesh_context", _with_settings(self))

    @classmethod
    @suggest_keywords
    def build(  # noqa: PLR0917 - all arguments can be given by position, as in NeMo AutoModel
        cls,
        strategy: str | StrategyConfig = "fsdp2",
        parallelism_sizes: ParallelismSizes | None = None,
        pipeline_config: PipelineConfig | Mapping[str, Any] | None = None,
        moe_parallel_config: MoEParallelizerConfig | Mapping[str, Any] | None = None,
        activation_checkpointing: ActivationCheckpointing = False,
        world_size: int | None = None,
        timeout_minutes: float | None = None,
        ranks: Sequence[int] | None = None,
    ) -> Self:
        """Check the settings, then build the meshes. Called on every rank of the world, with the same arguments.

        Everything is checked before the first process group is made, so bad arguments raise on every rank and leave no
        process group. To choose backends or separate process groups for single axes, build a `MeshContext` and make the
        setup directly.

        Args:
            strategy: a name of `STRATEGY_MAP`, in any case, or a configuration of any class that `strategy_for`
                recognises.
            parallelism_sizes: the requested sizes; by default all ranks are data parallel. Of the built-in strategies,
                fsdp2 alone takes `dp_replicate_size`, `pp_size` and `ep_size`; ddp takes `dp_size` alone.
            pipeline_config: for `pp_size` above 1 only, where `PipelineConfig()` is the default; a dict has its fields.
            moe_parallel_config: for `ep_size` above 1 only, where `MoEParallelizerConfig()` is the default; a dict has
                its fields.
            activation_checkpointing: `False`; `True` or `"full"`, which mean the same and are kept as `True`; or
                `"selective"`, which megatron_fsdp does not support. If it is `False`, the strategy's value applies.
            world_size: number of ranks; if there are more, the model gets the first ones. By default found from the
                process group or the launcher.
            timeout_minutes: the timeout of every process group made, in minutes, above 0; by default the backend's.
            ranks: the global ranks of the model, ascending; by default all.

        Returns:
            The setup. On a rank outside of `ranks`, `mesh_context.is_member` is false.

        Raises:
            TypeError: an argument, a size or a rank has the wrong type.
            ValueError: an unknown strategy, a key of a dict that is not a field, arguments that contradict each
                other, or sizes that do not fit the ranks; the message names the field, its value and valid values.
        """
        with checked_with_the_other_ranks(timeout_of_minutes("timeout_minutes", timeout_minutes)):
            sizes = ParallelismSizes() if parallelism_sizes is None else parallelism_sizes
            _check_config_type("parallelism_sizes", sizes, ParallelismSizes)
            check_sizes(sizes)
            _check_world_size(world_size)
            pipeline = _coerce(PipelineConfig, "pipeline_config", pipeline_config)
            moe = _coerce(MoEParallelizerConfig, "moe_parallel_config", moe_parallel_config)
            config = _coerce_strategy(strategy)
            described = cls(
                strategy_config=config,
                parallelism_sizes=sizes,
                pipeline_config=PipelineConfig() if pipeline is None and sizes.pp_size > 1 else pipeline,
                moe_parallel_config=MoEParallelizerConfig() if moe is None and sizes.ep_size > 1 else moe,
                activation_checkpointing=activation_checkpointing,
            )
            context = MeshContext.build(
                config,
                sizes,
                world_size=world_size,
                moe_parallel_config=described.moe_parallel_config,
                activation_checkpointing=described.activation_checkpointing,
                timeout_minutes=timeout_minutes,
                ranks=ranks,
            )
            return dataclasses.replace(described, mesh_context=context)

    @classmethod
    def from_device_mesh(cls, device_mesh: DeviceMesh) -> Self:
        """Wrap an existing mesh, without settings. Closing such a setup destroys nothing.

        Args:
            device_mesh: a mesh whose axes have names of `MeshAxisName`, such as `("tp",)` or `("dp", "tp")`, or of a
                registered strategy.

        Returns:
            The setup; its `strategy_config` and `parallelism_sizes` are `None`, the sizes are read from `mesh_context`.

        Raises:
            TypeError: `device_mesh` is not a `DeviceMesh`.
            ValueError: the mesh has no axis names, or an unknown one; the message lists the known names.
        """
        _check_type("device_mesh", device_mesh, DeviceMesh)
        return cls(mesh_context=MeshContext.from_meshes(device_mesh))

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """The root mesh; `None` with ddp, and if the meshes are not built yet."""
        return self.mesh_context.device_mesh

    @property
    def moe_mesh(self) -> DeviceMesh | None:
        """The expert mesh; `None` without expert parallelism."""
        return self.mesh_context.moe_mesh

    def root_mesh(self) -> DeviceMesh:
        """Return the root mesh, as `MeshContext.root_mesh` does."""
        return self.mesh_context.root_mesh()

    def expert_mesh(self) -> DeviceMesh:
        """Return the expert mesh, as `MeshContext.expert_mesh` does."""
        return self.mesh_context.expert_mesh()

    def close(self) -> None:
        """Destroy the process groups that `build` made, and no others; see `MeshContext.close`."""
        self.mesh_context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_Config = TypeVar("_Config", PipelineConfig, MoEParallelizerConfig)


def _coerce(kind: type[_Config], argument: str, value: object) -> _Config | None:
    """Return a configuration: the one given, or an instance made from a dict."""
    if isinstance(value, Mapping):
        return from_dict(kind, argument, value)
    if value is None or is_config(kind, value):
        return cast("_Config | None", value)
    raise wrong_type(argument, value, f"a {kind.__name__}, a dict of its fields, or None")


def _coerce_strategy(strategy: str | StrategyConfig) -> StrategyConfig:
    """Return the configuration of a strategy given by name, with its defaults, or the one given."""
    if isinstance(strategy, str):
        config: StrategyConfig = STRATEGY_MAP[strategy_named(strategy).name]()
        return config
    _check_strategy("strategy", strategy, f", or one of the names {one_of_names(STRATEGY_MAP)}")
    return strategy


def _check_strategy(argument: str, value: object, hint: str) -> None:
    if find_strategy(value) is None:
        classes = ", ".join(strategy.config_name for strategy in STRATEGIES.values())
        raise wrong_type(argument, value, f"an instance of one of {classes}{hint}")


def _check_type(argument: str, value: object, kind: type, hint: str = "") -> None:
    if not isinstance(value, kind):
        raise wrong_type(argument, value, f"a {kind.__name__}{hint}")


def _check_config_type(argument: str, value: object, kind: type, hint: str = "") -> None:
    if not is_config(kind, value):
        raise wrong_type(argument, value, f"a {kind.__name__}{hint}")


def _check_types(setup: DistributedSetup) -> None:
    """Require the types of the fields; only `build` accepts names and dicts."""
    if setup.strategy_config is not None:
        _check_strategy("strategy_config", setup.strategy_config, " or None")
    kinds = {
        "parallelism_sizes": ParallelismSizes,
        "pipeline_config": PipelineConfig,
        "moe_parallel_config": MoEParallelizerConfig,
    }
    for name, kind in kinds.items():
        if getattr(setup, name) is not None:
            _check_config_type(name, getattr(setup, name), kind, " or None")
    _check_type("mesh_context", setup.mesh_context, MeshContext)


def _check_configs(setup: DistributedSetup) -> None:
    """Check the fields of the configurations, which can have been changed since they were made."""
    if setup.parallelism_sizes is not None:
        check_sizes(setup.parallelism_sizes)
    check_strategy_config(setup.strategy_config)
    if setup.pipeline_config is not None:
        check_config(PipelineConfig, setup.pipeline_config)
    if setup.moe_parallel_config is not None:
        check_config(MoEParallelizerConfig, setup.moe_parallel_config)


def _with_settings(setup: DistributedSetup) -> MeshContext:
    """Return the context with the settings of the setup: itself if it has them, or if the setup has none."""
    context = setup.mesh_context
    names = ("strategy_config", "moe_parallel_config", "activation_checkpointing")
    settings = {name: getattr(setup, name) for name in names}
    if not any(settings.values()) or all(getattr(context, name) is value for name, value in settings.items()):
        return context
    changed = copy.copy(context)
    for name, value in settings.items():
        setattr(changed, name, value)
    changed._share(context)  # noqa: SLF001 - a setup closes what its context would, unlike a copy
    return changed


def _check_world_size(world_size: object) -> None:
    """Refuse more ranks than the world has, before the default process group is made from a launcher's variables."""
    known = dist.is_initialized() or "WORLD_SIZE" in os.environ
    if is_int(world_size) and known and world_size > resolve_world_size():
        raise MeshArgumentError(
            f"world_size={world_size}, but there are {resolve_world_size()} ranks: give that number or less, or None "
            "to have it found, or start more ranks"
        )


def _sizes_of(setup: DistributedSetup, strategy: Strategy | None) -> ParallelismSizes:
    """Return the sizes of the meshes, which must be the requested ones; without meshes, the requested sizes."""
    context = setup.mesh_context
    requested = ParallelismSizes() if setup.parallelism_sizes is None else setup.parallelism_sizes
    if context.device_mesh is None and context.moe_mesh is None:
        return requested
    found = {name: _built_size(context, name, strategy) for name in as_dict(requested)}
    built = {name: size for name, size in found.items() if size is not None}
    for name, size in built.items():
        value = getattr(setup.parallelism_sizes, name, None)
        if value is not None and value != size:
            raise MeshArgumentError(
                f"parallelism_sizes.{name}={value}, but the meshes of mesh_context have {name}={size}: give the sizes "
                "that the meshes were built with, or None"
            )
    return dataclasses.replace(requested, **built)


def _built_size(context: MeshContext, name: str, strategy: Strategy | None) -> int | None:
    """Return a size of the meshes, that of one axis or the product of several; `None` if they lack the axes."""
    named = name.removesuffix("_size")  # such as `tp`, in a mesh of any strategy or none
    axes = () if strategy is None else strategy.axes_of(name)
    sizes = [context.axis_size(axis) or 0 for axis in axes]
    if axes and all(sizes):
        return prod(sizes)
    if strategy is not None and not axes and named in strategy.all_axes:
        return None  # derived from axes that come from other sizes, as `cp` may be from `ring` and `ulysses`
    return context.axis_size(named) or (None if name == "dp_size" else 1)


def _check_needed(
    setup: DistributedSetup, name: str, size_name: str, sizes: ParallelismSizes, strategy: Strategy | None
) -> None:
    """Refuse a configuration for a kind of parallelism whose size is 1."""
    value, size = getattr(setup, name), getattr(sizes, size_name)
    if value is None or size > 1:
        return
    remedy = f"parallelism_sizes=ParallelismSizes({size_name}=2) or more"
    if strategy is not None and not strategy.supports(size_name):
        other = next(other.name for other in STRATEGIES.values() if other.supports(size_name))
        remedy = f"strategy {other!r} ({strategy.name} supports no {size_name} above 1) with {remedy}"
    raise MeshArgumentError(
        f"{name}={brief(value)} needs {size_name} > 1, but {size_name}={size}: give {remedy}, or {name}=None"
    )


def _check_options(config: StrategyConfig | None, strategy: Strategy) -> None:
    """Refuse a configuration with a value that the strategy does not support."""
    for option in strategy.unsupported_options:
        value = getattr(config, option, None)
        remedy = f"{type(config).__name__}({option}=False)" if value is True else f"another {option}"
        check_supported_option(strategy, option, value, remedy)


def _resolve_checkpointing(
    value: object, config: StrategyConfig | None, strategy: Strategy | None
) -> ActivationCheckpointing:
    """Return the mode of the setup and of the strategy's configuration; they must not contradict each other."""
    mode = resolve_activation_checkpointing(value, strategy)
    own = resolve_activation_checkpointing(getattr(config, "activation_checkpointing", False), strategy)
    if mode and own and mode != own:
        raise MeshArgumentError(
            f"activation_checkpointing={value!r}, but {type(config).__name__} has activation_checkpointing={own!r}: "
            "give it in one place, or the same in both"
        )
    return mode or own
