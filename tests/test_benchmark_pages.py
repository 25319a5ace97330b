"""The headlines of the benchmarks are numbers of the tables, which come from the same run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"

pytestmark = pytest.mark.release_independent


def rows(page: str) -> list[list[str]]:
    """Return the cells of all table rows of a page, without their stars."""
    lines = (FOLDER / page).read_text(encoding="utf-8").replace("*", "").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_the_five_headlines_are_in_the_tables() -> None:
    """Each headline's two numbers are a cell of the newest release, and its ratio and range are those of a row."""
    _, *headlines = rows("headlines.md")
    assert len(headlines) == 5
    measured = rows("results.md")
    for name, ours, torchs, ratio, span in headlines:
        found = [row for row in measured if re.match(rf"{re.escape(f'{ours} / {torchs}')}(:|$)", row[-1])]
        assert found, name
        if ":" in found[0][-1]:
            ratios = [cell.rpartition(": ")[2] for cell in found[0][1:]]
            assert ratios[-1] == ratio
            others = sorted(ratios[:-1], key=lambda text: float(text.replace(",", "")))
            assert span == f"{others[0]} to {others[-1]}"
