"""Imports modules without some of their statements: what those would have bound are stand-ins."""

from __future__ import annotations

import ast
import builtins
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.audit_proof.stand_ins import StandIn
from tests.audit_proof.statements import DEFINITIONS, start

if TYPE_CHECKING:
    from types import CodeType

_MAKE: Final = "__stand_in__"
"""The name of `StandIn` in changed modules."""


class Skipping:
    """Leaves out statements of files that are imported from now on."""

    def __init__(self) -> None:
        self._lines: dict[str, set[int]] = {}
        setattr(builtins, _MAKE, StandIn)
        lines = self._lines

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType | None:
                path = self.get_filename(fullname)
                if path not in lines:
                    return super().get_code(fullname)
                return compile(without(Path(path).read_bytes(), lines[path]), path, "exec")

        loaders = (
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (Loader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )
        sys.path_hooks.insert(0, FileFinder.path_hook(*loaders))
        sys.path_importer_cache.clear()

    def add(self, path: str, line: int) -> bool:
        """Leave out the statement at a line of a file; tell whether that can be done, and has not been done before."""
        done = self._lines.setdefault(path, set())
        if line in done or _statement(ast.parse(Path(path).read_bytes()), line) is None:
            return False
        done.add(line)
        return True


def without(source: bytes, lines: set[int]) -> ast.Module:
    """Parse a module, and replace the statements at some lines."""
    tree = ast.parse(source)
    for line in lines:
        if (found := _statement(tree, line)) is not None:
            body, place = found
            body[place] = ast.fix_missing_locations(ast.copy_location(_replacement(body[place]), body[place]))
    return tree


def _statement(tree: ast.Module, line: int) -> tuple[list[Any], int] | None:
    """Find the smallest statement at a line that can be left out, in the list that holds it."""
    found: tuple[list[Any], int] | None = None
    fields = (value for node in ast.walk(tree) for _, value in ast.iter_fields(node))
    for body in fields:
        for place, one in enumerate(body if isinstance(body, list) else list[Any]()):
            if isinstance(one, _REPLACED) and start(one) <= line <= _last(one):
                found = body, place
    return found


def _last(node: ast.stmt) -> int:
    """Return the last line of a statement, of a function or a class that of what comes before its body."""
    if isinstance(node, DEFINITIONS):
        return max(node.lineno, start(node.body[0]) - 1)
    return node.end_lineno or node.lineno


_REPLACED: Final = (*DEFINITIONS, ast.Assign, ast.AnnAssign, ast.Expr, ast.Return)


def _replacement(node: ast.stmt) -> ast.stmt:
    """Bind what a statement binds to stand-ins."""
    text = ast.unparse(node).partition("\n")[0]
    stand_in = ast.Call(ast.Name(_MAKE, ast.Load()), [ast.Constant(text)], [])
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return ast.Assign([ast.Name(name, ast.Store())], stand_in)
        case ast.Assign(targets=targets):
            return ast.Assign(targets, stand_in)
        case ast.AnnAssign(target=target):
            return ast.Assign([target], stand_in)
        case ast.Return():
            return ast.Return(stand_in)
        case _:
            return ast.Pass()
