"""Puts a comparison into text for terminals, and into JSON for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from automodel_mesh.tracking.findings import VERDICTS, Comparison, Finding, Verdict, worst_first
from automodel_mesh.tracking.wording import (
    CHANGES,
    basis,
    diff_lines,
    meaning,
    one_line,
    signatures,
    summary,
)

JSON_SCHEMA: Final = 1

LineKind: TypeAlias = Literal["plain", "name", "added", "removed", "hunk", "breaks", "needs a look", "known"]

_LABEL_WIDTH: Final = len("what to do  ")
_NARROWEST: Final = 40


@dataclass(frozen=True)
class Line:
    """A line of the text report.

    Attributes:
        kind: what it is, for whoever colours it: a verdict, a finding's name, a kind of line of a diff, or plain.
        text: the line, without a newline.
    """

    kind: LineKind
    text: str


# --- JSON


def as_document(comparison: Comparison) -> dict[str, Any]:
    """Make the JSON document of a comparison.

    Args:
        comparison: What was found.

    Returns:
        A dict of what JSON can hold: `schema`, `verdict` and the fields of `Comparison`, with those of `Finding` in
        `findings`, breaks first. See `automodel_mesh.tracking.command` for the whole schema.
    """
    document = {name: value for name, value in _as_object(comparison).items() if name not in {"findings", "notes"}}
    return {
        "schema": JSON_SCHEMA,
        "verdict": comparison.verdict,
        **document,
        "findings": [_as_object(finding) for finding in worst_first(comparison.findings)],
        "notes": list(comparison.notes),
    }


def _as_object(record: Comparison | Finding) -> dict[str, Any]:
    values = ((field.name, getattr(record, field.name)) for field in fields(record))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


# --- text


def as_text(comparison: Comparison, *, width: int | None = None) -> str:
    """Put a comparison into text.

    Args:
        comparison: What was found.
        width: Columns to wrap sentences at, at least 40 of them; diffs are never wrapped. By default nothing is.

    Returns:
        The report, the verdict in its first line, without a newline at its end.
    """
    return "\n".join(line.text for line in as_lines(comparison, width=width))


def as_lines(comparison: Comparison, *, width: int | None = None) -> Iterator[Line]:
    """Yield the lines of `as_text`, each with what it is.

    Args:
        comparison: What was found.
        width: As for `as_text`.

    Yields:
        The lines, in order.
    """
    torch, origin = one_line(comparison.torch), one_line(comparison.origin)
    yield Line(comparison.verdict, f"torch {torch} (from {origin}): {comparison.verdict} - {summary(comparison)}")
    for sentence in (f"{basis(comparison)}.", meaning(comparison)):
        yield from _plain(sentence, width)
    for note in comparison.notes:
        yield from _plain(f"note: {note}", width, hanging="      ")
    for verdict, findings in _by_verdict(comparison):
        yield Line("plain", "")
        yield Line(verdict, f"{verdict.upper()} ({len(findings)})")
        for finding in findings:
            yield Line("plain", "")
            yield from _finding_lines(finding, width)


def _finding_lines(finding: Finding, width: int | None) -> Iterator[Line]:
    yield Line("name", f"{one_line(finding.name)}  {CHANGES[finding.change]}")
    for label, text in (
        *signatures(finding),
        ("used by", ", ".join(finding.used_by)),
        ("reaches", ", ".join(finding.reaches)),
        ("relied on", finding.use),
        ("what to do", finding.remedy),
    ):
        if text:
            yield from _plain(text, width, first=f"    {label:{_LABEL_WIDTH}}", hanging=" " * (4 + _LABEL_WIDTH))
    for line in diff_lines(finding.diff):
        yield Line(_kind_in_diff(line), f"    {line}")


def _plain(text: str, width: int | None, *, first: str = "", hanging: str = "") -> Iterator[Line]:
    """Yield a sentence as lines, the first with its label, the others below its beginning."""
    text = one_line(text)
    if width is None:
        yield Line("plain", first + text)
        return
    wrapped = textwrap.wrap(
        text,
        max(width, _NARROWEST),
        initial_indent=first,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from (Line("plain", line) for line in wrapped)


def _kind_in_diff(line: str) -> LineKind:
    kinds: dict[str, LineKind] = {"+": "added", "-": "removed", "@": "hunk"}
    return kinds.get(line[:1], "plain")


def _by_verdict(comparison: Comparison) -> Iterator[tuple[Verdict, tuple[Finding, ...]]]:
    for verdict in reversed(VERDICTS):
        if findings := tuple(finding for finding in comparison.findings if finding.verdict == verdict):
            yield verdict, findings
