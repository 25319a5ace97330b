"""A torch release on a package index: which one is meant, which of its wheels is read, and how over HTTP."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname
from zipfile import ZipFile

from packaging.utils import parse_wheel_filename
from packaging.version import InvalidVersion, Version

from automodel_mesh.tracking import cache as kept
from automodel_mesh.tracking.cache import Entry
from automodel_mesh.tracking.network_errors import check_libraries, explained, refuses_ranges, without_secrets
from automodel_mesh.tracking.sources import (
    NEWEST,
    NIGHTLY,
    Sources,
    SourcesError,
    Watch,
    made_sources,
    needed,
    read_members,
    silent,
)

if TYPE_CHECKING:
    import requests
    from packaging.tags import Tag
    from pypi_simple import DistributionPackage, ProjectPage

_VARIABLES: Final = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
_PUBLIC: Final = "the public package index"
_TAIL: Final = 2 << 20
"""Bytes: a wheel's list of members lies at its end; torch's lists take 1.2 to 1.4 MB from 2.6 on."""
_CONNECT_TRIES: Final = 3


def read_release(
    what: str,
    paths: Collection[str],
    *,
    index_url: str | None = None,
    cache: Path | None = None,
    watch: Watch = silent,
    timeout: float = 30.0,
) -> Sources:
    """Read source files of a torch release from a package index, only the needed members of a wheel where it can.

    Args:
        what: An exact version, a short one such as `"2.15"`, `"newest"` or `"nightly"`; see `read_sources`.
        paths: The files.
        index_url: The root of the index, a URL (`http:`, `https:` or `file:`) or a folder; see `read_sources`.
        cache: The folder of what was read before, or `None`. An exact version that is in it is not looked for on the
            index, not even for a newer build of its wheel.
        watch: Is told of each step.
        timeout: Seconds to wait for a connection, and for each piece of an answer.

    Returns:
        The version, where it was read, and those of the files that this release has.

    Raises:
        SourcesError: No such release, no or a wrong answer, a download that is damaged, or the libraries for reading
            an index are missing.
    """
    with closing(_Index(index_url, timeout, watch)) as index:
        exact = _exact(what)
        version = exact or _newest(what, index)
        file = None if cache is None else cache / kept.file_name(str(version), index.name)
        entry = None if file is None else kept.load(file)
        current = entry is not None and (exact is not None or entry.wheel == index.wheel_of(version).name)
        if entry is None or not current or not entry.has(needed(paths)):
            entry = _read(index, version, entry, paths)
            _keep(file, entry, watch)
    origin = f"{entry.wheel}{' (yanked)' if entry.yanked else ''} of {index.name}"
    return made_sources(entry.files, paths, origin, otherwise=entry.version)


def _read(index: _Index, version: Version, entry: Entry | None, paths: Collection[str]) -> Entry:
    """Read what is not known yet."""
    wheel = index.wheel_of(version)
    before = entry.files if entry is not None and entry.wheel == wheel.name else {}
    files = index.read(wheel, [path for path in paths if path not in before])
    return Entry(wheel.name, str(wheel.version), wheel.package.is_yanked, {**before, **files})


def _keep(file: Path | None, entry: Entry, watch: Watch) -> None:
    if file is None:
        return
    try:
        kept.store(file, entry)
    except OSError as error:
        watch(f"the cache {file.parent} cannot be written, so nothing is kept: {error.strerror or error}")


def _exact(what: str) -> Version | None:
    """Return the version if it names one release: one with at least three numbers, or more than numbers."""
    try:
        version = Version(what)
    except InvalidVersion:  # "newest" or "nightly"
        return None
    more = version.is_prerelease or version.is_postrelease or version.local is not None
    return version if more or len(version.release) > 2 else None


def _newest(what: str, index: _Index) -> Version:
    """Return the newest release of those that are meant, as the index has them now."""
    prefix = () if what in {NEWEST, NIGHTLY} else Version(what).release
    meant = {
        _public(wheel.version)
        for wheel in index.wheels
        if wheel.version.release[: len(prefix)] == prefix
        and not wheel.package.is_yanked
        and (what == NIGHTLY or not wheel.version.is_prerelease)
    }
    if not meant:
        series = f" {what}" if prefix else ""
        wanted = "release of torch" if what == NIGHTLY else f"final release of torch{series}"
        raise SourcesError(f"{index.name} has no {wanted} that is not yanked; {_newest_few(index.wheels)}")
    return max(meant)


def _public(version: Version) -> Version:
    return Version(version.public)


def _newest_few(wheels: Collection[_Wheel]) -> str:
    newest = sorted({_public(wheel.version) for wheel in wheels}, reverse=True)[:5]
    if not newest:
        return "it has no wheel of torch at all: give another index with --index-url"
    return f"the newest there are {', '.join(map(str, newest))}: give one of them, or another index with --index-url"


@dataclass(frozen=True)
class _Wheel:
    """A wheel of torch on an index."""

    version: Version
    build: tuple[int, str] | tuple[()]
    """What tells a wheel from one that it replaces; 2.10.0 has such wheels, with other sources."""
    tags: frozenset[Tag]
    package: DistributionPackage

    @property
    def name(self) -> str:
        return self.package.filename

    @property
    def rank(self) -> tuple[object, ...]:
        """Greater for the wheel to be read: the one that most Linux users get, of equals always the same."""
        linux = any("linux" in tag.platform and tag.platform.endswith("x86_64") for tag in self.tags)
        pythons = [
            tuple(map(int, numbers.groups()))
            for tag in self.tags
            if (numbers := re.fullmatch(r"cp(\d)(\d+)", tag.interpreter)) and not tag.abi.endswith("t")
        ]
        local = self.version.local
        newest = max(pythons, default=())
        # Builds for CPUs are the smallest, should all of it have to be downloaded.
        return linux and bool(pythons), linux, newest, local is None, local == "cpu", self.build, self.name


def _wheel(package: DistributionPackage) -> _Wheel | None:
    try:
        name, version, build, tags = parse_wheel_filename(package.filename)
    except ValueError:  # an sdist, or no package at all
        return None
    return _Wheel(version, build, tags, package) if name == "torch" else None


class _Index:
    """A package index, asked for its wheels of torch when they are needed, and once."""

    def __init__(self, url: str | None, timeout: float, watch: Watch) -> None:
        self._url = url or _from_environment()
        if self._url and Path(self._url).is_dir():
            self._url = Path(self._url).resolve().as_uri()
        self.name = _PUBLIC if self._url is None else without_secrets(self._url).rstrip("/")
        self._timeout = timeout
        self._watch = watch

    def close(self) -> None:
        """Close the connections, if there are any."""
        if "_session" in vars(self):
            self._session.close()

    @cached_property
    def _session(self) -> requests.Session:
        import requests  # noqa: PLC0415 - of the extra `track`
        from requests.adapters import HTTPAdapter  # noqa: PLC0415
        from urllib3 import Retry  # noqa: PLC0415

        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=Retry(_CONNECT_TRIES - 1, read=False)))
        return session

    @cached_property
    def wheels(self) -> tuple[_Wheel, ...]:
        """All wheels of torch."""
        check_libraries()
        step = f"asking {self.name} for the releases of torch"
        self._watch(step)
        with explained(step, self._timeout):
            page = self._project_page()
        return tuple(wheel for wheel in map(_wheel, page.packages) if wheel is not None)

    def _project_page(self) -> ProjectPage:
        from pypi_simple import ProjectPage, PyPISimple  # noqa: PLC0415 - of the extra `track`

        with warnings.catch_warnings():
            # Of minor versions of the index protocol, which are compatible, and of unusual HTML.
            warnings.simplefilter("ignore", UserWarning)
            folder = _local_path(self._url or "")
            if folder is not None:
                file = folder / "torch" / "index.html"
                return ProjectPage.from_html("torch", file.read_bytes(), base_url=file.as_uri())
            endpoint = {} if self._url is None else {"endpoint": self._url}
            client = PyPISimple(session=self._session, **endpoint)
            return client.get_project_page("torch", timeout=self._timeout)

    def wheel_of(self, version: Version) -> _Wheel:
        """Choose the wheel of a release that is read; one without a local part stands for all its local builds."""
        same = [wheel for wheel in self.wheels if version in {wheel.version, _public(wheel.version)}]
        if not same:
            raise SourcesError(f"{self.name} has no wheel of torch {version}; {_newest_few(self.wheels)}")
        return max(same, key=lambda wheel: wheel.rank)

    def read(self, wheel: _Wheel, paths: Collection[str]) -> dict[str, str | None]:
        """Read members of a wheel: by ranges where the server has them, else from the whole."""
        url = self._with_credentials(wheel.package.url)
        file = _local_path(url)
        with explained(f"reading {wheel.name} of {self.name}", self._timeout):
            if file is not None:
                return self._members(ZipFile(file), wheel, paths)
            from remotezip import RemoteZip, RemoteZipError  # noqa: PLC0415

            self._watch(f"reading {wheel.name}")
            plain = {"Accept-Encoding": "identity"}  # ranges of the wheel, not of something packed again
            try:
                archive = RemoteZip(url, _TAIL, self._session, timeout=self._timeout, headers=plain)
                return self._members(archive, wheel, paths)
            except RemoteZipError as error:
                if not refuses_ranges(error):
                    raise
            return self._from_download(url, wheel, paths)

    def _members(self, archive: ZipFile, wheel: _Wheel, paths: Collection[str]) -> dict[str, str | None]:
        with archive:
            return read_members(archive, paths, wheel.name, self._watch)

    def _from_download(self, url: str, wheel: _Wheel, paths: Collection[str]) -> dict[str, str | None]:
        step = f"downloading {wheel.name}"
        digest = hashlib.sha256()
        with TemporaryFile() as file, self._session.get(url, stream=True, timeout=self._timeout) as answer:
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length", 0))
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                self._watch(step, file.tell(), total)
            if wheel.package.digests.get("sha256") not in {None, digest.hexdigest()}:
                raise SourcesError(f"{step} from {self.name} failed: its sha256 is not the one that the index says")
            return self._members(ZipFile(file), wheel, paths)

    def _with_credentials(self, url: str) -> str:
        """Give a wheel's URL the user and password of the index, if it is on the same server."""
        index, link = urlsplit(self._url or ""), urlsplit(url)
        user, at, server = index.netloc.rpartition("@")
        same = at and (link.scheme, link.netloc) == (index.scheme, server)
        return link._replace(netloc=f"{user}@{server}").geturl() if same else url


def _from_environment() -> str | None:
    urls = (os.environ.get(name) for name in _VARIABLES)
    url = next(filter(None, urls), None)
    return url and re.sub(r"^[\w.-]+=(?=\w+:)", "", url)  # uv allows a name before the URL


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
