"""Reads ci_matrix/audit.toml and what the sessions recorded, and makes the tables of docs/audit-accuracy.md."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli
from packaging.version import Version

from tests.audit_proof.compare import add, precision, recall
from tests.results import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PATH: Final = Path(__file__).parents[2] / "ci_matrix/audit.toml"


@cache
def load() -> dict[str, Any]:
    """Return the table."""
    return tomli.loads(PATH.read_text(encoding="utf-8"))


def requirement(package: Mapping[str, Any]) -> str:
    """Return what is installed of a package, which also names its folder."""
    return f"{package['name']}=={package['version']}"


def known(package: str, release: str, wrong: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entry with the reason of a wrong answer, `None` if nobody has looked at it."""
    for entry in load().get("known_wrong", []):
        if (
            fnmatchcase(package, entry["package"])
            and release in entry["torch"]
            and fnmatchcase(wrong["file"], entry["file"])
            and fnmatchcase(wrong["name"], entry["name"])
            and wrong["predicted"] == entry["predicted"]
        ):
            found: dict[str, Any] = entry
            return found
    return None


def read(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return what the sessions recorded, oldest torch first."""
    files: list[dict[str, Any]] = [
        json.loads(path.read_text("utf-8")) for path in folder.glob("audit-downstream-*.json")
    ]
    return sorted(files, key=lambda each: Version(each["torch"]))


def rows(results: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the comparisons by package."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for row in result["rows"]:
            found.setdefault(row["package"], []).append({**row, "torch": result["torch"]})
    return found


def percent(number: float | None) -> str:
    """Write a part of one, in per cent, rounded down so that 100 % means all; a dash for a part of nothing."""
    return "-" if number is None else f"{int(number * 1000) / 10:g} %"


def accuracy(folder: Path = FOLDER) -> list[str]:
    """Show precision and recall of each package on all releases together, and of all."""
    by_package = rows(read(folder))
    head = (
        *("package", "files", "precision of files", "recall of files"),
        *("lines", "precision of lines", "recall of lines", "files not reached"),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    everything = [row for found in by_package.values() for row in found]
    for name, found in (*by_package.items(), ("**all**", everything)):
        cells = [name.replace("==", " ")]
        for kind in ("files", "lines"):
            numbers = add([row[kind] for row in found])
            cells += [str(sum(numbers.values())), percent(precision(numbers)), percent(recall(numbers))]
        cells.append(str(sum(sum(row["excluded"].values()) for row in found)))
        lines.append(f"| {' | '.join(cells)} |")
    return lines if everything else ["Not run yet."]


def breaking(folder: Path = FOLDER) -> list[str]:
    """Show how many files of each package really break when they are imported, by torch release."""
    results = read(folder)
    declares = {requirement(package): package["declares"] for package in load()["packages"]}
    head = ("package", "asks for torch", *(result["torch"] for result in results))
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in rows(results).items():
        at = {row["torch"]: row["files"] for row in found}
        numbers = [at.get(result["torch"]) for result in results]
        cells = [f"{each['right'] + each['missed']} of {sum(each.values())}" if each else "" for each in numbers]
        asked = declares.get(name, "")
        lines.append(f"| {name.replace('==', ' ')} | {f'`{asked}`' if asked else 'not said'} | {' | '.join(cells)} |")
    return lines if results else ["Not run yet."]


def wrong(folder: Path = FOLDER) -> list[str]:
    """Show where the audit is wrong, with the reasons; releases with the same share a line."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, package in rows(read(folder)).items():
        for row in package:
            for each in row["wrong"]:
                entry = known(name, label(row["torch"]), each)
                place = f"`{each['file']}`, line {each['line']}"
                reason = entry["why"] if entry else ""
                missing = f"`{each['name']}`" if each["name"] else "-"
                key = (name.replace("==", " "), place, missing, each["predicted"], each["true"], reason)
                found.setdefault(key, []).append(row["torch"])
    lines = ["| package | where | name | the audit says | importing it | torch | why |", "|---" * 7 + "|"]
    for (*cells, reason), releases in found.items():
        lines.append(f"| {' | '.join(cells)} | {', '.join(releases)} | {reason} |")
    return lines if found else ["None."]


def label(torch: str) -> str:
    """Return the label of a release of torch.toml: the newest patch of a release is named without it."""
    releases = [Version(row["torch"]) for row in tomli.loads(PATH.with_name("torch.toml").read_text())["rows"]]
    this = Version(torch)
    newest = max((each for each in releases if each.release[:2] == this.release[:2]), default=this)
    return f"{this.major}.{this.minor}" if this == newest else torch


def dates(folder: Path = FOLDER) -> list[str]:
    """Say when the sessions ran, and on which releases."""
    results = read(folder)
    if not results:
        return ["Not run yet."]
    days = sorted({result["date"] for result in results})
    releases = ", ".join(result["torch"] for result in results)
    return [f"Last run: {' and '.join(dict.fromkeys((days[0], days[-1])))}, on torch {releases}."]
