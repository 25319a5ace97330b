"""Releases are read from package indexes of the tests' own, over HTTP on 127.0.0.1, and kept in a cache."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pypi_simple
import pytest
import remotezip

from automodel_mesh.tracking import cache as kept
from automodel_mesh.tracking.cache import default_cache
from automodel_mesh.tracking.index import read_release
from automodel_mesh.tracking.reading import read_sources
from automodel_mesh.tracking.sources import Sources, SourcesError
from tests.tracking.test_reading import LACKING, MESH, MESH_TEXT, PATHS, make_wheel, noting, torch_files

pytestmark = pytest.mark.release_independent

LINUX = "cp312-cp312-manylinux_2_28_x86_64"
JSON = "application/vnd.pypi.simple.v1+json"
IMPORTED_ONCE = (pypi_simple, remotezip)
"""By the process that the tests are forked from; each of them would need a second for it."""
VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


@dataclass
class Link:
    """A file as the page of torch shows it."""

    name: str
    yanked: bool = False
    sha256: str | None = None


@dataclass
class PackageIndex:
    """A package index that serves one project, and misbehaves where a test asks for it."""

    folder: Path
    links: list[Link] = field(default_factory=list[Link])
    as_json: bool = False
    page: tuple[int, str, bytes] | None = None
    """Status, content type and content of the page, instead of the right one."""
    ranges: bool = True
    status_of_ranges_from_the_end: int = 206
    status_of_files: int = 200
    password: str = ""
    cut: str = ""
    """End answers early for paths that contain this."""
    hang: str = ""
    """Never answer for paths that contain this."""
    finished: threading.Event = field(default_factory=threading.Event)
    requested: list[str] = field(default_factory=list[str])
    bytes_sent: int = 0
    url: str = ""

    def add(
        self,
        version: str,
        tags: str = LINUX,
        *,
        yanked: bool = False,
        sha256: str | None = "right",
        files: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Put a wheel on the index."""
        wheel = make_wheel(self.folder, version, tags=tags, files=files)
        right = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.links.append(Link(wheel.name, yanked, right if sha256 == "right" else sha256))
        return wheel

    def html(self, where: str = "../../files/") -> bytes:
        """The page of torch as HTML, with links that are relative to it."""
        lines = ["<!DOCTYPE html><html><head><title>Links for torch</title></head><body>"]
        for link in self.links:
            digest = f"#sha256={link.sha256}" if link.sha256 else ""
            yanked = ' data-yanked="broken"' if link.yanked else ""
            lines.append(f'<a href="{where}{quote(link.name)}{digest}"{yanked}>{link.name}</a><br>')
        return "\n".join([*lines, "</body></html>"]).encode()

    def json(self) -> bytes:
        """The page of torch as JSON, with whole URLs."""
        files = [
            {
                "filename": link.name,
                "url": f"{self.url.removesuffix('/simple')}/files/{quote(link.name)}",
                "hashes": {"sha256": link.sha256} if link.sha256 else {},
                "yanked": "broken" if link.yanked else False,
            }
            for link in self.links
        ]
        return json.dumps({"meta": {"api-version": "1.0"}, "name": "torch", "files": files}).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers for the index of the server."""

    @property
    def index(self) -> PackageIndex:
        """The index that is served."""
        assert isinstance(self.server, Server)
        return self.server.index

    def do_GET(self) -> None:
        """Answer one request."""
        self.index.requested.append(self.path)
        if self.index.hang and self.index.hang in self.path:
            self.index.finished.wait(30)
            return
        credentials = base64.b64encode(f"user:{self.index.password}".encode()).decode()
        if self.index.password and self.headers["Authorization"] != f"Basic {credentials}":
            self.answer(401)
        elif self.path == "/simple/torch/":
            right = (200, JSON, self.index.json()) if self.index.as_json else (200, "text/html", self.index.html())
            status, kind, content = self.index.page or right
            self.answer(status, content, {"Content-Type": kind})
        elif self.path.startswith("/files/") and (file := self.index.folder / unquote(self.path[7:])).is_file():
            self.answer_file(file.read_bytes())
        else:
            self.answer(404)

    def answer_file(self, content: bytes) -> None:
        """Answer with a file, or the range of it that is asked for."""
        asked = self.headers["Range"]
        if self.index.status_of_files != 200:
            self.answer(self.index.status_of_files)
        elif not asked or not self.index.ranges:
            self.answer(200, content)
        elif asked.startswith("bytes=-") and self.index.status_of_ranges_from_the_end != 206:
            self.answer(self.index.status_of_ranges_from_the_end)
        else:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(int(last) + 1, len(content)) if first else len(content)
            self.answer(206, content[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def answer(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send an answer, whole unless the index is to cut it."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.index.cut and self.index.cut in self.path:
            content = content[: len(content) // 2]
        self.index.bytes_sent += len(content)
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in http.server
        """Write nothing to stderr."""


class Server(ThreadingHTTPServer):
    """A server of one index on a free port."""

    def __init__(self, index: PackageIndex) -> None:
        self.index = index
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Take it calmly when a client has gone, as clients do that want a part only."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine reach the tests, and files that are left over are seen."""
    for name in (*VARIABLES, "AUTOMODEL_MESH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


@pytest.fixture
def index(tmp_path: Path) -> Generator[PackageIndex, None, None]:
    """A package index with torch 2.15.0."""
    folder = tmp_path / "files"
    folder.mkdir()
    ours = PackageIndex(folder)
    ours.add("2.15.0")
    server = Server(ours)
    ours.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield ours
    ours.finished.set()
    server.shutdown()
    thread.join()
    server.server_close()


def read(index: PackageIndex, what: str, **options: Path | float) -> Sources:
    """Read a release from an index of the tests."""
    return read_release(what, PATHS, index_url=index.url, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("as_json", [False, True], ids=["HTML", "JSON"])
def test_only_a_part_is_read(as_json: bool, index: PackageIndex) -> None:
    """Of a large wheel only its list of members and the files that are asked for are transferred."""
    index.as_json = as_json
    large = random.Random(0).randbytes(6 << 20)
    files = {"torch/lib/a.so": large, **torch_files("2.14.1+cpu"), "torch/lib/b.so": large}
    wheel = index.add("2.14.1+cpu", files=files)
    sources = read_sources("2.14.1", PATHS, index_url=index.url)
    assert sources == Sources("2.14.1+cpu", f"{wheel.name} of {index.url}", {MESH: MESH_TEXT})
    assert index.bytes_sent < 3 << 20
    assert wheel.stat().st_size > 12 << 20


@pytest.mark.parametrize(
    ("what", "version"),
    [
        ("2.14.0", "2.14.0"),
        ("v2.14.0", "2.14.0"),
        ("2.14", "2.14.1"),
        ("2.15", "2.15.0"),
        ("2", "2.15.0"),
        ("newest", "2.15.0"),
        ("2.15.1", "2.15.1"),
        ("2.16.0rc1", "2.16.0rc1"),
        ("2.16rc1", "2.16.0rc1"),
        ("nightly", "2.17.0.dev20261119+cu132"),
        ("2.17.0.dev20261119", "2.17.0.dev20261119+cu132"),
        ("2.17.0.dev20261118+cpu", "2.17.0.dev20261118+cpu"),
        ("2.13", "2.13.0.post1"),
    ],
)
def test_release(what: str, version: str, index: PackageIndex) -> None:
    """Exact, short, newest and nightly releases are found; yanked ones only by their exact version."""
    for other in ("2.13.0", "2.13.0.post1", "2.14.1", "2.14.0", "2.16.0rc1", "2.9.1", "2.16.0a0"):
        index.add(other)
    for nightly in ("2.17.0.dev20261119+cu132", "2.17.0.dev20261118+cpu", "2.17.0.dev20261118+cu132"):
        index.add(nightly)
    for yanked in ("2.15.1", "2.18.0.dev1"):
        index.add(yanked, yanked=True)
    sources = read(index, what)
    assert sources.version == version
    assert ("(yanked)" in sources.origin) == (version == "2.15.1")


@pytest.mark.parametrize(
    "tags",
    [
        ["cp39-cp39-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_28_x86_64"],
        ["cp314-cp314t-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_28_x86_64"],
        ["cp314-cp314-win_amd64", "cp314-none-macosx_11_0_arm64", "cp310-cp310-linux_x86_64"],
        ["cp314-cp314-manylinux_2_28_aarch64", "cp310-cp310-manylinux1_x86_64"],
        ["cp314-cp314t-win_amd64", "cp312-cp312-win_amd64", "cp313-cp313-win_amd64"],
        ["cp312-cp312-linux_x86_64", "3-cp312-cp312-linux_x86_64"],
        ["9-cp312-cp312-linux_x86_64", "10-cp312-cp312-linux_x86_64"],
        ["py3-none-any"],
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_wheel(tags: list[str], backwards: bool, index: PackageIndex) -> None:
    """The wheel is the one for Linux on x86_64 and the newest Python, its last build, in whatever order; else any."""
    wheels = [index.add("2.14.1", one).name for one in tags]
    others = ("torch-2.14.1.tar.gz", "torch-2.14.1.zip", "notes.txt", "torchvision-2.14.1-cp399-cp399-linux_x86_64.whl")
    index.links += [Link(other) for other in (*others, "torch-2.14.1-not-a-wheel.whl")]
    if backwards:
        index.links.reverse()
    assert read(index, "2.14.1").origin.startswith(wheels[-1])


def test_local_builds(index: PackageIndex) -> None:
    """A version without a local part is read from the build without one, else from the one for CPUs."""
    names = {local: index.add(f"2.14.1{local}").name for local in ("", "+cpu", "+cu132")}
    assert read(index, "2.14.1").origin.startswith(names[""])
    assert read(index, "2.14.1+cu132").origin.startswith(names["+cu132"])
    index.links = [link for link in index.links if link.name != names[""]]
    assert read(index, "2.14.1").origin.startswith(names["+cpu"])


@pytest.mark.parametrize("sha256", ["right", None])
@pytest.mark.parametrize("refusal", [200, 400, 416, 501])
def test_whole_wheel(refusal: int, sha256: str | None, index: PackageIndex, tmp_path: Path) -> None:
    """Where the server has no ranges the whole wheel is downloaded, which is told, and nothing is left over."""
    index.ranges = refusal != 200
    index.status_of_ranges_from_the_end = refusal
    wheel = index.add("2.14.1", sha256=sha256, files={**torch_files("2.14.1"), "x": bytes(1 << 20)})
    steps: list[tuple[str, int, int]] = []
    sources = read_release("2.14.1", PATHS, index_url=index.url, watch=noting(steps))
    assert sources.files == {MESH: MESH_TEXT}
    size = wheel.stat().st_size
    assert (f"downloading {wheel.name}", size, size) in steps
    assert not list((tmp_path / "temporary").iterdir())


def test_wrong_sha256(index: PackageIndex, tmp_path: Path) -> None:
    """A downloaded wheel that is not the one of the index is refused, not kept, and nothing is left over."""
    index.ranges = False
    index.add("2.14.1", sha256="0" * 64)
    with pytest.raises(SourcesError, match=r"downloading torch-2\.14\.1-.* its sha256 is not the one that the index"):
        read(index, "2.14.1", cache=tmp_path / "cache")
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, "text/html", b""), "there is no project torch"),
        ((403, "text/html", b""), "the server answered 403 Forbidden"),
        ((500, "text/html", b""), "the server answered 500 Internal Server Error"),
        ((200, "image/png", b""), "unsupported Content-Type 'image/png'"),
        ((200, JSON, b"{"), "JSONDecodeError"),
        ((200, JSON, b"[]"), "ValidationError"),
        ((200, "text/html", b'<meta name="pypi:repository-version" content="2.0">'), "greater major component"),
    ],
)
def test_wrong_page(page: tuple[int, str, bytes], reason: str, index: PackageIndex) -> None:
    """An index that answers with an error or nonsense is named, with the reason and what to do."""
    index.page = page
    with pytest.raises(SourcesError) as caught:
        read(index, "2.15.0")
    assert str(caught.value).startswith(f"asking {index.url} for the releases of torch failed: ")
    assert reason in str(caught.value)
    assert "give another index with --index-url" in str(caught.value)


def test_newer_protocol(index: PackageIndex) -> None:
    """A newer minor version of the index protocol is read without a warning, as the protocol has it."""
    content = b'<meta name="pypi:repository-version" content="1.99">' + index.html()
    index.page = (200, "text/html", content)
    assert read(index, "2.15.0").version == "2.15.0"


@pytest.mark.parametrize("where", ["/simple/torch/", "/files/"])
@pytest.mark.parametrize("ranges", [False, True])
def test_slow_or_broken_server(where: str, ranges: bool, index: PackageIndex) -> None:
    """A server that does not answer, or stops in the middle, ends in an error that says of which file."""
    index.ranges = ranges
    doing = "asking .* for the releases of torch" if where == "/simple/torch/" else "reading torch-2.15.0-.*"
    index.hang = where
    with pytest.raises(SourcesError, match=f"{doing} failed: the server did not answer within 0.2 s; check"):
        read(index, "2.15.0", timeout=0.2)
    index.hang, index.cut = "", where
    with pytest.raises(SourcesError, match=f"{doing} failed: .*; check the network"):
        read(index, "2.15.0")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("no-such-folder", "it is not the URL of an index"),
        ("ftp://127.0.0.1/simple", "it is not the URL of an index"),
        ("http:///simple", "it is not the URL of an index"),
        ("http://127.0.0.1:{port}/simple", "NewConnectionError: .*refused"),
    ],
)
def test_no_index(url: str, reason: str) -> None:
    """A URL that is none, or where nobody answers, is an error that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening, so nobody answers
        url = url.format(port=taken.getsockname()[1])
        with pytest.raises(SourcesError, match=f"asking {url} .*failed: {reason}.*give another index with --index-url"):
            read_release("2.15.0", PATHS, index_url=url)


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        (
            "2.99.0",
            r"has no wheel of torch 2\.99\.0; the newest there are 2\.16\.0rc1, 2\.15\.0, 2\.4\.0, 2\.3\.0, 2\.2",
        ),
        ("2.15.0+cpu", r"has no wheel of torch 2\.15\.0\+cpu; the newest there are"),
        ("2.16", r"has no final release of torch 2\.16 that is not yanked; the newest there are"),
        ("2.4", r"has no final release of torch 2\.4 that is not yanked; the newest there are"),
    ],
)
def test_no_such_release(what: str, complaint: str, index: PackageIndex) -> None:
    """A release that the index has not, or only yanked, is an error with the newest that it has."""
    for other in ("2.16.0rc1", "2.1.0", "2.2.0", "2.3.0"):
        index.add(other)
    index.add("2.4.0", yanked=True)
    with pytest.raises(SourcesError, match=complaint):
        read(index, what)


def test_no_final_release(index: PackageIndex) -> None:
    """An index without a final release, or without any, says so for `newest` and `nightly`."""
    index.links.clear()
    for what, wanted in (("newest", "final release"), ("nightly", "release"), ("2.15.0", "wheel")):
        with pytest.raises(SourcesError, match=f"has no {wanted} of torch.*; it has no wheel of torch at all: give"):
            read(index, what)
    index.add("2.17.0.dev20261119+cpu")
    with pytest.raises(
        SourcesError, match=r"no final release of torch that is not yanked; .* are 2\.17\.0\.dev20261119:"
    ):
        read(index, "newest")


@pytest.mark.parametrize("ranges", [False, True])
def test_unusable_wheel(ranges: bool, index: PackageIndex) -> None:
    """A wheel that is missing, forbidden, damaged, or of something else is an error that names it."""
    index.ranges = ranges
    other = index.add("2.14.1", files={"numpy/__init__.py": b""})
    with pytest.raises(SourcesError, match=f"{other.name} holds no torch"):
        read(index, "2.14.1")
    damaged = index.add("2.14.0", sha256=None)
    damaged.write_bytes(bytes(1000))
    with pytest.raises(SourcesError, match=f"reading {damaged.name} .*failed: BadZipFile: .*; check the network"):
        read(index, "2.14.0")
    damaged.unlink()
    with pytest.raises(SourcesError, match=f"reading {damaged.name} .*failed: the server answered 404 Not Found"):
        read(index, "2.14.0")
    index.status_of_files = 403
    with pytest.raises(SourcesError, match="failed: the server answered 403 Forbidden"):
        read(index, "2.15.0")


@pytest.mark.parametrize("as_json", [False, True], ids=["relative links", "whole links"])
def test_credentials(as_json: bool, index: PackageIndex, tmp_path: Path) -> None:
    """The user and password of an index's URL are used for its wheels too, and shown and kept nowhere."""
    index.as_json = as_json
    index.password = "s3cret"  # noqa: S105 - of a server of this test
    steps: list[tuple[str, int, int]] = []
    url = index.url.replace("//", "//user:s3cret@")
    sources = read_release("2.15.0", PATHS, index_url=url, cache=tmp_path / "cache", watch=noting(steps))
    told = [sources.origin, *(file.name + file.read_text() for file in (tmp_path / "cache").iterdir())]
    assert sources.origin.endswith(index.url)
    wrong = url.replace("s3cret", "s3cret/wrong@x?token=s3cret")
    for bad in (url.replace("s3cret", "s3cret-wrong"), url.replace("http", "ftp"), wrong):
        with pytest.raises(SourcesError) as caught:
            read_release("2.14.0", PATHS, index_url=bad, watch=noting(steps))
        told.append(str(caught.value))
    assert "the server answered 401 Unauthorized" in told[-3]
    assert "s3cret" not in "".join([*told, *(step for step, _, _ in steps)])


def test_index_of_the_environment(index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL the index is that of pip's or uv's variables, in their order; uv's may have a name."""
    nowhere = "http://127.0.0.1:1/simple"
    for name, value in zip(VARIABLES, (index.url, f"mine={index.url}", index.url), strict=True):
        monkeypatch.setenv(name, value)
        assert read_release("2.15.0", PATHS).origin.endswith(f" of {index.url}")
        with pytest.raises(SourcesError, match=nowhere):
            read_release("2.15.0", PATHS, index_url=nowhere)
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(VARIABLES[1], nowhere)
    monkeypatch.setenv(VARIABLES[0], index.url)
    assert read_release("2.15.0", PATHS).version == "2.15.0"


@pytest.mark.parametrize("as_url", [False, True])
def test_index_in_a_folder(as_url: bool, index: PackageIndex, tmp_path: Path) -> None:
    """An index may be a folder, also as a file: URL; a folder without torch is an error."""
    page = tmp_path / "simple" / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_bytes(index.html())
    folder = tmp_path / "simple"
    sources = read_release("2.15", PATHS, index_url=folder.as_uri() if as_url else str(folder))
    assert sources.files == {MESH: MESH_TEXT}
    assert sources.origin.endswith(f" of {folder.as_uri()}")
    page.unlink()
    with pytest.raises(SourcesError, match=f"asking {folder.as_uri()} .* failed: FileNotFoundError"):
        read_release("2.15", PATHS, index_url=str(folder))


def test_missing_library(index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra's libraries the message names the extra; what is in the cache is read nevertheless."""
    cache = tmp_path / "cache"
    read(index, "2.15.0", cache=cache)
    for name in ("pypi_simple", "remotezip"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(SourcesError, match=rf"{name}.*pip install 'automodel-mesh\[track\]'"):
                read(index, "2.15.0")
            assert read(index, "2.15.0", cache=cache).version == "2.15.0"


def test_cache(index: PackageIndex, tmp_path: Path) -> None:
    """An exact version that was read is read without the network; others ask for the newest version first."""
    cache = tmp_path / "some" / "cache"
    before = read(index, "2.15.0", cache=cache)
    number = len(index.requested)
    assert read(index, "2.15.0", cache=cache) == before
    assert len(index.requested) == number
    for what in ("newest", "nightly", "2.15"):
        assert read(index, what, cache=cache) == before
    assert index.requested[number:] == ["/simple/torch/"] * 3
    assert LACKING not in before.files
    assert len(list(cache.iterdir())) == 1


def test_cache_without_network(index: PackageIndex, tmp_path: Path) -> None:
    """With the server gone an exact version comes from the cache, and `newest` is an error."""
    cache = tmp_path / "cache"
    before = read(index, "2.15.0", cache=cache)
    index.page = (503, "text/html", b"")
    index.status_of_files = 503
    assert read_sources("2.15.0", PATHS, index_url=index.url, cache=cache) == before
    with pytest.raises(SourcesError, match="503 Service Unavailable"):
        read(index, "newest", cache=cache)
    with pytest.raises(SourcesError, match="503 Service Unavailable"):
        read_release("2.15.0", [MESH, "torch/__init__.py"], index_url=index.url, cache=cache)


def test_cache_grows(index: PackageIndex, tmp_path: Path) -> None:
    """Only what is not known yet is read, and what is known stays known, until a newer build is seen on the index."""
    cache = tmp_path / "cache"
    first = read_release("2.15.0", [MESH], index_url=index.url, cache=cache)
    number = len(index.requested)
    (index.folder / index.links[0].name).write_bytes(
        make_wheel(tmp_path, "2.15.0", files={**torch_files("2.15.0"), MESH: b"changed"}).read_bytes()
    )
    both = read_release("2.15.0", [MESH, "torch/__init__.py"], index_url=index.url, cache=cache)
    assert len(index.requested) > number
    assert both.files == {**first.files, "torch/__init__.py": torch_files("")["torch/__init__.py"].decode()}
    index.add("2.15.0", "2-cp312-cp312-manylinux_2_28_x86_64", files={**torch_files("2.15.0"), MESH: b"newer"})
    for what, text in (("2.15.0", MESH_TEXT), ("newest", "newer"), ("2.15.0", "newer")):
        assert read_release(what, [MESH], index_url=index.url, cache=cache).files == {MESH: text}


def test_cache_of_indexes(index: PackageIndex, tmp_path: Path) -> None:
    """Two indexes do not share what is kept; the same one with another password, or a slash at its end, does."""
    cache = tmp_path / "cache"
    read(index, "2.15.0", cache=cache)
    number = len(index.requested)
    for same in (index.url + "/", index.url.replace("//", "//user:other@")):
        read_release("2.15.0", PATHS, index_url=same, cache=cache)
    assert len(index.requested) == number
    read_release("2.15.0", PATHS, index_url=index.url.replace("127.0.0.1", "localhost"), cache=cache)
    assert len(index.requested) > number
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\ufffd\ufffd",
        "{}",
        '{"schema": 99, "wheel": "w", "version": "1", "yanked": false, "files": {}}',
        '{"schema": 1, "wheel": "w", "version": "1", "yanked": false}',
        '{"schema": 1, "wheel": "w", "version": "1", "yanked": false, "files": {}, "more": 1}',
        '{"schema": 1, "wheel": 1, "version": "1", "yanked": false, "files": {}}',
        '{"schema": 1, "wheel": "w", "version": "1", "yanked": 0, "files": {}}',
        '{"schema": 1, "wheel": "w", "version": "1", "yanked": false, "files": []}',
        '{"schema": 1, "wheel": "w", "version": "1", "yanked": false, "files": {"torch/version.py": 1}}',
    ],
)
def test_damaged_cache(content: str, index: PackageIndex, tmp_path: Path) -> None:
    """A file of the cache that is damaged, or of another make, is ignored and written anew."""
    before = read(index, "2.15.0", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    right = file.read_bytes()
    file.write_bytes(content.encode("utf-16"[: 6 if "\ufffd" in content else 0] or "utf-8"))
    assert read(index, "2.15.0", cache=tmp_path / "cache") == before
    assert file.read_bytes() == right


def test_cache_that_cannot_be_written(index: PackageIndex, tmp_path: Path) -> None:
    """Where the cache cannot be written, reading works without, and says so."""
    cache = tmp_path / "cache"
    cache.write_bytes(b"a file where the folder should be")
    steps: list[tuple[str, int, int]] = []
    assert read_release("2.15.0", PATHS, index_url=index.url, cache=cache, watch=noting(steps)).version == "2.15.0"
    assert any(step.startswith(f"the cache {cache} cannot be written, so nothing is kept: ") for step, _, _ in steps)


def test_write_that_fails(tmp_path: Path) -> None:
    """An entry that cannot be put in its place leaves no part of it behind."""
    file = tmp_path / "entry.json"
    file.mkdir()
    with pytest.raises(OSError, match="entry.json"):
        kept.store(file, kept.Entry("w", "1", yanked=False, files={}))
    assert list(tmp_path.glob("entry*")) == [file]


def test_concurrent_writers(tmp_path: Path) -> None:
    """While several write the same entry, a reader finds it whole, and no part is left over."""
    file = tmp_path / "cache" / "entry.json"
    entries = [kept.Entry("w", str(number), yanked=False, files={MESH: str(number) * 200_000}) for number in range(8)]
    kept.store(file, entries[0])
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(kept.store, file, entry) for entry in entries * 4]
        found = [kept.load(file) for _ in range(50)]
        for one in writing:
            one.result()
    assert all(entry in entries for entry in found)
    assert list(file.parent.iterdir()) == [file]


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is where its own variable says, else where all caches of the user are."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache() == Path("/home/somebody/.cache/automodel-mesh")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_cache() == Path("/home/somebody/.cache/automodel-mesh")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/somebody")
    assert default_cache() == Path("/var/cache/somebody/automodel-mesh")
    monkeypatch.setenv("AUTOMODEL_MESH_CACHE", "~/kept")
    assert default_cache() == Path("/home/somebody/kept")
