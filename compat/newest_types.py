"""The type of a mesh with the calls of the newest torch, for type checkers that see an older one.

`newest_types.pyi` is what they read. It is a stub file also because pyright reports each use of a name with a leading
underscore that is defined in other files.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh as NewestDeviceMesh

from automodel_mesh.compat.family import require_mesh

__all__ = ["NewestDeviceMesh", "newest"]


def newest(mesh: NewestDeviceMesh) -> NewestDeviceMesh:
    """Return a mesh as it is; for type checkers, one that has the calls which `backport` adds.

    Args:
        mesh: any mesh.

    Returns:
        The mesh. Its class, `NewestDeviceMesh`, is torch's `DeviceMesh` when the program runs.

    Raises:
        TypeError: `mesh` is not a `DeviceMesh`.
    """
    return require_mesh(mesh)
