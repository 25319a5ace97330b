"""A program with private calls of torch, migrated, runs on real ranks of every release."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from automodel_mesh.migrating.rewriting import rewrite
from tests.pages import blocks

PAGE = Path(__file__).parents[2] / "docs/how-to/migrate.md"

PROGRAM = """\
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class Layout:
    def __init__(self) -> None:
        self.mesh = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("replicate", "shard", "tp"))
        self.dp = self.mesh["replicate", "shard"]._flatten("dp")

    def parts(self) -> DeviceMesh:
        return self.mesh["replicate", "tp"]._flatten(mesh_dim_name="apart")._unflatten(0, (2, 2), ("outer", "inner"))


layout = Layout()
mesh: DeviceMesh = layout.mesh
parts = layout.parts()
root = parts._get_root_mesh()
joined = DeviceMesh._concatenate([mesh["shard"], mesh["tp"]])
names = sorted(root._flatten_mapping)
found = root._flatten_mapping["dp"]
coordinate = mesh.get_coordinate()
ranks = {
    "dp": dist.get_process_group_ranks(mesh.get_group("dp")),
    "inner": dist.get_process_group_ranks(parts.get_group("inner")),
    "joined": joined.mesh.tolist(),
}
"""
"""What torch does on its newest releases."""


def run(code: str) -> dict[str, Any]:
    """Run a program, and return its names."""
    names: dict[str, Any] = {"__name__": "program"}
    exec(compile(code, "program", "exec"), names)  # noqa: S102 - it is our own
    return names


@pytest.mark.ranks(8)
def test_a_migrated_program_does_on_every_release_what_it_does_on_the_newest() -> None:
    """No private call is left, the roots and ranks are right, and torch gives no warning."""
    done = rewrite(PROGRAM)
    assert not done.left
    assert "._" not in done.source
    names = run(done.source)
    rank = dist.get_rank()
    outer, shard, tp = rank // 4, rank // 2 % 2, rank % 2
    assert names["root"] is names["layout"].mesh
    assert names["found"] is names["layout"].dp
    assert names["names"] == ["apart", "dp"]
    assert names["coordinate"] == (outer, shard, tp)
    assert names["ranks"]["dp"] == [tp, 2 + tp, 4 + tp, 6 + tp]
    assert names["ranks"]["inner"] == [outer * 4 + shard * 2, outer * 4 + shard * 2 + 1]
    assert names["ranks"]["joined"] == [[outer * 4 + 2 * row + column for column in (0, 1)] for row in (0, 1)]


@pytest.mark.ranks(8)
def test_the_program_of_the_page_becomes_what_the_page_shows() -> None:
    """The first block of docs/how-to/migrate.md is rewritten to the second, which runs on every release."""
    before, after = blocks(PAGE.read_text(encoding="utf-8"), "python")
    assert rewrite(before).source == after
    assert run(after)["dp"].size() == 4


@pytest.mark.release_independent
def test_rewriting_does_not_import_torch() -> None:
    """The command works without torch: its modules do not import it."""
    import subprocess  # noqa: PLC0415

    program = "import sys; from automodel_mesh.migrating import command, rewriting; sys.exit('torch' in sys.modules)"
    environment_of_this = [sys.executable, "-c", program]
    assert subprocess.run(environment_of_this, cwd=PAGE.parents[2], check=False, timeout=120).returncode == 0
