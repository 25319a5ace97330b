"""Writes releases of torch: short labels, and lists of releases as spans."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby


def labels(releases: Sequence[str]) -> dict[str, str]:
    """Shorten releases to the labels that reports use.

    Args:
        releases: full versions, such as `"2.9.1"`.

    Returns:
        For each release `"2.9"`, or the full version if two of them differ in the patch number only.
    """
    return {
        release: minor if len(patches) == 1 else release
        for minor, patches in _by_minor(releases)
        for release in patches
    }


def spans(some: Collection[str], of_all: Sequence[str]) -> str:
    """Write releases as spans of those that follow each other.

    Args:
        some: the releases, full versions in any order.
        of_all: all releases that could be among them, oldest first. A span goes on where it has the next of these.

    Returns:
        Such as `"2.6 - 2.9, 2.12"`; empty for no release. `"2.9"` stands for all patches of 2.9 in `of_all`; where only
        some of them are meant, they are written in full.

    Raises:
        ValueError: one of `some` is not in `of_all`.
    """
    if unknown := sorted(set(some) - set(of_all)):
        raise ValueError(f"{', '.join(unknown)} is not one of the releases {', '.join(of_all)}")
    written: list[str] = []
    for is_meant, run in groupby(_units(some, of_all), key=lambda unit: unit[1]):
        names = [name for name, _ in run]
        if is_meant:
            written += names if len(names) < 3 else [f"{names[0]} - {names[-1]}"]
    return ", ".join(written)


def _units(some: Collection[str], of_all: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield what is written as one name, and whether it is meant: a minor release, or each patch of one in part."""
    for minor, patches in _by_minor(of_all):
        meant = [release in some for release in patches]
        if all(meant) or not any(meant):
            yield minor, meant[0]
        else:
            yield from zip(patches, meant, strict=True)


def _by_minor(releases: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each minor release, such as `"2.9"`, with its releases."""
    for minor, patches in groupby(releases, key=lambda release: ".".join(release.split(".")[:2])):
        yield minor, list(patches)
