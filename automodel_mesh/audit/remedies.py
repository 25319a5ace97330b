"""What to use instead of torch's calls on meshes: the functions of `automodel_mesh.compat`."""

from __future__ import annotations

from functools import cache

from automodel_mesh.audit.lookup import all_releases
from automodel_mesh.migrating.equivalents import CLASSES, COMPAT, MODULES, equivalents


@cache
def ours(path: str) -> str:
    """Return the dotted path of our function that does what a name of torch does; empty if there is none."""
    owner, _, name = path.rpartition(".")
    table = equivalents()
    found = (release.find(owner).path for release in all_releases())
    defined = {one.replace(":", ".") for one in found}
    of_module = defined & set(MODULES)
    if of_module and name in table.module_functions:
        return f"{COMPAT}.{table.module_functions[name].function}"
    if defined & CLASSES:
        if name == table.flattened_of_root:
            return f"{COMPAT}.{table.flattened}"
        function = {**table.mesh_methods, **table.class_methods}.get(name)
    elif name in table.registry_methods and any(one.startswith(MODULES[-1]) for one in defined):
        function = table.registry_methods[name]
    else:
        function = None
    return "" if function is None else f"{COMPAT}.{function.function}"
