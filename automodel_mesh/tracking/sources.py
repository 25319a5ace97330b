"""Source files of a torch, read without importing it: from a wheel file, from a folder, or from the environment."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from packaging.utils import parse_wheel_filename
from packaging.version import Version

FILE_LIMIT: Final = 16 << 20
"""Bytes that a source file may have; the largest of torch that is read has 0.2 MB."""

VERSION_FILE: Final = "torch/version.py"
TORCH_FILES: Final = ("torch/__init__.py", VERSION_FILE)
"""Every torch has at least one of these; a checkout that was never built lacks the second."""

ARCHIVE_ERRORS: Final = (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What zipfile raises for archives that are damaged, encrypted, or compressed in a way it does not support."""

PARSER_ERRORS: Final = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python raises for sources that are not valid, contain null characters, or are nested too deeply."""

INSTALLED: Final = "installed"

ACCEPTED: Final = (
    "give 'installed', a wheel (a file whose name ends in .whl), a folder (a checkout of PyTorch, a folder 'torch', a "
    "site-packages folder or a virtual environment), a release such as '2.15.0', '2.15' or '2.16.0rc1', 'newest' or "
    "'nightly'"
)
"""The end of error messages: what `automodel-mesh track` and `audit --torch` accept."""

_SITE_PACKAGES: Final = ("lib/python*/site-packages", "lib/python*/dist-packages", "Lib/site-packages")

Unit: TypeAlias = Literal["files", "bytes"]


class SourcesError(Exception):
    """The sources of a torch could not be read; the message says of which torch, why, and what to do."""


class Watch(Protocol):
    """A callback for progress."""

    def __call__(self, step: str, done: int = 0, total: int = 0, unit: Unit = "files") -> None:
        """Report a step, of which `done` of `total` files or bytes are done; 0 of 0 if that is not known."""


@dataclass(frozen=True)
class Sources:
    """Some of the source files of one torch.

    Attributes:
        version: as the sources state it, such as `"2.15.0+cu132"`.
        origin: where they were read, in words, for reports.
        files: their text by path, such as `"torch/distributed/device_mesh.py"`, without the files that this torch
            does not have.
    """

    version: str
    origin: str
    files: Mapping[str, str]


def ignore_progress(step: str, done: int = 0, total: int = 0, unit: Unit = "files") -> None:
    """Ignore progress."""


def read_installed(paths: Collection[str], watch: Watch = ignore_progress) -> Sources:
    """Read source files of the torch that `import torch` would import here.

    Args:
        paths: The files, as a wheel names them, such as `"torch/distributed/device_mesh.py"`.
        watch: Called for each file.

    Returns:
        The version, where it was read, and those of the files that this torch has.

    Raises:
        SourcesError: No torch is installed, its version is not stated or not valid, or a file is not UTF-8.
    """
    return _read_package(installed_torch(), "the installed torch", paths, watch)


def installed_torch() -> Path:
    """Find the folder of the torch that `import torch` would import here.

    Raises:
        SourcesError: No torch is installed.
    """
    try:
        spec = importlib.util.find_spec("torch")
    except ValueError:  # a module without a spec that a program has put into sys.modules
        spec = None
    if spec is None or spec.origin is None:
        raise SourcesError(f"no torch is installed for {sys.executable}: {ACCEPTED}")
    return Path(spec.origin).parent


def read_path(path: Path, paths: Collection[str], watch: Watch = ignore_progress) -> Sources:
    """Read source files of a torch from a wheel file or a folder.

    Args:
        path: A wheel, or a folder: a checkout of PyTorch, a folder `torch`, a site-packages folder, or a virtual
            environment.
        paths: The files, as a wheel names them.
        watch: Called for each file.

    Returns:
        The version, where it was read, and those of the files that this torch has.

    Raises:
        SourcesError: The path is no wheel and no folder with one torch, the wheel is damaged, the version is not stated
            or not valid, or a file is not UTF-8.
    """
    if path.is_dir():
        return _read_package(_package_in(path.resolve()), "torch", paths, watch)
    if path.suffix != ".whl":
        raise SourcesError(f"{path} is a file whose name does not end in .whl: {ACCEPTED}")
    origin = f"the wheel {path}"
    try:
        with ZipFile(path) as archive:
            files = read_members(archive, paths, origin, watch)
    except ARCHIVE_ERRORS as error:
        raise SourcesError(f"{origin} cannot be read: {type(error).__name__}: {error}; download it again") from error
    try:
        version = str(parse_wheel_filename(path.name)[1])
    except ValueError:  # a renamed wheel: torch/version.py states the version
        version = None
    return make_sources(files, paths, origin, fallback_version=version)


def _package_in(folder: Path) -> Path:
    """Find the package `torch` in a folder."""
    for package in (folder / "torch", folder):
        if package.name == "torch" and _is_torch(package):
            return package
    inside = [place / "torch" for pattern in _SITE_PACKAGES for place in sorted(folder.glob(pattern))]
    found = [package for package in dict.fromkeys(map(Path.resolve, inside)) if _is_torch(package)]
    if len(found) > 1:
        raise SourcesError(f"{folder} contains more than one torch, give one of {', '.join(map(str, found))}")
    if not found:
        places = ", ".join(_SITE_PACKAGES)
        raise SourcesError(f"{_no_torch_in(str(folder))}, neither itself nor in {places}")
    return found[0]


def _is_torch(package: Path) -> bool:
    return any((package.parent / name).is_file() for name in TORCH_FILES)


def _no_torch_in(origin: str) -> str:
    return f"{origin} contains no torch: it has no {' or '.join(TORCH_FILES)}"


def _read_package(package: Path, title: str, paths: Collection[str], watch: Watch) -> Sources:
    origin = f"{title} in {package}"

    def read(path: str) -> bytes | None:
        file = package.parent / path
        return file.read_bytes() if file.is_file() else None

    try:
        files = _read_files(read, paths, origin, watch)
        in_checkout = package.parent / "version.txt"
        version = in_checkout.read_text(encoding="utf-8").strip() if in_checkout.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise SourcesError(f"{origin} cannot be read: {error}") from error
    return make_sources(files, paths, origin, fallback_version=version)


def read_members(archive: ZipFile, paths: Collection[str], origin: str, watch: Watch) -> dict[str, str | None]:
    """Read files from a wheel of torch.

    Args:
        archive: The wheel.
        paths: The files to read, beside the one that states the version.
        origin: The wheel's name in messages.
        watch: Called for each file.

    Returns:
        The text of each file; `None` for those that the wheel does not have.

    Raises:
        SourcesError: The wheel is not torch's, or a file is not UTF-8, too large, or packed in an unusual way.
        Exception: One of `ARCHIVE_ERRORS`, if the archive is damaged.
    """
    names = set(archive.namelist())
    if names.isdisjoint(TORCH_FILES):
        raise SourcesError(_no_torch_in(origin))

    def read(path: str) -> bytes | None:
        if path not in names:
            return None
        if archive.getinfo(path).compress_type not in {ZIP_STORED, ZIP_DEFLATED}:  # whose size zipfile can limit
            raise SourcesError(f"{path} of {origin} is packed as no wheel of torch is; download it again")
        with archive.open(path) as member:
            content = member.read(FILE_LIMIT + 1)
        if len(content) > FILE_LIMIT:
            raise SourcesError(
                f"{path} of {origin} has more than {FILE_LIMIT >> 20} MiB, as no file of torch has; download it again"
            )
        return content

    return _read_files(read, paths, origin, watch)


def _read_files(
    read: Callable[[str], bytes | None], paths: Collection[str], origin: str, watch: Watch
) -> dict[str, str | None]:
    files: dict[str, str | None] = {}
    wanted = sorted({*paths, VERSION_FILE})
    for done, path in enumerate(wanted):
        watch(f"reading {origin}", done, len(wanted))
        content = read(path)
        try:
            files[path] = content if content is None else content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourcesError(f"{path} of {origin} is not UTF-8 text: {error}") from error
    return files


def make_sources(
    files: Mapping[str, str | None], paths: Collection[str], origin: str, *, fallback_version: str | None
) -> Sources:
    """Combine what was read.

    Args:
        files: What `read_members` returned.
        paths: The files that were asked for.
        origin: Where they were read.
        fallback_version: The version if torch's own files do not state it.

    Returns:
        The version, and those of the files that were asked for that exist.

    Raises:
        SourcesError: The version is not stated, or not valid.
    """
    version = _version_in(files[VERSION_FILE] or "") or fallback_version
    if not version:
        raise SourcesError(f"{origin} does not state its version: {VERSION_FILE} is missing or sets no __version__")
    try:
        Version(version)
    except ValueError:  # also raised for numbers of thousands of digits
        raise SourcesError(f"{origin} states the version {version[:80]!r}, which is not a valid version") from None
    texts = {path: text for path in sorted(set(paths)) if (text := files[path]) is not None}
    return Sources(version=version, origin=origin, files=texts)


def _version_in(source: str) -> str | None:
    """Return the string that a module assigns to `__version__`, without running it."""
    try:
        statements = ast.parse(source).body
    except PARSER_ERRORS:
        return None
    for node in statements:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_version = any(isinstance(target, ast.Name) and target.id == "__version__" for target in targets)
            if is_version and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                return node.value.value
    return None


def without_secrets(text: str) -> str:
    """Remove users, passwords and queries, which may contain tokens, from the URLs in a text."""
    # Up to the last @: a password with an unquoted slash must not be shown either.
    text = re.sub(r"(?<=://)(?<!file://)\S*@", "", text)
    return re.sub(r"\?[^\s'\"]*=[^\s'\")]*", "", text)
