"""Reads the Python sources of a torch without importing or installing it: of a wheel, a folder, or a package index."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

from automodel_mesh.tracking.index import read_release
from automodel_mesh.tracking.sources import (
    ARCHIVE_ERRORS,
    NEWEST,
    NIGHTLY,
    TORCH_FILES,
    Sources,
    SourcesError,
    Watch,
    decoded,
    made_sources,
    needed,
    read_members,
    silent,
)

_SITE_PACKAGES: Final = ("lib/python*/site-packages", "lib/python*/dist-packages", "Lib/site-packages")
_POSSIBLE: Final = (
    "give 'installed', a wheel (a file whose name ends in .whl), a folder (a checkout of PyTorch, a folder 'torch', a "
    "site-packages folder or a virtual environment), a release such as '2.15.0', '2.15' or '2.16.0rc1', 'newest' or "
    "'nightly'"
)


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
    return read_release(what, paths, index_url=index_url, cache=cache, watch=watch)


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
