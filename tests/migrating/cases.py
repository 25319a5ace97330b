"""Code before and after `automodel-mesh migrate`, in the ways that frameworks write it."""

from __future__ import annotations

from textwrap import dedent
from typing import Final

TORCH: Final = "from torch.distributed.device_mesh import DeviceMesh\n"
"""The import that most of the code has."""


def module(body: str, *, imports: str = TORCH, ours: str = "") -> str:
    """Return a module: its imports, that of our functions after them, and indented code."""
    line = f"from automodel_mesh.compat import {ours}\n" if ours else ""
    return f"{imports}{line}\n{dedent(body)}"


REWRITTEN: Final[dict[str, tuple[str, str]]] = {
    "flatten": (
        module("def f(mesh: DeviceMesh):\n    return mesh._flatten('dp')  # kept\n"),
        module("def f(mesh: DeviceMesh):\n    return flatten(mesh, 'dp')  # kept\n", ours="flatten"),
    ),
    "an argument that is for keywords only here": (
        module("def f(mesh: DeviceMesh):\n    return mesh._flatten('dp', 'gloo')\n"),
        module("def f(mesh: DeviceMesh):\n    return flatten(mesh, 'dp', backend_override='gloo')\n", ours="flatten"),
    ),
    "unflatten over several lines": (
        module(
            "def f(m: DeviceMesh):\n    return m._unflatten(\n        0,\n        (2, 2),  # sizes\n"
            "        ('a', 'b'),\n    )\n"
        ),
        module(
            "def f(m: DeviceMesh):\n    return unflatten(\n        m,\n        0,\n"
            "        (2, 2),  # sizes\n        ('a', 'b'),\n    )\n",
            ours="unflatten",
        ),
    ),
    "concatenate": (
        module("def f(a: DeviceMesh, b: DeviceMesh):\n    return DeviceMesh._concatenate([a, b])\n"),
        module("def f(a: DeviceMesh, b: DeviceMesh):\n    return concatenate([a, b])\n", ours="concatenate"),
    ),
    "slices, groups and the coordinate of what init_device_mesh makes": (
        "import torch\nfrom torch.distributed import init_device_mesh\n\n"
        "mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('a', 'b'))\n"
        "print(mesh['a', 'b']['a'], mesh[('a',)], mesh.get_group('a'), mesh.get_coordinate())\n",
        "import torch\nfrom automodel_mesh.compat import (\n    get_coordinate,\n    get_group,\n"
        "    init_device_mesh,\n    slice_mesh,\n)\n\n"
        "mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('a', 'b'))\n"
        "print(slice_mesh(slice_mesh(mesh, ('a', 'b')), 'a'), slice_mesh(mesh, ('a',)), get_group(mesh, 'a'), "
        "get_coordinate(mesh))\n",
    ),
    "the registry of older releases": (
        "from torch.distributed.device_mesh import _mesh_resources\n\n"
        "def f(mesh):\n    root = _mesh_resources.get_root_mesh(mesh)\n"
        "    return _mesh_resources.root_to_flatten_mapping[root]['dp'], "
        "_mesh_resources.root_to_flatten_mapping.get(root, {}).keys()\n",
        "from automodel_mesh.compat import flattened_meshes, get_root_mesh\n\n"
        "def f(mesh):\n    root = get_root_mesh(mesh)\n"
        "    return flattened_meshes(root)['dp'], flattened_meshes(root).keys()\n",
    ),
    "the mapping of a root": (
        module(
            "def f(mesh):\n    root = mesh._get_root_mesh()\n"
            "    return 'a' in root._flatten_mapping and root._flatten_mapping['a']\n"
        ),
        module(
            "def f(mesh):\n    root = get_root_mesh(mesh)\n"
            "    return 'a' in flattened_meshes(root) and flattened_meshes(root)['a']\n",
            ours="flattened_meshes, get_root_mesh",
        ),
    ),
    "attributes and methods of self": (
        module(
            """\
            class A:
                tp: "DeviceMesh | None" = None
                def __init__(self, mesh: DeviceMesh):
                    self.mesh = mesh
                def part(self) -> DeviceMesh:
                    return self.mesh["a"]
                def use(self):
                    return self.part()._flatten("b"), self.tp.get_group(), [self.mesh["a"] for _ in ()]
            """
        ),
        module(
            """\
            class A:
                tp: "DeviceMesh | None" = None
                def __init__(self, mesh: DeviceMesh):
                    self.mesh = mesh
                def part(self) -> DeviceMesh:
                    return slice_mesh(self.mesh, "a")
                def use(self):
                    return flatten(self.part(), "b"), get_group(self.tp), [slice_mesh(self.mesh, "a") for _ in ()]
            """,
            ours="flatten, get_group, slice_mesh",
        ),
    ),
    "a name of the file's own": (
        module("def flatten(x):\n    return x\n\ndef f(mesh: DeviceMesh):\n    return mesh._flatten('dp')\n"),
        module(
            "def flatten(x):\n    return x\n\ndef f(mesh: DeviceMesh):\n    return compat_flatten(mesh, 'dp')\n",
            ours="flatten as compat_flatten",
        ),
    ),
    "torch imported in functions only": (
        "def f(mesh):\n    from torch.distributed.device_mesh import init_device_mesh\n"
        "    root = init_device_mesh('cpu', (8,))\n"
        "    return root._flatten('x')\n",
        "def f(mesh):\n    from automodel_mesh.compat import flatten, init_device_mesh\n"
        "    root = init_device_mesh('cpu', (8,))\n"
        "    return flatten(root, 'x')\n",
    ),
    "an attribute of torch.distributed": (
        "import torch.distributed as dist\nmesh = dist.init_device_mesh('cpu', (8,))\nprint(dist.get_rank())\n",
        "import torch.distributed as dist\nfrom automodel_mesh.compat import init_device_mesh\n"
        "mesh = init_device_mesh('cpu', (8,))\nprint(dist.get_rank())\n",
    ),
    "both ways to call init_device_mesh": (
        "import torch\nfrom torch.distributed import init_device_mesh as make\n"
        "a = make('cpu', (8,))\nb = torch.distributed.init_device_mesh('cpu', (8,))\n",
        "from automodel_mesh.compat import init_device_mesh, init_device_mesh as make\n"
        "a = make('cpu', (8,))\nb = init_device_mesh('cpu', (8,))\n",
    ),
    "an import that is there already": (
        "from __future__ import annotations\n\nfrom automodel_mesh.compat import unflatten\n" + TORCH + "\n"
        "def f(mesh: DeviceMesh):\n    return unflatten(mesh._flatten('dp'), 0, (2, 2), ('a', 'b'))\n",
        "from __future__ import annotations\n\nfrom automodel_mesh.compat import flatten, unflatten\n" + TORCH + "\n"
        "def f(mesh: DeviceMesh):\n    return unflatten(flatten(mesh, 'dp'), 0, (2, 2), ('a', 'b'))\n",
    ),
    "branches that become the same": (
        "import torch\nfrom torch.distributed.device_mesh import _mesh_resources\n\ndef f(mesh):\n    # The root.\n"
        '    if hasattr(mesh, "_get_root_mesh"):\n        root = mesh._get_root_mesh()\n'
        "    else:\n        root = _mesh_resources.get_root_mesh(mesh)\n    return root\n",
        "import torch\nfrom automodel_mesh.compat import get_root_mesh\n\ndef f(mesh):\n    # The root.\n"
        "    root = get_root_mesh(mesh)\n    return root\n",
    ),
    "an early return before the same code": (
        "import torch\nfrom torch.distributed.device_mesh import _mesh_resources\n\ndef f(mesh):\n"
        '    if hasattr(mesh, "_get_root_mesh"):\n        return mesh._get_root_mesh()\n'
        "    return _mesh_resources.get_root_mesh(mesh)\n",
        "import torch\nfrom automodel_mesh.compat import get_root_mesh\n\ndef f(mesh):\n"
        "    return get_root_mesh(mesh)\n",
    ),
    "a guarded import, and an expression and a try with equal branches": (
        "import torch\ntry:\n    from torch.distributed.device_mesh import _mesh_resources\nexcept ImportError:\n"
        "    _mesh_resources = None\n\ndef f(mesh):\n"
        "    a = _mesh_resources.get_root_mesh(mesh) if _mesh_resources is not None else mesh._get_root_mesh()\n"
        "    try:\n        b = mesh._get_root_mesh()\n    except AttributeError:\n"
        "        b = _mesh_resources.get_root_mesh(mesh)\n    return a, b\n",
        "import torch\nfrom automodel_mesh.compat import get_root_mesh\n\ndef f(mesh):\n"
        "    a = get_root_mesh(mesh)\n    b = get_root_mesh(mesh)\n    return a, b\n",
    ),
    "NeMo AutoModel's import lines": (
        "from nemo_automodel.components.distributed import FSDP2Config\n"
        "from nemo_automodel.components.distributed.mesh_utils import get_flat_mesh, get_submesh as part\n"
        "from nemo_automodel.components.distributed.fsdp2 import FSDP2Manager\n",
        "from automodel_mesh import FSDP2Config\n"
        "from automodel_mesh.mesh_utils import get_flat_mesh, get_submesh as part\n"
        "from nemo_automodel.components.distributed.fsdp2 import FSDP2Manager\n",
    ),
    "NeMo AutoModel 0.4": (
        "from nemo_automodel.components.distributed.config import FSDP2Config\n"
        "from nemo_automodel.components.distributed.device_mesh import create_device_mesh\n",
        "from automodel_mesh.nemo.v0_4.config import FSDP2Config\n"
        "from automodel_mesh.nemo.v0_4.mesh_utils import create_device_mesh\n",
    ),
}
"""The code before and after."""

LEFT: Final[dict[str, tuple[str, str]]] = {
    "an unknown value": (module("def f(m):\n    return m._flatten('dp')\n"), "annotate it"),
    "a mesh by its name only": (module("def f(mesh):\n    return mesh['dp', 'tp']\n"), "annotate it"),
    "a value that is also something else": (
        module("def f(mesh: DeviceMesh):\n    mesh = mesh.mesh\n    return mesh['a']\n"),
        "annotate it",
    ),
    "hidden arguments": (module("def f(mesh: DeviceMesh, names):\n    return mesh._flatten(*names)\n"), "hides"),
    "an argument of one release": (
        module("def f(m: DeviceMesh):\n    return m._flatten('a', new=1)\n"),
        "no argument `new`",
    ),
    "init_device_mesh with such an argument": (
        "from torch.distributed.device_mesh import init_device_mesh\nm = init_device_mesh('cpu', (8,), new=1)\n",
        "no argument `new`",
    ),
    "an index that is no name": (module("def f(mesh: DeviceMesh):\n    return mesh[0]\n"), "only names"),
    "a write": (module("def f(root: DeviceMesh):\n    root._flatten_mapping['a'] = 1\n"), "for reading"),
    "the mapping of a mesh that may be no root": (
        module("def f(mesh: DeviceMesh):\n    return 'a' in mesh._flatten_mapping\n"),
        "not a root",
    ),
    "a method that is not called": (module("def f(mesh: DeviceMesh):\n    return mesh._flatten\n"), "not known here"),
    "other calls of the registry": (
        "from torch.distributed.device_mesh import _mesh_resources\n\n"
        "print(_mesh_resources.mesh_stack, _mesh_resources.get_current_mesh())\n",
        "no equivalent",
    ),
    "branches for old and new releases": (
        module(
            "def f(m: DeviceMesh):\n    if hasattr(m, '_unflatten'):\n"
            "        return m._unflatten(0, (2,), ('a',))\n    return None\n"
        ),
        "keep one",
    ),
    "a branch of a version": (
        module("import torch\ndef f(m: DeviceMesh):\n    return m['a'] if torch_version > (2, 9) else None\n"),
        "keep one",
    ),
    "an error that leads elsewhere": (
        module(
            "def f(m: DeviceMesh):\n    try:\n        return m._flatten('a')\n"
            "    except RuntimeError:\n        return None\n"
        ),
        "keep one way",
    ),
    "an error that is expected": (
        module("import pytest\ndef f(m: DeviceMesh):\n    with pytest.raises(KeyError):\n        m['a']\n"),
        "another class",
    ),
    "a guarded import of a function": (
        "try:\n    from torch.distributed.device_mesh import init_device_mesh\nexcept ImportError:\n"
        "    init_device_mesh = None\n",
        "keep one way",
    ),
    "a comment between the parts": (
        module("def f(m: DeviceMesh):\n    return (m  # why\n    ._flatten('a'))\n"),
        "a comment",
    ),
    "several statements on a line": (
        "import os; from torch.distributed import init_device_mesh\n",
        "several statements",
    ),
    "a name that is not here": (
        "from nemo_automodel.components.distributed.mesh_utils import get_flat_mesh, _can_reuse_default_group\n",
        "_can_reuse_default_group is not here",
    ),
    "a module of NeMo AutoModel": ("import nemo_automodel.components.distributed.mesh_utils as m\n", "import those"),
    "a module from the package": ("from nemo_automodel.components.distributed import config\n", "is a module"),
    "a name in a string": (module("def f(mesh):\n    return getattr(mesh, '_flatten_mapping', {})\n"), "same on all"),
}
"""Code that stays as it is, and a part of the reason."""

IGNORED: Final[dict[str, str]] = {
    "a class of its own": "class A:\n    def _flatten(self): ...\n    def f(self): return self._flatten()\n",
    "another library": "import jax\ndef f(tree): return tree._flatten(), tree['a'], tree.get_group()\n",
    "the base class": module("class A(B):\n    def f(self): return super()._flatten()\n"),
    "a tensor": module("def f(x: torch.Tensor): return x['a'], x.get_group()\n", imports="import torch\n" + TORCH),
    "several meshes": module("def f(*a: DeviceMesh, **b: DeviceMesh): return a[0], b['a']\n"),
    "an annotation": module("def f(a: dict[str, DeviceMesh]): return a['a']\n"),
}
"""Code that stays as it is, of which nothing is said."""
