"""Code that torch's releases take different branches of: `if hasattr(…)`, comparisons of versions, `try … except`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import libcst as cst
import libcst.matchers as m

from automodel_mesh.migrating.equivalents import equivalents

if TYPE_CHECKING:
    from automodel_mesh.migrating.meshes import Meshes

_ABOUT_VERSIONS: Final = re.compile(
    r"torch\w*[._]*version|version\w*\W*torch|torch_(at_least|greater|less)|is_torch_", re.IGNORECASE
)
_CAUGHT: Final = re.compile(
    r"\b((Assertion|Attribute|Import|Key|ModuleNotFound|NotImplemented|Runtime|Type|Value)Error|(Base)?Exception)\b"
)
_EXPECTING: Final = re.compile(r"\b(suppress|raises|warns|assertRaises\w*|assertWarns\w*|assertLogs)\(")
_LEAVING: Final = (cst.Return, cst.Raise, cst.Continue, cst.Break)


def code_of(node: cst.CSTNode) -> str:
    """Return the code of a node."""
    return cst.Module([]).code_for_node(node)


def first_line(node: cst.CSTNode) -> str:
    """Return the first line of the code of a node, without comments above it."""
    bare = node.with_changes(leading_lines=()) if hasattr(node, "leading_lines") else node
    lines = [line.strip() for line in code_of(bare).strip().splitlines()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} …"


def names_a_private_name(node: cst.CSTNode) -> bool:
    """Return whether a node is `hasattr` or `getattr` of a private name of torch's meshes."""
    if not m.matches(node, m.Call(func=m.Name("hasattr") | m.Name("getattr"))):
        return False
    strings = m.findall(node, m.SimpleString())
    return any(isinstance(one, cst.SimpleString) and one.evaluated_value in equivalents().private for one in strings)


def is_guard(node: cst.CSTNode, meshes: Meshes) -> bool:
    """Return whether releases of torch may take different branches of a statement or of a conditional expression."""
    if isinstance(node, (cst.If, cst.IfExp)):
        return _tells_releases_apart(node.test, meshes) or (
            isinstance(node, cst.If) and isinstance(node.orelse, cst.If) and is_guard(node.orelse, meshes)
        )
    if isinstance(node, cst.Try):
        return any(_swallows(handler) for handler in node.handlers)
    return isinstance(node, cst.With) and any(_EXPECTING.search(code_of(item.item)) for item in node.items)


def why_left(guard: cst.CSTNode, inside: str) -> str:
    """Say why a guard is left as it was.

    Args:
        guard: the guard.
        inside: the first piece of code in it that has an equivalent.
    """
    if isinstance(guard, (cst.If, cst.IfExp)):
        return f"its branches are for different torch releases: `{inside}` has an equivalent for all, so keep one"
    if isinstance(guard, cst.Try):
        return f"an error of `{inside}` leads elsewhere: it has an equivalent for all torch releases, so keep one way"
    return f"an error of `{inside}` is expected here, and that of its equivalent may be of another class"


def only_branch(guard: cst.CSTNode) -> Sequence[cst.CSTNode]:
    """Return the code of a guard whose branches do the same, as they do once they have been rewritten.

    Args:
        guard: a guard; its condition has no effect.

    Returns:
        The statements, or the one expression; nothing if the branches differ.
    """
    if isinstance(guard, cst.IfExp):
        return [guard.body] if _meaning(code_of(guard.body)) == _meaning(code_of(guard.orelse)) else []
    other: cst.BaseSuite | None = None
    if isinstance(guard, cst.If) and isinstance(guard.orelse, cst.Else):
        other = guard.orelse.body
    elif isinstance(guard, cst.Try) and len(guard.handlers) == 1 and guard.orelse is None and guard.finalbody is None:
        other = guard.handlers[0].body if guard.handlers[0].name is None else None
    if not isinstance(guard, (cst.If, cst.Try)) or not isinstance(guard.body, cst.IndentedBlock):
        return []
    same = isinstance(other, cst.IndentedBlock) and same_code(guard.body.body, other.body)
    return [below(guard, guard.body.body[0]), *guard.body.body[1:]] if same else []


def leaves_at_its_end(statements: Sequence[cst.BaseStatement]) -> bool:
    """Return whether what follows some statements does not run after them."""
    last = statements[-1] if statements else None
    return isinstance(last, cst.SimpleStatementLine) and isinstance(last.body[-1], _LEAVING)


def same_code(one: Sequence[cst.BaseStatement], other: Sequence[cst.BaseStatement]) -> bool:
    """Return whether two blocks are the same, but for comments, spaces, and imports that they do not use."""
    return _meaning(_block(without_unused(one))) == _meaning(_block(without_unused(other)))


def below(above: cst.CSTNode, statement: cst.BaseStatement) -> cst.BaseStatement:
    """Return a statement that takes the place of another, below the comments of that."""
    comments = [line for line in getattr(statement, "leading_lines", ()) if line.comment is not None]
    lines = [*getattr(above, "leading_lines", ()), *comments]
    return statement.with_changes(leading_lines=lines)


def without_unused(statements: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
    """Return the statements of a block without the imports from torch that it does not use."""
    lines = m.SimpleStatementLine(body=[m.ImportFrom(module=m.Attribute() | m.Name("torch"))])
    imported = [one for one in statements if m.matches(one, lines) and code_of(one).split()[1].startswith("torch")]
    code = _block([one for one in statements if one not in imported])
    used = [
        one for one in imported if any(name in code for name in re.findall(r"\w+", code_of(one).split("import")[1]))
    ]
    return [one for one in statements if one in used or one not in imported]


def _block(statements: Sequence[cst.BaseStatement]) -> str:
    return "".join(map(code_of, statements))


def _meaning(code: str) -> str:
    return ast.dump(ast.parse(code.strip()))


def _tells_releases_apart(test: cst.BaseExpression, meshes: Meshes) -> bool:
    if _ABOUT_VERSIONS.search(code_of(test)):
        return True
    calls = m.findall(test, m.Call())
    if any(names_a_private_name(call) for call in calls):
        return True
    return any(meshes.is_registry(name) for name in m.findall(test, m.Name()) if isinstance(name, cst.Name))


def _swallows(handler: cst.ExceptHandler) -> bool:
    if isinstance(handler.body, cst.IndentedBlock) and m.matches(
        handler.body.body[-1], m.SimpleStatementLine(body=[m.ZeroOrMore(), m.Raise()])
    ):
        return False
    if handler.type is None:
        return True
    return _CAUGHT.search(code_of(handler.type)) is not None
