"""What torch and frameworks call on a mesh of ours without us: it is right on every rank, or refused on every rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from automodel_mesh import compat, create_ring_ulysses_mesh
from automodel_mesh.compat import worlds
from automodel_mesh.testing import run_ranks
from tests.compat import plain

# Imports torch's compiler, which DTensor needs, once for all tests and not on each rank of each test.
torch.compiler.reset()

RANKS: Final = 8
REFUSED: Any = "refused"


def family() -> DeviceMesh:
    """Make a root with two flattened axes, one of them not contiguous."""
    root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "cp", "tp"))
    compat.flatten(compat.slice_mesh(root, ("dp", "cp")), "dp_cp")
    compat.flatten(compat.slice_mesh(root, ("dp", "tp")), "dp_tp")
    return root


def part(*names: str) -> DeviceMesh:
    """Slice a new family."""
    return compat.slice_mesh(family(), names)


def stages(name: str = "rest") -> DeviceMesh:
    """Make a root of two pipeline stages."""
    return compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("pp", name))


def split_stage(*names: str) -> DeviceMesh:
    """Split the ranks of one stage: a mesh that holds a part of the world on each rank."""
    return compat.unflatten(compat.slice_mesh(stages(), "rest"), "rest", (2, 2), names)


def joined(*names: str) -> DeviceMesh:
    """Concatenate slices of a new family."""
    root = family()
    return compat.concatenate([compat.slice_mesh(root, name) for name in names])


KINDS: Final[dict[str, Callable[[], DeviceMesh]]] = {
    "root": family,
    "slice": lambda: part("cp", "tp"),
    "slice with a gap": lambda: part("dp", "tp"),
    "line": lambda: part("tp"),
    "flattened": lambda: part("dp_cp"),
    "flattened with a gap": lambda: part("dp_tp"),
    "slice of a flattened axis": lambda: part("dp_cp", "tp"),
    # Names of their own: DTensor's caches find meshes by equality, and up to 2.9 FSDP2 requires equal roots.
    "unflattened root": lambda: compat.unflatten(stages(), "rest", (2, 2), ("c", "d")),
    "unflattened slice": lambda: split_stage("a", "b"),
    "slice of an unflattened slice": lambda: compat.slice_mesh(split_stage("a", "b"), "b"),
    "refolded": lambda: compat.refold(part("cp", "tp"), ("cp", "tp"), (1, 4), ("x", "y")),
    "ring and ulysses": lambda: create_ring_ulysses_mesh(stages("cp"), ring_degree=2, ulysses_degree=2),
    "concatenated": lambda: joined("dp_cp", "tp"),
    "concatenated in descending order": lambda: joined("tp", "dp_cp"),
    "stages and an unflattened slice": lambda: compat.concatenate(
        [compat.slice_mesh(compat.get_root_mesh(mesh := split_stage("e", "f")), "pp"), mesh]
    ),
    "part of the world": lambda: compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("u", "v"), ranks=[0, 2, 5, 7]),
}
"""How each kind of mesh is made, each in a family of its own."""


def answers(
    call: Callable[[DeviceMesh], object],
    outside: Callable[[], object] = int,
    kinds: dict[str, Callable[[], DeviceMesh]] = KINDS,
) -> dict[str, set[object]]:
    """Make a call on every kind of mesh, on real ranks; return the answers of the ranks, the same if all is well.

    A refusal is an answer too. Ranks outside of a mesh make another call, by default none.
    """

    def body() -> dict[str, object]:
        warnings.simplefilter("ignore")  # torch warns about slices of flattened axes and about random numbers
        found: dict[str, object] = {}
        for kind, make in kinds.items():
            mesh = make()
            if compat.get_coordinate(mesh) is not None:
                found[kind] = call(mesh)
            else:
                outside()
            dist.barrier()
        return found

    by_rank = run_ranks(body, RANKS, timeout=120.0)
    return {kind: {answer[kind] for answer in by_rank if kind in answer} for kind in kinds}


def attempt(call: Callable[..., Any], *args: Any) -> Any:
    """Return what a call of torch's returns; `REFUSED` if it raises an error that is one of a refusal."""
    try:
        return call(*args)
    except (AssertionError, KeyError, ValueError, RuntimeError, NotImplementedError):
        return REFUSED


def check_groups(mesh: DeviceMesh) -> None:
    """Require that the group torch has along each axis has the ranks that the mesh shows, and that they add up."""
    for dim in range(mesh.ndim):
        line, group = plain.ranks_along(mesh, dim), mesh.get_group(dim)
        assert dist.get_process_group_ranks(group) == line
        total = torch.tensor(dist.get_rank())
        dist.all_reduce(total, group=group)
        assert int(total) == sum(line)


def names_of(mesh: DeviceMesh) -> tuple[str, ...]:
    """Return the names of a mesh's axes."""
    assert mesh.mesh_dim_names is not None
    return mesh.mesh_dim_names


def works(mesh: DeviceMesh, kind: str = "works") -> str:
    """Check the groups of a mesh."""
    check_groups(mesh)
    return kind


def flattened(mesh: DeviceMesh) -> str:
    """Flatten a mesh with torch's own call, and look the result up with ours."""
    groups = len(worlds.live_process_groups())
    flat = attempt(plain.flatten, mesh, "all_of_it")
    if flat is REFUSED:
        assert len(worlds.live_process_groups()) == groups
        return "refused"
    assert flat.mesh.tolist() == mesh.mesh.flatten().tolist()
    assert compat.flattened_meshes(mesh)["all_of_it"] is flat
    assert compat.slice_mesh(mesh, "all_of_it") is flat
    assert compat.flatten(mesh, "all_of_it") is flat
    assert plain.flatten(mesh, "all_of_it") is flat
    assert compat.get_root_mesh(flat) is compat.get_root_mesh(mesh)
    assert compat.get_group(mesh, "all_of_it") is flat.get_group() is mesh.get_group("all_of_it")
    (report,) = (one for one in compat.list_process_groups(mesh) if one.ranks == tuple(flat.mesh.tolist()))
    assert "all_of_it" in report.axes
    assert len(worlds.live_process_groups()) - groups in {0, 1}
    return works(flat)


def test_torchs_flatten() -> None:
    """`DeviceMesh._flatten` does what `flatten` does: no hang, no second group, and our lookups find its mesh.

    The ranks of a mesh concatenated in descending order are refused where torch sorts the ranks of a group.
    """
    found = answers(flattened)
    assert found.pop("concatenated in descending order") in ({"works"}, {REFUSED})
    assert found == {kind: {"works"} for kind in found}


@pytest.mark.ranks(RANKS)
def test_torchs_flatten_to_a_name_that_is_known() -> None:
    """It gives the mesh of that name if it has the same ranks, and is refused on every rank if it has others."""
    root = family()
    groups = worlds.live_process_groups()
    assert plain.flatten(compat.slice_mesh(root, ("dp", "cp")), "dp_cp") is compat.slice_mesh(root, "dp_cp")
    line = compat.slice_mesh(root, "tp")
    assert plain.flatten(line) is line
    for taken in ("dp_tp", "cp"):
        with pytest.raises(ValueError, match=f"the name '{taken}' is taken"):
            plain.flatten(compat.slice_mesh(root, ("dp", "cp")), taken)
    split = compat.unflatten(line, "tp", (2, 1), ("a", "b"))
    with pytest.raises(ValueError, match="the name 'a' is taken"):
        plain.flatten(compat.slice_mesh(root, ("dp", "cp")), "a")
    assert plain.flatten(compat.slice_mesh(split, "a"), "again") is not None
    assert worlds.live_process_groups().keys() - groups.keys() == {compat.get_group(split, "b").group_name}


@pytest.mark.ranks(4)
def test_torchs_flatten_on_one_rank_alone_ends() -> None:
    """A rank that flattens alone gets an error that names the ranks that did not, and the next call works."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"), timeout=timedelta(seconds=1))
    part = compat.refold(root, ("x",), (2, 1), ("a", "b"))
    if dist.get_rank() == 2:
        with pytest.raises(compat.RanksDisagreeError, match="ranks 0, 1, 3 did not call this"):
            plain.flatten(root, "alone")
    dist.barrier()
    check_groups(plain.flatten(part, "together"))


def slices(mesh: DeviceMesh) -> tuple[object, ...]:
    """Slice a mesh by every name and pair of names with torch's own call, and compare with ours."""
    names = (*names_of(mesh), *(name for name in compat.flattened_meshes(mesh) if name not in names_of(mesh)))
    found: list[str] = []
    for chosen in ((name,) for name in names), combinations(names, 2), combinations(names[::-1], 2):
        for some in chosen:
            torchs = attempt(plain.slice_mesh, mesh, some)
            ours = attempt(compat.slice_mesh, mesh, some)
            if torchs is not REFUSED and ours is not REFUSED:
                assert torchs.mesh.tolist() == ours.mesh.tolist(), some
                assert [torchs.get_group(dim) for dim in range(torchs.ndim)] == [
                    compat.get_group(ours, dim) for dim in range(ours.ndim)
                ]
            found.append(REFUSED if torchs is REFUSED else works(torchs))
    return tuple(found)


def test_torchs_slices() -> None:
    """`mesh[...]` gives the ranks and groups that `slice_mesh` gives, or is refused alike on every rank."""
    found = answers(slices)
    assert {kind: len(several) for kind, several in found.items()} == dict.fromkeys(found, 1)
    assert all(("works" in answer) for several in found.values() for answer in several)  # type: ignore[operator]


def groups_by_name(mesh: DeviceMesh) -> tuple[object, ...]:
    """Ask torch for the group of each axis, by name and index, and of each flattened axis."""
    found: list[object] = []
    for axis in (*names_of(mesh), *compat.flattened_meshes(mesh), *range(mesh.ndim)):
        group = attempt(mesh.get_group, axis)
        if group is not REFUSED:
            assert group is compat.get_group(mesh, axis)
            assert mesh.get_local_rank(axis) == dist.get_rank(group)
        found.append((axis, REFUSED if group is REFUSED else "works"))
    assert mesh.get_all_groups() == [compat.get_group(mesh, dim) for dim in range(mesh.ndim)]
    return tuple(found)


def test_torchs_groups() -> None:
    """`get_group` gives our groups: of every axis of the mesh, and of flattened axes or a refusal on every rank."""
    for several in answers(groups_by_name).values():
        (found,) = several
        assert isinstance(found, tuple)
        refused = {axis for axis, answer in found if answer is REFUSED}
        assert refused <= {"dp_cp", "dp_tp"}


def redistributed(mesh: DeviceMesh) -> tuple[str, ...]:
    """Redistribute a tensor over all axes at once, from and to every way of sharding it, and sum over all axes."""
    whole = torch.arange(8.0 * 8 * 2).reshape(8, 8, 2)
    ways: Any = ([Shard(0)] * mesh.ndim, [Shard(dim % 3) for dim in range(mesh.ndim)], [Replicate()] * mesh.ndim)
    found: list[str] = []
    for before, after in product(ways, ways):
        tensor = attempt(lambda: distribute_tensor(whole, mesh, before).redistribute(mesh, after).full_tensor())  # noqa: B023
        found.append(REFUSED if tensor is REFUSED else "works")
        assert tensor is REFUSED or torch.equal(tensor, whole)
    part = DTensor.from_local(torch.ones(2), mesh, [Partial()] * mesh.ndim)
    total = attempt(part.redistribute, mesh, [Replicate()] * mesh.ndim)
    found.append(REFUSED if total is REFUSED else "works")
    assert total is REFUSED or total.to_local().tolist() == [float(mesh.size())] * 2
    return tuple(found)


def test_redistribution_over_several_axes() -> None:
    """DTensor redistributes over several axes of a mesh at once; in descending order it works or is refused."""
    found = answers(redistributed)
    descending = found.pop("concatenated in descending order")
    assert len(descending) == 1
    for several in found.values():
        (outcomes,) = several
        assert set(outcomes) == {"works"}  # type: ignore[call-overload]


def layer() -> nn.Linear:
    """Make a layer with the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Linear(8, 8, bias=False)


def sharded(mesh: DeviceMesh) -> str:
    """Shard a layer over a mesh of one axis, or of two: replicas and shards."""
    model: Any = attempt(lambda: fully_shard(layer(), mesh=mesh))
    if model is REFUSED:
        return f"refused for {mesh.ndim}"
    assert torch.equal(model.weight.full_tensor(), layer().weight)
    return "works"


def test_fully_shard() -> None:
    """FSDP2 shards over every mesh of one or two axes, and refuses three."""
    three = {"root", "unflattened root", "stages and an unflattened slice"}
    assert answers(sharded) == {kind: {"refused for 3" if kind in three else "works"} for kind in KINDS}


def in_parallel(mesh: DeviceMesh) -> tuple[str, ...]:
    """Split a layer over each axis, and shard it over each other one."""

    def weight(one: str, other: str | None) -> Any:
        model: Any = parallelize_module(layer(), compat.slice_mesh(mesh, one), ColwiseParallel())
        if other is not None:
            fully_shard(model, mesh=compat.slice_mesh(mesh, other))
        return model.weight.full_tensor()

    found: list[str] = []
    names = names_of(mesh)
    for one, other in product(names, (None, *names)):
        if one != other:
            whole = attempt(weight, one, other)
            found.append(REFUSED if whole is REFUSED else "works")
            assert whole is REFUSED or torch.equal(whole, layer().weight)
    return tuple(found)


def test_tensor_parallelism_with_fsdp() -> None:
    """Tensor parallelism works along the last axis, and with FSDP2 along the one before; others may be refused."""
    found = answers(in_parallel)
    for kind, several in found.items():
        assert len(several) == 1, kind
    for kind in KINDS.keys() - {"flattened", "flattened with a gap", "concatenated in descending order"}:
        (outcomes,) = found[kind]
        assert set(outcomes[-2:]) == {"works"}, kind  # type: ignore[index]


@pytest.mark.ranks(RANKS)
def test_fsdp_with_tensor_parallelism_over_a_flattened_axis_with_a_gap() -> None:
    """FSDP2 joins a flattened axis that is not contiguous and the axis of tensor parallelism with the right ranks."""
    warnings.simplefilter("ignore")
    root = compat.init_device_mesh("cpu", (2, 2, 2, 1), mesh_dim_names=("dp", "cp", "ep", "tp"))
    data = compat.flatten(root, "dp_ep", dims=("dp", "ep"))
    model: Any = parallelize_module(layer(), compat.slice_mesh(root, "tp"), ColwiseParallel())
    fully_shard(model, mesh=data)
    assert model.weight.device_mesh.mesh.flatten().tolist() == data.mesh.tolist()
    check_groups(model.weight.device_mesh)
    whole = attempt(model.weight.full_tensor)  # refused on 2.11 and 2.12: it is over both axes at once
    assert whole is REFUSED or torch.equal(whole, layer().weight)


@pytest.mark.ranks(4)
def test_torchs_flatten_inside_compiled_code() -> None:
    """`DeviceMesh._flatten` of a mesh of ours works inside `torch.compile`, and its mesh is the one found outside."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    mesh = compat.refold(root, ("tp",), (2, 1), ("ring", "ulysses"))

    @torch.compile(backend="eager")
    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * plain.flatten(mesh, "all_of_it").size()

    assert [scale(torch.ones(1)).item() for _ in range(2)] == [2.0, 2.0]
    check_groups(compat.slice_mesh(mesh, "all_of_it"))


def test_distributed_checkpoints(tmp_path: Path) -> None:
    """A tensor on any mesh is saved, and loaded with another way of sharding it, by all ranks of the world together."""

    def saved(mesh: DeviceMesh) -> str:
        whole = torch.arange(64.0).reshape(8, 8)
        key = str(min(mesh.mesh.flatten().tolist()))  # each slice saves a tensor of its own
        save({key: distribute_tensor(whole, mesh, [Shard(0)] * mesh.ndim)}, checkpoint_id=tmp_path)
        empty = distribute_tensor(torch.zeros(8, 8), mesh, [Shard(1), *[Replicate()] * (mesh.ndim - 1)])
        load({key: empty}, checkpoint_id=tmp_path)
        assert torch.equal(empty.full_tensor(), whole)
        return "works"

    def nothing() -> None:
        save({}, checkpoint_id=tmp_path)
        load({}, checkpoint_id=tmp_path)

    found = answers(saved, nothing)
    assert found == {kind: {"works"} for kind in found}


@pytest.mark.ranks(4)
def test_the_older_wrappers_work_with_and_without_a_mesh() -> None:
    """FSDP and DDP work without a mesh, which they ask the registry about up to 2.9, and on ours."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for options in ({}, {"device_mesh": compat.flatten(root, "all")}, {"device_mesh": compat.slice_mesh(root, "dp")}):
        FullyShardedDataParallel(layer(), device_id=torch.device("cpu"), **options)  # type: ignore[arg-type]
        DistributedDataParallel(layer(), **options)  # type: ignore[arg-type]
