"""What a comparison of a torch with the ledger says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Verdict: TypeAlias = Literal["known", "needs a look", "breaks"]
Change: TypeAlias = Literal["vanished", "appeared", "signature", "body"]

VERDICTS: Final[tuple[Verdict, ...]] = ("known", "needs a look", "breaks")
"""From harmless to harmful."""


@dataclass(frozen=True)
class Finding:
    """One difference between a torch and the releases that the ledger knows.

    Attributes:
        name: the name as the ledger has it, `module:Class.attribute`.
        change: `vanished`; `appeared` (a new member of a class or module that is watched); `signature`; `body`.
        verdict: `"breaks"` where our code would fail, `"needs a look"` where it might.
        before: the signature in the release compared with; for what appeared, the empty string.
        after: the signature now; for what vanished, the empty string.
        diff: the sources' difference as a unified diff; the empty string where it cannot be shown.
        used_by: which of our functions use the name, as `module.function` inside `compat/`.
        reaches: which public functions of `automodel_mesh.compat` depend on those.
        use: in which way we rely on it.
        remedy: what to do if it goes or changes.
    """

    name: str
    change: Change
    verdict: Verdict
    before: str
    after: str
    diff: str
    used_by: tuple[str, ...]
    reaches: tuple[str, ...]
    use: str
    remedy: str


@dataclass(frozen=True)
class Comparison:
    """A torch compared with the ledger.

    Attributes:
        torch: the version of the torch that was read, such as `"2.15.0"`, `"2.16.0rc1"` or `"2.16.0.dev20261119"`.
        origin: where it was read, in words.
        recorded: whether the ledger has this very release.
        compared_with: the releases of the ledger that it was compared with: itself, or its neighbours.
        names: how many names of the ledger were looked up.
        findings: the differences, the harmful ones first.
        notes: what the reader should know of the comparison itself, such as a diff that could not be made.
    """

    torch: str
    origin: str
    recorded: bool
    compared_with: tuple[str, ...]
    names: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all findings; `"known"` where there are none."""
        return VERDICTS[max((VERDICTS.index(finding.verdict) for finding in self.findings), default=0)]


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Put the harmful findings first; equal ones keep their order."""
    return tuple(sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict)))
