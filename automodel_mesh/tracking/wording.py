"""The words that all reports of a comparison share."""

from __future__ import annotations

from typing import Final

from automodel_mesh.tracking.findings import Change, Comparison, Finding, Verdict

CHANGES: Final[dict[Change, str]] = {
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
# A file may hold what a terminal takes for a command. The tabulator and the newline stay.
_VISIBLE: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def summary(comparison: Comparison) -> str:
    """Count the names that changed; what appeared is none of those that were looked up."""
    changed = {finding.name for finding in comparison.findings if finding.change != "appeared"}
    appeared = {finding.name for finding in comparison.findings if finding.change == "appeared"}
    counted = f"{len(changed) or 'none'} of {comparison.names} names changed"
    return f"{counted}, {len(appeared)} appeared" if appeared else counted


def basis(comparison: Comparison) -> str:
    """Say what the torch was compared with."""
    if comparison.recorded:
        return f"compared with what the ledger has recorded of {' and '.join(comparison.compared_with)}"
    nearest = "the nearest releases" if len(comparison.compared_with) > 1 else "the nearest release"
    return f"compared with {' and '.join(comparison.compared_with)}, {nearest} in the ledger"


def meaning(comparison: Comparison) -> str:
    """Say what the verdict means for this library."""
    if comparison.verdict == "known" and comparison.findings:
        return "What changed does no harm."
    return _MEANINGS[comparison.verdict]


def signatures(finding: Finding) -> tuple[tuple[str, str], ...]:
    """Return the signatures with their labels; one that did not change is told once."""
    if finding.before == finding.after:
        return (("signature", finding.after),)
    return ("before", finding.before), ("now", finding.after)


def diff_lines(diff: str) -> list[str]:
    """Split a diff at the ends of its lines."""
    # Not splitlines(): a form feed in a source is no end of a line.
    return _visible(diff).removesuffix("\n").split("\n") if diff else []


def one_line(text: str) -> str:
    """Put a text on one line, white space narrowed."""
    return _visible(" ".join(text.split()))


def _visible(text: str) -> str:
    return text.translate(_VISIBLE)
