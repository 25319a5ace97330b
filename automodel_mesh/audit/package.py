"""The Python files that are read, and what their modules have under the names that others of them import."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from automodel_mesh.audit.findings import Unread
from automodel_mesh.audit.reading import Reader
from automodel_mesh.python_files import python_files
from automodel_mesh.tracking.sources import PARSER_ERRORS

if TYPE_CHECKING:
    from automodel_mesh.audit.values import Value

_DEFINED: Final = re.compile(r"\bdef (\w+)|\.(\w+)\s*=[^=]|\bsetattr\([^,]+, [\"'](\w+)[\"']")


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
        self._modules = {_module_name(self.files[file]): file for file in self._trees}
        self._readers: dict[str, Reader] = {}

    @cached_property
    def own_names(self) -> frozenset[str]:
        """The names of functions and attributes that this code itself defines or assigns."""
        found = (match.groups() for source in self.sources.values() for match in _DEFINED.finditer(source))
        return frozenset(filter(None, chain.from_iterable(found)))

    def readers(self) -> Iterator[tuple[str, Reader]]:
        """Yield each file with its reader, which has read it."""
        for name, file in sorted(self._modules.items(), key=lambda pair: pair[1]):
            reader = self._reader(name)
            reader.finish()
            yield file, reader

    def exported(self, module: str, name: str) -> Value:
        """Return what a module of this code has under a name, as far as it has been read."""
        from automodel_mesh.audit.values import OwnModule  # noqa: PLC0415

        if f"{module}.{name}" in self._modules:
            return OwnModule(f"{module}.{name}")
        return self._reader(module).scope.look_up(name) if module in self._modules else None

    def has(self, module: str) -> bool:
        """Tell whether a module, by its dotted name, is part of this code."""
        return module in self._modules or any(name.startswith(f"{module}.") for name in self._modules)

    def _reader(self, module: str) -> Reader:
        if module not in self._readers:
            file = self._modules[module]
            is_package = self.files[file].name == "__init__.py"
            self._readers[module] = reader = Reader(self, module, self._trees[file], is_package=is_package)
            reader.read()
        return self._readers[module]

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
    """Return the dotted name of a module, whose first part is the outermost folder with an `__init__.py`."""
    path = path.absolute()
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    # Files outside of packages may have the same name.
    return ".".join(parts) if len(parts) > 1 or path.name == "__init__.py" else path.with_suffix("").as_posix()
