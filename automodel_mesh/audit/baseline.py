"""Baselines: findings that were there before, and that an audit does not count.

A baseline is a JSON file:

    version        1; raised when a key is renamed or removed, not when one is added
    findings       one object for each finding, sorted:
        file, kind, name, breaks, cannot_tell    as `automodel_mesh.audit.findings.Finding` describes them
        count      how many findings in the file are like this

Lines are not in it, so that code above a finding can change.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from automodel_mesh.audit.errors import AuditError
from automodel_mesh.audit.findings import Finding

VERSION: Final = 1


class Entry(NamedTuple):
    """What a baseline knows of a finding."""

    file: str
    kind: str
    name: str
    breaks: tuple[str, ...]
    cannot_tell: tuple[str, ...]

    def covers(self, finding: Finding) -> bool:
        """Return whether the finding is this one, and not worse on any release than it was."""
        return (
            (self.file, self.kind, self.name) == (finding.file, finding.kind, finding.name)
            and set(finding.breaks) <= set(self.breaks)
            and set(finding.cannot_tell) <= {*self.breaks, *self.cannot_tell}
        )


@dataclass(frozen=True)
class Baseline:
    """Findings that do not count, each with how many there are.

    Attributes:
        counts: the number of findings like each entry.
    """

    counts: Mapping[Entry, int]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Baseline:
        """Make a baseline of all findings that the code does not take care of."""
        counts = Counter(
            Entry(one.file, one.kind, one.name, one.breaks, one.cannot_tell) for one in findings if not one.is_harmless
        )
        return cls(counts)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline.

        Args:
            path: its file.

        Returns:
            The baseline.

        Raises:
            AuditError: the file cannot be read, or is no baseline of this version.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            version, entries = document["version"], document["findings"]
            counts = {_entry(one): int(one["count"]) for one in entries} if version == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no baseline"
            raise AuditError(f"{path} cannot be read: {reason}; make it with --write-baseline {path}") from error
        if version != VERSION:
            raise AuditError(
                f"{path} has version {version!r}, this is for {VERSION}: make it anew with --write-baseline"
            )
        return cls(counts)

    def write(self, path: Path) -> None:
        """Write the baseline; the same findings give the same text.

        Args:
            path: its file, which may exist.

        Raises:
            AuditError: the file cannot be written.
        """
        findings = [{**entry._asdict(), "count": count} for entry, count in sorted(self.counts.items())]
        try:
            path.write_text(json.dumps({"version": VERSION, "findings": findings}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise AuditError(f"{path} cannot be written: {error.strerror}; give another file") from error

    def new(self, findings: Iterable[Finding]) -> tuple[tuple[Finding, ...], Baseline]:
        """Tell the findings that count from those that the baseline has.

        Args:
            findings: all findings.

        Returns:
            Those that are not in the baseline, or worse than there, or more than there; harmless ones too. And what is
            left of the baseline: what no finding is like.
        """
        left = Counter(self.counts)
        new: list[Finding] = []
        for finding in findings:
            fitting = (entry for entry in left if left[entry] and entry.covers(finding))
            # The entry that allows least, so that the others are left for findings that break on more releases.
            entry = min(fitting, key=lambda one: len(one.breaks) + len(one.cannot_tell), default=None)
            if entry is None or finding.is_harmless:
                new.append(finding)
            else:
                left[entry] -= 1
        return tuple(new), Baseline(+left)

    def within(self, could_occur: Callable[[Entry], bool]) -> Baseline:
        """Return the part of the baseline whose entries fulfil a condition."""
        return Baseline({entry: count for entry, count in self.counts.items() if could_occur(entry)})


def _entry(written: Any) -> Entry:
    """Read an entry; raise `KeyError`, `TypeError` or `ValueError` if it is none."""
    file, kind, name = (written[key] for key in ("file", "kind", "name"))
    breaks, cannot_tell = (cast("list[str]", written[key]) for key in ("breaks", "cannot_tell"))
    if not all(isinstance(text, str) for text in (file, kind, name, *breaks, *cannot_tell)):
        raise TypeError
    return Entry(file, kind, name, tuple(breaks), tuple(cannot_tell))
