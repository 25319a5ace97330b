"""Puts a comparison into Markdown, fit for an issue on GitHub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from automodel_mesh.tracking.findings import Comparison, Finding, worst_first
from automodel_mesh.tracking.wording import (
    CHANGES,
    basis,
    diff_lines,
    meaning,
    one_line,
    signatures,
    summary,
)

ISSUE_LIMIT: Final = 65_536
"""Characters that GitHub allows in the body of an issue."""

REPORT_LIMIT: Final = ISSUE_LIMIT // 2 - 500
"""Characters of a Markdown report: an issue holds that of the newest release, that of the nightly, and a few words."""

_LISTED_FUNCTIONS: Final = 4


@dataclass(frozen=True)
class _Extent:
    """How much of a comparison a Markdown report tells.

    Attributes:
        diff: characters of each diff.
        sections: findings that are described.
        rows: findings that are in the table.
    """

    diff: int
    sections: int
    rows: int


def as_markdown(comparison: Comparison, *, limit: int = REPORT_LIMIT) -> str:
    """Put a comparison into Markdown that fits into an issue on GitHub.

    A report that is too long is shortened, and says so: first the longest diffs, then the descriptions of findings
    from the last on, then the rows of its table. Its second line is a comment with a fingerprint of the findings, which
    stays the same while only the torch's version and place differ, as from one nightly to the next.

    Args:
        comparison: What was found.
        limit: Characters that it may have, at least 1000; by default half of what the body of an issue may have.

    Returns:
        The report, the torch and the verdict in its title, without a newline at its end.

    Raises:
        ValueError: `limit` is less than 1000.
    """
    if limit < 1000:
        raise ValueError(f"limit={limit} is less than 1000 characters, which the title and the verdict may need")
    count = len(comparison.findings)
    whole = {"diff": max((len(finding.diff) for finding in comparison.findings), default=0)}
    extent = _Extent(**whole, sections=count, rows=count)
    text = _compose(comparison, extent)
    for name, most in {**whole, "sections": count, "rows": count}.items():
        if len(text) <= limit:
            break
        text, extent = _longest_that_fits(comparison, extent, name, most, limit)
    return text if len(text) <= limit else f"{text[: limit - 10]}\n\n(cut)"


def _longest_that_fits(
    comparison: Comparison, extent: _Extent, name: str, most: int, limit: int
) -> tuple[str, _Extent]:
    """Lower one number of an extent until the report fits; to 0 if it never does."""

    def compose(number: int) -> str:
        return _compose(comparison, replace(extent, **{name: number}))

    number = _largest(lambda number: len(compose(number)) <= limit, most)
    return compose(number), replace(extent, **{name: number})


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Find a number from 0 to `most` that fits, by halving: the largest, or 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _compose(comparison: Comparison, extent: _Extent) -> str:
    findings = worst_first(comparison.findings)
    blocks = [
        f"# torch {_prose(comparison.torch)}: {comparison.verdict}\n<!-- findings {_fingerprint(findings)} -->",
        f"**{comparison.verdict}**: {summary(comparison)}. {meaning(comparison)}",
        f"Read from {_code(comparison.origin)}; {_prose(basis(comparison))}.",
        *_cuts(findings, extent),
        *(f"> {_prose(note)}" for note in comparison.notes),
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
    touched = _codes(functions[:_LISTED_FUNCTIONS])
    if len(functions) > _LISTED_FUNCTIONS:
        touched += f" and {len(functions) - _LISTED_FUNCTIONS} more"
    cells = (_code(finding.name), CHANGES[finding.change], finding.verdict, touched)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _section(finding: Finding, room: int) -> Iterator[str]:
    yield f"## {_code(finding.name)} {CHANGES[finding.change]} ({finding.verdict})"
    facts = (
        *((label, _code(signature)) for label, signature in signatures(finding)),
        ("used by", _codes(finding.used_by)),
        ("reaches", _codes(finding.reaches)),
        ("relied on", _prose(finding.use)),
        ("what to do", _prose(finding.remedy)),
    )
    if told := [f"- **{label}**: {text}" for label, text in facts if text]:
        yield "\n".join(told)
    if finding.diff:
        yield _details(finding.diff, room)


def _details(diff: str, room: int) -> str:
    """Show a diff, folded up, as far as there is room for it; whole lines only."""
    lines = diff_lines(diff)
    shown = lines if len(diff) <= room else _first_lines(lines, room)
    left_out = [f"{len(lines) - len(shown)} lines of the diff are left out."] if len(shown) < len(lines) else []
    if not shown:
        return left_out[0]
    fence = "`" * max(3, _longest_run("\n".join(shown)) + 1)
    fenced = "\n".join([f"{fence}diff", *shown, fence])
    return "\n\n".join(["<details><summary>diff</summary>", fenced, *left_out, "</details>"])


def _first_lines(lines: list[str], room: int) -> list[str]:
    shown: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        shown.append(line)
    return shown


def _fingerprint(findings: Iterable[Finding]) -> str:
    """Tell findings apart by what changed, without the first lines of diffs, which name the releases."""
    told = [
        [finding.name, finding.change, finding.verdict, finding.before, finding.after, _without_files(finding.diff)]
        for finding in findings
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _without_files(diff: str) -> str:
    return re.sub(r"\A--- .*\n\+\+\+ .*\n", "", diff)


def _code(text: str) -> str:
    """Make a span of code that holds the text, whatever is in it; nothing of nothing."""
    text = one_line(text)
    if not text:
        return ""
    marks = "`" * (_longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{padding}{text}{padding}{marks}"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _prose(text: str) -> str:
    """Keep spans of code as they are, and what else could be taken for Markdown or HTML as plain text."""
    parts = re.split(r"((`+)(?!`).*?(?<!`)\2(?!`))", one_line(text))
    # The pattern's two groups follow each piece between: plain, code, its backticks, plain, ...
    plain = [re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", part) for part in parts[::3]]
    spans = [*parts[1::3], ""]
    return "".join(piece for pair in zip(plain, spans, strict=True) for piece in pair)


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
