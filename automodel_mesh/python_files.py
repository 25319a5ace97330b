"""Finds the Python files that a user means with some paths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_OF_OTHERS: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_ENVIRONMENT: Final = ("pyvenv.cfg", "conda-meta")
"""What the folder of an environment has in it, whatever it is called."""
_BUILT: Final = frozenset({"build", "dist"})
"""Folders with copies that a build has made, unless they are packages."""


class FileError(Exception):
    """A file cannot be read or written; the message says why."""


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that some paths name, each once: a file as it is, and of a folder those that end in `.py`.

    In a folder, links, hidden files and folders, environments, what a build has made, `node_modules` and
    `__pycache__` are left out.

    Args:
        paths: files and folders.

    Raises:
        FileError: a path does not exist, or is a notebook.
    """
    seen: set[Path] = set()
    for path in paths:
        for file in _below(path) if path.is_dir() else [_file(path)]:
            if (resolved := file.resolve()) not in seen:
                seen.add(resolved)
                yield file


def _file(path: Path) -> Path:
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if path.suffix == ".ipynb":
        raise FileError(f"{path} is a notebook: save its code as a .py file")
    return path


def _below(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        here = Path(name)
        folders[:] = sorted(one for one in folders if not _is_left_out(here / one))
        for file in sorted(files):
            path = here / file
            if path.suffix == ".py" and not file.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _is_left_out(folder: Path) -> bool:
    name = folder.name
    is_environment = any((folder / one).exists() for one in _ENVIRONMENT)
    is_built = name in _BUILT and not (folder / "__init__.py").exists()
    return name.startswith(".") or name in _OF_OTHERS or is_environment or is_built
