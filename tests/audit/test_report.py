"""The report of an audit: the table, the findings and the verdict, as text, Markdown and JSON."""

from __future__ import annotations

import json

import pytest

from automodel_mesh.audit.findings import Note, Unread
from automodel_mesh.audit.report import as_document, as_parts, verdict_sentence, verdicts_table
from automodel_mesh.tables import Table, as_text
from tests.audit.findings import BLOCK_MASK, NEW, OLD, RELEASES, audit_of, finding

pytestmark = pytest.mark.release_independent

DIFFERS = finding(
    line=9, column=1, kind="changed-behaviour", name="DeviceMesh._flatten", breaks=(), cannot_tell=NEW[:1], when="call"
)
GUARDED = finding(breaks=(), guarded=OLD, guard="except ImportError, line 12", instead="our_function")


def paragraphs(parts: list[str | Table]) -> list[str]:
    """Return the parts of a report that are no tables."""
    return [part for part in parts if isinstance(part, str)]


def test_a_row_for_each_file_that_does_not_fit() -> None:
    """The table has each such file, a row for the others, and the worst of all for each release."""
    unread = Unread("src/broken.py", "it is no Python")
    findings = (finding(), DIFFERS, finding(file="src/fine.py", breaks=(), guarded=OLD))
    files = ("src/a.py", "src/fine.py", "src/train.py")
    table = verdicts_table(audit_of(*findings, files=files, unread=(unread,), other_files=4))
    assert table.columns == ("file", "2.6", "2.7", "2.8", "2.9.0", "2.9.1", *(f"2.{minor}" for minor in range(10, 16)))
    assert table.rows == (
        ("src/broken.py", *["?"] * 11),
        ("src/train.py", *["NO"] * 5, "?", *["fits"] * 5),
        ("6 other files", *["fits"] * 11),
        ("all together", *["NO"] * 5, *["?"] * 6),
    )


@pytest.mark.parametrize(("others", "name"), [(1, "1 file"), (5, "5 files")])
def test_a_table_without_faults_has_one_row(others: int, name: str) -> None:
    """If all files fit, one row says how many these are."""
    assert verdicts_table(audit_of(other_files=others)).rows == ((name, *["fits"] * 11),)


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("src/train.py", "src/train.py"),
        ("src/some_framework/parallel/device_mesh_utilities.py", ".../device_mesh_utilities.py"),
        ("src/some_framework/distributed/mesh/ranks.py", ".../distributed/mesh/ranks.py"),
        (f"src/{'a' * 40}_end.py", f"...{'a' * 22}_end.py"),
    ],
)
def test_all_releases_fit_into_100_columns(file: str, shown: str) -> None:
    """Long names of files lose folders, or their beginning, in the table; in Markdown they do not."""
    table = verdicts_table(audit_of(finding(file=file)))
    assert table.rows[0][0] == shown
    assert max(map(len, as_text(table).splitlines())) <= 100
    assert verdicts_table(audit_of(finding(file=file)), shortened=False).rows[0][0] == file


def test_a_finding_says_where_when_and_what_instead() -> None:
    """The paragraph of a finding has its place and name, its releases, when it runs, its guard, and a remedy."""
    one = finding(cannot_tell=NEW[:1], guarded=NEW[1:3], guard="the if in line 2", instead="compat.flatten")
    assert paragraphs(as_parts(audit_of(one)))[0].splitlines() == [
        f"src/train.py:3:8: {BLOCK_MASK}",
        "    breaks on 2.6 - 2.9, when the file is imported",
        "    may break on 2.10, when the file is imported",
        "    guarded by the if in line 2 on 2.11, 2.12",
        "    torch has no BlockMask there before 2.10.",
        "    instead: compat.flatten",
    ]
    plain = paragraphs(as_parts(audit_of(DIFFERS)))[0]
    assert "on 2.10, when the function is called" in plain
    assert "breaks on" not in plain
    assert "guarded" not in plain
    assert "instead" not in plain


def test_markdown_reads_nothing_of_names_as_markup() -> None:
    """In Markdown a finding is an item of a list, its names are code, and other text is escaped."""
    one = finding(message="`torch.x` has no __init__(<a>)")
    assert paragraphs(as_parts(audit_of(one), markdown=True))[0].splitlines() == [
        f"- `src/train.py:3:8`: `{BLOCK_MASK}`",
        "  - breaks on 2.6 - 2.9, when the file is imported",
        "  - `torch.x` has no \\_\\_init\\_\\_(\\<a\\>)",
    ]


def test_what_is_not_shown_and_not_read_is_said() -> None:
    """Files that cannot be read are listed with the reason, and what is left out is counted."""
    found = audit_of(unread=(Unread("src/broken.py", "line 3 is\nno Python"),))
    texts = paragraphs(as_parts(found, hidden=2))
    assert texts[0] == "src/broken.py cannot be read: line 3 is no Python"
    assert "2 more findings are not shown: the code takes care of them" in texts[1]
    assert "--all" in texts[1]


def test_names_do_not_control_the_terminal() -> None:
    """Control characters in the names of files are escaped, in the table and in the findings."""
    parts = as_parts(audit_of(finding(file="src/\x1b[2J\udc80.py")))
    assert isinstance(parts[0], Table)
    for text in (as_text(parts[0]), *paragraphs(parts)):
        assert "\x1b" not in text
        text.encode()  # what is no text in a file's name can be written
    assert "src/\\x1b[2J\\udc80.py:3:8" in paragraphs(parts)[0]


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        ((), "fits 2.6 - 2.15"),
        ((GUARDED,), "fits 2.6 - 2.15"),
        ((finding(),), "fits 2.10 - 2.15, breaks on 2.6 - 2.9"),
        ((finding(), DIFFERS), "fits 2.11 - 2.15, cannot tell on 2.10, breaks on 2.6 - 2.9"),
        ((finding(breaks=OLD[:4]),), "fits 2.9.1 - 2.15, breaks on 2.6 - 2.9.0"),
        ((finding(breaks=RELEASES),), "breaks on 2.6 - 2.15"),
    ],
)
def test_the_last_line_is_the_verdict(findings: tuple[object, ...], sentence: str) -> None:
    """Each release is in one of the spans of the last line."""
    found = audit_of(*findings, files=("src/train.py",))  # type: ignore[arg-type]
    assert verdict_sentence(found) == sentence
    assert as_parts(found)[-1] == sentence


def test_the_document_is_json() -> None:
    """The document has the verdict of each release, the findings with all fields, and what was not read."""
    notes = (Note("src/train.py", 4, "delete it"),)
    found = audit_of(finding(), unread=(Unread("src/b.py", "why"),), notes=notes, other_files=3)
    read = json.loads(json.dumps(as_document(found)))
    assert (read["schema"], read["verdict"], read["other_files"]) == (1, "breaks", 3)
    assert list(read["verdicts"].items()) == [
        *((release, "breaks") for release in OLD),
        *((release, "cannot tell") for release in NEW),
    ]
    assert read["findings"][0]["breaks"] == list(OLD)
    assert read["unread"] == [{"file": "src/b.py", "why": "why"}]
    assert read["notes"] == [{"file": "src/train.py", "line": 4, "text": "delete it", "is_error": False}]
    assert as_document(audit_of())["verdict"] == "fits"
