"""Uses of private torch names are found in code, and the public functions that depend on them in `compat/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_mesh.tracking.uses import IMPORT, compat_sources, public_callers, uses_in

COMPAT = Path(__file__).parents[2] / "compat"

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
def test_private_names_are_found(code: str, found: list[tuple[str, str]]) -> None:
    """Private names of torch are found however they are written, public ones only if they are asked for."""
    lines = IMPORTS.count("\n")
    uses = [use for use in uses_in(IMPORTS + code, "m", {"bound", "DeviceMesh"}) if use.line > lines]
    assert sorted((use.name, use.how) for use in uses) == sorted(found)


def test_a_use_has_a_place() -> None:
    """A use has its function, method or class, else only its module, and its line."""
    code = "a._x\ndef f():\n    a._x\nclass C:\n    b = a._x\n    async def g(self):\n        return a._x\n"
    places = [(use.place, use.line) for use in uses_in(code, "m")]
    assert places == [("m", 1), ("m.f", 3), ("m.C", 5), ("m.C.g", 7)]


def test_a_variable_is_local_to_its_function() -> None:
    """A local variable that refers to a private name does not affect the same name in another function."""
    code = "import torch\ndef f():\n    w = torch._w\ndef g(w):\n    w.names\n"
    assert [use.name for use in uses_in(code, "m")] == ["_w"]


def test_every_module_of_compat_is_read() -> None:
    """The modules of `compat/` and of the packages in it are read, and no two have the same name."""
    files = COMPAT.rglob("*.py")
    names = [file.parent.name if file.stem == "__init__" else file.stem for file in files]
    assert sorted(compat_sources()) == sorted(names)


@pytest.mark.parametrize(
    ("place", "public"),
    [
        ("structure.markers", (IMPORT,)),
        (
            "since_2_10._attach",
            # The import mentions `flatten` and `slice_mesh`, which counts as calling them.
            (IMPORT, "concatenate", "flatten", "init_device_mesh", "slice_mesh", "unflatten"),
        ),
        ("create.init_device_mesh", ("init_device_mesh",)),
        ("facts", (IMPORT, "flatten")),
        ("no_such_module.flatten", ()),
    ],
)
def test_public_functions_that_depend_on_a_place_are_found(place: str, public: tuple[str, ...]) -> None:
    """Public functions are found through other modules, the eras, the facts and methods, and for no unknown place."""
    found = public_callers([place])
    assert set(public) <= set(found)
    assert bool(found) == bool(public)
    assert (IMPORT in found) == (IMPORT in public)
