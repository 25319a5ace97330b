"""`replace_nemo_automodel`: the modules here in place of NeMo AutoModel's, for a whole process; without torch."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType, TracebackType

    from typing_extensions import Self

__all__ = ["REPLACED_MODULES", "REPLACED_MODULES_0_4", "Replacement", "replace_nemo_automodel"]

_ROOT: Final = "nemo_automodel"
_PACKAGE: Final = f"{_ROOT}.components.distributed"

REPLACED_MODULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        f"{_PACKAGE}.config": "automodel_mesh.config",
        f"{_PACKAGE}.init_utils": "automodel_mesh.init_utils",
        f"{_PACKAGE}.mesh": "automodel_mesh.mesh",
        f"{_PACKAGE}.mesh_utils": "automodel_mesh.mesh_utils",
        f"{_PACKAGE}.pipelining.config": "automodel_mesh.pipelining.config",
    }
)
"""The modules of NeMo AutoModel 0.5 and newer that are replaced, and the module here that replaces each."""

REPLACED_MODULES_0_4: Final[Mapping[str, str]] = MappingProxyType(
    {
        **REPLACED_MODULES,
        f"{_PACKAGE}.config": "automodel_mesh.nemo.v0_4.config",
        f"{_PACKAGE}.device_mesh": "automodel_mesh.nemo.v0_4.mesh_utils",
        f"{_PACKAGE}.mesh": "automodel_mesh.nemo.v0_4.mesh",
        f"{_PACKAGE}.mesh_utils": "automodel_mesh.nemo.v0_4.mesh_utils",
    }
)
"""The same for NeMo AutoModel 0.4, whose `MeshContext` has the settings and whose sizes are arguments."""


def replace_nemo_automodel() -> Replacement:
    """Put the modules here in place of NeMo AutoModel's mesh modules, for everything that this process imports later.

    For programs that use a framework which imports NeMo AutoModel, whose import lines are not theirs to change: call it
    once, before the framework is imported. Neither torch nor NeMo AutoModel is imported by the call. Which modules are
    replaced depends on the installed version: `REPLACED_MODULES` or `REPLACED_MODULES_0_4`.

    Returns:
        The replacement, which is in place already. As a context manager, it is undone at the end of the block.

    Raises:
        ModuleNotFoundError: `nemo_automodel` is not installed.
        RuntimeError: a module to be replaced has been imported already, so that others may have names from it.
    """
    modules = _modules_to_replace()
    imported = [name for name, ours in modules.items() if name in sys.modules and sys.modules[name].__name__ != ours]
    if imported:
        raise RuntimeError(
            f"{', '.join(imported)}: imported already, and modules that took names from there keep them. Call "
            "replace_nemo_automodel() before anything that imports nemo_automodel, such as in the first lines of the "
            "program"
        )
    return Replacement(modules)


class Replacement:
    """What `replace_nemo_automodel` returns: the replacement of modules, and the way to undo it.

    Attributes:
        modules: The names of the replaced modules, each with that of the module here.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self.modules: Mapping[str, str] = MappingProxyType(dict(modules))
        self._finder = _Finder(self.modules)
        self._before = {name: set(vars(module)) for name, module in _imported().items()}
        sys.meta_path.insert(0, self._finder)

    def undo(self) -> None:
        """Undo the replacement: NeMo AutoModel is imported anew where it is imported next, with its own modules.

        What was imported in the meantime is forgotten, since it has names of the modules here; objects in use stay as
        they are. A second call has no effect.
        """
        if self._finder not in sys.meta_path:
            return
        sys.meta_path.remove(self._finder)
        for name, module in _imported().items():
            if name not in self._before:
                del sys.modules[name]
                continue
            for attribute in set(vars(module)) - self._before[name]:
                delattr(module, attribute)  # a submodule, or a name that the package keeps once it has been used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


class _Finder(MetaPathFinder):
    """Finds the replaced modules."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a replaced module, `None` for any other."""
        del path, target
        ours = self._modules.get(fullname)
        return None if ours is None else ModuleSpec(fullname, _Loader(ours), origin=ours)


class _Loader(Loader):
    """Loads a module here under another name: both names are those of the same module."""

    def __init__(self, ours: str) -> None:
        self._ours = ours

    def exec_module(self, module: ModuleType) -> None:
        """Import the module here, and put it into `sys.modules`, where the import takes it from."""
        sys.modules[module.__name__] = import_module(self._ours)


def _modules_to_replace() -> Mapping[str, str]:
    """Return the modules of the installed version, found from its files: importing it would import torch."""
    spec = find_spec(_ROOT)
    if spec is None:
        raise ModuleNotFoundError(
            "nemo_automodel is not installed, so there is nothing to replace: in code of your own, import from "
            "automodel_mesh instead",
            name=_ROOT,
        )
    distributed = [Path(folder, "components", "distributed") for folder in spec.submodule_search_locations or ()]
    older = any((folder / "device_mesh.py").exists() for folder in distributed)  # 0.5 has merged it into mesh_utils
    return REPLACED_MODULES_0_4 if older else REPLACED_MODULES


def _imported() -> dict[str, ModuleType]:
    """Return what is imported of NeMo AutoModel."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _ROOT}
