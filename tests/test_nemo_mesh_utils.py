"""The underscored names of `mesh_utils` that code written for NeMo AutoModel imports."""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from automodel_mesh import (
    DDPConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshAxisName,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    mesh_utils,
)
from automodel_mesh.compat import worlds
from automodel_mesh.errors import MeshArgumentError, RankNotInMeshError
from automodel_mesh.mesh_utils import (
    _create_device_meshes,
    _create_fsdp2_device_mesh,
    _create_megatron_fsdp_device_mesh,
    _create_moe_mesh,
    _degree,
    _infer_dp_size,
    _init_named_mesh,
    _mesh_device_type,
    _MeshSpec,
    _register_flattened_axes,
    _require_size_one,
    _unflatten_compat,
    _validate_mesh_spec,
)
from automodel_mesh.nemo import mesh_utils as nemo_mesh_utils
from automodel_mesh.testing import fake_world
from tests.test_mesh_utils import TP2_CP2, build, ranks_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def timeouts(mesh: DeviceMesh) -> set[timedelta | None]:
    """Return the timeouts of the groups of several ranks that were made for the family of a mesh."""
    return {group.timeout for group in compat.list_process_groups(mesh) if group.made_here and len(group.ranks) > 1}


NAMES = [
    "_MeshSpec",
    "_create_device_meshes",
    "_create_fsdp2_device_mesh",
    "_create_megatron_fsdp_device_mesh",
    "_create_moe_mesh",
    "_degree",
    "_infer_dp_size",
    "_init_named_mesh",
    "_mesh_device_type",
    "_register_flattened_axes",
    "_require_size_one",
    "_unflatten_compat",
    "_validate_mesh_spec",
    "get_flat_mesh",
    "get_fsdp_dp_mesh",
    "get_submesh",
]


@pytest.mark.release_independent
def test_every_name_of_the_replaced_module_exists() -> None:
    """All names of NeMo AutoModel's module can be imported, and only public ones are in `__all__`."""
    assert all(callable(getattr(mesh_utils, name)) for name in NAMES)
    assert not [name for name in mesh_utils.__all__ if name.startswith("_")]
    assert {*nemo_mesh_utils.__all__, *mesh_utils.__all__} >= set(NAMES)


@pytest.mark.release_independent
def test_a_spec_can_be_unpickled_under_either_path() -> None:
    """An unpickled spec is equal, and a pickle with the path of the public module can be read too."""
    spec = _MeshSpec((2, 4), (MeshAxisName.DP, MeshAxisName.TP))
    text = pickle.dumps(spec, protocol=0)
    assert pickle.loads(text) == spec
    assert b"automodel_mesh.nemo.mesh_utils" in text
    assert pickle.loads(text.replace(b"automodel_mesh.nemo.mesh_utils", b"automodel_mesh.mesh_utils")) == spec


def test_each_strategy_has_its_device_meshes() -> None:
    """FSDP2 has the root, and the expert mesh if there are experts; Megatron-FSDP has one mesh, DDP none."""
    with fake_world(8):
        root, experts = _create_device_meshes(FSDP2Config(), ParallelismSizes(tp_size=2, ep_size=2), 8)
        assert root is not None
        assert experts is not None
        assert (root.shape, experts.shape) == ((1, 1, 4, 1, 2), (4, 2))
        assert get_flat_mesh(root, "dp_cp").size() == 4
        root, experts = _create_fsdp2_device_mesh(ParallelismSizes(pp_size=2), 8)
        assert (root.shape, experts) == ((2, 1, 4, 1, 1), None)
        mesh = _create_megatron_fsdp_device_mesh(TP2_CP2, 8)
        assert (mesh.mesh_dim_names, mesh.shape) == (("dp", "cp", "tp"), (2, 2, 2))
        assert get_flat_mesh(mesh, "dp_cp").size() == 4
        assert _create_device_meshes(MegatronFSDPConfig(), TP2_CP2, 8)[1] is None
        groups = worlds.live_process_groups()
        assert _create_device_meshes(DDPConfig(), ParallelismSizes(), 8) == (None, None)
        assert worlds.live_process_groups() == groups
        with pytest.raises(ValueError, match="tp_size=2"):
            _create_device_meshes(DDPConfig(), ParallelismSizes(tp_size=2), 8)


def test_an_expert_mesh_is_made_of_a_root() -> None:
    """It has the stage's ranks as (ep_shard, ep), in the family of the root; sizes that do not fill it are refused."""
    with fake_world(16, 13):
        root = build(ParallelismSizes(pp_size=2, tp_size=2))
        experts = _create_moe_mesh(root, 2, 4)
        assert experts.mesh.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
        assert experts.mesh_dim_names == ("ep_shard", "ep")
        assert compat.get_root_mesh(experts) is root
        assert _create_moe_mesh(root, 2, 4) is experts
        with pytest.raises(MeshArgumentError, match="multiply to 6, but the axis has 8 ranks"):
            _create_moe_mesh(build(ParallelismSizes(pp_size=2)), 3, 2)
        with pytest.raises(RankNotInMeshError, match="this rank is not in"):
            _create_moe_mesh(build(ParallelismSizes(), ranks=range(4)), 2, 2)


def test_a_named_mesh_is_made_of_a_spec() -> None:
    """The mesh has the spec's shape and axes, and its flattened axes are found by name."""
    tp, cp, dp = MeshAxisName.TP, MeshAxisName.CP, MeshAxisName.DP
    spec = _MeshSpec((2, 2, 4), (dp, cp, tp), {MeshAxisName.DP_CP: (dp, cp)})
    with fake_world(16):
        mesh = _init_named_mesh(spec)
        assert (mesh.shape, mesh.mesh_dim_names, mesh.device_type) == (
            (2, 2, 4),
            ("dp", "cp", "tp"),
            _mesh_device_type(),
        )
        assert all(type(name) is str for name in mesh.mesh_dim_names or ())
        assert ranks_of(get_flat_mesh(mesh, "dp_cp")) == [0, 4, 8, 12]
        _register_flattened_axes(mesh, {MeshAxisName.DP_SHARD_CP: (cp, tp)})
        assert ranks_of(get_flat_mesh(mesh, "dp_shard_cp")) == list(range(8))
    assert _MeshSpec((8,), (tp,)).flattened_axes == {}


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (_MeshSpec((2,), (MeshAxisName.DP, MeshAxisName.TP)), ValueError, r"1 sizes \(2,\) but 2 names"),
        (_MeshSpec((2, 0), (MeshAxisName.DP, MeshAxisName.TP)), ValueError, "less than 1"),
        (_MeshSpec((2, 2), (MeshAxisName.TP, MeshAxisName.TP)), ValueError, "repeats tp"),
        (_MeshSpec((2,), (MeshAxisName.DP,), {MeshAxisName.DP_CP: (MeshAxisName.CP,)}), ValueError, r"unknown axes"),
        (_MeshSpec((), ()), ValueError, "axes is empty: give a list or tuple of names"),
    ],
)
def test_a_malformed_spec_is_refused(spec: _MeshSpec, error: type[Exception], message: str) -> None:
    """Sizes, names and flattened axes that do not fit are refused before a group is created."""
    with pytest.raises(error, match=message):
        _validate_mesh_spec(spec)
    with fake_world(4), pytest.raises(error, match=message):
        _init_named_mesh(spec)


def test_an_axis_is_split_on_every_release() -> None:
    """`_unflatten_compat` gives the mesh of the parts, on releases whose torch has no such operation too."""
    with fake_world(8, 5):
        root = build(ParallelismSizes(cp_size=4, tp_size=2))
        parts = _unflatten_compat(get_flat_mesh(root, "cp"), 0, (2, 2), ("outer", "inner"))
        assert parts.mesh.tolist() == [[1, 3], [5, 7]]
        assert (ranks_of(parts, "outer"), ranks_of(parts, "inner")) == ([1, 5], [5, 7])
        assert compat.get_root_mesh(parts) is root


@pytest.mark.release_independent
def test_a_degree_is_none_or_an_int_of_at_least_one() -> None:
    """`None` is 1, anything but an int of at least 1 is refused; a feature that a strategy lacks has size 1."""
    assert (_degree(None), _degree(1), _degree(8)) == (1, 1, 8)
    for wrong, error in ((0, ValueError), (-3, ValueError), ("8", TypeError), (True, TypeError)):
        with pytest.raises(error):
            _degree(wrong)  # type: ignore[arg-type]
    _require_size_one("ddp", None, "tensor parallelism")
    _require_size_one("ddp", 1, "tensor parallelism")
    with pytest.raises(ValueError, match="ddp does not support tensor parallelism: its size is 2; give 1 or None"):
        _require_size_one("ddp", 2, "tensor parallelism")


@pytest.mark.release_independent
def test_the_data_parallel_size_is_inferred() -> None:
    """It fills the world; factors that do not divide the world, or a size that does not fit, raise an error."""
    expression, factors = "tp_size * cp_size * pp_size", (2, 2, 1)
    assert _infer_dp_size(None, 8, 4, expression, factors) == _infer_dp_size(2, 8, 4, expression, factors) == 2
    with pytest.raises(
        ValueError, match=r"world_size=6 is not divisible by tp_size \* cp_size \* pp_size = 2 \* 2 \* 1"
    ):
        _infer_dp_size(None, 6, 4, expression, factors)
    with pytest.raises(ValueError, match="dp_size=8 does not fit.*Give dp_size=2"):
        _infer_dp_size(8, 8, 4, expression, factors)
    assert _infer_dp_size(None, 8, 4, "the rest", (2, 2)) == 2


# --- a part of the world, and timeouts

THREE = timedelta(minutes=3)
PART = ParallelismSizes(pp_size=2, dp_replicate_size=1, cp_size=2, ep_size=2)


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_meshes_are_made_over_a_part_of_the_world(rank: int) -> None:
    """Every builder takes `ranks`; the meshes hold these, and a rank outside has no expert mesh."""
    ranks = [2, 3, 4, 5]
    with fake_world(8, rank):
        root, experts = _create_device_meshes(FSDP2Config(), PART, world_size=8, ranks=ranks)
        assert root is not None
        assert root.mesh.flatten().tolist() == ranks
        same, _ = _create_fsdp2_device_mesh(PART, world_size=8, ranks=ranks)
        assert same.mesh.equal(root.mesh)
        mesh = _create_megatron_fsdp_device_mesh(TP2_CP2, world_size=8, ranks=ranks)
        assert (mesh.shape, mesh.mesh.flatten().tolist()) == ((1, 2, 2), ranks)
        named = _init_named_mesh(_MeshSpec((2, 2), (MeshAxisName.DP, MeshAxisName.TP)), ranks=ranks)
        assert named.mesh.tolist() == [[2, 3], [4, 5]]
        assert _create_device_meshes(DDPConfig(), ParallelismSizes(), world_size=8, ranks=ranks) == (None, None)
        with pytest.raises(ValueError, match="dp_size=2 does not fit"):
            _create_device_meshes(DDPConfig(), ParallelismSizes(dp_size=2), world_size=8, ranks=ranks)
        if rank == 7:
            assert experts is None
            return
        assert experts is not None
        assert experts.mesh.tolist() == [[2, 3]] if rank == 2 else [[4, 5]]
        again = _create_moe_mesh(root, ep_shard_size=1, ep_size=2, pp_size=2, ranks=ranks)
        assert again.mesh.equal(experts.mesh)


def test_groups_have_the_timeout_of_their_builder() -> None:
    """Every builder takes `timeout_minutes`, for the groups of axes, flattened axes, experts and parts."""
    with fake_world(16):
        root, _ = _create_device_meshes(FSDP2Config(), PART, world_size=16, timeout_minutes=3)
        assert root is not None
        assert timeouts(root) == {THREE}
        assert timeouts(_create_fsdp2_device_mesh(PART, world_size=16, timeout_minutes=3)[0]) == {THREE}
        assert timeouts(_create_megatron_fsdp_device_mesh(TP2_CP2, world_size=16, timeout_minutes=3)) == {THREE}
        spec = _MeshSpec((4, 2, 2), (MeshAxisName.DP, MeshAxisName.CP, MeshAxisName.TP))
        assert timeouts(_init_named_mesh(spec, timeout_minutes=3)) == {THREE}
        mesh = _init_named_mesh(spec)
        before = timeouts(mesh)
        assert THREE not in before
        _register_flattened_axes(mesh, {MeshAxisName.DP_CP: (MeshAxisName.DP, MeshAxisName.CP)}, timeout_minutes=3)
        assert timeouts(mesh) == before | {THREE}
        mesh = _init_named_mesh(spec)
        _unflatten_compat(get_flat_mesh(mesh, "dp"), 0, (2, 2), ("outer", "inner"), timeout_minutes=3)
        assert timeouts(mesh) == before | {THREE}
        root = build(ParallelismSizes(tp_size=4))
        _create_moe_mesh(root, ep_shard_size=8, ep_size=2, timeout_minutes=3)
        assert timeouts(root) == before | {THREE}
        with pytest.raises(ValueError, match="timeout_minutes=0 cannot be waited for"):
            _init_named_mesh(spec, timeout_minutes=0)
