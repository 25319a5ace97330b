"""Finds, without running it, which functions of some Python code use private names of torch, and who calls those.

The text does not say which type a value has, so the rules go by how a name is written. These are uses of private names
of torch:

- an import from a private module of torch (`torch._C`, `torch.testing._internal`), or of a private name of a public
  one, and every mention of what was imported;
- a private attribute of anything but `self` and `cls`, and what follows a private name of torch
  (`distributed_c10d._world.pg_map`), also through a variable of the function;
- a keyword argument with a private name;
- a string that is a private name or the path of a private module of torch: `getattr`, `hasattr`, `vars(x)[...]`,
  `import_module`.

A public name of an object of a private type (`layout.sizes_and_strides`) is found only if it is asked for. Annotations
do not count: they are not evaluated.

For the same reason a call of a method counts as a call of every method with that name in `compat/`:
`public_callers` may return a function too many, never one too few.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from importlib.abc import Traversable

How: TypeAlias = Literal["import", "name", "attribute", "keyword", "string"]

NOT_OF_TORCH: Final = frozenset({"_asdict", "_exit", "_fields", "_field_defaults", "_getframe", "_make", "_replace"})
"""Names with an underscore that Python's own documentation offers, such as those of named tuples, and `os._exit`."""

OURS: Final = "_automodel_mesh"
"""The prefix of the attributes that this library sets on torch's objects."""

_PACKAGE: Final = "automodel_mesh.compat"
IMPORT: Final = f"import {_PACKAGE}"
"""Stands for what runs when the package is imported."""

_ERA: Final = "gate.era"
_ERA_MODULES: Final = "since_"
_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_PRIVATE_MODULE: Final = re.compile(r"torch(\.\w+)*\._(?!_)\w+(\.\w+)*")


@dataclass(frozen=True)
class Use:
    """A place where a name is used.

    Attributes:
        name: the name alone, such as `_layout`, without what it belongs to.
        how: `import`, `name` (a mention of what was imported), `attribute`, `keyword` (of a call), or `string`.
        module: the module that uses it, by its last name.
        function: the function or class that uses it, as `Class.method`; empty at the top of the module.
        line: its line.
    """

    name: str
    how: How
    module: str
    function: str
    line: int

    @property
    def place(self) -> str:
        """The function as the ledger writes it: `module.function`, or the module alone."""
        return f"{self.module}.{self.function}" if self.function else self.module


def is_private(name: str) -> bool:
    """Tell whether one part of a dotted name begins with a single underscore."""
    return any(part.startswith("_") and not part.startswith("__") and part != "_" for part in name.split("."))


def uses_in(source: str, module: str, also: Collection[str] = ()) -> list[Use]:
    """Find the uses of private names of torch in a module.

    Args:
        source: its text.
        module: its name in the result.
        also: public names that count too, as attributes, strings, or imported from torch.

    Returns:
        The uses in the order of the text.
    """
    scanner = _Scanner(module, frozenset(also))
    scanner.visit(ast.parse(source))
    return sorted(scanner.found, key=lambda use: use.line)


class _Scanner(ast.NodeVisitor):
    """Walks a module, and tracks what its imports and the variables of the current function refer to."""

    def __init__(self, module: str, also: frozenset[str]) -> None:
        self.found: list[Use] = []
        self._module = module
        self._also = also
        self._scope: list[str] = []
        self._paths: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            path = one.name if one.asname else one.name.partition(".")[0]
            self._paths[one.asname or path] = path
            if _of_torch(one.name) and is_private(one.name):
                self._note(one.name.rpartition(".")[2], "import", node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        for one in node.names:
            path = f"{source}.{one.name}"
            self._paths[one.asname or one.name] = path
            if _of_torch(path) and is_private(path):
                self._note(one.name, "import", node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._enter(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return
        self.generic_visit(node)
        path = self._path(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._paths[target.id] = path

    def visit_Name(self, node: ast.Name) -> None:
        path = self._paths.get(node.id, "")
        name = path.rpartition(".")[2]
        if isinstance(node.ctx, ast.Load) and _of_torch(path) and (is_private(path) or name in self._also):
            self._note(name, "name", node)

    def visit_arg(self, node: ast.arg) -> None:
        """Skip the annotation."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        for part in (node.target, node.value):
            if part is not None:
                self.visit(part)
        if node.value is not None and isinstance(node.target, ast.Name):
            self._paths[node.target.id] = self._path(node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        behind = self._path(node.value)
        own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        private = is_private(node.attr) and node.attr not in NOT_OF_TORCH and not node.attr.startswith(OURS)
        follows = _of_torch(behind) and is_private(behind.rpartition(".")[2]) and not node.attr.startswith("__")
        if not own and (private or follows or node.attr in self._also):
            self._note(node.attr, "attribute", node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        for keyword in node.keywords:
            if keyword.arg and is_private(keyword.arg):
                self._note(keyword.arg, "keyword", keyword.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring uses nothing
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        text = node.value
        if not isinstance(text, str) or text.startswith(OURS) or text in NOT_OF_TORCH:
            return
        alone = text.isidentifier() and is_private(text)
        if alone or text in self._also or _PRIVATE_MODULE.fullmatch(text):
            self._note(text.rpartition(".")[2], "string", node)

    def _enter(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        outside = dict(self._paths)
        self._scope.append(node.name)
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        self.generic_visit(node)
        self._scope.pop()
        self._paths = outside

    def _path(self, node: ast.AST) -> str:
        """Return the dotted path that an expression refers to; empty if the text does not say."""
        if isinstance(node, ast.Attribute):
            behind = self._path(node.value)
            return behind and f"{behind}.{node.attr}"
        return self._paths.get(node.id, "") if isinstance(node, ast.Name) else ""

    def _note(self, name: str, how: How, node: ast.AST) -> None:
        self.found.append(Use(name, how, self._module, ".".join(self._scope), getattr(node, "lineno", 0)))


def _of_torch(path: str) -> bool:
    return path.partition(".")[0] == "torch"


# --- the functions of compat/ that call them


def compat_sources() -> dict[str, str]:
    """Return the text of each module and package of `automodel_mesh.compat`, by its last name, without importing it."""
    return dict(_modules_in(resources.files("automodel_mesh") / "compat"))


def _modules_in(package: Traversable) -> Iterator[tuple[str, str]]:
    for file in package.iterdir():
        if file.is_dir():
            yield from _modules_in(file)
        elif file.name.endswith(".py"):
            name = file.name.removesuffix(".py")
            yield package.name if name == "__init__" else name, file.read_text(encoding="utf-8")


def public_callers(places: Iterable[str]) -> tuple[str, ...]:
    """Return the public functions that depend on some places, sorted, after `IMPORT` if the import itself does.

    Args:
        places: functions inside `compat/`, as `module.function` or `module.Class.method`, or modules.
    """
    callers, public = _call_graph()
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
def _call_graph() -> tuple[Mapping[str, set[str]], Mapping[str, str]]:
    """Return the callers of each place, and the public name of each place that has one."""
    trees = {module: ast.parse(source) for module, source in compat_sources().items()}
    nodes_of = {module: _places(module, tree) for module, tree in trees.items()}
    places = {place for found in nodes_of.values() for place in found}
    callers: dict[str, set[str]] = {}
    for module, tree in trees.items():
        imported = _imported(tree, trees)
        for place, nodes in nodes_of[module].items():
            for called in _called(module, nodes, imported, places):
                callers.setdefault(called, set()).add(place)
    exported = _imported(trees["compat"], trees)
    return callers, {path: name for name, path in exported.items() if path in places}


def _places(module: str, tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Return the functions and methods of a module, and under the module's own name what runs on import."""
    found: dict[str, list[ast.AST]] = {}
    found[module] = [node for node in tree.body if not isinstance(node, (*_FUNCTIONS, ast.ClassDef))]
    for node in tree.body:
        if isinstance(node, _FUNCTIONS):
            found[f"{module}.{node.name}"] = [node]
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, _FUNCTIONS)]
            found |= {f"{module}.{node.name}.{method.name}": [method] for method in methods}
            found[f"{module}.{node.name}"] = [part for part in node.body if part not in methods]
    return found


def _imported(tree: ast.Module, modules: Collection[str]) -> dict[str, str]:
    """Return what the names that a module imports from the package refer to, as `module` or `module.name`."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (source := node.module or "").startswith(_PACKAGE):
            module = source.rpartition(".")[2]
            for one in node.names:
                found[one.asname or one.name] = one.name if one.name in modules else f"{module}.{one.name}"
    return found


def _called(module: str, nodes: Iterable[ast.AST], imported: Mapping[str, str], places: set[str]) -> set[str]:
    """Return the places that some code mentions; a mention of a class counts as a call of its `__init__`."""
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
                eras = {place for place in places if place.startswith(_ERA_MODULES)}
                found |= {place for place in eras if place.endswith(f".{node.attr}")}
            else:
                found |= {f"{base}.{node.attr}"} & places
    return found
