"""What the code around an expression does with it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import libcst as cst
import libcst.matchers as m
from libcst.metadata import ExpressionContext

from automodel_mesh.migrating.calls import NotSureError, arguments
from automodel_mesh.migrating.equivalents import MODULES, equivalents

if TYPE_CHECKING:
    from automodel_mesh.migrating.meshes import Meshes

    Parents = Mapping[cst.CSTNode, cst.CSTNode]

UNKNOWN: Final = "whether it is a mesh cannot be told from the code: annotate it as `DeviceMesh`, and run this again"

_READING: Final = frozenset({"copy", "get", "items", "keys", "values"})
_READERS: Final = frozenset({"bool", "dict", "len", "list", "set", "sorted", "tuple"})


def is_function(node: cst.BaseExpression, meshes: Meshes) -> bool:
    """Return whether a name or an attribute is a function of torch's module of meshes: `dist.init_device_mesh`."""
    if isinstance(node, cst.Attribute) and node.attr.value not in equivalents().module_functions:
        return False
    paths = meshes.paths(node)
    functions = {f"{module}.{name}" for module in MODULES for name in equivalents().module_functions}
    return bool(paths) and paths <= functions


def imported_names(code: str) -> dict[str, set[str]]:
    """Return the modules that some code imports from, each with the names it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found[node.module or ""].update(alias.name for alias in node.names)
    return found


def init_calls_that_differ(module: cst.Module, meshes: Meshes) -> bool:
    """Return whether a call of `init_device_mesh` has arguments that ours has not."""
    if not any(name in module.code for name in equivalents().module_functions):
        return False
    for call in m.findall(module, m.Call(func=m.Name())):
        if isinstance(call, cst.Call) and is_function(call.func, meshes):
            try:
                arguments(next(iter(equivalents().module_functions.values())), call.args)
            except NotSureError:
                return True
    return False


def is_super(node: cst.BaseExpression) -> bool:
    """Return whether an expression is `super()`."""
    return m.matches(node, m.Call(func=m.Name("super")))


def looks_like_mesh(node: cst.BaseExpression) -> bool:
    """Return whether the last name in an expression says mesh: `mesh`, `self.device_mesh`, `get_mesh()`."""
    if isinstance(node, cst.Call):
        return looks_like_mesh(node.func)
    if isinstance(node, cst.Subscript):
        return looks_like_mesh(node.value)
    name = node.attr.value if isinstance(node, cst.Attribute) else node.value if isinstance(node, cst.Name) else ""
    return name.lower().endswith("mesh")


def has_names(node: cst.Subscript) -> bool:
    """Return whether an index is of strings."""
    strings = m.SubscriptElement(m.Index(m.SimpleString() | m.Tuple([m.AtLeastN(m.Element(m.SimpleString()), n=1)])))
    return all(m.matches(item, strings) for item in node.slice)


def is_read(node: cst.CSTNode, parents: Parents, contexts: Mapping[cst.CSTNode, Any]) -> bool:
    """Return whether a mapping is only read by the code around it."""
    parent = parents.get(node)
    above = parents.get(parent) if parent is not None else None
    if isinstance(parent, cst.Subscript):
        return parent.value is node and contexts.get(parent) is ExpressionContext.LOAD
    if isinstance(parent, cst.Attribute):
        return parent.attr.value in _READING and isinstance(above, cst.Call) and above.func is parent
    if isinstance(parent, cst.ComparisonTarget):
        return isinstance(parent.operator, (cst.In, cst.NotIn))
    if isinstance(parent, (cst.For, cst.CompFor)):
        return parent.iter is node
    readers = m.OneOf(*map(m.Name, sorted(_READERS)))
    return isinstance(parent, cst.Arg) and isinstance(above, cst.Call) and m.matches(above.func, readers)


def root_of_flattened(node: cst.CSTNode, meshes: Meshes | None) -> Any:
    """Return the root in an expression for the flattened axes of a root, `None` if it is another expression.

    Args:
        node: `root._flatten_mapping`, or `[root]` or `.get(root, {})` of the table that the registry has.
        meshes: what the names of the module mean; `None` if the expression is known to be one of these.
    """
    table = equivalents()
    if isinstance(node, cst.Attribute):
        return node.value if node.attr.value == table.flattened_of_root else None
    of_registry = m.Attribute(attr=m.Name(table.flattened_of_registry))
    if m.matches(node, m.Subscript(of_registry, [m.SubscriptElement(m.Index())])) and isinstance(node, cst.Subscript):
        holder, index = node.value, node.slice[0].slice
        root: cst.BaseExpression | None = index.value if isinstance(index, cst.Index) else None
    elif m.matches(
        node, m.Call(m.Attribute(of_registry, m.Name("get") | m.Name("setdefault")), [m.Arg(), m.Arg(m.Dict([]))])
    ) and isinstance(node, cst.Call):
        holder = node.func.value if isinstance(node.func, cst.Attribute) else node
        root = node.args[0].value
    else:
        return None
    is_table = isinstance(holder, cst.Attribute) and (meshes is None or meshes.is_registry(holder.value))
    return root if is_table else None


def is_flattened_of_registry(parent: cst.CSTNode | None, parents: Parents) -> bool:
    """Return whether the code around the registry's table of flattened axes looks up a root in it."""
    if isinstance(parent, cst.Attribute):
        parent = parents.get(parent)
    return parent is not None and root_of_flattened(parent, None) is not None
