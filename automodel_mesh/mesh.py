"""`MeshContext`: the meshes of a model, and the sizes and names of axes that are read from them."""

from __future__ import annotations

import os
from dataclasses import InitVar, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import torch.distributed as dist

from automodel_mesh import compat, strategy_configs
from automodel_mesh.build import Meshes, build_meshes, checked_with_the_other_ranks, resolve_world_size
from automodel_mesh.checks import check_size, timeout_of_minutes
from automodel_mesh.compat.compiled import constant_when_compiled
from automodel_mesh.errors import MeshArgumentError, RankNotInMeshError
from automodel_mesh.group_handle import GroupHandle
from automodel_mesh.keywords import suggest_keywords
from automodel_mesh.lookups import MeshLookups
from automodel_mesh.nemo import old_names
from automodel_mesh.strategy_configs import check_strategy_config
from automodel_mesh.topology.axis_names import MeshAxisName
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import STRATEGIES, fully_shard_strategy, plan_topologies, strategy_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from torch import nn
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import Self

    from automodel_mesh.moe_config import MoEParallelizerConfig
    from automodel_mesh.strategy_configs import ActivationCheckpointing
    from automodel_mesh.topology.description import MeshDescription
    from automodel_mesh.topology.strategies import StrategyConfig

__all__ = ["MeshAxisName", "MeshContext", "ParallelismSizes"]


_VALID_AXIS_NAMES: frozenset[str] = frozenset(MeshAxisName)


if TYPE_CHECKING:
    _T = TypeVar("_T")
    _NoField: TypeAlias = Annotated[_T, "no field"]
else:
    # `dataclasses.asdict` cannot copy a process group, so it must not see it; `replace` hands it on all the same.
    _NoField = InitVar


class _ProcessGroup:
    """The attribute `process_group`, kept as a handle."""

    def __get__(self, context: MeshContext | None, kind: type[MeshContext]) -> ProcessGroup | None:
        if context is None:
            return None  # the default
        handle = context._handle  # noqa: SLF001 - of the class that this is an attribute of
        return None if handle is None else handle.group()

    def __set__(self, context: MeshContext, group: ProcessGroup | None) -> None:
        context._handle = None if group is None else GroupHandle.of(group)  # noqa: SLF001 - as above


_PROCESS_GROUP: Any = _ProcessGroup()


@suggest_keywords
@dataclass
class MeshContext(MeshLookups):
    """The device meshes of a model and the settings to parallelise it with, and what follows from the meshes.

    Sizes are read from the axes of these names; without such an axis they are 1, `dp_size` and `dp_replicate_size`
    `None`. As a context manager it closes itself at the end of the block.

    It can be copied, pickled, and given to `dataclasses.asdict` and `replace`. A copy has copies of the meshes, as
    torch copies them, over the same process groups; `asdict` leaves out `process_group`. What is unpickled finds its
    groups by name in the world of its process. Only the context that `build` returned closes anything, no copy does.

    Args:
        device_mesh: the root mesh.
        moe_mesh: the expert mesh.
        process_group: a process group of the model's ranks, if the caller has one. Reading it is a
            `ProcessGroupDestroyedError` once it was destroyed, or where the process of an unpickled context lacks it.
        strategy_config: the strategy's configuration; a `DistributedSetup` checks it, this class does not.
        moe_parallel_config: how experts are parallelised.
        activation_checkpointing: `False`, `True` or `"full"`, which mean the same, or `"selective"`.
        reapply_trainability: a function that a loader calls with the model after it has replaced modules in it, to set
            again which parameters are trained.
        cp_ring_degree: ranks along the ring in the context parallel axis, at least 1.
        cp_ulysses_degree: ranks that exchange heads in that axis, at least 1; `None` for all that the ring leaves.

    Raises:
        ValueError: a mesh has no names, or one that is neither a `MeshAxisName` nor an axis of a registered strategy;
            or a degree is less than 1.
        TypeError: `process_group` is no process group; a degree is not an int.
    """

    device_mesh: DeviceMesh | None = None
    moe_mesh: DeviceMesh | None = None
    process_group: _NoField[ProcessGroup | None] = _PROCESS_GROUP
    strategy_config: StrategyConfig | None = None
    moe_parallel_config: MoEParallelizerConfig | None = None
    activation_checkpointing: ActivationCheckpointing = False
    reapply_trainability: Callable[[nn.Module], None] | None = field(default=None, repr=False)
    cp_ring_degree: int = 1
    cp_ulysses_degree: int | None = None
    _handle: GroupHandle | None = field(default=None, init=False, repr=False)

    def __post_init__(self, process_group: ProcessGroup | None = None) -> None:  # noqa: RUF033 - its type hides `InitVar`
        self.process_group = process_group
        # Both as `build` sets them; they are no fields, so `replace` leaves them out.
        self._built: Meshes | None = None
        self._owned: DeviceMesh | None = None
        _validate_mesh_axis_names(self)
        check_size("cp_ring_degree", self.cp_ring_degree)
        check_size("cp_ulysses_degree", self.cp_ulysses_degree, optional=True)

    def _share(self, other: MeshContext) -> None:
        """Take over the process group of another context, and what it closes."""
        self._handle, self._built, self._owned = other._handle, other._built, other._owned

    def __getstate__(self) -> dict[str, Any]:
        # For copies of every kind, and pickles: they have equal meshes, but the groups are not theirs to destroy.
        return {**vars(self), "_owned": None}

    @classmethod
    @suggest_keywords
    def build(
        cls,
        strategy_config: StrategyConfig,
        parallelism_sizes: ParallelismSizes | None = None,
        world_size: int | None = None,
        *,
        moe_parallel_config: MoEParallelizerConfig | None = None,
        activation_checkpointing: ActivationCheckpointing = False,
        reapply_trainability: Callable[[nn.Module], None] | None = None,
        cp_ring_degree: int = 1,
        cp_ulysses_degree: int | None = None,
        timeout_minutes: float | None = None,
        ranks: Sequence[int] | None = None,
        backend_override: Mapping[str, Any] | None = None,
        separate_groups: Sequence[str] | None = None,
    ) -> Self:
        """Build the meshes of a strategy. Called on every rank of the world, with the same arguments.

        Args:
            strategy_config: an `FSDP2Config`, `MegatronFSDPConfig`, `DDPConfig` or other object for `strategy_for`.
            parallelism_sizes: the sizes asked for; by default all ranks are data parallel.
            world_size: number of ranks; by default found from the process group or the launcher.
            moe_parallel_config: kept in the context, like the next four; see the class.
            activation_checkpointing: what is recomputed in the backward pass.
            reapply_trainability: sets again which parameters are trained.
            cp_ring_degree: ranks along the ring in the context parallel axis.
            cp_ulysses_degree: ranks that exchange heads in that axis.
            timeout_minutes: the timeout of every process group made, in minutes; by default the backend's.
            ranks: the global ranks of the model, ascending; by default all.
            backend_override: for an axis, native or derived, by name: a backend, its options, or both as a pair.
            separate_groups: the axes that share no process group with others, so that their collectives can overlap.

        Returns:
            The context. With DDP, and any strategy without a mesh, it has a `process_group` of the model's ranks in
            place of meshes; it has neither in a single process without a launcher and without `torch.distributed`. On a
            rank outside of `ranks`, `is_member` is false, and asking for a submesh or a group is an error.

        Raises:
            ValueError: sizes that do not fit the strategy, the ranks, or each other; a field of the configuration that
                is not valid. The message says which value is.
            TypeError: a size or rank that is not an integer; `strategy_config` is not a strategy's configuration.
        """
        timeout = timeout_of_minutes("timeout_minutes", timeout_minutes)
        with checked_with_the_other_ranks(timeout):
            strategy = strategy_for(strategy_config)
            check_strategy_config(strategy_config)
            settings: dict[str, Any] = {
                "strategy_config": strategy_config,
                "moe_parallel_config": moe_parallel_config,
                "activation_checkpointing": activation_checkpointing,
                "reapply_trainability": reapply_trainability,
                "cp_ring_degree": cp_ring_degree,
                "cp_ulysses_degree": cp_ulysses_degree,
            }
            MeshContext(**settings)  # refuses what is wrong in them before a group is made
            sizes = ParallelismSizes() if parallelism_sizes is None else parallelism_sizes
            if not strategy.has_mesh and not dist.is_initialized() and "WORLD_SIZE" not in os.environ:
                plan_topologies(strategy, sizes, resolve_world_size(world_size), ranks=ranks)  # for its checks
                return cls(**settings)
            meshes = build_meshes(
                strategy,
                sizes,
                world_size,
                ranks=ranks,
                timeout=timeout,
                backend_override=backend_override,
                separate_groups=separate_groups,
            )
            if strategy.has_mesh:
                context = cls(device_mesh=meshes.root, moe_mesh=meshes.moe, **settings)
            else:
                member = compat.get_coordinate(meshes.root) is not None
                context = cls(process_group=compat.get_group(meshes.root) if member else None, **settings)
            context._built = meshes
            context._owned = meshes.root
            return context

    @classmethod
    def from_meshes(
        cls,
        device_mesh: DeviceMesh | None,
        moe_mesh: DeviceMesh | None = None,
        *,
        strategy_config: StrategyConfig | None = None,
        moe_parallel_config: MoEParallelizerConfig | None = None,
        activation_checkpointing: ActivationCheckpointing = False,
        reapply_trainability: Callable[[nn.Module], None] | None = None,
        cp_ring_degree: int = 1,
        cp_ulysses_degree: int | None = None,
    ) -> Self:
        """Wrap existing meshes. Closing such a context destroys nothing: the process groups are the caller's.

        Args:
            device_mesh: the root mesh; all arguments are those of the class.
            moe_mesh: the expert mesh.
            strategy_config: the strategy's configuration.
            moe_parallel_config: how experts are parallelised.
            activation_checkpointing: what is recomputed in the backward pass.
            reapply_trainability: sets again which parameters are trained.
            cp_ring_degree: ranks along the ring in the context parallel axis.
            cp_ulysses_degree: ranks that exchange heads in that axis.

        Returns:
            The context.

        Raises:
            ValueError: as for the class.
            TypeError: as for the class.
        """
        return cls(
            device_mesh,
            moe_mesh,
            strategy_config=strategy_config,
            moe_parallel_config=moe_parallel_config,
            activation_checkpointing=activation_checkpointing,
            reapply_trainability=reapply_trainability,
            cp_ring_degree=cp_ring_degree,
            cp_ulysses_degree=cp_ulysses_degree,
        )

    @property
    def is_member(self) -> bool:
        """Whether this rank belongs to the model; `True` without a mesh."""
        mesh = self._mesh()
        return mesh is None or compat.get_coordinate(mesh) is not None

    @property
    def pp_size(self) -> int:
        """Number of pipeline stages (default 1)."""
        return self._size(self.device_mesh, MeshAxisName.PP) or 1

    @property
    def pp_enabled(self) -> bool:
        """Whether there is more than one pipeline stage."""
        return self.pp_size > 1

    @property
    def tp_size(self) -> int:
        """Tensor parallel ranks (default 1)."""
        return self._size(self.device_mesh, MeshAxisName.TP) or 1

    @property
    def cp_size(self) -> int:
        """Context parallel ranks (default 1)."""
        return self._size(self.device_mesh, MeshAxisName.CP) or 1

    @property
    def ep_size(self) -> int:
        """Expert parallel ranks, from `moe_mesh` (default 1)."""
        return self._size(self.moe_mesh, MeshAxisName.EP) or 1

    @property
    def dp_size(self) -> int | None:
        """Data parallel ranks in all (default `None`)."""
        return self._size(self.device_mesh, MeshAxisName.DP, default=None)

    @property
    def dp_replicate_size(self) -> int | None:
        """Replicas (default `None`)."""
        return self._size(self.device_mesh, MeshAxisName.DP_REPLICATE, default=None)

    @property
    def dp_shard_size(self) -> int:
        """Ranks that a replica is sharded over, without context parallelism (default 1)."""
        return self._size(self.device_mesh, MeshAxisName.DP_SHARD) or 1

    def root_mesh(self) -> DeviceMesh:
        """Return the root mesh, `device_mesh`, on a rank outside of it too.

        Raises:
            ValueError: there is none: the strategy uses none, as DDP, or none was built or given.
        """
        if self.device_mesh is None:
            remedy = "build one with MeshContext.build or DistributedSetup.build, or give one as device_mesh"
            if self._handle is not None or self._built is not None:
                remedy = "its strategy, as DDP, uses one process group without a mesh: take process_group"
            raise MeshArgumentError(f"this {type(self).__name__} has no device mesh: {remedy}")
        return self.device_mesh

    def expert_mesh(self) -> DeviceMesh:
        """Return the expert mesh, `moe_mesh`: (ep_shard, ep).

        Raises:
            ValueError: there is none, or no mesh at all.
            RankNotInMeshError: this rank is outside the root mesh.
        """
        if self.moe_mesh is not None:
            return self.moe_mesh
        if compat.get_coordinate(self.root_mesh()) is None:
            raise RankNotInMeshError(
                f"this rank is outside of the meshes of this {type(self).__name__}, so it has no expert mesh: ask on "
                "the ranks of the model only"
            )
        raise MeshArgumentError(
            f"this {type(self).__name__} has no expert mesh: build it with ParallelismSizes(ep_size=2) or more, or "
            "give one as moe_mesh"
        )

    def axis_size(self, axis: str) -> int | None:
        """Return the size of any axis of the meshes, on a rank outside of the model too; `None` without such an axis.

        Args:
            axis: an axis that the root or the expert mesh was built with, or a flattened one.
        """
        size = self._size(self.device_mesh, axis, default=None)
        return self._size(self.moe_mesh, axis, default=None) if size is None else size

    def pipeline_axis_kwargs(self) -> dict[str, object]:
        """Return the axis names that a function which builds a pipeline takes as keywords.

        Returns:
            Those of `parallelize_axis_kwargs`, and `pp_axis_name`.
        """
        return {"pp_axis_name": MeshAxisName.PP, **self.parallelize_axis_kwargs()}

    def parallelize_axis_kwargs(self) -> dict[str, object]:
        """Return the axis names that a function which parallelises a model takes as keywords.

        Returns:
            `dp_axis_names`, `cp_axis_name`, `tp_axis_name`, `ep_axis_name` and `ep_shard_axis_names`; `None` for an
            axis that the meshes do not have.
        """
        ep_shard = _optional_axis(self.moe_mesh, MeshAxisName.EP_SHARD)
        return {
            "dp_axis_names": self._dp_axis_names(),
            "cp_axis_name": _optional_axis(self.device_mesh, MeshAxisName.CP),
            "tp_axis_name": _optional_axis(self.device_mesh, MeshAxisName.TP),
            "ep_axis_name": _optional_axis(self.moe_mesh, MeshAxisName.EP),
            "ep_shard_axis_names": None if ep_shard is None else (ep_shard,),
        }

    def _dp_axis_names(self) -> tuple[str, ...]:
        """Return the axes of the mesh for FSDP; the axis of replicas is one of them if there are several."""
        names = None if self.device_mesh is None else self.device_mesh.mesh_dim_names
        *replicas, shard = fully_shard_strategy(names or ()).fully_shard_axes
        return (*(axis for axis in replicas if (self.axis_size(axis) or 1) > 1), shard)

    def process_groups(self) -> list[compat.GroupReport]:
        """List the process groups behind the meshes that this rank belongs to.

        Returns:
            For each: its name, the axes that use it, its ranks, backend, options and timeout, and whether it was made
            here. Empty without a mesh.

        Raises:
            RuntimeError: the context is closed, or the default process group that it was built in is destroyed.
        """
        mesh = self._mesh()
        return [] if mesh is None else compat.list_process_groups(mesh)

    def describe(self, *, ranks_per_node: int | None = None) -> MeshDescription:
        """Describe the meshes: the axes of the root mesh and of the expert mesh, and the ranks of each of their groups.

        `process_groups` knows the groups of this rank; this knows those of all ranks. It asks no other rank.

        Args:
            ranks_per_node: number of ranks on each node, at least 1; by default the launcher's `LOCAL_WORLD_SIZE`, and
                without a launcher all ranks count as one node.

        Returns:
            The description, as `compat.describe` gives it. On a rank outside the model it has no derived axes.

        Raises:
            ValueError: there is no mesh, as with DDP; the expert mesh, given by the caller, is over other ranks.
            ProcessGroupDestroyedError: the meshes are closed, or their world is gone.
        """
        return compat.describe(self.root_mesh(), self.moe_mesh, ranks_per_node=ranks_per_node)

    def close(self) -> None:
        """Destroy the process groups that `build` made, and no others; on every rank of the model.

        Waits for no other rank: `build` returns when all ranks have connected. A second call has no effect.
        """
        if self._owned is not None and dist.is_initialized():
            compat.destroy_process_groups(self._owned)

    def abort(self) -> None:
        """Abort the process groups that `build` made, those of derived axes too, without waiting for other ranks."""
        if self._owned is not None and dist.is_initialized():
            compat.abort_process_groups(self._owned)

    def _mesh(self) -> DeviceMesh | None:
        return self.device_mesh if self._built is None else self._built.root

    def _size(self, mesh: DeviceMesh | None, axis: str, default: int | None = 1) -> int | None:
        """Return the size of an axis; on a rank outside, which has no derived axes, from what was planned."""
        if self._built is None or self.is_member:
            return _get_axis_size(mesh, axis, default)
        plans = [plan for plan in self._built.plan if plan is not None]
        return next((plan.size(axis) for plan in plans if axis in plan.all_axes), default)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(self._facts())})"

    def _repr_html_(self) -> str:
        line = escape("; ".join(self._facts()))
        try:
            return f"<p>{line}</p>{self.describe()._repr_html_()}"
        except (RuntimeError, ValueError):  # there are no meshes, or they are closed: a notebook shows the line alone
            return f"<p>{line}</p>"

    def _facts(self) -> Iterator[str]:
        """Yield the strategy, and the axes of the meshes with their sizes; of closed meshes too."""
        if self.strategy_config is not None:
            yield type(self.strategy_config).__name__
        for what, mesh in (("", self.device_mesh), ("expert ", self.moe_mesh)):
            names = getattr(mesh, "mesh_dim_names", None) or ()
            if sizes := [f"{name}={_get_axis_size(mesh, name)}" for name in names]:
                yield f"{what}{', '.join(sizes)}"
        if self._handle is not None:
            yield f"no mesh, {self._handle}" if self.device_mesh is None else f"{self._handle}"
        root = self._mesh()
        if root is not None and root.get_coordinate() is None:
            yield "this rank is outside"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@constant_when_compiled
def _get_axis_size(mesh: DeviceMesh | None, axis: str, default: int | None = 1) -> int | None:
    """Return the size of an axis, native or flattened, if the mesh has it, else the default."""
    if mesh is None:
        return default
    names = mesh.mesh_dim_names or ()
    if axis in names:
        return mesh.size(names.index(axis))
    flat = compat.flattened_meshes(mesh).get(axis)
    return default if flat is None else flat.size()


def _optional_axis(mesh: DeviceMesh | None, axis: MeshAxisName) -> str | None:
    """Return the name of an axis, native or flattened, if the mesh has it."""
    return axis if _get_axis_size(mesh, axis, default=None) is not None else None


def _validate_mesh_axis_names(mesh_context: MeshContext) -> None:
    """Refuse a mesh without names, and one with a name that is no `MeshAxisName` and no axis of a strategy."""
    known = _VALID_AXIS_NAMES.union(*(strategy.all_axes for strategy in STRATEGIES.values()))
    for which in ("device_mesh", "moe_mesh"):
        mesh: DeviceMesh | None = getattr(mesh_context, which)
        if mesh is None:
            continue
        names = mesh.mesh_dim_names or ()
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise MeshArgumentError(
                f"{which} has the axes {list(names)}, and {unknown or 'a mesh without names'} is not known here: name "
                f"its axes from {sorted(map(str, known))}, or register a strategy with these axes."
            )


# Names that only an older generation of NeMo AutoModel has in its `mesh`; `legacy` has all names of that one. Hidden
# from type checkers, so that they still find names that do not exist.
if not TYPE_CHECKING:
    __getattr__ = old_names.serve_old_names(
        __name__,
        {
            "STRATEGY_MAP": strategy_configs.STRATEGY_MAP,
            "_validate_distributed_setup": old_names.validate_distributed_setup,
            "_validate_mesh_dim_names": _validate_mesh_axis_names,
        },
    )
