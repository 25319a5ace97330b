"""Each era module implements the interface that the functions of the contract call."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from automodel_mesh.compat.eras import gate, support
from automodel_mesh.compat.eras.interface import Era

GATE = Path(gate.__file__).read_text()


def functions(owner: Any) -> dict[str, inspect.Signature]:
    """Return the signatures of the public functions that a module or class defines."""
    module = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    found = inspect.getmembers(owner, lambda thing: inspect.isfunction(thing) and thing.__module__ == module)
    return {name: inspect.signature(function) for name, function in found if not name.startswith("_")}


def without_self(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of a method without `self`."""
    return signature.replace(parameters=[one for one in signature.parameters.values() if one.name != "self"])


def test_the_era_in_use_has_the_signatures_of_the_interface() -> None:
    """Each function of the interface is in the era module, with the same parameters, types and return type."""
    there = functions(gate.era)
    wanted = {name: without_self(signature) for name, signature in functions(Era).items()}
    assert {name: there.get(name) for name in wanted} == wanted


def test_type_checkers_check_every_era() -> None:
    """The tuple that mypy and pyright check against the interface has exactly the modules of `ERAS`."""
    assigned = {
        ast.unparse(node.target): node.value for node in ast.walk(ast.parse(GATE)) if isinstance(node, ast.AnnAssign)
    }
    modules = assigned["ERA_MODULES"]
    assert isinstance(modules, ast.Tuple)
    names = [part.id for part in modules.elts if isinstance(part, ast.Name)]
    assert names == [name for _, name in support.ERAS]
