"""Finds which public functions of `automodel_mesh.compat` depend on one of its inner functions, from its text alone.

What a method is called on cannot be told from the text, so a call reaches every method of that name: the answer may
name a function too many, never one too few.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from automodel_mesh.tracking.uses import compat_sources

IMPORT: Final = "import automodel_mesh.compat"
"""Stands for what is done when the package is imported."""

_PACKAGE: Final = "automodel_mesh.compat"
_ERA: Final = "gate.era"
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_callers(places: Iterable[str]) -> tuple[str, ...]:
    """Return the public functions that depend on some places, sorted; `IMPORT` first where the import itself does.

    Args:
        places: functions inside `compat/`, as `module.function` or `module.Class.method`, or modules.
    """
    callers, public = _graph()
    seen: set[str] = set()
    left = list(places)
    while left:
        place = left.pop()
        if place not in seen:
            seen.add(place)
            left += callers.get(place, ())
    at_import = [IMPORT] if any("." not in place for place in seen) else []
    return (*at_import, *sorted(name for place, name in public.items() if place in seen))


@cache
def _graph() -> tuple[Mapping[str, set[str]], Mapping[str, str]]:
    """Return who calls each place, and the public name of each place that has one."""
    trees = {module: ast.parse(source) for module, source in compat_sources().items()}
    nodes_of = {module: _places(module, tree) for module, tree in trees.items()}
    places = {place for found in nodes_of.values() for place in found}
    callers: dict[str, set[str]] = {}
    for module, tree in trees.items():
        imported = _imported(tree)
        for place, nodes in nodes_of[module].items():
            for called in _called(module, nodes, imported, places):
                callers.setdefault(called, set()).add(place)
    public = {path: name for name, path in _imported(trees["__init__"]).items() if path in places}
    return callers, public


def _places(module: str, tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Return the functions and methods of a module, and under the module's own name what is done on import."""
    found: dict[str, list[ast.AST]] = {}
    if module != "__init__":
        found[module] = [node for node in tree.body if not isinstance(node, (*_FUNCTIONS, ast.ClassDef))]
    for node in tree.body:
        if isinstance(node, _FUNCTIONS):
            found[f"{module}.{node.name}"] = [node]
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, _FUNCTIONS)]
            found |= {f"{module}.{node.name}.{method.name}": [method] for method in methods}
            found[f"{module}.{node.name}"] = [part for part in node.body if part not in methods]
    return found


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return what the names stand for that a module imports from the package, as `module` or `module.name`."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            prefix = (node.module or "").removeprefix(_PACKAGE).rpartition(".")[2]
            found |= {one.asname or one.name: f"{prefix}.{one.name}".removeprefix(".") for one in node.names}
    return found


def _called(module: str, nodes: Iterable[ast.AST], imported: Mapping[str, str], places: set[str]) -> set[str]:
    """Return the places that some code mentions; of a class, making one is what counts."""
    found: set[str] = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Name):
            path = imported.get(node.id, f"{module}.{node.id}")
            found |= {path, f"{path}.__init__"} & places
        elif isinstance(node, ast.Attribute):
            base = imported.get(node.value.id) if isinstance(node.value, ast.Name) else None
            if base is None:
                found |= {place for place in places if place.count(".") == 2 and place.endswith(f".{node.attr}")}
            elif base == _ERA:
                found |= {place for place in places if place.startswith("since_") and place.endswith(f".{node.attr}")}
            else:
                found |= {f"{base}.{node.attr}"} & places
    return found
