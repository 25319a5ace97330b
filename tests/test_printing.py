"""How a `MeshContext` prints, and what a notebook shows of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from automodel_mesh import DDPConfig, FSDP2Config, MeshContext, ParallelismSizes
from tests import pages

PAGE = (Path(__file__).parents[1] / "docs/how-to/plan.md").read_text(encoding="utf-8")


@pytest.mark.ranks(4)
def test_a_context_prints_on_one_line() -> None:
    """It prints its strategy and its axes, open or closed; a notebook shows the groups too as long as it is open."""
    context = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, ep_size=2))
    line = "FSDP2Config; pp=1, dp_replicate=1, dp_shard=2, cp=1, tp=2; expert ep_shard=2, ep=2"
    assert repr(context) == str(context) == f"MeshContext({line})"
    shown = context._repr_html_()
    assert shown.startswith(f"<p>{line}</p><p>mesh on 4 ranks")
    assert shown.count("<svg") == 4  # dp_shard, tp, ep_shard and ep
    context.close()
    assert repr(context) == f"MeshContext({line})"
    assert context._repr_html_() == f"<p>{line}</p>"


@pytest.mark.ranks(4)
def test_contexts_without_a_mesh_and_outside_print_too() -> None:
    """DDP has a process group in place of meshes; a rank outside says that it is."""
    with MeshContext.build(DDPConfig()) as context:
        assert repr(context).endswith("of the ranks 0, 1, 2, 3>)")
        assert "no mesh, <process group" in repr(context)
        assert context._repr_html_().startswith("<p>DDPConfig; no mesh, &lt;process group")
        with pytest.raises(ValueError, match="no device mesh"):
            context.describe()
    with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), ranks=[0, 2]) as context:
        outside = "" if dist.get_rank() in {0, 2} else "; this rank is outside"
        assert repr(context) == f"MeshContext(FSDP2Config; pp=1, dp_replicate=1, dp_shard=1, cp=1, tp=2{outside})"
        assert "mesh on 2 of 4 ranks" in context._repr_html_()
    assert repr(MeshContext()) == "MeshContext()"


@pytest.mark.ranks(2)
def test_the_launchers_nodes_are_drawn() -> None:
    """With the launcher's number of ranks per node, groups that cross nodes are seen."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # as on two nodes with one rank each; this rank is a process of its own
    with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
        assert context.describe().axis("tp").nodes_per_group == 2
        assert "node 1</text>" in context._repr_html_()


@pytest.mark.ranks(8)
def test_the_page_shows_what_is_printed() -> None:
    """The program of docs/how-to/plan.md that describes a context prints what the page says, on one rank."""
    (program,) = (block for block in pages.blocks(PAGE, "python") if "describe(" in block)
    said = pages.blocks(PAGE, "text")[-1]
    assert pages.run("plan.md", program) == ("" if dist.get_rank() else said)
