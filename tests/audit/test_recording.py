"""What of torch's sources is recorded."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from automodel_mesh.audit.recording import read_names, without_type_checking
from automodel_mesh.audit.torch_names import Scopes, TorchNames, parse_names
from automodel_mesh.tracking.sources import SourcesError
from tests.tracking.small_torch import make_folder, make_wheel

pytestmark = pytest.mark.release_independent


@pytest.mark.parametrize("first", ["@deprecated('x')\n    def f(): ...", "@final\n    class f: ...", "from x import f"])
def test_what_type_checkers_see_leaves_code_that_can_be_read(first: str) -> None:
    """The decorators of what is blanked go too, as in torch/_utils.py; what runs stays."""
    text = without_type_checking(f"if TYPE_CHECKING:\n    {first}\nelse:\n    f = 1\nvalue = 2\n")
    assert [ast.unparse(node) for node in ast.parse(text).body[1:]] == ["value = 2"]
    assert "f = 1" in text
    assert "deprecated" not in text


FILES = {
    "torch/__init__.py": b"from typing import TYPE_CHECKING\nfrom torch import nn as nn\nfrom torch.nn import Linear\n"
    b"if TYPE_CHECKING:\n    from torch.nn import Hidden\nraise AssertionError('torch was imported')\n",
    "torch/version.py": b"__version__ = '2.99.0.dev1+cpu'\n",
    "torch/nn.py": b"import math\nclass Module:\n    def go(self, a, /, b=1, *, c): ...\n"
    b"class Linear(Module, metaclass=type):\n    size: 'Module'\n"
    b"    def __init__(self, n: int) -> None:\n        self.n = n\n"
    b"def make(*args, **more) -> Linear: ...\nalias = Linear\n",
    "torch/_C/__init__.pyi": b"from typing import overload\n@overload\ndef f(a: int) -> int: ...\n"
    b"@overload\ndef f(a: int, b: str) -> int: ...\n",
    "torch/open.py": b"globals()['made'] = 1\n",
}


@pytest.fixture(params=["folder", "wheel"])
def scopes(request: pytest.FixtureRequest, tmp_path: Path) -> Scopes:
    """Record a small torch, from a folder and from a wheel."""
    if request.param == "wheel":
        version, found = read_names(make_wheel(tmp_path, "2.99.0.dev1+cpu", files=FILES))
    else:
        make_folder(tmp_path, FILES)
        version, found = read_names(tmp_path)
    assert version == "2.99.0.dev1+cpu"
    return found


def test_what_is_recorded(scopes: Scopes) -> None:
    """Re-exports, classes with bases and attributes, signatures, returned classes and overloads have their entries."""
    assert scopes["torch"]["Linear"] == "=torch.nn.Linear"
    assert "Hidden" not in scopes["torch"]
    assert scopes["torch.nn"] | {"": ""} == {
        "": "",
        "math": "",
        "Module": "C",
        "Linear": "C",
        "make": "(*args,**more)>torch.nn.Linear",
        "alias": "=torch.nn.Linear",
    }
    assert scopes["torch.nn:Module"] == {"": "C", "go": "(self,a,/,b=,*,c)"}
    assert scopes["torch.nn:Linear"] == {
        "": "Ctorch.nn.Module,?",
        "size": ":torch.nn.Module",
        "n": "",
        "__init__": "(self,n)",
    }
    assert scopes["torch._C"] == {"": "MS", "overload": "", "f": "(a)|(a,b)"}
    assert scopes["torch.open"][""] == "MO"


def test_releases_are_added_and_forgotten(scopes: Scopes) -> None:
    """The text of the data file has each entry once for all releases that have it, and is read as it was written."""
    old = {**scopes, "torch.nn": {**scopes["torch.nn"], "make": "()"}}
    names = TorchNames((), {}, {}).add({"2.98.0": old}).add({"2.99.0": scopes})
    again = parse_names(names.text())
    assert again.text() == names.text()
    assert again.scope("torch.nn", "2.98.0") == old["torch.nn"]
    assert again.scope("torch.nn", "2.99.0") == scopes["torch.nn"]
    assert "make\t1\t()\t2\t(*args" in again.text()
    assert again.forget(["2.98.0"]).releases == ("2.99.0",)
    assert again.scope("torch.nn", "2.97.0") is None


def test_a_folder_without_torch_is_refused(tmp_path: Path) -> None:
    """The error says what a folder must have."""
    with pytest.raises(SourcesError, match="no torch"):
        read_names(tmp_path)
