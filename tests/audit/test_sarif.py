"""SARIF: what code hosts and editors need of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh.audit.findings import Audit, Unread
from automodel_mesh.audit.sarif import as_sarif
from tests.audit.findings import BLOCK_MASK, NEW, OLD, audit_of, finding

pytestmark = pytest.mark.release_independent


def run_of(found: Audit, root: Path = Path("/checkout")) -> dict[str, Any]:
    """Return the one run of the SARIF document, as read from JSON."""
    document = json.loads(json.dumps(as_sarif(found, version="1.2.3", root=root)))
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("/sarif-schema-2.1.0.json")
    (run,) = document["runs"]
    assert isinstance(run, dict)
    return run


def address(file: str) -> dict[str, str]:
    """Return the address of a file with a finding."""
    (result,) = run_of(audit_of(finding(file=file)))["results"]
    found: dict[str, str] = result["locations"][0]["physicalLocation"]["artifactLocation"]
    return found


def fingerprints(*findings: Any) -> list[str]:
    """Return the fingerprints of findings."""
    return [result["partialFingerprints"]["automodelMeshAudit/v1"] for result in run_of(audit_of(*findings))["results"]]


def test_a_result_has_the_place_the_rule_and_a_sentence() -> None:
    """A result says in one line what breaks where, and points to a rule by its name and its index."""
    run = run_of(audit_of(finding(instead="compat.flatten", kind="missing-argument")))
    (result,) = run["results"]
    assert result["message"]["text"] == (
        f"{BLOCK_MASK} breaks on torch 2.6 - 2.9: torch has no BlockMask there before 2.10. Instead: compat.flatten"
    )
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 8}
    assert result["ruleId"] == run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "missing-argument"


def test_there_is_a_rule_for_each_kind() -> None:
    """Each kind of finding is a rule, with texts, and the tool has a name and a version."""
    driver = run_of(audit_of())["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("automodel-mesh audit", "1.2.3")
    assert [rule["id"] for rule in driver["rules"]] == ["missing-name", "missing-argument", "changed-behaviour"]
    for rule in driver["rules"]:
        assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        ({}, "error", "breaks on torch 2.6 - 2.9: "),
        ({"breaks": (), "cannot_tell": NEW[:1]}, "warning", "may break on torch 2.10: "),
        ({"cannot_tell": NEW[:1]}, "error", "breaks on torch 2.6 - 2.9 and may break on torch 2.10: "),
        ({"breaks": (), "guarded": OLD}, "note", "is guarded: "),
    ],
)
def test_the_level_is_that_of_the_worst_release(fields: dict[str, Any], level: str, words: str) -> None:
    """What breaks is an error, what may break a warning, and what the code takes care of a note."""
    (result,) = run_of(audit_of(finding(**fields)))["results"]
    assert result["level"] == level
    assert words in result["message"]["text"]


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("src/train.py", "src/train.py"),
        ("./src/../src/train.py", "src/train.py"),
        ("/checkout/src/a b#ü.py", "src/a%20b%23%C3%BC.py"),
    ],
)
def test_files_in_the_checkout_are_relative_to_it(file: str, uri: str) -> None:
    """The address of a file below the folder of the run is relative, and is a URI."""
    assert address(file) == {"uri": uri, "uriBaseId": "%SRCROOT%"}
    assert "%SRCROOT%" in run_of(audit_of())["originalUriBaseIds"]


@pytest.mark.parametrize("file", ["../other/a.py", "/other/a.py"])
def test_files_elsewhere_have_their_full_path(file: str) -> None:
    """A file outside of that folder has an absolute address."""
    assert address(file) == {"uri": "file:///other/a.py"}


def test_fingerprints_stay_when_lines_move() -> None:
    """A fingerprint is the same on another line, and differs for another file, name, release or repetition."""
    (first,) = fingerprints(finding())
    assert fingerprints(finding(line=30, column=1)) == [first]
    others = [finding(file="b.py"), finding(name="torch.x"), finding(breaks=OLD[1:]), finding(kind="missing-argument")]
    found = fingerprints(finding(), finding(line=9), *others)
    assert found[0] == first
    assert len(set(found)) == 6


def test_a_file_that_cannot_be_read_is_told() -> None:
    """A file that cannot be read is an error of the run, which then was not successful."""
    (told,) = run_of(audit_of(unread=(Unread("src/b.py", "it is no Python"),)))["invocations"]
    assert told["executionSuccessful"] is False
    (notification,) = told["toolExecutionNotifications"]
    assert (notification["level"], notification["message"]["text"]) == ("error", "it is no Python")
    assert notification["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "src/b.py"
    assert run_of(audit_of())["invocations"][0] == {"executionSuccessful": True, "toolExecutionNotifications": []}
