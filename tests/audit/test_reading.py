"""Which names of torch some code uses: imports, attributes, arguments, strings, and methods of objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automodel_mesh.audit.findings import Audit
from automodel_mesh.audit.judging import audit

pytestmark = pytest.mark.release_independent

RELEASES = ("2.6.0", "2.8.0", "2.9.1", "2.10.0", "2.15.0")
ROOT = "torch.distributed.device_mesh.DeviceMesh._get_root_mesh"

MISSING = {
    "import": ("import torch.nn.attention.varlen", "torch.nn.attention.varlen"),
    "import as": ("import torch.nn.attention.varlen as v", "torch.nn.attention.varlen"),
    "from import": ("from torch.nn.attention import varlen", "torch.nn.attention.varlen"),
    "from import as": ("from torch.nn.attention.varlen import varlen_attn as v", "torch.nn.attention.varlen"),
    "a re-export": ("from torch.distributed.pipelining.microbatch import BlockMask", None),
    "attribute": ("import torch\nx = torch.nn.attention.varlen.varlen_attn", "torch.nn.attention.varlen"),
    "attribute of an alias": ("from torch import nn as n\nx = n.attention.varlen", "torch.nn.attention.varlen"),
    "attribute of a variable": ("import torch\na = torch.nn.attention\na.varlen", "torch.nn.attention.varlen"),
    "method of an annotated parameter": (
        "from torch.distributed import DeviceMesh\ndef f(m: DeviceMesh):\n    m._get_root_mesh()", ROOT
    ),
    "method, by a string annotation": (
        "from torch.distributed import DeviceMesh\ndef f(m: 'DeviceMesh | None'):\n    m._get_root_mesh()", ROOT
    ),
    "method of what a call returns": (
        "from torch.distributed import init_device_mesh\nm = init_device_mesh('cpu', (2,))\nm._get_root_mesh()", ROOT
    ),
    "method of a slice": (
        "from torch.distributed import init_device_mesh\nm = init_device_mesh('cpu', (2,), mesh_dim_names=('a',))\n"
        "m['a']._get_root_mesh()", ROOT
    ),
    "method of an attribute of self": (
        "from torch.distributed import DeviceMesh\nclass A:\n    def __init__(self, mesh: DeviceMesh):\n"
        "        self.mesh = mesh\n    def f(self):\n        self.mesh._get_root_mesh()", ROOT
    ),
    "method of an attribute that is declared": (
        "from torch.distributed import DeviceMesh\nclass A:\n    mesh: DeviceMesh\n    def f(self):\n"
        "        self.mesh._get_root_mesh()", ROOT
    ),
    "method after isinstance": (
        "from torch.distributed import DeviceMesh\ndef f(m):\n    if isinstance(m, DeviceMesh):\n"
        "        m._get_root_mesh()", ROOT
    ),
    "a tag": ("import torch\nx = torch.Tag.reduction", "torch._C.Tag.reduction"),
    "a telling name": ("def f(anything):\n    return anything._get_root_mesh()", ROOT),
    "getattr": ("import torch\ngetattr(torch.nn.attention, 'varlen')", "torch.nn.attention.varlen"),
    "import_module": ("import importlib\nimportlib.import_module('torch.nn.attention.varlen')", None),
    "in a decorator": ("import torch\n@torch.nn.attention.varlen\ndef f(): ...", "torch.nn.attention.varlen"),
    "in a base class": (
        "import torch\nclass A(torch.nn.attention.varlen.varlen_attn): ...", "torch.nn.attention.varlen"
    ),
    "in an annotation that is evaluated": (
        "import torch\ndef f(x: torch.nn.attention.varlen): ...", "torch.nn.attention.varlen"
    ),
    "in a lambda": ("import torch\nf = lambda: torch.nn.attention.varlen", "torch.nn.attention.varlen"),
    "in a comprehension": (
        "import torch\nf = [torch.nn.attention.varlen for _ in range(2)]", "torch.nn.attention.varlen"
    ),
    "in match": (
        "import torch\ndef f(x):\n    match x:\n        case 1:\n            torch.nn.attention.varlen",
        "torch.nn.attention.varlen",
    ),
    "in an f-string": ("import torch\nx = f'{torch.nn.attention.varlen}'", "torch.nn.attention.varlen"),
}  # fmt: skip

NOTHING = {
    "a local name torch": "def f(torch):\n    torch.nn.attention.varlen",
    "an annotation that is not evaluated": (
        "from __future__ import annotations\nimport torch\ndef f(x: torch.nn.attention.varlen): ..."
    ),
    "a method that the code defines": (
        "class Tree:\n    def _get_root_mesh(self): ...\ndef f(x):\n    x._get_root_mesh()"
    ),
    "what another package adds": "import torch\ntorch.npu.set_device(0)",
    "operators": "import torch\ntorch.ops.mylib.relu",
    "an attribute that the code sets": (
        "from torch.distributed import DeviceMesh\ndef f(m: DeviceMesh):\n    m.my_own = 1\n    return m.my_own"
    ),
    "a variable that is no module any more": "import torch\ntorch = object()\ntorch.nn.attention.varlen",
    "a docstring": "'''import torch.nn.attention.varlen'''",
}

ARGUMENTS = {
    "a keyword": (
        "from torch.distributed import init_device_mesh as i\ni('cpu', (2,), backend_override={})", "backend_override"
    ),
    "a keyword of a method": (
        "from torch.distributed import DeviceMesh\ndef f(m: DeviceMesh):\n    m._flatten('x', backend_override=None)",
        "backend_override",
    ),
    "a keyword of a class": ("from torch.distributed import DeviceMesh\nDeviceMesh('cpu', [0], _rank=0)", "_rank"),
    "too many": ("from torch.distributed import DeviceMesh\ndef f(m: DeviceMesh):\n    m._flatten('x', None)", "*"),
}  # fmt: skip


def audited(tmp_path: Path, code: str) -> Audit:
    """Audit some code."""
    file = tmp_path / "code.py"
    file.write_text(f"{code}\n")
    result = audit([file], RELEASES)
    assert not result.unread
    return result


@pytest.mark.parametrize(("code", "name"), MISSING.values(), ids=MISSING)
def test_a_use_of_a_name_that_old_releases_lack_is_found(tmp_path: Path, code: str, name: str | None) -> None:
    """The finding names what is missing, and the releases that lack it."""
    (found,) = audited(tmp_path, code).findings
    assert found.kind == "missing-name"
    assert found.name == name or name is None
    assert found.breaks == ("2.6.0", "2.8.0", "2.9.1")
    assert "2.6 - 2.9" in found.message


@pytest.mark.parametrize("code", NOTHING.values(), ids=NOTHING)
def test_what_is_no_use_of_torch_is_not_found(tmp_path: Path, code: str) -> None:
    """Names that only look like torch's, or that other code adds to torch, are left alone."""
    assert audited(tmp_path, code).findings == ()


@pytest.mark.parametrize(("code", "argument"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_that_old_releases_lack_is_found(tmp_path: Path, code: str, argument: str) -> None:
    """The finding names the function with the argument in brackets; `*` stands for too many positional arguments."""
    found = [one for one in audited(tmp_path, code).findings if one.kind == "missing-argument"]
    assert [one.name.rpartition("(")[2] for one in found] == [f"{argument})"]
    assert "2.6.0" in found[0].breaks
    assert "2.15.0" not in found[0].breaks


def test_a_name_that_new_releases_lack_is_found(tmp_path: Path) -> None:
    """Names that were removed are found as well as those that came later."""
    code = "from torch.distributed import device_mesh as d\nx = d._mesh_resources.child_to_root_mapping"
    (found,) = audited(tmp_path, code).findings
    assert found.breaks == ("2.10.0", "2.15.0")


def test_what_runs_later_is_told_apart(tmp_path: Path) -> None:
    """A module that cannot be imported is worse than a function that cannot be called; a `__main__` block is called."""
    code = (
        "import torch\ntorch.nn.attention.varlen\ndef f():\n    torch.nn.attention.varlen\n"
        "if __name__ == '__main__':\n    torch.nn.attention.varlen\ntorch.nn.attention.varlen"
    )
    assert [(one.line, one.when) for one in audited(tmp_path, code).findings] == [
        (2, "import"),
        (4, "call"),
        (6, "call"),
        (7, "import"),
    ]


def test_columns_count_characters(tmp_path: Path) -> None:
    """Not the bytes that Python counts; a form feed does not end a line."""
    code = "import torch\n\x0cx = '\u00e9\U0001f600'; torch.nn.attention.varlen\n"
    (found,) = audited(tmp_path, code).findings
    assert (found.line, found.column) == (2, code.split("\n")[1].index("torch") + 1)


def test_a_name_defined_elsewhere_on_all_releases_is_offered(tmp_path: Path) -> None:
    """If all releases have the thing at the place where it is defined, the finding says so."""
    (found,) = audited(tmp_path, "from torch.distributed.pipelining.microbatch import BlockMask").findings
    assert found.instead == "torch.nn.attention.flex_attention.BlockMask"


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files into a folder."""
    for name, code in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)


def places(result: Audit, folder: Path) -> list[tuple[str, int]]:
    """Return the files below a folder, and the lines, of the findings."""
    return [(Path(one.file).relative_to(folder).as_posix(), one.line) for one in result.findings]


def test_modules_of_the_same_name_are_all_read(tmp_path: Path) -> None:
    """A package that is there twice, as in a copy; each of its files has its findings."""
    code = "import torch.nn.attention.varlen\n"
    write(tmp_path, {f"{root}/pkg/{name}.py": code for root in ("old", "new") for name in ("__init__", "a")})
    found = places(audit([tmp_path], RELEASES), tmp_path)
    assert found == [("new/pkg/__init__.py", 1), ("new/pkg/a.py", 1), ("old/pkg/__init__.py", 1), ("old/pkg/a.py", 1)]


def test_folders_in_a_package_need_no_init_file(tmp_path: Path) -> None:
    """They are a part of its name, so that two of them may have modules of the same name, and imports find these."""
    flag = "import torch\nHAS = hasattr(torch.nn.attention, 'varlen')\n"
    user = "from pkg.{0}.sub.flag import HAS\nif HAS:\n    import torch.nn.attention.varlen\nimport torch.{0}\n"
    write(
        tmp_path,
        {
            "pyproject.toml": "",
            "pkg/__init__.py": "",
            **{f"pkg/{one}/sub/__init__.py": "" for one in ("one", "two")},
            **{f"pkg/{one}/sub/flag.py": flag for one in ("one", "two")},
            **{f"pkg/{one}/sub/user.py": user.format(one) for one in ("one", "two")},
        },
    )
    result = audit([tmp_path], RELEASES)
    breaking = [one for one in result.findings if one.breaks]
    assert places(replace(result, findings=tuple(breaking)), tmp_path) == [
        ("pkg/one/sub/user.py", 4),
        ("pkg/two/sub/user.py", 4),
    ]


def test_the_root_of_a_project_is_in_no_package(tmp_path: Path) -> None:
    """An `__init__.py` above it does not change the names of its modules."""
    write(
        tmp_path,
        {
            "__init__.py": "",
            "project/pyproject.toml": "",
            "project/src/pkg/__init__.py": "",
            "project/src/pkg/flag.py": "import torch\nHAS = hasattr(torch.nn.attention, 'varlen')\n",
            "project/src/pkg/user.py": "from pkg.flag import HAS\nif HAS:\n    import torch.nn.attention.varlen\n",
        },
    )
    assert not any(one.breaks for one in audit([tmp_path / "project"], RELEASES).findings)


def test_files_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    """A file that is not Python, or not text, makes the verdict `cannot tell`, with the reason."""
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good.py").write_text("import torch\n")
    result = audit([tmp_path], RELEASES)
    assert [Path(one.file).name for one in result.unread] == ["bad.py", "binary.py"]
    assert result.verdict("2.15.0") == "cannot tell"
    assert result.verdict("2.15.0", result.files[-1]) == "fits"
