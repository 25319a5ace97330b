"""Turns the errors of the network, and of the libraries that use it, into sentences without passwords."""

from __future__ import annotations

import importlib
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from automodel_mesh.tracking.sources import ARCHIVE_ERRORS, SourcesError

_REFUSES_RANGES: Final = frozenset({400, 416, 501})
"""What servers answer that do not take a range, or none that counts from the end."""
_ADVICE: Final = "check the network, or give another index with --index-url, or a wheel or a folder with torch"


def without_secrets(text: str) -> str:
    """Take users, passwords and queries, which may hold tokens, out of the URLs in a text."""
    # Up to the last @: a password with an unquoted slash must not be shown either.
    text = re.sub(r"(?<=://)(?<!file://)\S*@", "", text)
    return re.sub(r"\?[^\s'\"]*=[^\s'\")]*", "", text)


def check_libraries() -> None:
    """Refuse to go on without the libraries of the extra `track`."""
    try:
        importlib.import_module("pypi_simple")
        importlib.import_module("remotezip")
    except ImportError as error:
        raise SourcesError(
            f"cannot read a release from a package index: {error}; pip install 'automodel-mesh[track]' brings all of it"
        ) from error


def refuses_ranges(error: Exception) -> bool:
    """Tell whether remotezip failed because the server has no ranges, or has them in another form."""
    from remotezip import OutOfBound, RemoteIOError  # noqa: PLC0415 - of the extra `track`

    response = getattr(error.__context__, "response", None)
    other = isinstance(error, (OutOfBound, RemoteIOError))
    return not other or getattr(response, "status_code", None) in _REFUSES_RANGES


@contextmanager
def explained(doing: str, timeout: float) -> Generator[None, None, None]:
    """Turn the errors of the network, of the libraries and of damaged files into ours."""
    from pypi_simple import NoSuchProjectError, UnsupportedRepoVersionError  # noqa: PLC0415 - of the extra `track`
    from remotezip import RemoteZipError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    libraries = (NoSuchProjectError, UnsupportedRepoVersionError, RemoteZipError, HTTPError)
    try:
        yield
    except (*ARCHIVE_ERRORS, *libraries, ValueError) as error:
        raise SourcesError(f"{doing} failed: {_reason(error, timeout)}; {_ADVICE}") from error


def _reason(error: BaseException, timeout: float) -> str:
    import requests  # noqa: PLC0415 - of the extra `track`
    from pypi_simple import NoSuchProjectError  # noqa: PLC0415
    from urllib3 import exceptions as urllib3  # noqa: PLC0415

    error = _cause(error)
    # The messages of these repeat what they take for the host, which may be a user and the start of a password.
    no_urls = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema)
    if isinstance(error, (*no_urls, urllib3.LocationParseError)):
        return f"it is not the URL of an index ({type(error).__name__})"
    if isinstance(error, NoSuchProjectError):
        return "there is no project torch"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    refused = isinstance(error, urllib3.NewConnectionError)  # which urllib3 counts among the timeouts
    if isinstance(error, (requests.Timeout, urllib3.TimeoutError)) and not refused:
        return f"the server did not answer within {timeout:g} s"
    return f"{type(error).__name__}: {without_secrets(str(error))}"


def _cause(error: BaseException) -> BaseException:
    """Return the error that remotezip, or urllib3 after its last try, has wrapped; else the error itself."""
    from remotezip import RemoteIOError  # noqa: PLC0415 - of the extra `track`

    if isinstance(error, RemoteIOError) and error.__context__ is not None:
        error = error.__context__
    inner = getattr(next(iter(error.args), None), "reason", None)
    return inner if isinstance(inner, Exception) else error
