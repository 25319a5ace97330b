"""The older generation's `MeshContext`, and the other names of `automodel_mesh.legacy`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh import mesh
from automodel_mesh.config import STRATEGY_MAP, DistributedSetup, _check_needed, _sizes_of
from automodel_mesh.mesh import _VALID_AXIS_NAMES, MeshAxisName, _get_axis_size, _optional_axis
from automodel_mesh.mesh import _validate_mesh_axis_names as _validate_mesh_dim_names
from automodel_mesh.nemo.old_names import validate_distributed_setup as _validate_distributed_setup
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import strategy_for

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import Self

    from automodel_mesh.config import ActivationCheckpointing, MoEParallelizerConfig, PipelineConfig
    from automodel_mesh.topology.strategies import StrategyConfig

__all__ = [
    "STRATEGY_MAP",
    "_VALID_AXIS_NAMES",
    "MeshAxisName",
    "MeshContext",
    "_get_axis_size",
    "_optional_axis",
    "_validate_distributed_setup",
    "_validate_mesh_dim_names",
]


_NO_SETTINGS: Final[dict[str, Any]] = {
    "strategy_config": None,
    "moe_parallel_config": None,
    "activation_checkpointing": False,
}


@dataclass(init=False)
class MeshContext(mesh.MeshContext):
    """The older generation's context: it also has the pipeline's settings, and takes all settings before the meshes.

    It is a subclass of the current `MeshContext`, so every function that takes one takes this. `moe_config` is the
    older name of `moe_parallel_config`.

    Args:
        strategy_config: a strategy's configuration, as for the current `MeshContext.build`.
        pipeline_config: how to split and schedule a pipeline; needs a `device_mesh` with more than one stage.
        moe_config: how to shard experts; needs a `moe_mesh` with more than one expert parallel rank.
        activation_checkpointing: `False`, `True` or `"full"`, or `"selective"`.
        device_mesh: the root mesh.
        moe_mesh: the expert mesh.
        **current: the other arguments of the current `MeshContext`, such as `process_group`.

    Raises:
        ValueError: as for the current `MeshContext`; or there is a `strategy_config`, and
            `_validate_distributed_setup` refuses the context.
        TypeError: `strategy_config` is not a strategy's configuration.
    """

    pipeline_config: PipelineConfig | None = None
    _origin: DistributedSetup | None = field(default=None, init=False, repr=False, compare=False)

    # Written out, because a generated one would take the meshes first, as the current generation does.
    def __init__(  # noqa: PLR0917 - the older generation's arguments, in its order
        self,
        strategy_config: StrategyConfig | None = None,
        pipeline_config: PipelineConfig | None = None,
        moe_config: MoEParallelizerConfig | None = None,
        activation_checkpointing: ActivationCheckpointing = False,
        device_mesh: DeviceMesh | None = None,
        moe_mesh: DeviceMesh | None = None,
        **current: Any,
    ) -> None:
        self.pipeline_config = pipeline_config
        self._origin = None
        renamed = current.pop("moe_parallel_config", None)  # `dataclasses.replace` gives it by its current name
        super().__init__(  # ends in __post_init__, so comes last
            device_mesh,
            moe_mesh,
            strategy_config=strategy_config,
            moe_parallel_config=renamed if moe_config is None else moe_config,
            activation_checkpointing=activation_checkpointing,
            **current,
        )

    def __post_init__(self, process_group: ProcessGroup | None = None) -> None:  # noqa: RUF033 - as in the base class
        super().__post_init__(process_group)
        if self.strategy_config is not None:
            _validate_distributed_setup(self)

    @property
    def moe_config(self) -> MoEParallelizerConfig | None:
        """How to shard experts: the older name of `moe_parallel_config`."""
        return self.moe_parallel_config

    @moe_config.setter
    def moe_config(self, value: MoEParallelizerConfig | None) -> None:
        self.moe_parallel_config = value

    @classmethod
    def from_meshes(
        cls,
        device_mesh: DeviceMesh | None,
        moe_mesh: DeviceMesh | None = None,
        *,
        strategy_config: StrategyConfig | None = None,
        pipeline_config: PipelineConfig | None = None,
        moe_config: MoEParallelizerConfig | None = None,
        activation_checkpointing: ActivationCheckpointing = False,
        **current: Any,
    ) -> Self:
        """Wrap existing meshes. Closing such a context destroys nothing: the process groups are the caller's.

        Args:
            device_mesh: the root mesh; all arguments are those of the class.
            moe_mesh: the expert mesh.
            strategy_config: a strategy's configuration.
            pipeline_config: how to split and schedule a pipeline.
            moe_config: how to shard experts.
            activation_checkpointing: what is recomputed in the backward pass.
            **current: the other arguments of the current `MeshContext.from_meshes`.

        Returns:
            The context.

        Raises:
            ValueError: as for the class.
            TypeError: as for the class.
        """
        return cls(
            strategy_config, pipeline_config, moe_config, activation_checkpointing, device_mesh, moe_mesh, **current
        )

    @classmethod
    def from_distributed_setup(cls, setup: DistributedSetup) -> Self:
        """Make a context of a current setup, for code that takes the older context.

        Args:
            setup: the setup; its meshes are shared, so closing either closes both.

        Returns:
            The context; `to_distributed_setup` returns an equal setup until the meshes are replaced.

        Raises:
            ValueError: `mesh_context` of the setup was changed, so that its parts no longer fit together.
        """
        context = cls._over(setup.mesh_context)
        for name in ("pipeline_config", *_NO_SETTINGS):
            setattr(context, name, getattr(setup, name))
        context._origin = setup  # noqa: SLF001 - of this very class
        _validate_distributed_setup(context)
        return context

    def to_distributed_setup(self) -> DistributedSetup:
        """Make a setup of this context, for code of the current generation.

        Returns:
            The setup. Its meshes are shared, so closing either closes both. Its `parallelism_sizes` are those of the
            setup that this context was made from, or else read from the meshes (`None` without a mesh).

        Raises:
            ValueError: the parts do not fit together.
            TypeError: a configuration has the wrong class.
        """
        setup = DistributedSetup(
            mesh_context=self._topology(),
            strategy_config=self.strategy_config,
            parallelism_sizes=self._asked_sizes(),
            pipeline_config=self.pipeline_config,
            activation_checkpointing=self.activation_checkpointing,
        )
        # The one field whose name has changed: checked here first, so that the message has this generation's name.
        owner: Any = self
        strategy = None if self.strategy_config is None else strategy_for(self.strategy_config)
        _check_needed(owner, "moe_config", "ep_size", _sizes_of(setup, strategy), strategy)
        return replace(setup, moe_parallel_config=self.moe_config)

    @classmethod
    def _over(cls, topology: mesh.MeshContext) -> Self:
        """Make a context without settings that shares the meshes of another one, and closes what that would close."""
        context = cls(**_fields_of(topology) | _NO_SETTINGS)
        context._share(topology)
        return context

    def _topology(self) -> mesh.MeshContext:
        """Return the meshes alone, as a current context."""
        topology = mesh.MeshContext(**_fields_of(self) | _NO_SETTINGS)
        topology._share(self)  # noqa: SLF001 - of the class that this one extends
        return topology

    def _asked_sizes(self) -> ParallelismSizes | None:
        """Return the sizes of the setup that this was made from; those of the meshes, if these were replaced."""
        origin = self._origin
        if origin is not None and origin.device_mesh is self.device_mesh and origin.moe_mesh is self.moe_mesh:
            return origin.parallelism_sizes
        if self.device_mesh is None:
            return None
        return ParallelismSizes(**{size.name: getattr(self, size.name) for size in fields(ParallelismSizes)})


def _fields_of(context: mesh.MeshContext) -> dict[str, Any]:
    """Return the fields that a context has in the current generation, by name."""
    return {field.name: getattr(context, field.name) for field in fields(mesh.MeshContext) if field.init}
