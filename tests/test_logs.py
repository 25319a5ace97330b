"""What is logged: a line for each process group that a rank makes, none for lookups; and `AUTOMODEL_MESH_LOG`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch.distributed as dist

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes
from automodel_mesh.compat import worlds

LINE = re.compile(r"rank (\d) made process group (\S+) for axis (\w+): ranks ([\d, ]+), backend gloo, \d+ ms")
IN_A_FAKE_WORLD = """
from automodel_mesh import compat
from automodel_mesh.testing import fake_world
with fake_world(8):
    compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
"""


@pytest.mark.ranks(4)
def test_each_group_is_logged_when_it_is_made_and_no_lookup_is(caplog: pytest.LogCaptureFixture) -> None:
    """On each rank a line has the name, axis, ranks and backend of each group that `build` made; lookups add none."""
    caplog.set_level("INFO", logger="automodel_mesh")
    before = worlds.live_process_groups()
    with MeshContext.build(FSDP2Config(), ParallelismSizes(dp_replicate_size=2, tp_size=2)) as context:
        found = [match.groups() for record in caplog.records if (match := LINE.fullmatch(record.getMessage()))]
        made = {name: ranks for name, ranks in worlds.live_process_groups().items() if name not in before}
        assert len(found) == len(made) > 2
        for rank, name, axis, ranks in found:
            assert int(rank) == dist.get_rank()
            assert tuple(map(int, ranks.split(", "))) == made[name]
            assert axis in {"pp", "dp_replicate", "dp_shard", "cp", "tp", "dp", "dp_shard_cp", "dp_cp"}
        caplog.clear()
        context.flat_mesh("dp_cp")
        context.submesh(("dp_replicate", "tp"))
        context.process_groups()
        dist.barrier()
        assert not caplog.records


def run(level: str) -> subprocess.CompletedProcess[str]:
    """Build a mesh in a process with the environment variable."""
    environment = {**os.environ, "AUTOMODEL_MESH_LOG": level}
    command = [sys.executable, "-W", "ignore", "-c", IN_A_FAKE_WORLD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_environment_variable_prints_the_lines() -> None:
    """`info` prints a line for each of the two groups, `warning` none; a level that does not exist is an error."""
    done = run("info")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "made process group" in line]
    assert ["axis dp" in lines[0], "axis tp" in lines[1], len(lines)] == [True, True, 2]
    assert "made process group" not in run("WARNING").stderr
    refused = run("infos")
    assert refused.returncode == 1
    assert "AUTOMODEL_MESH_LOG='infos' is no level (did you mean 'INFO'?): give one of DEBUG" in refused.stderr
