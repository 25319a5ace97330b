"""Which files `audit` and `migrate` read: those that are named, and the Python files below the folders that are."""

from __future__ import annotations

from pathlib import Path

import pytest

from automodel_mesh.audit.judging import audit
from automodel_mesh.python_files import FileError, python_files

pytestmark = pytest.mark.release_independent

READ = ["a.py", "build/__init__.py", "dist/deep/__init__.py", "dist/__init__.py", "env/a.py", "sub/b.py", "venv/a.py"]
LEFT_OUT = [
    ".a.py",
    ".hidden/a.py",
    "__pycache__/a.py",
    "a.ipynb",
    "a.txt",
    "conda/lib/a.py",
    "lib/site-packages/a.py",
    "node_modules/a.py",
    "sub/build/lib/a.py",
    "sub/dist/a.py",
    "virtual/lib/a.py",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with files to read, and others."""
    for name in [*READ, *LEFT_OUT]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("import torch\n")
    (tmp_path / "virtual/pyvenv.cfg").touch()
    (tmp_path / "conda/conda-meta").mkdir()
    (tmp_path / "link.py").symlink_to(tmp_path / "a.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "sub", target_is_directory=True)
    return tmp_path


def below(folder: Path) -> list[str]:
    """Return the files that are found below a folder, as paths in it."""
    return [file.relative_to(folder).as_posix() for file in python_files([folder])]


def test_what_is_read_below_a_folder(folder: Path) -> None:
    """Packages are read, whatever they are called; environments, outputs of builds, links and hidden files are not."""
    assert sorted(below(folder)) == sorted(READ)


def test_audit_reads_the_same_files(folder: Path) -> None:
    """`migrate` asks the function itself; its tests do the same with what it writes."""
    assert set(audit([folder], ["2.15.0"]).files) == {(folder / name).as_posix() for name in READ}


def test_what_is_named_is_read(folder: Path) -> None:
    """A file with another suffix, a hidden one, a link, and a folder that would be left out in another one."""
    named = [folder / "a.txt", folder / ".a.py", folder / ".hidden", folder / "sub/build", folder / "a.py"]
    assert list(python_files(named)) == [*named[:2], named[2] / "a.py", named[3] / "lib/a.py", named[4]]
    assert list(python_files([folder / "link.py"])) == [folder / "link.py"]


def test_each_file_comes_once(folder: Path) -> None:
    """Also one that two paths lead to."""
    assert list(python_files([folder / "sub/b.py", folder / "sub", folder / "linked"])) == [folder / "sub/b.py"]


@pytest.mark.parametrize(("name", "why"), [("missing", "does not exist"), ("a.ipynb", "is a notebook")])
def test_what_cannot_be_read_is_an_error(folder: Path, name: str, why: str) -> None:
    """The error says which path that is."""
    with pytest.raises(FileError, match=rf"{name} {why}"):
        list(python_files([folder / name]))
