"""Says of each use of torch in some code on which releases it is there."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from automodel_mesh.audit.findings import Audit, Finding, Kind, Note
from automodel_mesh.audit.ignoring import apply_ignores
from automodel_mesh.audit.lookup import Release, all_releases, release_of
from automodel_mesh.audit.mesh_calls import behaviours_of
from automodel_mesh.audit.package import Package
from automodel_mesh.audit.reading import Reader
from automodel_mesh.audit.remedies import ours
from automodel_mesh.audit.spans import spans
from automodel_mesh.audit.values import ANY_ERROR, Use

Outcome: TypeAlias = Literal["guarded", "cannot tell", "breaks"]

_RAISED: Final[Mapping[str, frozenset[str]]] = {
    "import": frozenset({"ImportError"}),
    "attribute": frozenset({"AttributeError"}),
    "call": frozenset({"TypeError"}),
    "subscript": frozenset(),
}
"""The errors that a use raises which a release does not have; what a known behaviour raises is not handled."""


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
    using = [one.file for one in package.unread]
    for file, reader in package.readers():
        if reader.uses:
            using.append(file)
        source = package.sources[file]
        left = apply_ignores(source, _Judge(file, source, lookups, package.own_names).findings(reader), file)
        findings += left.findings
        notes += left.notes
    others = len(package.files) - len(using)
    return Audit(tuple(releases), tuple(sorted(using)), tuple(findings), tuple(package.unread), others, tuple(notes))


class _Judge:
    """Judges the uses of torch in a file.

    Args:
        file: its path.
        source: its text.
        releases: the releases to look them up in.
        own_names: the names that the code sets itself.
    """

    def __init__(self, file: str, source: str, releases: Sequence[Release], own_names: Collection[str]) -> None:
        self._file = file
        self._lines = source.split("\n")
        self._own_names = own_names
        self._releases = releases

    def findings(self, reader: Reader) -> list[Finding]:
        """Return what is not the same on all releases, in the order of lines, each once for a line."""
        found = [one for use in reader.uses for one in (*self._missing_name(use), *self._missing_argument(use))]
        for use, behaviour, rule in behaviours_of(reader.uses, reader.tree):
            severities = {release: behaviour.severity(rule, release.name) for release in self._releases}
            outcomes: dict[Release, Outcome] = {
                one: self._outcome(use, one) for one, severity in severities.items() if severity == "breaks"
            }
            for release, severity in severities.items():
                if severity == "differs" and self._outcome(use, release) != "guarded":
                    outcomes[release] = "cannot tell"
            results = {one: behaviour.result(one.name) for one in outcomes}
            message = f"{behaviour.title}: {self._by_result(results)}"
            if outcomes:
                found.append(
                    self._finding(use, "changed-behaviour", use.path, outcomes, message, instead=behaviour.remedy)
                )
        once = {(one.line, one.kind, one.name, one.message): one for one in found}
        return sorted(once.values(), key=lambda one: (one.line, one.column))

    def _missing_name(self, use: Use) -> Iterator[Finding]:
        if use.way in {"call", "subscript"}:
            return
        found = {release: release.find(use.path) for release in self._releases}
        missing = {release: one.path for release, one in found.items() if one.state == "missing"}
        outcomes: dict[Release, Outcome] = {}
        for release, name in missing.items():
            outcome = self._outcome(use, release)
            if _is_anywhere(name) or use.way == "import":
                outcomes[release] = outcome
            elif not self._is_set_elsewhere(use, name):
                outcomes[release] = "cannot tell" if outcome == "breaks" else outcome
        if not outcomes:
            return
        name = min((missing[release] for release in outcomes), key=len)
        defined = sorted({one.path.replace(":", ".") for one in found.values() if one.state == "there"})
        elsewhere = (one for one in defined if all(release.find(one).state == "there" for release in self._releases))
        message = f"{name} is not in torch {self._spans(list(outcomes))}"
        yield self._finding(use, "missing-name", name, outcomes, message, instead=ours(name) or next(elsewhere, ""))

    def _is_set_elsewhere(self, use: Use, name: str) -> bool:
        """Tell whether what no release has may be set by the program, by another package, or by C++ code."""
        owner, _, attribute = use.path.rpartition(".")
        if attribute in self._own_names:
            return True
        return all(":" in one.find(owner).path or one.is_of_others(name) for one in self._releases)

    def _missing_argument(self, use: Use) -> Iterator[Finding]:
        if use.way != "call" or not isinstance(use.node, ast.Call):
            return
        keywords = tuple(one.arg for one in use.node.keywords if one.arg)
        positional = None if any(isinstance(one, ast.Starred) for one in use.node.args) else len(use.node.args)
        refusals: dict[str, list[Release]] = {}
        for release in self._releases:
            if answer := release.refuses(use.path, keywords, positional, bound=use.bound):
                refusals.setdefault(answer, []).append(release)
        for argument, where in refusals.items():
            if len(where) == len(self._releases) and not _takes_anywhere(use, keywords, positional):
                continue  # torch changes the function when it runs, or another is meant
            outcomes: dict[Release, Outcome] = {release: self._outcome(use, release) for release in where}
            what = f"so many arguments ({positional})" if argument == "*" else f"no argument `{argument}`"
            verb = "does not take" if argument == "*" else "takes"
            message = f"{use.path} {verb} {what} in torch {self._spans(where)}"
            name = f"{use.path}({argument})"
            yield self._finding(use, "missing-argument", name, outcomes, message, instead=ours(use.path))

    # --- guards

    def _outcome(self, use: Use, release: Release) -> Outcome:
        values = [guard.condition.on(release) for guard in use.context.guards]
        if False in values or self._handler(use, release):
            return "guarded"
        return "cannot tell" if None in values else "breaks"

    def _handler(self, use: Use, release: Release) -> str:
        """Return the handler of the error that a use raises, in words; empty if there is none."""
        raised = _RAISED[use.way] | ANY_ERROR
        of_a_name = isinstance(use.node, ast.ImportFrom) and release.find(use.path.rpartition(".")[0]).state == "there"
        if use.way == "import" and not of_a_name:
            raised |= {"ModuleNotFoundError"}
        return next((one.text for one in reversed(use.context.handlers) if one.errors & raised), "")

    def _guard(self, use: Use, outcomes: Mapping[Release, Outcome]) -> str:
        """Return what protects a use, in words; of a use of which nothing can be told, what is not understood."""
        for release, outcome in outcomes.items():
            value = {"guarded": False, "cannot tell": None}.get(outcome, True)
            if value is True:
                continue
            found = [guard.text for guard in use.context.guards if guard.condition.on(release) is value]
            return found[-1] if found else self._handler(use, release)
        return ""

    # --- findings

    def _finding(
        self, use: Use, kind: Kind, name: str, outcomes: Mapping[Release, Outcome], message: str, *, instead: str = ""
    ) -> Finding:
        def where(outcome: Outcome) -> tuple[str, ...]:
            return tuple(release.name for release in self._releases if outcomes.get(release) == outcome)

        node = use.node
        return Finding(
            file=self._file,
            line=getattr(node, "lineno", 0),
            column=self._column(node),
            kind=kind,
            name=name,
            breaks=where("breaks"),
            cannot_tell=where("cannot tell"),
            guarded=where("guarded"),
            when=use.context.when,
            message=message,
            guard=self._guard(use, outcomes),
            instead=instead,
        )

    def _column(self, node: ast.AST) -> int:
        """Return the column of a node, from 1, in characters; Python has the number of bytes before it."""
        line, bytes_before = getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
        return len(self._lines[line - 1].encode()[:bytes_before].decode()) + 1

    def _spans(self, some: Sequence[Release]) -> str:
        return spans([one.name for one in some], [one.name for one in self._releases])

    def _by_result(self, results: Mapping[Release, str]) -> str:
        """Write results, each with its releases: `RuntimeError on 2.6 - 2.8, KeyError on 2.9`."""
        releases: dict[str, list[Release]] = {}
        for release, result in results.items():
            releases.setdefault(result, []).append(release)
        return "; ".join(f"{result} on {self._spans(where)}" for result, where in releases.items())


def _is_anywhere(name: str) -> bool:
    """Tell whether any recorded release has a name."""
    return any(release.find(name).state == "there" for release in all_releases())


def _takes_anywhere(use: Use, keywords: tuple[str, ...], positional: int | None) -> bool:
    """Tell whether the function takes the arguments on any recorded release."""
    return any(
        release.signatures(use.path) and not release.refuses(use.path, keywords, positional, bound=use.bound)
        for release in all_releases()
    )
