"""Reads expressions: what they refer to, which uses of torch they contain, and which conditions they state."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from automodel_mesh.audit.conditions import ALWAYS, NEVER, UNSURE, All, Condition, Has, Not, Takes, any_of, compared
from automodel_mesh.audit.torch_names import load_names
from automodel_mesh.audit.made_meshes import made_by_call, made_mesh, strings
from automodel_mesh.audit.types_of_torch import type_of
from automodel_mesh.audit.values import (
    Context,
    Guard,
    Instance,
    Known,
    OwnClass,
    OwnFunction,
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

if TYPE_CHECKING:
    from automodel_mesh.audit.package import Package

_VERSION_MAKERS: Final = frozenset(
    {"parse", "Version", "PkgVersion", "LooseVersion", "StrictVersion", "TorchVersion", "parse_version"}
)
_VERSION_OF_TORCH: Final = re.compile(r"_?(get_)?(pytorch|torch)_version(_base|_str|_parsed)?", re.IGNORECASE)
_CHECKS_VERSION: Final = re.compile(r"torch", re.IGNORECASE)
_AT_LEAST: Final = re.compile(r"greater_or_equal|at_least|min_version|(^|_)(ge|gte|min)(_|$)|geq|available|newer")
_BELOW: Final = re.compile(r"less_than|below|older|(^|_)(lt|before)(_|$)")
_IN_NAME: Final = re.compile(
    r"(?P<kind>.*torch.*?(greater_or_equal|at_least|ge|gte|geq|>=|less_than|lt)\w*?)_?v?(?P<major>\d)_?(?P<minor>\d+)(_\d+)?$"
)
_SIGNS: Final = {
    ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=", ast.GtE: ">=", ast.Gt: ">",
}  # fmt: skip
_GETATTR: Final = frozenset({"getattr", "hasattr"})
_MODULE_FINDERS: Final = frozenset({"importlib.util.find_spec", "find_spec"})
_IMPORTERS: Final = frozenset({"importlib.import_module", "import_module", "__import__", "pytest.importorskip"})


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
        match node:
            case None:
                return None
            case ast.Name(id=name):
                return self._name(name, context)
            case ast.Constant(value=constant):
                return Known(constant)
            case ast.Attribute():
                return self._attribute(node, context, outermost=True)
            case ast.Call():
                return self._call(node, context)
            case ast.Subscript():
                return self._subscript(node, context)
            case ast.Compare():
                return self._compare(node, context)
            case ast.BoolOp():
                return self._bool_op(node, context)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Truth(Not(truth_of(self.value(operand, context))))
            case ast.IfExp():
                return self._if_expression(node, context)
            case ast.NamedExpr(target=target, value=inner):
                context.scope.names[target.id] = found = self.value(inner, context)
                return found
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                values = [self.value(part, context) for part in parts]
                constant = all(isinstance(one, Known) for one in values)
                return Known(tuple(one.value for one in values if isinstance(one, Known))) if constant else None
            case ast.Lambda():
                return self._lambda(node, context)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node, context)
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.value(part, context)
                return None

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

    def _name(self, name: str, context: Context) -> Value:
        if name == "TYPE_CHECKING":
            return Truth(NEVER)
        if context.scope.look_up(name) is None and (condition := _in_name(name)) is not None:
            return Truth(condition)
        return context.scope.look_up(name)

    def _attribute(self, node: ast.Attribute, context: Context, *, outermost: bool) -> Value:
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
            self.use(f"{of}.{node.attr}", "attribute", node, context, by_name=True)
        if isinstance(found, Torch) and isinstance(node.ctx, ast.Load):
            condition = _in_name(node.attr)
            return found if condition is None else Truth(condition)
        return found

    def _member(self, base: Value, name: str) -> Value:
        """Return what is known of an attribute of a value."""
        match base:
            case Torch("torch", _) if name in {"__version__", "version"}:
                return TorchVersion()
            case Torch(path, given):
                return Torch(f"{path}.{name}", given)
            case TorchVersion():
                return base
            case OwnModule(module):
                return self.package.exported(module, name)
            case OwnInstance(of):
                return of.attributes.get(name)
            case OwnClass():
                return base.attributes.get(name)
            case Instance(path):
                made = type_of(f"{path}.{name}", called=False)
                return Instance(made) if made else None
            case Parameters() if name == "parameters":
                return base
            case _:
                return None

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

    def _bool_op(self, node: ast.BoolOp, context: Context) -> Value:
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

    def _if_expression(self, node: ast.IfExp, context: Context) -> Value:
        condition = self.condition(node.test, context)
        text = f"if, line {node.test.lineno}"
        then = replace(context, scope=self.narrowed(node.test, context.scope))
        one = self.value(node.body, _guarded(then, condition, text))
        two = self.value(node.orelse, _guarded(context, Not(condition), text))
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

    # --- calls

    def _call(self, node: ast.Call, context: Context) -> Value:
        name = _last_name(node.func)
        function = self.value(node.func, context) if not isinstance(node.func, ast.Attribute) else None
        owner: Value = None
        if isinstance(node.func, ast.Attribute):
            function = self._attribute(node.func, context, outermost=True)
            self.silent += 1
            owner = self.value(node.func.value, context)
            self.silent -= 1
        arguments = [self.value(part, context) for part in node.args]
        for keyword in node.keywords:
            arguments.append(self.value(keyword.value, context))
        special = self._special(node, name, owner, function, arguments, context)
        if special is not None:
            return special
        if isinstance(function, Torch):
            self.use(function.path, "call", node, context, given=function.given)
            made = type_of(function.path, called=True)
            return made_by_call(made, name, node, None) if made else None
        if isinstance(owner, Instance):
            path = f"{owner.path}.{name}"
            self.use(path, "call", node, context, bound=True, receiver=owner)
            made = type_of(path, called=True)
            return made_by_call(made, name, node, owner) if made else None
        if isinstance(function, OwnClass):
            return OwnInstance(function)
        return None

    def _special(
        self, node: ast.Call, name: str, owner: Value, function: Value, arguments: Sequence[Value], context: Context
    ) -> Value:
        """Return the value of calls that ask for versions, names or modules."""
        first = arguments[0] if arguments else None
        second = arguments[1] if len(arguments) > 1 else None
        if name in _GETATTR and isinstance(second, Known) and isinstance(second.value, str):
            return self._getattr(node, name, first, second.value, has_default=len(arguments) > 2, context=context)
        if name in {"find_spec", "import_module", "__import__", "importorskip"} and isinstance(first, Known):
            return self._module(node, name, first.value, context)
        if name == "version" and first == Known("torch"):  # importlib.metadata
            return TorchVersion()
        if name == "signature" and isinstance(first, Torch):
            return Parameters(first.path)
        if name in _VERSION_MAKERS and len(arguments) == 1 and isinstance(first, (Known, TorchVersion)):
            return first
        if isinstance(owner, TorchVersion) or TorchVersion() in arguments:
            return TorchVersion() if name not in {"startswith", "print", "warn"} else None
        if name in {"tuple", "list"} and self._mentions_version(node, context):
            return TorchVersion()
        if isinstance(function, OwnFunction) and (told := self._returned(function)) is not None:
            return told
        if _VERSION_OF_TORCH.fullmatch(name):
            return TorchVersion()
        condition = _checked_version(name, arguments)
        if condition is not None:
            return Truth(condition)
        return None

    def _getattr(
        self, node: ast.Call, name: str, first: Value, attribute: str, *, has_default: bool, context: Context
    ) -> Value:
        path, by_name = "", False
        if isinstance(first, (Torch, Instance)):
            path = f"{first.path}.{attribute}"
        elif first is None and (of := self._told_by(attribute)):
            path, by_name = f"{of}.{attribute}", True
        elif isinstance(first, TorchVersion):
            return first
        if not path:
            return None
        if name == "hasattr":
            return Truth(Has(path))
        if not has_default:
            self.use(path, "attribute", node, context, by_name=by_name)
        return Torch(path, Has(path) if has_default else ALWAYS) if isinstance(first, Torch) else None

    def _module(self, node: ast.Call, name: str, path: object, context: Context) -> Value:
        if not isinstance(path, str) or path.partition(".")[0] != "torch":
            return None
        if name == "find_spec":
            return Truth(Has(path))
        if name != "importorskip":
            self.use(path, "import", node, context)
        return Torch("torch" if name == "__import__" else path)

    def _mentions_version(self, node: ast.AST, context: Context) -> bool:
        self.silent += 1
        found = any(
            isinstance(part, ast.Attribute) and isinstance(self.value(part, context), TorchVersion)
            for part in ast.walk(node)
        )
        self.silent -= 1
        return found

    def _returned(self, function: OwnFunction) -> Value:
        raise NotImplementedError

    def _lambda(self, node: ast.Lambda, context: Context) -> Value:
        raise NotImplementedError

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, context: Context
    ) -> Value:
        context = replace(context, scope=Scope(context.scope))
        for part in node.generators:
            self.value(part.iter, context)
            for target in ast.walk(part.target):
                if isinstance(target, ast.Name):
                    context.scope.names[target.id] = None
            for test in part.ifs:
                context = _guarded(context, self.condition(test, context), f"if, line {test.lineno}")
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for inner in parts:
            self.value(inner, context)
        return None


def _guarded(context: Context, condition: Condition, text: str) -> Context:
    return replace(context, guards=(*context.guards, Guard(condition, text)))


guarded: Final[Callable[[Context, Condition, str], Context]] = _guarded


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _checked_version(name: str, arguments: Iterable[Value]) -> Condition | None:
    """Read calls such as `is_torch_version(">=", "2.9")` and `is_torch_greater_or_equal("2.9")`, by their names."""
    texts = [one.value for one in arguments if isinstance(one, Known) and isinstance(one.value, (str, tuple))]
    if texts and texts[0] in {"torch", "pytorch"}:
        texts, name = texts[1:], f"torch_{name}"
    if not _CHECKS_VERSION.search(name) or not texts:
        return _in_name(name)
    if len(texts) > 1 and texts[0] in _SIGNS.values():
        return compared(str(texts[0]), texts[1])
    text = str(texts[0])
    if (sign := re.match(r"[<>=!]=?", text)) is not None:
        return compared(sign.group(), text[sign.end() :].strip())
    if _BELOW.search(name):
        return compared("<", texts[0])
    return compared(">=", texts[0]) if _AT_LEAST.search(name) else None


@cache
def _in_name(name: str) -> Condition | None:
    """Read names such as `is_torch_greater_or_equal_than_2_6` and `TORCH_GE_2_9`."""
    match = _IN_NAME.fullmatch(name.lower())
    if match is None:
        return None
    sign = "<" if re.search(r"less_than|_lt", match["kind"]) else ">="
    return compared(sign, (int(match["major"]), int(match["minor"])))
