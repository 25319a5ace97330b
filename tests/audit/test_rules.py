"""The rules for known behaviours find small programs that are affected, and none that is right on every release."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from automodel_mesh.audit.behaviours import BEHAVIOURS
from automodel_mesh.audit.patterns import MeshCall
from tests.audit.programs import CASES, FLATTENED, KNOWN, ROOT_AXES

pytestmark = pytest.mark.release_independent

NAMED = {behaviour.program: behaviour for behaviour in BEHAVIOURS}


def found(text: str) -> list[str]:
    """Return the programs of the behaviours that rules find in an expression, for each rule and call."""
    tree = ast.parse(text)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    return [
        behaviour.program
        for node in ast.walk(tree)
        if isinstance(node, (ast.Call, ast.Subscript))
        for behaviour in BEHAVIOURS
        for rule in behaviour.rules
        if called(node) == rule.call.rpartition(".")[2]
        if rule.matches(what_is_known(node, parents.get(node)))
    ]


def called(node: ast.Call | ast.Subscript) -> str:
    """Return the last name of what is called."""
    if isinstance(node, ast.Subscript):
        return "__getitem__"
    return node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)


def what_is_known(node: ast.Call | ast.Subscript, parent: ast.AST | None) -> MeshCall:
    """Return what a reader of the text knows: variables by their names in `KNOWN`, and that a subscript is a slice."""
    callee = node.func if isinstance(node, ast.Call) else node
    mesh = callee.value if isinstance(callee, (ast.Attribute, ast.Subscript)) else None
    known: dict[str, Any] = KNOWN.get(mesh.id, {}) if isinstance(mesh, ast.Name) else {}
    if isinstance(mesh, ast.Subscript):
        known = {"receiver": "slice"}
    root_axes = () if isinstance(mesh, ast.Name) and mesh.id == "mesh" else ROOT_AXES
    return MeshCall(node, **known, root_axes=root_axes, flattened=FLATTENED, parent=parent)


@pytest.mark.parametrize(("program", "affected", "right"), CASES)
def test_a_rule_finds_what_is_affected_and_nothing_else(
    program: str, affected: tuple[str, ...], right: tuple[str, ...]
) -> None:
    """Each affected program is found, by this rule alone; this rule finds none of those that are right."""
    assert {text: found(text) for text in affected} == {text: [program] for text in affected}
    assert [text for text in right if program in found(text)] == []


def test_each_rule_is_tested() -> None:
    """There are programs for each behaviour that has rules."""
    assert [program for program, _, _ in CASES] == [behaviour.program for behaviour in BEHAVIOURS if behaviour.rules]


def test_a_result_in_a_variable_is_found_where_it_is_used() -> None:
    """The expression that has the result may be a variable, which the reader of the text tells."""
    needs_a_tuple, needs_a_list = NAMED["coordinate"].rules
    call, use = (ast.parse(text, mode="eval").body for text in ("mesh.get_coordinate()", "table[coordinate]"))
    assert isinstance(call, ast.Call)
    assert isinstance(use, ast.Subscript)
    assert needs_a_tuple.matches(MeshCall(call, parent=use, result=use.slice))
    assert not needs_a_tuple.matches(MeshCall(call, parent=use, result=use.value))
    assert not needs_a_list.matches(MeshCall(call, parent=use, result=use.value))


@pytest.mark.parametrize(
    ("program", "severities"),
    [
        ("slice_of_a_slice", {"2.6": "breaks", "2.8.0": "breaks", "2.9.1": "differs", "2.10": "fits", "2.15": "fits"}),
        ("flattened_from_the_root", {"2.9": "fits", "2.10": "differs"}),
        ("flattened_across_a_gap", {"2.9": "differs", "2.12": "breaks", "2.13": "differs"}),
        ("split_by_name", {"2.9": "fits", "2.10": "breaks", "2.11": "breaks", "2.12": "fits"}),
        ("override", {"2.8": "fits", "2.9": "differs", "2.15": "differs"}),
        ("coordinate", {"2.10": "differs", "2.11": "fits"}),
    ],
)
def test_how_serious_a_behaviour_is(program: str, severities: dict[str, str]) -> None:
    """An error breaks, another result or a warning differs, and what is absent is left to the reader of names."""
    behaviour = NAMED[program]
    assert {release: behaviour.severity(behaviour.rules[0], release) for release in severities} == severities
