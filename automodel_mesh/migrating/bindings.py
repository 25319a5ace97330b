"""What the names of a module and the attributes of `self` are bound to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import libcst as cst
from libcst.metadata import ExpressionContext

_PROPERTIES: Final = ("property", "cached_property")


@dataclass(frozen=True)
class Value:
    """What a name or an attribute is bound to at one place.

    Attributes:
        value: the value; `None` if it is not known.
        annotation: its annotation, which says more than the value.
    """

    value: cst.BaseExpression | None = None
    annotation: cst.BaseExpression | None = None


class Bindings(cst.CSTVisitor):
    """Collects what names and attributes of `self` are bound to, and the methods of classes.

    Args:
        contexts: whether each expression is read or written, from libcst.

    Attributes:
        names: by the node that binds the name.
        attributes: those of `self` and of the class, by class and name.
        methods: by class and name.
        selves: the class of each name that is the `self` of one of its methods.
    """

    def __init__(self, contexts: Mapping[cst.CSTNode, Any]) -> None:
        super().__init__()
        self.names: dict[cst.CSTNode | None, Value] = {}
        self.attributes: dict[cst.ClassDef, dict[str, list[Value]]] = defaultdict(lambda: defaultdict(list))
        self.methods: dict[cst.ClassDef, dict[str, cst.FunctionDef]] = defaultdict(dict)
        self.selves: dict[cst.CSTNode, cst.ClassDef] = {}
        self._contexts = contexts
        self._stored: dict[cst.CSTNode, Value] = {}
        self._stack: list[tuple[cst.ClassDef | None, str]] = [(None, "")]
        self._classes: list[cst.ClassDef | None] = [None]

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Collect what a node binds."""
        if isinstance(node, (cst.ClassDef, cst.FunctionDef, cst.Lambda)):
            self._enter(node)
        elif isinstance(node, cst.Param):
            many = node.star in {"*", "**"}
            annotation = None if node.annotation is None or many else node.annotation.annotation
            self._bind(node, Value(annotation=annotation))
        elif isinstance(node, cst.Assign):
            for target in node.targets:
                self._assign(target.target, node.value)
        elif isinstance(node, (cst.AnnAssign, cst.NamedExpr)):
            annotation = node.annotation.annotation if isinstance(node, cst.AnnAssign) else None
            self._bind(node.target, Value(node.value, annotation))
        elif isinstance(node, cst.Name):
            self._own(node)
        elif isinstance(node, cst.Attribute) and self._contexts.get(node) is ExpressionContext.STORE:
            self._store(node)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """Leave a class or a function."""
        if isinstance(original_node, cst.ClassDef):
            self._classes.pop()
        elif isinstance(original_node, (cst.FunctionDef, cst.Lambda)):
            self._stack.pop()
            if isinstance(original_node, cst.FunctionDef):
                self._classes.pop()

    def _enter(self, node: cst.ClassDef | cst.FunctionDef | cst.Lambda) -> None:
        if isinstance(node, cst.ClassDef):
            self._classes.append(node)
        elif isinstance(node, cst.FunctionDef):
            self._enter_function(node)
        else:
            self._stack.append(self._inner(node.params))

    def _enter_function(self, node: cst.FunctionDef) -> None:
        owner = self._classes[-1]
        self._classes.append(None)
        if owner is None:
            self._stack.append(self._inner(node.params))
            return
        decorators = {_last_name(decorator.decorator) for decorator in node.decorators}
        if decorators.intersection(_PROPERTIES):
            annotation = node.returns.annotation if node.returns else None
            self.attributes[owner][node.name.value].append(Value(annotation=annotation))
        else:
            self.methods[owner][node.name.value] = node
        first = [*node.params.posonly_params, *node.params.params][:1]
        is_method = first and not decorators.intersection({"staticmethod", "classmethod"})
        self._stack.append((owner, first[0].name.value) if is_method else (None, ""))

    def _inner(self, params: cst.Parameters) -> tuple[cst.ClassDef | None, str]:
        """Return the `self` of a function in a method: that of the method, unless a parameter has its name."""
        owner, name = self._stack[-1]
        taken = any(
            param.name.value == name for param in (*params.posonly_params, *params.params, *params.kwonly_params)
        )
        return (None, "") if taken else (owner, name)

    def _assign(self, target: cst.BaseExpression, value: cst.BaseExpression) -> None:
        pairs = (cst.Tuple, cst.List)
        if not isinstance(target, pairs):
            self._bind(target, Value(value))
        elif isinstance(value, pairs) and len(value.elements) == len(target.elements):
            starred = any(isinstance(one, cst.StarredElement) for one in (*target.elements, *value.elements))
            for inner, one in () if starred else zip(target.elements, value.elements, strict=True):
                self._assign(inner.value, one.value)

    def _bind(self, target: cst.CSTNode, value: Value) -> None:
        if isinstance(target, cst.Attribute):
            self._stored[target] = value
            return
        self.names[target] = value
        if isinstance(target, cst.Name) and (owner := self._classes[-1]) is not None:
            self.attributes[owner][target.value].append(value)

    def _own(self, node: cst.Name) -> None:
        owner, name = self._stack[-1]
        if owner is not None and node.value == name:
            self.selves[node] = owner

    def _store(self, node: cst.Attribute) -> None:
        """Note what is stored in an attribute of `self`; nothing is known of `for self.x in …`."""
        owner, name = self._stack[-1]
        if owner is not None and isinstance(node.value, cst.Name) and node.value.value == name:
            self.attributes[owner][node.attr.value].append(self._stored.get(node, Value()))


def _last_name(node: cst.BaseExpression) -> str:
    if isinstance(node, cst.Call):
        return _last_name(node.func)
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""
