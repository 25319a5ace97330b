"""The Python code in the README runs, on ranks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_has_two_blocks_of_python() -> None:
    """The README has the quick start of `automodel_mesh.compat` and that of the mesh layer."""
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
@pytest.mark.ranks(8)
def test_code_of_the_readme_runs(block: str) -> None:
    """Each block runs on eight ranks without an error or a warning."""
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - it is our own
