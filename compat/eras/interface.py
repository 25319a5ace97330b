"""The functions of an era module: how torch stores meshes. All that differs between the eras is here.

`create.py`, `slicing.py`, `folding.py` and `lookup.py` call these functions and are the same for all releases. mypy and
pyright check each era module against this interface (`gate.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from automodel_mesh.topology.layouts import Layout


class Era(Protocol):
    """The functions of an era module: how a span of torch releases stores meshes."""

    def take_over(self, flatten: Callable[..., DeviceMesh], slice_mesh: Callable[..., DeviceMesh]) -> None:
        """Have torch's own calls on meshes that we made use these functions, where torch's would hang or be wrong.

        `slice_mesh`: needed below 2.10 only.
        """
        ...

    def restore_torch(self) -> None:
        """Undo what this library changes in torch, for comparisons with plain torch; it is not used afterwards."""
        ...

    def root_of(self, mesh: DeviceMesh) -> DeviceMesh:
        """Return the mesh that this one was derived from, through any number of steps; a root returns itself."""
        ...

    def registered_root_of(self, mesh: DeviceMesh) -> DeviceMesh:
        """Return the root that torch's own code, such as FSDP2, finds for a mesh: below 2.10 it can be another mesh."""
        ...

    def keeps_order(self, root: DeviceMesh) -> bool:
        """Return whether torch makes the groups of a mesh family with the ranks in the order of the root."""
        ...

    def axes_of(self, mesh: DeviceMesh) -> tuple[Layout, ...]:
        """Return the axes of a mesh, as layouts over the positions of its root."""
        ...

    def make_root(
        self,
        device_type: str,
        grid: torch.Tensor,
        names: tuple[str, ...] | None,
        groups: Sequence[ProcessGroup],
    ) -> DeviceMesh:
        """Make a root mesh of a grid of ranks over existing groups; `groups` is empty on a rank outside of it."""
        ...

    def make_derived(
        self,
        root: DeviceMesh,
        axes: tuple[Layout, ...],
        names: tuple[str, ...],
        groups: Sequence[ProcessGroup],
        parent: DeviceMesh,
        *,
        folded: bool,
    ) -> DeviceMesh:
        """Make a derived mesh of a root over existing groups.

        `folded`: whether it is one flattened axis. `parent`: the mesh it was requested from, needed below 2.10 only.
        """
        ...

    def flattened(self, root: DeviceMesh) -> Mapping[str, DeviceMesh]:
        """Return torch's own table of the flattened axes of a root, by name."""
        ...

    def register_flattened(
        self, root: DeviceMesh, name: str, mesh: DeviceMesh, parent: DeviceMesh, folded: tuple[str, ...]
    ) -> None:
        """Store a flattened axis where torch's lookups by name find it.

        `parent`, `folded`: the mesh and the axes that it was folded from, needed below 2.10 only.
        """
        ...

    def group_along(self, mesh: DeviceMesh, dim: int) -> ProcessGroup:
        """Return this rank's process group along an axis; `RuntimeError` if it was destroyed."""
        ...

    def forget_groups(self, root: DeviceMesh, names: Sequence[str]) -> None:
        """Drop what a root mesh and its derived meshes refer to of process groups that were destroyed."""
        ...

    def forget_meshes(self) -> bool:
        """Clear torch's registry of meshes, which exists below 2.10 only; return whether this era has one."""
        ...

    def outside_the_compiler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs this one while `torch.compile` is off, where its frames cannot be skipped."""
        ...
