"""The code that the README shows runs, on ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_shows_code() -> None:
    """There is code to run: the quick start of the contract, and that of the mesh layer."""
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.ranks(8)
def test_code_of_the_readme_runs(block: str) -> None:
    """Each block runs on eight ranks without an error or a warning."""
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - it is our own
