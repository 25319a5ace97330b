"""Which import lines of NeMo AutoModel's mesh modules have an equivalent here, without importing torch."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Final

from automodel_mesh.nemo.replacement import REPLACED_MODULES, REPLACED_MODULES_0_4

PACKAGE: Final = next(iter(REPLACED_MODULES)).rpartition(".")[0]
"""The package of NeMo AutoModel whose modules are replaced; `automodel_mesh` itself replaces it."""

OURS: Final = "automodel_mesh"
_OLDER_ONLY: Final = REPLACED_MODULES_0_4.keys() - REPLACED_MODULES.keys()
_WHY_NOT: Final = "is not here: docs/how-to/replacing-nemo-automodel.md says what to use"


def modules_for(imported: Collection[str]) -> Mapping[str, str]:
    """Return the modules that replace NeMo AutoModel's in a file.

    Args:
        imported: all modules that the file imports from; one that only version 0.4 has makes it code for that version.
    """
    table = REPLACED_MODULES if _OLDER_ONLY.isdisjoint(imported) else REPLACED_MODULES_0_4
    return {PACKAGE: OURS, **table}


def replacement(module: str, names: Collection[str], modules: Mapping[str, str]) -> tuple[str, str]:
    """Return the module here that has the names which a line imports, or why the line has to stay.

    Args:
        module: the module that the line imports from.
        names: what it imports.
        modules: the return value of `modules_for`.

    Returns:
        The module and an empty string; or an empty string and the reason, also empty where the line is of other
        modules of NeMo AutoModel.
    """
    if module not in modules:
        return "", ""
    ours = modules[module]
    known = public_names() if ours == OURS else names_of(ours)
    submodules = [name for name in names if f"{module}.{name}" in modules]
    missing = [name for name in names if name not in known]
    if submodules:
        return "", f"{submodules[0]} is a module: import its names from {modules[f'{module}.{submodules[0]}']}"
    if missing:
        return "", f"{', '.join(missing)} {_WHY_NOT}"
    return ours, ""


@cache
def names_of(module: str) -> frozenset[str]:
    """Return the names that a module here has, read from its source: importing it would import torch."""
    return frozenset(_names(_tree(module).body))


@cache
def public_names() -> frozenset[str]:
    """Return the names that `automodel_mesh` offers."""
    for statement in _tree(OURS).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(statement.value))
    raise LookupError(f"{OURS} has no __all__")


def _tree(module: str) -> ast.Module:
    *packages, name = module.split(".")[1:] or [""]
    folder = resources.files(OURS).joinpath(*packages)
    file = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    return ast.parse(file.read_text("utf-8"))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith(f"{OURS}."):
            for alias in statement.names:
                yield from _exported(statement.module) if alias.name == "*" else (alias.asname or alias.name,)


def _exported(module: str) -> frozenset[str]:
    """Return what a star takes from a module here."""
    for statement in _tree(module).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(statement.value))
    return frozenset(name for name in names_of(module) if not name.startswith("_"))
