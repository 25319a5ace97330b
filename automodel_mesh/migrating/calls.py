"""Turns calls of torch into calls of our functions: names and arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import libcst as cst
import libcst.matchers as m

if TYPE_CHECKING:
    from automodel_mesh.migrating.equivalents import Function

_SPACE: Final = cst.SimpleWhitespace(" ")


class NotSureError(Exception):
    """A call is left as it is; the message says why."""


def arguments(function: Function, given: Sequence[cst.Arg]) -> list[cst.Arg]:
    """Return the arguments of our function for those of torch's.

    Args:
        function: our function.
        given: the arguments, without the mesh whose method it is.

    Raises:
        NotSureError: there are others than those that both have, or they cannot be seen.
    """
    names = list(function.parameters)
    converted: list[cst.Arg] = []
    for position, arg in enumerate(given):
        if arg.star:
            raise NotSureError(f"`{arg.star}` hides its arguments")
        if arg.keyword is None and position >= len(names):
            raise NotSureError(f"it has more arguments than `{function.function}`")
        if arg.keyword is None and position < function.by_position:
            converted.append(arg)
            continue
        theirs = names[position] if arg.keyword is None else arg.keyword.value
        if theirs not in function.parameters:
            raise NotSureError(f"`{function.function}` has no argument `{theirs}`")
        ours = function.parameters[theirs]
        equal = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
        keyword = cst.Name(ours) if arg.keyword is None else arg.keyword.with_changes(value=ours)
        converted.append(arg.with_changes(keyword=keyword, equal=equal if arg.keyword is None else arg.equal))
    return converted


def method_as_function(call: cst.Call, name: str, function: Function) -> cst.Call:
    """Return `function(mesh, …)` for `mesh.method(…)`.

    Raises:
        NotSureError: as for `arguments`.
    """
    given = arguments(function, call.args)
    assert isinstance(call.func, cst.Attribute)  # noqa: S101 - the caller has looked
    mesh = cst.Arg(call.func.value)
    if given:
        before = call.whitespace_before_args
        mesh = mesh.with_changes(comma=cst.Comma(whitespace_after=_SPACE if before.empty else _without_comment(before)))
    return call.with_changes(func=cst.Name(name), args=[mesh, *given])


def function_as_function(call: cst.Call, name: str, function: Function) -> cst.Call:
    """Return `function(…)` for a call of torch with the same arguments.

    Raises:
        NotSureError: as for `arguments`.
    """
    return call.with_changes(func=cst.Name(name), args=arguments(function, call.args))


def slice_as_function(subscript: cst.Subscript, name: str) -> cst.Call:
    """Return `slice_mesh(mesh, names)` for `mesh[names]`.

    Raises:
        NotSureError: the index is not one of names.
    """
    items = [item.slice for item in subscript.slice]
    indices = [item for item in items if isinstance(item, cst.Index) and not item.star]
    if len(indices) < len(items) or any(m.matches(index.value, m.Integer() | m.UnaryOperation()) for index in indices):
        raise NotSureError("only names can be looked up in a mesh")
    if len(indices) == 1 and isinstance(subscript.slice[0].comma, cst.MaybeSentinel):
        names = indices[0].value
        if isinstance(names, cst.Tuple) and not names.lpar:
            names = names.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    else:
        pairs = zip(indices, subscript.slice, strict=True)
        names = cst.Tuple(
            [cst.Element(index.value, comma=item.comma) for index, item in pairs],
            lpar=[cst.LeftParen(whitespace_after=subscript.lbracket.whitespace_after)],
            rpar=[cst.RightParen(whitespace_before=subscript.rbracket.whitespace_before)],
        )
    args = [cst.Arg(subscript.value, comma=cst.Comma(whitespace_after=_SPACE)), cst.Arg(names)]
    return cst.Call(cst.Name(name), args, lpar=subscript.lpar, rpar=subscript.rpar)


def loses_comments(before: cst.CSTNode, after: cst.CSTNode) -> bool:
    """Return whether a comment between the parts of an expression would be lost."""
    return len(m.findall(before, m.Comment())) != len(m.findall(after, m.Comment()))


def _without_comment(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    if isinstance(space, cst.ParenthesizedWhitespace):
        return space.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=())
    return space
