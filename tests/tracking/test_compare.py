"""What a comparison with the ledger finds, and how bad it is."""

from __future__ import annotations

from typing import Any

import pytest

from automodel_mesh.tracking.compare import breaks_callers, compare
from automodel_mesh.tracking.findings import Comparison, Finding
from automodel_mesh.tracking.ledger import Entry, Ledger
from automodel_mesh.tracking.sources import Sources, SourcesError

pytestmark = pytest.mark.release_independent

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
    """Compare a torch with a ledger that knows 2.15.0."""
    ledger = Ledger(entries, {}).record(torch("2.15.0"))
    return compare(ledger, torch(version, text), fetch=torch)


def only(comparison: Comparison) -> Finding:
    """Return the one finding that there is."""
    (finding,) = comparison.findings
    return finding


def test_nothing_changed() -> None:
    """A newer torch with the same text under all names is known, though it is not recorded."""
    found = compared("# new\n" + OLD, entry(":Mesh._root"), entry(":Mesh"), entry(":Mesh.*"), entry(""))
    assert (found.verdict, found.findings, found.notes, found.names) == ("known", (), (), 4)
    assert (found.torch, found.recorded, found.compared_with) == ("2.16.0", False, ("2.15.0",))


def test_a_recorded_release_is_compared_with_itself() -> None:
    """A build of it that has something else, as vendors make them, is told apart from it."""
    same = compared(OLD, entry(":Mesh._root"), version="2.15.0+cu130")
    assert (same.torch, same.recorded, same.verdict) == ("2.15.0", True, "known")
    other = compared(OLD.replace("return self", "return None"), entry(":Mesh._root"), version="2.15.0+vendor")
    assert (other.recorded, other.verdict) == (True, "needs a look")


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
def test_a_change_and_its_verdict(name: str, old: str, new: str, change: str, verdict: str) -> None:
    """What is gone, or cannot be called as before, breaks; every other change needs a look."""
    assert OLD.count(old) == 1
    found = only(compared(OLD.replace(old, new), entry(name)))
    assert (found.name, found.change, found.verdict) == (f"torch.m{name}", change, verdict)
    assert (found.used_by, found.use, found.remedy) == (USED_BY, "Called.", "Write it anew.")
    assert "get_root_mesh" in found.reaches


def test_a_finding_shows_the_difference() -> None:
    """The signatures before and after, and the lines that differ."""
    found = only(compared(OLD.replace("_root(self):", "_root(self, a=1):"), entry(":Mesh._root")))
    assert (found.before, found.after) == ("(self)", "(self, a=1)")
    lines = found.diff.splitlines()
    assert [line for line in lines if line.startswith("-")] == ["--- before", "-def _root(self):"]
    assert [line for line in lines if line.startswith("+")] == ["+++ after", "+def _root(self, a=1):"]


def test_members_that_come_and_go() -> None:
    """Of a class or module that is watched each is told alone; what has an entry of its own is not told twice."""
    text = OLD.replace("def _root", "def abort").replace("def size", "def length")
    found = compared(text, entry(":Mesh.*"), entry(":Mesh._root"))
    told = {finding.name: (finding.change, finding.verdict, finding.after) for finding in found.findings}
    assert told == {
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


def test_only_what_is_needed_is_looked_at() -> None:
    """A name that our code does not use on this release may go, and one that it uses later is not missed."""
    entries = (entry(":Mesh._root", until="2.16"), entry(":Mesh._other", since="2.17"))
    assert compared("", *entries).names == 0
    assert compared("", *entries, version="2.16.0rc1").verdict == "known"
    assert compared("", *entries, version="2.15.1").verdict == "breaks"


def test_a_release_between_two_known_ones() -> None:
    """What one of the neighbours has is known; what neither has is compared with the older."""
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


def test_no_difference_without_the_older_sources() -> None:
    """Where they cannot be had, the rest is told, and a note says why there is no difference to see."""

    def fetch(release: str) -> Sources:
        raise SourcesError("there is no index")

    ledger = Ledger((entry(":Mesh._root"),), {}).record(torch("2.15.0"))
    found = compare(ledger, torch("2.16.0", OLD.replace("return self", "return 3")), fetch=fetch)
    assert (only(found).change, only(found).diff) == ("body", "")
    assert found.notes == ("differences in the text are not shown, for want of torch 2.15.0: there is no index",)


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
def test_signatures_that_break_callers(before: str, after: str, *, breaks: bool) -> None:
    """Fewer parameters, more that must be given, and another kind of thing do; more that may be given do not."""
    assert breaks_callers(before, after) is breaks
