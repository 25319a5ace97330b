"""Reads a package index and the wheels on it over HTTP; the one module that imports the libraries of the extra `track`.

Errors of the network, of these libraries and of damaged wheels become a `SourcesError` without passwords. A server may
answer slowly, without an end, or with far more than was asked for: the constants here limit the time and the bytes.
"""

from __future__ import annotations

import hashlib
import re
import time
import warnings
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO, Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname
from zipfile import ZipFile

import requests
from pypi_simple import (
    DistributionPackage,
    NoSuchProjectError,
    ProjectPage,
    PyPISimple,
    UnsupportedRepoVersionError,
)
from remotezip import OutOfBound, RemoteIOError, RemoteZip, RemoteZipError
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema
from urllib3 import Retry
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from automodel_mesh.tracking.sources import ARCHIVE_ERRORS, SourcesError, Watch, read_members, without_secrets

_TAIL: Final = 2 << 20
"""Bytes: a wheel's list of members is at its end; torch's lists take 1.2 to 1.4 MB from 2.6 on."""
_CONNECT_TRIES: Final = 3
TIME_LIMIT: Final = 900.0
"""Seconds that all requests for a release may take together."""
LONGEST_RETRY_AFTER: Final = 60.0
"""Seconds: a server that asks to come back later, with `Retry-After`, is asked again then if it is not later."""
PAGE_LIMIT: Final = 64 << 20
"""Bytes of the page that lists all files of torch, which has 1 MB on the public index."""
PART_LIMIT: Final = 64 << 20
"""Bytes of one range of a wheel."""
WHEEL_LIMIT: Final = 8 << 30
"""Bytes of a wheel; those with CUDA have 1 to 3 GB."""
_REFUSES_RANGES: Final = frozenset({400, 416, 501})
"""Statuses of servers that do not support ranges, or none that counts from the end."""
_ADVICE: Final = "check the network, or give another index with --index-url, or a wheel or a folder with torch"


_T = TypeVar("_T")


class _LimitError(ValueError):
    """An answer takes longer, or is larger, than any answer of a package index has to be."""


class _Retry(Retry):
    """Waits as long as the server asks for, up to a limit."""

    def get_retry_after(self, response: Any) -> float | None:
        """Return the seconds to wait for; raise if they are too many."""
        seconds = super().get_retry_after(response)
        if seconds is not None and seconds > LONGEST_RETRY_AFTER:
            raise _LimitError(f"the server asks to try again in {seconds:.0f} s (status {response.status})")
        return seconds


class _Adapter(HTTPAdapter):
    """Limits the size of what requests and remotezip read whole."""

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **options: Any
    ) -> requests.Response:
        """Send a request, and refuse an answer that is too large."""
        answer = super().send(request, True, *args, **options)
        if "," in answer.headers.get("Content-Encoding", ""):  # layers multiply the size of what is unpacked
            raise _LimitError("the answer is compressed more than once")
        if answer.status_code == requests.codes.partial_content:
            first, last = re.findall(r"\d+", answer.headers.get("Content-Range", ""))[:2] or (0, 0)
            _require_at_most(PART_LIMIT, int(last) - int(first))
        if not stream or answer.is_redirect:
            answer.raw = _read_whole(answer.raw)
        return answer


def _read_whole(raw: Any) -> BytesIO:
    content = BytesIO()
    for chunk in raw.stream(1 << 16, decode_content=True):
        content.write(chunk)
        _require_at_most(PAGE_LIMIT, content.tell())
    raw.release_conn()
    content.seek(0)
    return content


def _require_at_most(limit: int, size: int) -> None:
    if size > limit:
        raise _LimitError(f"the answer has more than {limit} bytes")


class Connection:
    """A connection to a package index.

    Args:
        url: The root of the index, which may be a `file:` URL; `None` for the public one.
        name: The index's name in messages.
        timeout: Seconds to wait for a connection, and for each piece of an answer.
        watch: Called with each step.
        time_limit: Seconds that all requests may take together.
    """

    def __init__(
        self, url: str | None, name: str, timeout: float, watch: Watch, time_limit: float = TIME_LIMIT
    ) -> None:
        self._url = url
        self._name = name
        self._timeout = timeout
        self._watch = watch
        self._time_limit = time_limit
        self._deadline = time.monotonic() + time_limit
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(max_retries=_Retry(_CONNECT_TRIES - 1, read=False)))

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def packages(self) -> list[DistributionPackage]:
        """Ask the index for the files of all releases of torch."""
        step = f"asking {self._name} for the releases of torch"
        self._watch(step)
        with self._explained(step), warnings.catch_warnings():
            # About minor versions of the index protocol, which are compatible, and about unusual HTML.
            warnings.simplefilter("ignore", UserWarning)
            folder = _local_path(self._url or "")
            if folder is not None:
                file = folder / "torch" / "index.html"
                return ProjectPage.from_html("torch", file.read_bytes(), base_url=file.as_uri()).packages
            endpoint = {} if self._url is None else {"endpoint": self._url}
            client = PyPISimple(session=self._session, **endpoint)
            return self._in_time(lambda: client.get_project_page("torch", timeout=self._timeout).packages)

    def read(self, wheel: DistributionPackage, paths: Collection[str]) -> dict[str, str | None]:
        """Read members of a wheel: by ranges if the server supports them, else from the whole wheel."""
        url = self._with_credentials(wheel.url)
        with self._explained(f"reading {wheel.filename} of {self._name}"):
            if (file := self._local_wheel(url, wheel)) is not None:
                return self._members(ZipFile(file), wheel, paths)
            return self._in_time(lambda: self._from_server(url, wheel, paths))

    def download(self, wheel: DistributionPackage, folder: Path) -> Path:
        """Download a wheel into a folder, and return its path; one of an index on this machine stays where it is."""
        url = self._with_credentials(wheel.url)
        with self._explained(f"downloading {wheel.filename} from {self._name}"):
            if (file := self._local_wheel(url, wheel)) is not None:
                return file
            # Not under the name that the index gives it, which may contain anything.
            with (path := folder / "torch.whl").open("wb") as opened:
                self._in_time(lambda: self._download(url, wheel, opened))
            return path

    def _local_wheel(self, url: str, wheel: DistributionPackage) -> Path | None:
        """Return the path of a wheel on this machine, `None` for one on a server."""
        file = _local_path(url)
        if file is not None and _local_path(self._url or "") is None:
            raise SourcesError(
                f"{self._name} links {wheel.filename} to a file of this machine, which only an "
                f"index on this machine may do; {_ADVICE}"
            )
        return file

    def _in_time(self, read: Callable[[], _T]) -> _T:
        """Call a function that uses the network, in a thread that is left alone when the time is over.

        A time limit of a socket is for each piece that it receives: a server that sends a byte a second never ends.
        """
        results: list[_T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(read())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                errors.append(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        thread.join(max(0.0, self._deadline - time.monotonic()))
        if thread.is_alive():
            raise _LimitError(f"it takes longer than {self._time_limit:g} s")
        if errors:
            raise errors.pop()  # no cycle, which would keep the connection that its traceback refers to
        return results[0]

    def _from_server(self, url: str, wheel: DistributionPackage, paths: Collection[str]) -> dict[str, str | None]:
        self._watch(f"reading {wheel.filename}")
        plain = {"Accept-Encoding": "identity"}  # ranges of the wheel, not of a compressed copy
        try:
            archive = RemoteZip(url, _TAIL, self._session, timeout=self._timeout, headers=plain)
            return self._members(archive, wheel, paths)
        except RemoteZipError as error:
            if not _is_refusal_of_ranges(error):
                raise
        return self._from_download(url, wheel, paths)

    def _members(self, archive: ZipFile, wheel: DistributionPackage, paths: Collection[str]) -> dict[str, str | None]:
        with archive:
            return read_members(archive, paths, wheel.filename, self._watch)

    def _from_download(self, url: str, wheel: DistributionPackage, paths: Collection[str]) -> dict[str, str | None]:
        with TemporaryFile() as file:
            self._download(url, wheel, file)
            return self._members(ZipFile(file), wheel, paths)

    def _download(self, url: str, wheel: DistributionPackage, file: IO[bytes]) -> None:
        step = f"downloading {wheel.filename}"
        digest = hashlib.sha256()
        with self._session.get(url, stream=True, timeout=self._timeout) as answer:
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length", 0))
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
                _require_at_most(WHEEL_LIMIT, file.tell())
                digest.update(chunk)
                self._watch(step, file.tell(), total, "bytes")
        if wheel.digests.get("sha256") not in {None, digest.hexdigest()}:
            raise SourcesError(f"{step} from {self._name} failed: its sha256 differs from the one on the index")

    def _with_credentials(self, url: str) -> str:
        """Add the user and password of the index to a wheel's URL, if it is on the same server."""
        index, link = urlsplit(self._url or ""), urlsplit(url)
        user, at, server = index.netloc.rpartition("@")
        same = at and (link.scheme, link.netloc) == (index.scheme, server)
        return link._replace(netloc=f"{user}@{server}").geturl() if same else url

    @contextmanager
    def _explained(self, doing: str) -> Generator[None, None, None]:
        libraries = (NoSuchProjectError, UnsupportedRepoVersionError, RemoteZipError, HTTPError)
        try:
            yield
        except (*ARCHIVE_ERRORS, *libraries, ValueError, MemoryError) as error:
            raise SourcesError(f"{doing} failed: {_reason(_cause(error), self._timeout)}; {_ADVICE}") from error


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _is_refusal_of_ranges(error: RemoteZipError) -> bool:
    """Tell whether remotezip failed because the server has no ranges, or has them in another form."""
    response = getattr(error.__context__, "response", None)
    other = isinstance(error, (OutOfBound, RemoteIOError))
    return not other or getattr(response, "status_code", None) in _REFUSES_RANGES


def _cause(error: BaseException) -> BaseException:
    """Return the error that remotezip, or urllib3 after its last try, has wrapped; else the error itself."""
    if isinstance(error, RemoteIOError) and error.__context__ is not None:
        error = error.__context__
    inner = getattr(next(iter(error.args), None), "reason", None)
    return inner if isinstance(inner, Exception) else error


def _reason(error: BaseException, timeout: float) -> str:
    if isinstance(error, _LimitError):
        return str(error)
    # The messages of these repeat what they take for the host, which may be a user and the start of a password.
    if isinstance(error, (InvalidURL, InvalidSchema, MissingSchema, LocationParseError)):
        return f"it is not the URL of an index ({type(error).__name__})"
    if isinstance(error, NoSuchProjectError):
        return "there is no project torch"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    refused = isinstance(error, NewConnectionError)  # which urllib3 counts among the timeouts
    if isinstance(error, (requests.Timeout, Urllib3TimeoutError)) and not refused:
        return f"the server did not answer within {timeout:g} s"
    return f"{type(error).__name__}: {without_secrets(str(error))}"
