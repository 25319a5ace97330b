"""Finds code and text for torch releases that are no longer supported: each place, and what to do there.

    python -m tests.leftovers         what exists for releases below the floor, `MINIMUM_TORCH`: in a commit, nothing
    python -m tests.leftovers 2.10    what would have to be deleted after raising the floor to 2.10

Exits with 1 if something is left. Code is found by a sentence such as "Delete when the floor reaches 2.10", or by a way
of naming a release that is in `RULES`. Only text is read: torch need not be installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.version import Version

CHECKOUT: Final = Path(__file__).parents[1]
FOLDERS: Final = ("automodel_mesh", "ci_matrix", "compat", "docs", "tests")
SUFFIXES: Final = {".md", ".py", ".toml"}
NOT_READ: Final = {
    "CHANGELOG.md",
    "tests/leftovers.py",
    "tests/test_leftovers.py",
    "tests/tracking/test_report.py",
}
"""The first is about the past; the others have examples of what is searched for."""

ERAS: Final = "compat/eras"
FACTS: Final = f"{ERAS}/facts.py"
NEWEST: Final = f"{ERAS}/newest.py"
BEHAVIOURS: Final = "automodel_mesh/audit/behaviours.py"
FACT: Final = r"^([A-Z][A-Z_]+): Final\b"
SENTENCE: Final = r"floor\s+(?:# )?reaches\s+(?:# )?(\d+\.\d+)"


@dataclass(frozen=True)
class Leftover:
    """A place in the checkout, and what to do there."""

    path: str
    line: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """A pattern of text to delete or change when the floor is raised.

    Attributes:
        pattern: a regular expression. Its group is a release, or the name of a fact or an era module.
        remedy: what to do there; `{}` is replaced by the group.
        where: a regular expression for the beginning of the paths of the files to search.
        stays_at_the_floor: whether it is found only if the floor is above the release.
    """

    pattern: str
    remedy: str
    where: str = ""
    stays_at_the_floor: bool = False


BEFORE: Final = "no release before {} is supported: delete what is said or done about one"
UP_TO: Final = "no release up to {} is supported: delete what is said or done about one"
RESULT: Final = "write OLDEST for it, delete the results above, and the behaviour if nothing is wrong with it any more"
NO_MEASUREMENTS: Final = "(?!docs/benchmarks/)"
"""Numbers with a point in them are other things than releases there."""

# If several match a line, the first one is used.
RULES: Final = (
    Rule(FACT, "delete {}, as its text says", FACTS),
    Rule(SENTENCE, "delete what goes at {}, as it says here", f"(?!{FACTS})"),
    Rule(r"""torch_at_least\(["'](\d[\d.]*)["']\)""", 'torch_at_least("{}") is always true: keep that case only'),
    Rule(r"""^(?:    .*|        )"(\d\.\d+)",(?: "|$)""", "torch {} has it: delete what is said of it", NEWEST),
    Rule(r'^ +"(\d\.\d+)": ', "no release before {} is supported: " + RESULT, BEHAVIOURS),
    Rule(r"\bfacts\.([A-Z_]+)", "{} is the same on every release: keep that case only"),
    Rule(r"\b(since_\d+_\d+)\b", "{} serves no supported release: delete it, and what is said about it"),
    Rule(r'^until = "([\d.]+)"', "no release before {} is supported: delete the entry", "compat/ledger.toml"),
    Rule(r'^since = "([\d.]+)"', "no release before {} is supported: delete this line", "compat/ledger.toml"),
    Rule(r"\brelease from (\d+\.\d+)", "{} is not supported: name the oldest that is", stays_at_the_floor=True),
    Rule(r"\b(?:[Bb]elow|[Bb]efore) (?:torch )?([2-9]\.\d+)", BEFORE, NO_MEASUREMENTS),
    Rule(r"\b[Uu]p to (?:torch )?([2-9]\.\d+)", UP_TO, NO_MEASUREMENTS, stays_at_the_floor=True),
    Rule(r"\b[2-9]\.\d+ (?:-|\u2013|to|and) ([2-9]\.\d+)", UP_TO, NO_MEASUREMENTS, stays_at_the_floor=True),
)


def leftovers(checkout: Path, floor: Version) -> list[Leftover]:
    """List what is left if the floor is a release, by file and line."""
    eras = sorted(release_of_era(path.stem) for path in (checkout / ERAS).glob("since_*.py"))
    facts = floors_of_facts(checkout)

    def release_that_ends(name: str) -> Version | None:
        if name.startswith("since_"):
            return next((start for start in eras if start > release_of_era(name)), None)
        return Version(name) if name[0].isdigit() else facts.get(name)

    def is_left(rule: Rule, name: str) -> bool:
        release = release_that_ends(name)
        return release is not None and (release < floor if rule.stays_at_the_floor else release <= floor)

    found = (
        Leftover(path, text.count("\n", 0, match.start(1)) + 1, rule.remedy.format(match[1]))
        for path, text in texts(checkout)
        for rule in RULES
        if re.match(rule.where, path)
        for match in re.finditer(rule.pattern, text, re.MULTILINE)
        if is_left(rule, match[1])
    )
    by_place: dict[tuple[str, int], Leftover] = {}
    for place in found:
        by_place.setdefault((place.path, place.line), place)
    return [by_place[where] for where in sorted(by_place)]


def texts(checkout: Path) -> Iterator[tuple[str, str]]:
    """Read the files that are searched, each with its path; compat/ once, not through its link."""
    for path in [*checkout.iterdir(), *(path for folder in FOLDERS for path in (checkout / folder).rglob("*"))]:
        name = path.relative_to(checkout).as_posix()
        if path.suffix in SUFFIXES and name not in NOT_READ and not name.startswith("automodel_mesh/compat/"):
            yield name, path.read_text(encoding="utf-8")


def floors_of_facts(checkout: Path) -> dict[str, Version]:
    """Return the floor at which each fact is deleted; a fact without that sentence is left out."""
    parts = re.split(FACT, (checkout / FACTS).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    said = {name: re.search(SENTENCE, text) for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return {name: Version(match[1]) for name, match in said.items() if match is not None}


def release_of_era(module: str) -> Version:
    """Return the first release of an era, from the name of its module: 2.6 for `since_2_06`."""
    return Version(module.removeprefix("since_").replace("_", "."))


def current_floor(checkout: Path) -> Version:
    """Read the oldest supported release."""
    text = (checkout / ERAS / "support.py").read_text(encoding="utf-8")
    (release,) = re.findall(r'^MINIMUM_TORCH: Final = Version\("([\d.]+)"\)', text, re.MULTILINE)
    return Version(release)


def main(arguments: Sequence[str]) -> int:
    """Print what is left; return 1 if there is anything."""
    floor = Version(arguments[0]) if arguments else current_floor(CHECKOUT)
    left = leftovers(CHECKOUT, floor)
    sys.stdout.writelines(f"{place}\n" for place in left)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
