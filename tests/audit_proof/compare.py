"""Compares what an audit says about the files of a package with where importing them really fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Line = tuple[str, int]
"""A file, and the first line of a statement in it."""


@dataclass
class Comparison:
    """How often an audit is right about one package on one torch release.

    Attributes:
        files: how many files were run far enough to compare; of each kind of answer, how many.
        lines: the same of the lines in them where the audit or the import finds something.
        excluded: how many files were not reached, by cause.
        wrong: each line where the two differ: `file`, `line`, `name`, `predicted`, `true`, and the error.
    """

    files: dict[str, int] = field(default_factory=dict[str, int])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    excluded: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


ANSWERS = ("right", "false", "missed", "fits")
"""It breaks and the audit says so; it does not, and the audit says so; it breaks only; neither."""


def compare(truth: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compare the findings of an audit, whose files are named as in the truth, with the truth of a release."""
    broken: dict[Line, list[Mapping[str, Any]]] = {}
    for each in truth["broken"]:
        broken.setdefault((each["file"], each["line"]), []).append(each)
    stops = {file: each["line"] for file, each in truth["failed"].items() if each["file"] == file}
    counted = {*truth["imported"], *truth.get("reached", ())} | {file for file, _ in broken}
    said: dict[Line, list[Mapping[str, Any]]] = {}
    for finding in findings:
        if truth["torch"] in finding["breaks"] and finding["file"] in counted:
            line = statement(finding, broken)
            at_import = finding["when"] == "import" and line[1] <= stops.get(line[0], line[1])
            if at_import or line in broken:
                said.setdefault(line, []).append(finding)
    comparison = Comparison()
    count(comparison.lines, set(said), set(broken), set(said) | set(broken))
    count(comparison.files, {file for file, _ in said}, {file for file, _ in broken}, counted)
    not_reached = (each["cause"] for file, each in truth["failed"].items() if file not in counted)
    comparison.excluded = dict(sorted(Counter(not_reached).items()))
    for line in sorted(set(said) ^ set(broken)):
        what = broken.get(line, []) + said.get(line, [])
        comparison.wrong.append(
            {
                "file": line[0],
                "line": line[1],
                "name": ", ".join(dict.fromkeys(str(each["name"]) for each in what)),
                "predicted": "breaks" if line in said else verdict(line, findings, truth["torch"]),
                "true": "breaks" if line in broken else "fits",
                "error": next((each["error"] for each in broken.get(line, []) if each["error"]), ""),
            }
        )
    return comparison


def statement(finding: Mapping[str, Any], broken: Mapping[Line, Sequence[Mapping[str, Any]]]) -> Line:
    """Return the line of a finding, and of one in a statement that breaks the first line of that."""
    for (file, line), found in broken.items():
        if file == finding["file"] and line <= finding["line"] <= max(each["end"] for each in found):
            return file, line
    return finding["file"], finding["line"]


def verdict(line: Line, findings: Sequence[Mapping[str, Any]], release: str) -> str:
    """Say what the audit says instead about a line that breaks."""
    there = [each for each in findings if (each["file"], each["line"]) == line]
    if any(release in each["cannot_tell"] for each in there):
        return "cannot tell"
    return "guarded" if any(release in each["guarded"] for each in there) else "nothing"


def count(numbers: dict[str, int], said: set[Any], true: set[Any], of: set[Any]) -> None:
    """Count the four kinds of answers."""
    sizes = (len(said & true), len(said - true), len(true - said), len(of - said - true))
    numbers.update(zip(ANSWERS, sizes, strict=True))


def precision(numbers: Mapping[str, int]) -> float | None:
    """Return which part of what is said to break breaks; `None` if nothing is said."""
    said = numbers["right"] + numbers["false"]
    return numbers["right"] / said if said else None


def recall(numbers: Mapping[str, int]) -> float | None:
    """Return which part of what breaks is said to; `None` if nothing breaks."""
    true = numbers["right"] + numbers["missed"]
    return numbers["right"] / true if true else None


def add(numbers: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add the numbers of several comparisons."""
    return {answer: sum(each[answer] for each in numbers) for answer in ANSWERS}


def as_row(comparison: Comparison) -> dict[str, Any]:
    """Return what is recorded of a comparison."""
    return asdict(comparison)
