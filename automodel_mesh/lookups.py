"""The lookups of `mesh_utils`, as methods of an object that has the meshes of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from automodel_mesh.checks import is_list
from automodel_mesh.compat.compiled import constant_when_compiled
from automodel_mesh.mesh_utils import get_flat_mesh, get_fsdp_dp_mesh, get_submesh
from automodel_mesh.topology.records import EXPERT_MESH_AXES

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class MeshLookups(ABC):
    """Lookups in the meshes of a model: each returns a mesh, never `None`, or raises an error with what is missing."""

    @abstractmethod
    def root_mesh(self) -> DeviceMesh:
        """Return the root mesh, on a rank outside of it too.

        Raises:
            ValueError: there is none: the strategy uses none, as DDP, or none was built or given.
        """

    @abstractmethod
    def expert_mesh(self) -> DeviceMesh:
        """Return the expert mesh, (ep_shard, ep).

        Raises:
            ValueError: there is none, or no mesh at all.
            RankNotInMeshError: this rank is outside the root mesh.
        """

    def flat_mesh(self, name: str) -> DeviceMesh:
        """Return the 1-D mesh of one axis, as `get_flat_mesh` does. This never makes a process group.

        Args:
            name: an axis of the root mesh, native or derived, or one of the expert mesh: `"tp"`, `"dp"`, `"ep"`.

        Returns:
            The mesh; the same request again returns the same object.

        Raises:
            ValueError: there is no mesh with such axes at all.
            KeyError: no such axis; the message lists the axes.
            RankNotInMeshError: this rank is outside the mesh.
            ProcessGroupDestroyedError: the meshes are closed, or their world is gone.
        """
        return get_flat_mesh(self._mesh_of(name), name)

    def submesh(self, names: Sequence[str]) -> DeviceMesh:
        """Return the mesh of some axes, as `get_submesh` does. This never makes a process group.

        Args:
            names: axes in ascending order, such as `("dp_cp", "tp")`, or `("ep_shard", "ep")` of the expert mesh.

        Returns:
            The mesh; the same request again returns the same object.

        Raises:
            ValueError: repeated or overlapping axes, descending order, no axis; or there is no mesh with such axes at
                all.
            KeyError: no such axis; the message lists the axes.
            RankNotInMeshError: this rank is outside the mesh.
            ProcessGroupDestroyedError: the meshes are closed, or their world is gone.
        """
        return get_submesh(self._mesh_of(names), names)

    def fsdp_mesh(self, dp_replicate_name: str | None = None, dp_shard_cp_name: str | None = None) -> DeviceMesh:
        """Return the mesh to give to `fully_shard`, as `get_fsdp_dp_mesh` does. This never makes a process group.

        Args:
            dp_replicate_name: the axis of the replicas; by default the strategy's.
            dp_shard_cp_name: the axis that parameters are sharded over with context parallelism; by default the
                strategy's.

        Returns:
            The mesh, of one axis, or of two with replicas; the same request again returns the same object.

        Raises:
            ValueError: there is no mesh, as with DDP.
            KeyError: the mesh has no such axes; the message lists the axes.
            RankNotInMeshError: this rank is outside the mesh.
            ProcessGroupDestroyedError: the meshes are closed, or their world is gone.
        """
        return get_fsdp_dp_mesh(self.root_mesh(), dp_replicate_name, dp_shard_cp_name)

    def _mesh_of(self, names: object) -> DeviceMesh:
        """Return the mesh to look names up in; what is no name is refused by the lookup itself."""
        root = self.root_mesh()
        listed = (names,) if isinstance(names, str) else names if is_list(names) else ()
        wanted = [name for name in listed if isinstance(name, str)]
        for axis in EXPERT_MESH_AXES:
            if axis in wanted and not _has_axis(root, axis):
                return self.expert_mesh()
        return root


@constant_when_compiled
def _has_axis(mesh: DeviceMesh, axis: str) -> bool:
    return axis in (mesh.mesh_dim_names or ())
