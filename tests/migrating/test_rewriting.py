"""What `automodel-mesh migrate` rewrites, what it leaves, and that a second time changes nothing."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import device_mesh

from automodel_mesh import compat
from automodel_mesh.migrating.equivalents import Function, equivalents
from automodel_mesh.migrating.nemo_lines import modules_for, names_of, public_names
from automodel_mesh.migrating.rewriting import rewrite
from tests.migrating.cases import IGNORED, LEFT, REWRITTEN

ALL = [code for code, _ in (*REWRITTEN.values(), *LEFT.values())] + list(IGNORED.values())


@pytest.mark.release_independent
@pytest.mark.parametrize("name", REWRITTEN)
def test_what_has_an_equivalent_is_rewritten(name: str) -> None:
    """The code becomes what the case says, nothing is left, and each change names its line."""
    before, after = REWRITTEN[name]
    done = rewrite(before)
    assert done.source == after
    assert not done.left
    lines = len(before.splitlines())
    assert done.changes
    assert all(1 <= change.line <= lines for change in done.changes)


@pytest.mark.release_independent
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_sure_is_left_and_listed(name: str) -> None:
    """The code stays as it is, and one entry says why."""
    code, why = LEFT[name]
    done = rewrite(code)
    assert done.source == code
    assert not done.changes
    assert any(why in left.why for left in done.left), done.left


@pytest.mark.release_independent
@pytest.mark.parametrize("name", IGNORED)
def test_other_code_is_not_mentioned(name: str) -> None:
    """Code that has the same names for other things stays, and is not listed."""
    done = rewrite(IGNORED[name])
    assert (done.source, done.changes, done.left) == (IGNORED[name], (), ())


@pytest.mark.release_independent
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    parts=st.lists(st.sampled_from(ALL), min_size=1, max_size=3),
    newline=st.sampled_from(["\n", "\r\n"]),
    cut=st.booleans(),
)
def test_a_second_time_changes_nothing(parts: list[str], newline: str, cut: bool) -> None:
    """Any of the cases, and any of them after each other: the result is code, and stays as it is."""
    code = "\n".join(part.replace("from __future__ import annotations\n", "") for part in parts).replace("\n", newline)
    once = rewrite(code[: -len(newline)] if cut else code)
    ast.parse(once.source)
    twice = rewrite(once.source)
    assert twice.source == once.source
    assert not twice.changes
    assert once.source.endswith("\n") != cut
    assert newline == "\n" or "\n" not in once.source.replace("\r\n", "")


@pytest.mark.release_independent
def test_an_import_that_others_may_use_stays() -> None:
    """An import is removed only if this has made it unused, and `__all__` does not have it."""
    used = "from torch.distributed.device_mesh import DeviceMesh, _mesh_resources\nimport os\n\n"
    call = "print(_mesh_resources.get_root_mesh(x))\n"
    assert "import DeviceMesh\nimport os\n" in rewrite(used + call).source
    assert "DeviceMesh, _mesh_resources" in rewrite(f"{used}__all__ = ['_mesh_resources']\n{call}").source
    assert "DeviceMesh, _mesh_resources" in rewrite(f"{used}{call}print(_mesh_resources)\n").source


@pytest.mark.release_independent
def test_code_that_is_not_python_is_a_syntax_error() -> None:
    """The error has the line."""
    with pytest.raises(SyntaxError) as raised:
        rewrite("from torch.distributed.device_mesh import DeviceMesh\ndef f(:\n")
    assert raised.value.lineno == 2


@pytest.mark.release_independent
@pytest.mark.parametrize(
    "modules", [modules_for([]), modules_for(["nemo_automodel.components.distributed.device_mesh"])]
)
def test_the_names_read_from_our_sources_exist(modules: dict[str, str]) -> None:
    """Each name that an import line may be rewritten to can be imported."""
    for ours in set(modules.values()):
        module = import_module(ours)
        names = public_names() if ours == "automodel_mesh" else names_of(ours)
        assert len(names) > 4
        assert not [name for name in names if not hasattr(module, name)]


def accepts(function: object, arguments: Function, first: int) -> bool:
    """Return whether a function has the parameters of a table's entry, as many by position as that says."""
    assert callable(function)
    parameters = list(inspect.signature(function).parameters.values())[first:]
    names = [parameter.name for parameter in parameters]
    positional = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)
    return set(arguments.parameters.values()) <= set(names) and positional >= arguments.by_position


def test_the_table_has_our_signatures_and_those_of_this_torch() -> None:
    """The parameters in the table of equivalents are those of our functions, and of torch's where it has the call."""
    table = equivalents()
    for name, function in table.mesh_methods.items():
        assert accepts(getattr(compat, function.function), function, 1), name
    for name, function in {**table.class_methods, **table.registry_methods, **table.module_functions}.items():
        assert accepts(getattr(compat, function.function), function, 0), name
    theirs = [(device_mesh.DeviceMesh, table.mesh_methods, 1), (device_mesh.DeviceMesh, table.class_methods, 0)]
    for owner, functions, first in [*theirs, (device_mesh, table.module_functions, 0)]:
        for name, function in functions.items():
            if (call := getattr(owner, name, None)) is not None:
                known = set(list(inspect.signature(call).parameters)[first:])
                assert {*list(function.parameters)[: function.by_position]} <= known, name
