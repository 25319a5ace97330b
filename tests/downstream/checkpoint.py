"""torch.distributed.checkpoint: save under one topology, load under another, also on another torch release.

Checkpoints lie in the folder AUTOMODEL_MESH_CHECKPOINTS; those of other releases that are there are loaded too.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.downstream import plain
from tests.downstream.program import Check, main

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DEFAULT: Final = Path(tempfile.gettempdir(), f"checkpoints-{os.getpid()}")
CHECKPOINTS: Final = Path(os.environ.get("AUTOMODEL_MESH_CHECKPOINTS", DEFAULT))
RELEASE: Final = ".".join(metadata.version("torch").split(".")[:2])

HSDP, CONTEXT = "HSDP with tensor parallelism", "context parallelism"
RANKS: Final = {HSDP: 8, CONTEXT: 4}
SIZES: Final = {HSDP: {"dp_replicate_size": 2, "tp_size": 2}, CONTEXT: {"cp_size": 2}}


def mesh_of(which: str, topology: str) -> DeviceMesh:
    """Make the mesh over which a topology shards: three axes, or a flattened one."""
    if which == "ours":
        layer: Any = import_module("automodel_mesh")
        context = layer.MeshContext.build(layer.FSDP2Config(), layer.ParallelismSizes(**SIZES[topology]))
        names = "dp_shard_cp" if "cp_size" in SIZES[topology] else ("dp_replicate", "dp_shard", "tp")
        mesh: DeviceMesh = context.submesh(names)
        return mesh
    if "cp_size" in SIZES[topology]:
        root = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_shard", "cp"))
        return plain.flatten(root["dp_shard", "cp"], "dp_shard_cp")
    return init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp_replicate", "dp_shard", "tp"))


def state_on(mesh: DeviceMesh, *, empty: bool = False) -> dict[str, Any]:
    """Return a state on a mesh: shards of a matrix, an uneven vector, and numbers."""
    factor = 0 if empty else 1
    sharded = [Shard(0)] if mesh.ndim == 1 else [Replicate(), Shard(0), Shard(1)]
    uneven = [Shard(0)] if mesh.ndim == 1 else [Replicate(), Replicate(), Shard(0)]
    return {
        "model": {
            "weight": distribute_tensor(factor * torch.arange(128.0).reshape(16, 8), mesh, sharded),
            "bias": distribute_tensor(factor * torch.arange(7.0), mesh, uneven),
        },
        "step": torch.tensor(factor * 5),
    }


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state with whole tensors."""
    flat = {**state["model"], "step": state["step"]}
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in flat.items()}


def save(which: str, topology: str) -> None:
    """Save the state."""
    checkpoint: Any = import_module("torch.distributed.checkpoint")
    folder = CHECKPOINTS / f"{RELEASE} {which}" / topology
    checkpoint.save(state_on(mesh_of(which, topology)), checkpoint_id=folder)


def load(which: str, topology: str, saved: Path | None, saved_topology: str) -> None:
    """Load a state into one of zeros, and compare it with what was saved."""
    checkpoint: Any = import_module("torch.distributed.checkpoint")
    mesh = mesh_of(which, topology)
    state = state_on(mesh, empty=True)
    checkpoint.load(state, checkpoint_id=(saved or CHECKPOINTS / f"{RELEASE} {which}") / saved_topology)
    found, wanted = whole(state), whole(state_on(mesh))
    wrong = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    if wrong:
        raise AssertionError(f"{wrong} are not as they were saved")
    dist.barrier()


def checks_of(saved: Path | None, who: str) -> list[Check]:
    """Load what each topology saved under the other one."""
    one, other = RANKS
    return [
        Check(
            f"`checkpoint`: {topology} loads what {before} saved{who}",
            RANKS[topology],
            partial(load, topology=topology, saved=saved, saved_topology=before),
        )
        for topology, before in ((one, other), (other, one))
    ]


def checks_of_others() -> list[Check]:
    """Load what other releases saved."""
    paths = sorted(path for path in CHECKPOINTS.glob("*") if not path.name.startswith(f"{RELEASE} "))
    names = {path: path.name.replace(" plain", "").replace(" ours", " with our meshes") for path in paths}
    return [check for path in paths for check in checks_of(path, f" on torch {names[path]}")]


CHECKS: Final = [
    *(
        Check(f"`checkpoint`: {topology} saves", RANKS[topology], partial(save, topology=topology))
        for topology in RANKS
    ),
    *checks_of(None, ""),
    *checks_of_others(),
]

if __name__ == "__main__":
    main(CHECKS, ["torch.distributed.checkpoint"])
