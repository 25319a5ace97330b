"""Which statement, or part of one, is at a line of a file."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, Final

BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")
"""The fields of a statement that hold other statements."""

DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@cache
def statements(path: str) -> list[ast.stmt]:
    """Return all statements of a file."""
    return [node for node in ast.walk(ast.parse(Path(path).read_bytes())) if isinstance(node, ast.stmt)]


def statement(path: str, line: int) -> ast.stmt | None:
    """Return the smallest statement at a line; a function or a class begins with its decorators."""
    around = [each for each in statements(path) if start(each) <= line <= (each.end_lineno or each.lineno)]
    return max(around, key=lambda each: (start(each), -(each.end_lineno or 0)), default=None)


def start(node: ast.stmt) -> int:
    """Return the first line of a statement, with its decorators."""
    return min([node.lineno, *(each.lineno for each in decorators(node))])


def decorators(node: ast.stmt) -> list[ast.expr]:
    """Return the decorators of a function or a class."""
    return node.decorator_list if isinstance(node, DEFINITIONS) else []


def header(node: ast.stmt) -> list[ast.AST]:
    """Return the parts of a statement that run before the statements in it."""
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in BLOCKS)
    values = (each for _, value in fields for each in (value if isinstance(value, list) else [value]))
    return [each for each in values if isinstance(each, ast.AST)]


def lines(path: str, line: int) -> tuple[int, int]:
    """Return the first and the last line of the statement, or of the part of one before other statements, at a line."""
    found = statement(path, line)
    if found is None:
        return line, line
    compound = any(getattr(found, name, None) for name in BLOCKS)
    parts: list[Any] = header(found) if compound else [found]
    around = [each for each in parts if getattr(each, "lineno", line + 1) <= line <= each.end_lineno]
    return (around[0].lineno, around[0].end_lineno) if around else (line, line)
