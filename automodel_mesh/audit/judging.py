"""Says for each use of torch in some code on which releases it is there, and for each file on which releases it fits."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

from automodel_mesh.audit.findings import Audit, Finding, Kind, Note
from automodel_mesh.audit.ignoring import apply_ignores
from automodel_mesh.audit.lookup import Release, refused, release_of
from automodel_mesh.audit.package import Package
from automodel_mesh.audit.torch_names import CLASS
from automodel_mesh.audit.values import ANY_ERROR, Use

Outcome: TypeAlias = Literal["fits", "guarded", "cannot tell", "breaks"]

_RAISED: Final = {"import": {"ImportError"}, "attribute": {"AttributeError"}, "call": {"TypeError"}}


def audit(paths: Sequence[Path], releases: Sequence[str]) -> Audit:
    """Read Python code, and look its uses of torch up in some releases.

    Args:
        paths: files and folders.
        releases: recorded releases, such as `"2.9.1"`, oldest first.

    Returns:
        What was found.
    """
    package = Package(paths)
    lookups = [release_of(one) for one in releases]
    findings: list[Finding] = []
    notes: list[Note] = []
    using: list[str] = []
    for file, reader in package.readers():
        if reader.uses:
            using.append(file)
        found = apply_ignores(package.sources[file], list(_findings(file, reader.uses, lookups)), file)
        findings += found.findings
        notes += found.notes
    using += [one.file for one in package.unread]
    return Audit(
        tuple(releases),
        tuple(sorted(using)),
        tuple(findings),
        tuple(package.unread),
        len(package.files) - len(using),
        tuple(notes),
    )


def _findings(file: str, uses: Sequence[Use], releases: Sequence[Release]) -> Iterator[Finding]:
    seen: set[tuple[int, str, str]] = set()
    for use in sorted(uses, key=lambda one: (one.node.lineno, one.node.col_offset)):
        for finding in (*_missing_name(file, use, releases), *_missing_argument(file, use, releases)):
            key = (finding.line, finding.kind, finding.name)
            if key not in seen:
                seen.add(key)
                yield finding


def _missing_name(file: str, use: Use, releases: Sequence[Release]) -> Iterator[Finding]:
    found = {release: release.find(use.path) for release in releases}
    missing = [release for release, one in found.items() if one.state == "missing"]
    if use.way == "call" or use.way == "subscript" or not missing:
        return
    names = {found[release].path for release in missing}
    nowhere = len(missing) == len(releases)
    if nowhere and use.way != "import":
        of_class = all(":" in release.find(use.path.rpartition(".")[0]).path for release in releases)
        if of_class or all(release.is_of_others(found[release].path) for release in missing):
            return  # set by this program, or by another package
    outcomes = {release: _outcome(use, release, use.way) for release in missing}
    if nowhere and use.way == "attribute":
        outcomes = {one: "cannot tell" if outcome == "breaks" else outcome for one, outcome in outcomes.items()}
    yield _finding(file, use, "missing-name", min(names, key=len), outcomes)


def _missing_argument(file: str, use: Use, releases: Sequence[Release]) -> Iterator[Finding]:
    if use.way != "call" or not isinstance(use.node, ast.Call):
        return
    call = use.node
    keywords = [one.arg for one in call.keywords if one.arg]
    positional = None if any(isinstance(one, ast.Starred) for one in call.args) else len(call.args)
    answers: dict[tuple[tuple[str, ...], bool], str] = {}
    refusals: dict[str, list[Release]] = {}
    for release in releases:
        signatures = release.signatures(use.path)
        bound = use.bound or release.find(use.path).entry.startswith(CLASS)
        if (signatures, bound) not in answers:  # most releases have the same
            answers[signatures, bound] = refused(signatures, keywords, positional, bound=bound)
        answer = answers[signatures, bound]
        if answer:
            refusals.setdefault(answer, []).append(release)
    for argument, where in refusals.items():
        if len(where) == len(releases):
            continue  # torch changes the function when it runs, or another is meant
        outcomes = {release: _outcome(use, release, "call") for release in where}
        yield _finding(file, use, "missing-argument", f"{use.path}({argument})", outcomes)


def _outcome(use: Use, release: Release, way: str) -> Outcome:
    values = [guard.condition.on(release) for guard in use.context.guards]
    if False in values or _handler(use, release, way) is not None:
        return "guarded"
    return "cannot tell" if None in values else "breaks"


def _handler(use: Use, release: Release, way: str) -> str | None:
    """Return the handler of the error that a use raises, in words."""
    raised = _RAISED[way] | ANY_ERROR
    if way == "import" and release.find(use.path.rpartition(".")[0]).state == "missing":
        raised |= {"ModuleNotFoundError"}
    handler = next((one for one in reversed(use.context.handlers) if one.errors & raised), None)
    return None if handler is None else handler.text


def _finding(file: str, use: Use, kind: Kind, name: str, outcomes: dict[Release, Outcome]) -> Finding:
    where = partial(_where, outcomes)
    return Finding(
        file=file,
        line=use.node.lineno,
        column=use.node.col_offset + 1,
        kind=kind,
        name=name,
        breaks=where("breaks"),
        cannot_tell=where("cannot tell"),
        guarded=where("guarded"),
        when=use.context.when,
        message="",
        guard=_guard(use, outcomes),
    )


def _where(outcomes: dict[Release, Outcome], outcome: Outcome) -> tuple[str, ...]:
    return tuple(release.name for release, one in outcomes.items() if one == outcome)


def _guard(use: Use, outcomes: dict[Release, Outcome]) -> str:
    release = next((release for release, one in outcomes.items() if one == "guarded"), None)
    if release is None:
        return ""
    false = next((guard.text for guard in use.context.guards if guard.condition.on(release) is False), None)
    return false or _handler(use, release, use.way if use.way in _RAISED else "call") or ""
