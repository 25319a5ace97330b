"""`automodel-mesh releases`: the torch releases that this library supports, and what differs between them.

All of it is read from files of this package, and torch is not imported: the releases from the ledger, the eras from the
names of the era modules, the differences from `compat/eras/facts.py`.

With `--json`, stdout has one JSON document:

    schema             1; raised when a key is renamed or removed, not when one is added
    installed          the version of torch in this environment; null if there is none
    releases           one object for each supported release that is tested, oldest first:
        torch          the release
        era            the module of automodel_mesh.compat.eras that serves it
        names_changed  how many of the private names of torch that we use differ from those of the release before; null
                       for the oldest
        differs        a sentence for each small difference that begins or ends with it

Exit status: 0, or 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from itertools import pairwise
from typing import Final, NamedTuple

from packaging.version import Version

from automodel_mesh.tables import Table, show
from automodel_mesh.terminal import write_json
from automodel_mesh.tracking.ledger import folder, recorded_forms

JSON_SCHEMA: Final = 1


class Release(NamedTuple):
    """A supported release, with the keys of the JSON document."""

    torch: str
    era: str
    names_changed: int | None
    differs: list[str]


_EPILOG: Final = """\
examples:
  automodel-mesh releases
  automodel-mesh releases --json
  automodel-mesh releases --json | jq -r '.releases[].torch'

Exit status: 0 all is well, 2 wrong arguments (stderr says why)."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its arguments.

    Args:
        commands: the return value of `ArgumentParser.add_subparsers`.
    """
    parser = commands.add_parser(
        "releases",
        help="list the supported torch releases and what differs between them",
        description="List the torch releases that are supported and tested, and what differs between them. A newer "
        "torch than these is accepted if it stores meshes as the newest era does. Needs no torch.",
        epilog=_EPILOG,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Run the command, and return the exit status."""
    installed, found = _installed(), supported_releases()
    if options.json:
        releases = [release._asdict() for release in found]
        write_json({"schema": JSON_SCHEMA, "installed": installed, "releases": releases})
        return 0
    rows: list[tuple[str, ...]] = []
    for release in found:
        changed = "" if release.names_changed is None else str(release.names_changed)
        first, *others = release.differs or [""]
        rows.append((release.torch, release.era, changed, first))
        rows.extend(("", "", "", other) for other in others)
    columns = ("torch", "era", "names changed", "what begins or ends with it")
    table = Table("supported releases of torch", columns, tuple(rows), frozenset({"names changed"}))
    show([table, f"installed: {f'torch {installed}' if installed else 'no torch'}"])
    return 0


def supported_releases() -> list[Release]:
    """Return the releases of the ledger, oldest first."""
    forms = recorded_forms()
    eras = {_first_release(module): module for module in _era_modules()}
    changed: list[int | None] = [None, *(_changed(*two) for two in pairwise(forms.values()))]
    releases = [
        Release(torch, eras[max(first for first in eras if first <= Version(torch))], number, [])
        for torch, number in zip(forms, changed, strict=True)
    ]
    for since, sentence in _facts():
        begin = next((release for release in releases if Version(release.torch) >= Version(since)), None)
        if begin is not None:
            begin.differs.append(sentence)
    return releases


def _installed() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def _era_modules() -> list[str]:
    """Return the names of the era modules, each with its first release in it, such as `since_2_06`."""
    names = (path.name for path in (folder() / "eras").iterdir())
    return [name.removesuffix(".py") for name in names if re.fullmatch(r"since_\d+_\d+\.py", name)]


def _first_release(module: str) -> Version:
    return Version(module.removeprefix("since_").replace("_", "."))


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> int:
    """Count the names that are not the same in two releases."""
    return sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())


def _facts() -> Iterator[tuple[str, str]]:
    """Yield the releases at which a fact changes, each with the first sentence of the fact's docstring."""
    tree = ast.parse((folder() / "eras" / "facts.py").read_text(encoding="utf-8"))
    for fact, text in pairwise(tree.body):
        match fact, text:
            case ast.AnnAssign(value=ast.expr() as value), ast.Expr(value=ast.Constant(value=str(docstring))):
                for release in _compared(value):
                    yield release, _first_sentence(docstring)
            case _:
                pass


def _compared(expression: ast.expr) -> Iterator[str]:
    """Yield the releases that an expression gives to `torch_at_least`."""
    for node in ast.walk(expression):
        match node:
            case ast.Call(func=ast.Name(id="torch_at_least"), args=[ast.Constant(value=str(release))]):
                yield release
            case _:
                pass


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
