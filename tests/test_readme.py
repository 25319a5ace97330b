"""The Python code in the README runs, on ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import distributed as dist

from tests import pages

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = pages.blocks(README, "python")


def test_the_readme_has_two_blocks_of_python() -> None:
    """The README has the quick start of `automodel_mesh.compat` and that of the mesh layer."""
    assert len(BLOCKS) == 2


@pytest.mark.release_independent
def test_the_first_block_activates_the_environment() -> None:
    """The first block makes an environment, activates it and installs into it, so that later lines work as written."""
    first, *others = (block.splitlines() for block in pages.blocks(README, "bash"))
    assert first[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert first[2].startswith("pip install ")
    # What pip installs, or what comes with torch: no line leaves the environment.
    commands = {re.split(" && ", line)[-1].split()[0] for block in [first[2:], *others] for line in block}
    assert commands <= {"pip", "automodel-mesh", "nox", "torchrun", "python"}


@pytest.mark.ranks(8)
def test_the_quick_start_prints_what_the_readme_says() -> None:
    """The quick start prints the line that the README names, on one rank."""
    (said,) = re.findall(r"`torchrun [^`]* quick_start\.py`\s+prints\s+`(.*?)`", README)
    rank = dist.get_rank()
    assert pages.run("quick_start.py", BLOCKS[0]) == ("" if rank else f"{said}\n")


@pytest.mark.ranks(8)
def test_the_mesh_layer_of_the_readme_runs() -> None:
    """The block of the mesh layer runs on eight ranks without an error or a warning."""
    pages.run("README.md", BLOCKS[1])


@pytest.mark.release_independent
@pytest.mark.checkout
@pytest.mark.parametrize("page", sorted(page.name for page in ROOT.glob("*.md")))
def test_links_lead_to_files_and_to_headings(page: str) -> None:
    """Each relative link of the pages beside docs/ names a file or folder, and after `#` one of its headings.

    Sphinx checks the links of docs/, and `nox -s links` the addresses.
    """
    found = re.findall(r"\]\((?![a-z]+:)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert found or page != "README.md"
    for path, anchor in found:
        target = ROOT / (path or page)
        assert target.exists(), path
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def headings(text: str) -> list[str]:
    """Return the anchors of the headings of a page: the words in lower case, with hyphens between."""
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return [re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in titles]
