"""Reads `try` statements: which errors they handle, and whether anything but a missing name of torch can raise one."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence

from automodel_mesh.audit.values import Handler


def handlers(node: ast.Try) -> tuple[Handler, ...]:
    """Return the handlers of a `try`, without those that always raise, which handle nothing."""
    return tuple(Handler(_errors(one), one.lineno) for one in node.handlers if not _raises(one.body))


def error_name(node: ast.expr) -> str:
    """Return the last name of a class of errors."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def fails_only_without_torch(body: Sequence[ast.stmt]) -> bool:
    """Tell whether statements raise errors only for names of torch that are missing."""
    return all(map(_fails_only_without_torch, body))


def imported_from_torch(body: Iterable[ast.stmt]) -> list[str]:
    """Return the dotted paths of what some statements import from torch."""
    found: list[str] = []
    for node in body:
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{one.name}" for one in node.names]
    return [path for path in found if path.partition(".")[0] == "torch"]


def _raises(body: Sequence[ast.stmt]) -> bool:
    return bool(body) and isinstance(body[-1], ast.Raise)


def _errors(handler: ast.ExceptHandler) -> frozenset[str]:
    match handler.type:
        case None:
            return frozenset({"BaseException"})
        case ast.Tuple(elts=parts):
            return frozenset(map(error_name, parts))
        case one:
            return frozenset({error_name(one)})


def _fails_only_without_torch(node: ast.stmt) -> bool:
    match node:
        case ast.Import(names=names):
            return all(_always_there(one.name) for one in names)
        case ast.ImportFrom(level=0, module=str(module)):
            return _always_there(module)
        case ast.Assign(value=value) | ast.AnnAssign(value=value) | ast.Expr(value=value) | ast.Return(value=value):
            return value is None or not any(isinstance(part, (ast.Call, ast.Subscript)) for part in ast.walk(value))
        case ast.Pass() | ast.FunctionDef() | ast.ClassDef():
            return True
        case _:
            return False


def _always_there(module: str) -> bool:
    root = module.partition(".")[0]
    return root == "torch" or root in sys.stdlib_module_names
