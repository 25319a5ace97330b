"""What an era module supplies: the bookkeeping that differs between torch releases, and nothing else.

The contract that users see is written once, in `create.py`, `slicing.py`, `folding.py` and `lookup.py`, on top of
these functions, so it cannot differ between releases by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from automodel_mesh.topology.layouts import Axis


class Era(Protocol):
    """One way in which torch keeps the books on its meshes."""

    def root_of(self, mesh: DeviceMesh) -> DeviceMesh:
        """Return the mesh that this one was derived from, through any number of steps; a root returns itself."""

    def registered_root_of(self, mesh: DeviceMesh) -> DeviceMesh:
        """Return the root of a mesh in the eyes of torch's own code, such as FSDP2."""

    def axes_of(self, mesh: DeviceMesh) -> tuple[Axis, ...]:
        """Return the axes of a mesh, over the positions of its root."""

    def make_root(
        self,
        device_type: str,
        grid: torch.Tensor,
        names: tuple[str, ...] | None,
        groups: Sequence[ProcessGroup],
    ) -> DeviceMesh:
        """Make a root mesh of a grid of ranks over groups that exist; no groups for a rank outside of it."""

    def make_derived(
        self,
        root: DeviceMesh,
        axes: tuple[Axis, ...],
        names: tuple[str, ...],
        groups: Sequence[ProcessGroup],
        parent: DeviceMesh,
        *,
        folded: bool,
    ) -> DeviceMesh:
        """Make a mesh of a family over groups that exist; `parent` is the mesh asked, `folded`: one flattened axis."""

    def flattened(self, root: DeviceMesh) -> Mapping[str, DeviceMesh]:
        """Return torch's own table of the flattened axes of a root, by name."""

    def register_flattened(
        self, root: DeviceMesh, name: str, mesh: DeviceMesh, parent: DeviceMesh, folded: tuple[str, ...]
    ) -> None:
        """Enter a flattened axis, folded from these axes of the parent, where torch's lookups by name find it."""

    def group_along(self, mesh: DeviceMesh, dim: int) -> ProcessGroup:
        """Return this rank's process group along an axis; `RuntimeError` where there is none any more."""

    def forget_meshes(self) -> bool:
        """Forget what this process knows of all meshes; tell whether this era keeps any such thing."""
