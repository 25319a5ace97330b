"""Which expressions of a module are meshes, as far as its annotations and assignments say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import libcst as cst
from libcst.metadata import BuiltinAssignment, ExpressionContextProvider, ScopeProvider

from automodel_mesh.migrating.bindings import Bindings, Value
from automodel_mesh.migrating.equivalents import CLASS_NAME, CLASSES, COMPAT, MODULES, equivalents

if TYPE_CHECKING:
    from libcst.metadata import Scope

Kind: TypeAlias = Literal["root", "mesh", "none", "other"]
"""`root`: surely a root mesh; `mesh`: any mesh; `none`: the value `None`; `other`: nothing is known."""

_OPTIONAL: Final = frozenset({"typing.Optional", "typing.Union", "typing.Final", "typing.ClassVar", "typing.Annotated"})
_RETURNS_ROOT: Final = frozenset({f"{COMPAT}.init_device_mesh", f"{COMPAT}.get_root_mesh"})
_RETURNS_MESH: Final = frozenset(f"{COMPAT}.{name}" for name in ("concatenate", "flatten", "slice_mesh", "unflatten"))


class Meshes:
    """Tells which expressions of a module are meshes.

    A name is one if all that is assigned to it in its scope is one, or `None`; likewise an attribute of `self`.

    Args:
        wrapper: the module, with its metadata.
    """

    def __init__(self, wrapper: cst.MetadataWrapper) -> None:
        self._wrapper = wrapper
        code = wrapper.module.code
        self._has_registry = equivalents().registry in code
        self._has_meshes = any(word in code for word in (CLASS_NAME, COMPAT, *equivalents().sources))
        self._names: dict[cst.CSTNode, frozenset[str]] = {}
        self._kinds: dict[cst.CSTNode, Kind] = {}

    @cached_property
    def _scopes(self) -> Mapping[cst.CSTNode, Scope | None]:
        return self._wrapper.resolve(ScopeProvider)

    @cached_property
    def _found(self) -> Bindings:
        found = Bindings(self._wrapper.resolve(ExpressionContextProvider))
        self._wrapper.module.visit(found)
        return found

    def paths(self, node: cst.BaseExpression) -> frozenset[str]:
        """Return the dotted paths that a name or an attribute may mean, through imports: `torch.distributed.x`."""
        if node not in self._names:
            scope = self._scopes.get(node)
            names = scope.get_qualified_names_for(node) if scope is not None else ()
            self._names[node] = frozenset(name.name for name in names)
        return self._names[node]

    def is_class(self, node: cst.BaseExpression) -> bool:
        """Return whether an expression is torch's class of meshes."""
        return not self.paths(node).isdisjoint(CLASSES)

    def is_registry(self, node: cst.BaseExpression) -> bool:
        """Return whether an expression is torch's registry of meshes."""
        return self._has_registry and f"{MODULES[-1]}.{equivalents().registry}" in self.paths(node)

    def is_mesh(self, node: cst.BaseExpression) -> bool:
        """Return whether an expression is surely a mesh, or `None`."""
        return self.kind(node) in {"root", "mesh"}

    def kind(self, node: cst.BaseExpression) -> Kind:
        """Return what is known of an expression."""
        if not self._has_meshes:
            return "other"
        if node not in self._kinds:
            self._kinds[node] = "none"  # while it is looked for, as in `mesh = mesh["tp"]`: the others decide
            self._kinds[node] = self._kind(node)
        return self._kinds[node]

    def owner_defines(self, node: cst.BaseExpression, name: str) -> bool:
        """Return whether an expression is the `self` of a class of this module that has a method of its own."""
        owner = self._found.selves.get(node)
        return owner is not None and name in self._found.methods[owner]

    def defines_method(self, name: str) -> bool:
        """Return whether any class of the module has a method or an attribute of this name."""
        found = self._found
        return any(name in one for one in found.methods.values()) or any(
            name in one for one in found.attributes.values()
        )

    def _kind(self, node: cst.BaseExpression) -> Kind:
        if isinstance(node, cst.Name):
            return "none" if node.value == "None" else self._of_name(node)
        if isinstance(node, cst.Attribute):
            return self._of_attribute(node)
        if isinstance(node, cst.Call):
            return self._of_call(node)
        if isinstance(node, cst.Subscript):
            sliced = self.is_mesh(node.value) or self._is_flattened(node.value)
            return "mesh" if sliced else "other"
        if isinstance(node, (cst.IfExp, cst.BooleanOperation)):
            either = (node.body, node.orelse) if isinstance(node, cst.IfExp) else (node.left, node.right)
            return _joined(map(self.kind, either))
        return self.kind(node.value) if isinstance(node, cst.NamedExpr) else "other"

    def _of_name(self, node: cst.Name) -> Kind:
        scope = self._scopes.get(node)
        if scope is None:
            return "other"
        kinds: list[Kind] = []
        for assignment in scope[node.value]:
            if isinstance(assignment, BuiltinAssignment):
                return "other"
            binding = self._found.names.get(getattr(assignment, "node", None))
            kinds.append("other" if binding is None else self._of_value(binding))
        return _joined(kinds)

    def _of_attribute(self, node: cst.Attribute) -> Kind:
        owner = self._found.selves.get(node.value)
        if owner is None:
            return "other"
        bindings = self._found.attributes[owner].get(node.attr.value, ())
        return _joined(map(self._of_value, bindings))

    def _of_call(self, node: cst.Call) -> Kind:
        paths = self.paths(node.func)
        table = equivalents()
        roots = {
            *_RETURNS_ROOT,
            *CLASSES,
            *(f"{module}.{name}" for module in MODULES for name in table.module_functions),
        }
        if paths and paths <= roots:
            return "root"
        if paths and paths <= _RETURNS_MESH:
            return "mesh"
        if "typing.cast" in paths and node.args:
            return self._of_annotation(node.args[0].value)
        if isinstance(node.func, cst.Attribute):
            return self._of_method_call(node.func)
        return self._of_returns(self._functions(node.func))

    def _of_method_call(self, node: cst.Attribute) -> Kind:
        name, table = node.attr.value, equivalents()
        method = table.mesh_methods.get(name)
        if name in table.class_methods and (self.is_class(node.value) or self.is_mesh(node.value)):
            return "mesh"
        if name in table.registry_methods and self.is_registry(node.value):
            return "root" if name == table.registry_methods[name].function else "mesh"
        if name in table.only_of_meshes and not self.defines_method(name):
            return "root"
        if name == "from_group" and self.is_class(node.value):
            return "root"
        if method is not None and f"{COMPAT}.{method.function}" in _RETURNS_MESH and self.is_mesh(node.value):
            return "mesh"
        owner = self._found.selves.get(node.value)
        method_here = None if owner is None else self._found.methods[owner].get(name)
        return self._of_returns([method_here])

    def _functions(self, node: cst.BaseExpression) -> list[cst.FunctionDef | None]:
        """Return the functions of this module that a name may mean, `None` for each that is anything else."""
        scope = self._scopes.get(node)
        if scope is None or not isinstance(node, cst.Name):
            return [None]
        nodes = [getattr(assignment, "node", None) for assignment in scope[node.value]]
        return [found if isinstance(found, cst.FunctionDef) else None for found in nodes]

    def _of_returns(self, functions: Iterable[cst.FunctionDef | None]) -> Kind:
        annotations = [
            None if function is None or function.asynchronous else function.returns for function in functions
        ]
        return _joined("other" if found is None else self._of_annotation(found.annotation) for found in annotations)

    def _is_flattened(self, node: cst.BaseExpression) -> bool:
        """Return whether an expression is the mapping of the flattened axes of a mesh."""
        table = equivalents()
        if isinstance(node, cst.Attribute):
            return node.attr.value == table.flattened_of_root and self.is_mesh(node.value)
        if isinstance(node, cst.Call):
            return f"{COMPAT}.{table.flattened}" in self.paths(node.func)
        return False

    def _of_value(self, binding: Value) -> Kind:
        if binding.annotation is not None:
            return self._of_annotation(binding.annotation)
        return "other" if binding.value is None else self.kind(binding.value)

    def _of_annotation(self, node: cst.BaseExpression) -> Kind:
        scope = self._scopes.get(node)
        return "other" if scope is None else _annotated(node, scope)


def _annotated(node: cst.BaseExpression, scope: Scope) -> Kind:
    """Return the kind of values with an annotation, which may be a string: a mesh, or a mesh or `None`."""
    if isinstance(node, cst.SimpleString):
        try:
            return _annotated(cst.parse_expression(str(node.evaluated_value)), scope)
        except cst.ParserSyntaxError:
            return "other"
    if isinstance(node, cst.Name) and node.value == "None":
        return "none"
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.BitOr):
        return _joined([_annotated(node.left, scope), _annotated(node.right, scope)])
    if isinstance(node, cst.Subscript) and not _paths(node.value, scope).isdisjoint(_OPTIONAL):
        items = [item.slice.value for item in node.slice if isinstance(item.slice, cst.Index)]
        kept = items[:1] if "typing.Annotated" in _paths(node.value, scope) else items
        return _joined(_annotated(item, scope) for item in kept)
    return "mesh" if not _paths(node, scope).isdisjoint(CLASSES) else "other"


def _paths(node: cst.BaseExpression, scope: Scope) -> set[str]:
    dotted = cst.Module([]).code_for_node(node)
    return {found.name for found in scope.get_qualified_names_for(dotted)}


def _joined(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of a value that may be of any of these kinds."""
    found = set(kinds)
    if not found or "other" in found:
        return "other"
    return "mesh" if "mesh" in found else "root" if "root" in found else "none"
