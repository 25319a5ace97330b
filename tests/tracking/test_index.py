"""A release and its wheel are chosen from a package index, and what is read is cached."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from automodel_mesh.tracking import network
from automodel_mesh.tracking.index import CachedRelease, default_cache, load_cached, read_release, store_cached
from automodel_mesh.tracking.sources import SourcesError
from tests.tracking.package_index import VARIABLES, Link, PackageIndex, read
from tests.tracking.small_torch import LACKING, MESH, MESH_TEXT, PATHS, Step, append_to, make_wheel, torch_files

pytestmark = [pytest.mark.release_independent, pytest.mark.usefixtures("default_settings")]


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
def test_a_release_is_found_by_its_name(what: str, version: str, index: PackageIndex) -> None:
    """Exact, short, newest and nightly releases are found, yanked ones only by their exact version."""
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
def test_the_wheel_that_most_users_get_is_read(tags: list[str], backwards: bool, index: PackageIndex) -> None:
    """The wheel for Linux on x86_64 and the newest Python, in its last build, is read; any other only without one."""
    wheels = [index.add("2.14.1", one).name for one in tags]
    others = ("torch-2.14.1.tar.gz", "torch-2.14.1.zip", "notes.txt", "torchvision-2.14.1-cp399-cp399-linux_x86_64.whl")
    index.links += [Link(other) for other in (*others, "torch-2.14.1-not-a-wheel.whl")]
    if backwards:
        index.links.reverse()
    assert read(index, "2.14.1").origin.startswith(wheels[-1])


def test_a_local_build_is_chosen(index: PackageIndex) -> None:
    """A version without a local part is read from the build without one, else from the build for CPUs."""
    names = {local: index.add(f"2.14.1{local}").name for local in ("", "+cpu", "+cu132")}
    assert read(index, "2.14.1").origin.startswith(names[""])
    assert read(index, "2.14.1+cu132").origin.startswith(names["+cu132"])
    index.links = [link for link in index.links if link.name != names[""]]
    assert read(index, "2.14.1").origin.startswith(names["+cpu"])


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
def test_an_unknown_release_is_refused(what: str, complaint: str, index: PackageIndex) -> None:
    """A release that the index does not have, or only yanked, is an error that lists the newest that it has."""
    for other in ("2.16.0rc1", "2.1.0", "2.2.0", "2.3.0"):
        index.add(other)
    index.add("2.4.0", yanked=True)
    with pytest.raises(SourcesError, match=complaint):
        read(index, what)


def test_an_index_without_a_final_release_is_refused(index: PackageIndex) -> None:
    """An index without a final release, or without any, is an error that says so."""
    index.links.clear()
    for what, wanted in (("newest", "final release"), ("nightly", "release"), ("2.15.0", "wheel")):
        with pytest.raises(SourcesError, match=f"has no {wanted} of torch.*; it has no wheel of torch at all: give"):
            read(index, what)
    index.add("2.17.0.dev20261119+cpu")
    with pytest.raises(
        SourcesError, match=r"no final release of torch that is not yanked; .* are 2\.17\.0\.dev20261119:"
    ):
        read(index, "newest")


def test_the_default_index_is_that_of_the_environment(index: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the index is that of pip's or uv's variables, in this order; uv's may begin with a name."""
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


def test_only_the_cache_is_read_without_the_libraries(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a library of the extra, an index is an error that names the extra, and the cache is still read."""
    cache = tmp_path / "cache"
    read(index, "2.15.0", cache=cache)
    for name in ("pypi_simple", "remotezip"):
        with monkeypatch.context() as without:
            without.delitem(sys.modules, network.__name__)
            without.setitem(sys.modules, name, None)
            with pytest.raises(SourcesError, match=rf"{name}.*pip install 'automodel-mesh\[track\]'"):
                read(index, "2.15.0")
            assert read(index, "2.15.0", cache=cache).version == "2.15.0"


def test_an_exact_version_is_read_from_the_cache(index: PackageIndex, tmp_path: Path) -> None:
    """An exact version is read without the network the second time; other names ask the index for the version."""
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


def test_the_cache_is_enough_without_a_server(index: PackageIndex, tmp_path: Path) -> None:
    """Without the server an exact version is read from the cache, and `newest` and uncached files are errors."""
    cache = tmp_path / "cache"
    before = read(index, "2.15.0", cache=cache)
    index.page = (503, "text/html", b"")
    index.status_of_files = 503
    assert read(index, "2.15.0", cache=cache) == before
    with pytest.raises(SourcesError, match="503 Service Unavailable"):
        read(index, "newest", cache=cache)
    with pytest.raises(SourcesError, match="503 Service Unavailable"):
        read_release("2.15.0", [MESH, "torch/__init__.py"], index_url=index.url, cache=cache)


def test_only_uncached_files_are_read(index: PackageIndex, tmp_path: Path) -> None:
    """Only uncached files are read, and cached ones stay until the index is asked and has a newer build."""
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


def test_each_index_has_its_own_cache(index: PackageIndex, tmp_path: Path) -> None:
    """Two indexes share no cached release; one index with another password, or a slash at its end, shares its own."""
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
def test_a_damaged_cache_is_ignored(content: str, index: PackageIndex, tmp_path: Path) -> None:
    """A file of the cache that is damaged or has another format is ignored and overwritten."""
    before = read(index, "2.15.0", cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    right = file.read_bytes()
    file.write_bytes(content.encode("utf-16"[: 6 if "\ufffd" in content else 0] or "utf-8"))
    assert read(index, "2.15.0", cache=tmp_path / "cache") == before
    assert file.read_bytes() == right


def test_a_cache_that_cannot_be_written_is_reported(index: PackageIndex, tmp_path: Path) -> None:
    """If the cache cannot be written, the release is read without it, and a step says so."""
    cache = tmp_path / "cache"
    cache.write_bytes(b"a file where the folder should be")
    steps: list[Step] = []
    assert read_release("2.15.0", PATHS, index_url=index.url, cache=cache, watch=append_to(steps)).version == "2.15.0"
    assert any(step.startswith(f"the cache {cache} cannot be written, so nothing is stored: ") for step, *_ in steps)


def test_a_failed_write_leaves_no_part(tmp_path: Path) -> None:
    """If a file of the cache cannot be written, no part of it is left behind."""
    file = tmp_path / "entry.json"
    file.mkdir()
    with pytest.raises(OSError, match="entry.json"):
        store_cached(file, CachedRelease("w", "1", yanked=False, files={}))
    assert list(tmp_path.glob("entry*")) == [file]


def test_concurrent_writes_are_complete(tmp_path: Path) -> None:
    """While several threads write the same file, a reader finds it complete, and no part is left behind."""
    file = tmp_path / "cache" / "entry.json"
    entries = [
        CachedRelease("w", str(number), yanked=False, files={MESH: str(number) * 200_000}) for number in range(8)
    ]
    store_cached(file, entries[0])
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(store_cached, file, entry) for entry in entries * 4]
        found = [load_cached(file) for _ in range(50)]
        for one in writing:
            one.result()
    assert all(entry in entries for entry in found)
    assert list(file.parent.iterdir()) == [file]


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is in AUTOMODEL_MESH_CACHE, else in XDG_CACHE_HOME if that is absolute, else in ~/.cache."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache() == Path("/home/somebody/.cache/automodel-mesh")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_cache() == Path("/home/somebody/.cache/automodel-mesh")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/somebody")
    assert default_cache() == Path("/var/cache/somebody/automodel-mesh")
    monkeypatch.setenv("AUTOMODEL_MESH_CACHE", "~/kept")
    assert default_cache() == Path("/home/somebody/kept")
