"""Decides, for each expression and statement of a module, what it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import libcst as cst
from libcst.metadata import ExpressionContext, ExpressionContextProvider, ParentNodeProvider

from automodel_mesh.migrating import calls, guards, imports, nemo_lines, reads
from automodel_mesh.migrating.calls import NotSureError
from automodel_mesh.migrating.equivalents import CLASS_NAME, MODULES, equivalents
from automodel_mesh.migrating.import_lines import rewritten_import
from automodel_mesh.migrating.meshes import Meshes
from automodel_mesh.migrating.notes import Notes

if TYPE_CHECKING:
    from automodel_mesh.migrating.imports import Home


class Rewriter(cst.CSTTransformer):
    """Rewrites a module.

    Args:
        wrapper: the module, with its metadata.

    Attributes:
        notes: what was changed, and what was left.
    """

    def __init__(self, wrapper: cst.MetadataWrapper) -> None:
        super().__init__()
        self._meshes = Meshes(wrapper)
        self._table = equivalents()
        self._wrapper = wrapper
        self._has_import = imports.imports_torch(wrapper.module)
        self._imported = False
        self._blocks: list[cst.IndentedBlock] = []
        self._needed: list[tuple[Home, str]] = []
        self._guards: list[tuple[tuple[int, int], int]] = []
        self._untouched: dict[cst.CSTNode, Sequence[cst.BaseStatement]] = {}
        imported = reads.imported_names(wrapper.module.code)
        self._nemo = nemo_lines.modules_for(imported)
        self._imports_meshes = MODULES[-1] in imported or any(CLASS_NAME in names for names in imported.values())
        self._keeps_import = reads.init_calls_that_differ(wrapper.module, self._meshes)
        self.notes = Notes(wrapper)

    # Each of these costs a walk through the module, and most modules do not need all.

    @cached_property
    def _parents(self) -> Mapping[cst.CSTNode, cst.CSTNode]:
        return self._wrapper.resolve(ParentNodeProvider)

    @cached_property
    def _contexts(self) -> Mapping[cst.CSTNode, Any]:
        return self._wrapper.resolve(ExpressionContextProvider)

    @cached_property
    def _names_in_use(self) -> frozenset[str]:
        return frozenset(imports.names_in_use(self._wrapper))

    def needed(self, home: Home) -> set[imports.Named]:
        """Return the functions that have to be imported in a place."""
        return {(name, self._name(name)) for place, name in self._needed if place is home}

    @property
    def uses_compat(self) -> bool:
        """Whether functions of `automodel_mesh.compat` have come into the code."""
        return bool(self._needed) or self._imported

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Note what the nodes inside this one are in."""
        if isinstance(node, cst.IndentedBlock):
            self._blocks.append(node)
        elif self._is_guard(node):
            self._guards.append((self.notes.mark(), len(self._needed)))
        return True

    def on_leave(self, original_node: cst.CSTNode, updated_node: Any) -> Any:
        """Return what a node becomes, after those inside it."""
        if isinstance(original_node, cst.IndentedBlock):
            return self._leave_block(updated_node)
        if self._is_guard(original_node):
            return self._leave_guard(original_node, updated_node)
        needed = len(self._needed)
        try:
            changed = self._rewritten(original_node, updated_node)
        except NotSureError as error:
            del self._needed[needed:]
            self.notes.leave(original_node, str(error))
            return updated_node
        if changed is None:
            return updated_node
        self.notes.change(original_node, list(changed) if isinstance(changed, cst.FlattenSentinel) else [changed])
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
        changed = rewritten_import(updated, self._nemo, keeps_torchs=self._keeps_import)
        self._imported = self._imported or changed is not None
        return changed

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
        mark, needed = self._guards.pop()
        changes = self.notes.changes_since(mark)
        if not changes:
            return updated
        self.notes.forget_since(mark)
        only = guards.only_branch(updated)
        if only:
            self.notes.change(node, only)
            return only[0] if isinstance(node, cst.IfExp) else cst.FlattenSentinel(only)
        del self._needed[needed:]
        self.notes.leave(node, guards.why_left(node, changes[0].before))
        if isinstance(updated, cst.If) and updated.orelse is None and isinstance(updated.body, cst.IndentedBlock):
            self._untouched[node] = updated.body.body
        return node

    def _without_guards(self, body: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
        """Drop each `if` that returns what the code below it returns, now that both are the same."""
        kept = list(body)
        for statement in body:
            if (rewritten := self._untouched.get(statement)) is None:
                continue
            below = kept[kept.index(statement) + 1 :]
            if below and guards.leaves_at_its_end(rewritten) and guards.same_code(rewritten, below):
                first, *others = guards.without_unused(below)
                kept[kept.index(statement) :] = [guards.below(statement, first), *others]
                self.notes.forget(statement)
        return kept

    # --- names

    def _use(self, function: str) -> str:
        """Note that a function is needed here, and return its name in the file."""
        functions = [block for block in self._blocks if isinstance(self._parents[block], cst.FunctionDef)]
        home = functions[0] if functions and not self._has_import else None
        self._needed.append((home, function))
        return self._name(function)

    def _name(self, function: str) -> str:
        return imports.local_name(self._wrapper, function, self._names_in_use)
