"""`describe`: the groups of all ranks, compared with those that the ranks really have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.device_mesh import init_device_mesh as torchs

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, compat
from automodel_mesh.testing import fake_world

if TYPE_CHECKING:
    from automodel_mesh.topology import MeshDescription

NAMES = ("dp", "cp", "tp")


def gathered(mine: object) -> list[Any]:
    """Return what each rank has."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def require_true(described: MeshDescription, meshes: dict[str, DeviceMesh]) -> None:
    """Compare each axis with the process groups that all ranks have along it."""
    assert [axis.name for axis in described.axes] == [*meshes]
    for name, mesh in meshes.items():
        axis = None if mesh.ndim == 1 else name
        mine = dist.get_process_group_ranks(compat.get_group(mesh, axis))
        told = list(described.groups(name))
        assert {tuple(group) for group in gathered(mine)} == set(told)
        assert len(told) == described.axis(name).groups
        assert described.axis(name).size == len(mine)
        (own,) = (group for group in described.groups_of(dist.get_rank()) if name in group.axes)
        assert list(own.ranks) == mine


@pytest.mark.ranks(8)
def test_the_groups_are_those_of_all_ranks() -> None:
    """Native axes, flattened ones that are not contiguous, and a slice of them have the groups that all ranks have."""
    root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = {"dp_tp": compat.flatten(root, "dp_tp", dims=("dp", "tp")), "all": compat.flatten(root, "all")}
    described = compat.describe(root, ranks_per_node=4)
    require_true(described, {**dict.fromkeys(NAMES, root), **flat})
    assert described.axis("dp_tp").folds == ("dp", "tp")
    assert described.axis("all").default_group
    assert [described.axis(name).nodes_per_group for name in ("dp", "cp", "tp", "dp_tp")] == [2, 1, 1, 2]
    part = compat.slice_mesh(root, ("cp", "tp"))
    require_true(compat.describe(part), {"cp": part, "tp": part, **flat})
    coordinate = compat.get_coordinate(root)
    assert coordinate is not None
    assert described.coordinate(dist.get_rank()) == dict(zip(NAMES, coordinate, strict=True))


@pytest.mark.ranks(8)
def test_meshes_that_torch_made_and_unnamed_ones() -> None:
    """A mesh that torch made is described as ours are; axes without names are numbered."""
    mesh = torchs("cpu", (4, 2), mesh_dim_names=("dp", "tp"))
    require_true(compat.describe(mesh), {"dp": mesh, "tp": mesh})
    bare = torchs("cpu", (2, 4))
    assert [axis.name for axis in compat.describe(bare).axes] == ["dim_0", "dim_1"]
    assert list(compat.describe(bare).groups("dim_1")) == [(0, 1, 2, 3), (4, 5, 6, 7)]


@pytest.mark.ranks(8)
def test_a_context_describes_its_meshes() -> None:
    """`MeshContext.describe` has the expert mesh too; which axes share groups is what the ranks have."""
    with MeshContext.build(
        FSDP2Config(), ParallelismSizes(tp_size=2, ep_size=4), separate_groups=["dp_shard_cp"]
    ) as context:
        described = context.describe(ranks_per_node=4)
        require_true(described, {axis.name: context.flat_mesh(axis.name) for axis in described.axes})
        groups = {group.name: group.axes for group in context.process_groups()}
        for axis in described.axes:
            (users,) = (axes for axes in groups.values() if axis.name in axes)
            assert {axis.name, *axis.shares_with} == set(users)
        assert [axis.name for axis in described.axes if axis.kind == "expert"] == ["ep_shard", "ep"]
        assert described.axis("dp_shard_cp").shares_with == ()
        assert described.axis("dp_cp").shares_with == ("dp_shard", "dp")
        shown = described._repr_html_()
        assert (shown.count("<table>"), "node 1" in shown) == (1, True)


@pytest.mark.ranks(4)
def test_ranks_outside_and_closed_meshes() -> None:
    """A rank outside a mesh knows its native axes; a closed mesh is refused; meshes over other ranks do not mix."""
    mesh = compat.init_device_mesh("cpu", (2,), mesh_dim_names=("tp",), ranks=[1, 3])
    described = compat.describe(mesh)
    assert (list(described.groups("tp")), str(described)) == (
        [(1, 3)],
        "mesh on 2 of 4 ranks, 4 per node (1 node): tp=2",
    )
    other = compat.init_device_mesh("cpu", (4,), mesh_dim_names=("ep",))
    with pytest.raises(ValueError, match=r"expert_mesh: .*describe each by itself"):
        compat.describe(mesh, other)
    with pytest.raises(ValueError, match="ranks_per_node=0 is less than 1"):
        compat.describe(mesh, ranks_per_node=0)
    with pytest.raises(TypeError, match="expected a torch DeviceMesh"):
        compat.describe("tp")  # type: ignore[arg-type]
    compat.destroy_process_groups(mesh)
    with pytest.raises(compat.ProcessGroupDestroyedError):
        compat.describe(mesh)


def test_a_large_mesh_is_described_by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed in a world of 65,536 ranks; the launcher's number of ranks per node is used."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with fake_world(65_536):
        mesh = compat.init_device_mesh("cpu", (8192, 8), mesh_dim_names=("dp", "tp"))
        described = compat.describe(mesh)
        assert (described.nodes, described.axis("tp").groups_across_nodes) == (8192, 0)
        assert described.groups_of(12_345)[0].ranks == range(1, 65_536, 8)
        assert isinstance(described.ranks, range)
