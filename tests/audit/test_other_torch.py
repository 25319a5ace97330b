"""`--torch` of `automodel-mesh audit`: a torch that is not recorded, from a wheel, a folder, or a package index."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from automodel_mesh.audit.other_torch import read_other
from automodel_mesh.cli import main
from automodel_mesh.tracking.sources import SourcesError
from tests.tracking.package_index import PackageIndex
from tests.tracking.small_torch import make_folder, torch_files

pytestmark = pytest.mark.release_independent

NIGHTLY = "2.99.0.dev20261119+cpu"
FILES = {**torch_files(NIGHTLY), "torch/nn.py": b"def made(a, b=1): ...\n"}
CODE = "from torch.nn import gone, made\n"


@pytest.fixture
def nightlies(index: PackageIndex) -> PackageIndex:
    """Serve an index with two nightly builds."""
    index.add("2.99.0.dev20261118+cpu", files=torch_files("2.99.0.dev20261118+cpu"))
    index.add(NIGHTLY, files=FILES)
    return index


@pytest.fixture
def code(tmp_path: Path) -> str:
    """Write the code that is audited."""
    (tmp_path / "code.py").write_text(CODE)
    return str(tmp_path / "code.py")


def downloads(index: PackageIndex) -> list[str]:
    """Return the names of the wheels that were asked for."""
    return [path.rpartition("/")[2] for path in index.requested if path.startswith("/files/")]


@pytest.mark.parametrize("what", ["nightly", "2.99.0.dev20261119"])
def test_a_nightly_is_read_from_an_index(
    what: str, nightlies: PackageIndex, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit is about it alone, and its wheel is downloaded once: its names are stored in the cache."""
    arguments = ["audit", code, "--torch", what, "--index-url", nightlies.url, "--cache", str(tmp_path / "cache")]
    for _ in range(2):
        assert main([*arguments, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert [(one["name"], one["breaks"]) for one in document["findings"]] == [("torch.nn.gone", [NIGHTLY])]
        assert document["verdicts"] == {NIGHTLY: "breaks"}
    assert len(downloads(nightlies)) == 1
    assert not list((tmp_path / "temporary").iterdir())


def test_a_wheel_beside_recorded_releases(
    nightlies: PackageIndex, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --releases, the audit is about those and it."""
    wheel = str(nightlies.folder / nightlies.links[-1].name)
    assert main(["audit", code, "--releases", "2.9", "--torch", wheel, "--json"]) == 1
    assert list(json.loads(capsys.readouterr().out)["verdicts"]) == ["2.9.0", "2.9.1", NIGHTLY]


def test_what_the_cache_holds_is_read_anew_if_it_is_damaged(nightlies: PackageIndex, tmp_path: Path) -> None:
    """A file of another version, a cut one, and one that is none of ours are no errors."""

    def read() -> tuple[str, ...]:
        return read_other("nightly", index_url=nightlies.url, cache=tmp_path / "cache").releases

    assert read() == (NIGHTLY,)
    (stored,) = (tmp_path / "cache").iterdir()
    whole = stored.read_bytes()
    for content in (b"", whole[:-9], b"no gzip"):
        stored.write_bytes(content)
        assert read() == (NIGHTLY,)
        assert stored.read_bytes() == whole
    assert len(downloads(nightlies)) == 4


def test_a_cache_that_cannot_be_written_is_no_error(nightlies: PackageIndex, tmp_path: Path) -> None:
    """The step says so, and the audit goes on."""
    (tmp_path / "file").touch()
    steps: list[str] = []

    def watch(step: str, *_: object, **__: object) -> None:
        steps.append(step)

    read_other("nightly", index_url=nightlies.url, cache=tmp_path / "file" / "cache", watch=watch)
    assert any("cannot be written" in step for step in steps)


@pytest.mark.parametrize("place", ["wheel", "folder"])
def test_a_torch_on_this_machine_needs_no_index(place: str, tmp_path: Path, nightlies: PackageIndex) -> None:
    """A wheel and a folder are read where they are, and nothing is stored."""
    if place == "folder":
        make_folder(tmp_path / "site", FILES)
    what = str(tmp_path / "site" if place == "folder" else nightlies.folder / nightlies.links[-1].name)
    assert read_other(what, index_url="http://127.0.0.1:9/simple", cache=tmp_path / "cache").releases == (NIGHTLY,)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("2.98.0", "has no wheel of torch 2.98.0"),
        ("no-release", "'no-release' is neither a file or folder nor a version"),
        ("none.whl", "'none.whl' does not exist"),
    ],
)
def test_a_torch_that_is_not_there_gives_2(
    what: str, why: str, nightlies: PackageIndex, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stderr says why, and what can be given."""
    assert main(["audit", code, "--torch", what, "--index-url", nightlies.url]) == 2
    printed = capsys.readouterr()
    assert why in printed.err
    assert not printed.out


@pytest.mark.parametrize(("module", "extra"), [("griffe", "record"), ("pypi_simple", "track")])
def test_a_missing_extra_is_named_before_the_download(
    module: str, extra: str, nightlies: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "automodel_mesh.tracking.network", raising=False)
    with pytest.raises(SourcesError, match=rf"automodel-mesh\[{extra}\]"):
        read_other("nightly", index_url=nightlies.url)
    assert not downloads(nightlies)
