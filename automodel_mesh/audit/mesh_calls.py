"""Applies the rules for known behaviours to the calls and subscripts of meshes that were read."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from automodel_mesh.audit.behaviours import BEHAVIOURS, Behaviour, Rule
from automodel_mesh.audit.lookup import all_releases
from automodel_mesh.audit.patterns import MeshCall, strings

if TYPE_CHECKING:
    from automodel_mesh.audit.values import Use


def behaviours_of(uses: Sequence[Use], tree: ast.AST) -> Iterator[tuple[Use, Behaviour, Rule]]:
    """Find the calls of a module that known behaviours are about.

    Args:
        uses: the uses of torch in the module.
        tree: its text, parsed.

    Yields:
        The use, what is known, and the rule that it matches.
    """
    on_meshes = [(use, rules) for use in uses if use.way in {"call", "subscript"} if (rules := _rules(use.path))]
    if not on_meshes:
        return
    flattened = _flattened(use for use, _ in on_meshes)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for use, rules in on_meshes:
        calls = list(_calls(use, flattened, parents))
        for behaviour, rule in rules:
            if any(rule.matches(call) for call in calls):
                yield use, behaviour, rule


@cache
def _rules(path: str) -> list[tuple[Behaviour, Rule]]:
    """Return the rules for a function, by its name or another one that refers to it."""
    return [
        (behaviour, rule)
        for behaviour in BEHAVIOURS
        for rule in behaviour.rules
        if _canonical(rule.call) == _canonical(path)
    ]


@cache
def _canonical(path: str) -> str:
    found = (release.find(path) for release in reversed(all_releases()))
    return next((one.path for one in found if one.state == "there"), path)


def _flattened(uses: Iterator[Use]) -> dict[str, tuple[str, ...]]:
    """Return the names of the flattened axes that some code makes, each with the axes that it joins."""
    found: dict[str, tuple[str, ...]] = {}
    for use in uses:
        if isinstance(use.node, ast.Call) and use.path.endswith("._flatten") and use.receiver is not None:
            call = MeshCall(use.node, axes=use.receiver.axes)
            for name in strings(call.argument("mesh_dim_name", 0)):
                found[name] = call.axes_of_the_mesh
    return found


def _calls(
    use: Use, flattened: Mapping[str, tuple[str, ...]], parents: Mapping[ast.AST, ast.AST]
) -> Iterator[MeshCall]:
    """Yield a call with what uses its result, once for each place where a variable that has it is used."""
    node, mesh = use.node, use.receiver
    if not isinstance(node, (ast.Call, ast.Subscript)):
        return
    parent = parents.get(node)
    made, axes, root_axes = (mesh.made, mesh.axes, mesh.root_axes) if mesh else ("mesh", (), ())
    known = (node, made, axes, root_axes or (axes if made == "root" else ()), flattened)
    yield MeshCall(*known, parent=parent)
    match parent:
        case ast.Assign(targets=[ast.Name(id=name)]):
            function = _function(parent, parents)
            same = [one for one in ast.walk(function) if isinstance(one, ast.Name) and one.id == name]
            if sum(isinstance(one.ctx, ast.Store) for one in same) == 1:
                for one in same:
                    if isinstance(one.ctx, ast.Load):
                        yield MeshCall(*known, parent=parents.get(one), result=one)
        case _:
            pass


def _function(node: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> ast.AST:
    """Return the function, or the module, that a statement is part of."""
    while not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
        node = parents[node]
    return node
