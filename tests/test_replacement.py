"""`replace_nemo_automodel`: what is imported as NeMo AutoModel afterwards, what is refused, and undoing it.

The package is written here, of the same modules as the real one; `nox -s drop-in` does the same with that.
"""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import automodel_mesh
from automodel_mesh import replace_nemo_automodel
from automodel_mesh.nemo.replacement import REPLACED_MODULES, REPLACED_MODULES_0_4

pytestmark = pytest.mark.release_independent

DISTRIBUTED = "nemo_automodel.components.distributed"
TEXTS = {
    "__init__.py": "def __getattr__(name):\n    if name != 'Loader':\n        raise AttributeError(name)\n"
    "    from nemo_automodel import loader\n    globals()[name] = loader.Loader\n    return loader.Loader\n",
    "loader.py": f"from {DISTRIBUTED}.mesh import MeshContext\nclass Loader:\n    context = MeshContext\n",
    "shared.py": "",
    "components/__init__.py": "",
    "components/distributed/__init__.py": f"from {DISTRIBUTED}.config import FSDP2Config\n",
    "components/distributed/config.py": "class FSDP2Config: ...\n",
    "components/distributed/mesh.py": f"from {DISTRIBUTED}.config import FSDP2Config\nclass MeshContext: ...\n",
    "components/distributed/mesh_utils.py": "def get_flat_mesh(): ...\n",
    "components/distributed/init_utils.py": "",
    "components/distributed/parallelizer.py": f"from {DISTRIBUTED} import mesh_utils\n"
    f"from {DISTRIBUTED}.mesh import MeshContext\n",
    "components/distributed/pipelining/__init__.py": "",
    "components/distributed/pipelining/config.py": "class PipelineConfig: ...\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the package, so that it can be imported."""
    for name, text in TEXTS.items():
        path = tmp_path / "nemo_automodel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "nemo_automodel"


def imported() -> list[str]:
    """Return what is imported of the package."""
    return sorted(name for name in sys.modules if name.startswith("nemo_automodel"))


def find(name: str) -> Any:
    """Import a module."""
    return importlib.import_module(name)


def test_the_modules_are_those_here(package: Path) -> None:
    """Each replaced module is the module here, also as an attribute of its parent and in modules that import it."""
    replace_nemo_automodel()
    assert imported() == []
    for theirs, ours in REPLACED_MODULES.items():
        module = find(theirs)
        assert module is find(ours)
        assert module.__spec__.name == module.__name__ == ours
        parent, _, child = theirs.rpartition(".")
        assert getattr(find(parent), child) is module
    parallelizer = find(f"{DISTRIBUTED}.parallelizer")
    assert parallelizer.MeshContext is automodel_mesh.MeshContext
    assert parallelizer.mesh_utils.get_flat_mesh is automodel_mesh.get_flat_mesh
    assert find(DISTRIBUTED).FSDP2Config is automodel_mesh.FSDP2Config
    pickled = pickle.dumps(automodel_mesh.FSDP2Config(sequence_parallel=True), protocol=0)
    renamed = pickled.replace(b"automodel_mesh.strategy_configs", f"{DISTRIBUTED}.config".encode())
    assert pickle.loads(renamed).sequence_parallel is True


def test_the_modules_of_the_older_version_are_those_here(package: Path) -> None:
    """If the package has the module that only 0.4 has, its configurations and builders are replaced, and by these."""
    (package / "components/distributed/device_mesh.py").write_text("def create_device_mesh(): ...\n")
    with replace_nemo_automodel() as replacement:
        assert replacement.modules == REPLACED_MODULES_0_4
        for theirs, ours in replacement.modules.items():
            assert find(theirs) is find(ours)
        assert (
            find(f"{DISTRIBUTED}.device_mesh").create_device_mesh
            is find(f"{DISTRIBUTED}.mesh_utils").create_device_mesh
        )
        config = find(f"{DISTRIBUTED}.config").FSDP2Config(backend="gloo")
        assert isinstance(config, find(f"{DISTRIBUTED}.mesh").STRATEGY_MAP["fsdp2"])


def test_leaving_the_block_undoes_it(package: Path) -> None:
    """Then the package's own modules are imported, and nothing that was imported before has changed."""
    nemo, shared = find("nemo_automodel"), find("nemo_automodel.shared")
    names = set(vars(nemo))
    with replace_nemo_automodel() as replacement:
        parallelizer = find(f"{DISTRIBUTED}.parallelizer")
        assert nemo.Loader.context is parallelizer.MeshContext is automodel_mesh.MeshContext
        assert nemo.components.distributed.parallelizer is parallelizer
    assert imported() == ["nemo_automodel", "nemo_automodel.shared"]
    assert sys.modules["nemo_automodel"] is nemo
    assert (set(vars(nemo)), nemo.shared) == (names, shared)
    assert find(f"{DISTRIBUTED}.mesh").MeshContext.__module__ == f"{DISTRIBUTED}.mesh"
    assert nemo.Loader.context is find(f"{DISTRIBUTED}.mesh").MeshContext
    assert find("automodel_mesh.mesh").MeshContext is automodel_mesh.MeshContext
    replacement.undo()
    assert find(f"{DISTRIBUTED}.parallelizer").MeshContext is find(f"{DISTRIBUTED}.mesh").MeshContext


def test_it_is_undone_after_an_error(package: Path) -> None:
    """An error in the block is not swallowed, and undoes it."""
    finders = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), replace_nemo_automodel():
        find(f"{DISTRIBUTED}.no_such_module")
    assert sys.meta_path == finders
    assert imported() == []


def test_blocks_can_be_nested(package: Path) -> None:
    """The modules stay replaced until the end of the outer block."""
    with replace_nemo_automodel():
        with replace_nemo_automodel():
            assert find(f"{DISTRIBUTED}.mesh") is find("automodel_mesh.mesh")
        assert find(f"{DISTRIBUTED}.mesh") is find("automodel_mesh.mesh")
    assert imported() == []


@pytest.mark.parametrize("first", ["mesh", "init_utils", "parallelizer", "pipelining.config"])
def test_it_is_refused_after_an_import(package: Path, first: str) -> None:
    """Once a module to be replaced is imported, the error names it and says what to do; nothing changes."""
    find(f"{DISTRIBUTED}.{first}")
    before, finders = imported(), list(sys.meta_path)
    with pytest.raises(RuntimeError, match=rf"{DISTRIBUTED}\.config.*: imported already.*before anything that imports"):
        replace_nemo_automodel()
    assert (imported(), sys.meta_path) == (before, finders)


def test_without_the_package_there_is_nothing_to_replace() -> None:
    """The error says to import from here instead."""
    with pytest.raises(
        ModuleNotFoundError, match="nemo_automodel is not installed.*import from automodel_mesh"
    ) as caught:
        replace_nemo_automodel()
    assert caught.value.name == "nemo_automodel"


def test_neither_torch_nor_the_package_is_imported_by_the_call(package: Path) -> None:
    """Torch is imported with the first replaced module."""
    text = (
        "import sys, automodel_mesh\n"
        "automodel_mesh.replace_nemo_automodel()\n"
        "assert not {'torch', 'nemo_automodel'} & {*sys.modules}\n"
        f"from {DISTRIBUTED}.pipelining.config import PipelineConfig\n"
        "assert PipelineConfig.__module__ == 'automodel_mesh.pipelining.config'\n"
    )
    places = [str(package.parent), str(Path(automodel_mesh.__file__).parents[1])]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {places}\n{text}"], check=True, timeout=120)
