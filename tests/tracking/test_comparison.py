"""A comparison with the ledger finds what changed in a torch, and how serious it is."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from packaging.version import Version

from automodel_mesh.compat import NEWEST_TESTED_TORCH
from automodel_mesh.tracking.comparison import Comparison, Finding, breaks_callers, compare
from automodel_mesh.tracking.index import read_release
from automodel_mesh.tracking.ledger import Entry, Ledger, load_ledger
from automodel_mesh.tracking.sources import Sources, SourcesError, read_installed

INSTALLED = Version(metadata.version("torch")).base_version
MESHES = "torch.distributed.device_mesh:"
LAYOUTS = "torch.distributed._mesh_layout:"

OLD = """
class Mesh:
    def __init__(self, ranks, *, _layout=None):
        self._layout = _layout

    def _root(self):
        return self

    @property
    def size(self):
        return 1
"""
USED_BY = ("since_2_10.root_of",)


def entry(name: str, **more: Any) -> Entry:
    """Make an entry for something in the module above."""
    return Entry(f"torch.m{name}", "Called.", "Write it anew.", USED_BY, **more)


def torch(version: str, text: str = OLD) -> Sources:
    """Make the sources of a torch."""
    return Sources(version, f"torch {version} of a test", {"torch/m.py": text} if text else {})


def compared(text: str, *entries: Entry, version: str = "2.16.0") -> Comparison:
    """Compare a torch with a ledger that has 2.15.0."""
    ledger = Ledger(entries, {}).record(torch("2.15.0"))
    return compare(ledger, torch(version, text), fetch=torch)


def only(comparison: Comparison) -> Finding:
    """Return the only finding."""
    (finding,) = comparison.findings
    return finding


@pytest.mark.release_independent
def test_an_unchanged_torch_is_known() -> None:
    """A newer torch with the same text under all names is known, even though it is not recorded."""
    found = compared("# new\n" + OLD, entry(":Mesh._root"), entry(":Mesh"), entry(":Mesh.*"), entry(""))
    assert (found.verdict, found.findings, found.notes, found.names) == ("known", (), (), 4)
    assert (found.torch, found.recorded, found.compared_with) == ("2.16.0", False, ("2.15.0",))


@pytest.mark.release_independent
def test_a_recorded_release_is_compared_with_itself() -> None:
    """A build of a recorded release is compared with that release, so that a vendor's own code in it is found."""
    same = compared(OLD, entry(":Mesh._root"), version="2.15.0+cu130")
    assert (same.torch, same.recorded, same.verdict) == ("2.15.0", True, "known")
    other = compared(OLD.replace("return self", "return None"), entry(":Mesh._root"), version="2.15.0+vendor")
    assert (other.recorded, other.verdict) == (True, "needs a look")


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("name", "old", "new", "change", "verdict"),
    [
        (":Mesh._root", "_root", "_top", "vanished", "breaks"),
        (":Mesh.__init__(_layout)", ", *, _layout=None", "", "vanished", "breaks"),
        (":Mesh._layout", "self._layout", "self.layout", "vanished", "breaks"),
        ("", OLD, "", "vanished", "breaks"),
        (":Mesh._root", "_root(self)", "_root(self, deep)", "signature", "breaks"),
        (":Mesh._root", "_root(self)", "_root(self, deep=True)", "signature", "needs a look"),
        (":Mesh", "ranks, *", "grid, *", "signature", "breaks"),
        (":Mesh", "*, _layout=None", "_layout=None", "signature", "needs a look"),
        (":Mesh._root", "    def _root", "    @property\n    def _root", "signature", "breaks"),
        (":Mesh._root", "return self", "return None", "body", "needs a look"),
        (":Mesh.size", "return 1", "return 2", "body", "needs a look"),
    ],
)
def test_a_change_has_a_verdict(name: str, old: str, new: str, change: str, verdict: str) -> None:
    """What vanished, or cannot be called as before, breaks; every other change needs a look."""
    assert OLD.count(old) == 1
    found = only(compared(OLD.replace(old, new), entry(name)))
    assert (found.name, found.change, found.verdict) == (f"torch.m{name}", change, verdict)
    assert (found.used_by, found.use, found.remedy) == (USED_BY, "Called.", "Write it anew.")
    assert "get_root_mesh" in found.reaches


@pytest.mark.release_independent
def test_a_finding_shows_the_difference() -> None:
    """A finding has the signatures before and after, and a diff of the sources."""
    found = only(compared(OLD.replace("_root(self):", "_root(self, a=1):"), entry(":Mesh._root")))
    assert (found.before, found.after) == ("(self)", "(self, a=1)")
    lines = found.diff.splitlines()
    assert [line for line in lines if line.startswith("-")] == ["--- before", "-def _root(self):"]
    assert [line for line in lines if line.startswith("+")] == ["+++ after", "+def _root(self, a=1):"]


@pytest.mark.release_independent
def test_members_that_appear_and_vanish_are_found() -> None:
    """Each new or vanished member of a listed class is one finding, and a member with its own entry is found once."""
    text = OLD.replace("def _root", "def abort").replace("def size", "def length")
    found = compared(text, entry(":Mesh.*"), entry(":Mesh._root"))
    changes = {finding.name: (finding.change, finding.verdict, finding.after) for finding in found.findings}
    assert changes == {
        "torch.m:Mesh._root": ("vanished", "breaks", ""),
        "torch.m:Mesh.abort": ("appeared", "needs a look", "(self)"),
        "torch.m:Mesh.length": ("appeared", "needs a look", "property"),
        "torch.m:Mesh.size": ("vanished", "needs a look", ""),
    }
    assert [finding.verdict for finding in found.findings] == ["breaks", *["needs a look"] * 3]
    assert found.verdict == "breaks"
    (abort,) = (finding for finding in found.findings if finding.name.endswith("abort"))
    assert "+def abort(self):" in abort.diff
    assert abort.reaches == ()


@pytest.mark.release_independent
def test_only_names_that_are_needed_are_compared() -> None:
    """A name that our code does not use on a release, because of its `until` or `since`, is not looked up."""
    entries = (entry(":Mesh._root", until="2.16"), entry(":Mesh._other", since="2.17"))
    assert compared("", *entries).names == 0
    assert compared("", *entries, version="2.16.0rc1").verdict == "known"
    assert compared("", *entries, version="2.15.1").verdict == "breaks"


@pytest.mark.release_independent
def test_a_release_is_compared_with_both_neighbours() -> None:
    """What either neighbour has is known, and what neither has is shown as a diff from the older."""
    new = OLD.replace("return self", "return None")
    ledger = Ledger((entry(":Mesh._root"),), {}).record(torch("2.13.0")).record(torch("2.15.0", new))
    for text in (OLD, new):
        found = compare(ledger, torch("2.14.0", text), fetch=torch)
        assert (found.verdict, found.compared_with) == ("known", ("2.13.0", "2.15.0"))
    asked: list[str] = []

    def fetch(release: str) -> Sources:
        asked.append(release)
        return torch(release)

    third = compare(ledger, torch("2.14.0", OLD.replace("return self", "return 3")), fetch=fetch)
    assert "-    return self" in only(third).diff
    assert asked == ["2.13.0"]


@pytest.mark.release_independent
def test_a_note_explains_a_missing_diff() -> None:
    """If the recorded release cannot be read, the findings have no diff, and a note says why."""

    def fetch(release: str) -> Sources:
        raise SourcesError("there is no index")

    ledger = Ledger((entry(":Mesh._root"),), {}).record(torch("2.15.0"))
    found = compare(ledger, torch("2.16.0", OLD.replace("return self", "return 3")), fetch=fetch)
    assert (only(found).change, only(found).diff) == ("body", "")
    assert found.notes == ("no diffs are shown, because torch 2.15.0 could not be read: there is no index",)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("before", "after", "breaks"),
    [
        ("(self, a)", "(self, a, b=1)", False),
        ("(self, a)", "(cls, a)", False),
        ("(self, a)", "(self, a, *, b)", True),
        ("(self, a)", "(self, a, *, b=None)", False),
        ("(self, a)", "(self, *a)", True),
        ("(self, a=(1, 2))", "(self, a=3)", False),
        ("(self, a=1)", "(self, a)", False),
        ("(self)", "(self, *args, **more)", False),
        ("attribute", "property", False),
        ("attribute", "(self)", True),
        ("(self)", "property", True),
        ("()", "attribute", False),
    ],
)
def test_a_signature_that_breaks_callers_is_recognised(before: str, after: str, *, breaks: bool) -> None:
    """Callers break by a removed or a new required parameter, or another kind of name, and not by a new default."""
    assert breaks_callers(before, after) is breaks


# --- real releases


def sources_of(release: str, paths: tuple[str, ...]) -> Sources:
    """Read a release: the installed one, or on the newest torch any, from the package index."""
    if release == INSTALLED:
        return read_installed(paths)
    if Version(INSTALLED) != NEWEST_TESTED_TORCH:
        sessions = " and ".join(dict.fromkeys([release, str(NEWEST_TESTED_TORCH)]))
        pytest.skip(f"compared in the tests sessions of torch {sessions} only")
    try:
        return read_release(release, paths)
    except SourcesError as error:
        pytest.skip(f"torch {release} is not installed, and cannot be read from a package index: {error}")


def no_sources(release: str) -> Sources:
    """Refuse to read a release: these tests compare no diffs."""
    raise SourcesError(f"{release} is not read here")


def compared_with_earlier_ledger(cut: str, release: str) -> Comparison:
    """Compare a release with the ledger as it was when `cut` was the newest."""
    ledger = load_ledger()
    return compare(ledger.cut(cut), sources_of(release, ledger.paths), fetch=no_sources)


def test_the_installed_release_is_known() -> None:
    """The installed torch, which is a release of the matrix, is recorded, and nothing in it differs from the ledger."""
    ledger = load_ledger()
    found = compare(ledger, read_installed(ledger.paths), fetch=no_sources)
    assert (found.verdict, found.recorded, found.findings) == ("known", True, ())


@pytest.mark.parametrize(
    ("cut", "release", "expected"),
    [
        (
            "2.9",
            # The registry vanishes, and meshes hold their root. Delete when the floor reaches 2.10.
            "2.10.0",
            {
                f"{MESHES}_MeshEnv.child_to_root_mapping": ("vanished", "breaks"),
                f"{MESHES}_MeshEnv.root_to_flatten_mapping": ("vanished", "breaks"),
                f"{MESHES}_MeshEnv.flatten_name_to_root_dims": ("vanished", "breaks"),
                f"{MESHES}DeviceMesh._get_root_mesh": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._flatten_mapping": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._unflatten": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._concatenate": ("appeared", "needs a look"),
            },
        ),
        (
            "2.12",
            # There is a new layout class, and the old one takes other arguments. Delete when the floor reaches 2.13.
            "2.13.0",
            {
                f"{LAYOUTS}_FlatLayout": ("appeared", "needs a look"),
                f"{LAYOUTS}_MeshLayout": ("signature", "breaks"),
                f"{LAYOUTS}_MeshLayout.sizes_and_strides": ("vanished", "breaks"),
                f"{LAYOUTS}_MeshLayout.check_non_overlap": ("vanished", "breaks"),
            },
        ),
        (
            "2.14",
            # Meshes take a parameter that derived ones inherit, and `abort`. Delete when the floor reaches 2.15.
            "2.15.0",
            {
                f"{MESHES}DeviceMesh.__init__": ("signature", "needs a look"),
                f"{MESHES}DeviceMesh._preserve_rank_order": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh.abort": ("appeared", "needs a look"),
            },
        ),
    ],
)
def test_an_earlier_ledger_finds_what_a_release_changed(
    cut: str, release: str, expected: dict[str, tuple[str, str]]
) -> None:
    """A ledger that ends before a release finds what that release removed, changed and added, with the verdicts."""
    found = compared_with_earlier_ledger(cut, release)
    changes = {finding.name: (finding.change, finding.verdict) for finding in found.findings}
    assert changes == changes | expected
    worst = "breaks" if "breaks" in {verdict for _, verdict in expected.values()} else "needs a look"
    assert (found.torch, found.recorded, found.verdict) == (release, False, worst)


def test_the_new_parameter_of_2_15_is_shown() -> None:
    """The finding on the constructor shows both signatures, the new one with `preserve_rank_order`."""
    # Delete when the floor reaches 2.15.
    found = compared_with_earlier_ledger("2.14", "2.15.0")
    (constructor,) = (finding for finding in found.findings if finding.name == f"{MESHES}DeviceMesh.__init__")
    assert "preserve_rank_order=False" in constructor.after
    assert "preserve_rank_order" not in constructor.before
