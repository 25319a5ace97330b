"""Listing the process groups of a mesh family, and ending them: by all of their ranks, or by one that must not wait."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.compat.compiled import forget_compiled_lookups, never_compiled
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.family import Family, in_use
from automodel_mesh.compat.groups import GroupReport
from automodel_mesh.compat.worlds import current_world, end_groups, find_process_group


@never_compiled
def list_process_groups(mesh: DeviceMesh) -> list[GroupReport]:
    """List the process groups of a mesh's family that this rank belongs to.

    Args:
        mesh: any mesh of the family.

    Returns:
        For each group: its name, the axes that use it, its global ranks in their order in the group, its backend, the
        options and timeout that were asked for (`None`: the default), and whether this library made it. Groups that
        torch made are those of the root, of flattened axes and of `mesh` itself.

    Raises:
        ProcessGroupDestroyedError: the family is closed, or its world was destroyed.
    """
    with in_use(mesh) as family:
        family.adopt_groups(mesh)
        return family.groups.report()


@never_compiled
def destroy_process_groups(mesh: DeviceMesh) -> None:
    """Destroy exactly the process groups that this library made for a mesh's family, and close the family.

    Called on every rank of the family. The default group and groups that torch made stay. Meshes of a closed family are
    refused afterwards. If the world of the family was destroyed already, the family is only marked closed.

    Args:
        mesh: any mesh of the family.

    Raises:
        TypeError: `mesh` is no `DeviceMesh`.

    Source:
        `torch.distributed.destroy_process_group`.
    """
    _close(mesh)


@never_compiled
def abort_process_groups(mesh: DeviceMesh) -> None:
    """Abort the process groups that this library made for a mesh's family, derived axes included, and close it.

    For a rank that must not wait for its peers, because one of them is gone.

    Args:
        mesh: any mesh of the family.

    Raises:
        TypeError: `mesh` is no `DeviceMesh`.

    Torch releases:
        2.15 has `DeviceMesh.abort`, which knows the axes of the mesh itself and its flattened axes only. Here the
        groups of unflattened axes are covered too, on every release. NCCL's collectives under way fail; gloo does
        not interrupt one that a thread is waiting for, on any release.

    Source:
        `torch.distributed.device_mesh.DeviceMesh.abort`.
    """
    _close(mesh, abort=True)


@never_compiled
def abort_root(root: DeviceMesh) -> None:
    """Abort all process groups of a root mesh's family but the default one, and close the family.

    As `abort_process_groups`, but those that torch made too, which are all groups of a mesh that torch made.
    """
    family = Family.known(root)
    if family is not None and family.closed:
        return
    others = [find_process_group(report.name) for report in list_process_groups(root) if not report.made_here]
    abort_process_groups(root)
    world = current_world()
    end_groups([group for group in others if group is not world], abort=True)


def _close(mesh: DeviceMesh, *, abort: bool = False) -> None:
    family = Family.known(mesh)
    groups = None if family is None else family.close()
    if family is None or groups is None:
        return
    names = [group.group_name for group in groups]
    end_groups(groups, abort=abort)
    era.forget_groups(family.root, names)
    forget_compiled_lookups()
