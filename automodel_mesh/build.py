"""Builds the meshes of a strategy: the only module of the mesh layer in which process groups are made."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.checks import checked_names, is_list, nearest, shown
from automodel_mesh.compat.agreement import operation
from automodel_mesh.compat.backends import check_backend, device_type_for
from automodel_mesh.compat.devices import accelerator
from automodel_mesh.compat.groups import DEFAULT_SPEC, GroupSpec
from automodel_mesh.compat.requests import checked_override, group_spec
from automodel_mesh.compat.worlds import start_launched_world
from automodel_mesh.errors import UnknownAxisError
from automodel_mesh.topology.records import EXPERT_MESH_AXES
from automodel_mesh.topology.strategies import plan_topologies, strategy_named

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from datetime import timedelta

    from torch.distributed.device_mesh import DeviceMesh

    from automodel_mesh.topology.sizes import ParallelismSizes
    from automodel_mesh.topology.strategies import Strategy, Topologies


_OPERATION: Final = "MeshContext.build"


class Meshes(NamedTuple):
    """What `build_meshes` makes."""

    root: DeviceMesh
    """The mesh with all axes of the strategy, native and flattened. It has no coordinate on a rank outside."""
    moe: DeviceMesh | None
    """(ep_shard, ep), in the same family; `None` without experts or outside."""
    plan: Topologies
    """The axes and sizes of both, on a rank outside as well."""


@contextmanager
def checked_with_the_other_ranks(timeout: timedelta | None) -> Generator[None, None, None]:
    """Run the checks of a call that then builds meshes: if they fail on one rank, the ranks that wait for it are told.

    Args:
        timeout: how long to wait for the others; by default the timeout of the world.
    """
    if not dist.is_initialized():  # no rank waits before there is a world
        yield
        return
    with operation(_OPERATION, range(dist.get_world_size()), timeout):
        yield


def build_meshes(
    strategy: str | Strategy,
    sizes: ParallelismSizes,
    world_size: int | None = None,
    *,
    ranks: Sequence[int] | None = None,
    timeout: timedelta | None = None,
    backend_override: Mapping[str, Any] | None = None,
    separate_groups: Sequence[str] | None = None,
    device_type: str | None = None,
) -> Meshes:
    """Build the meshes of a strategy. Called on every rank of the world, with the same arguments.

    Args:
        strategy: a strategy, or the name of a registered one, such as `"fsdp2"`.
        sizes: the sizes asked for, integers of at least 1; `None` where they can be inferred.
        world_size: number of ranks; by default the world's.
        ranks: the global ranks of the mesh, ascending; by default all.
        timeout: the timeout of every process group made, the default group included if it is initialised here.
        backend_override: for an axis, native or derived, by name: a backend, its options, or both as a pair.
        separate_groups: the axes that share no process group with others, so that their collectives can overlap.
        device_type: by default the accelerator's, if the default process group has a backend for it, else `"cpu"`.

    Returns:
        The root mesh with its derived axes, and the expert mesh.

    Raises:
        ValueError: sizes that do not fit the strategy, the ranks, or each other; an override for an unknown axis.
        TypeError: a size or a rank that is not an integer.
    """
    strategy = strategy_named(strategy) if isinstance(strategy, str) else strategy
    plan_it = partial(_plan, strategy, sizes, world_size, ranks, backend_override, separate_groups)
    if not dist.is_initialized():
        if "WORLD_SIZE" in os.environ:
            plan_it()  # a wrong request is refused before a world is started for it
        start_launched_world(_OPERATION, timeout)
    with operation(_OPERATION, range(dist.get_world_size()), timeout) as current:
        plan, specs = plan_it()
        device_type = device_type or default_device_type()
        for spec in specs.values():
            check_backend(spec.backend, device_type)
        asked = ", ".join(f"{axis}: {spec.describe()}" for axis, spec in specs.items())
        current.agree(f"{strategy.name}, {device_type}, {plan.describe()}, timeout {timeout}, groups {{{asked}}}")
        root = compat.init_device_mesh(
            device_type,
            plan.root.shape,
            mesh_dim_names=plan.root.axes,
            backend_override={axis: specs[axis] for axis in plan.root.axes if axis in specs},
            ranks=ranks,
            timeout=timeout,
        )
        register_flattened_axes(root, plan.root.derived, specs)
        moe = None
        if plan.moe is not None:
            shape = [plan.moe.size(axis) for axis in EXPERT_MESH_AXES]
            moe = build_moe_mesh(root, strategy.expert_axes, shape, specs)
    return Meshes(root, moe, plan)


def _plan(  # noqa: PLR0917 - the arguments of `build_meshes` that need a check
    strategy: Strategy,
    sizes: ParallelismSizes,
    world_size: int | None,
    ranks: Sequence[int] | None,
    backend_override: Mapping[str, Any] | None,
    separate_groups: Sequence[str] | None,
) -> tuple[Topologies, dict[str, GroupSpec]]:
    """Return the axes to build, and what is asked of the process groups of some of them."""
    plan = plan_topologies(strategy, sizes, resolve_world_size(world_size), ranks=ranks)
    known = [axis for topology in plan if topology is not None for axis in topology.all_axes]
    none = separate_groups is None or (is_list(separate_groups) and not separate_groups)
    separate = () if none else checked_names("separate_groups", separate_groups)
    specs = {axis: group_spec(choice) for axis, choice in checked_override(backend_override).items()}
    for argument, names in (("backend_override", [*specs]), ("separate_groups", separate)):
        if unknown := [name for name in names if name not in known]:
            named = ", ".join(f"{shown(name)}{nearest(name, known)}" for name in unknown)
            raise UnknownAxisError(f"{argument} names {named}, but the axes of this mesh are {known}")
    for axis in separate:
        specs[axis] = specs.get(axis, DEFAULT_SPEC)._replace(owner=axis)
    return plan, specs


def register_flattened_axes(
    root: DeviceMesh, derived: Mapping[str, Sequence[str]], override: Mapping[str, Any] | None = None
) -> None:
    """Fold axes of a root mesh into derived ones, on all ranks of the world.

    Args:
        root: the root mesh.
        derived: for each derived axis, by name, the axes it folds, in the order of the root.
        override: for a derived axis, by name: a backend, its options, or both as a pair.

    Raises:
        KeyError: an axis that the root does not have.
        ValueError: a name that is taken.
    """
    for name, axes in derived.items():
        # A rank outside has no such axis.
        with suppress(compat.RankNotInMeshError):
            compat.flatten(root, name, dims=tuple(axes), backend_override=(override or {}).get(name))


def build_moe_mesh(
    root: DeviceMesh, expert_axes: Sequence[str], shape: Sequence[int], override: Mapping[str, Any] | None = None
) -> DeviceMesh | None:
    """Lay the ranks along some axes out anew for experts, on all ranks of the world.

    Args:
        root: a root mesh.
        expert_axes: the axes, in the order of the root.
        shape: sizes of `ep_shard` and `ep`.
        override: for `"ep_shard"` and `"ep"`: a backend, its options, or both as a pair.

    Returns:
        The mesh (ep_shard, ep) that this rank is in, in the family of the root; `None` on a rank outside.

    Raises:
        ValueError: the sizes do not multiply to the number of ranks along the axes.
    """
    chosen: dict[int | str, Any] = {axis: override[axis] for axis in EXPERT_MESH_AXES if override and axis in override}
    with suppress(compat.RankNotInMeshError):
        return compat.refold(root, expert_axes, shape, EXPERT_MESH_AXES, backend_override=chosen)
    return None


def resolve_world_size(world_size: int | None = None) -> int:
    """Return the number of ranks: the one given, else the world's, else the launcher's, else 1."""
    if world_size is not None:
        return world_size
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def default_device_type() -> str:
    """Return the accelerator's device type if the default process group has a backend for it, else `"cpu"`."""
    return device_type_for(dist.get_backend()) if dist.is_initialized() else accelerator() or "cpu"
