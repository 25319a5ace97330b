"""The programs on the first page of the documentation print what its table says, on the installed release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed as dist

from automodel_mesh import compat
from tests import pages

PAGE = (Path(__file__).parents[1] / "docs" / "index.md").read_text(encoding="utf-8")
PLAIN, OURS = pages.blocks(PAGE, "python")


def said() -> tuple[str, str]:
    """Return the cells of the installed release: what plain torch prints or raises, and what our program prints."""
    release = ".".join(str(compat.TORCH_VERSION).split(".")[:2])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| 2.")
    ]
    ((plain, ours),) = [cells for releases, *cells in rows if release in releases.split(", ")]
    return plain, ours


def test_plain_torch_does_what_the_page_says(tmp_path: Path) -> None:
    """The program without this library prints, or raises, what the table has for this release."""
    program = tmp_path / "plain.py"
    program.write_text(PLAIN, encoding="utf-8")
    # Files for each rank: in one pipe, gloo's messages of other ranks may come in the middle of a line.
    options = ["--standalone", "--nproc-per-node", "8", "--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    launch = [sys.executable, "-m", "torch.distributed.run", *options, str(program)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    out = "\n".join(file.read_text() for file in (tmp_path / "logs").rglob("stdout.log"))
    err = "\n".join(file.read_text() for file in (tmp_path / "logs").rglob("stderr.log"))
    plain, _ = said()
    (result,) = re.findall("`(.*?)`", plain)
    if result.endswith("Error"):
        assert done.returncode != 0
        assert f"{result}: " in err
    else:
        assert done.returncode == 0, done.stderr
        assert result in out
        assert ("Warning" in err) == plain.endswith("with a warning")


@pytest.mark.ranks(8)
def test_our_program_does_what_the_page_says() -> None:
    """The program with this library prints the right ranks on every release, without a warning."""
    rank = dist.get_rank()
    _, ours = said()
    assert pages.run("index.md", OURS) == ("" if rank != 5 else f"{ours.strip('`')}\n")
