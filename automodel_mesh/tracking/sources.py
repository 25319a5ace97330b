"""Torch's Python sources, read without importing or installing it: from a wheel, a folder, or a package index."""

from __future__ import annotations

import ast
import importlib.util
import sys
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from zipfile import BadZipFile, ZipFile

from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

__all__ = ["Sources", "SourcesError", "Watch", "read_sources", "silent"]

VERSION_FILE: Final = "torch/version.py"
TORCH_FILES: Final = ("torch/__init__.py", VERSION_FILE)
"""A torch has at least one of these; of a checkout that was never built, the second is missing."""

NEWEST: Final = "newest"
NIGHTLY: Final = "nightly"

ARCHIVE_ERRORS: Final = (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What zipfile raises for archives that are damaged, encrypted, or packed in a way it does not know."""

_SITE_PACKAGES: Final = ("lib/python*/site-packages", "lib/python*/dist-packages", "Lib/site-packages")
_POSSIBLE: Final = (
    "give 'installed', a wheel (a file whose name ends in .whl), a folder (a checkout of PyTorch, a folder 'torch', a "
    "site-packages folder or a virtual environment), a release such as '2.15.0', '2.15' or '2.16.0rc1', 'newest' or "
    "'nightly'"
)


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


def read_sources(
    what: str,
    paths: Collection[str],
    *,
    index_url: str | None = None,
    cache: Path | None = None,
    watch: Watch = silent,
) -> Sources:
    """Read source files of a torch, which is neither imported nor installed for it.

    Args:
        what: Which torch. `"installed"`: the one that `import torch` would import here. The path of a wheel file, or
            of a folder: a checkout of PyTorch, a folder `torch`, a site-packages folder, or a virtual environment.
            Else a release on a package index: an exact version (`"2.15.0"`, `"2.16.0rc1"`, `"2.16.0.dev20261119"`,
            `"2.15.0+cpu"`), a short one (`"2.15"`: its newest final release), `"newest"` (the newest final release),
            or `"nightly"` (the newest of all, for an index of nightlies). Releases that were yanked are read only
            where they are named exactly. A path that exists is taken for a path, even if it could be a version.
        paths: The files, as a wheel has them, such as `"torch/distributed/device_mesh.py"`.
        index_url: The root of the package index, for releases only. By default what the environment variables
            PIP_INDEX_URL, UV_DEFAULT_INDEX or UV_INDEX_URL say, in this order, else the public one.
        cache: A folder that keeps what is read of releases, so that an exact version is read without the network the
            next time; it is made where it is missing. By default nothing is kept.
        watch: Is told of each step.

    Returns:
        The version, where it was read, and those of the files that this torch has.

    Raises:
        SourcesError: `what` is nothing of the above, or does not exist, is damaged, or holds no torch; its version is
            not told or is no version; a file is not UTF-8; an index has no such release or does not answer; or the
            libraries for reading an index are not installed.
    """
    if what == "installed":
        return _read_folder(_installed(), "the installed torch", paths, watch)
    path = None if what in {NEWEST, NIGHTLY} else _existing(what)
    if path is not None and path.is_dir():
        return _read_folder(_package_in(path), "torch", paths, watch)
    if path is not None:
        return _read_wheel(path, paths, watch)
    _check_release(what)
    # Not at the top: it imports this module, and only releases need it.
    from automodel_mesh.tracking import index  # noqa: PLC0415

    return index.read_release(what, paths, index_url=index_url, cache=cache, watch=watch)


def _existing(what: str) -> Path | None:
    try:
        path = Path(what).expanduser()
        return path if what.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null character, or no such user's home
        return None


def _check_release(what: str) -> None:
    if what in {NEWEST, NIGHTLY}:
        return
    if "/" in what or "\\" in what or what.endswith(".whl"):
        raise SourcesError(f"{what!r} does not exist: {_POSSIBLE}")
    try:
        Version(what)
    except InvalidVersion:
        raise SourcesError(f"{what!r} is neither a file or folder nor a version: {_POSSIBLE}") from None


def _installed() -> Path:
    try:
        spec = importlib.util.find_spec("torch")
    except ValueError:  # a stand-in in sys.modules that was never imported from anywhere
        spec = None
    if spec is None or spec.origin is None:
        raise SourcesError(f"no torch is installed for {sys.executable}: {_POSSIBLE}")
    return Path(spec.origin).parent


def _package_in(folder: Path) -> Path:
    """Find the folder `torch` that is meant by a folder."""
    folder = folder.resolve()
    for package in (folder / "torch", folder):
        if package.name == "torch" and _is_torch(package):
            return package
    inside = [place / "torch" for pattern in _SITE_PACKAGES for place in sorted(folder.glob(pattern))]
    found = [package for package in dict.fromkeys(map(Path.resolve, inside)) if _is_torch(package)]
    if len(found) > 1:
        raise SourcesError(f"{folder} holds more than one torch, give one of {', '.join(map(str, found))}")
    if not found:
        looked_for = " or ".join(TORCH_FILES)
        places = ", ".join(_SITE_PACKAGES)
        raise SourcesError(f"{folder} holds no torch: it has no {looked_for}, neither itself nor in {places}")
    return found[0]


def _is_torch(package: Path) -> bool:
    return any((package.parent / name).is_file() for name in TORCH_FILES)


def _read_folder(package: Path, title: str, paths: Collection[str], watch: Watch) -> Sources:
    origin = f"{title} in {package}"
    files: dict[str, str | None] = {}
    try:
        wanted = needed(paths)
        for done, path in enumerate(wanted):
            watch(f"reading {origin}", done, len(wanted))
            file = package.parent / path
            files[path] = decoded(file.read_bytes(), path, origin) if file.is_file() else None
        in_checkout = package.parent / "version.txt"
        said = in_checkout.read_text(encoding="utf-8").strip() if in_checkout.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise SourcesError(f"{origin} cannot be read: {error}") from error
    return made_sources(files, paths, origin, otherwise=said)


def _read_wheel(wheel: Path, paths: Collection[str], watch: Watch) -> Sources:
    origin = f"the wheel {wheel}"
    if wheel.suffix != ".whl":
        raise SourcesError(f"{wheel} is a file whose name does not end in .whl: {_POSSIBLE}")
    try:
        with ZipFile(wheel) as archive:
            files = read_members(archive, paths, origin, watch)
    except ARCHIVE_ERRORS as error:
        raise SourcesError(f"{origin} cannot be read: {type(error).__name__}: {error}; fetch it again") from error
    try:
        said = str(parse_wheel_filename(wheel.name)[1])
    except ValueError:  # renamed; the sources say it
        said = None
    return made_sources(files, paths, origin, otherwise=said)


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
