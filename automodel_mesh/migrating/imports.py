"""Adds the imports that rewritten code needs, and removes those that it no longer uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias

import libcst as cst
import libcst.matchers as m
from libcst.helpers import get_full_name_for_node
from libcst.metadata import GlobalScope, ImportAssignment, ScopeProvider

from automodel_mesh.migrating.equivalents import COMPAT

Home: TypeAlias = cst.IndentedBlock | None
"""Where an import is put: at the top of the body of a function, or `None` for the top of the module."""

Named: TypeAlias = tuple[str, str]
"""A function of `automodel_mesh.compat`, and its name in the file."""

_WIDTH: Final = 88


def module_of(node: cst.ImportFrom) -> str:
    """Return the path of the module that a statement imports from; empty for a relative one."""
    return "" if node.relative or node.module is None else get_full_name_for_node(node.module) or ""


def import_line(names: Collection[Named]) -> cst.SimpleStatementLine:
    """Return the statement that imports functions from `automodel_mesh.compat`, with sorted names."""
    items = [name if name == local else f"{name} as {local}" for name, local in sorted(names)]
    code = f"from {COMPAT} import {', '.join(items)}"
    if len(code) > _WIDTH:
        code = f"from {COMPAT} import (\n" + "".join(f"    {item},\n" for item in items) + ")"
    statement = cst.parse_statement(code)
    assert isinstance(statement, cst.SimpleStatementLine)  # noqa: S101 - for type checkers
    return statement


def local_name(wrapper: cst.MetadataWrapper, function: str, taken: Collection[str]) -> str:
    """Choose what a function of `automodel_mesh.compat` is called in a file.

    A function keeps its name, unless the file uses that for anything else, in any scope: then it is `compat_` and the
    name. What the file imports already at its top stays.

    Args:
        wrapper: the module.
        function: the function.
        taken: the return value of `names_in_use`.
    """
    name = function
    while name in taken:
        name = f"compat_{name}"
    return dict(sorted(imported_functions(wrapper.module.body))).get(function, name)


def imported_functions(body: Sequence[cst.BaseStatement]) -> set[Named]:
    """Return the functions that the statements of a block import from `automodel_mesh.compat`."""
    return {named for statement in body for named in _functions(statement)}


def imports_torch(module: cst.Module) -> bool:
    """Return whether a module imports torch whenever it is imported."""
    for statement in module.body:
        for node in statement.body if isinstance(statement, cst.SimpleStatementLine) else ():
            paths = [module_of(node)] if isinstance(node, cst.ImportFrom) else []
            if isinstance(node, cst.Import):
                paths = [get_full_name_for_node(alias.name) or "" for alias in node.names]
            if any(path.partition(".")[0] == "torch" or path == COMPAT for path in paths):
                return True
    return False


def with_imports(body: Sequence[cst.BaseStatement], names: Collection[Named]) -> list[cst.BaseStatement]:
    """Return the statements of a module or function with one import of functions from `automodel_mesh.compat`.

    Args:
        body: the statements.
        names: the functions to import; with those that the leading imports have, they are one statement, which is
            the first of those there were, or comes after the leading imports.
    """
    end = _end_of_imports(body)
    present = [index for index in range(end) if _functions(body[index])]
    known = imported_functions(body[:end])
    if known.issuperset(names) and len(present) <= 1:
        return list(body)
    line = import_line({*known, *names})
    if not present:
        return [*body[:end], line, *body[end:]]
    first = body[present[0]]
    assert isinstance(first, cst.SimpleStatementLine)  # noqa: S101 - for type checkers
    line = line.with_changes(leading_lines=first.leading_lines, trailing_whitespace=first.trailing_whitespace)
    merged: list[cst.BaseStatement] = list(body)
    merged[present[0]] = line
    return [statement for index, statement in enumerate(merged) if index not in present[1:]]


def without_unused(before: cst.MetadataWrapper, after: cst.Module) -> cst.Module:
    """Remove the imports that one version of a module used and the next one does not.

    Args:
        before: the module as it was, with its metadata.
        after: the module as it is now.
    """
    wrapper = cst.MetadataWrapper(after, unsafe_skip_copy=True)
    used_before = {key for key, used in _import_uses(before) if used}
    uses = list(_import_uses(wrapper))
    used_now = {key for key, used in uses if used}
    strings = {one.evaluated_value for one in m.findall(after, m.SimpleString()) if isinstance(one, cst.SimpleString)}
    unused = {key for key, _ in uses if key in used_before and key not in used_now and key[0] not in strings}
    changed = after.visit(_Remover(unused)) if unused else after
    assert isinstance(changed, cst.Module)  # noqa: S101 - for type checkers
    return changed


class _Remover(cst.CSTTransformer):
    """Removes imports of names; a whole `try` that does nothing but import one and set it to `None` otherwise."""

    def __init__(self, unused: Collection[tuple[str, str]]) -> None:
        super().__init__()
        self._unused = unused
        self._tries: list[bool] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Try):
            self._tries.append(_only_imports(node))
        return True

    def on_leave(  # type: ignore[override]
        self, original_node: cst.CSTNode, updated_node: cst.CSTNode
    ) -> cst.CSTNode | cst.RemovalSentinel:
        if isinstance(original_node, cst.Try):
            only_imports = self._tries.pop()
            emptied = isinstance(updated_node, cst.Try) and not updated_node.body.body
            return cst.RemoveFromParent() if only_imports and emptied else updated_node
        if isinstance(updated_node, (cst.Import, cst.ImportFrom)) and all(self._tries):
            return self._without(updated_node)
        return updated_node

    def _without(self, node: cst.Import | cst.ImportFrom) -> cst.CSTNode | cst.RemovalSentinel:
        if isinstance(node.names, cst.ImportStar):
            return node
        module = f"{module_of(node)}." if isinstance(node, cst.ImportFrom) else ""
        if not module and isinstance(node, cst.ImportFrom):
            return node
        kept = [alias for alias in node.names if (_local(alias), module + _name(alias)) not in self._unused]
        return with_names(node, kept)


def with_names(node: cst.Import | cst.ImportFrom, kept: Sequence[cst.ImportAlias]) -> cst.CSTNode | cst.RemovalSentinel:
    """Return an import with some of its names."""
    if not kept:
        return cst.RemoveFromParent()
    if len(kept) == len(node.names if not isinstance(node.names, cst.ImportStar) else ()):
        return node
    last = node.names[-1].comma if not isinstance(node.names, cst.ImportStar) else cst.MaybeSentinel.DEFAULT
    return node.with_changes(names=[*kept[:-1], kept[-1].with_changes(comma=last)])


def _only_imports(node: cst.Try) -> bool:
    """Return whether a `try` only imports, and else does nothing but set names to `None`."""
    nothing = m.SimpleStatementLine(body=[m.Pass() | m.Assign(value=m.Name("None"))])
    line = m.SimpleStatementLine(body=[m.ImportFrom() | m.Import()])
    return m.matches(node.body, m.IndentedBlock(body=[line])) and all(
        m.matches(handler.body, m.IndentedBlock(body=[nothing])) for handler in node.handlers
    )


def _import_uses(wrapper: cst.MetadataWrapper) -> Iterator[tuple[tuple[str, str], bool]]:
    """Yield each import as its name in the file and its path, and whether the file uses it."""
    scopes = {scope for scope in wrapper.resolve(ScopeProvider).values() if scope is not None}
    for scope in scopes:
        for assignment in scope.assignments:
            if isinstance(assignment, ImportAssignment):
                for found in assignment.get_qualified_names_for(assignment.name):
                    yield (assignment.name, found.name), bool(assignment.references)


def names_in_use(wrapper: cst.MetadataWrapper) -> Iterator[str]:
    """Yield all names that a file uses or binds, but for what it imports from `automodel_mesh.compat`."""
    for scope in {scope for scope in wrapper.resolve(ScopeProvider).values() if scope is not None}:
        for assignment in scope.assignments:
            ours = {f"{COMPAT}.{assignment.name}"}
            if not isinstance(assignment, ImportAssignment) or not ours.issuperset(
                found.name for found in assignment.get_qualified_names_for(assignment.name)
            ):
                yield assignment.name
        if isinstance(scope, GlobalScope):
            bound = {assignment.name for assignment in scope.assignments}
            yield from (name for name in _unbound(scope) if name not in bound)


def _unbound(scope: GlobalScope) -> set[str]:
    """Return the names that are used in a module without being bound there, as after a star import."""
    return {
        access.node.value for access in scope.accesses if isinstance(access.node, cst.Name) and not access.referents
    }


def _end_of_imports(body: Sequence[cst.BaseStatement]) -> int:
    """Return how many statements there are at the start of a block up to its last leading import."""
    end = 0
    for index, statement in enumerate(body):
        small = statement.body if isinstance(statement, cst.SimpleStatementLine) else ()
        if small and all(isinstance(node, (cst.Import, cst.ImportFrom)) for node in small):
            end = index + 1
        elif index == 0 and m.matches(statement, m.SimpleStatementLine(body=[m.Expr(m.SimpleString())])):
            end = 1
        else:
            break
    return end


def _functions(statement: cst.BaseStatement) -> set[Named]:
    small = statement.body if isinstance(statement, cst.SimpleStatementLine) else ()
    if len(small) != 1 or not isinstance(node := small[0], cst.ImportFrom) or isinstance(node.names, cst.ImportStar):
        return set()
    return {(_name(alias), _local(alias)) for alias in node.names} if module_of(node) == COMPAT else set()


def _name(alias: cst.ImportAlias) -> str:
    return get_full_name_for_node(alias.name) or ""


def _local(alias: cst.ImportAlias) -> str:
    name = get_full_name_for_node(alias.asname.name) if alias.asname is not None else None
    return name or _name(alias)
