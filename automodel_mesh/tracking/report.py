"""Reports of a comparison: JSON for programs, text for terminals, and Markdown for an issue on GitHub."""

from __future__ import annotations

import hashlib
import json
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Final, Literal, TypeAlias

from automodel_mesh.markdown import code, codes, longest_run, prose
from automodel_mesh.terminal import one_line, visible
from automodel_mesh.tracking.comparison import VERDICTS, Change, Comparison, Finding, Verdict, worst_first

JSON_SCHEMA: Final = 1

ISSUE_LIMIT: Final = 65_536
"""Characters that GitHub allows in the body of an issue."""

REPORT_LIMIT: Final = ISSUE_LIMIT // 2 - 500
"""Characters of a Markdown report: an issue holds that of the newest release, that of the nightly, and a few words."""

LineKind: TypeAlias = Literal["plain", "name", "added", "removed", "hunk", "breaks", "needs a look", "known"]

_LABEL_WIDTH: Final = len("what to do  ")
_NARROWEST: Final = 40
_LISTED_FUNCTIONS: Final = 4

_CHANGES: Final[dict[Change, str]] = {
    "vanished": "vanished",
    "appeared": "appeared",
    "signature": "changed its signature",
    "body": "changed its body",
}
_MEANINGS: Final[dict[Verdict, str]] = {
    "breaks": "automodel-mesh fails on it as it is.",
    "needs a look": "automodel-mesh may behave differently on it.",
    "known": "Nothing that automodel-mesh relies on changed.",
}


# --- JSON


def as_document(comparison: Comparison) -> dict[str, Any]:
    """Make the JSON document of a comparison.

    Args:
        comparison: What was found.

    Returns:
        A dict of types that JSON has: `schema`, `verdict` and the fields of `Comparison`, with those of `Finding` in
        `findings`, the most serious first. `automodel_mesh.tracking.command` describes all keys.
    """
    ordered = replace(comparison, findings=worst_first(comparison.findings))
    return {"schema": JSON_SCHEMA, "verdict": comparison.verdict, **asdict(ordered, dict_factory=_with_lists)}


def _with_lists(values: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


# --- words that text and Markdown share


def _summary(comparison: Comparison) -> str:
    """Count the names that changed; what appeared is not among those that were looked up."""
    changed = {finding.name for finding in comparison.findings if finding.change != "appeared"}
    appeared = {finding.name for finding in comparison.findings if finding.change == "appeared"}
    counted = f"{len(changed) or 'none'} of {comparison.names} names changed"
    return f"{counted}, {len(appeared)} appeared" if appeared else counted


def _basis(comparison: Comparison) -> str:
    """Say what the torch was compared with."""
    releases = " and ".join(comparison.compared_with)
    if comparison.recorded:
        return f"compared with what the ledger has recorded of {releases}"
    nearest = "the nearest releases" if len(comparison.compared_with) > 1 else "the nearest release"
    return f"compared with {releases}, {nearest} in the ledger"


def _meaning(comparison: Comparison) -> str:
    """Say what the verdict means for this library."""
    if comparison.verdict == "known" and comparison.findings:
        return "What changed does not affect automodel-mesh."
    return _MEANINGS[comparison.verdict]


def _signatures(finding: Finding) -> tuple[tuple[str, str], ...]:
    """Return the signatures with their labels; one signature if it did not change."""
    if finding.before == finding.after:
        return (("signature", finding.after),)
    return ("before", finding.before), ("now", finding.after)


def _diff_lines(diff: str) -> list[str]:
    # Not splitlines(), which splits at form feeds too.
    return visible(diff).removesuffix("\n").split("\n") if diff else []


# --- text


@dataclass(frozen=True)
class Line:
    """A line of the text report.

    Attributes:
        kind: what it is, which decides its colour: a verdict, a finding's name, a kind of line of a diff, or plain.
        text: the line, without a newline.
    """

    kind: LineKind
    text: str


def as_text(comparison: Comparison, *, width: int | None = None) -> str:
    """Make the text report of a comparison.

    Args:
        comparison: What was found.
        width: Columns to wrap sentences at, at least 40 of them; diffs are never wrapped. By default nothing is.

    Returns:
        The report, with the verdict in its first line and without a newline at its end.
    """
    return "\n".join(line.text for line in as_lines(comparison, width=width))


def as_lines(comparison: Comparison, *, width: int | None = None) -> Iterator[Line]:
    """Yield the lines of `as_text`, each with its kind.

    Args:
        comparison: What was found.
        width: As for `as_text`.

    Yields:
        The lines, in order.
    """
    torch, origin = one_line(comparison.torch), one_line(comparison.origin)
    yield Line(comparison.verdict, f"torch {torch} (from {origin}): {comparison.verdict} - {_summary(comparison)}")
    for sentence in (f"{_basis(comparison)}.", _meaning(comparison)):
        yield from _plain(sentence, width)
    for note in comparison.notes:
        yield from _plain(f"note: {note}", width, hanging="      ")
    for verdict in reversed(VERDICTS):
        findings = [finding for finding in comparison.findings if finding.verdict == verdict]
        if findings:
            yield Line("plain", "")
            yield Line(verdict, f"{verdict.upper()} ({len(findings)})")
        for finding in findings:
            yield Line("plain", "")
            yield from _finding_lines(finding, width)


def _finding_lines(finding: Finding, width: int | None) -> Iterator[Line]:
    yield Line("name", f"{one_line(finding.name)}  {_CHANGES[finding.change]}")
    for label, text in (
        *_signatures(finding),
        ("used by", ", ".join(finding.used_by)),
        ("reaches", ", ".join(finding.reaches)),
        ("relied on", finding.use),
        ("what to do", finding.remedy),
    ):
        if text:
            yield from _plain(text, width, first=f"    {label:{_LABEL_WIDTH}}", hanging=" " * (4 + _LABEL_WIDTH))
    kinds: dict[str, LineKind] = {"+": "added", "-": "removed", "@": "hunk"}
    for line in _diff_lines(finding.diff):
        yield Line(kinds.get(line[:1], "plain"), f"    {line}")


def _plain(text: str, width: int | None, *, first: str = "", hanging: str = "") -> Iterator[Line]:
    """Yield a sentence as lines, the first with a label, the others with a hanging indent."""
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


# --- Markdown


@dataclass(frozen=True)
class _Extent:
    """How much of a comparison a Markdown report shows.

    Attributes:
        diff: characters of each diff.
        sections: findings that are described.
        rows: findings in the table.
    """

    diff: int
    sections: int
    rows: int


def as_markdown(comparison: Comparison, *, limit: int = REPORT_LIMIT) -> str:
    """Make the Markdown report of a comparison, short enough for an issue on GitHub.

    A report that is too long is shortened, and says so: first the longest diffs, then the descriptions of the last
    findings, then the last rows of its table. Its second line is a comment with a fingerprint of the findings, which
    stays the same while only the torch's version and origin change, as from one nightly to the next.

    Args:
        comparison: What was found.
        limit: The most characters, at least 1000; by default half of what the body of an issue may have.

    Returns:
        The report, with the torch and the verdict in its title and without a newline at its end.

    Raises:
        ValueError: `limit` is less than 1000.
    """
    if limit < 1000:
        raise ValueError(f"limit={limit} is less than 1000 characters, which the title and the verdict may need")
    count = len(comparison.findings)
    longest = max((len(finding.diff) for finding in comparison.findings), default=0)
    extent = _Extent(diff=longest, sections=count, rows=count)
    for name in ("diff", "sections", "rows"):
        if len(_compose(comparison, extent)) > limit:
            extent = _reduced(comparison, extent, name, limit)
    text = _compose(comparison, extent)
    return text if len(text) <= limit else f"{text[: limit - 10]}\n\n(cut)"


def _reduced(comparison: Comparison, extent: _Extent, name: str, limit: int) -> _Extent:
    """Reduce one number of an extent until the report fits; to 0 if it never does."""

    def reduced_to(number: int) -> _Extent:
        return replace(extent, **{name: number})

    numbers = range(1, getattr(extent, name) + 1)
    return reduced_to(bisect_right(numbers, limit, key=lambda number: len(_compose(comparison, reduced_to(number)))))


def _compose(comparison: Comparison, extent: _Extent) -> str:
    findings = worst_first(comparison.findings)
    blocks = [
        f"# torch {prose(comparison.torch)}: {comparison.verdict}\n<!-- findings {_fingerprint(findings)} -->",
        f"**{comparison.verdict}**: {_summary(comparison)}. {_meaning(comparison)}",
        f"Read from {code(comparison.origin)}; {prose(_basis(comparison))}.",
        *_cuts(findings, extent),
        *(f"> {prose(note)}" for note in comparison.notes),
        *_table(findings[: extent.rows]),
    ]
    for finding in findings[: extent.sections]:
        blocks += _section(finding, extent.diff)
    return "\n\n".join(blocks)


def _cuts(findings: tuple[Finding, ...], extent: _Extent) -> Iterator[str]:
    """Say what was left out to make the report short enough."""
    cuts: list[str] = []
    if cut := sum(len(finding.diff) > extent.diff for finding in findings[: extent.sections]):
        cuts.append(f"{cut} diff{'s are' if cut > 1 else ' is'} cut")
    if missing := len(findings) - extent.sections:
        cuts.append(f"{missing} of {len(findings)} findings are not described")
    if missing := len(findings) - extent.rows:
        cuts.append(f"{missing} of {len(findings)} findings are not in the table")
    if cuts:
        yield f"*Shortened to fit into an issue: {', '.join(cuts)}. `automodel-mesh track` prints all as text.*"


def _table(findings: tuple[Finding, ...]) -> Iterator[str]:
    if findings:
        header = ["| name | what happened | verdict | functions touched |", "|---|---|---|---|"]
        yield "\n".join([*header, *map(_row, findings)])


def _row(finding: Finding) -> str:
    functions = list(dict.fromkeys((*finding.used_by, *finding.reaches)))
    touched = codes(functions[:_LISTED_FUNCTIONS])
    if len(functions) > _LISTED_FUNCTIONS:
        touched += f" and {len(functions) - _LISTED_FUNCTIONS} more"
    cells = (code(finding.name), _CHANGES[finding.change], finding.verdict, touched)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(finding: Finding, room: int) -> Iterator[str]:
    yield f"## {code(finding.name)} {_CHANGES[finding.change]} ({finding.verdict})"
    facts = (
        *((label, code(signature)) for label, signature in _signatures(finding)),
        ("used by", codes(finding.used_by)),
        ("reaches", codes(finding.reaches)),
        ("relied on", prose(finding.use)),
        ("what to do", prose(finding.remedy)),
    )
    if items := [f"- **{label}**: {text}" for label, text in facts if text]:
        yield "\n".join(items)
    if finding.diff:
        yield _details(finding.diff, room)


def _details(diff: str, room: int) -> str:
    """Show as many whole lines of a diff as there is room for, folded up."""
    lines = _diff_lines(diff)
    shown = lines if len(diff) <= room else _first_lines(lines, room)
    left_out = [f"{len(lines) - len(shown)} lines of the diff are left out."] if len(shown) < len(lines) else []
    if not shown:
        return left_out[0]
    fence = "`" * max(3, longest_run("\n".join(shown)) + 1)
    fenced = "\n".join([f"{fence}diff", *shown, fence])
    return "\n\n".join(["<details><summary>diff</summary>", fenced, *left_out, "</details>"])


def _first_lines(lines: list[str], room: int) -> list[str]:
    sizes = accumulate(len(line) + 1 for line in lines)
    return [line for line, size in zip(lines, sizes, strict=True) if size <= room]


def _fingerprint(findings: Iterable[Finding]) -> str:
    """Hash what changed, without what the ledger says about it."""
    changes = [
        [finding.name, finding.change, finding.verdict, finding.before, finding.after, finding.diff]
        for finding in findings
    ]
    return hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:16]
