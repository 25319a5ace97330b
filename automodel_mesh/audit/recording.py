"""Reads what a torch has under its names: modules, classes, functions with their parameters, and what they refer to.

griffe reads the sources and stubs, without importing them; what it found is written as the entries of `torch_names.py`.
For the data file, in a checkout:

    python -m automodel_mesh.audit.recording FOLDER-OR-WHEEL...
    python -m automodel_mesh.audit.recording --forget RELEASE...
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zipfile import ZipFile

from packaging.version import Version

from automodel_mesh.audit.errors import AuditError
from automodel_mesh.audit.torch_names import (
    CLASS,
    MODULE,
    OPEN,
    REFERS,
    RETURNS,
    STUB,
    TYPED,
    Scopes,
    load_names,
    save_names,
)
from automodel_mesh.exit_status import PASSED, UNUSABLE
from automodel_mesh.tracking.definitions import line_range
from automodel_mesh.tracking.sources import ARCHIVE_ERRORS, PARSER_ERRORS, SourcesError, read_path

if TYPE_CHECKING:
    from types import ModuleType

    import griffe

_CHANGES_ITSELF: Final = re.compile(
    r"\bglobals\(\)(\[[^\]]+\] =|\.update|\.setdefault)|= globals\(\)"
    r"|\w\(\s*sys\.modules\[__name__\]|\bsys\.modules\[[^\]]+\] ="
    r"|^def __getattr__\b|^from (?!torch|\.)\S+ import \*",
    re.MULTILINE,
)
"""What a module contains that has more names than its text says."""

_SUFFIXES: Final = (".py", ".pyi")


def read_names(what: Path) -> tuple[str, Scopes]:
    """Read the names of a torch that is not imported.

    Args:
        what: a wheel, or a folder with a torch: a site-packages folder, an environment, or a checkout that was built.

    Returns:
        The release, such as `"2.15.0"`, and its names, as `TorchNames` stores them.

    Raises:
        SourcesError: there is no torch, or griffe, which an extra brings, is not installed.
    """
    sources = read_path(what, ())
    with tempfile.TemporaryDirectory() as folder:
        for path, text in _texts(what, sources.origin):
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(without_type_checking(text), encoding="utf-8")
        return sources.version, _read_folder(Path(folder))


def import_griffe() -> ModuleType:
    """Import griffe, which only reading the names of a torch needs.

    Raises:
        SourcesError: it is not installed.
    """
    try:
        return import_module("griffe")
    except ImportError as error:
        raise SourcesError(f"{error}; pip install 'automodel-mesh[record]' installs what is missing") from error


def _texts(what: Path, origin: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each source file and stub of a torch."""
    if what.is_dir():
        package = Path(origin.removeprefix("torch in "))
        for file in sorted(package.rglob("*.py*")):
            if file.suffix in _SUFFIXES:
                yield file.relative_to(package.parent).as_posix(), file.read_text(encoding="utf-8", errors="replace")
        return
    try:
        with ZipFile(what) as archive:
            names = [name for name in archive.namelist() if name.startswith("torch/") and name.endswith(_SUFFIXES)]
            for name in sorted(names):
                yield name, archive.read(name).decode("utf-8", errors="replace")
    except ARCHIVE_ERRORS as error:
        raise SourcesError(f"{what} cannot be read: {error}; download it again") from error


def without_type_checking(text: str) -> str:
    """Blank what only type checkers see: in griffe's eyes, it hides what a module has when it runs."""
    try:
        tree = ast.parse(text)
    except PARSER_ERRORS:
        return text
    lines = text.splitlines()
    for node in ast.walk(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                first, last = line_range(node.body[0])[0], line_range(node.body[-1])[1]
                if first > node.lineno:
                    lines[first - 1 : last] = [" " * node.body[0].col_offset + "pass", *[""] * (last - first)]
            case _:
                pass
    # griffe takes the `else` of such an `if` for a part of what is not run.
    return re.sub(r"^(\s*if )(?:typing\.)?TYPE_CHECKING:", r"\1False:", "\n".join(lines) + "\n", flags=re.MULTILINE)


def _read_folder(folder: Path) -> Scopes:
    """Read the package `torch` of a folder."""
    griffe = import_griffe()
    griffe.logger.setLevel("CRITICAL")  # it logs what it cannot find outside of torch
    loaded = griffe.load("torch", search_paths=[folder], allow_inspection=False, resolve_aliases=False)
    scopes: Scopes = {}
    for module in _modules(loaded):
        scopes[module.path] = {"": _module_header(module), **dict(_entries(module, module.path, scopes))}
    return scopes


def _modules(module: Any) -> Iterator[griffe.Module]:
    yield module
    for member in module.members.values():
        if not member.is_alias and member.is_module:
            yield from _modules(member)


def _module_header(module: griffe.Module) -> str:
    file = module.filepath
    if not isinstance(file, Path) or not file.is_file():  # a folder without __init__.py
        return MODULE
    text = file.read_text(encoding="utf-8", errors="replace")
    return MODULE + (STUB if file.suffix == ".pyi" else "") + (OPEN if _CHANGES_ITSELF.search(text) else "")


def _entries(scope: Any, path: str, scopes: Scopes) -> Iterator[tuple[str, str]]:
    """Yield the names of a module or class, and fill in the scopes of the classes in it."""
    for name, member in scope.members.items():
        if not member.is_alias and member.is_module:
            continue  # known by its own scope
        yield name, _entry(member, path, scopes)
    for name, overloads in scope.overloads.items():  # stubs have no implementation
        if name not in scope.members:
            yield name, "|".join(dict.fromkeys(map(_function, overloads)))


def _entry(member: Any, path: str, scopes: Scopes) -> str:
    if member.is_alias:
        return REFERS + member.target_path if _of_torch(member.target_path) else ""
    if member.is_function:
        return _function(member)
    if member.is_class:
        own = f"{path}{'.' if ':' in path else ':'}{member.name}"
        bases = ",".join(_path(base) or "?" for base in member.bases)
        keywords = "?" if member.keywords else ""  # a metaclass
        scopes[own] = {"": f"{CLASS}{','.join(filter(None, (bases, keywords)))}", **dict(_entries(member, own, scopes))}
        return CLASS
    if "property" not in member.labels and _of_torch(target := _path(member.value)):
        return REFERS + target
    return TYPED + declared if _of_torch(declared := _path(member.annotation)) else ""


def _function(function: Any) -> str:
    """Write a signature: `(self,a,b=,*,c=)`, `=` for a default, and `>` before the type that it returns."""
    parts: list[str] = []
    before = ""
    for parameter in function.parameters:
        kind = parameter.kind.value if parameter.kind else ""
        if before == "positional-only" != kind:
            parts.append("/")
        if kind == "keyword-only" and before not in {"keyword-only", "variadic positional"}:
            parts.append("*")
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        parts.append(stars + parameter.name + ("=" if parameter.default is not None and not stars else ""))
        before = kind
    if before == "positional-only":
        parts.append("/")
    returns = _path(function.returns)
    return f"({','.join(parts)})" + (RETURNS + returns if _of_torch(returns) else "")


def _path(expression: Any) -> str:
    """Return the dotted path that an expression refers to; empty if it is not just a name."""
    if expression is None or type(expression).__name__ not in {"ExprName", "ExprAttribute", "str"}:
        return ""
    try:
        path = expression if isinstance(expression, str) else expression.canonical_path
    except Exception:  # noqa: BLE001 - griffe raises various errors for names that it cannot find
        return ""
    return path if re.fullmatch(r"[\w.]+", path) else ""


def _of_torch(path: str) -> bool:
    return path == "torch" or path.startswith("torch.")


def main(arguments: Sequence[str]) -> int:
    """Record the names of torches in the data file, and forget releases, in a checkout of this library.

    Args:
        arguments: wheels and folders with a torch, and `--forget` before a release whose support has ended.
    """
    names = load_names()
    try:
        if arguments[:1] == ["--forget"]:
            names = names.forget(arguments[1:])
        else:
            read = map(read_names, map(Path, arguments))
            names = names.add({Version(version).base_version: scopes for version, scopes in read})
        path = save_names(names)
    except (SourcesError, AuditError) as error:
        sys.stderr.write(f"{error}\n")
        return UNUSABLE
    sys.stderr.write(f"{path} has {', '.join(names.releases)}\n")
    return PASSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
