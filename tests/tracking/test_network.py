"""Package indexes and wheels are read over HTTP, no more than needed, and errors are explained without passwords."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from automodel_mesh.tracking import network
from automodel_mesh.tracking.index import read_release
from automodel_mesh.tracking.sources import Sources, SourcesError
from tests.tracking.package_index import JSON, PackageIndex, read
from tests.tracking.small_torch import MESH, MESH_TEXT, PATHS, Step, append_to, torch_files

pytestmark = [pytest.mark.release_independent, pytest.mark.usefixtures("default_settings")]

IMPORTED_ONCE = network
"""By the process that the tests are forked from: importing its libraries takes a second."""


@pytest.mark.parametrize("as_json", [False, True], ids=["HTML", "JSON"])
def test_only_a_part_of_a_wheel_is_read(as_json: bool, index: PackageIndex) -> None:
    """Only the list of members and the requested files of a large wheel are transferred."""
    index.as_json = as_json
    large = random.Random(0).randbytes(6 << 20)
    files = {"torch/lib/a.so": large, **torch_files("2.14.1+cpu"), "torch/lib/b.so": large}
    wheel = index.add("2.14.1+cpu", files=files)
    sources = read(index, "2.14.1")
    assert sources == Sources("2.14.1+cpu", f"{wheel.name} of {index.url}", {MESH: MESH_TEXT})
    assert index.bytes_sent < 3 << 20
    assert wheel.stat().st_size > 12 << 20


@pytest.mark.parametrize("sha256", ["right", None])
@pytest.mark.parametrize("refusal", [200, 400, 416, 501])
def test_a_server_without_ranges_sends_the_whole_wheel(
    refusal: int, sha256: str | None, index: PackageIndex, tmp_path: Path
) -> None:
    """A server without ranges sends the whole wheel, progress counts its bytes, and no file is left behind."""
    index.ranges = refusal != 200
    index.status_of_ranges_from_the_end = refusal
    wheel = index.add("2.14.1", sha256=sha256, files={**torch_files("2.14.1"), "x": bytes(1 << 20)})
    steps: list[Step] = []
    sources = read_release("2.14.1", PATHS, index_url=index.url, watch=append_to(steps))
    assert sources.files == {MESH: MESH_TEXT}
    size = wheel.stat().st_size
    assert (f"downloading {wheel.name}", size, size, "bytes") in steps
    assert not list((tmp_path / "temporary").iterdir())


def test_a_wheel_with_a_wrong_sha256_is_refused(index: PackageIndex, tmp_path: Path) -> None:
    """A downloaded wheel whose sha256 differs from the index is refused and not cached, and no file is left behind."""
    index.ranges = False
    index.add("2.14.1", sha256="0" * 64)
    with pytest.raises(
        SourcesError, match=r"downloading torch-2\.14\.1-.* its sha256 differs from the one on the index"
    ):
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
def test_a_wrong_page_is_explained(page: tuple[int, str, bytes], reason: str, index: PackageIndex) -> None:
    """An error of the index, or a page that cannot be parsed, is reported with its URL, the reason and what to do."""
    index.page = page
    with pytest.raises(SourcesError) as caught:
        read(index, "2.15.0")
    assert str(caught.value).startswith(f"asking {index.url} for the releases of torch failed: ")
    assert reason in str(caught.value)
    assert "give another index with --index-url" in str(caught.value)


def test_a_newer_minor_version_of_the_protocol_is_read(index: PackageIndex) -> None:
    """A newer minor version of the index protocol is compatible, and read without a warning."""
    content = b'<meta name="pypi:repository-version" content="1.99">' + index.html()
    index.page = (200, "text/html", content)
    assert read(index, "2.15.0").version == "2.15.0"


@pytest.mark.parametrize("where", ["/simple/torch/", "/files/"])
@pytest.mark.parametrize("ranges", [False, True])
def test_a_slow_or_broken_server_is_explained(where: str, ranges: bool, index: PackageIndex) -> None:
    """A server that does not answer, or stops in the middle, is an error that names the file."""
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
def test_a_url_without_an_index_is_explained(url: str, reason: str) -> None:
    """An invalid URL, or one where no server listens, is an error that names it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening, so no server answers
        url = url.format(port=taken.getsockname()[1])
        with pytest.raises(SourcesError, match=f"asking {url} .*failed: {reason}.*give another index with --index-url"):
            read_release("2.15.0", PATHS, index_url=url)


@pytest.mark.parametrize("ranges", [False, True])
def test_an_unusable_wheel_is_explained(ranges: bool, index: PackageIndex) -> None:
    """A wheel that is missing, forbidden, damaged, or of another project is an error that names it."""
    index.ranges = ranges
    other = index.add("2.14.1", files={"numpy/__init__.py": b""})
    with pytest.raises(SourcesError, match=f"{other.name} contains no torch"):
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
def test_credentials_are_used_and_never_shown(as_json: bool, index: PackageIndex, tmp_path: Path) -> None:
    """The user and password of an index's URL are used for its wheels too, and appear in no message and no file."""
    index.as_json = as_json
    index.password = "s3cret"  # noqa: S105 - of a server of this test
    steps: list[Step] = []
    url = index.url.replace("//", "//user:s3cret@")
    sources = read_release("2.15.0", PATHS, index_url=url, cache=tmp_path / "cache", watch=append_to(steps))
    texts = [sources.origin, *(file.name + file.read_text() for file in (tmp_path / "cache").iterdir())]
    assert sources.origin.endswith(index.url)
    wrong = url.replace("s3cret", "s3cret/wrong@x?token=s3cret")
    for bad in (url.replace("s3cret", "s3cret-wrong"), url.replace("http", "ftp"), wrong):
        with pytest.raises(SourcesError) as caught:
            read_release("2.14.0", PATHS, index_url=bad, watch=append_to(steps))
        texts.append(str(caught.value))
    assert "the server answered 401 Unauthorized" in texts[-3]
    assert "s3cret" not in "".join([*texts, *(step for step, *_ in steps)])


@pytest.mark.parametrize("as_url", [False, True])
def test_an_index_in_a_folder_is_read(as_url: bool, index: PackageIndex, tmp_path: Path) -> None:
    """An index may be a folder, given as a path or as a file: URL; one without torch is an error."""
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
