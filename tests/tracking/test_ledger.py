"""The ledger matches the installed torch, has the releases of the matrix, and can be cut, extended and written."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from packaging.version import Version

from automodel_mesh.compat import init_device_mesh
from automodel_mesh.testing import fake_world
from automodel_mesh.tracking import ledger as ledgers
from automodel_mesh.tracking.ledger import Entry, Form, Ledger, LedgerError, forms_of, load_ledger
from automodel_mesh.tracking.sources import Sources, read_installed
from automodel_mesh.tracking.uses import public_callers

MATRIX = Path(__file__).parents[2] / "ci_matrix" / "torch.toml"
INSTALLED = Version(metadata.version("torch")).base_version
IN_CPP = {"torch._C", "torch._C._distributed_c10d"}
"""Modules of C++ code, whose signatures only the stub files state."""


@functools.cache
def ledger() -> Ledger:
    """Return the ledger, which is read once."""
    return load_ledger()


@functools.cache
def installed() -> Sources:
    """Return the sources of the installed torch."""
    return read_installed(ledger().paths)


# --- the installed torch


def test_the_installed_release_is_recorded() -> None:
    """The ledger has the release that this session runs on, or the next tests would compare nothing."""
    assert INSTALLED in ledger().releases, "record it: automodel-mesh track installed --record"


def test_names_signatures_and_fingerprints_agree_with_the_sources() -> None:
    """The sources of the installed torch have the signature and text of the ledger under each name, or nothing."""
    assert forms_of(installed(), ledger().entries) == ledger().forms[INSTALLED]


def test_names_and_parameters_agree_with_the_running_torch() -> None:
    """The running torch has each name that its sources have, with the same parameters and defaults."""
    with fake_world(2):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
        mesh.get_group("dp")
        holders: dict[type, object] = {type(mesh): mesh, type(dist.group.WORLD): dist.group.WORLD}
        wrong = [text for entry in ledger().entries if (text := disagreement(entry, holders)) is not None]
    assert not wrong, "\n".join(wrong)


def disagreement(entry: Entry, holders: dict[type, object]) -> str | None:
    """Say how the running torch differs from the ledger about an entry; `None` if it does not."""
    form = ledger().forms[INSTALLED].get(entry.name)
    if entry.is_list_of_members or not (form or entry.is_needed_on(Version(INSTALLED))):
        return None
    try:
        thing = resolve(entry.name.partition("(")[0], holders)
    except (ImportError, AttributeError) as error:
        return None if form is None else f"{entry.name} is in the sources, and missing at run time: {error}"
    if form is None:
        return f"{entry.name} is needed, exists at run time, and is not in the ledger"
    if entry.is_parameter:
        known = inspect.signature(thing).parameters
        return None if entry.identifier in known else f"{entry.name} is not among {list(known)}"
    in_cpp = entry.name.partition(":")[0] in IN_CPP
    if form.signature.startswith("(") and not in_cpp and inspect.isroutine(thing):
        return compare_parameters(entry.name, form.signature, thing)
    return None


def resolve(name: str, holders: dict[type, object]) -> Any:
    """Return what a name refers to; an attribute that only instances have is taken from one of `holders`."""
    module_name, _, path = name.partition(":")
    module = importlib.import_module(module_name)
    thing: Any = module
    for part in path.split(".") if path else ():
        if inspect.isclass(thing) and not hasattr(thing, part):
            instances = {**holders, **{type(one): one for one in vars(module).values()}}
            thing = instances[thing]
        thing = getattr(thing, part)
    return thing


def compare_parameters(name: str, signature: str, thing: Callable[..., Any]) -> str | None:
    """Say how a function's parameters differ from a signature of the ledger, in names or in having a default."""
    now = inspect.signature(inspect.unwrap(thing)).parameters
    described = [f"{one.name}{'' if one.default is one.empty else '='}" for one in now.values()]
    parts = [part for part in split_signature(signature) if part not in {"*", "/"}]
    stated = [part.partition("=")[0].lstrip("*") + ("=" if "=" in part else "") for part in parts]
    return None if described == stated else f"{name}: the ledger has {stated}, the running torch {described}"


def split_signature(signature: str) -> list[str]:
    """Split a signature at the commas between its parameters."""
    parts, depth = [""], 0
    for letter in signature[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


# --- the data as a whole


@pytest.mark.release_independent
def test_the_ledger_has_the_releases_of_the_matrix() -> None:
    """Exactly the releases of the matrix are recorded, oldest first."""
    text = MATRIX.read_text()
    rows = ledgers.read_toml(text)["rows"]
    assert list(ledger().releases) == sorted((row["torch"] for row in rows), key=Version)


@pytest.mark.release_independent
def test_every_release_has_the_names_that_it_needs() -> None:
    """Every recorded release from `since` on and before `until` has the name."""
    lacking = [
        (entry.name, release)
        for entry in ledger().entries
        for release, forms in ledger().forms.items()
        if entry.is_needed_on(Version(release)) and entry.name not in forms
    ]
    assert lacking == []


@pytest.mark.release_independent
def test_each_entry_is_complete() -> None:
    """Each name has one entry, with its use and remedy in sentences, and a public function depends on it."""
    names = [entry.name for entry in ledger().entries]
    assert sorted(set(names)) == sorted(names)
    for entry in ledger().entries:
        assert entry.use.endswith((".", "?")), entry.name
        assert entry.remedy.endswith((".", "?")), entry.name
        # The test plugin and the commands use functions of `worlds` that no public function needs.
        assert public_callers(entry.used_by) or all(place.startswith("worlds.") for place in entry.used_by), entry.name


# --- cutting and recording


def made(*releases: str) -> Ledger:
    """Make a ledger of one name, with a different form in each release."""
    entry = Entry("torch.m:f", use="Called.", remedy="None.", used_by=("gate",))
    return Ledger((entry,), {release: {"torch.m:f": Form("()", release)} for release in releases})


@pytest.mark.release_independent
@pytest.mark.parametrize(("release", "left"), [("2.9", 3), ("2.9.0", 2), ("2.10", 4), ("2.8", 1), ("3", 4)])
def test_a_cut_keeps_a_release_with_its_patches(release: str, left: int) -> None:
    """A cut drops newer releases: 2.9 includes all its patches, 2.9.0 only itself."""
    known = ("2.8.0", "2.9.0", "2.9.1", "2.10.0")
    assert made(*known).cut(release).releases == known[:left]


@pytest.mark.release_independent
def test_a_cut_drops_what_is_about_later_releases() -> None:
    """A cut drops names that only later releases need, and an `until` that is later."""
    entries = [
        Entry("torch.m:kept", "Called.", "None.", ("gate",), until="2.13"),
        Entry("torch.m:later", "Called.", "None.", ("gate",), since="2.13"),
    ]
    known = Ledger(tuple(entries), {"2.12.1": {}, "2.13.0": {}})
    (left,) = known.cut("2.12").entries
    assert (left.name, left.until) == ("torch.m:kept", None)
    assert known.cut("2.13") == known


@pytest.mark.release_independent
@pytest.mark.parametrize(("release", "said"), [("2.5", "begins with 2.8.0"), ("two", "'two' is not a version number")])
def test_a_cut_that_leaves_nothing_is_refused(release: str, said: str) -> None:
    """A cut before the first release, or at what is not a version, is an error that says so."""
    with pytest.raises(LedgerError, match=said):
        made("2.8.0").cut(release)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("2.9.0", ("2.9.0",)),
        ("2.9.0+cu130", ("2.9.0",)),
        ("2.9.0rc2", ("2.8.0", "2.9.0")),
        ("2.9.1", ("2.9.0", "2.10.0")),
        ("2.11.0.dev20251101", ("2.10.0",)),
        ("2.7.0", ("2.8.0",)),
        ("2.10.0a0+git", ("2.9.0", "2.10.0")),
    ],
)
def test_a_torch_is_compared_with_itself_or_its_neighbours(release: str, known: tuple[str, ...]) -> None:
    """Any build of a recorded release is compared with that release; a candidate of it with both neighbours."""
    assert made("2.8.0", "2.9.0", "2.10.0").neighbours(Version(release)) == known


@pytest.mark.release_independent
def test_a_recorded_release_is_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded releases stay in order, are replaced if recorded again, and are written and read without a change."""
    sources = Sources("2.9.1+cu128", "a test", {"torch/m.py": "def f(a, b=1): ..."})
    new = made("2.8.0", "2.10.0").record(sources)
    assert new.releases == ("2.8.0", "2.9.1", "2.10.0")
    assert new.forms["2.9.1"]["torch.m:f"].signature == "(a, b=1)"
    assert new.record(sources) == new
    assert new.forget("2.9.1") == made("2.8.0", "2.10.0")

    (tmp_path / "compat").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(ledgers, "folder", lambda: tmp_path / "compat")
    path = new.save()
    (tmp_path / "compat" / "ledger.toml").write_text(
        '[[names]]\nname = "torch.m:f"\nused_by = ["gate"]\nuse = "Called."\nremedy = "None."\n'
    )
    assert load_ledger() == new
    before = path.read_text()
    load_ledger().save()
    assert path.read_text() == before
    (tmp_path / "pyproject.toml").unlink()
    with pytest.raises(LedgerError, match="not in a checkout"):
        new.save()


@pytest.mark.release_independent
def test_a_ledger_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file cannot be written, the error names it and has the reason of the system."""
    (tmp_path / "compat" / "ledger.json").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(ledgers, "folder", lambda: tmp_path / "compat")
    with pytest.raises(LedgerError, match=r"ledger\.json cannot be written: Is a directory"):
        made("2.8.0").save()


@pytest.mark.release_independent
@pytest.mark.parametrize("version", ["2.16.0rc1", "2.16.0.dev20261119", "2.16.0a0+git1234"])
def test_only_releases_are_recorded(version: str) -> None:
    """A candidate, a nightly and a build of a checkout are refused, because they can still change."""
    with pytest.raises(LedgerError, match=r"is not a release.*Record the release when it is out"):
        made("2.8.0").record(Sources(version, "a test", {}))


@pytest.mark.release_independent
def test_a_release_that_is_not_recorded_cannot_be_removed() -> None:
    """Removing a release that is not recorded is an error that lists those that are."""
    with pytest.raises(LedgerError, match=r"torch 2\.9\.0 is not in the ledger, which has 2\.8\.0"):
        made("2.8.0").forget("2.9.0")


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ('[[names]]\nname = "torch.m:f"\n', "the entry 'torch.m:f' is wrong"),
        ('[[names]]\nname = "torch.m:f"\nuse = "a"\nremedy = "b"\nused_by = []\nsinc = "2.9"\n', "sinc"),
        ("[[names]\n", "ledger.toml"),
    ],
)
def test_an_invalid_ledger_is_refused(entries: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid ledger is an error that names the file, and the entry if it is about one."""
    (tmp_path / "ledger.toml").write_text(entries)
    (tmp_path / "ledger.json").write_text(json.dumps({"releases": [], "names": {}}))
    monkeypatch.setattr(ledgers, "folder", lambda: tmp_path)
    with pytest.raises(LedgerError, match=said):
        load_ledger()
