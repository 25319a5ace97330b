"""Source files of a torch are read from the environment, from wheels and from folders, without importing torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

from automodel_mesh.tracking.sources import SourcesError, read_installed, read_path
from tests.tracking.small_torch import MESH, MESH_TEXT, PATHS, Step, append_to, make_folder, make_wheel, torch_files


def test_the_installed_torch_is_read() -> None:
    """The installed torch is read, with the version of its metadata."""
    sources = read_installed(PATHS)
    assert Version(sources.version).public == Version(metadata.version("torch")).public
    assert sources.origin.startswith("the installed torch in ")
    assert list(sources.files) == [MESH]
    assert "class DeviceMesh" in sources.files[MESH]


@pytest.mark.release_independent
def test_torch_is_not_imported() -> None:
    """Reading the installed torch imports neither torch nor the libraries that only an index needs."""
    program = (
        "import sys\n"
        "from automodel_mesh.tracking.arguments import read_sources\n"
        f"assert read_sources('installed', ['{MESH}']).files\n"
        "assert not {'torch', 'requests', 'pypi_simple', 'remotezip'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.release_independent
@pytest.mark.parametrize("stand_in", [False, True])
def test_an_error_names_the_python_without_torch(stand_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch is not installed, or only a module without a spec has its name, the error names the Python."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "torch")
    if stand_in:
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    with pytest.raises(SourcesError, match=f"no torch is installed for {sys.executable}"):
        read_installed(PATHS)


# --- wheels


@pytest.mark.release_independent
def test_a_wheel_is_read_unchanged(tmp_path: Path) -> None:
    """The files of a wheel keep their text, files that it does not have are left out, and each file is a step."""
    wheel = make_wheel(tmp_path, "2.15.0+cpu")
    steps: list[Step] = []
    sources = read_path(wheel, PATHS, append_to(steps))
    assert sources.version == "2.15.0+cpu"
    assert sources.origin == f"the wheel {wheel}"
    assert sources.files == {MESH: MESH_TEXT}
    assert steps == [(f"reading the wheel {wheel}", done, 3, "files") for done in range(3)]


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("import no_such_module\n__version__: str = '2.15.0+cu132'\n", "2.15.0+cu132"),
        ("__version__ = git_version = '2.15.1'\n", "2.15.1"),
        ("__version__ = str(2.15)\n__version__: str\n", "2.15.0"),
        ("this is not Python\n", "2.15.0"),
        ("", "2.15.0"),
    ],
)
def test_the_version_is_that_of_the_sources(text: str, version: str, tmp_path: Path) -> None:
    """The version is what torch/version.py sets, without running it, else the one in the wheel's name."""
    wheel = make_wheel(tmp_path, "2.15.0", files={**torch_files(""), "torch/version.py": text.encode()})
    assert read_path(wheel, PATHS).version == version


@pytest.mark.release_independent
def test_a_renamed_wheel_has_the_version_of_its_sources(tmp_path: Path) -> None:
    """A wheel without a version in its name has the version that torch/version.py sets."""
    wheel = make_wheel(tmp_path, "2.15.0").rename(tmp_path / "downloaded.whl")
    assert read_path(wheel, PATHS).version == "2.15.0"


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"torch/__init__.py": b""},
            "does not state its version: torch/version.py is missing or sets no __version__",
        ),
        (
            {"torch/version.py": b"__version__ = 'Unknown'\n"},
            "states the version 'Unknown', which is not a valid version",
        ),
        ({"numpy/__init__.py": b""}, r"contains no torch: it has no torch/__init__.py or torch/version.py"),
        ({**torch_files("2.15.0"), MESH: b"\xff\xfe"}, f"{MESH} of the wheel .* is not UTF-8 text"),
    ],
)
def test_an_unusable_wheel_is_refused(files: Mapping[str, bytes], complaint: str, tmp_path: Path) -> None:
    """A wheel without a version, of another project, or with a file that is not text is refused by its path."""
    wheel = make_wheel(tmp_path, "2.15.0", files=files).rename(tmp_path / "downloaded.whl")
    with pytest.raises(SourcesError, match=complaint) as caught:
        read_path(wheel, PATHS)
    assert str(wheel) in str(caught.value)


@pytest.mark.release_independent
@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty"])
def test_a_damaged_wheel_is_refused(damage: str, tmp_path: Path) -> None:
    """A damaged wheel is refused with its path and the advice to download it again."""
    wheel = make_wheel(tmp_path, "2.15.0")
    content = wheel.read_bytes()
    damaged = {"cut": content[:-30], "overwritten": content[:20] + bytes(300) + content[320:], "empty": b""}
    wheel.write_bytes(damaged[damage])
    with pytest.raises(SourcesError, match=f"the wheel {wheel} cannot be read: .*download it again"):
        read_path(wheel, PATHS)


@pytest.mark.release_independent
def test_a_file_that_is_not_a_wheel_is_refused(tmp_path: Path) -> None:
    """A file whose name does not end in .whl is refused with its path and with what is accepted."""
    file = tmp_path / "torch.tar.gz"
    file.write_bytes(b"")
    with pytest.raises(SourcesError, match=f"{file} is a file whose name does not end in .whl: give 'installed'"):
        read_path(file, PATHS)


# --- folders


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
def test_a_torch_is_found_in_a_folder(inside: str, given: str, tmp_path: Path) -> None:
    """A torch is found in the folder that contains it, in the folder torch itself, and in a virtual environment."""
    make_folder(tmp_path / inside, torch_files("2.15.0+cu132"))
    sources = read_path(tmp_path / given, PATHS)
    assert sources.version == "2.15.0+cu132"
    assert sources.origin == f"torch in {tmp_path / inside / 'torch'}"
    assert sources.files == {MESH: MESH_TEXT}


@pytest.mark.release_independent
@pytest.mark.parametrize(("built", "version"), [(False, "2.16.0a0"), (True, "2.16.0a0+git1234567")])
def test_a_checkout_has_a_version(built: bool, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout has the version of version.txt, and once it is built that of torch/version.py."""
    files = {**torch_files(version), "version.txt": b"2.16.0a0\n"}
    if not built:
        del files["torch/version.py"]
    make_folder(tmp_path / "torch", files)  # some people call the checkout itself torch
    monkeypatch.chdir(tmp_path)
    for given in ("torch/", "torch/torch"):
        sources = read_path(Path(given), PATHS)
        assert sources.version == version
        assert sources.files == {MESH: MESH_TEXT}


@pytest.mark.release_independent
def test_a_folder_without_torch_is_refused(tmp_path: Path) -> None:
    """A folder without torch is refused with the files that were looked for; a namespace package torch is not torch."""
    (tmp_path / "torch" / "distributed").mkdir(parents=True)
    complaint = f"{tmp_path} contains no torch: it has no torch/__init__.py or torch/version.py, .*lib/python"
    with pytest.raises(SourcesError, match=complaint):
        read_path(tmp_path, PATHS)


@pytest.mark.release_independent
def test_an_environment_with_two_torches_is_refused(tmp_path: Path) -> None:
    """An environment with the torch of two Pythons is refused, and both are listed."""
    for python in ("python3.11", "python3.12"):
        make_folder(tmp_path / "lib" / python / "site-packages", torch_files("2.15.0"))
    with pytest.raises(SourcesError, match=r"more than one torch, give one of .*3\.11/.*, .*3\.12/site-packages/torch"):
        read_path(tmp_path, PATHS)


@pytest.mark.release_independent
def test_a_folder_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A folder with a source file or version.txt that is not text is refused by its path."""
    make_folder(tmp_path, {**torch_files("2.15.0"), MESH: b"\xff"})
    with pytest.raises(SourcesError, match=f"{MESH} of torch in {tmp_path}/torch is not UTF-8 text"):
        read_path(tmp_path, PATHS)
    make_folder(tmp_path, {**torch_files("2.15.0"), "version.txt": b"\xff"})
    with pytest.raises(SourcesError, match=f"torch in {tmp_path}/torch cannot be read"):
        read_path(tmp_path, PATHS)
