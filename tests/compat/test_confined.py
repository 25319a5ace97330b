"""Private names of torch are used in `compat/` and nowhere else, and versions are compared in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.release_independent

CHECKOUT = Path(__file__).parents[2]
MESH_WORDS = re.compile(
    r"^_(mesh_resources|flatten|unflatten|concatenate|flatten_mapping|get_root_mesh|root_mesh|layout|rank_map|"
    r"dim_group_names|dim_group_infos|pg_registry|init_backend|get_slice_mesh_layout|create_sub_mesh|world|"
    r"resolve_process_group|get_default_group|set_mesh_dim_group_options|device_type|coordinate_on_dim)$"
)


def sources() -> list[Path]:
    """Every Python file of the project outside `compat/` and outside hidden folders."""
    found = []
    for path in sorted(CHECKOUT.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).parts
        in_compat = parts[0] == "compat" or parts[:2] == ("automodel_mesh", "compat")
        if not in_compat and not any(part.startswith(".") or part in {"build", "dist"} for part in parts):
            found.append(path)
    return found


def private(dotted: str) -> bool:
    """Tell whether a dotted name has a part that begins with one underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every use of a private torch name: imports, attributes, and names given as strings to getattr and kin."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names if _of_torch(one.name) and private(one.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _of_torch(node.module):
            names = [f"{node.module}.{one.name}" for one in node.names]
            yield from ((node.lineno, name) for name in names if private(name))
        elif isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            if (_of_torch(dotted) and private(dotted)) or MESH_WORDS.match(node.attr):
                yield node.lineno, dotted
        elif isinstance(node, ast.keyword) and node.arg and MESH_WORDS.match(node.arg):
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        }:
            texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            yield from ((node.lineno, text) for text in texts if MESH_WORDS.match(text))


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _of_torch(dotted: str) -> bool:
    return dotted.split(".", maxsplit=1)[0] in {"torch", "dist", "distributed_c10d", "c10d"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_private_torch_name_outside_compat(path: Path) -> None:
    """No file outside `compat/` imports or touches a private torch name, by attribute or by string."""
    uses = list(private_uses(ast.parse(path.read_text())))
    assert not uses, f"{path}: move these into compat/: {uses}"


@pytest.mark.parametrize(
    "code",
    [
        "from torch.testing._internal import x",
        "import torch._C",
        "mesh._flatten('a')",
        "torch.distributed.distributed_c10d._world",
        "getattr(mesh, '_get_root_mesh')",
        "DeviceMesh('cpu', ranks, _init_backend=False)",
    ],
)
def test_the_check_sees_private_uses(code: str) -> None:
    """The check above finds what it is meant to find."""
    assert list(private_uses(ast.parse(code)))


def test_versions_are_compared_in_one_place() -> None:
    """`torch.__version__` is read in the files that speak about it only, and parsed in one."""
    readers = [path for path in sources() if "torch.__version__" in path.read_text()]
    allowed = {
        "doctor.py",
        "cli.py",
        "testing.py",
        "test_testing.py",
        "test_gate.py",
        "test_confined.py",
        "test_cli.py",
        "test_doctor.py",
        "noxfile.py",
    }
    assert {path.name for path in readers} <= allowed
    inside = [path.name for path in sorted((CHECKOUT / "compat").glob("*.py")) if "Version(" in path.read_text()]
    assert inside == ["support.py"]
