"""The programs of the pages: those in several blocks, and those that are saved and started with torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_mesh import compat
from automodel_mesh.compat import backport
from tests.pages import blocks

pytest_plugins = ["pytester"]

DOCS = Path(__file__).parents[1] / "docs"


def run_all(page: str, **names: Any) -> dict[str, Any]:
    """Run the blocks of a page in one namespace, which has some names before, and return it."""
    for block in blocks((DOCS / page).read_text(encoding="utf-8"), "python"):
        exec(compile(block, page, "exec"), names)  # noqa: S102 - it is our own
    return names


@pytest.mark.ranks(8)
def test_what_replaces_the_patterns_of_frameworks_gives_the_right_ranks() -> None:
    """Each block of docs/how-to/many-releases.md gives a mesh whose groups have the ranks that it shows."""
    names = run_all("how-to/many-releases.md")
    rank = dist.get_rank()
    assert names["dp_cp"].mesh.tolist() == [rank % 2 + 2 * step for step in range(4)]
    assert names["parts"].mesh_dim_names == ("dp_replicate", "dp_shard", "cp", "tp")
    assert names["dense"].mesh_dim_names == ("dp_cp", "tp")
    assert names["ring"].mesh.tolist() == [rank & ~2, rank | 2]
    for name in ("dp_cp", "parts", "dense", "ring", "other"):
        mesh = names[name]
        for axis in mesh.mesh_dim_names:
            line = compat.slice_mesh(mesh, axis).mesh.tolist()
            assert dist.get_process_group_ranks(compat.get_group(mesh, axis)) == line
    assert compat.get_root_mesh(names["ring"]) is names["mesh"]


@pytest.mark.ranks(8)
def test_the_concepts_hold() -> None:
    """The code of docs/concepts.md runs, and its `dp` joins the ranks that the drawing shows."""
    names = run_all("concepts.md")
    assert names["dp"].mesh.tolist() == [dist.get_rank() % 2 + 2 * step for step in range(4)]


@pytest.mark.ranks(8)
def test_the_example_of_the_glossary_has_the_ranks_and_layouts_that_it_says() -> None:
    """The groups along `tp` and `dp` are those of the text, and the layouts are shown as they are."""
    root = run_all("glossary.md")["root"]
    rank = dist.get_rank()
    assert dist.get_process_group_ranks(compat.get_group(root, "tp")) == [rank & ~1, rank | 1]
    assert dist.get_process_group_ranks(compat.get_group(root, "dp")) == [rank % 2 + 2 * step for step in range(4)]
    compat.flatten(compat.slice_mesh(root, ("dp_replicate", "tp")), "folded")
    described = compat.describe(root)
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    (says,) = re.findall(r"^: (The ranks along an axis as .*?)\n\n", text, re.DOTALL | re.MULTILINE)
    shown = re.findall(r"`(\(\(.*?\))`", says)
    assert shown == [str(tuple(map(tuple, described.axis(name).layout))) for name in ("tp", "dp", "folded")]


@pytest.mark.ranks(8)
def test_the_calls_of_a_newer_torch_run_as_the_page_says() -> None:
    """In docs/how-to/backport.md the block of `with` restores torch, and the meshes of the last block are right."""

    def build() -> DeviceMesh:
        part = init_device_mesh("cpu", (4, 2, 1), mesh_dim_names=("dp", "tp", "cp"))["dp", "tp"]
        assert part["tp"].size() == 2  # torch 2.6 to 2.8 refuse a slice of a slice
        return part

    text = (DOCS / "how-to/backport.md").read_text(encoding="utf-8")
    (with_block,) = (block for block in blocks(text, "python") if block.startswith("with "))
    given = {"backport": backport, "build_meshes_as_the_package_does": build}
    before = dict(vars(DeviceMesh))
    exec(compile(with_block, "backport.md", "exec"), given)  # noqa: S102 - it is our own
    assert dict(vars(DeviceMesh)) == before
    names = run_all("how-to/backport.md", **given)
    assert names["split"].mesh_dim_names == ("dp_replicate", "dp_shard", "tp")
    outer = dist.get_rank() // 4 * 4
    assert names["joined"].mesh_dim_names == ("dp_shard", "tp")
    assert names["joined"].mesh.tolist() == [[outer, outer + 1], [outer + 2, outer + 3]]


@pytest.mark.ranks(4)
def test_the_log_has_the_line_that_the_page_shows(caplog: pytest.LogCaptureFixture) -> None:
    """The line of docs/how-to/backends.md is that of rank 2 on a mesh of two axes, but for the times."""
    (shown,) = blocks((DOCS / "how-to/backends.md").read_text(encoding="utf-8"), "console")
    ((logger, message),) = re.findall(r" INFO ([\w.]+): (rank 2 made .*), \d+ ms$", shown, re.MULTILINE)
    with caplog.at_level("INFO", logger):
        compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    said = [record.getMessage().rpartition(", ")[0] for record in caplog.records if record.name == logger]
    assert len(said) == 2
    assert (message in said) == (dist.get_rank() == 2)


def test_the_suite_of_the_page_has_the_results_that_it_says(pytester: pytest.Pytester) -> None:
    """The two files of docs/how-to/testing.md are a suite that passes; without a GPU two of its tests are skipped."""
    text = (DOCS / "how-to/testing.md").read_text(encoding="utf-8")
    conftest, suite = blocks(text, "python")
    pytester.makeconftest(conftest)
    pytester.makepyfile(suite)
    outcomes = pytester.runpytest_inprocess("-W", "error", "-p", "no:cacheprovider", "-rs").parseoutcomes()
    assert outcomes.keys() <= {"passed", "skipped"}
    if not torch.accelerator.is_available():
        ((passed, skipped),) = re.findall(r"Without a GPU, the tests above give (\w+) passed and (\w+) skipped", text)
        number = ("zero", "one", "two", "three", "four").index
        assert outcomes == {"passed": number(passed), "skipped": number(skipped)}


PROGRAMS = [
    ("tutorial.md", 0, 8),
    ("tutorial.md", 1, 0),
    ("how-to/part-of-the-world.md", 0, 8),
    ("how-to/backends.md", 0, 8),
    ("how-to/compiled-code.md", 0, 4),
]
"""The page, the number of its block, and with how many ranks torchrun starts it; 0 for a program of one process."""


@pytest.mark.release_independent
@pytest.mark.parametrize(("page", "index", "ranks"), PROGRAMS)
def test_a_program_prints_what_its_page_shows(page: str, index: int, ranks: int, tmp_path: Path) -> None:
    """Saved and started as the page says, it prints the lines below it; those of several ranks come in any order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    shown = blocks(text, "text") or [block.partition("\n")[2] for block in blocks(text, "console")]
    file = tmp_path / "program.py"
    file.write_text(blocks(text, "python")[index], encoding="utf-8")
    # A file for each rank: torchrun's ranks do not buffer, so in one pipe the parts of their lines can be mixed.
    options = ["--standalone", "--nproc-per-node", str(ranks), "--redirects", "1", "--log-dir", str(tmp_path / "logs")]
    launcher = ["-m", "torch.distributed.run", *options] if ranks else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS.parent)}
    line = [sys.executable, *launcher, str(file)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = "".join(log.read_text() for log in tmp_path.rglob("stdout.log")) if ranks else done.stdout
    assert sorted(printed.splitlines()) == sorted(shown[index].splitlines())


@pytest.mark.release_independent
@pytest.mark.checkout
def test_every_page_is_in_the_sidebar() -> None:
    """Each page is in a table of contents, and each entry of one is a page."""
    listed = set()
    for index in (DOCS / "index.md", DOCS / "reference/index.md", DOCS / "benchmarks/index.md"):
        for tree in blocks(index.read_text(encoding="utf-8"), "{toctree}"):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(index.parent / f"{entry}.md").relative_to(DOCS) for entry in entries}
    pages = {page.relative_to(DOCS) for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    included = {Path("benchmarks/headlines.md"), Path("index.md")}
    assert listed == pages - included
