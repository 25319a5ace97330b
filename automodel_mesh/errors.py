"""The errors of `automodel_mesh`: each is a subclass of the builtin that torch raises in its place."""

from __future__ import annotations


class UnsupportedTorchError(ImportError):
    """The installed torch is older than the oldest supported one, or is not built the way its version says."""


class MeshArgumentError(ValueError):
    """A request that no mesh can fulfil: a wrong product, a taken or repeated name, an overlap, a wrong order."""


class UnnamedMeshError(MeshArgumentError, RuntimeError):
    """A mesh without axis names was given to an operation that works by name."""


class UnknownAxisError(KeyError):
    """No axis of this name, in the mesh or among the flattened axes of its family."""

    def __str__(self) -> str:
        # KeyError prints the repr of its message, which turns a sentence into a quoted, escaped string.
        return str(self.args[0]) if self.args else ""


class RankNotInMeshError(IndexError, RuntimeError):
    """This rank does not belong to the mesh, so it has neither a slice nor a process group of it."""


class ProcessGroupDestroyedError(RuntimeError):
    """The process group behind an axis, or the whole world of a mesh, has been destroyed."""


class RanksDisagreeError(RuntimeError):
    """Ranks asked for different things, one was refused or failed, or one did not come in time: nothing was made."""
