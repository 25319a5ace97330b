"""Compares the sources of a torch with the ledger."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from automodel_mesh.tracking.callers import public_callers
from automodel_mesh.tracking.definitions import PROPERTY, Definition, Definitions
from automodel_mesh.tracking.findings import Change, Comparison, Finding, Verdict, worst_first
from automodel_mesh.tracking.ledger import Entry, Form, Ledger, as_version
from automodel_mesh.tracking.sources import Sources, SourcesError


def compare(ledger: Ledger, sources: Sources, *, fetch: Callable[[str], Sources]) -> Comparison:
    """Tell what of the ledger's names a torch has changed.

    A recorded release is compared with what the ledger has of it. Any other torch is compared with the recorded
    releases just before and after it: a name is known if it is as one of them has it.

    Args:
        ledger: what is known.
        sources: the torch to look at, with the files `ledger.paths`.
        fetch: reads the sources of a release of the ledger, to show differences with. Called at most once, and only
            where something differs; a `SourcesError` of it becomes a note.

    Returns:
        The findings, the harmful ones first.

    Raises:
        LedgerError: the version of the sources is not one.
        SourcesError: a file of the sources cannot be parsed.
    """
    version = as_version(sources.version)
    known = ledger.neighbours(version)
    entries = [entry for entry in ledger.entries if entry.is_needed_on(version)]
    now = Definitions(sources.files)
    changed = [entry for entry in entries if not _is_known(now.find(entry.name), ledger, known, entry)]
    before, notes = _before(known[0], fetch) if changed else (Definitions({}), ())
    difference = _Difference(ledger, known, before, now)
    findings = [finding for entry in changed for finding in difference.of(entry)]
    return Comparison(
        torch=version.public,
        origin=sources.origin,
        recorded=ledger.has(version),
        compared_with=known,
        names=len(entries),
        findings=worst_first(findings),
        notes=notes,
    )


def _is_known(found: Definition | None, ledger: Ledger, known: Collection[str], entry: Entry) -> bool:
    form = found and Form.of(found)
    return form in [ledger.forms[release].get(entry.name) for release in known]


def _before(release: str, fetch: Callable[[str], Sources]) -> tuple[Definitions, tuple[str, ...]]:
    """Read the release that differences are shown against."""
    try:
        return Definitions(fetch(release).files), ()
    except SourcesError as error:
        return Definitions({}), (f"differences in the text are not shown, for want of torch {release}: {error}",)


class _Difference:
    """What is different between a release of the ledger and a torch."""

    def __init__(self, ledger: Ledger, known: tuple[str, ...], before: Definitions, now: Definitions) -> None:
        self._forms = [ledger.forms[release] for release in known]
        self._named = {entry.name for entry in ledger.entries}
        self._before = before
        self._now = now

    def of(self, entry: Entry) -> list[Finding]:
        """Describe what is different about an entry."""
        found = self._now.find(entry.name)
        form = next((forms[entry.name] for forms in self._forms if entry.name in forms), None)
        if entry.is_list_of_members:
            return list(self._members(entry, form, found))
        if found is None or form is None:
            change: Change = "vanished" if found is None else "appeared"
            return [self._finding(entry, entry.name, change, "breaks" if found is None else "needs a look", form)]
        if form.signature == found.signature:
            return [self._finding(entry, entry.name, "body", "needs a look", form)]
        verdict: Verdict = "breaks" if breaks_callers(form.signature, found.signature) else "needs a look"
        return [self._finding(entry, entry.name, "signature", verdict, form)]

    def _members(self, entry: Entry, form: Form | None, found: Definition | None) -> Iterator[Finding]:
        """Describe which members came and went; those that have an entry of their own speak for themselves."""
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


def breaks_callers(before: str, after: str) -> bool:
    """Tell whether a change of signature can make a call fail that was right before.

    It can where a parameter is gone or has got another name, where one came that has no default, where a method became
    a property, and where what was read is called now. What a name became that is assigned cannot be told.
    """
    if not before.startswith("("):
        return after.startswith("(")
    if not after.startswith("("):
        return after == PROPERTY
    earlier, now = _parameters(before), _parameters(after)
    return bool(earlier.keys() - now.keys()) or any(needed and name not in earlier for name, needed in now.items())


def _parameters(signature: str) -> dict[str, bool]:
    """Return the parameters of a signature, but for the instance, and whether each must be given."""
    (function,) = ast.parse(f"def _{signature}: ...").body
    given = function.args  # type: ignore[attr-defined]
    positional = [one.arg for one in (*given.posonlyargs, *given.args)]
    needed = len(positional) - len(given.defaults)
    found = {name: place < needed for place, name in enumerate(positional) if name not in {"self", "cls"}}
    return found | {one.arg: default is None for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)}


def _diff(before: Definition | None, after: Definition | None) -> str:
    old, new = (one.text.splitlines() if one else [] for one in (before, after))
    return "\n".join(difflib.unified_diff(old, new, fromfile="before", tofile="after", lineterm=""))
