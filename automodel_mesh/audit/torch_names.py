"""What each torch release has under its names: the data file that an audit looks names up in.

The file is gzip-compressed text. Its first line is a JSON object with the `schema`, the `releases`, and the `telling`
names: private members that only one class of torch has, so that they tell the class of a value. Then comes a block for
each *scope*, which is a module (`torch.distributed.device_mesh`) or a class, with a colon before its name: the scope on
a line, and a line for each of its names. The fields of a line are separated by tabs: the name, then pairs of releases
and entry, one pair for each different entry. The releases are a hexadecimal number whose lowest bit is the first
release; it is empty if the entry is that of all releases that have the scope. An entry is

    (empty)              a value of which no more is known
    =torch.x.Y           refers to something of torch: an import, or an assignment of a name
    :torch.x.Y           a value, or property, declared to be of this class
    (a,b=,*,c=)>torch.Y  a function; `=` marks a default, `>` the class that it returns; overloads are separated by `|`
    C                    a class, which has a scope of its own

and under the empty name stands what the scope itself is: `M` a module, with `S` if it is read from the stub of C++
code, with `O` if it has more names than its text says; or `C` with the classes that it is derived from.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final, TypeAlias

from packaging.version import Version

from automodel_mesh.audit.errors import AuditError

__all__ = [
    "CLASS",
    "MODULE",
    "OPEN",
    "REFERS",
    "RETURNS",
    "STUB",
    "TYPED",
    "Scopes",
    "TorchNames",
    "add_names",
    "known_releases",
    "load_names",
    "names_of",
    "recorded_releases",
    "save_names",
]

SCHEMA: Final = 1
FILE: Final = "torch_names.txt.gz"

CLASS: Final = "C"
MODULE: Final = "M"
STUB: Final = "S"
OPEN: Final = "O"
REFERS: Final = "="
TYPED: Final = ":"
RETURNS: Final = ">"

_TOLD: Final = "torch.distributed.device_mesh:"
"""The classes whose telling names are known: those of this module."""

Scopes: TypeAlias = dict[str, dict[str, str]]
"""The names of one release: scope to name to entry."""


class TorchNames:
    """The names of torch in some releases. Each scope is parsed when it is first needed.

    Args:
        releases: the releases, oldest first.
        blocks: the lines of each scope, without the scope itself.
        telling: the dotted path of the class of each telling name.
    """

    def __init__(self, releases: tuple[str, ...], blocks: Mapping[str, str], telling: Mapping[str, str]) -> None:
        self.releases = releases
        self.telling = telling
        self._blocks = blocks
        self._scopes: dict[str, dict[str, dict[str, str]]] = {}

    @classmethod
    def of(cls, known: Mapping[str, Scopes]) -> TorchNames:
        """Combine the names of releases, which are given oldest first."""
        releases = tuple(known)
        blocks: dict[str, str] = {}
        for path in sorted({path for scopes in known.values() for path in scopes}):
            having = {release: scopes[path] for release, scopes in known.items() if path in scopes}
            names = sorted({name for names in having.values() for name in names})
            blocks[path] = "\n".join(_line(name, having, releases) for name in names)
        return cls(releases, blocks, _telling(known.values()))

    def scope(self, path: str, release: str) -> Mapping[str, str] | None:
        """Return the names of a module or class in a release, each with its entry; `None` if it does not exist."""
        if path not in self._scopes:
            self._scopes[path] = self._parse(self._blocks.get(path, ""))
        return self._scopes[path].get(release)

    def all_names(self, path: str) -> frozenset[str]:
        """Return the names that a module or class has in any release."""
        found = (self.scope(path, release) or {} for release in self.releases)
        return frozenset(name for names in found for name in names if name)

    def add(self, recorded: Mapping[str, Scopes]) -> TorchNames:
        """Return the names with those of some releases, which replace what was known of them."""
        known = {one: self._all(one) for one in self.releases if one not in recorded} | dict(recorded)
        return TorchNames.of({one: known[one] for one in sorted(known, key=Version)})

    def forget(self, releases: Collection[str]) -> TorchNames:
        """Return the names without those of some releases."""
        return TorchNames.of({one: self._all(one) for one in self.releases if one not in releases})

    def text(self) -> str:
        """Return the text of the data file."""
        header = json.dumps({"schema": SCHEMA, "releases": self.releases, "telling": self.telling})
        return "\n\n".join([header, *(f"{path}\n{block}" for path, block in self._blocks.items())]) + "\n"

    def content(self) -> bytes:
        """Return the bytes of the data file, the same for the same names."""
        return gzip.compress(self.text().encode(), compresslevel=9, mtime=0)

    def _all(self, release: str) -> Scopes:
        found = ((path, self.scope(path, release)) for path in self._blocks)
        return {path: dict(names) for path, names in found if names is not None}

    def _parse(self, block: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        lines = [line.split("\t") for line in block.split("\n")] if block else []
        for name, *pairs in lines:  # the first line is that of the empty name
            for which, entry in zip(pairs[::2], pairs[1::2], strict=True):
                for release in self._releases_of(which) if which else (self.releases if not name else list(found)):
                    found.setdefault(release, {})[name] = entry
        return found

    def _releases_of(self, which: str) -> list[str]:
        bits = int(which, 16)
        return [release for place, release in enumerate(self.releases) if bits >> place & 1]


@cache
def load_names() -> TorchNames:
    """Read the data file of this package."""
    return parse_names(gzip.decompress((resources.files("automodel_mesh.audit") / FILE).read_bytes()).decode())


def save_names(names: TorchNames) -> Path:
    """Write the data file in the checkout, and return its path.

    Raises:
        AuditError: the package does not run from a checkout.
    """
    path = Path(str(resources.files("automodel_mesh.audit") / FILE)).resolve()
    if not (path.parents[2] / "pyproject.toml").is_file():
        raise AuditError(f"{path.parent} is not in a checkout of automodel-mesh: record releases in one")
    path.write_bytes(names.content())
    return path


def parse_names(text: str) -> TorchNames:
    """Read the text of a data file.

    Raises:
        ValueError: it is of another schema.
    """
    header, *blocks = text.rstrip("\n").split("\n\n")
    document = json.loads(header)
    if document["schema"] != SCHEMA:
        raise ValueError(f"{FILE} has the schema {document['schema']}, and this version reads {SCHEMA}")
    split = (block.partition("\n") for block in blocks)
    return TorchNames(tuple(document["releases"]), {path: lines for path, _, lines in split}, document["telling"])


def recorded_releases() -> tuple[str, ...]:
    """Return the releases of the data file, oldest first."""
    return load_names().releases


_ADDED: Final[dict[str, TorchNames]] = {}


def add_names(names: TorchNames) -> None:
    """Make the names of a torch known to this process that are not in the data file."""
    _ADDED.update(dict.fromkeys(names.releases, names))


def known_releases() -> tuple[str, ...]:
    """Return the releases of the data file, and those that were added, oldest first."""
    return tuple(sorted({*recorded_releases(), *_ADDED}, key=Version))


def names_of(release: str) -> TorchNames:
    """Return the names among which those of a release are."""
    return _ADDED.get(release) or load_names()


def _telling(known: Iterable[Scopes]) -> dict[str, str]:
    """Return the private members that only one class of torch has, of the classes that are told by them."""
    classes: dict[str, set[str]] = {}
    for scopes in known:
        for path, names in scopes.items():
            if ":" in path:
                for name in names:
                    classes.setdefault(name, set()).add(path)
    private = ((name, paths) for name, paths in classes.items() if name.startswith("_") and not name.startswith("__"))
    alone = {name: next(iter(paths)) for name, paths in private if len(paths) == 1}
    return {name: path.replace(":", ".") for name, path in sorted(alone.items()) if path.startswith(_TOLD)}


def _line(name: str, having: Mapping[str, Mapping[str, str]], releases: tuple[str, ...]) -> str:
    bits: dict[str, int] = {}
    for place, release in enumerate(releases):
        entry = having.get(release, {}).get(name)
        if entry is not None:
            bits[entry] = bits.get(entry, 0) | 1 << place
    # Of the scope itself, all releases are those of the file; of its names, those that have the scope.
    everywhere = len(releases if not name else having)
    fields = (("" if which.bit_count() == everywhere else f"{which:x}", entry) for entry, which in bits.items())
    return "\t".join([name, *(field for pair in fields for field in pair)])
