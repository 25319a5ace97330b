"""Compares the sources of a torch with the ledger: what changed, and how serious that is."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from automodel_mesh.tracking.definitions import PROPERTY, Definition, Definitions
from automodel_mesh.tracking.ledger import Entry, Form, Ledger, as_version
from automodel_mesh.tracking.sources import Sources, SourcesError
from automodel_mesh.tracking.uses import public_callers

Verdict: TypeAlias = Literal["known", "needs a look", "breaks"]
Change: TypeAlias = Literal["vanished", "appeared", "signature", "body"]

VERDICTS: Final[tuple[Verdict, ...]] = ("known", "needs a look", "breaks")
"""The least serious first."""


@dataclass(frozen=True)
class Finding:
    """One difference between a torch and the releases in the ledger.

    Attributes:
        name: the name as the ledger has it, `module:Class.attribute`.
        change: `vanished`; `appeared` (a new member of a class or module whose members are compared); `signature`;
            `body`.
        verdict: `"breaks"` if our code would fail, `"needs a look"` if it might.
        before: the signature in the release compared with; empty for what appeared.
        after: the signature now; empty for what vanished.
        diff: the difference of the sources as a unified diff; empty if it cannot be shown.
        used_by: our functions that use the name, as `module.function` inside `compat/`.
        reaches: the public functions of `automodel_mesh.compat` that depend on those.
        use: how we rely on it.
        remedy: what to do if it vanishes or changes.
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
        recorded: whether the ledger has this release itself.
        compared_with: the releases of the ledger that it was compared with: itself, or its neighbours.
        names: how many names of the ledger were looked up.
        findings: the differences, the most serious first.
        notes: remarks on the comparison itself, such as why a diff is missing.
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
        """The most serious verdict of all findings; `"known"` if there are none."""
        return VERDICTS[max((VERDICTS.index(finding.verdict) for finding in self.findings), default=0)]


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, the most serious first; those with the same verdict keep their order."""
    return tuple(sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict)))


def compare(ledger: Ledger, sources: Sources, *, fetch: Callable[[str], Sources]) -> Comparison:
    """Compare a torch with the ledger.

    A recorded release is compared with its own record. Any other torch is compared with the recorded releases just
    before and after it: a name is known if one of them has the same under it.

    Args:
        ledger: the names, and what each recorded release has under them.
        sources: the torch, with the files `ledger.paths`.
        fetch: reads the sources of a recorded release, for the diffs. Called at most once, and only if something
            differs; if it raises `SourcesError`, the comparison has a note instead of diffs.

    Returns:
        The findings, the most serious first.

    Raises:
        LedgerError: the version of the sources is not valid.
        SourcesError: a file of the sources cannot be parsed.
    """
    version = as_version(sources.version)
    releases = ledger.neighbours(version)
    known = [ledger.forms[release] for release in releases]
    entries = [entry for entry in ledger.entries if entry.is_needed_on(version)]
    now = Definitions(sources.files)
    changed = [entry for entry in entries if not _is_known(now.find(entry.name), entry, known)]
    before, notes = _definitions_of(releases[0], fetch) if changed else (Definitions({}), ())
    differences = _Differences(known, {entry.name for entry in ledger.entries}, before, now)
    return Comparison(
        torch=version.public,
        origin=sources.origin,
        recorded=ledger.has(version),
        compared_with=releases,
        names=len(entries),
        findings=worst_first(finding for entry in changed for finding in differences.of(entry)),
        notes=notes,
    )


def _is_known(found: Definition | None, entry: Entry, known: list[Mapping[str, Form]]) -> bool:
    form = found and Form.of(found)
    return form in [forms.get(entry.name) for forms in known]


def _definitions_of(release: str, fetch: Callable[[str], Sources]) -> tuple[Definitions, tuple[str, ...]]:
    """Read the release that diffs are made with, and the notes if that fails."""
    try:
        return Definitions(fetch(release).files), ()
    except SourcesError as error:
        return Definitions({}), (f"no diffs are shown, because torch {release} could not be read: {error}",)


class _Differences:
    """What differs between recorded releases and a torch.

    Args:
        known: what the releases compared with have under each name; the first release is the one that `before` is of.
        named: all names in the ledger.
        before: the sources that diffs are made with.
        now: the sources of the torch.
    """

    def __init__(self, known: list[Mapping[str, Form]], named: set[str], before: Definitions, now: Definitions) -> None:
        self._known = known
        self._named = named
        self._before = before
        self._now = now

    def of(self, entry: Entry) -> Iterator[Finding]:
        """Describe what differs about a name."""
        found = self._now.find(entry.name)
        form = next((forms[entry.name] for forms in self._known if entry.name in forms), None)
        if entry.is_list_of_members:
            yield from self._members(entry, form, found)
        else:
            change, verdict = _judge(form, found)
            yield self._finding(entry, entry.name, change, verdict, form)

    def _members(self, entry: Entry, form: Form | None, found: Definition | None) -> Iterator[Finding]:
        """Describe which members appeared and vanished; those that have an entry of their own are left to it."""
        earlier = set(form.signature.split(", ")) if form else set[str]()
        present = set(found.signature.split(", ")) if found else set[str]()
        for member in sorted(earlier ^ present):
            name = entry.name.removesuffix("*") + member
            if name not in self._named:
                change: Change = "vanished" if member in earlier else "appeared"
                yield self._finding(replace(entry, used_by=()), name, change, "needs a look", None)

    def _finding(self, entry: Entry, name: str, change: Change, verdict: Verdict, form: Form | None) -> Finding:
        before, after = self._before.find(name), self._now.find(name)
        return Finding(
            name=name,
            change=change,
            verdict=verdict,
            before=form.signature if form else before.signature if before else "",
            after=after.signature if after else "",
            diff=_diff(before, after) if before or change == "appeared" else "",
            used_by=entry.used_by,
            reaches=public_callers(entry.used_by),
            use=entry.use,
            remedy=entry.remedy,
        )


def _judge(before: Form | None, after: Definition | None) -> tuple[Change, Verdict]:
    if after is None:
        return "vanished", "breaks"
    if before is None:
        return "appeared", "needs a look"
    if before.signature == after.signature:
        return "body", "needs a look"
    return "signature", "breaks" if breaks_callers(before.signature, after.signature) else "needs a look"


def breaks_callers(before: str, after: str) -> bool:
    """Tell whether a change of signature can make a call fail that was correct before.

    It can if a parameter was removed or renamed, if a parameter without a default was added, if a method became a
    property, and if what was read is now called. A function that became an assigned name may still be called.
    """
    if not before.startswith("("):
        return after.startswith("(")
    if not after.startswith("("):
        return after == PROPERTY
    earlier, now = _parameters(before), _parameters(after)
    return bool(earlier.keys() - now.keys()) or any(required and name not in earlier for name, required in now.items())


def _parameters(signature: str) -> dict[str, bool]:
    """Return the parameters of a signature without `self` and `cls`, and whether each is required."""
    (function,) = ast.parse(f"def _{signature}: ...").body
    given = function.args  # type: ignore[attr-defined]
    positional = [one.arg for one in (*given.posonlyargs, *given.args)]
    required = len(positional) - len(given.defaults)
    found = {name: place < required for place, name in enumerate(positional) if name not in {"self", "cls"}}
    return found | {one.arg: default is None for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)}


def _diff(before: Definition | None, after: Definition | None) -> str:
    old, new = (one.text.splitlines() if one else [] for one in (before, after))
    return "\n".join(difflib.unified_diff(old, new, fromfile="before", tofile="after", lineterm=""))
