"""The reference has every public name, as users import it, and says what each field of a named tuple is."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PUBLIC = (
    "automodel_mesh",
    "automodel_mesh.compat",
    "automodel_mesh.config",
    "automodel_mesh.errors",
    "automodel_mesh.init_utils",
    "automodel_mesh.legacy",
    "automodel_mesh.loaders",
    "automodel_mesh.mesh",
    "automodel_mesh.mesh_utils",
    "automodel_mesh.nemo.replacement",
    "automodel_mesh.pipelining.config",
    "automodel_mesh.testing",
    "automodel_mesh.topology",
    "automodel_mesh.topology.sizes",
    "automodel_mesh.topology.strategies",
)
# The names of a module are its `__all__`; of errors, which has none, its classes.
NAMES = {
    module: tuple(
        getattr(
            import_module(module),
            "__all__",
            [name for name in dir(import_module(module)) if re.fullmatch(r"[A-Z]\w+Error", name)],
        )
    )
    for module in PUBLIC
}

pytestmark = [pytest.mark.release_independent, pytest.mark.checkout]


def documented() -> list[str]:
    """Return the path of each name that the pages document, as autodoc reads them: relative to `currentmodule`."""
    found = []
    for page in sorted(FOLDER.glob("*.md")):
        module = ""
        for directive, argument in re.findall(
            r"^\.\. (currentmodule|auto\w+):: (\S+)$", page.read_text(), re.MULTILINE
        ):
            if directive == "currentmodule":
                module = argument
            else:
                found.append(f"{module}.{argument}")
    return found


def find(path: str) -> Any:
    """Return what a path names."""
    module, _, name = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # taking a name of `legacy` gives one
        return getattr(import_module(module), name)


def test_no_name_is_documented_twice() -> None:
    """Each public name has one place, under a path that can be imported."""
    paths = documented()
    assert len(set(paths)) == len(paths)
    for path in paths:
        module, _, name = path.rpartition(".")
        assert name in NAMES[module], path


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module: str) -> None:
    """Each name of a public module is documented, under this module or under the one where most code imports it."""
    paths = documented()
    objects = [find(path) for path in paths]
    missing = [
        name
        for name in NAMES[module]
        if f"{module}.{name}" not in paths and not any(find(f"{module}.{name}") is item for item in objects)
    ]
    assert missing == []


def test_the_names_of_the_package_are_shown_as_they_are_imported() -> None:
    """`automodel_mesh.get_submesh`, not the module that defines it; the same for `automodel_mesh.compat`."""
    paths = set(documented())
    assert {f"automodel_mesh.{name}" for name in NAMES["automodel_mesh"]} <= paths
    own = {name for name in NAMES["automodel_mesh.compat"] if name not in NAMES["automodel_mesh.errors"]}
    assert {f"automodel_mesh.compat.{name}" for name in own} <= paths


TUPLES = [path for path in documented() if hasattr(find(path), "_fields")]


@pytest.mark.parametrize("path", TUPLES)
def test_each_field_of_a_named_tuple_is_described(path: str) -> None:
    """Without a text of ours, autodoc shows "Alias for field number" and a digit."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(find(path)))).body
    assert isinstance(definition, ast.ClassDef)
    described = [
        field.target.id
        for field, after in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    ]
    assert described == list(find(path)._fields)
