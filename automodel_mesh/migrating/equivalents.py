"""What torch's private calls of meshes are here: the table in `compat/equivalents.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE: Final = "equivalents.json"
COMPAT: Final = "automodel_mesh.compat"

CLASS_NAME: Final = "DeviceMesh"
CLASSES: Final = frozenset(
    f"torch.distributed.{path}{CLASS_NAME}" for path in ("", "device_mesh.", "tensor.", "_tensor.")
)
"""The paths by which torch offers the class of meshes."""

MODULES: Final = ("torch.distributed", "torch.distributed.device_mesh")
"""The modules of torch that have `init_device_mesh`."""


@dataclass(frozen=True)
class Function:
    """A function of `automodel_mesh.compat` that does what a call of torch does.

    Attributes:
        function: its name.
        parameters: the names of torch's parameters without `self`, in their order, each with the name here.
        by_position: how many of them can be given by position here.
    """

    function: str
    parameters: Mapping[str, str]
    by_position: int


@dataclass(frozen=True)
class Equivalents:
    """The table.

    Attributes:
        mesh_methods: for methods of a mesh, the function that takes the mesh first.
        class_methods: for static methods of `DeviceMesh`.
        registry_methods: for methods of the registry that torch has in the module of meshes.
        module_functions: for functions of that module.
        slicing: the function for `mesh["name"]`.
        flattened: the function that returns the flattened axes of a mesh.
        registry: the name of the registry.
        flattened_of_registry: the attribute of the registry with the flattened axes of each root.
        flattened_of_root: the attribute of a root with its flattened axes.
        only_of_meshes: names that nothing but a mesh has, so that the type of a value need not be known.
        without_equivalent: private attributes of meshes for which there is no function here.
    """

    mesh_methods: Mapping[str, Function]
    class_methods: Mapping[str, Function]
    registry_methods: Mapping[str, Function]
    module_functions: Mapping[str, Function]
    slicing: str
    flattened: str
    registry: str
    flattened_of_registry: str
    flattened_of_root: str
    only_of_meshes: frozenset[str]
    without_equivalent: frozenset[str]

    @property
    def functions(self) -> list[Function]:
        """All functions of the table that stand for a call."""
        tables = (self.mesh_methods, self.class_methods, self.registry_methods, self.module_functions)
        return [function for table in tables for function in table.values()]

    @property
    def sources(self) -> frozenset[str]:
        """The names in code that makes a mesh, or gets one without having one."""
        return frozenset({self.registry, *self.module_functions, *self.only_of_meshes})

    @property
    def private(self) -> frozenset[str]:
        """All private names of torch in the table."""
        methods = {*self.mesh_methods, *self.class_methods, self.registry, self.flattened_of_root}
        return frozenset(name for name in methods | self.without_equivalent if name.startswith("_"))


@cache
def equivalents() -> Equivalents:
    """Read the table; torch is not imported."""
    table: dict[str, Any] = json.loads((resources.files("automodel_mesh") / "compat" / FILE).read_text("utf-8"))
    for kind in ("mesh_methods", "class_methods", "registry_methods", "module_functions"):
        table[kind] = {name: Function(**function) for name, function in table[kind].items()}
    for kind in ("only_of_meshes", "without_equivalent"):
        table[kind] = frozenset(table[kind])
    return Equivalents(**table)
