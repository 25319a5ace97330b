"""The names of an older generation of NeMo AutoModel's mesh module: what replaces each, and the warning they give."""

from __future__ import annotations

import inspect
import warnings
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["REPLACEMENTS", "serve_old_names", "validate_distributed_setup"]

REPLACEMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "MeshAxisName": "automodel_mesh.mesh.MeshAxisName",
        "MeshContext": "automodel_mesh.mesh.MeshContext for the meshes, and automodel_mesh.config.DistributedSetup for "
        "the strategy, pipeline, MoE and activation checkpointing settings",
        "STRATEGY_MAP": "automodel_mesh.config.STRATEGY_MAP",
        "_VALID_AXIS_NAMES": "automodel_mesh.mesh._VALID_AXIS_NAMES",
        "_get_axis_size": "automodel_mesh.mesh._get_axis_size",
        "_optional_axis": "automodel_mesh.mesh._optional_axis",
        "_validate_distributed_setup": "automodel_mesh.config.DistributedSetup, which is checked when it is made",
        "_validate_mesh_dim_names": "automodel_mesh.mesh._validate_mesh_axis_names",
    }
)
"""For each old name, what to use instead."""

# The modules that were warned, by name and file. Python remembers warnings by text and line, and not at all under the
# filter "always".
_warned: Final[set[tuple[object, str]]] = set()


def serve_old_names(module: str, values: Mapping[str, object]) -> Callable[[str], object]:
    """Return a `__getattr__` for a module, with which each module that takes old names from it is warned once.

    Args:
        module: the name of the module that has the `__getattr__`.
        values: what it returns for each old name.

    Returns:
        The function. It gives a `DeprecationWarning` at the line that takes the name.
    """

    def serve(name: str) -> object:
        if name not in values:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        frame = inspect.currentframe()
        caller = None if frame is None else frame.f_back
        key = (None, "") if caller is None else (caller.f_globals.get("__name__"), caller.f_code.co_filename)
        if key not in _warned:
            warnings.warn(
                f"{module}.{name} is of an older generation of NeMo AutoModel's mesh module: use {REPLACEMENTS[name]}. "
                "(There is one warning for each module that takes such names. The how-to on replacing NeMo AutoModel's "
                "mesh module lists them.)",
                DeprecationWarning,
                stacklevel=2,
            )
            _warned.add(key)  # not before: where the warning is an error, the next use must fail too
        return values[name]

    return serve


class _HasSetup(Protocol):
    """The older generation's `MeshContext`, as far as it is needed here."""

    def to_distributed_setup(self) -> object: ...


def validate_distributed_setup(mesh_context: _HasSetup) -> None:
    """Refuse a context whose parts do not fit together; for use after a change to one.

    Args:
        mesh_context: the context, of the older generation.

    Raises:
        ValueError: the parts do not fit together; the message names the field, its value and what would do.
        TypeError: a configuration has the wrong class.
    """
    mesh_context.to_distributed_setup()  # a setup is checked when it is made
