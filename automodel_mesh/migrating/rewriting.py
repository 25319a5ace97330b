"""`rewrite`: Python code with private calls of torch's meshes in, code that uses this library out; needs libcst."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import libcst as cst
from libcst.metadata import (
    ExpressionContext,
    ExpressionContextProvider,
    ParentNodeProvider,
    PositionProvider,
)

from automodel_mesh.migrating import calls, guards, imports, nemo_lines, reads
from automodel_mesh.migrating.calls import NotSureError
from automodel_mesh.migrating.equivalents import CLASS_NAME, MODULES, equivalents
from automodel_mesh.migrating.guards import code_of, first_line
from automodel_mesh.migrating.meshes import Meshes

if TYPE_CHECKING:
    from automodel_mesh.migrating.imports import Home

__all__ = ["Change", "Left", "Rewriting", "rewrite"]


@dataclass(frozen=True)
class Change:
    """A piece of code that was rewritten.

    Attributes:
        line: its line, from 1, in the code as it was.
        before: the code as it was, on one line.
        after: the code as it is now.
    """

    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """A piece of code that was left as it is, since no equivalent is sure.

    Attributes:
        line: its line, from 1, in the code as it was.
        code: the code, or the first line of it.
        why: the reason, and what to do.
    """

    line: int
    code: str
    why: str


@dataclass(frozen=True)
class Rewriting:
    """What `rewrite` returns.

    Attributes:
        source: the code as it is now; the same as before if there are no changes.
        changes: what was rewritten, in the order of the lines.
        left: what was not, in the order of the lines.
    """

    source: str
    changes: tuple[Change, ...]
    left: tuple[Left, ...]


def rewrite(source: str) -> Rewriting:
    """Rewrite calls of torch's meshes that have a sure equivalent in `automodel_mesh.compat`, and NeMo's import lines.

    Formatting and comments stay. A second call with the result changes nothing. Neither torch nor the code is run.

    Args:
        source: the code of a Python module.

    Returns:
        The code as it is now, what was changed, and what was left.

    Raises:
        SyntaxError: `source` is not Python code; it has the line.
    """
    if not _telling().search(source):
        return Rewriting(source, (), ())
    try:
        wrapper = cst.MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    except cst.ParserSyntaxError as error:
        raise SyntaxError(error.message, (None, error.raw_line, error.raw_column, error.context)) from error
    rewriter = _Rewriter(wrapper)
    module = wrapper.module.visit(rewriter)
    changes, left = rewriter.report()
    if not changes:
        return Rewriting(source, (), left)
    if rewriter.uses_compat:
        module = module.with_changes(body=imports.with_imports(module.body, rewriter.needed(None)))
        module = imports.without_unused(wrapper, cst.parse_module(module.code))
    return Rewriting(module.code, changes, left)


@cache
def _telling() -> re.Pattern[str]:
    """Return what finds the code that there may be something to do in."""
    words = {*equivalents().private, *equivalents().sources, CLASS_NAME, nemo_lines.PACKAGE}
    return re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")


class _Rewriter(cst.CSTTransformer):
    """Rewrites a module."""

    def __init__(self, wrapper: cst.MetadataWrapper) -> None:
        super().__init__()
        self._meshes = Meshes(wrapper)
        self._table = equivalents()
        self._wrapper = wrapper
        self._has_import = imports.imports_torch(wrapper.module)
        self._imported = False
        self._blocks: list[cst.IndentedBlock] = []
        self._needed: list[tuple[Home, str]] = []
        self._guards: list[tuple[int, int, int]] = []
        self._untouched: dict[cst.CSTNode, tuple[Sequence[cst.BaseStatement], tuple[cst.CSTNode, Left]]] = {}
        imported = reads.imported_names(wrapper.module.code)
        self._nemo = nemo_lines.modules_for(imported)
        self._imports_meshes = MODULES[-1] in imported or any(CLASS_NAME in names for names in imported.values())
        self._keeps_import = reads.init_calls_that_differ(wrapper.module, self._meshes)
        self._changes: list[tuple[cst.CSTNode, Change]] = []
        self._left: list[tuple[cst.CSTNode, Left]] = []

    # Each of these costs a walk through the module, and most modules do not need all.

    @cached_property
    def _parents(self) -> Mapping[cst.CSTNode, cst.CSTNode]:
        return self._wrapper.resolve(ParentNodeProvider)

    @cached_property
    def _positions(self) -> Mapping[cst.CSTNode, Any]:
        return self._wrapper.resolve(PositionProvider)

    @cached_property
    def _contexts(self) -> Mapping[cst.CSTNode, Any]:
        return self._wrapper.resolve(ExpressionContextProvider)

    @cached_property
    def _names_in_use(self) -> frozenset[str]:
        return frozenset(imports.names_in_use(self._wrapper))

    def report(self) -> tuple[tuple[Change, ...], tuple[Left, ...]]:
        """Return what was changed and what was left, in the order of the lines."""
        changes = sorted((change for _, change in self._changes), key=lambda one: one.line)
        return tuple(changes), tuple(sorted((left for _, left in self._left), key=lambda one: one.line))

    def needed(self, home: Home) -> set[imports.Named]:
        """Return the functions that have to be imported in a place."""
        return {(name, self._name(name)) for place, name in self._needed if place is home}

    @property
    def uses_compat(self) -> bool:
        """Whether functions of `automodel_mesh.compat` have come into the code."""
        return bool(self._needed) or self._imported

    def _name(self, function: str) -> str:
        return imports.local_name(self._wrapper, function, self._names_in_use)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.IndentedBlock):
            self._blocks.append(node)
        elif self._is_guard(node):
            self._guards.append((len(self._changes), len(self._left), len(self._needed)))
        return True

    def on_leave(self, original_node: cst.CSTNode, updated_node: Any) -> Any:
        if isinstance(original_node, cst.IndentedBlock):
            return self._leave_block(updated_node)
        if self._is_guard(original_node):
            return self._leave_guard(original_node, updated_node)
        needed = len(self._needed)
        try:
            changed = self._rewritten(original_node, updated_node)
        except NotSureError as error:
            del self._needed[needed:]
            self._leave_it(original_node, str(error))
            return updated_node
        if changed is None:
            return updated_node
        self._record(original_node, changed)
        return changed

    def _rewritten(self, node: cst.CSTNode, updated: Any) -> Any:
        """Return what a node becomes, `None` if it stays.

        Raises:
            NotSureError: it should be changed, but no equivalent is sure.
        """
        if isinstance(node, cst.Call):
            changed = self._call(node, updated)
        elif isinstance(node, cst.Subscript):
            changed = self._subscript(node, updated)
        elif isinstance(node, cst.Attribute):
            changed = self._attribute(node, updated)
        else:
            return self._import(updated) if isinstance(node, cst.SimpleStatementLine) else None
        if changed is not None and calls.loses_comments(updated, changed):
            raise NotSureError("a comment would be lost")
        return changed

    # --- expressions

    def _call(self, node: cst.Call, updated: cst.Call) -> cst.BaseExpression | None:
        if guards.names_a_private_name(node):
            raise NotSureError("it tells torch releases apart: our functions are the same on all")
        if self._keeps_import and reads.is_function(node.func, self._meshes):
            calls.arguments(next(iter(self._table.module_functions.values())), node.args)
        if not isinstance(node.func, cst.Attribute):
            return None
        name, receiver, table = node.func.attr.value, node.func.value, self._table
        if reads.is_function(node.func, self._meshes):
            function = table.module_functions[name]
            return calls.function_as_function(updated, self._use(function.function), function)
        if self._meshes.is_registry(receiver):
            if name not in table.registry_methods:
                raise NotSureError(f"there is no equivalent of `{name}`")
            function = table.registry_methods[name]
            return calls.function_as_function(updated, self._use(function.function), function)
        if name in table.class_methods and (self._meshes.is_class(receiver) or self._meshes.is_mesh(receiver)):
            function = table.class_methods[name]
            return calls.function_as_function(updated, self._use(function.function), function)
        if name in table.mesh_methods and self._is_sure(receiver, name):
            function = table.mesh_methods[name]
            return calls.method_as_function(updated, self._use(function.function), function)
        return self._flattened_axes(node, updated)

    def _subscript(self, node: cst.Subscript, updated: cst.Subscript) -> cst.BaseExpression | None:
        if self._meshes.is_mesh(node.value):
            if self._contexts.get(node) is not ExpressionContext.LOAD:
                return None
            return calls.slice_as_function(updated, self._use(self._table.slicing))
        if reads.looks_like_mesh(node.value) and reads.has_names(node):
            raise NotSureError(reads.UNKNOWN)
        return self._flattened_axes(node, updated)

    def _attribute(self, node: cst.Attribute, updated: cst.Attribute) -> cst.BaseExpression | None:
        name, table = node.attr.value, self._table
        is_registry = self._meshes.is_registry(node.value)
        if not is_registry and name not in {*table.private, *table.module_functions}:
            return None
        parent = self._parents.get(node)
        if isinstance(parent, cst.Call) and parent.func is node:
            return None
        if reads.is_function(node, self._meshes):
            return cst.Name(
                self._use(self._table.module_functions[name].function), lpar=updated.lpar, rpar=updated.rpar
            )
        if name == self._table.flattened_of_root:
            return self._flattened_axes(node, updated)
        if name in self._table.private and self._is_sure(node.value, name):
            what = "what it is used for" if name in self._table.mesh_methods else f"an equivalent of `{name}`"
            raise NotSureError(f"{what} is not known here")
        if is_registry and not reads.is_flattened_of_registry(parent, self._parents):
            raise NotSureError(f"there is no equivalent of `{name}`")
        return None

    def _flattened_axes(self, node: cst.BaseExpression, updated: Any) -> cst.BaseExpression | None:
        """Return `flattened_meshes(root)` for the mapping of a root, where it is only read."""
        root = reads.root_of_flattened(node, self._meshes)
        if root is None:
            return None
        if isinstance(node, cst.Attribute) and not (
            self._meshes.is_mesh(root) or not self._meshes.defines_method(node.attr.value)
        ):
            return None
        if not reads.is_read(node, self._parents, self._contexts):
            raise NotSureError("it may be changed here: `flattened_meshes` is for reading")
        looked_up = isinstance(self._parents[node], cst.Subscript)
        if not looked_up and self._meshes.kind(root) != "root":
            raise NotSureError(
                "it is empty for a mesh that is not a root: call `get_root_mesh` first, or use `flattened_meshes`"
            )
        function = cst.Name(self._use(self._table.flattened))
        return cst.Call(
            function, [cst.Arg(reads.root_of_flattened(updated, None))], lpar=updated.lpar, rpar=updated.rpar
        )

    def _is_sure(self, receiver: cst.BaseExpression, name: str) -> bool:
        """Return whether a value is a mesh.

        Raises:
            NotSureError: its name says so, but nothing else.
        """
        if self._meshes.is_mesh(receiver):
            return True
        if self._meshes.owner_defines(receiver, name) or self._meshes.defines_method(name) or reads.is_super(receiver):
            return False
        if name in self._table.only_of_meshes:
            return True
        is_private = name.startswith("_")
        if reads.looks_like_mesh(receiver) or (is_private and self._imports_meshes):
            raise NotSureError(reads.UNKNOWN)
        return False

    # --- statements

    def _import(self, updated: cst.SimpleStatementLine) -> Any:
        lines = [small for small in updated.body if isinstance(small, (cst.ImportFrom, cst.Import))]
        changed = [new for line in lines if (new := self._import_line(updated, line)) is not None]
        if changed and len(updated.body) > 1:
            raise NotSureError("several statements are on the line")
        return changed[0] if changed else None

    def _import_line(self, updated: cst.SimpleStatementLine, line: cst.ImportFrom | cst.Import) -> Any:
        names = [] if isinstance(line.names, cst.ImportStar) else [alias.evaluated_name for alias in line.names]
        if isinstance(line, cst.Import) or not names:
            paths = set(names) if isinstance(line, cst.Import) else {imports.module_of(line)}
            if not paths.isdisjoint(self._nemo):
                raise NotSureError("it names none of the names that are used: import those")
            return None
        path = imports.module_of(line)
        ours, why = nemo_lines.replacement(path, names, self._nemo)
        if why:
            raise NotSureError(why)
        if ours:
            return updated.with_changes(body=[line.with_changes(module=cst.parse_expression(ours))])
        wanted = path in MODULES and not self._table.module_functions.keys().isdisjoint(names)
        return self._torchs_import(updated, line) if wanted and not self._keeps_import else None

    def _torchs_import(self, updated: cst.SimpleStatementLine, line: cst.ImportFrom) -> Any:
        aliases = () if isinstance(line.names, cst.ImportStar) else line.names
        functions = self._table.module_functions
        taken = {one.evaluated_name: one.evaluated_alias or one.evaluated_name for one in aliases}
        ours = {(functions[name].function, local) for name, local in taken.items() if name in functions}
        rest = imports.with_names(line, [one for one in aliases if one.evaluated_name not in functions])
        new = imports.import_line(ours)
        self._imported = self._imported or len(updated.body) == 1
        if isinstance(rest, cst.RemovalSentinel):
            return updated.with_changes(body=new.body)
        return cst.FlattenSentinel(
            [new.with_changes(leading_lines=updated.leading_lines), updated.with_changes(leading_lines=(), body=[rest])]
        )

    def _leave_block(self, updated: cst.IndentedBlock) -> cst.IndentedBlock:
        body = self._without_guards(updated.body)
        if names := self.needed(self._blocks.pop()):
            body = imports.with_imports(body, names)
        return updated.with_changes(body=body)

    # --- guards

    def _is_guard(self, node: cst.CSTNode) -> bool:
        if not guards.is_guard(node, self._meshes):
            return False
        parent = self._parents.get(node)
        return not (isinstance(parent, cst.If) and parent.orelse is node)

    def _leave_guard(self, node: Any, updated: Any) -> Any:
        """Return the code of a guard whose branches have become the same; leave any other as it was."""
        changes, left, needed = self._guards.pop()
        if len(self._changes) == changes:
            return updated
        only, first = guards.only_branch(updated), self._changes[changes][1].before
        del self._changes[changes:], self._left[left:]
        if only is not None:
            self._record(node, only if isinstance(only, cst.CSTNode) else cst.Module(only))
            return only if isinstance(only, cst.CSTNode) else cst.FlattenSentinel(only)
        del self._needed[needed:]
        self._leave_it(node, guards.why_left(node, first))
        if isinstance(updated, cst.If) and updated.orelse is None and isinstance(updated.body, cst.IndentedBlock):
            self._untouched[node] = updated.body.body, self._left[-1]
        return node

    def _without_guards(self, body: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
        """Drop each `if` that returns what the code below it returns, now that both are the same."""
        kept = list(body)
        for statement in body:
            rewritten, left = self._untouched.get(statement, ((), None))
            if left is None or not guards.leaves_at_its_end(rewritten):
                continue
            index = kept.index(statement)
            below = kept[index + 1 :]
            if below and guards.same_code(rewritten, below):
                first, *others = guards.without_unused(below)
                kept[index:] = [guards.below(statement, first), *others]
                self._left.remove(left)
        return kept

    # --- the report

    def _use(self, function: str) -> str:
        """Note that a function is needed here, and return its name in the file."""
        functions = [block for block in self._blocks if isinstance(self._parents[block], cst.FunctionDef)]
        home = functions[0] if functions and not self._has_import else None
        self._needed.append((home, function))
        return self._name(function)

    def _record(self, node: cst.CSTNode, changed: Any) -> None:
        """Note a change in place of those inside it."""
        inside = set(map(id, _all_nodes(node)))
        self._changes = [change for change in self._changes if id(change[0]) not in inside]
        nodes = changed if isinstance(changed, cst.FlattenSentinel) else [changed]
        after = "; ".join(_on_one_line(one) for one in nodes)
        self._changes.append((node, Change(self._line(node), _on_one_line(node), after)))

    def _leave_it(self, node: cst.CSTNode, why: str) -> None:
        """Note what is left, in place of what is left inside it for the same reason."""
        inside = set(map(id, _all_nodes(node)))
        self._left = [one for one in self._left if id(one[0]) not in inside or one[1].why != why]
        self._left.append((node, Left(self._line(node), first_line(node), why)))

    def _line(self, node: cst.CSTNode) -> int:
        return self._positions[node].start.line


def _all_nodes(node: cst.CSTNode) -> list[cst.CSTNode]:
    return [node, *(inner for child in node.children for inner in _all_nodes(child))]


def _on_one_line(node: cst.CSTNode) -> str:
    bare = node.with_changes(leading_lines=()) if hasattr(node, "leading_lines") else node
    return " ".join(code_of(bare).split())
