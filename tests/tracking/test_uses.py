"""Which uses of private torch names are found in some code, and who calls whom inside `compat/`."""

from __future__ import annotations

import pytest

from automodel_mesh.tracking.callers import IMPORT, public_callers
from automodel_mesh.tracking.uses import uses_in

pytestmark = pytest.mark.release_independent

IMPORTS = """
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh, _mesh_resources
"""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("mesh._layout", [("_layout", "attribute")]),
        ("mesh._layout.shape", [("_layout", "attribute")]),
        ("self._layout; cls._layout", []),
        ("mesh.shape; torch.ones(2); mesh.__class__", []),
        ("pair._replace(a=1); os._exit(0)", []),
        ("mesh._automodel_mesh_root; getattr(mesh, '_automodel_mesh_root')", []),
        ("getattr(mesh, '_layout')", [("_layout", "string")]),
        ("hasattr(mesh, '_layout')", [("_layout", "string")]),
        ("vars(mesh)['_layout']", [("_layout", "string")]),
        ("'_layout'", []),  # a docstring
        ("f(_layout=1)", [("_layout", "keyword")]),
        ("f(**{'_layout': 1})", [("_layout", "string")]),
        ("import_module('torch.testing._internal.x')", [("x", "string")]),
        ("import torch._C.a as a", [("a", "import")]),
        ("from torch._C import a", [("a", "import")]),
        ("from torch.nn import _a, b", [("_a", "import")]),
        ("from mine._inner import _a", []),
        ("_mesh_resources", [("_mesh_resources", "name")]),
        ("_mesh_resources.table", [("_mesh_resources", "name"), ("table", "attribute")]),
        ("_mesh_resources.table.get(1)", [("_mesh_resources", "name"), ("table", "attribute")]),
        ("distributed_c10d._world.names", [("_world", "attribute"), ("names", "attribute")]),
        ("w = distributed_c10d._world\nw.names", [("_world", "attribute"), ("names", "attribute"), ("_world", "name")]),
        ("w: X = dist._w\nw.names", [("_w", "attribute"), ("names", "attribute"), ("_w", "name")]),
        ("def f(a: dist._A) -> dist._B: ...", []),
        ("a: dist._A", []),
        ("DeviceMesh.shape; group.bound", [("DeviceMesh", "name"), ("bound", "attribute")]),
        ("getattr(group, 'bound')", [("bound", "string")]),
        ("__all__ = ['bound']", []),
        ("'_'.join(names)", []),
    ],
)
def test_what_counts_as_a_use(code: str, found: list[tuple[str, str]]) -> None:
    """Private names of torch in whichever way they are written, public ones only where they are asked for."""
    lines = IMPORTS.count("\n")
    uses = [use for use in uses_in(IMPORTS + code, "m", {"bound", "DeviceMesh"}) if use.line > lines]
    assert sorted((use.name, use.how) for use in uses) == sorted(found)


def test_a_use_says_where_it_is() -> None:
    """The function or method, or the module alone, and the line."""
    code = "a._x\ndef f():\n    a._x\nclass C:\n    b = a._x\n    async def g(self):\n        return a._x\n"
    places = [(use.place, use.line) for use in uses_in(code, "m")]
    assert places == [("m", 1), ("m.f", 3), ("m.C", 5), ("m.C.g", 7)]


def test_a_variable_is_forgotten_with_its_function() -> None:
    """What a local variable stands for says nothing of the same name elsewhere."""
    code = "import torch\ndef f():\n    w = torch._w\ndef g(w):\n    w.names\n"
    assert [use.name for use in uses_in(code, "m")] == ["_w"]


@pytest.mark.parametrize(
    ("place", "public"),
    [
        ("structure.markers", (IMPORT,)),
        (
            "since_2_10._attach",
            ("concatenate", "flatten", "init_device_mesh", "slice_mesh", "unflatten"),
        ),
        ("worlds.init_fake_world", ()),
    ],
)
def test_public_functions_that_depend_on_a_place(place: str, public: tuple[str, ...]) -> None:
    """Through other modules, the eras and methods; what only tests use reaches nothing."""
    found = public_callers([place])
    assert set(public) <= set(found)
    assert bool(found) == bool(public)
    assert (IMPORT in found) == (IMPORT in public)
