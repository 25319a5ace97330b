"""The ledger is true of the installed torch, has the releases of the matrix, and can be cut, added to and written."""

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
from automodel_mesh.tracking.callers import public_callers
from automodel_mesh.tracking.ledger import Entry, Form, Ledger, LedgerError, forms_of, load_ledger
from automodel_mesh.tracking.reading import read_sources
from automodel_mesh.tracking.sources import Sources

MATRIX = Path(__file__).parents[2] / "ci_matrix" / "torch.toml"
INSTALLED = Version(metadata.version("torch")).base_version
DESCRIBED = {"torch._C", "torch._C._distributed_c10d"}
"""Modules of C++ code: objects of theirs do not tell their signature, only the stub files do."""


@functools.cache
def ledger() -> Ledger:
    """Return the ledger, which is read once."""
    return load_ledger()


@functools.cache
def installed() -> Sources:
    """Return the sources of the installed torch."""
    return read_sources("installed", ledger().paths)


# --- the truth about the installed torch


def test_the_installed_release_is_recorded() -> None:
    """What follows compares something: the ledger has the release that this session runs on."""
    assert INSTALLED in ledger().releases, "record it: automodel-mesh track installed --record"


def test_names_signatures_and_fingerprints_agree_with_the_sources() -> None:
    """Under each name the installed torch has what the ledger says: nothing, or this signature and text."""
    assert forms_of(installed(), ledger().entries) == ledger().forms[INSTALLED]


def test_names_and_parameters_agree_with_the_running_torch() -> None:
    """What the sources show is what torch has when it runs, down to the parameters and which have defaults."""
    with fake_world(2):
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
        mesh.get_group("dp")
        holders: dict[type, object] = {type(mesh): mesh, type(dist.group.WORLD): dist.group.WORLD}
        wrong = [said for entry in ledger().entries if (said := disagreement(entry, holders)) is not None]
    assert not wrong, "\n".join(wrong)


def disagreement(entry: Entry, holders: dict[type, object]) -> str | None:
    """Say in which way the running torch disagrees with the ledger about an entry; `None` where it does not."""
    form = ledger().forms[INSTALLED].get(entry.name)
    if entry.is_list_of_members or not (form or entry.is_needed_on(Version(INSTALLED))):
        return None
    try:
        thing = resolve(entry.name.partition("(")[0], holders)
    except (ImportError, AttributeError) as error:
        return None if form is None else f"{entry.name} is in the sources, and not there at run time: {error}"
    if form is None:
        return f"{entry.name} is needed, is there at run time, and is not in the ledger"
    if entry.is_parameter:
        known = inspect.signature(thing).parameters
        return None if entry.identifier in known else f"{entry.name} is not among {list(known)}"
    in_cpp = entry.name.partition(":")[0] in DESCRIBED
    if form.signature.startswith("(") and not in_cpp and inspect.isroutine(thing):
        return compare_parameters(entry.name, form.signature, thing)
    return None


def resolve(name: str, holders: dict[type, object]) -> Any:
    """Find what a name stands for; an attribute of instances on one that is there."""
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
    """Say how a function's parameters differ from a signature of the ledger, in names or in which have defaults."""
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
    """Each release that is tested is recorded, and no other, oldest first."""
    text = MATRIX.read_text()
    rows = ledgers.read_toml(text)["rows"]
    assert list(ledger().releases) == sorted((row["torch"] for row in rows), key=Version)


@pytest.mark.release_independent
def test_a_name_is_there_on_every_release_that_needs_it() -> None:
    """From `since` on and before `until`, every recorded release has the name."""
    lacking = [
        (entry.name, release)
        for entry in ledger().entries
        for release, forms in ledger().forms.items()
        if entry.is_needed_on(Version(release)) and entry.name not in forms
    ]
    assert lacking == []


@pytest.mark.release_independent
def test_each_entry_says_what_people_want_to_know() -> None:
    """Names are told once; each has its use and remedy in sentences, and reaches something of ours that there is."""
    names = [entry.name for entry in ledger().entries]
    assert sorted(set(names)) == sorted(names)
    for entry in ledger().entries:
        assert entry.use.endswith((".", "?")), entry.name
        assert entry.remedy.endswith((".", "?")), entry.name
        # The test plugin and the commands use functions of `worlds` that no public function needs.
        assert public_callers(entry.used_by) or all(place.startswith("worlds.") for place in entry.used_by), entry.name


# --- cutting and recording


def made(*releases: str) -> Ledger:
    """Make a ledger of one name, which has another form in each release."""
    entry = Entry("torch.m:f", use="Called.", remedy="None.", used_by=("gate",))
    return Ledger((entry,), {release: {"torch.m:f": Form("()", release)} for release in releases})


@pytest.mark.release_independent
@pytest.mark.parametrize(("release", "left"), [("2.9", 3), ("2.9.0", 2), ("2.10", 4), ("2.8", 1), ("3", 4)])
def test_a_cut_keeps_a_release_with_its_patches(release: str, left: int) -> None:
    """What is newer is forgotten: 2.9 stands for all of its patches, 2.9.0 for itself."""
    known = ("2.8.0", "2.9.0", "2.9.1", "2.10.0")
    assert made(*known).cut(release).releases == known[:left]


@pytest.mark.release_independent
def test_a_cut_forgets_what_was_learnt_later() -> None:
    """Names that were needed later only are not there; nobody knew that a name would not be needed any more."""
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
    """A ledger without a release compares nothing."""
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
    """A recorded release stands for itself, whatever its build; a candidate is not yet that release."""
    assert made("2.8.0", "2.9.0", "2.10.0").neighbours(Version(release)) == known


@pytest.mark.release_independent
def test_a_recorded_release_is_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases stay in order, one that is recorded again is replaced, and the file holds all of it."""
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
@pytest.mark.parametrize("version", ["2.16.0rc1", "2.16.0.dev20261119", "2.16.0a0+git1234"])
def test_only_releases_are_recorded(version: str) -> None:
    """What comes before a release still changes under its number."""
    with pytest.raises(LedgerError, match=r"is not a release.*Record the release when it is out"):
        made("2.8.0").record(Sources(version, "a test", {}))


@pytest.mark.release_independent
def test_what_is_not_recorded_cannot_be_forgotten() -> None:
    """The message lists what is."""
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
def test_a_ledger_that_is_not_one_is_refused(
    entries: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the file, and the entry where there is one."""
    (tmp_path / "ledger.toml").write_text(entries)
    (tmp_path / "ledger.json").write_text(json.dumps({"releases": [], "names": {}}))
    monkeypatch.setattr(ledgers, "folder", lambda: tmp_path)
    with pytest.raises(LedgerError, match=said):
        load_ledger()
