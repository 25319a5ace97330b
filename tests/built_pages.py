"""The tables of the pages in docs/_build/html; `nox -s docs` runs this after it has built them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from automodel_mesh.audit.behaviours import BEHAVIOURS
from automodel_mesh.tracking.ledger import load_ledger

BUILT = Path(__file__).parents[1] / "docs/_build/html"


@dataclass
class Table:
    """A table: its classes, and its rows with the text, label and columns of each cell."""

    classes: list[str]
    rows: list[list[tuple[str, str, int]]] = field(default_factory=list[list[tuple[str, str, int]]])


class Tables(HTMLParser):
    """Reads the tables of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Table] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a table, a row or a cell."""
        self.in_cell |= tag in {"th", "td"}
        has = {name: value or "" for name, value in attrs}
        if tag == "table":
            self.found.append(Table(has.get("class", "").split()))
        elif tag == "tr":
            self.found[-1].rows.append([])
        elif tag in {"th", "td"}:
            self.found[-1].rows[-1].append(("", has.get("data-label", ""), int(has.get("colspan", "1"))))

    def handle_endtag(self, tag: str) -> None:
        """End a cell."""
        self.in_cell &= tag not in {"th", "td"}

    def handle_data(self, data: str) -> None:
        """Add to the text of a cell."""
        if self.in_cell:
            text, label, columns = self.found[-1].rows[-1].pop()
            self.found[-1].rows[-1].append((text + data, label, columns))


def tables(page: Path) -> list[Table]:
    """Return the tables of a page that we wrote; the index of names has others."""
    reader = Tables()
    reader.feed(page.read_text(encoding="utf-8"))
    return [table for table in reader.found if "docutils" in table.classes]


def ends(releases: str) -> list[str]:
    """Return the releases that a list of them names: the first is the oldest, the last the newest."""
    return re.split(", | \N{EN DASH} ", releases)


PAGES = sorted(page.relative_to(BUILT).as_posix() for page in BUILT.rglob("*.html"))


@pytest.mark.parametrize("page", PAGES)
def test_each_cell_has_the_name_of_its_column(page: str) -> None:
    """A cell of several columns has the first and the last of their releases; a row has all columns."""
    for table in tables(BUILT / page):
        (*head,), *rows = table.rows
        names = [text.strip() for text, *_ in head]
        for row in rows:
            column = 0
            for _, label, columns in row:
                first, last = names[column], names[column + columns - 1]
                if columns == 1:
                    assert label == first
                else:
                    assert (ends(label)[0], ends(label)[-1]) == (ends(first)[0], ends(last)[-1])
                column += columns
            assert column == len(names)


def test_the_results_of_torchs_calls_are_those_of_the_data() -> None:
    """Each label of docs/eras.md has the releases with that result, those in the middle too."""
    known = list(dict.fromkeys(".".join(release.split(".")[:2]) for release in load_ledger().releases))
    (table,) = [table for table in tables(BUILT / "eras.html") if table.rows[1][0][0].strip() == BEHAVIOURS[0].title]
    assert "cards" in table.classes
    for behaviour, (_, *row) in zip(BEHAVIOURS, table.rows[1:], strict=True):
        shown: dict[str, str] = {}
        for text, label, _ in row:
            first, *_, last = [known.index(end) for end in ends(label) * 2]
            shown |= dict.fromkeys(known[first : last + 1], text.strip())
        assert shown == {release: behaviour.result(release) for release in known}


def test_tables_that_fit_on_a_phone_stay_tables() -> None:
    """The first page's fits as it is; eleven releases beside each other do not."""
    for page, cards in ("index.html", False), ("installation.html", False), ("private-api-ledger.html", True):
        assert [("cards" in table.classes) for table in tables(BUILT / page)] == [cards], page
