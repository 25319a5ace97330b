"""A part of the configuration of Sphinx that makes wide tables readable.

Neighbouring releases with the same result share a cell. On phones, each row of a wide table is a card: a line for each
cell, with the head of its column before it (docs/static/pages.css).
"""

from __future__ import annotations

import re
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DASH = " \N{EN DASH} "
RELEASES = re.compile(rf"\d+\.\d+(\.\d+)?((, |{DASH})\d+\.\d+(\.\d+)?)*")
"""The head of a column for one or more torch releases: `2.9` or `2.11, 2.12`, or with a dash."""

ON_A_PHONE = 57
"""How many characters of a table are beside each other on a phone."""

AROUND = 2
"""How many of them the space around a cell takes, and as many the frame around code."""

A_PHRASE = 13
"""How many of them a cell with a sentence needs: with fewer, it is broken after every word or two."""

LONG = 30
"""Code with more characters may be broken at its dots, slashes and underscores."""


class ReadableTables(SphinxTransform):
    """Joins cells of the same result, and names the columns in the cells."""

    default_priority = 800  # after quotation marks have become typographic

    def apply(self, **_: Any) -> None:
        """Change every table with a row for the head, and with as many cells in each row."""
        for table in self.document.findall(nodes.table):
            rows = [row for body in table.findall(nodes.tbody) for row in body]
            lines = [cells(row) for row in table.findall(nodes.row)]
            if len(lines) != len(rows) + 1 or len(set(map(len, lines))) > 1:
                continue
            names = [cell.astext() for cell in lines[0]]
            columns = list(zip(*lines, strict=True))
            if max(sum(map(longest_word, columns)), sum(map(phrase, columns))) > ON_A_PHONE:
                table["classes"].append("cards")
            for row in rows:
                row.children = joined(cells(row), names)


def cells(row: nodes.Node) -> list[nodes.entry]:
    """List the cells of a row."""
    return list(row.findall(nodes.entry))


def longest_word(column: tuple[nodes.entry, ...]) -> int:
    """Say how many characters a column takes if no word is broken that is not long."""
    code = [node.astext() for cell in column for node in cell.findall(nodes.literal)]
    words = [len(word) for cell in column for word in cell.astext().split()]
    return min(LONG, max(words, default=0)) + AROUND + (AROUND if code else 0)


def phrase(column: tuple[nodes.entry, ...]) -> int:
    """Say how many characters a column needs to be read well."""
    return min(A_PHRASE, max((len(cell.astext()) for cell in column[1:]), default=0))


def parts(word: str) -> list[str]:
    """Split a long word where it may be broken."""
    return re.split(r"(?<=[._/])(?=\w)", word) if len(word) > LONG else [word]


def joined(row: list[nodes.entry], names: list[str]) -> list[nodes.entry]:
    """Give each cell the name of its column; a cell that is the same for several releases gets the names of all."""
    result: list[nodes.entry] = []
    columns = enumerate(zip(row, names, strict=True))
    for _, same in groupby(columns, lambda each: str(each[1][0]) if RELEASES.fullmatch(each[1][1]) else each[0]):
        found = [pair for _, pair in same]
        cell = found[0][0]
        cell["label"] = span([name for _, name in found])
        cell["classes"] += ["result"] if RELEASES.fullmatch(found[0][1]) else []
        if len(found) > 1:
            cell["morecols"] = len(found) - 1
        result.append(cell)
    return result


def span(names: list[str]) -> str:
    """Join the names of columns: with a dash if no release lies between them that has no column."""
    releases = [re.split(f", |{DASH}", each) for each in names]
    gaps = [minor(after[0]) - minor(before[-1]) for before, after in pairwise(releases)]
    if len(names) < 2 or max(gaps) > 1:
        return ", ".join(names)
    return f"{releases[0][0]}{DASH}{releases[-1][-1]}"


def minor(release: str) -> int:
    """Return the second number of a release."""
    return int(release.split(".")[1])


class Translator(HTML5Translator):
    """Writes the name of the column into each cell, where the style sheet finds it, and where code may be broken."""

    def visit_entry(self, node: nodes.entry) -> None:
        """Write the start of a cell."""
        super().visit_entry(node)
        if node.get("label"):
            self.body[-1] = self.body[-1].replace(">", f' data-label="{self.attval(node["label"])}">', 1)

    def visit_Text(self, node: nodes.Text) -> None:  # noqa: N802 - docutils' name
        """Write text."""
        before = len(self.body)
        super().visit_Text(node)
        if isinstance(node.parent, nodes.literal):
            between_tags = re.compile(r"(?<=>)[^<>]+(?=<)")
            broken = [between_tags.sub(lambda word: "<wbr>".join(parts(word[0])), text) for text in self.body[before:]]
            self.body[before:] = broken


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.add_transform(ReadableTables)
    app.set_translator("html", Translator)
    return {"parallel_read_safe": True}
