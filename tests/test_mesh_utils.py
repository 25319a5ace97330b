"""Lookups of meshes by name."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import (
    FSDP2Config,
    MegatronFSDPConfig,
    MeshAxisName,
    MeshContext,
    ParallelismSizes,
    compat,
    create_ring_ulysses_mesh,
    get_flat_mesh,
    get_fsdp_dp_mesh,
    get_submesh,
)
from automodel_mesh.compat import worlds
from automodel_mesh.errors import RankNotInMeshError, UnknownAxisError
from automodel_mesh.testing import fake_world
from tests.compat.oracle import FSDP2_AXES, Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.device_mesh import DeviceMesh

TP2_CP2 = ParallelismSizes(tp_size=2, cp_size=2)


def build(sizes: ParallelismSizes, **options: Any) -> DeviceMesh:
    """Build the root mesh of FSDP2."""
    mesh = MeshContext.build(FSDP2Config(), sizes, **options).device_mesh
    assert mesh is not None
    return mesh


def ranks_of(mesh: DeviceMesh, axis: str | None = None) -> list[int]:
    """List the ranks of this rank's group along an axis."""
    return dist.get_process_group_ranks(compat.get_group(mesh, axis))


def check(mesh: DeviceMesh, root: DeviceMesh, grid: Grid, names: Sequence[str]) -> None:
    """Compare a mesh, its groups and its root with the expected ones."""
    assert mesh.mesh_dim_names == tuple(names)
    assert mesh.mesh.tolist() == grid.mesh([FSDP2_AXES[name] for name in names], dist.get_rank())
    assert [ranks_of(mesh, name) for name in names] == [grid.group(FSDP2_AXES[name], dist.get_rank()) for name in names]
    assert compat.get_root_mesh(mesh) is root


@pytest.fixture
def no_new_group(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after whose call creating a process group is an error."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a process group was asked for")

    def forbid() -> None:
        for name in ("new_group", "split_group"):
            monkeypatch.setattr(dist, name, refuse)
            monkeypatch.setattr(dist.distributed_c10d, name, refuse)

    return forbid


# --- lookups

FSDP_CASES = [
    ({"tp_size": 2}, (1, 1, 4, 1, 2), ("dp_shard",)),
    ({"tp_size": 2, "cp_size": 2}, (1, 1, 2, 2, 2), ("dp_shard_cp",)),
    ({"tp_size": 2, "dp_replicate_size": 2}, (1, 2, 2, 1, 2), ("dp_replicate", "dp_shard")),
    ({"cp_size": 2, "dp_replicate_size": 2}, (1, 2, 2, 2, 1), ("dp_replicate", "dp_shard_cp")),
    ({"pp_size": 2, "cp_size": 2, "dp_replicate_size": 2}, (2, 2, 1, 2, 1), ("dp_replicate", "dp_shard_cp")),
    ({"pp_size": 8}, (8, 1, 1, 1, 1), ("dp_shard",)),
]


@pytest.mark.ranks(8)
def test_the_mesh_for_fsdp_has_an_axis_of_replicas_only_if_there_are_several() -> None:
    """It has one axis without replicas, two with; the last includes context parallel ranks, from any mesh."""
    for sizes, shape, names in FSDP_CASES:
        with MeshContext.build(FSDP2Config(), ParallelismSizes(**sizes)) as context:
            dist.barrier()  # no rank closes a connection that another one is still making
            root = context.device_mesh
            assert root is not None
            before = worlds.live_process_groups()
            found = get_fsdp_dp_mesh(root)
            check(found, root, Grid(shape), names)
            line = get_flat_mesh(root, "tp")
            for asked in (line, get_flat_mesh(root, "dp_cp"), get_submesh(root, ("dp_shard", "tp")), found):
                check(get_fsdp_dp_mesh(asked), root, Grid(shape), names)
                assert get_fsdp_dp_mesh(asked) is get_fsdp_dp_mesh(asked)
            assert get_fsdp_dp_mesh(root) is found
            assert get_fsdp_dp_mesh(root, "dp_replicate", "dp_shard_cp") is found
            assert worlds.live_process_groups() == before
            total = torch.tensor(dist.get_rank())
            for name in names:
                dist.all_reduce(total, group=compat.get_group(found, name))
            assert total.item() == sum(
                chain(Grid(shape).group(tuple(chain(*(FSDP2_AXES[name] for name in names))), dist.get_rank()))
            )


@pytest.mark.ranks(8)
def test_any_axes_are_found_from_any_mesh_of_the_family() -> None:
    """Native, flattened and mixed names, looked up on the root or a slice, give the oracle's ranks and the root."""
    shape = (1, 2, 2, 1, 2)
    wanted = [
        ("dp_replicate", "dp_shard_cp"),
        ("dp_cp", "tp"),
        ("dp", "cp"),
        ("dp", "cp", "tp"),
        ("pp", "dp_shard", "tp"),
        ("dp_shard_cp", "tp"),
    ]
    root = build(ParallelismSizes(dp_replicate_size=2, tp_size=2))
    groups = worlds.live_process_groups()
    askable = [
        root,
        *(get_flat_mesh(root, axis) for axis in FSDP2_AXES),
        get_submesh(root, ("dp_replicate", "dp_shard_cp")),
    ]
    for asked in askable:
        for axis in FSDP2_AXES:
            check(get_flat_mesh(asked, axis), root, Grid(shape), (axis,))
        for names in wanted:
            check(get_submesh(asked, names), root, Grid(shape), names)
    check(get_flat_mesh(get_flat_mesh(root, "tp"), "dp_cp"), root, Grid(shape), ("dp_cp",))
    assert worlds.live_process_groups() == groups


def test_no_lookup_makes_a_group(no_new_group: Callable[[], None]) -> None:
    """No first and no repeated lookup creates a process group, for any names, from any mesh."""
    with fake_world(64, 37):
        root = build(ParallelismSizes(pp_size=2, tp_size=2, cp_size=2, dp_replicate_size=2))
        no_new_group()
        for mesh in (root, get_flat_mesh(root, "tp"), get_flat_mesh(root, "dp_cp")):
            for _ in range(2):
                assert [get_flat_mesh(mesh, axis).size() for axis in FSDP2_AXES] == [2, 2, 4, 2, 2, 8, 8, 16]
                assert get_submesh(mesh, ("dp_replicate", "dp_shard_cp")).shape == (2, 8)
                assert get_submesh(mesh, ("pp", "dp_cp", "tp")).shape == (2, 16, 2)
                assert get_fsdp_dp_mesh(mesh).shape == (2, 8)


def test_a_repeated_request_returns_the_same_object() -> None:
    """A repeated lookup returns the same object, from the root or a slice, by string or by member."""
    with fake_world(16):
        root = build(ParallelismSizes(tp_size=2, cp_size=2, dp_replicate_size=2))
        line = get_flat_mesh(root, "tp")
        mixed = ("dp_replicate", "dp_shard_cp")
        for mesh in (root, line):
            assert get_flat_mesh(mesh, "tp") is line
            assert get_flat_mesh(mesh, "dp_cp") is get_flat_mesh(root, "dp_cp")
            assert get_submesh(mesh, mixed) is get_submesh(mesh, mixed)
            assert get_fsdp_dp_mesh(mesh) is get_fsdp_dp_mesh(mesh)
            assert get_submesh(mesh, ("tp",)) is line
        assert get_submesh(root, ("pp", "dp_replicate", "dp_shard", "cp", "tp")) is root
        assert get_flat_mesh(root, MeshAxisName.DP_CP) is get_flat_mesh(root, "dp_cp")


def test_names_of_no_mesh_are_refused() -> None:
    """Unknown axes are a `KeyError` that lists the known ones; repeated, overlapping or unordered ones an error."""
    with fake_world(16):
        root = build(ParallelismSizes(tp_size=2, cp_size=2, dp_replicate_size=2))
        for mesh in (root, get_flat_mesh(root, "tp")):
            with pytest.raises(KeyError, match=r"no axis 'sp'.*'dp_shard_cp'"):
                get_flat_mesh(mesh, "sp")
            with pytest.raises(UnknownAxisError, match=r"no axis 'ep'"):
                get_submesh(mesh, ("dp", "ep"))
            with pytest.raises(ValueError, match="repeats tp"):
                get_submesh(mesh, ("tp", "tp"))
            with pytest.raises(ValueError, match="overlap"):
                get_submesh(mesh, ("dp_shard", "dp_shard_cp"))
            with pytest.raises(ValueError, match="not in ascending order"):
                get_submesh(mesh, ("tp", "dp_cp"))
            with pytest.raises(ValueError, match="names is empty: give a list or tuple of names"):
                get_submesh(mesh, ())
            with pytest.raises(TypeError, match=r"names\[1\]=1 is of type int: give a name"):
                get_submesh(mesh, ("tp", 1))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a torch DeviceMesh, got str"):
            get_flat_mesh("tp", "tp")  # type: ignore[arg-type]


def test_the_mesh_for_fsdp_needs_its_axes() -> None:
    """A mesh of another strategy has none for FSDP2: a `KeyError` that lists its axes; other names can be given."""
    with fake_world(8):
        mesh = MeshContext.build(MegatronFSDPConfig(), TP2_CP2).device_mesh
        assert mesh is not None
        with pytest.raises(KeyError, match=r"'dp_shard_cp'.*'dp'.*'dp_cp'"):
            get_fsdp_dp_mesh(mesh)
        assert get_fsdp_dp_mesh(mesh, dp_shard_cp_name="dp_cp") is get_flat_mesh(mesh, "dp_cp")


def test_the_mesh_for_fsdp_drops_no_axis_it_was_asked_for() -> None:
    """A name that is no axis is a `KeyError`, also where it would not be used; a flattened axis of replicas is kept."""
    with fake_world(16):
        root = build(ParallelismSizes(dp_replicate_size=2, pp_size=2))
        with pytest.raises(KeyError, match=r"no axis 'dp_replicat' \(did you mean 'dp_replicate'\?\)"):
            get_fsdp_dp_mesh(root, "dp_replicat")
        with pytest.raises(KeyError, match="no axis 'dp_shard_pc'"):
            get_fsdp_dp_mesh(root, None, "dp_shard_pc")
        compat.flatten(root, "replicas", dims=("pp", "dp_replicate"))
        assert get_fsdp_dp_mesh(root, "replicas").mesh_dim_names == ("replicas", "dp_shard")


def test_the_mesh_for_fsdp_may_be_asked_for_by_its_default_names() -> None:
    """The strategy's own names may be given where the mesh has no axis of replicas, or none with context."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_shard", "tp"))
        assert get_fsdp_dp_mesh(root, "dp_replicate", "dp_shard_cp").mesh_dim_names == ("dp_shard",)


def test_an_expert_mesh_is_asked_for_its_own_axes_and_the_root_s() -> None:
    """The expert mesh gives ep and ep_shard as one axis each, and the axes of its root as well."""
    with fake_world(16, 13):
        context = MeshContext.build(FSDP2Config(), ParallelismSizes(pp_size=2, tp_size=2, ep_size=4))
        root, experts = context.device_mesh, context.moe_mesh
        assert root is not None
        assert experts is not None
        assert ranks_of(get_flat_mesh(experts, "ep")) == [12, 13, 14, 15]
        assert ranks_of(get_flat_mesh(experts, "ep_shard")) == [9, 13]
        assert get_submesh(experts, ("ep_shard", "ep")) is experts
        assert ranks_of(get_flat_mesh(experts, "tp")) == [12, 13]
        assert ranks_of(get_fsdp_dp_mesh(experts)) == [9, 11, 13, 15]
        assert compat.get_root_mesh(get_fsdp_dp_mesh(experts)) is root


# --- ring and Ulysses


@pytest.mark.ranks(8)
def test_ring_and_ulysses_split_the_context_parallel_axis() -> None:
    """The mesh (ring, ulysses) has the oracle's ranks and the root; a repeated request returns it and makes nothing."""
    with MeshContext.build(FSDP2Config(), ParallelismSizes(cp_size=4, tp_size=2)) as context:
        dist.barrier()  # no rank closes a connection that another one is still making
        root = context.device_mesh
        assert root is not None
        mesh = create_ring_ulysses_mesh(get_flat_mesh(root, "tp"), ring_degree=2, ulysses_degree=2)
        grid, rank = Grid((2, 2, 2)), dist.get_rank()  # ring, ulysses, tp
        assert mesh.mesh_dim_names == ("ring", "ulysses")
        assert mesh.mesh.tolist() == grid.mesh([(0,), (1,)], rank)
        assert (ranks_of(mesh, "ring"), ranks_of(mesh, "ulysses")) == (grid.group((0,), rank), grid.group((1,), rank))
        assert compat.get_root_mesh(mesh) is root
        groups = worlds.live_process_groups()
        assert create_ring_ulysses_mesh(root, ring_degree=2, ulysses_degree=2) is mesh
        assert ranks_of(get_flat_mesh(mesh, "ring")) == grid.group((0,), rank)
        assert worlds.live_process_groups() == groups
        total = torch.tensor(rank)
        dist.all_reduce(total, group=compat.get_group(mesh, "ring"))
        assert total.item() == sum(grid.group((0,), rank))
    assert len(worlds.live_process_groups()) == 1


def test_a_degree_of_one_shares_the_group_of_its_ranks() -> None:
    """If all ranks are in the ring, or all in Ulysses, no group is created."""
    with fake_world(16):
        root = build(ParallelismSizes(cp_size=4, tp_size=2))
        groups = worlds.live_process_groups()
        ring = create_ring_ulysses_mesh(root, ring_degree=4, ulysses_degree=1)
        assert compat.get_group(ring, "ring") is compat.get_group(root, "cp")
        assert worlds.live_process_groups() == groups


@pytest.mark.parametrize(
    ("degrees", "error", "message"),
    [
        ((2, 4), ValueError, r"\(2, 4\) multiply to 8, but the axis has 4 ranks"),
        ((0, 4), ValueError, r"ring_degree=0 is less than 1: give an int of at least 1"),
        ((2, True), TypeError, r"ulysses_degree=True is of type bool: give an int of at least 1"),
    ],
)
def test_degrees_that_do_not_fit_are_refused(degrees: tuple[int, int], error: type[Exception], message: str) -> None:
    """The product of the degrees must be the size of `cp`, and each an int of at least 1."""
    with fake_world(8):
        root = build(ParallelismSizes(cp_size=4, tp_size=2))
        with pytest.raises(error, match=message):
            create_ring_ulysses_mesh(root, ring_degree=degrees[0], ulysses_degree=degrees[1])


def test_ring_and_ulysses_need_a_context_parallel_axis() -> None:
    """A mesh without `cp` is a `KeyError`, and the error on a rank outside says that it is outside."""
    with fake_world(8, 5):
        mesh = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        with pytest.raises(KeyError, match="no axis 'cp'"):
            create_ring_ulysses_mesh(mesh, ring_degree=2, ulysses_degree=2)
        part = build(ParallelismSizes(cp_size=4), ranks=range(4))
        with pytest.raises(RankNotInMeshError, match="rank 5 is not in"):
            create_ring_ulysses_mesh(part, ring_degree=2, ulysses_degree=2)
