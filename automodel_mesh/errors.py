"""The exceptions that users meet, each a subclass of the builtin that torch raises in its place."""

from __future__ import annotations

from automodel_mesh.compat.errors import (
    MeshArgumentError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    UnknownAxisError,
    UnnamedMeshError,
    UnsupportedTorchError,
)

__all__ = [
    "MeshArgumentError",
    "ProcessGroupDestroyedError",
    "RankNotInMeshError",
    "UnknownAxisError",
    "UnnamedMeshError",
    "UnsupportedTorchError",
]
