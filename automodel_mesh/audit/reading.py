"""Reads the statements of a module in their order, with what is true and what is handled where each of them runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh.audit.calls import Calls
from automodel_mesh.audit.conditions import UNSURE, All, Condition, Has, Not, any_of, is_about_torch, sure_part
from automodel_mesh.audit.expressions import guarded
from automodel_mesh.audit.handlers import error_name, fails_only_without_torch, handlers, imported_from_torch
from automodel_mesh.audit.values import (
    Context,
    Handler,
    Instance,
    OwnClass,
    OwnFunction,
    OwnInstance,
    OwnModule,
    Scope,
    Torch,
    TorchVersion,
    Truth,
    Value,
    truth_of,
)

if TYPE_CHECKING:
    from automodel_mesh.audit.package import Package

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)
_LINES_OF_A_CHECK: Final = 30
"""Longer functions are not read as checks of the release."""

_ENVIRONMENT: Final = re.compile(r"torch|version|avail|support|has|compat|install|import|spec", re.IGNORECASE)
"""What a condition mentions that may be about the release, or other packages."""

_EXITS: Final = frozenset({"exit", "_exit", "skip", "fail"})


class Reader(Calls):
    """Reads a module.

    Args:
        package: the code that it is part of.
        name: its dotted name.
        tree: its text, parsed.
        is_package: whether it is an `__init__.py`.

    Attributes:
        tree: its text, parsed.
        scope: its names, after `read`.
        uses: its uses of torch, after `finish`.
    """

    def __init__(self, package: Package, name: str, tree: ast.Module, *, is_package: bool) -> None:
        super().__init__(package, name)
        self.scope = Scope()
        self.tree = tree
        self._folder = name if is_package else name.rpartition(".")[0]
        self._later: list[tuple[OwnFunction, Context]] = []
        self._returns: list[tuple[Condition, Value]] = []
        self._annotations_run = not any(
            isinstance(node, ast.ImportFrom)
            and node.module == "__future__"
            and any(one.name == "annotations" for one in node.names)
            for node in tree.body
        )

    def read(self) -> None:
        """Read what runs when the module is imported."""
        self._block(self.tree.body, Context(self.scope))

    def finish(self) -> None:
        """Read the bodies of its functions, which run later, when all names of the module are there."""
        while self._later:
            function, context = self._later.pop(0)
            body = function.node.body
            if isinstance(body, list):
                self._block(body, context)
            else:
                self.value(body, context)

    # --- statements

    def _block(self, body: Sequence[ast.stmt], context: Context) -> Context | None:
        """Read statements; return the context after them, `None` if they never end normally."""
        for node in body:
            after = self._statement(node, context)
            if after is None:
                return None
            context = after
        return context

    def _statement(self, node: ast.stmt, context: Context) -> Context | None:
        read: Callable[[Any, Context], Context | None] | None = getattr(self, f"_{type(node).__name__.lower()}", None)
        if read is not None:
            return read(node, context)
        self._children(node, context)
        return context

    def _assign(self, node: ast.Assign, context: Context) -> Context:
        value = self.value(node.value, context)
        for target in node.targets:
            self._bind(target, value, context)
        return context

    def _assert(self, node: ast.Assert, context: Context) -> Context:
        condition = self.condition(node.test, context)
        narrowed = replace(context, scope=self.narrowed(node.test, context.scope))
        return guarded(narrowed, condition, f"assert, line {node.lineno}")

    def _return(self, node: ast.Return, context: Context) -> None:
        found = self.value(node.value, context)
        self._returns.append((All(tuple(one.condition for one in context.guards)), found))

    def _raise(self, node: ast.stmt, context: Context) -> None:
        self._children(node, context)

    _continue = _break = _raise

    def _expr(self, node: ast.Expr, context: Context) -> Context | None:
        self.value(node.value, context)
        match node.value:
            case ast.Call(func=ast.Attribute(attr=name)) if name in _EXITS:
                return None
            case _:
                return context

    def _children(self, node: ast.AST, context: Context) -> None:
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self.value(part, context)
            elif isinstance(part, ast.stmt):
                self._statement(part, context)
            elif not isinstance(part, (ast.operator, ast.expr_context)):
                self._children(part, context)  # the cases of `match`

    def _import(self, node: ast.Import, context: Context) -> Context:
        for one in node.names:
            root = one.name.partition(".")[0]
            path = one.name if one.asname else root
            value: Value = None
            if root == "torch":
                self.use(one.name, "import", node, context)
                value = Torch(path)
            elif self.package.has(one.name):
                value = OwnModule(path)
            context.scope.names[one.asname or root] = value
        return context

    def _importfrom(self, node: ast.ImportFrom, context: Context) -> Context:
        module = self._absolute(node)
        for one in node.names:
            path = f"{module}.{one.name}"
            if one.name == "*":
                if module.partition(".")[0] == "torch":
                    self.use(module, "import", node, context)
            elif module.partition(".")[0] != "torch":
                context.scope.names[one.asname or one.name] = self.package.exported(module, one.name)
            elif path in {"torch.__version__", "torch.version"}:
                context.scope.names[one.asname or one.name] = TorchVersion()
            else:
                self.use(path, "import", node, context)
                context.scope.names[one.asname or one.name] = Torch(path)
        return context

    def _absolute(self, node: ast.ImportFrom) -> str:
        """Return the dotted name of the module that is imported from."""
        if not node.level:
            return node.module or ""
        parts = self._folder.split(".")
        folder = ".".join(parts[: len(parts) - node.level + 1])
        return ".".join(filter(None, (folder, node.module)))

    def _bind(self, target: ast.expr, value: Value, context: Context) -> None:
        match target:
            case ast.Name(id=name):
                context.scope.names[name] = value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                for part in parts:
                    self._bind(part, None, context)
            case ast.Starred(value=inner):
                self._bind(inner, None, context)
            case ast.Attribute(value=base):
                self.value(base, context)
            case _:
                self._children(target, context)

    def _annassign(self, node: ast.AnnAssign, context: Context) -> Context:
        if self._annotations_run and context.when == "import":
            self.value(node.annotation, context)
        value = self.value(node.value, context)
        declared = self.declared(node.annotation, context)
        if node.value is not None or declared is not None:
            self._bind(node.target, declared if value is None else value, context)
        return context

    def declared(self, annotation: ast.expr | None, context: Context) -> Value:
        """Return what is known of a value by its annotation, which is not recorded as a use."""
        match annotation:
            case ast.Constant(value=str(text)):
                try:
                    return self.declared(ast.parse(text, mode="eval").body, context)
                except SyntaxError:
                    return None
            case ast.BinOp(op=ast.BitOr(), left=left, right=ast.Constant(value=None)):
                return self.declared(left, context)
            case ast.Subscript(value=ast.Name(id="Optional") | ast.Attribute(attr="Optional"), slice=inner):
                return self.declared(inner, context)
            case ast.Name() | ast.Attribute():
                self.silent += 1
                found = self.value(annotation, context)
                self.silent -= 1
                return Instance(found.path) if isinstance(found, Torch) else None
            case _:
                return None

    # --- branches

    def _if(self, node: ast.If, context: Context) -> Context | None:
        condition = self.condition(node.test, context)
        text = f"if, line {node.lineno}"
        then_scope, else_scope = self.narrowed(node.test, context.scope).fork(), context.scope.fork()
        is_narrowed = then_scope.names != context.scope.names  # by an `isinstance`, which no release decides
        inside = replace(context, scope=then_scope, when="call" if _is_main(node.test) else context.when)
        then = self._block(node.body, guarded(inside, sure_part(condition) if is_narrowed else condition, text))
        other = self._block(node.orelse, guarded(replace(context, scope=else_scope), Not(condition), text))
        if then is None and other is None:
            return None
        if then is None or other is None:
            context.scope.names.update((else_scope if then is None else then_scope).names)
            usual = not is_about_torch(condition) and not _ENVIRONMENT.search(ast.unparse(node.test))
            if context.when == "call" and usual:
                return context  # arguments are checked: what follows is what the function usually does
            return guarded(context, Not(condition) if then is None else condition, text)
        context.scope.merge(then_scope, else_scope, condition)
        return context

    def _try(self, node: ast.Try, context: Context) -> Context | None:
        catching = handlers(node)
        scope = context.scope.fork()
        before = len(self.uses)
        inside = replace(context, scope=scope, handlers=(*context.handlers, *catching))
        returned = len(self._returns)
        after = self._block(node.body, inside)
        succeeds = self._succeeds(node, before)
        self._returns[returned:] = [(All((where, succeeds)), value) for where, value in self._returns[returned:]]
        text = f"try, line {node.lineno}"
        if after is not None:
            after = self._block(node.orelse, guarded(replace(context, scope=scope), succeeds, text))
        ended: list[Scope] = []
        for one in node.handlers:
            other = context.scope.fork()
            if self._block(one.body, guarded(replace(context, scope=other), Not(succeeds), text)) is not None:
                ended.append(other)
        if after is not None and ended:
            context.scope.merge(scope, ended[0], succeeds)
        else:
            context.scope.names.update((scope if after is not None or not ended else ended[0]).names)
        if self._block(node.finalbody, context) is None or (after is None and not ended):
            return None
        if not ended and catching:
            return guarded(context, succeeds, text)
        return guarded(context, Not(succeeds), text) if after is None else context

    def _succeeds(self, node: ast.Try, before: int) -> Condition:
        """Return the condition that a `try` raises nothing: its names of torch exist, if it does nothing else."""
        tried = [Has(use.path) for use in self.uses[before:] if use.way in {"import", "attribute"}]
        if self.silent:
            tried = [Has(path) for path in imported_from_torch(node.body)]
        return All((*tried, *(() if fails_only_without_torch(node.body) else (UNSURE,))))

    def _with(self, node: ast.With | ast.AsyncWith, context: Context) -> Context | None:
        inside = context
        for item in node.items:
            self.value(item.context_expr, context)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, None, context)
            match item.context_expr:
                case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
                    handler = Handler(frozenset(map(error_name, args)), node.lineno)
                    inside = replace(inside, handlers=(*inside.handlers, handler))
                case _:
                    pass
        after = self._block(node.body, inside)
        return (
            context if after is None and inside is not context else after and replace(after, handlers=context.handlers)
        )

    _asyncwith = _with

    def _for(self, node: ast.For | ast.AsyncFor | ast.While, context: Context) -> Context:
        scope = context.scope.fork()
        inside = replace(context, scope=scope)
        if isinstance(node, ast.While):
            inside = guarded(inside, self.condition(node.test, context), f"while, line {node.lineno}")
        else:
            self.value(node.iter, context)
            self._bind(node.target, None, inside)
        self._block(node.body, inside)
        self._block(node.orelse, context)
        context.scope.merge(scope, context.scope.fork(), UNSURE)
        return context

    _asyncfor = _while = _for

    # --- functions and classes

    def _functiondef(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, context: Context, of: OwnClass | None = None
    ) -> Context:
        inside = context
        for decorator in node.decorator_list:
            condition = truth_of(self.value(decorator, context))
            if isinstance(decorator, ast.Call) and condition is not UNSURE:
                inside = guarded(inside, condition, f"decorator, line {decorator.lineno}")
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.value(default, context)
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if self._annotations_run:
            others = (node.args.vararg, node.args.kwarg)
            for annotation in [*(other.annotation for other in (*parameters, *others) if other), node.returns]:
                self.value(annotation, context)
        scope = Scope(context.scope)
        for one in parameters:
            scope.names[one.arg] = self.declared(one.annotation, context)
        if of is not None and parameters:
            scope.names[parameters[0].arg] = OwnInstance(of)
        function = OwnFunction(node, self, scope)
        context.scope.names[node.name] = function
        if not self.silent:
            self._later.append((function, replace(inside, scope=scope, handlers=(), when="call")))
        return context

    _asyncfunctiondef = _functiondef

    def _lambda(self, node: ast.Lambda, context: Context) -> Value:
        scope = Scope(context.scope)
        scope.names.update((one.arg, None) for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))
        function = OwnFunction(node, self, scope)
        if not self.silent:
            self._later.append((function, replace(context, scope=scope, handlers=(), when="call")))
        return function

    def _classdef(self, node: ast.ClassDef, context: Context) -> Context:
        for part in (*node.decorator_list, *node.bases, *(one.value for one in node.keywords)):
            self.value(part, context)
        own = OwnClass()
        context.scope.names[node.name] = own
        inside = replace(context, scope=Scope(context.scope, of_class=True))
        for statement in node.body:
            if isinstance(statement, _Function):
                self._functiondef(statement, inside, own)
            else:
                self._statement(statement, inside)
        own.attributes.update(inside.scope.names)
        self._attributes_of_self(node, own, inside)
        return context

    def _attributes_of_self(self, node: ast.ClassDef, own: OwnClass, context: Context) -> None:
        """Find what the methods assign to `self`; what they assign differently is not known."""
        self.silent += 1
        found: dict[str, list[Value]] = {}
        for method in (one for one in node.body if isinstance(one, _Function)):
            scope = Scope(context.scope)
            for one in (*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs):
                scope.names[one.arg] = self.declared(one.annotation, context)
            for statement in ast.walk(method):
                match statement:
                    case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
                        found.setdefault(name, []).append(self.value(value, replace(context, scope=scope)))
                    case ast.AnnAssign(target=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                        declared = self.declared(statement.annotation, replace(context, scope=scope))
                        found.setdefault(name, []).append(declared)
                    case _:
                        pass
        self.silent -= 1
        for name, values in found.items():
            kinds = {one.path for one in values if isinstance(one, Instance)}
            if len(kinds) == 1 and all(isinstance(one, Instance) for one in values):
                own.attributes[name] = values[0]

    def _told(self, function: OwnFunction) -> Value:
        node = function.node
        if isinstance(node, ast.Lambda) or (node.end_lineno or 0) - node.lineno > _LINES_OF_A_CHECK:
            return None
        told = self.package.told
        if node not in told:
            told[node] = None  # of functions that call each other
            told[node] = _told(function.reader.returned(node, function.scope))
        return told[node]

    def returned(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> Sequence[tuple[Condition, Value]]:
        """Read a function without recording its uses, and return what it returns, each with the condition for that."""
        outside, self._returns = self._returns, []
        self.silent += 1
        self._block(node.body, Context(scope.fork(), when="call"))
        self.silent -= 1
        returns, self._returns = self._returns, outside
        return returns


def _told(returns: Sequence[tuple[Condition, Value]]) -> Value:
    values = [value for _, value in returns]
    if values and all(isinstance(value, TorchVersion) for value in values):
        return TorchVersion()
    if not any(isinstance(value, Truth) for value in values) and len(returns) < 2:
        return None
    return Truth(any_of(All((where, truth_of(value))) for where, value in returns))


def _is_main(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and test.left.id == "__name__"
