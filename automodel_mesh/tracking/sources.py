"""Some source files of a torch: what they are, how they are taken out of a wheel, and which version they tell."""

from __future__ import annotations

import ast
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from zipfile import BadZipFile, ZipFile

from packaging.version import InvalidVersion, Version

VERSION_FILE: Final = "torch/version.py"
TORCH_FILES: Final = ("torch/__init__.py", VERSION_FILE)
"""A torch has at least one of these; of a checkout that was never built, the second is missing."""

NEWEST: Final = "newest"
NIGHTLY: Final = "nightly"

ARCHIVE_ERRORS: Final = (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What zipfile raises for archives that are damaged, encrypted, or packed in a way it does not know."""


class SourcesError(Exception):
    """The sources of a torch could not be read; the message says of which, why, and what to do."""


class Watch(Protocol):
    """Is told what is being done, for a progress display."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None:
        """Take note of a step; `done` of `total` bytes or files, 0 of 0 where that is not known."""


@dataclass(frozen=True)
class Sources:
    """Some of the source files of one torch.

    Attributes:
        version: as the sources themselves say it, such as `"2.15.0+cu132"`.
        origin: where they were read, in words for a report.
        files: their text by path, such as `"torch/distributed/device_mesh.py"`; what a torch lacks is not in it.
    """

    version: str
    origin: str
    files: Mapping[str, str]


def silent(step: str, done: int = 0, total: int = 0) -> None:
    """Be a `Watch` that shows nothing."""


def needed(paths: Collection[str]) -> list[str]:
    """Return the files to read: those that are asked for, and the one that says the version."""
    return sorted({*paths, VERSION_FILE})


def read_members(archive: ZipFile, paths: Collection[str], origin: str, watch: Watch) -> dict[str, str | None]:
    """Read files from a wheel of torch.

    Args:
        archive: The wheel.
        paths: The files that are asked for.
        origin: What the wheel is called in messages.
        watch: Is told of each file.

    Returns:
        The text of each file of `needed`; `None` for those that the wheel lacks.

    Raises:
        SourcesError: The wheel is not torch's, or a file is not UTF-8.
        Exception: One of `ARCHIVE_ERRORS`, where the archive is damaged.
    """
    names = set(archive.namelist())
    if names.isdisjoint(TORCH_FILES):
        raise SourcesError(f"{origin} holds no torch: it has no {' or '.join(TORCH_FILES)}")
    files: dict[str, str | None] = {}
    wanted = needed(paths)
    for done, path in enumerate(wanted):
        watch(f"reading {origin}", done, len(wanted))
        files[path] = decoded(archive.read(path), path, origin) if path in names else None
    return files


def decoded(content: bytes, path: str, origin: str) -> str:
    """Return a source file as text; its line ends stay as they are."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourcesError(f"{path} of {origin} is not UTF-8 text: {error}") from error


def made_sources(
    files: Mapping[str, str | None], paths: Collection[str], origin: str, *, otherwise: str | None
) -> Sources:
    """Put together what was read.

    Args:
        files: The text of each file of `needed`, `None` where there is none.
        paths: The files that were asked for.
        origin: Where they were read.
        otherwise: The version to take where torch's own files do not tell it.

    Returns:
        The sources, with the files that were asked for and are there.

    Raises:
        SourcesError: The version is not told, or is no version.
    """
    version = version_in(files[VERSION_FILE] or "") or otherwise
    if not version:
        raise SourcesError(f"{origin} does not tell its version: {VERSION_FILE} is missing or sets no __version__")
    try:
        Version(version)
    except InvalidVersion:
        raise SourcesError(f"{origin} says that its version is {version!r}, which is no version") from None
    texts = {path: text for path in sorted(set(paths)) if (text := files[path]) is not None}
    return Sources(version=version, origin=origin, files=texts)


def version_in(source: str) -> str | None:
    """Return the string that a module gives to `__version__`, without running it; `None` if it gives none."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    for statement in statements:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        named = any(isinstance(target, ast.Name) and target.id == "__version__" for target in targets)
        if named and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
            return statement.value.value
    return None
