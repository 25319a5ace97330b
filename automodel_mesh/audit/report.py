"""Reports of an audit: JSON for programs, text for terminals, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from automodel_mesh.audit.findings import VERDICTS, Audit, Finding, Verdict, When
from automodel_mesh.audit.spans import labels, spans
from automodel_mesh.markdown import code, prose
from automodel_mesh.tables import Table
from automodel_mesh.terminal import one_line

JSON_SCHEMA: Final = 1

_WIDTH: Final = 100
"""Columns of the table, if the names of files can be shortened to that."""
_SHORTEST: Final = 20
"""Characters of the name of a file that always stay."""

_CELLS: Final[dict[Verdict, str]] = {"fits": "fits", "cannot tell": "?", "breaks": "NO"}
_STYLES: Final = {"fits": "green", "?": "bold yellow", "NO": "bold red"}
_ON: Final[dict[Verdict, str]] = {"fits": "fits", "cannot tell": "cannot tell on", "breaks": "breaks on"}
_WHEN: Final[dict[When, str]] = {"import": "when the file is imported", "call": "when the function is called"}


def as_document(audit: Audit) -> dict[str, Any]:
    """Make the JSON document of an audit; `automodel_mesh.audit.command` describes its keys."""
    fields = asdict(audit)
    return {
        "schema": JSON_SCHEMA,
        "verdict": max((audit.verdict(release) for release in audit.releases), key=VERDICTS.index),
        "verdicts": {release: audit.verdict(release) for release in audit.releases},
        **{key: fields[key] for key in ("files", "other_files", "findings", "unread", "notes")},
    }


def as_parts(audit: Audit, *, hidden: int = 0, markdown: bool = False) -> list[str | Table]:
    """Make the report of an audit: a table, a paragraph for each finding, and the verdict.

    Args:
        audit: the audit, with the findings to show.
        hidden: how many findings are not shown because the code takes care of them.
        markdown: whether the paragraphs are in Markdown, and the names of files not shortened.

    Returns:
        Paragraphs and tables for `automodel_mesh.tables.show`.
    """
    findings = (_finding_in_markdown if markdown else _finding_in_text)(audit)
    quoted = prose if markdown else one_line
    return [
        verdicts_table(audit, shortened=not markdown),
        *findings,
        *(quoted(f"{one.file} cannot be read: {one.why}") for one in audit.unread),
        *([_hidden_sentence(hidden)] if hidden else []),
        verdict_sentence(audit),
    ]


def _hidden_sentence(hidden: int) -> str:
    findings, them = ("finding is", "it") if hidden == 1 else ("findings are", "them")
    return f"{hidden} more {findings} not shown: the code takes care of {them} on all releases. --all shows {them}."


def verdict_sentence(audit: Audit) -> str:
    """Say the verdict for each release, such as `fits 2.10 - 2.15, breaks on 2.6 - 2.9`."""
    verdicts = {release: audit.verdict(release) for release in audit.releases}
    parts = ((_ON[one], [release for release in verdicts if verdicts[release] == one]) for one in VERDICTS)
    return ", ".join(f"{on} {spans(found, audit.releases)}" for on, found in parts if found)


def verdicts_table(audit: Audit, *, shortened: bool = True) -> Table:
    """Make the table of files and releases.

    Args:
        audit: the audit.
        shortened: whether long names of files lose their first folders, so that the table is 100 columns wide.

    Returns:
        A row for each file that does not fit all releases, one for all other files, and one for all together.
    """
    headings = tuple(labels(audit.releases).values())
    room = max(_WIDTH - sum(max(len(name), len("fits")) + 2 for name in headings), _SHORTEST) if shortened else None
    worse = [
        (file, cells)
        for file in sorted({*audit.files, *(one.file for one in audit.unread)})
        if set(cells := _cells(audit, file)) != {_CELLS["fits"]}
    ]
    total = len({*audit.files, *(one.file for one in audit.unread)}) + audit.other_files
    rows = [(_name(file, room), *cells) for file, cells in worse]
    if others := total - len(worse):
        rows.append(
            (f"{others} {'other ' if worse else ''}file{'s' * (others != 1)}", *[_CELLS["fits"]] * len(headings))
        )
    if len(rows) > 1:
        rows.append(("all together", *_cells(audit, None)))
    title = f"torch releases that the code fits ({_CELLS['breaks']}: it breaks, {_CELLS['cannot tell']}: cannot tell)"
    return Table(title, ("file", *headings), tuple(rows), styles=_STYLES, is_dense=True)


def _cells(audit: Audit, file: str | None) -> list[str]:
    return [_CELLS[audit.verdict(release, file)] for release in audit.releases]


def _name(file: str, room: int | None) -> str:
    """Leave out the first folders of a file until it fits, and the beginning of its name if need be."""
    file = one_line(file)
    if room is None or len(file) <= room:
        return file
    parts = file.split("/")
    shorter = ("/".join(["...", *parts[start:]]) for start in range(1, len(parts)))
    return next((name for name in shorter if len(name) <= room), f"...{file[3 - room :]}")


# --- findings


def _finding_in_text(audit: Audit) -> Iterator[str]:
    for one in audit.findings:
        lines = [f"{one.file}:{one.line}:{one.column}: {one.name}", *_sentences(one, audit)]
        yield "\n    ".join(map(one_line, lines))


def _finding_in_markdown(audit: Audit) -> Iterator[str]:
    for one in audit.findings:
        head = f"- {code(f'{one.file}:{one.line}:{one.column}')}: {code(one.name)}"
        yield "\n  - ".join([head, *map(prose, _sentences(one, audit))])


def _sentences(finding: Finding, audit: Audit) -> Iterator[str]:
    """Yield what is to be said of a finding."""
    when = _WHEN[finding.when]
    if finding.breaks:
        yield f"breaks on {spans(finding.breaks, audit.releases)}, {when}"
    if finding.cannot_tell:
        may = "may give another result" if finding.kind == "changed-behaviour" else "may break"
        why = f"; it depends on: {finding.guard}" if finding.guard and not finding.guarded else ""
        yield f"{may} on {spans(finding.cannot_tell, audit.releases)}, {when}{why}"
    if finding.guarded:
        by = f" by {finding.guard}" if finding.guard else ""
        yield f"guarded{by} on {spans(finding.guarded, audit.releases)}"
    yield finding.message
    if finding.instead:
        yield f"instead: {finding.instead}"
