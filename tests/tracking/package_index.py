"""A package index that serves torch on 127.0.0.1, for tests of reading an index."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

from automodel_mesh.tracking.index import read_release
from automodel_mesh.tracking.sources import Sources
from tests.tracking.small_torch import LINUX, PATHS, make_wheel

JSON = "application/vnd.pypi.simple.v1+json"
VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")


@dataclass
class Link:
    """A file on the page of torch."""

    name: str
    yanked: bool = False
    sha256: str | None = None


@dataclass
class PackageIndex:
    """A package index that serves one project, and can be set to fail."""

    folder: Path
    links: list[Link] = field(default_factory=list[Link])
    as_json: bool = False
    page: tuple[int, str, bytes] | None = None
    """Status, content type and content of the page, instead of the correct ones."""
    ranges: bool = True
    status_of_ranges_from_the_end: int = 206
    status_of_files: int = 200
    password: str = ""
    cut: str = ""
    """End answers early for paths that contain this."""
    hang: str = ""
    """Never answer for paths that contain this."""
    instead: Callable[[BaseHTTPRequestHandler], None] | None = None
    """Answers the requests for paths that contain `instead_of`."""
    instead_of: str = "/simple/torch/"
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
        """Add a wheel to the index."""
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
    """Answers the requests to an index."""

    @property
    def index(self) -> PackageIndex:
        """The index that is served."""
        assert isinstance(self.server, Server)
        return self.server.index

    def do_GET(self) -> None:
        """Answer one request."""
        self.index.requested.append(self.path)
        if self.index.instead is not None and self.index.instead_of in self.path:
            self.index.instead(self)
            return
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
        """Send an answer, or only half of it if the test has set that."""
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
        """Ignore clients that close the connection early, as those do that want only a part."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def serve(folder: Path) -> Generator[PackageIndex, None, None]:
    """Serve an index of the wheels in a folder, with torch 2.15.0, while the block runs."""
    index = PackageIndex(folder)
    index.add("2.15.0")
    server = Server(index)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield index
    finally:
        index.finished.set()
        server.shutdown()
        thread.join()
        server.server_close()


def read(index: PackageIndex, what: str, **options: Path | float) -> Sources:
    """Read a release from an index of the tests."""
    return read_release(what, PATHS, index_url=index.url, **options)  # type: ignore[arg-type]
