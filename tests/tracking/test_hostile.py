"""What others serve, store or write can be slow, endless, large or wrong: `track` says so, and ends with status 2."""

from __future__ import annotations

import gzip
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from automodel_mesh.cli import main
from automodel_mesh.tracking import index as tracked_index
from automodel_mesh.tracking import network, sources
from automodel_mesh.tracking.index import load_cached
from automodel_mesh.tracking.ledger import LedgerError, as_version
from automodel_mesh.tracking.sources import SourcesError, read_path
from tests.tracking.package_index import JSON, Link, PackageIndex, read
from tests.tracking.small_torch import MESH, PATHS, make_wheel, torch_files

pytestmark = [pytest.mark.release_independent, pytest.mark.usefixtures("default_settings")]

DEEP = "(" * 100_000
DIGITS = "1" * 5000

Answer = Callable[[BaseHTTPRequestHandler], None]


def send(handler: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    """Send the head of an answer; `_` in a header's name stands for `-`."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte at a time, more often than the time limit for each piece."""
    send(handler, 200, Content_Type="text/html")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    """Send the head of an answer a line at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(50):
        handler.wfile.write(f"X-{number}: 1\r\n".encode())
        time.sleep(0.1)


def never_end(handler: BaseHTTPRequestHandler) -> None:
    """Send more and more."""
    send(handler, 200, Content_Type="text/html")
    while True:
        handler.wfile.write(bytes(1 << 16))


def redirect_without_end(handler: BaseHTTPRequestHandler) -> None:
    """Send a redirect with an endless body."""
    send(handler, 302, Location="/simple/torch/again")
    while True:
        handler.wfile.write(bytes(1 << 16))


def bomb(handler: BaseHTTPRequestHandler) -> None:
    """Send a page of zeros that is small only while it is compressed."""
    send(handler, 200, Content_Type="text/html", Content_Encoding="gzip")
    handler.wfile.write(gzip.compress(bytes(16 << 20)))


def bomb_in_a_bomb(handler: BaseHTTPRequestHandler) -> None:
    """Send a page that is compressed twice."""
    send(handler, 200, Content_Type="text/html", Content_Encoding="gzip, gzip")
    handler.wfile.write(gzip.compress(gzip.compress(bytes(16 << 20))))


def later(seconds: str) -> Answer:
    """Ask to come back later."""
    return lambda handler: send(handler, 503, Retry_After=seconds, Content_Length="0")


def large_range(handler: BaseHTTPRequestHandler) -> None:
    """Announce a range of a terabyte."""
    send(handler, 206, Content_Range=f"bytes 0-{1 << 40}/{1 << 41}")
    while True:
        handler.wfile.write(bytes(1 << 16))


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that a test reaches them in a moment."""
    for name in ("PAGE_LIMIT", "PART_LIMIT", "WHEEL_LIMIT"):
        monkeypatch.setattr(network, name, 4 << 20)
    monkeypatch.setattr(network, "TIME_LIMIT", 2.0)
    monkeypatch.setattr(network, "LONGEST_RETRY_AFTER", 1.0)
    monkeypatch.setattr(sources, "FILE_LIMIT", 1 << 20)


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        (drip, "it takes longer than 2 s"),
        (drip_headers, "it takes longer than 2 s"),
        (never_end, "the answer has more than 4194304 bytes"),
        (redirect_without_end, "the answer has more than 4194304 bytes"),
        (bomb, "the answer has more than 4194304 bytes"),
        (bomb_in_a_bomb, "compressed more than once"),
        (later("7200"), "the server asks to try again in 7200 s (status 503)"),
        (later(DIGITS), "failed: "),
        (later("soon"), "failed: "),
        (later("0"), "503"),
    ],
)
def test_a_page_without_an_end_is_refused(
    instead: Answer, reason: str, index: PackageIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that comes slowly, never ends, is too large or comes too late exits with 2 within the time limit."""
    index.instead = instead
    start = time.monotonic()
    assert main(["track", "newest", "--index-url", index.url, "--cache", str(index.folder / "cache")]) == 2
    assert time.monotonic() - start < 6
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert "give another index with --index-url" in err


def test_a_server_that_asks_to_come_back_is_asked_again(index: PackageIndex) -> None:
    """A server that answers with `Retry-After` is asked again after that time, and its answer is read."""

    def once(handler: BaseHTTPRequestHandler) -> None:
        index.instead = None
        later("1")(handler)

    index.instead = once
    start = time.monotonic()
    assert read(index, "2.15.0").version == "2.15.0"
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(
    ("instead", "reason"),
    [(drip, "it takes longer"), (never_end, "the answer has more"), (large_range, "the answer has more")],
)
def test_a_wheel_without_an_end_is_refused(instead: Answer, reason: str, index: PackageIndex) -> None:
    """A wheel, or a range of one, that never ends or is too large is an error that names it."""
    index.instead, index.instead_of = instead, "/files/"
    with pytest.raises(SourcesError, match=f"reading torch-2.15.0-.* failed: {reason}.*give another index"):
        read(index, "2.15.0")


@pytest.mark.parametrize("page", [(200, JSON, b"[" * 100_000), (200, "text/html", b"<a>" * 20_000)])
def test_a_deeply_nested_page_is_refused(page: tuple[int, str, bytes], index: PackageIndex) -> None:
    """A page that is nested too deeply is an error, not a traceback."""
    index.page = page
    with pytest.raises(SourcesError, match="index-url"):
        read(index, "2.15.0", time_limit=20.0)


def test_a_wheel_on_this_machine_is_read_from_an_index_on_it_only(index: PackageIndex, tmp_path: Path) -> None:
    """A server cannot make `track` read a file of this machine."""
    wheel = make_wheel(tmp_path, "2.14.1")
    index.page = (200, "text/html", f'<a href="{wheel.as_uri()}">{wheel.name}</a>'.encode())
    with pytest.raises(SourcesError, match="links torch-2.14.1-.* to a file of this machine"):
        read(index, "2.14.1")


# --- wheels and sources


def test_a_bomb_in_a_wheel_is_refused(tmp_path: Path) -> None:
    """A source file that is unpacked to more than the limit is refused, whatever size the wheel gives for it."""
    files = {**torch_files("2.15.0"), MESH: bytes(8 << 20)}
    with pytest.raises(SourcesError, match=f"{MESH} of the wheel .* has more than 1 MiB.*download it again"):
        read_path(make_wheel(tmp_path, "2.15.0", files=files), PATHS)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(method: int, tmp_path: Path) -> None:
    """A file that is packed in a way whose size cannot be limited is refused."""
    wheel = tmp_path / "torch-2.15.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        for name, content in torch_files("2.15.0").items():
            archive.writestr(name, content)
    with pytest.raises(SourcesError, match="is packed as no wheel of torch is"):
        read_path(wheel, PATHS)


@pytest.mark.parametrize("text", [DEEP, "-" * 100_000 + "1", "x = 1\0", "if 1: pass\n" + "elif 1: pass\n" * 20_000])
@pytest.mark.parametrize("file", ["torch/version.py", "torch/distributed/distributed_c10d.py"])
def test_sources_that_python_cannot_parse_exit_with_2(
    text: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sources that are nested too deeply or contain null characters exit with 2, never with the 1 of a break."""
    files = {**torch_files("99.0.0"), "torch/distributed/distributed_c10d.py": b"", file: text.encode()}
    name = "torch.whl" if file == "torch/version.py" else "torch-99.0.0-py3-none-any.whl"
    wheel = make_wheel(tmp_path, "99.0.0", files=files).rename(tmp_path / name)
    assert main(["track", str(wheel)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("automodel-mesh: ")
    assert len(err) < 1000


@pytest.mark.parametrize("what", [DIGITS, f"{DIGITS}.0.0", f"2.15.0+{DIGITS}"])
def test_a_version_of_5000_digits_is_refused(what: str, index: PackageIndex, tmp_path: Path) -> None:
    """A version of thousands of digits, given, on an index or in sources, is refused or ignored."""
    assert main(["track", what, "--index-url", index.url]) == 2
    with pytest.raises(LedgerError, match="is not a version number"):
        as_version(f"{DIGITS}.0")
    index.links.append(Link(f"torch-{what}-py3-none-any.whl"))
    assert read(index, "newest").version == "2.15.0"
    with pytest.raises(SourcesError, match="states the version '111"):
        read_path(make_wheel(tmp_path, "2.15.0", files=torch_files(f"{DIGITS}.0")), PATHS)


def test_a_deeply_nested_cache_is_ignored(tmp_path: Path) -> None:
    """A file of the cache that is nested too deeply is read as one that is not there."""
    file = tmp_path / "entry.json"
    file.write_text("[" * 100_000)
    assert load_cached(file) is None


def test_what_nothing_foresaw_exits_with_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that nothing foresaw exits with 2, its type and what to do: 1 means that torch breaks us."""

    def fail(*args: object, **kwargs: object) -> None:
        raise LookupError("\x1b[31mred")

    monkeypatch.setattr(tracked_index, "load_cached", fail)
    assert main(["track", "2.15.0"]) == 2
    err = capsys.readouterr().err
    assert "LookupError: \\x1b[31mred; give another index" in err


def test_no_escapes_reach_the_terminal(index: PackageIndex, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in what a server answers are escaped in messages."""
    line = b"HTTP/1.1 500 \x1b[31mred\x9b\r\nContent-Length: 0\r\n\r\n"

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(line)

    index.instead = refuse
    assert main(["track", "2.14.1", "--index-url", index.url]) == 2
    err = capsys.readouterr().err
    assert "the server answered 500 \\x1b[31mred\\x9b;" in err
    assert "\x1b" not in err
