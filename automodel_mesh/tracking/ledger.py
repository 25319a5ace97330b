"""The ledger of the private torch names that `compat/` relies on.

It has two files beside that code. `ledger.toml` is written by people: which names, since when and until when, which of
our functions use them and how, and what to do if they vanish. `ledger.json` is written by `automodel-mesh track
--record`: what each release has under these names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packaging.version import Version

from automodel_mesh.tracking.definitions import Definition, Definitions, candidate_paths
from automodel_mesh.tracking.sources import Sources

if TYPE_CHECKING:
    from importlib.abc import Traversable

ENTRIES_FILE: Final = "ledger.toml"
FORMS_FILE: Final = "ledger.json"


class LedgerError(ValueError):
    """The ledger cannot be read or written, or a torch cannot be recorded; the message says why and what to do."""


@dataclass(frozen=True)
class Form:
    """What a release has under a name: its signature and the fingerprint of its text (see `definitions.py`)."""

    signature: str
    fingerprint: str

    @classmethod
    def of(cls, definition: Definition) -> Form:
        """Return the form of a definition."""
        return cls(definition.signature, definition.fingerprint)


@dataclass(frozen=True)
class Entry:
    """A name of torch that our code relies on.

    Attributes:
        name: where it is defined, in the notation of `definitions.py`.
        use: how we rely on it.
        remedy: what to do if it vanishes or changes.
        used_by: our functions that use it, as `module.function` inside `compat/`.
        through: the name that they use instead, if they do not use it directly: a public function which calls it.
        since: the first release it is needed on; `None` for the oldest supported one.
        until: the first release it is not needed on any more; `None` if it still is.
    """

    name: str
    use: str
    remedy: str
    used_by: tuple[str, ...]
    through: str | None = None
    since: str | None = None
    until: str | None = None

    @property
    def identifier(self) -> str:
        """The last part, which is the name in code; for a list of members, that of the class or module."""
        parts = self.name.removesuffix("*").translate(_TO_DOTS).split(".")
        return next(part for part in reversed(parts) if part)

    @property
    def is_parameter(self) -> bool:
        """Whether the name is that of a parameter."""
        return self.name.endswith(")")

    @property
    def is_list_of_members(self) -> bool:
        """Whether it stands for the names of all members of a class or module."""
        return self.name.endswith("*")

    def is_needed_on(self, release: Version) -> bool:
        """Tell whether our code relies on it on a release; candidates and builds of X count as X."""
        base = Version(release.base_version)
        return (self.since is None or Version(self.since) <= base) and (
            self.until is None or base < Version(self.until)
        )


_TO_DOTS: Final = str.maketrans(":()", "...")


@dataclass(frozen=True)
class Ledger:
    """The names, and what each recorded release has under them.

    Attributes:
        entries: the names, in the order of the file.
        forms: for each release, oldest first, the form of each name that it has.
    """

    entries: tuple[Entry, ...]
    forms: Mapping[str, Mapping[str, Form]]

    @property
    def releases(self) -> tuple[str, ...]:
        """The recorded releases, oldest first."""
        return tuple(self.forms)

    @property
    def paths(self) -> tuple[str, ...]:
        """The source files of torch that the names are looked up in."""
        modules = dict.fromkeys(entry.name.partition(":")[0] for entry in self.entries)
        return tuple(path for module in modules for path in candidate_paths(module))

    def has(self, release: Version) -> bool:
        """Tell whether a release is recorded; its candidates and nightlies never are."""
        return release.base_version in self.forms and not release.is_prerelease

    def neighbours(self, release: Version) -> tuple[str, ...]:
        """Return the release itself if it is recorded, else the recorded ones just before and after it."""
        if self.has(release):
            return (release.base_version,)
        older = [known for known in self.forms if Version(known) < release]
        newer = [known for known in self.forms if Version(known) > release]
        return (*older[-1:], *newer[:1])

    def cut(self, release: str) -> Ledger:
        """Return the ledger as it was when a release was the newest: without anything about later releases.

        Args:
            release: a release such as `"2.9"`, which includes its patches.

        Raises:
            LedgerError: it is not a release number, or older than all recorded ones.
        """
        last = as_version(release).release
        forms = {known: form for known, form in self.forms.items() if Version(known).release[: len(last)] <= last}
        if not forms:
            raise LedgerError(f"the ledger begins with {self.releases[0]}, which is newer than {release}")

        def is_later(bound: str | None) -> bool:
            return bound is not None and Version(bound).release[: len(last)] > last

        entries = [entry for entry in self.entries if not is_later(entry.since)]
        return Ledger(tuple(replace(entry, until=None) if is_later(entry.until) else entry for entry in entries), forms)

    def record(self, sources: Sources) -> Ledger:
        """Return the ledger with what a release has under its names, which replaces what was recorded before.

        Raises:
            LedgerError: it is a candidate, a nightly, or built from a checkout.
            SourcesError: a file of it cannot be parsed.
        """
        version = as_version(sources.version)
        if version.is_prerelease:  # a candidate, a nightly, or a build of a checkout
            raise LedgerError(
                f"torch {sources.version} is not a release: only releases are recorded, because what comes before one "
                "still changes under its number. Record the release when it is out."
            )
        found = forms_of(sources, self.entries)
        forms = {**self.forms, version.base_version: found}
        return Ledger(self.entries, {known: forms[known] for known in sorted(forms, key=Version)})

    def forget(self, release: str) -> Ledger:
        """Return the ledger without a release, whose support has ended.

        Raises:
            LedgerError: it is not recorded.
        """
        if release not in self.forms:
            raise LedgerError(f"torch {release} is not in the ledger, which has {', '.join(self.releases)}")
        return Ledger(self.entries, {known: form for known, form in self.forms.items() if known != release})

    def save(self) -> Path:
        """Write `ledger.json` in the checkout, and return its path.

        Raises:
            LedgerError: the package does not run from a checkout, or the file cannot be written.
        """
        path = Path(str(folder() / FORMS_FILE)).resolve()
        if not (path.parents[1] / "pyproject.toml").is_file():
            raise LedgerError(f"{path.parent} is not in a checkout of automodel-mesh: record releases in one")
        try:
            path.write_text(_as_json(self), encoding="utf-8")
        except OSError as error:
            raise LedgerError(f"{path} cannot be written: {error.strerror or error}") from error
        return path


def folder() -> Traversable:
    """Return the folder of the ledger's files, without importing the code beside them."""
    return resources.files("automodel_mesh") / "compat"


def load_ledger() -> Ledger:
    """Read the ledger of this package.

    Raises:
        LedgerError: its entries are not valid.
        ImportError: Python 3.10 without tomli.
    """
    try:
        table = read_toml((folder() / ENTRIES_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise LedgerError(f"{ENTRIES_FILE} is not TOML: {error}") from error
    return Ledger(tuple(_entry(row) for row in table["names"]), recorded_forms())


def recorded_forms() -> dict[str, dict[str, Form]]:
    """Read what each release has under the names of the ledger: release, oldest first, to name to form."""
    document = json.loads((folder() / FORMS_FILE).read_text(encoding="utf-8"))
    forms: dict[str, dict[str, Form]] = {release: {} for release in document["releases"]}
    for name, rows in document["names"].items():
        for row in rows:
            for release in row["releases"]:
                forms[release][name] = Form(row["signature"], row["fingerprint"])
    return forms


def read_toml(text: str) -> dict[str, Any]:
    """Read TOML, with the standard library's reader or, on Python 3.10, with tomli.

    Raises:
        ValueError: it is not valid TOML.
        ImportError: Python 3.10 without tomli.
    """
    try:
        reader = import_module("tomllib")
    except ModuleNotFoundError:
        try:
            reader = import_module("tomli")
        except ModuleNotFoundError as error:
            raise ImportError("Python 3.10 needs tomli for TOML: pip install 'automodel-mesh[track]'") from error
    table: dict[str, Any] = reader.loads(text)
    return table


def forms_of(sources: Sources, entries: Iterable[Entry]) -> dict[str, Form]:
    """Look up the names of entries in the sources of a torch; names that it does not have are left out."""
    definitions = Definitions(sources.files)
    found = {entry.name: definitions.find(entry.name) for entry in entries}
    return {name: Form.of(one) for name, one in found.items() if one is not None}


def as_version(text: str) -> Version:
    """Parse a version number.

    Raises:
        LedgerError: it is not valid.
    """
    try:
        return Version(text)
    except ValueError as error:  # also raised for numbers of thousands of digits
        raise LedgerError(f"{text[:80]!r} is not a version number such as 2.15.0") from error


def _entry(row: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {**row, "used_by": tuple(row.get("used_by", ()))}
    try:
        return Entry(**values)
    except TypeError as error:
        raise LedgerError(f"{ENTRIES_FILE}: the entry {row.get('name')!r} is wrong: {error}") from error


def _as_json(ledger: Ledger) -> str:
    """Write a line for each form of a name, so that a release that changes nothing only lengthens lines."""
    names: list[str] = []
    for name in sorted({entry.name for entry in ledger.entries}):
        rows = ",\n".join(f"   {json.dumps(row)}" for row in _rows(ledger, name))
        names.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
    joined = ",\n".join(names)
    return f'{{\n "releases": {json.dumps(ledger.releases)},\n "names": {{\n{joined}\n }}\n}}\n'


def _rows(ledger: Ledger, name: str) -> Sequence[dict[str, Any]]:
    """Group consecutive releases that have the same form of a name."""
    found = [(release, form) for release, forms in ledger.forms.items() if (form := forms.get(name)) is not None]
    return [
        {
            "signature": form.signature,
            "fingerprint": form.fingerprint,
            "releases": [release for release, _ in same],
        }
        for form, same in ((form, list(same)) for form, same in groupby(found, key=lambda pair: pair[1]))
    ]
