"""A torch release on a package index: which release is meant, which of its wheels is read, and what the cache holds.

The network is used only for what the cache does not hold (`network.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from automodel_mesh.tracking.sources import (
    ACCEPTED,
    VERSION_FILE,
    Sources,
    SourcesError,
    Watch,
    ignore_progress,
    make_sources,
    without_secrets,
)

if TYPE_CHECKING:
    from packaging.tags import Tag
    from pypi_simple import DistributionPackage

    from automodel_mesh.tracking.network import Connection

NEWEST: Final = "newest"
NIGHTLY: Final = "nightly"

_VARIABLES: Final = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_PUBLIC: Final = "the public package index"
_CACHE_SCHEMA: Final = 1


def read_release(
    release: str,
    paths: Collection[str],
    *,
    index_url: str | None = None,
    cache: Path | None = None,
    watch: Watch = ignore_progress,
    timeout: float = 30.0,
    time_limit: float | None = None,
) -> Sources:
    """Read source files of a torch release from a package index, only the needed members of a wheel if possible.

    Args:
        release: An exact version (`"2.15.0"`, `"2.16.0rc1"`, `"2.16.0.dev20261119"`, `"2.15.0+cpu"`), a short one
            (`"2.15"`: its newest final release), `"newest"` (the newest final release), or `"nightly"` (the newest of
            all, for an index of nightlies). Yanked releases are read only by their exact version.
        paths: The files, as a wheel names them, such as `"torch/distributed/device_mesh.py"`.
        index_url: The root of the index, a URL (`http:`, `https:` or `file:`) or a folder. By default the value of
            PIP_INDEX_URL, UV_DEFAULT_INDEX or UV_INDEX_URL, in this order, else the public index.
        cache: A folder that stores what is read, created if it is missing. An exact version that is in it is read
            without the network, even if the index has a newer build of its wheel. By default nothing is stored.
        watch: Called with each step.
        timeout: Seconds to wait for a connection, and for each piece of an answer.
        time_limit: Seconds that all requests may take together; by default 900.

    Returns:
        The version, where it was read, and those of the files that this release has.

    Raises:
        SourcesError: `release` is not a version, the index does not have it or does not answer, the download is
            damaged, or the libraries for reading an index are not installed.
    """
    url = _index_url(index_url)
    index = _name_of(url)
    exact = _exact(release)
    found = None if exact is None else load_cached(_cache_file(cache, exact, index))
    if found is None or not found.has(paths):
        with closing(_connect(url, index, timeout, watch, time_limit)) as connection:
            version, wheel = _find(release, connection, index)
            found = _read_missing(connection, wheel, paths, _cache_file(cache, version, index), watch)
    origin = f"{found.wheel}{' (yanked)' if found.yanked else ''} of {index}"
    return make_sources(found.files, paths, origin, fallback_version=found.version)


@dataclass(frozen=True)
class WheelOfRelease:
    """The wheel of a release on a package index.

    Attributes:
        name: its file name, which no wheel with other contents has on the same index.
        index: the index, without passwords.
        download: gets the whole wheel; takes a folder, and returns the path of the wheel, which may lie elsewhere.
    """

    name: str
    index: str
    download: Callable[[Path], Path]


@contextmanager
def find_wheel(
    release: str,
    *,
    index_url: str | None = None,
    watch: Watch = ignore_progress,
    timeout: float = 30.0,
    time_limit: float | None = None,
) -> Generator[WheelOfRelease, None, None]:
    """Find the wheel of a release on a package index, which can be downloaded while the block runs.

    Args:
        release: See `read_release`, as for the other arguments.
        index_url: The root of the index.
        watch: Called with each step.
        timeout: Seconds to wait for a connection, and for each piece of an answer.
        time_limit: Seconds that all requests may take together; by default 900.

    Raises:
        SourcesError: As `read_release` does; also from the download.
    """
    url = _index_url(index_url)
    index = _name_of(url)
    _exact(release)  # what is no version is refused before the index is asked
    with closing(_connect(url, index, timeout, watch, time_limit)) as connection:
        _, wheel = _find(release, connection, index)
        yield WheelOfRelease(wheel.name, index, lambda folder: connection.download(wheel.package, folder))


def _find(release: str, connection: Connection, index: str) -> tuple[Version, _Wheel]:
    """Return the version that is meant, and its wheel to read."""
    wheels = [wheel for wheel in map(_wheel, connection.packages()) if wheel is not None]
    version = _exact(release) or _newest(release, wheels, index)
    return version, _wheel_of(version, wheels, index)


def _name_of(url: str | None) -> str:
    """Return what messages call an index."""
    return _PUBLIC if url is None else without_secrets(url).rstrip("/")


def _read_missing(
    connection: Connection, wheel: _Wheel, paths: Collection[str], file: Path | None, watch: Watch
) -> CachedRelease:
    """Read those files of a wheel that the cache does not hold, and store them."""
    cached = load_cached(file)
    if cached is None or cached.wheel != wheel.name:
        cached = CachedRelease(wheel.name, str(wheel.version), wheel.package.is_yanked, {})
    if cached.has(paths):
        return cached
    files = connection.read(wheel.package, [path for path in paths if path not in cached.files])
    cached = replace(cached, yanked=wheel.package.is_yanked, files={**cached.files, **files})
    if file is not None:
        try:
            store_cached(file, cached)
        except OSError as error:
            watch(f"the cache {file.parent} cannot be written, so nothing is stored: {error.strerror or error}")
    return cached


def _connect(url: str | None, index: str, timeout: float, watch: Watch, time_limit: float | None) -> Connection:
    try:
        from automodel_mesh.tracking.network import TIME_LIMIT, Connection  # noqa: PLC0415 - imports the libraries of an extra
    except ImportError as error:
        raise SourcesError(
            f"cannot read a release from a package index: {error}; pip install 'automodel-mesh[track]' installs what "
            "is missing"
        ) from error
    return Connection(url, index, timeout, watch, TIME_LIMIT if time_limit is None else time_limit)


def _index_url(given: str | None) -> str | None:
    """Return the URL of the index, `None` for the public one."""
    variable = next(filter(None, map(os.environ.get, _VARIABLES)), "")
    url = given or re.sub(r"^[\w.-]+=(?=\w+:)", "", variable) or None  # uv allows a name before the URL
    return Path(url).resolve().as_uri() if url and Path(url).is_dir() else url


# --- which release is meant, and which wheel


def _exact(release: str) -> Version | None:
    """Return the version if it names one release: one with at least three numbers, or more than numbers."""
    if release in {NEWEST, NIGHTLY}:
        return None
    try:
        version = Version(release)
    except ValueError:  # also raised for numbers of thousands of digits
        raise SourcesError(f"{release!r} is neither a file or folder nor a version: {ACCEPTED}") from None
    more = version.is_prerelease or version.is_postrelease or version.local is not None
    return version if more or len(version.release) > 2 else None


def _newest(release: str, wheels: Sequence[_Wheel], index: str) -> Version:
    """Return the newest of the releases that are meant."""
    prefix = () if release in {NEWEST, NIGHTLY} else Version(release).release
    meant = {
        _public(wheel.version)
        for wheel in wheels
        if wheel.version.release[: len(prefix)] == prefix
        and not wheel.package.is_yanked
        and (release == NIGHTLY or not wheel.version.is_prerelease)
    }
    if not meant:
        series = f" {release}" if prefix else ""
        wanted = "release of torch" if release == NIGHTLY else f"final release of torch{series}"
        raise SourcesError(f"{index} has no {wanted} that is not yanked; {_newest_few(wheels)}")
    return max(meant)


def _public(version: Version) -> Version:
    return Version(version.public)


def _newest_few(wheels: Sequence[_Wheel]) -> str:
    newest = sorted({_public(wheel.version) for wheel in wheels}, reverse=True)[:5]
    if not newest:
        return "it has no wheel of torch at all: give another index with --index-url"
    return f"the newest there are {', '.join(map(str, newest))}: give one of them, or another index with --index-url"


@dataclass(frozen=True)
class _Wheel:
    """A wheel of torch on an index."""

    version: Version
    build: tuple[int, str] | tuple[()]
    """Distinguishes a wheel from one that it replaces; 2.10.0 has such wheels, with other sources."""
    tags: frozenset[Tag]
    package: DistributionPackage

    @property
    def name(self) -> str:
        return self.package.filename

    @property
    def rank(self) -> tuple[object, ...]:
        """Highest for the wheel to read: the one that most Linux users get, and no two equal."""
        linux = any("linux" in tag.platform and tag.platform.endswith("x86_64") for tag in self.tags)
        pythons = [
            tuple(map(int, numbers.groups()))
            for tag in self.tags
            if (numbers := re.fullmatch(r"cp(\d)(\d+)", tag.interpreter)) and not tag.abi.endswith("t")
        ]
        local = self.version.local
        newest = max(pythons, default=())
        # Builds for CPUs are the smallest, in case the whole wheel has to be downloaded.
        return linux and bool(pythons), linux, newest, local is None, local == "cpu", self.build, self.name


def _wheel(package: DistributionPackage) -> _Wheel | None:
    try:
        name, version, build, tags = parse_wheel_filename(package.filename)
    except ValueError:  # an sdist, or not a package
        return None
    return _Wheel(version, build, tags, package) if name == "torch" else None


def _wheel_of(version: Version, wheels: Sequence[_Wheel], index: str) -> _Wheel:
    """Choose the wheel of a release to read; a version without a local part stands for all its local builds."""
    same = [wheel for wheel in wheels if version in {wheel.version, _public(wheel.version)}]
    if not same:
        raise SourcesError(f"{index} has no wheel of torch {version}; {_newest_few(wheels)}")
    return max(same, key=lambda wheel: wheel.rank)


# --- the cache


@dataclass(frozen=True)
class CachedRelease:
    """What was read of one release.

    Attributes:
        wheel: The name of the wheel that was read.
        version: The version in the wheel's name.
        yanked: Whether the release had been yanked.
        files: The text of what was read, by path; `None` for files that the wheel does not have.
    """

    wheel: str
    version: str
    yanked: bool
    files: Mapping[str, str | None]

    def has(self, paths: Iterable[str]) -> bool:
        """Tell whether some files and the one that states the version were read, or found missing in the wheel."""
        return self.files.keys() >= {*paths, VERSION_FILE}


def default_cache() -> Path:
    """Return the folder of the cache, which need not exist.

    Returns:
        The environment variable AUTOMODEL_MESH_CACHE if it is set; else `automodel-mesh` in XDG_CACHE_HOME if that is
        an absolute path; else `~/.cache/automodel-mesh`.
    """
    own = os.environ.get("AUTOMODEL_MESH_CACHE")
    if own:
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "automodel-mesh"


def _cache_file(cache: Path | None, version: Version, index: str) -> Path | None:
    # The name of the index is its URL without credentials, so that a new password finds the same file.
    return cache and cache / f"torch-{version}-{hashlib.sha256(index.encode()).hexdigest()[:12]}.json"


def load_cached(file: Path | None) -> CachedRelease | None:
    """Read a file of the cache; `None` if there is none, or it is damaged or has another format."""
    if file is None:
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.pop("schema") != _CACHE_SCHEMA:
            return None
        cached = CachedRelease(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        return None
    return cached if _has_right_types(cached) else None


def _has_right_types(cached: CachedRelease) -> bool:
    # Any program may have written the file.
    values = [(cached.wheel, str), (cached.version, str), (cached.yanked, bool), (cached.files, dict)]
    if not all(isinstance(value, kind) for value, kind in values):
        return False
    texts = list[object](cached.files.values())
    return all(text is None or isinstance(text, str) for text in texts)


def store_cached(file: Path, cached: CachedRelease) -> None:
    """Write a file of the cache completely or not at all, even if several processes write it.

    Raises:
        OSError: The folder cannot be made or written.
    """
    write_whole(file, json.dumps({"schema": _CACHE_SCHEMA, **asdict(cached)}).encode())


def write_whole(file: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if several processes write it, and the folder that it is in.

    Raises:
        OSError: The folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(content)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
