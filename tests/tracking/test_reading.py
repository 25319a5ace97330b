"""Torch's sources are read from the environment, from wheels and from folders, without importing torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from packaging.version import Version

from automodel_mesh.tracking.reading import read_sources
from automodel_mesh.tracking.sources import SourcesError, Watch

MESH = "torch/distributed/device_mesh.py"
LACKING = "torch/distributed/no_such_file.py"
PATHS = (MESH, LACKING)
MESH_TEXT = "# línea\r\nclass DeviceMesh: ...\n"


def torch_files(version: str) -> dict[str, bytes]:
    """The files of a torch in miniature."""
    return {
        "torch/__init__.py": b"raise AssertionError('torch was imported')\n",
        "torch/version.py": f"from typing import Optional\n__version__ = '{version}'\ncuda = None\n".encode(),
        MESH: MESH_TEXT.encode(),
    }


def make_wheel(
    folder: Path,
    version: str,
    *,
    tags: str = "cp312-cp312-manylinux_2_28_x86_64",
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a wheel of a torch in miniature, or of other files."""
    wheel = folder / f"torch-{version}-{tags}.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for name, content in (torch_files(version) if files is None else files).items():
            archive.writestr(name, content)
    return wheel


def make_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def noting(told: list[tuple[str, int, int]]) -> Watch:
    """A `Watch` that puts what it is told into a list."""

    def watch(step: str, done: int = 0, total: int = 0) -> None:
        told.append((step, done, total))

    return watch


def test_installed() -> None:
    """The installed torch is read, and has the version that its metadata tells."""
    sources = read_sources("installed", PATHS)
    assert Version(sources.version).public == Version(metadata.version("torch")).public
    assert sources.origin.startswith("the installed torch in ")
    assert list(sources.files) == [MESH]
    assert "class DeviceMesh" in sources.files[MESH]


@pytest.mark.release_independent
def test_torch_is_not_imported() -> None:
    """Reading the installed torch imports neither torch nor what only an index needs."""
    program = (
        "import sys\n"
        "from automodel_mesh.tracking.reading import read_sources\n"
        f"assert read_sources('installed', ['{MESH}']).files\n"
        "assert not {'torch', 'requests', 'pypi_simple', 'remotezip'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.release_independent
@pytest.mark.parametrize("stand_in", [False, True])
def test_none_installed(stand_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no torch can be imported, or something stands in for it, the message names the Python."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "torch")
    if stand_in:
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    with pytest.raises(SourcesError, match=f"no torch is installed for {sys.executable}"):
        read_sources("installed", PATHS)


@pytest.mark.release_independent
def test_wheel(tmp_path: Path) -> None:
    """A wheel is read with its text unchanged; files that it lacks are left out; each step is told."""
    wheel = make_wheel(tmp_path, "2.15.0+cpu")
    steps: list[tuple[str, int, int]] = []
    sources = read_sources(str(wheel), PATHS, watch=noting(steps))
    assert sources.version == "2.15.0+cpu"
    assert sources.origin == f"the wheel {wheel}"
    assert sources.files == {MESH: MESH_TEXT}
    assert steps == [(f"reading the wheel {wheel}", done, 3) for done in range(3)]


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("import no_such_module\n__version__: str = '2.15.0+cu132'\n", "2.15.0+cu132"),
        ("__version__ = git_version = '2.15.1'\n", "2.15.1"),
        ("__version__ = str(2.15)\n__version__: str\n", "2.15.0"),
        ("this is not Python\n", "2.15.0"),
        ("", "2.15.0"),
    ],
)
def test_version_of_a_wheel(said: str, version: str, tmp_path: Path) -> None:
    """The version is what torch/version.py sets, which is not run, else what the wheel's name tells."""
    wheel = make_wheel(tmp_path, "2.15.0", files={**torch_files(""), "torch/version.py": said.encode()})
    assert read_sources(str(wheel), PATHS).version == version


@pytest.mark.release_independent
def test_renamed_wheel(tmp_path: Path) -> None:
    """A wheel whose name tells nothing has the version that torch/version.py sets."""
    wheel = make_wheel(tmp_path, "2.15.0").rename(tmp_path / "downloaded.whl")
    assert read_sources(str(wheel), PATHS).version == "2.15.0"


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"torch/__init__.py": b""}, "does not tell its version: torch/version.py is missing or sets no __version__"),
        ({"torch/version.py": b"__version__ = 'Unknown'\n"}, "says that its version is 'Unknown', which is no version"),
        ({"numpy/__init__.py": b""}, r"holds no torch: it has no torch/__init__.py or torch/version.py"),
        ({**torch_files("2.15.0"), MESH: b"\xff\xfe"}, f"{MESH} of the wheel .* is not UTF-8 text"),
    ],
)
def test_unusable_wheel(files: Mapping[str, bytes], complaint: str, tmp_path: Path) -> None:
    """A wheel without a version, of something else, or with a file that is no text is refused, and named."""
    wheel = make_wheel(tmp_path, "2.15.0", files=files).rename(tmp_path / "downloaded.whl")
    with pytest.raises(SourcesError, match=complaint) as caught:
        read_sources(str(wheel), PATHS)
    assert str(wheel) in str(caught.value)


@pytest.mark.release_independent
@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty"])
def test_damaged_wheel(damage: str, tmp_path: Path) -> None:
    """A damaged wheel is refused with its path and the advice to fetch it again."""
    wheel = make_wheel(tmp_path, "2.15.0")
    content = wheel.read_bytes()
    damaged = {"cut": content[:-30], "overwritten": content[:20] + bytes(300) + content[320:], "empty": b""}
    wheel.write_bytes(damaged[damage])
    with pytest.raises(SourcesError, match=f"the wheel {wheel} cannot be read: .*fetch it again"):
        read_sources(str(wheel), PATHS)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("inside", "given"),
    [
        ("", ""),
        ("", "torch"),
        ("lib/python3.12/site-packages", "lib/python3.12/site-packages"),
        ("lib/python3.12/site-packages", ""),
        ("lib/python3/dist-packages", ""),
        ("Lib/site-packages", ""),
    ],
    ids=["site-packages", "torch itself", "of an environment", "environment", "Debian", "Windows"],
)
def test_folder(inside: str, given: str, tmp_path: Path) -> None:
    """A torch is found in a folder that holds it, in the folder torch itself, and in a virtual environment."""
    make_folder(tmp_path / inside, torch_files("2.15.0+cu132"))
    sources = read_sources(str(tmp_path / given), PATHS)
    assert sources.version == "2.15.0+cu132"
    assert sources.origin == f"torch in {tmp_path / inside / 'torch'}"
    assert sources.files == {MESH: MESH_TEXT}


@pytest.mark.release_independent
@pytest.mark.parametrize(("built", "version"), [(False, "2.16.0a0"), (True, "2.16.0a0+git1234567")])
def test_checkout(built: bool, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout has the version of version.txt, and once it is built the one of torch/version.py."""
    files = {**torch_files(version), "version.txt": b"2.16.0a0\n"}
    if not built:
        del files["torch/version.py"]
    make_folder(tmp_path / "torch", files)  # the checkout itself is called torch, as some people have it
    monkeypatch.chdir(tmp_path)
    for given in ("torch/", "torch/torch"):
        sources = read_sources(given, PATHS)
        assert sources.version == version
        assert sources.files == {MESH: MESH_TEXT}


@pytest.mark.release_independent
def test_existing_path_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is called like a version is read as a folder; the keywords are never folders; ~ is the home."""
    make_folder(tmp_path / "2.15.0", torch_files("2.14.1"))
    for keyword in ("installed", "newest", "nightly"):
        make_folder(tmp_path / keyword, torch_files("2.14.1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_sources("2.15.0", PATHS).version == "2.14.1"
    assert read_sources("~/2.15.0", PATHS).version == "2.14.1"
    assert read_sources("installed", PATHS).origin.startswith("the installed torch")
    for keyword in ("newest", "nightly"):
        with pytest.raises(SourcesError, match="asking no-such-index for the releases of torch failed"):
            read_sources(keyword, PATHS, index_url="no-such-index")


@pytest.mark.release_independent
def test_folder_without_torch(tmp_path: Path) -> None:
    """A folder without torch is refused with what was looked for; a namespace folder torch is none."""
    (tmp_path / "torch" / "distributed").mkdir(parents=True)
    complaint = f"{tmp_path} holds no torch: it has no torch/__init__.py or torch/version.py, .*lib/python"
    with pytest.raises(SourcesError, match=complaint):
        read_sources(str(tmp_path), PATHS)


@pytest.mark.release_independent
def test_environment_with_two(tmp_path: Path) -> None:
    """An environment with the torch of two Pythons is refused with both."""
    for python in ("python3.11", "python3.12"):
        make_folder(tmp_path / "lib" / python / "site-packages", torch_files("2.15.0"))
    with pytest.raises(SourcesError, match=r"more than one torch, give one of .*3\.11/.*, .*3\.12/site-packages/torch"):
        read_sources(str(tmp_path), PATHS)


@pytest.mark.release_independent
def test_folder_with_damage(tmp_path: Path) -> None:
    """A file that is no text, and a version.txt that is none, are refused with the folder."""
    make_folder(tmp_path, {**torch_files("2.15.0"), MESH: b"\xff"})
    with pytest.raises(SourcesError, match=f"{MESH} of torch in {tmp_path}/torch is not UTF-8 text"):
        read_sources(str(tmp_path), PATHS)
    make_folder(tmp_path, {**torch_files("2.15.0"), "version.txt": b"\xff"})
    with pytest.raises(SourcesError, match=f"torch in {tmp_path}/torch cannot be read"):
        read_sources(str(tmp_path), PATHS)


@pytest.mark.release_independent
def test_other_file(tmp_path: Path) -> None:
    """A file that is no wheel is refused with its path."""
    file = tmp_path / "torch.tar.gz"
    file.write_bytes(b"")
    with pytest.raises(SourcesError, match=f"{file} is a file whose name does not end in .whl: give 'installed'"):
        read_sources(str(file), PATHS)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    "what",
    ["no/such/folder", "torch-2.15.0-py3-none-any.whl", "https://127.0.0.1/torch.whl", "~nobody-has-this-name/x"],
)
def test_missing_path(what: str) -> None:
    """What looks like a path and does not exist is refused as such, with what is possible."""
    with pytest.raises(SourcesError, match=f"'{what}' does not exist: give 'installed', a wheel .* or 'nightly'"):
        read_sources(what, PATHS)


@pytest.mark.release_independent
@pytest.mark.parametrize("what", ["", " ", "newset", "2.x", "torch==2.15.0", "\0", "x" * 5000])
def test_nonsense(what: str) -> None:
    """What is neither a path nor a version is refused, with what is possible."""
    with pytest.raises(SourcesError, match="is neither a file or folder nor a version: give 'installed', a wheel"):
        read_sources(what, PATHS)
