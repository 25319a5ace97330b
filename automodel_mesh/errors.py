"""The errors of `automodel_mesh`: each is a subclass of every builtin that some torch raises in its place."""

from __future__ import annotations

_LONGEST = 2000


class _MeshError(Exception):
    """A message of readable length: the middle of a long one is left out."""

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST:
            message = f"{message[:1400]} [... {len(message) - 1900} characters ...] {message[-500:]}"
        super().__init__(message)

    def __str__(self) -> str:
        # KeyError prints the repr of its message, which turns a sentence into a quoted, escaped string.
        return str(self.args[0]) if self.args else ""


class UnsupportedTorchError(ImportError):
    """The installed torch is older than the oldest supported one, or is not built the way its version says."""


class MeshTypeError(_MeshError, TypeError):
    """An argument of the wrong type."""


class MeshArgumentError(_MeshError, ValueError, RuntimeError):
    """A request that no mesh can fulfil: a wrong product, a taken or repeated name, an overlap, a wrong order."""


class AxisOrderError(MeshArgumentError, KeyError):
    """Axes that a submesh cannot have in the order they were named."""


class MeshIndexError(MeshArgumentError, IndexError):
    """No axis of this index, or no mesh at all."""


class UnnamedMeshError(MeshArgumentError, KeyError):
    """A mesh without axis names was given to an operation that works by name."""


class UnknownAxisError(MeshArgumentError, KeyError):
    """No axis of this name, in the mesh or among the flattened axes of its family."""


class RankNotInMeshError(_MeshError, IndexError, RuntimeError):
    """This rank does not belong to the mesh, so it has neither a slice nor a process group of it."""


class ProcessGroupDestroyedError(_MeshError, RuntimeError):
    """The process group behind an axis, or the whole world of a mesh, has been destroyed."""


class RanksDisagreeError(_MeshError, RuntimeError):
    """Ranks asked for different things, one was refused or failed, or one did not come in time: nothing was made."""
