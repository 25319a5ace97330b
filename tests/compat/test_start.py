"""A default process group that is initialised for a mesh: what starts it, and its timeout."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import (
    DistributedSetup,
    FSDP2Config,
    MeshContext,
    ParallelismSizes,
    compat,
    initialize_distributed,
)
from automodel_mesh.testing import run_ranks

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STARTERS: dict[str, Any] = {
    "init_device_mesh": lambda **options: compat.init_device_mesh("cpu", (4,), mesh_dim_names=("dp",), **options),
    "MeshContext.build": lambda timeout=None: MeshContext.build(
        FSDP2Config(), ParallelismSizes(), timeout_minutes=timeout and timeout.total_seconds() / 60
    ),
    "DistributedSetup.build": lambda timeout=None: DistributedSetup.build(
        "fsdp2", timeout_minutes=timeout and timeout.total_seconds() / 60
    ),
}


@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.parametrize("missing", [VARIABLES, VARIABLES[:1], VARIABLES[2:]])
def test_without_a_launcher_the_error_says_what_to_start(
    starter: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variables that are missing and a command, instead of torch's "RANK expected"."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "4")
    for name in missing:
        monkeypatch.delenv(name)
    message = f"torch.distributed is not initialised, and the environment lacks {', '.join(missing)}. Start .*torchrun"
    with pytest.raises(ValueError, match=message):
        STARTERS[starter]()
    assert not dist.is_initialized()


def test_the_remedies_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function that the message names starts a world in which the same call succeeds."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"automodel_mesh\.initialize_distributed\('gloo'\) needs no launcher"):
        compat.init_device_mesh("cpu", (1,))
    initialize_distributed("gloo")
    assert compat.init_device_mesh("cpu", (1,)).size() == 1


@pytest.mark.parametrize("starter", STARTERS)
def test_the_timeout_reaches_the_default_group_that_a_mesh_starts(starter: str) -> None:
    """A collective in the default group waits as long as was asked for, and an axis over the world uses that group."""

    def body() -> None:
        timeout = timedelta(seconds=3)
        result = STARTERS[starter](timeout=timeout)
        mesh = result if starter == "init_device_mesh" else getattr(result, "mesh_context", result).device_mesh
        name = "dp" if starter == "init_device_mesh" else "dp_shard"
        assert compat.get_group(mesh, name) is dist.group.WORLD
        assert timeout in {group.timeout for group in compat.list_process_groups(mesh)}
        if dist.get_rank() == 0:
            with pytest.raises(RuntimeError, match=re.compile("timed? ?out", re.IGNORECASE)):
                dist.recv(torch.ones(1), src=1)

    run_ranks(body, 4, backend=None)


@pytest.mark.ranks(4, backend=None)
def test_the_timeout_of_a_default_group_that_exists_does_not_change() -> None:
    """With a timeout, an axis over the world then gets a group of its own; with that of the world, it does not."""
    rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    initialize_distributed("gloo", timeout_minutes=3)
    assert (dist.get_rank(), dist.get_world_size()) == (rank, size)
    for minutes, shared in ((3, True), (2, False)):
        mesh = compat.init_device_mesh("cpu", (4,), mesh_dim_names=("dp",), timeout=timedelta(minutes=minutes))
        assert (compat.get_group(mesh, "dp") is dist.group.WORLD) == shared
