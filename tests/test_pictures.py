"""The drawings in the documentation are what the commands beside them draw."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from automodel_mesh.cli import main
from tests import pages

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = {
    page.parent / name: line
    for page in sorted(DOCS.rglob("*.md"))
    for block in pages.blocks(page.read_text(encoding="utf-8"), "bash")
    for line in block.replace("\\\n", " ").splitlines()
    for name in re.findall(r"--picture (\S+\.svg)", line)
}

pytestmark = pytest.mark.release_independent


def content(drawing: Path) -> tuple[list[str], list[str]]:
    """Return the texts of a drawing and the colours of its shapes; the rest depends on the version of matplotlib."""
    elements = list(ET.parse(drawing).iter())  # noqa: S314 - the drawing is our own
    texts = [element.text or "" for element in elements if element.tag.endswith("}text")]
    styles = [element.get("style", "") for element in elements if element.tag.endswith("}path")]
    return texts, [colour for style in styles for colour in re.findall(r"fill: (#\w+)", style)]


def test_every_drawing_has_its_command() -> None:
    """Each drawing of the documentation is made by a command on a page, but for the plot of the benchmarks."""
    assert {*COMMANDS} == {*DOCS.rglob("*.svg")} - {DOCS / "benchmarks/results.svg", *DOCS.glob("_build/**/*.svg")}


@pytest.mark.parametrize("drawing", COMMANDS, ids=lambda drawing: drawing.name)
def test_a_drawing_is_what_its_command_draws(drawing: Path, tmp_path: Path) -> None:
    """The committed drawing has the texts and the colours that the command draws now."""
    pytest.importorskip("matplotlib", reason="an extra")
    program, *arguments = shlex.split(COMMANDS[drawing])
    assert program == "automodel-mesh"
    fresh = tmp_path / drawing.name
    assert main([str(fresh) if word == drawing.name else word for word in arguments]) == 0
    assert content(drawing) == content(fresh)
    assert all(map(len, content(drawing)))
