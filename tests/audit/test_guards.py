"""Which code runs on which release: `hasattr`, `try`, comparisons of the version, and what follows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_mesh.audit.findings import Finding
from automodel_mesh.audit.judging import audit

pytestmark = pytest.mark.release_independent

RELEASES = ("2.6.0", "2.8.0", "2.9.1", "2.10.0", "2.15.0")
OLD = ("2.6.0", "2.8.0", "2.9.1")
"""The releases that `DeviceMesh._get_root_mesh`, and `torch.nn.attention.varlen`, are not in."""

UNDERSTOOD = {
    "hasattr": "if hasattr(torch.nn.attention, 'varlen'):\n    torch.nn.attention.varlen",
    "hasattr, and what follows a return": (
        "def f():\n    if not hasattr(torch.nn.attention, 'varlen'):\n        return\n    torch.nn.attention.varlen"
    ),
    "hasattr in a condition": "ok = hasattr(torch.nn.attention, 'varlen') and torch.nn.attention.varlen",
    "hasattr after isinstance": (
        "def f(x):\n    if isinstance(x, torch.Tensor) and hasattr(torch.nn.attention, 'varlen'):\n"
        "        torch.nn.attention.varlen"
    ),
    "torch is there": (
        "from package import is_torch_available\nif not is_torch_available():\n    torch.nn.attention.varlen\n"
        "elif hasattr(torch.nn.attention, 'varlen'):\n    torch.nn.attention.varlen"
    ),
    "hasattr or": "ok = not hasattr(torch.nn.attention, 'varlen') or torch.nn.attention.varlen",
    "a conditional expression": "x = torch.nn.attention.varlen if hasattr(torch.nn.attention, 'varlen') else None",
    "assert": "assert hasattr(torch.nn.attention, 'varlen')\ntorch.nn.attention.varlen",
    "a constant": "HAS = hasattr(torch.nn.attention, 'varlen')\nif HAS:\n    import torch.nn.attention.varlen",
    "find_spec": (
        "from importlib.util import find_spec\n"
        "if find_spec('torch.nn.attention.varlen') is not None:\n    import torch.nn.attention.varlen"
    ),
    "getattr with a default": (
        "varlen = getattr(torch.nn.attention, 'varlen', None)\nif varlen is not None:\n    varlen.varlen_attn"
    ),
    "except ImportError": "try:\n    import torch.nn.attention.varlen\nexcept ImportError:\n    pass",
    "except ModuleNotFoundError": "try:\n    import torch.nn.attention.varlen\nexcept ModuleNotFoundError:\n    pass",
    "except AttributeError": "try:\n    torch.nn.attention.varlen\nexcept (AttributeError, TypeError):\n    pass",
    "suppress": "import contextlib\nwith contextlib.suppress(ImportError):\n    import torch.nn.attention.varlen",
    "a flag set in try": (
        "try:\n    import torch.nn.attention.varlen\n    HAS = True\nexcept ImportError:\n    HAS = False\n"
        "def f():\n    if HAS:\n        torch.nn.attention.varlen.varlen_attn"
    ),
    "a name that except sets to None": (
        "try:\n    from torch.nn.attention import varlen\nexcept ImportError:\n    varlen = None\n"
        "def f():\n    if varlen:\n        varlen.varlen_attn"
    ),
    "else of try": (
        "try:\n    import torch.nn.attention.varlen as v\nexcept ImportError:\n    v = None\n"
        "else:\n    from torch.nn.attention.varlen import varlen_attn"
    ),
    "a version of packaging": (
        "from packaging.version import Version\n"
        "if Version(torch.__version__) >= Version('2.10'):\n    torch.nn.attention.varlen"
    ),
    "a tuple of numbers": (
        "version = tuple(int(one) for one in torch.__version__.split('+')[0].split('.')[:2])\n"
        "if version >= (2, 10):\n    torch.nn.attention.varlen"
    ),
    "the release of a version": (
        "from packaging import version\n"
        "if version.parse(torch.__version__).release >= (2, 10):\n    torch.nn.attention.varlen"
    ),
    "torch's own version object": "if torch.__version__ >= '2.10':\n    torch.nn.attention.varlen",
    "the version from the metadata": (
        "from importlib.metadata import version\nfrom packaging.version import parse\n"
        "if parse(version('torch')) >= parse('2.10'):\n    torch.nn.attention.varlen"
    ),
    "swapped": (
        "from packaging.version import parse\n"
        "if parse('2.10') <= parse(torch.__version__):\n    torch.nn.attention.varlen"
    ),
    "else of a comparison": (
        "from packaging.version import parse\nif parse(torch.__version__) < parse('2.10'):\n    pass\n"
        "else:\n    torch.nn.attention.varlen"
    ),
    "raise of a comparison": (
        "from packaging.version import parse\nif parse(torch.__version__) < parse('2.10'):\n    raise ImportError\n"
        "torch.nn.attention.varlen"
    ),
    "a function of the module": (
        "from packaging.version import parse\ndef is_new():\n    return parse(torch.__version__) >= parse('2.10')\n"
        "if is_new():\n    torch.nn.attention.varlen"
    ),
    "a function that tries": (
        "def has():\n    try:\n        import torch.nn.attention.varlen\n        return True\n    except ImportError:\n"
        "        return False\nif has():\n    torch.nn.attention.varlen"
    ),
    "a function of another package, with an operator": (
        "from accelerate.utils import is_torch_version\n"
        "if is_torch_version('>=', '2.10'):\n    torch.nn.attention.varlen"
    ),
    "compare_versions": (
        "from accelerate.utils import compare_versions\n"
        "if compare_versions('torch', '>=', '2.10'):\n    torch.nn.attention.varlen"
    ),
    "a function of another package, by its name": (
        "from transformers.utils import is_torch_greater_or_equal\n"
        "if is_torch_greater_or_equal('2.10'):\n    torch.nn.attention.varlen"
    ),
    "a name with the version": (
        "from transformers.pytorch_utils import is_torch_greater_or_equal_than_2_10 as ok\n"
        "from transformers import pytorch_utils\n"
        "if pytorch_utils.is_torch_greater_or_equal_than_2_10:\n    torch.nn.attention.varlen"
    ),
    "TYPE_CHECKING": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch.nn.attention import varlen",
    "hasattr of a mesh": (
        "def f(mesh):\n    return mesh._get_root_mesh() if hasattr(mesh, '_get_root_mesh') else None"
    ),
    "a parameter of a signature": (
        "import inspect\nfrom torch.distributed.device_mesh import init_device_mesh\n"
        "if 'backend_override' in inspect.signature(init_device_mesh).parameters:\n"
        "    init_device_mesh('cpu', (2,), backend_override={})"
    ),
}
"""Code that takes care of the releases that lack what it uses."""

NOT_ENOUGH = {
    "that torch is there": (
        "def is_torch_available():\n    return find('torch')\nif is_torch_available():\n    torch.nn.attention.varlen"
    ),
    "that torch is there, and not too old": (
        "def is_torch_available():\n    there = find('torch')\n    return there and torch.__version__ >= '2.6'\n"
        "if is_torch_available():\n    torch.nn.attention.varlen"
    ),
    "no check": "torch.nn.attention.varlen",
    "the wrong name": "if hasattr(torch.nn, 'attention'):\n    torch.nn.attention.varlen",
    "the other branch": "if hasattr(torch.nn.attention, 'varlen'):\n    pass\nelse:\n    torch.nn.attention.varlen",
    "too old a version": (
        "from packaging.version import parse\n"
        "if parse(torch.__version__) >= parse('2.6'):\n    torch.nn.attention.varlen"
    ),
    "except that raises": (
        "try:\n    import torch.nn.attention.varlen\nexcept ImportError as error:\n    raise RuntimeError from error"
    ),
    "except of another error": "try:\n    import torch.nn.attention.varlen\nexcept AttributeError:\n    pass",
    "an attribute and except ImportError": "try:\n    torch.nn.attention.varlen\nexcept ImportError:\n    pass",
    "after a check of an argument": "def f(x):\n    if x is None:\n        return\n    torch.nn.attention.varlen",
    "after another check of an argument": "def f(x):\n    if not x:\n        return\n    torch.nn.attention.varlen",
    "after the check": "if hasattr(torch.nn.attention, 'varlen'):\n    pass\ntorch.nn.attention.varlen",
    "getattr without a default": "getattr(torch.nn.attention, 'varlen')",
    "import_module": "import importlib\nimportlib.import_module('torch.nn.attention.varlen')",
}
"""Code that does not."""

UNKNOWN = {
    "a setting": "def f(fast):\n    if fast:\n        torch.nn.attention.varlen",
    "after a check of another package": (
        "from other import is_supported\ndef f():\n    if not is_supported():\n        return\n"
        "    torch.nn.attention.varlen"
    ),
    "a function of another package": "from other import ok\nif ok():\n    torch.nn.attention.varlen",
    "except beside another package": (
        "try:\n    import other\n    from torch.nn import attention\nexcept ImportError:\n"
        "    import torch.nn.attention.varlen"
    ),
}
"""Code of which the text does not tell."""


def found_in(tmp_path: Path, code: str) -> list[Finding]:
    """Return what an audit finds in some code."""
    file = tmp_path / "code.py"
    file.write_text(f"import torch\nimport torch.nn.attention\n{code}\n")
    result = audit([file], RELEASES)
    assert not result.unread
    return list(result.findings)


@pytest.mark.parametrize("code", UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_code_that_takes_care_fits(tmp_path: Path, code: str) -> None:
    """A check of the release, or of the name, before a use, or a handler around it, is understood."""
    found = found_in(tmp_path, code)
    assert all(one.is_harmless for one in found), found


@pytest.mark.parametrize("code", NOT_ENOUGH.values(), ids=NOT_ENOUGH)
def test_code_that_does_not_take_care_breaks(tmp_path: Path, code: str) -> None:
    """A check of something else, or for other releases, protects nothing."""
    breaks = {one.breaks for one in found_in(tmp_path, code)}
    assert breaks == {OLD}


@pytest.mark.parametrize("code", UNKNOWN.values(), ids=UNKNOWN)
def test_a_check_that_is_not_understood_leaves_it_open(tmp_path: Path, code: str) -> None:
    """A condition that does not depend on torch, or is not in the text, makes it impossible to tell."""
    found = [one for one in found_in(tmp_path, code) if not one.is_harmless]
    assert [(one.breaks, one.cannot_tell) for one in found] == [((), OLD)]


def test_what_is_in_except_is_judged_where_it_runs(tmp_path: Path) -> None:
    """A fallback in `except ImportError` that only new releases lack fits, because it runs on old ones only."""
    code = (
        "try:\n    from torch.nn.attention.varlen import varlen_attn\nexcept ImportError:\n"
        "    from torch.distributed import device_mesh\n    device_mesh._mesh_resources.child_to_root_mapping"
    )
    found = found_in(tmp_path, code)
    assert len(found) == 2
    assert all(one.is_harmless for one in found)
    assert {one.guard for one in found} == {"except ImportError, line 5", "try, line 3"}


def test_a_check_in_another_module_of_the_code_is_read(tmp_path: Path) -> None:
    """A flag and a function that are imported from another file of the same package are understood."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "checks.py").write_text(
        "import torch\nfrom packaging.version import parse\nNEW = parse(torch.__version__) >= parse('2.10')\n"
        "def is_new():\n    return NEW\n"
    )
    (package / "uses.py").write_text(
        "import torch\nfrom .checks import NEW, is_new\nfrom package import checks\n"
        "if NEW:\n    torch.nn.attention.varlen\nif is_new():\n    torch.nn.attention.varlen.varlen_attn\n"
        "if checks.NEW:\n    import torch.nn.attention.varlen\n"
    )
    found = audit([package], RELEASES).findings
    assert [one.line for one in found] == [5, 7, 9]
    assert all(one.is_harmless for one in found)
