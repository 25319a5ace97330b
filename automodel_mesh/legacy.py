"""The names of an older generation of NeMo AutoModel's mesh module, for code that is written against it.

Importing one of them gives one `DeprecationWarning`, at the line that imports. Each module that does so is warned once,
however many of the names it uses; importing this module, or not importing it, warns nobody.
"""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    # All of its names, the underscored ones too, which an import by name would not offer to others.
    from automodel_mesh.nemo.older_mesh import *  # noqa: F403

__all__ = ["STRATEGY_MAP", "MeshAxisName", "MeshContext"]  # noqa: F405 - from the star

# Each old name, and what to use in its place.
_REPLACEMENTS: Final[Mapping[str, str]] = MappingProxyType(
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

# The modules that have been warned, by name and file. Python's own memory of warnings is per name and line, and is
# switched off by the filter "always".
_warned: Final[set[tuple[object, str]]] = set()


def _serve(name: str) -> object:
    """Return an old name, and warn the module that asks for it."""
    return serve_old_name(__name__, name, frames=2)


def serve_old_name(module: str, name: str, *, frames: int) -> object:
    """Return an old name on behalf of a module, and warn the code that asked that module for it.

    Args:
        module: the module that is asked, `automodel_mesh.legacy` or `automodel_mesh.mesh`.
        name: the old name.
        frames: how many calls lie between the code that asks and this function, plus one.

    Returns:
        What goes by that name.

    Raises:
        AttributeError: there is no such name.
    """
    replacement = _REPLACEMENTS.get(name)
    if replacement is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    caller = inspect.currentframe()
    for _ in range(frames):
        caller = None if caller is None else caller.f_back
    key = (None, "") if caller is None else (caller.f_globals.get("__name__"), caller.f_code.co_filename)
    if key not in _warned:
        warnings.warn(
            f"{module}.{name} is of an older generation of NeMo AutoModel's mesh module: use {replacement}. (Told once "
            "for each module that takes such names. The how-to on replacing NeMo AutoModel's mesh module lists them.)",
            DeprecationWarning,
            stacklevel=frames + 1,
        )
        _warned.add(key)  # not before: where the warning is an error, the next use must fail too
    value: object = getattr(import_module("automodel_mesh.nemo.older_mesh"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_REPLACEMENTS})


# Hidden from type checkers, so that they still find names that do not exist.
if not TYPE_CHECKING:
    __getattr__ = _serve
