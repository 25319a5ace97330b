"""The sdist, the wheel and its metadata; the command in the README, and the paths in CONTRIBUTING.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent

# Run by a new interpreter, with the unpacked wheel first on sys.path.
IMPORT_EVERY_MODULE = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import automodel_mesh
for found in pkgutil.walk_packages(automodel_mesh.__path__, "automodel_mesh."):
    if found.name != "automodel_mesh.__main__":
        importlib.import_module(found.name)
for name, module in sys.modules.items():
    if name.split(".")[0] == "automodel_mesh":
        print(module.__file__)
"""


def copy_checkout(target: Path) -> Path:
    """Copy the files that a clone of the repository has; links stay links."""
    caches = [
        ".*_cache",
        ".coverage*",  # they appear and disappear while coverage is measured
        ".hypothesis",
        ".nox",
        ".venv",
        "__pycache__",
        "_build",
        "build",
        "dist",
        "*.egg-info",
    ]
    ignore = shutil.ignore_patterns(".git", "shared", *caches)
    return shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)


def build(kind: str, source: Path, out: Path) -> Path:
    """Build one distribution with the installed setuptools, without network, and return its path."""
    out.mkdir()
    program = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Build the sdist from a copy of the checkout, and the wheel from the unpacked sdist."""
    sdist = build("sdist", copy_checkout(tmp_path / "checkout"), tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    return build("wheel", source, tmp_path / "wheel")


def read(wheel: Path) -> dict[str, str]:
    """Read a wheel's files, by name; what is no text in replacement characters."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}


def modules_of_the_checkout() -> set[str]:
    """Return the paths inside a wheel of every module of the checkout."""
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "automodel_mesh").rglob("*.py")}
    return ours | {f"automodel_mesh/{path.relative_to(ROOT)}" for path in (ROOT / "compat").rglob("*.py")}


def test_every_module_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Each module of the checkout imports, without a warning, from the wheel built from the sdist."""
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERY_MODULE, str(site)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = {Path(line) for line in done.stdout.splitlines()}
    assert files == {site / name for name in modules_of_the_checkout() if not name.endswith("/__main__.py")}


def test_wheel_holds_nothing_else_and_needs_no_symlink(wheel: Path, tmp_path: Path) -> None:
    """The wheel has only the modules and the type marker; a checkout without symlinks builds the same."""
    names = {name for name in read(wheel) if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == modules_of_the_checkout()
    assert {"automodel_mesh/py.typed", "automodel_mesh/audit/torch_names.txt.gz"} <= names
    assert {name.split("/")[0] for name in names} == {"automodel_mesh"}

    checkout = copy_checkout(tmp_path / "no-symlinks")
    link = checkout / "automodel_mesh/compat"
    link.unlink()
    link.write_text("../compat")
    assert read(build("wheel", checkout, tmp_path / "other")).keys() == read(wheel).keys()


def test_sdist_can_run_the_tests(tmp_path: Path) -> None:
    """The sdist has compat/ once, the tests, the matrix, the noxfile and the licence."""
    sdist = build("sdist", copy_checkout(tmp_path / "checkout"), tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        ".pre-commit-hooks.yaml",
        "LICENSE",
        "action.yml",
        "ci_matrix/torch.toml",
        "compat/__init__.py",
        "noxfile.py",
        "tests/test_packaging.py",
    }
    assert wanted <= names
    assert [name for name in names if name.startswith("automodel_mesh/compat")] == []


def test_metadata_of_the_wheel(wheel: Path) -> None:
    """The wheel requires torch and packaging only, is Apache-2.0, and has the extras and the command.

    It registers no pytest plugin: that would import torch in every pytest run of its environment.
    """
    texts = {Path(name).name: text for name, text in read(wheel).items() if ".dist-info/" in name}
    metadata = Parser().parsestr(texts["METADATA"])
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {wanted.name for wanted in requirements if wanted.marker is None} == {"torch", "packaging"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras >= {"bench", "cli", "dev", "docs", "examples", "plots", "testing", "tests"}
    assert "automodel-mesh = automodel_mesh.cli:main" in texts["entry_points.txt"]
    assert "pytest11" not in texts["entry_points.txt"]


def test_readme_gives_the_command_that_ci_runs() -> None:
    """`.ci/run` runs a command exactly as in a code block of the README, and then the matrix."""
    script = (ROOT / ".ci/run").read_text()
    command = re.search(r"^readme_test_command='(.*)'$", script, re.MULTILINE)
    assert command is not None
    fenced = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert command[1] in [line.strip() for block in fenced for line in block.splitlines()]
    assert 'step bash -c "$readme_test_command"' in script
    assert "step nox -t matrix" in script


def paths_in_the_tree(tree: str) -> Iterator[tuple[str, str]]:
    """Yield the paths in the tree of CONTRIBUTING.md, each with the folder of its line."""
    folders: list[str] = []
    for line in tree.splitlines():
        names, description = re.split(r"  +", line.strip(), maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        folder = "".join(folders[:depth])
        for name in names.split(", "):
            yield folder + name, ""
        if names.endswith("/"):
            folders[depth:] = [names]
            folder += names
        for path in re.findall(r"[\w/-]+\.(?:py|toml|json|md)\b", description):
            yield path, folder


def paths_in_the_text(text: str) -> Iterator[str]:
    """Yield the paths in a text: those that begin with a folder of the checkout, and names of files."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    yield from re.findall(rf"(?<![\w./])(?:(?:{folders})/[\w./*-]+|\w+\.(?:py|toml|json|md)\b)", text)


def exists(path: str) -> bool:
    """Return whether a path, which may have wildcards, is one of the checkout."""
    return any(ROOT.glob(path.rstrip("/.")))


def test_paths_in_contributing_exist() -> None:
    """Each file and folder that CONTRIBUTING.md names exists, in the tree, the prose and the commands."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    in_tree = set(paths_in_the_tree(tree))
    assert {("compat/eras/facts.py", ""), ("report.py", "automodel_mesh/doctor/")} <= in_tree
    assert [path for path, folder in sorted(in_tree) if not (exists(folder + path) or exists(path))] == []
    in_text = set(paths_in_the_text(text.replace(tree, "")))
    assert {"compat/ledger.toml", "docs/*.md", "tests/compat", "README.md"} <= in_text
    assert [path for path in sorted(in_text) if not exists(path)] == []


def test_files_for_builds_and_tests_name_no_home_folder() -> None:
    """The files that set up builds and tests name no home folder, so that they work on any machine."""
    files = ["pyproject.toml", "noxfile.py", ".ci/run", ".github/workflows/ci.yml", "ci_matrix/torch.toml"]
    texts = {name: (ROOT / name).read_text() for name in files}
    assert [name for name, text in texts.items() if re.search(r"/root/|/home/|/work/", text)] == []
