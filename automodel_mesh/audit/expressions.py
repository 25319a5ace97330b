"""Reads expressions: what they refer to, which uses of torch they contain, and which conditions they state."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh.audit.conditions import ALWAYS, NEVER, UNSURE, All, Condition, Not, Takes, any_of, compared
from automodel_mesh.audit.made_meshes import made_mesh
from automodel_mesh.audit.patterns import strings
from automodel_mesh.audit.torch_names import load_names
from automodel_mesh.audit.types_of_torch import type_of
from automodel_mesh.audit.values import (
    Context,
    Guard,
    Instance,
    Known,
    OwnClass,
    OwnInstance,
    OwnModule,
    Parameters,
    Scope,
    Torch,
    TorchVersion,
    Truth,
    Use,
    Value,
    Way,
    truth_of,
)
from automodel_mesh.audit.version_checks import named_after

if TYPE_CHECKING:
    from automodel_mesh.audit.package import Package

_SIGNS: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.GtE: ">=",
    ast.Gt: ">",
}


def guarded(context: Context, condition: Condition, text: str) -> Context:
    """Return the context in which a condition is true besides."""
    return replace(context, guards=(*context.guards, Guard(condition, text)))


class Expressions:
    """Reads the expressions of a module. `Reader` adds the statements.

    Args:
        package: the code that the module is part of.
        name: the module's dotted name.
    """

    def __init__(self, package: Package, name: str) -> None:
        self.package = package
        self.name = name
        self.uses: list[Use] = []
        self.silent = 0

    # --- values

    def value(self, node: ast.expr | None, context: Context) -> Value:
        """Read an expression: record its uses of torch, and return what is known of its value."""
        if node is None:
            return None
        read: Callable[[Any, Context], Value] = getattr(self, f"_{type(node).__name__.lower()}", self._other)
        return read(node, context)

    def _other(self, node: ast.expr, context: Context) -> Value:
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self.value(part, context)
        return None

    def _constant(self, node: ast.Constant, context: Context) -> Value:  # noqa: ARG002 - as those of other nodes
        return Known(node.value)

    def _unaryop(self, node: ast.UnaryOp, context: Context) -> Value:
        value = self.value(node.operand, context)
        return Truth(Not(truth_of(value))) if isinstance(node.op, ast.Not) else None

    def _namedexpr(self, node: ast.NamedExpr, context: Context) -> Value:
        context.scope.names[node.target.id] = found = self.value(node.value, context)
        return found

    def _tuple(self, node: ast.Tuple | ast.List, context: Context) -> Value:
        values = [self.value(part, context) for part in node.elts]
        constants = [one.value for one in values if isinstance(one, Known)]
        return Known(tuple(constants)) if len(constants) == len(values) else None

    _list = _tuple

    def condition(self, node: ast.expr, context: Context) -> Condition:
        """Read an expression, and return the condition that it is true."""
        return truth_of(self.value(node, context))

    def record(self, use: Use) -> None:
        """Record a use of torch."""
        if not self.silent:
            self.uses.append(use)

    def use(
        self, path: str, way: Way, node: ast.AST, context: Context, *, given: Condition = ALWAYS, **more: object
    ) -> None:
        """Record a use of a name, under the condition that the variable has it."""
        if given is not ALWAYS:
            context = replace(context, guards=(*context.guards, Guard(given, "the check where it is imported")))
        self.record(Use(path, way, node, context, **more))  # type: ignore[arg-type]

    def _name(self, node: ast.Name, context: Context) -> Value:
        name = node.id
        if name == "TYPE_CHECKING":
            return Truth(NEVER)
        if context.scope.look_up(name) is None and (condition := named_after(name)) is not None:
            return Truth(condition)
        return context.scope.look_up(name)

    def _attribute(self, node: ast.Attribute, context: Context, *, outermost: bool = True) -> Value:
        inner = node.value
        if isinstance(inner, ast.Attribute):
            base = self._attribute(inner, context, outermost=False)
        else:
            base = self.value(inner, context)
        found = self._member(base, node.attr)
        if isinstance(found, Torch) and outermost:
            self.use(found.path, "attribute", node, context, given=found.given)
        elif isinstance(base, Torch) and not isinstance(found, Torch) and not isinstance(found, TorchVersion):
            self.use(base.path, "attribute", inner, context, given=base.given)
        if isinstance(base, Instance):
            self.use(f"{base.path}.{node.attr}", "attribute", node, context)
        elif base is None and (of := self._told_by(node.attr)):
            self.use(f"{of}.{node.attr}", "attribute", node, context)
        condition = named_after(node.attr) if found is None or isinstance(found, Torch) else None
        return found if condition is None else Truth(condition)

    def _member(self, base: Value, name: str) -> Value:
        """Return what is known of an attribute of a value."""
        found: Value = None
        match base:
            case Torch("torch", _) if name in {"__version__", "version"}:
                found = TorchVersion()
            case Torch(path, given):
                found = Torch(f"{path}.{name}", given)
            case TorchVersion():
                found = base
            case OwnModule(module):
                found = self.package.exported(module, name)
            case OwnInstance(of):
                found = of.attributes.get(name)
            case OwnClass():
                found = base.attributes.get(name)
            case Instance(path) if made := type_of(f"{path}.{name}", called=False):
                found = Instance(made)
            case Parameters() if name == "parameters":
                found = base
            case _:
                pass
        return found

    def _told_by(self, name: str) -> str:
        """Return the class that a name tells; empty if the code that is read defines it too."""
        return "" if name in self.package.own_names else load_names().telling.get(name, "")

    def _subscript(self, node: ast.Subscript, context: Context) -> Value:
        base = self.value(node.value, context)
        self.value(node.slice, context)
        if isinstance(base, TorchVersion):
            return base
        if isinstance(base, Instance) and isinstance(node.ctx, ast.Load):
            self.use(f"{base.path}.__getitem__", "subscript", node, context, receiver=base)
            made = type_of(f"{base.path}.__getitem__", called=True)
            return made_mesh(made, "slice", strings(node.slice), base) if made else None
        return None

    # --- conditions

    def _compare(self, node: ast.Compare, context: Context) -> Value:
        values = [self.value(part, context) for part in (node.left, *node.comparators)]
        if len(values) != 2:
            return None
        left, right = values
        match node.ops[0], left, right:
            case (ast.Is() | ast.IsNot() | ast.Eq() | ast.NotEq()) as sign, value, Known(None) if value is not None:
                negated = Not(truth_of(value)) if isinstance(value, (Torch, Truth, Known)) else UNSURE
                return Truth(negated if isinstance(sign, (ast.Is, ast.Eq)) else Not(negated))
            case sign, TorchVersion(), Known(constant) if type(sign) in _SIGNS:
                return Truth(compared(_SIGNS[type(sign)], constant))
            case sign, Known(constant), TorchVersion() if type(sign) in _SIGNS:
                return Truth(compared(_SIGNS[type(sign)], constant, swapped=True))
            case (ast.In() | ast.NotIn()) as sign, Known(str(name)), Parameters(path):
                takes = Takes(path, name)
                return Truth(takes if isinstance(sign, ast.In) else Not(takes))
            case _:
                return None

    def _boolop(self, node: ast.BoolOp, context: Context) -> Value:
        conditions: list[Condition] = []
        is_and = isinstance(node.op, ast.And)
        for part in node.values:
            condition = self.condition(part, context)
            conditions.append(condition)
            holds = condition if is_and else Not(condition)
            guard = Guard(holds, f"the check before it, line {part.lineno}")
            scope = self.narrowed(part, context.scope) if is_and else context.scope
            context = replace(context, guards=(*context.guards, guard), scope=scope)
        return Truth(All(tuple(conditions)) if is_and else any_of(conditions))

    def _ifexp(self, node: ast.IfExp, context: Context) -> Value:
        condition = self.condition(node.test, context)
        text = f"if, line {node.test.lineno}"
        then = replace(context, scope=self.narrowed(node.test, context.scope))
        one = self.value(node.body, guarded(then, condition, text))
        two = self.value(node.orelse, guarded(context, Not(condition), text))
        scope, first, second = Scope(), Scope(), Scope()
        first.names["x"], second.names["x"] = one, two
        scope.merge(first, second, condition)
        return scope.names["x"]

    def narrowed(self, test: ast.expr, scope: Scope) -> Scope:
        """Return the scope where `isinstance(name, class of torch)` is true."""
        match test:
            case ast.BoolOp(op=ast.And(), values=parts):
                for part in parts:
                    scope = self.narrowed(part, scope)
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), of]):
                self.silent += 1
                kind = self.value(of, Context(scope))
                self.silent -= 1
                scope = scope.fork()
                scope.names[name] = Instance(kind.path) if isinstance(kind, Torch) else None
            case _:
                pass
        return scope

    def _listcomp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, context: Context) -> Value:
        context = replace(context, scope=Scope(context.scope))
        versions = [self.value(part.iter, context) == TorchVersion() for part in node.generators]
        for part in node.generators:
            for target in ast.walk(part.target):
                if isinstance(target, ast.Name):
                    context.scope.names[target.id] = None
            for test in part.ifs:
                context = guarded(context, self.condition(test, context), f"if, line {test.lineno}")
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for inner in parts:
            self.value(inner, context)
        return TorchVersion() if any(versions) else None  # such as its numbers

    _setcomp = _generatorexp = _dictcomp = _listcomp
