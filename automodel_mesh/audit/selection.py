"""Reads the argument of `--releases`: which of the recorded torch releases an audit is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from automodel_mesh.audit.errors import AuditError
from automodel_mesh.audit.spans import spans

NEWEST: Final = "newest"
_OPERATORS: Final = ("<", ">", "=", "!", "~")


def select(text: str, recorded: Sequence[str]) -> tuple[str, ...]:
    """Choose among the recorded releases.

    Args:
        text: `"newest"`, releases and spans of releases with commas between, such as `"2.6-2.8,2.11"`, where `"2.9"`
            means all recorded patches of 2.9, or a specifier as in a requirement, such as `">=2.8,<2.12"`.
        recorded: all releases, full versions, oldest first.

    Returns:
        The chosen ones, oldest first.

    Raises:
        AuditError: `text` is none of these, or names a release that is not recorded, or no release.
    """
    if text.lstrip().startswith(_OPERATORS):
        chosen = _specified(text, recorded)
    else:
        chosen = {release for part in text.split(",") for release in _part(part.strip(), recorded)}
    return tuple(release for release in recorded if release in chosen)


def _specified(text: str, recorded: Sequence[str]) -> set[str]:
    try:
        chosen = set(SpecifierSet(text).filter(recorded))
    except InvalidSpecifier:
        raise AuditError(f"{text!r} is no specifier of versions: write one such as '>=2.8' or '>=2.8,<2.12'") from None
    if not chosen:
        raise AuditError(f"{text!r} has none of the recorded torch releases {spans(recorded, recorded)}")
    return chosen


def _part(part: str, recorded: Sequence[str]) -> Sequence[str]:
    """Return the releases of a part between commas: `newest`, a release, or a span of them."""
    if part == NEWEST:
        return recorded[-1:]
    first, dash, last = (end.strip() for end in part.partition("-"))
    start = recorded.index(_named(first, recorded)[0])
    if not dash:
        return _named(first, recorded)
    end = recorded.index(_named(last, recorded)[-1])
    if end < start:
        raise AuditError(f"{part!r}: write the older release first, as in '{last}-{first}'")
    return recorded[start : end + 1]


def _named(name: str, recorded: Sequence[str]) -> list[str]:
    """Return the recorded releases that a name such as `2.9` or `2.9.1` means."""
    found = [release for release in recorded if release == name or release.startswith(f"{name}.")]
    if not found or name.count(".") == 0:
        raise AuditError(
            f"{name!r} is not a recorded torch release: give some of {spans(recorded, recorded)}, such as '2.6-2.9', "
            "'2.9,2.11', 'newest' or '>=2.8'"
        )
    return found
