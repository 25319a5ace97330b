"""The Python files that are read, and what their modules have under the names that others of them import."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from automodel_mesh.audit.findings import Unread
from automodel_mesh.audit.reading import Reader
from automodel_mesh.python_files import python_files
from automodel_mesh.tracking.sources import PARSER_ERRORS

if TYPE_CHECKING:
    from automodel_mesh.audit.values import Value

_DEFINED: Final = re.compile(r"\bdef (\w+)|\.(\w+)\s*=[^=]|\bsetattr\([^,]+, [\"'](\w+)[\"']")

_ROOTS: Final = frozenset({"src", "site-packages", "dist-packages"})
_IN_A_PROJECT: Final = (".git", "pyproject.toml", "setup.py", "setup.cfg")


class Package:
    """Some Python files.

    Args:
        paths: files and folders; `python_files` says which files of a folder are meant.

    Raises:
        FileError: a path does not exist, or is a notebook.

    Attributes:
        files: each file by the path that findings name it by.
        unread: those that could not be read.
        sources: the text of each file that was read.
        told: what its functions tell about torch's release, for those that were asked.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: dict[str, Path] = {file.as_posix(): file for file in sorted(python_files(paths))}
        self.unread: list[Unread] = []
        self.sources: dict[str, str] = {}
        self.told: dict[ast.AST, Value] = {}
        self._trees: dict[str, ast.Module] = {}
        for file, path in self.files.items():
            self._parse(file, path)
        self._names = {file: _module_name(self.files[file]) for file in self._trees}
        # Of modules with the same name, such as those of a copy, imports find the first.
        self._modules = {name: file for file, name in reversed(self._names.items())}
        self._readers: dict[str, Reader] = {}

    @cached_property
    def own_names(self) -> frozenset[str]:
        """The names of functions and attributes that this code itself defines or assigns."""
        found = (match.groups() for source in self.sources.values() for match in _DEFINED.finditer(source))
        return frozenset(filter(None, chain.from_iterable(found)))

    def readers(self) -> Iterator[tuple[str, Reader]]:
        """Yield each file with its reader, which has read it."""
        for file in self._names:
            reader = self._reader(file)
            reader.finish()
            yield file, reader

    def exported(self, module: str, name: str) -> Value:
        """Return what a module of this code has under a name, as far as it has been read."""
        from automodel_mesh.audit.values import OwnModule  # noqa: PLC0415

        if f"{module}.{name}" in self._modules:
            return OwnModule(f"{module}.{name}")
        return self._reader(self._modules[module]).scope.look_up(name) if module in self._modules else None

    def has(self, module: str) -> bool:
        """Tell whether a module, by its dotted name, is part of this code."""
        return module in self._modules or any(name.startswith(f"{module}.") for name in self._modules)

    def _reader(self, file: str) -> Reader:
        if file not in self._readers:
            is_package = self.files[file].name == "__init__.py"
            reader = Reader(self, self._names[file], self._trees[file], is_package=is_package)
            self._readers[file] = reader
            reader.read()
        return self._readers[file]

    def _parse(self, file: str, path: Path) -> None:
        try:
            with tokenize.open(path) as stream:
                source = stream.read()
            tree = ast.parse(source)
        except (*PARSER_ERRORS, OSError) as error:
            line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
            self.unread.append(Unread(file, f"{line}{getattr(error, 'msg', None) or error}"))
            return
        self.sources[file], self._trees[file] = source, tree


def _module_name(path: Path) -> str:
    """Return the dotted name of a module, from the outermost folder of its project with an `__init__.py` on.

    A module that is in no package is named by its path, since others may have its name.
    """
    path = path.absolute()
    above = list(takewhile(lambda folder: not _is_root(folder), path.parents))
    depth = max((place for place, folder in enumerate(above, 1) if (folder / "__init__.py").is_file()), default=0)
    parts = [folder.name for folder in reversed(above[:depth])]
    if path.name != "__init__.py":
        parts.append(path.stem)
    return ".".join(parts) if depth and all(map(str.isidentifier, parts)) else path.with_suffix("").as_posix()


@cache
def _is_root(folder: Path) -> bool:
    """Tell whether a folder is one that packages are imported from: that of a project, or of installed packages."""
    return folder.name in _ROOTS or any((folder / one).exists() for one in _IN_A_PROJECT)
