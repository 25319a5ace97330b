"""`init_device_mesh`: creates a root mesh."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from automodel_mesh.checks import check_same_length, check_timeout, checked_names, checked_ranks, checked_sizes, shown
from automodel_mesh.compat.agreement import operation
from automodel_mesh.compat.backends import check_backend
from automodel_mesh.compat.compiled import forget_compiled_lookups, never_compiled
from automodel_mesh.compat.devices import checked_device_type, device_module, select_device
from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import Family, start_family
from automodel_mesh.compat.groups import SORTS_RANKS, AxisRequest, GroupSpec, GroupTable
from automodel_mesh.compat.requests import BackendChoice, group_specs
from automodel_mesh.compat.worlds import start_launched_world
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.topology.layouts import native_layouts

if TYPE_CHECKING:
    from typing_extensions import Self


_MOST_RANKS: Final = 2**31 - 1  # torch keeps ranks as 32-bit integers
_WHY_ASCENDING: Final = None if facts.PRESERVES_RANK_ORDER else f", as {SORTS_RANKS}"


@never_compiled
def init_device_mesh(
    device_type: str,
    mesh_shape: Sequence[int],
    *,
    mesh_dim_names: Sequence[str] | None = None,
    backend_override: Mapping[int | str, BackendChoice] | None = None,
    ranks: Sequence[int] | None = None,
    timeout: timedelta | None = None,
) -> DeviceMesh:
    """Create a root mesh over the first ranks of the world, or over given ones.

    Call it on every rank of the world, with the same arguments. The default process group is initialised from the
    environment if there is none, and if the accelerator of this process is not initialised yet, its device is set
    (`LOCAL_RANK`, else the rank modulo the number of devices).

    Each distinct set of ranks has one process group: an axis over the whole world uses the default group, all axes of
    size 1 share one group of a single rank, and a group that exists for a set of ranks is used again.

    Args:
        device_type: `"cpu"`, `"cuda"` or another device type of torch, without an index; a `torch.device` is taken as
            its type.
        mesh_shape: the size of each axis, integers of at least 1; their product is at most the world size.
        mesh_dim_names: a distinct name for each axis; `None` for a mesh without names.
        backend_override: for an axis, by index or name: a backend, its options, or both as a pair. An axis with an
            override gets groups of its own. The mapping is not changed (torch empties it).
        ranks: the global ranks of the mesh in row-major order; by default 0, 1, 2 and so on. Ascending, or, from torch
            2.15 on, in any order, which all groups of the mesh and of what is derived from it keep.
        timeout: the timeout of every group made for the mesh and the meshes derived from it, and of the default group
            if it is initialised here; by default that of the backend. The timeout of a default group that exists does
            not change, so with a timeout an axis over the whole world gets a group of its own then.

    Returns:
        The mesh. On a rank outside of it, a mesh whose coordinate is `None`.

    Raises:
        ValueError: sizes, names, ranks and override contradict each other, or the mesh is larger than the world; a
            backend is not known, not in this build of torch, or cannot serve the device type; the default group is not
            initialised, and no launcher has set the variables for it.
        TypeError: a size that is not an integer, a name that is not a string.

    Torch releases:
        2.6 - 2.8 have no `backend_override`, and on every release torch makes a group for each axis, even of one rank.
        Up to 2.14 torch sorts the ranks of a mesh's groups, so ranks that do not ascend are refused. Else all releases
        behave as described.

    Source:
        `torch.distributed.device_mesh.init_device_mesh`.
    """
    request = partial(_Request.checked, device_type, mesh_shape, mesh_dim_names, backend_override, ranks)
    check_timeout("init_device_mesh: timeout", timeout)
    if not dist.is_initialized():
        request(world=None)  # a wrong request is refused before a world is started for it
        start_launched_world("init_device_mesh", timeout)
    world = dist.get_world_size()
    with operation("init_device_mesh", range(world), timeout) as current:
        kind, shape, names, specs, members = request(world=world)
        _select_device(kind)
        table = GroupTable(members, kind, timeout)
        labels = names or [f"dim_{dim}" for dim in range(len(shape))]
        groups = table.find_or_make(list(map(AxisRequest, labels, native_layouts(shape), specs)), current)
    with _disable_current_modes():
        mesh = era.make_root(kind, _grid(members, shape), names, groups)
    start_family(Family(mesh, table))
    forget_compiled_lookups()
    return mesh


class _Request(NamedTuple):
    """The arguments of `init_device_mesh`, checked."""

    device_type: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None
    specs: list[GroupSpec]
    ranks: Sequence[int]

    @classmethod
    def checked(
        cls,
        device_type: object,
        mesh_shape: object,
        mesh_dim_names: object,
        backend_override: Mapping[int | str, BackendChoice] | None,
        ranks: object,
        *,
        world: int | None,
    ) -> Self:
        """Check the arguments, as far as that can be done if the size of the world is not known yet."""
        what = "init_device_mesh"
        kind = checked_device_type(f"{what}: device_type", device_type)
        shape = checked_sizes(f"{what}: mesh_shape", mesh_shape)
        names = None
        if mesh_dim_names is not None:
            names = checked_names(f"{what}: mesh_dim_names", mesh_dim_names, single=False)
            check_same_length(names, shape, what)
        specs = group_specs(backend_override, len(shape), names)
        for spec in specs:
            check_backend(spec.backend, kind)
        wanted = math.prod(shape)
        if wanted > _MOST_RANKS:
            raise MeshArgumentError(
                f"mesh_shape: a mesh of shape {shape} has {shown(wanted)} ranks: too many for torch."
            )
        members = range(wanted) if ranks is None else checked_ranks(ranks, world, why_ascending=_WHY_ASCENDING)
        if len(members) != wanted:
            raise MeshArgumentError(f"a mesh of shape {shape} has {wanted} ranks, but {len(members)} were given.")
        if world is not None and wanted > world:
            raise MeshArgumentError(
                f"a mesh of shape {shape} has {wanted} ranks, but the world has {world}: make an axis smaller or "
                "start more ranks."
            )
        return cls(kind, shape, names, specs, members)


def _grid(ranks: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Return the ranks as a tensor of this shape."""
    if isinstance(ranks, range):
        row = torch.arange(ranks.start, ranks.stop, ranks.step, dtype=torch.int, device="cpu")
    else:
        row = torch.tensor(ranks, dtype=torch.int, device="cpu")
    return row.view(shape)


def _select_device(device_type: str) -> None:
    """Select an accelerator for this process if none was selected yet."""
    # The fake backend stands for machines that are not here, so there is no device to select.
    if device_type == "cpu" or dist.get_backend() == "fake":
        return
    module = device_module(device_type)
    if not all(hasattr(module, function) for function in ("is_initialized", "device_count", "set_device")):
        return  # no module of torch's selects such a device: "meta", or "npu" without its package
    if module.is_initialized() or module.device_count() == 0:
        return
    local_rank = os.environ.get("LOCAL_RANK")
    select_device(device_type, int(local_rank) if local_rank is not None else dist.get_rank() % module.device_count())
