"""Torch's own code on meshes of torch's, some of them made before the call, while `backport` is in use."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import run_ranks
from tests.compat import newest, plain
from tests.compat.test_torchs_calls import (
    RANKS,
    REFUSED,
    answers,
    check_groups,
    groups_by_name,
    in_parallel,
    redistributed,
    sharded,
    works,
)


def cube() -> DeviceMesh:
    """Make a root of torch's, a slice of it, and a flattened axis; then call `backport`."""
    root = plain.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "cp", "tp"))
    plain.flatten(plain.slice_mesh(root, ("dp", "cp")), "dp_cp")
    compat.backport()
    return root


def part(*names: str) -> DeviceMesh:
    """Slice a root with the flattened axis."""
    return plain.slice_mesh(cube(), names)


def split(names: tuple[str, str]) -> DeviceMesh:
    """Split an axis of a slice by torch's method."""
    return plain.unflatten(part("cp", "tp"), "tp", (2, 1), names)


def before() -> DeviceMesh:
    """Return a slice that was made before the call."""
    root = plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("old_dp", "old_tp"))
    line = plain.slice_mesh(root, "old_tp")
    compat.backport()
    return line


KINDS: Final[dict[str, Callable[[], DeviceMesh]]] = {
    "root": cube,
    "slice made before": before,
    "slice": lambda: part("cp", "tp"),
    "slice of a slice": lambda: plain.slice_mesh(part("cp", "tp"), "tp"),
    "flattened": lambda: newest.flattened_meshes(cube())["dp_cp"],
    "flattened with a gap": lambda: plain.flatten(part("dp", "tp"), "dp_tp"),
    "unflattened": lambda: plain.slice_mesh(split(("a", "b")), ("cp", "b")),
    "concatenated": lambda: plain.concatenate([plain.slice_mesh(root := cube(), "dp"), plain.slice_mesh(root, "tp")]),
    "of the new function": lambda: newest.init_device_mesh("cpu", (4, 2), mesh_dim_names=("u", "v")),
}
"""How each kind of mesh is made, each in a family of its own."""


def test_groups_are_right() -> None:
    """Torch's calls find the right group along each axis, by name and by index."""
    found: dict[str, Any] = dict(answers(lambda mesh: (works(mesh), *groups_by_name(mesh)), kinds=KINDS))
    for kind, several in found.items():
        ((_, *groups),) = several
        assert all(answer is not REFUSED for _, answer in groups), kind


def test_tensors_are_redistributed() -> None:
    """DTensor redistributes over all axes at once."""
    found: dict[str, Any] = dict(answers(redistributed, kinds=KINDS))
    for (outcomes,) in found.values():
        assert set(outcomes) == {"works"}


def test_modules_are_sharded() -> None:
    """FSDP2 shards over one axis, and over two."""
    found = answers(sharded, kinds=KINDS)
    assert found.pop("root") == {"refused for 3"}
    assert found == {kind: {"works"} for kind in found}


def test_modules_are_tensor_parallel() -> None:
    """Tensor parallelism works along the last axis of the root, and with FSDP2 along the one before."""
    kinds = {kind: make for kind, make in KINDS.items() if not kind.startswith("flattened")}
    found: dict[str, Any] = dict(answers(in_parallel, kinds=kinds))
    for kind, (outcomes,) in found.items():
        assert set(outcomes[-2:]) == {"works"}, kind


def pickled(mesh: DeviceMesh) -> str:
    """Pickle and copy a mesh, and use the copies."""
    for each in (pickle.loads(pickle.dumps(mesh)), copy.deepcopy(mesh)):
        assert each == mesh
        assert each.get_coordinate() == mesh.get_coordinate()
        check_groups(each)
    return "works"


def test_meshes_are_pickled_and_copied() -> None:
    """Copies equal their mesh, and have its groups."""
    assert {
        kind: len(several) for kind, several in answers(lambda mesh: tuple(pickled(mesh)), kinds=KINDS).items()
    } == (dict.fromkeys(KINDS, 1))


def test_checkpoints_are_saved_and_loaded(tmp_path: Path) -> None:
    """What is saved over a mesh made before the call is loaded over one that was split, and the other way round."""

    def body() -> None:
        warnings.simplefilter("ignore")
        whole = torch.arange(16.0).reshape(8, 2)
        root = plain.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        old = distribute_tensor(whole, root, [Shard(0), Shard(0)])
        compat.backport()
        new = distribute_tensor(whole, plain.unflatten(root, "tp", (2, 2), ("a", "b")), [Shard(0)] * 3)
        for name, saved, other in (("old", old, new), ("new", new, old)):
            save({"weight": saved}, checkpoint_id=tmp_path / name)
            target = DTensor.from_local(torch.zeros(1, 2), other.device_mesh, other.placements)
            load({"weight": target}, checkpoint_id=tmp_path / name)
            assert torch.equal(target.full_tensor(), whole)

    run_ranks(body, RANKS)


@pytest.mark.ranks(4)
def test_compiled_code_slices_meshes() -> None:
    """Inside `torch.compile` the calls give what they give outside, in one graph if torch's own calls do so."""
    mesh = plain.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def sliced(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + plain.slice_mesh(mesh, "tp").size() + (plain.get_coordinate(mesh) or (0, 0))[0]

    def compiles() -> bool:
        torch.compiler.reset()
        try:
            torch.compile(sliced, backend="eager", fullgraph=True)(torch.zeros(1))
        except Exception:  # noqa: BLE001 - each release has another error
            return False
        return True

    plain.restore_torch()
    before = compiles()
    with compat.backport():
        assert compiles() >= before
        torch.compiler.reset()
        found = torch.compile(sliced, backend="eager")(torch.zeros(1))
        assert found.tolist() == sliced(torch.zeros(1)).tolist() == [2.0 + dist.get_rank() // 2]


@pytest.mark.ranks(4)
def test_meshes_outlive_the_block() -> None:
    """Meshes that were made in the block, by torch's calls or ours, are used after it."""
    names = ("a", "b")
    with compat.backport():
        root = newest.init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
        flat = plain.flatten(root, "all")
        line = newest.slice_mesh(root, "b")
    assert works(root) == works(flat) == works(line) == "works"
    assert compat.get_root_mesh(line) is compat.get_root_mesh(flat) is root
    assert compat.slice_mesh(line, "all") is flat
    groups = worlds.live_process_groups()
    assert plain.slice_mesh(root, "b").mesh.tolist() == line.mesh.tolist()
    assert worlds.live_process_groups() == groups
