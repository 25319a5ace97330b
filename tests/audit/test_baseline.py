"""Baselines: which findings they leave out, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_mesh.audit.baseline import Baseline
from automodel_mesh.audit.errors import AuditError
from tests.audit.findings import NEW, OLD, finding

pytestmark = pytest.mark.release_independent

ENTRY = {"file": "a.py", "kind": "missing-name", "name": "torch.x", "breaks": [], "cannot_tell": [], "count": 1}
HARMLESS = finding(line=20, breaks=(), guarded=OLD)


def test_what_is_in_a_baseline_does_not_count_on_any_line() -> None:
    """A finding like one of the baseline is left out, on whichever line it is, and nothing is left over."""
    new, left = Baseline.of([finding()]).new([finding(line=90, column=1, message="Other words.")])
    assert (new, left.counts) == ((), {})


@pytest.mark.parametrize(
    "changed",
    [
        {"file": "src/other.py"},
        {"name": "torch.other"},
        {"kind": "missing-argument"},
        {"breaks": (*OLD, NEW[0])},
        {"cannot_tell": NEW[:1]},
    ],
)
def test_what_is_new_or_worse_counts(changed: dict[str, object]) -> None:
    """A finding in another file, of another name or kind, or on one more release counts, and the old one is left."""
    one = finding(**changed)
    baseline = Baseline.of([finding()])
    assert baseline.new([one]) == ((one,), baseline)


@pytest.mark.parametrize("fewer", [{"breaks": OLD[2:]}, {"breaks": (), "cannot_tell": OLD}])
def test_fewer_releases_and_less_serious_is_not_new(fewer: dict[str, object]) -> None:
    """An audit of fewer releases, or one that now cannot tell, finds nothing new."""
    assert Baseline.of([finding()]).new([finding(**fewer)])[0] == ()


def test_findings_are_counted() -> None:
    """Two in the baseline leave out two, and the third counts; with one in the code, one is left over."""
    two = Baseline.of([finding(line=1), finding(line=2)])
    third = finding(line=3)
    assert two.new([finding(line=1), finding(line=2), third])[0] == (third,)
    _, left = two.new([finding(line=2)])
    assert list(left.counts.values()) == [1]


def test_the_narrowest_entry_is_used_first() -> None:
    """An entry for more releases is left for the finding that needs it, in whichever order they come."""
    wide, narrow = finding(), finding(breaks=OLD[:1])
    for written in ([wide, narrow], [narrow, wide]):
        for read in ([wide, narrow], [narrow, wide]):
            new, left = Baseline.of(written).new(read)
            assert (new, left.counts) == ((), {})


def test_what_the_code_takes_care_of_needs_no_entry() -> None:
    """A harmless finding is neither written nor left out, and uses no entry."""
    assert Baseline.of([HARMLESS]).counts == {}
    baseline = Baseline.of([finding()])
    assert baseline.new([HARMLESS]) == ((HARMLESS,), baseline)


def test_the_file_is_the_same_for_the_same_findings(tmp_path: Path) -> None:
    """The file is sorted JSON with a version, whatever the order of the findings, and reads as what was written."""
    findings = [finding(file="b.py"), finding(file="a.py"), finding(file="b.py", line=7)]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    Baseline.of(findings).write(one)
    Baseline.of(findings[::-1]).write(two)
    assert one.read_text() == two.read_text()
    document = json.loads(one.read_text())
    assert document["version"] == 1
    assert [(entry["file"], entry["count"]) for entry in document["findings"]] == [("a.py", 1), ("b.py", 2)]
    assert "line" not in document["findings"][0]
    assert Baseline.read(one) == Baseline.of(findings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("{", "it is no baseline"),
        ("[]", "it is no baseline"),
        ('{"version": 1}', "it is no baseline"),
        ('{"version": 1, "findings": [{"file": "a.py"}]}', "it is no baseline"),
        (json.dumps({"version": 1, "findings": [{**ENTRY, "name": 3}]}), "it is no baseline"),
        (json.dumps({"version": 1, "findings": [{**ENTRY, "breaks": [2.6]}]}), "it is no baseline"),
        (json.dumps({"version": 1, "findings": [{**ENTRY, "count": "many"}]}), "it is no baseline"),
        ('{"version": 2, "findings": "other"}', "has version 2, this is for 1"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(text: str | None, reason: str, tmp_path: Path) -> None:
    """The error names the file, the reason, and how to make a baseline."""
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AuditError, match=f"baseline.json .*{reason}.*--write-baseline"):
        Baseline.read(path)


def test_a_baseline_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A folder that is not there is an error that names the file."""
    with pytest.raises(AuditError, match=r"missing/baseline\.json cannot be written: No such file"):
        Baseline.of([]).write(tmp_path / "missing/baseline.json")
