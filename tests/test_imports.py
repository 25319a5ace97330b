"""The modules have no circular imports, counting imports in functions and by strings."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.release_independent

CHECKOUT = Path(__file__).parents[1]
IMPORT_BY_NAME = {"import_module", "resolve_name", "__import__"}
"""Functions that import by name: in a module that uses one, each string that is the name of a module is an import."""


def sources() -> dict[str, str]:
    """Return the text of every module of the package, by its name."""
    found: dict[str, str] = {}
    for folder, package in (("automodel_mesh", "automodel_mesh"), ("compat", "automodel_mesh.compat")):
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            parts = path.relative_to(CHECKOUT / folder).with_suffix("").parts
            if (folder, parts[0]) != ("automodel_mesh", "compat"):  # a link to the other folder
                name = ".".join((package, *(part for part in parts if part != "__init__")))
                found[name] = path.read_text(encoding="utf-8")
    return found


def nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, including the bodies of functions, without those under `if TYPE_CHECKING:`."""
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children: list[ast.AST] = [*node.orelse]
    else:
        children = [*ast.iter_child_nodes(node)]
    for child in children:
        yield from nodes_that_run(child)


def imports_of(text: str, modules: Mapping[str, object]) -> set[str]:
    """Return the modules that a text imports; `from a import b` imports `a.b` if that is a module, else `a`."""
    nodes = list(nodes_that_run(ast.parse(text)))
    used = {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in modules else str(node.module) for name in inner]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not used.isdisjoint(IMPORT_BY_NAME):
            names.append(node.value.partition(":")[0])
    return set(names) & set(modules)


def circle_in(texts: Mapping[str, str]) -> list[str]:
    """Return modules each of which imports the next, the first one again at the end; empty if there is no circle."""
    try:
        TopologicalSorter({module: imports_of(text, texts) for module, text in texts.items()}).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]  # the sorter lists what is imported before what imports it
    return []


def test_no_modules_import_each_other() -> None:
    """No module imports one that imports it, directly or through others."""
    texts = sources()
    assert {"automodel_mesh", "automodel_mesh.mesh", "automodel_mesh.compat.eras.gate"} <= texts.keys()
    assert "automodel_mesh.compat" in imports_of(texts["automodel_mesh.mesh"], texts)
    assert circle_in(texts) == []


@pytest.mark.parametrize(
    "back",
    [
        "import p.a",
        "from p import a",
        "from p.a import name",
        "def use():\n    from p.a import name",
        "import importlib\ndef use():\n    importlib.import_module('p.a')",
        "from importlib import import_module\nHOMES = ['p.a']\ndef use(): import_module(HOMES[0])",
        "from pkgutil import resolve_name\nHOME = 'p.a:Name'\ndef use(): resolve_name(HOME)",
    ],
)
def test_each_kind_of_import_circle_is_found(back: str) -> None:
    """An import at the top, in a function, or by a string can close a circle; one for type checkers cannot."""
    texts = {"p": "", "p.a": "from p import b", "p.b": "import p.c", "p.c": back}
    found = circle_in(texts)
    assert found[0] == found[-1]
    assert set(pairwise(found)) == {("p.a", "p.b"), ("p.b", "p.c"), ("p.c", "p.a")}
    hidden = "\n".join(f"    {line}" for line in back.splitlines())
    assert circle_in({**texts, "p.c": f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n{hidden}"}) == []
