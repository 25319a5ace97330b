"""The lookups of `MeshContext` and `DistributedSetup` as methods: the meshes, and what they say where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from automodel_mesh import (
    DistributedSetup,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshContext,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
    get_submesh,
)
from automodel_mesh.errors import (
    MeshArgumentError,
    MeshTypeError,
    ProcessGroupDestroyedError,
    RankNotInMeshError,
    UnknownAxisError,
)
from automodel_mesh.lookups import MeshLookups
from automodel_mesh.testing import fake_world

EXPERTS = ParallelismSizes(dp_replicate_size=2, tp_size=2, cp_size=2, ep_size=2)
HOLDERS: dict[str, Callable[..., MeshLookups]] = {
    "context": MeshContext.build,
    "setup": DistributedSetup.build,
}

each_holder = pytest.mark.parametrize("build", HOLDERS.values(), ids=HOLDERS)

LOOKUPS: dict[str, Callable[[MeshLookups], object]] = {
    "root_mesh": lambda found: found.root_mesh(),
    "expert_mesh": lambda found: found.expert_mesh(),
    "flat_mesh": lambda found: found.flat_mesh("dp"),
    "submesh": lambda found: found.submesh(("dp_cp", "tp")),
    "fsdp_mesh": lambda found: found.fsdp_mesh(),
}


@each_holder
def test_methods_find_what_the_functions_find(build: Callable[..., MeshLookups]) -> None:
    """Each method returns the object that the function returns for the root or the expert mesh."""
    with fake_world(16):
        found: Any = build(FSDP2Config(), EXPERTS)
        root, experts = found.root_mesh(), found.expert_mesh()
        assert (root, experts) == (found.device_mesh, found.moe_mesh)
        for axis in ("pp", "tp", "dp", "dp_cp", "dp_shard_cp"):
            assert found.flat_mesh(axis) is get_flat_mesh(root, axis)
        assert found.submesh(("dp_cp", "tp")) is get_submesh(root, ("dp_cp", "tp"))
        assert found.submesh(["dp_cp", "tp"]) is get_submesh(root, ("dp_cp", "tp"))
        assert found.submesh("tp") is get_flat_mesh(root, "tp")
        assert found.flat_mesh("ep") is get_flat_mesh(experts, "ep")
        assert found.submesh(("ep_shard", "ep")) is experts
        assert found.fsdp_mesh() is get_fsdp_dp_mesh(root)
        assert found.fsdp_mesh("dp_replicate", "dp_shard_cp") is get_fsdp_dp_mesh(root, "dp_replicate", "dp_shard_cp")
        found.close()


def test_axes_of_the_root_with_the_names_of_an_expert_mesh_are_the_root_s() -> None:
    """Where the root itself has an axis `ep`, that is the axis that is found, with an expert mesh or without."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "ep"))
        context = MeshContext.from_meshes(root)
        assert context.flat_mesh("ep") is compat.slice_mesh(root, "ep")
        assert context.submesh(("dp", "ep")) is root
        other = compat.init_device_mesh("cpu", (4, 2), mesh_dim_names=("ep_shard", "ep"))
        both = MeshContext.from_meshes(root, other)
        assert both.flat_mesh("ep") is compat.slice_mesh(root, "ep")
        assert both.flat_mesh("ep_shard") is compat.slice_mesh(other, "ep_shard")


@pytest.mark.parametrize("name", LOOKUPS)
def test_without_a_mesh_the_error_says_what_is_missing(name: str) -> None:
    """Before anything is built, and with DDP, which has a process group alone, each lookup says so."""
    lookup = LOOKUPS[name]
    for empty in (MeshContext(), DistributedSetup(), DistributedSetup(strategy_config=FSDP2Config())):
        with pytest.raises(MeshArgumentError, match=r"this MeshContext has no device mesh: build one with MeshContext"):
            lookup(empty)
    with fake_world(8):
        ddp = DistributedSetup.build("ddp")
        outside = DistributedSetup.build("ddp", ranks=range(1, 8))
        for found in (ddp, ddp.mesh_context, outside, MeshContext(process_group=ddp.mesh_context.process_group)):
            with pytest.raises(ValueError, match="no device mesh: its strategy, as DDP, .*: take process_group"):
                lookup(found)


@each_holder
def test_without_experts_the_error_says_how_to_get_some(build: Callable[..., MeshLookups]) -> None:
    """Asking for the expert mesh or one of its axes says that no expert mesh was built."""
    with fake_world(8):
        found = build(FSDP2Config(), ParallelismSizes(tp_size=2))
        for question in (found.expert_mesh, lambda: found.flat_mesh("ep"), lambda: found.submesh(("ep_shard", "tp"))):
            with pytest.raises(MeshArgumentError, match=r"no expert mesh: build it with ParallelismSizes\(ep_size=2\)"):
                question()


@pytest.mark.parametrize("name", [name for name in LOOKUPS if name != "root_mesh"])
def test_a_rank_outside_is_told_so(name: str) -> None:
    """On a rank outside, each lookup but that of the root says that this rank is not in the mesh."""
    with fake_world(17, rank=16):
        context = MeshContext.build(FSDP2Config(), EXPERTS, ranks=range(16))
        assert context.root_mesh() is context.device_mesh
        for holder in (context, DistributedSetup(strategy_config=FSDP2Config(), mesh_context=context)):
            with pytest.raises(RankNotInMeshError, match="on (those|the) ranks"):
                LOOKUPS[name](holder)
        with pytest.raises(RankNotInMeshError, match="no expert mesh"):
            context.flat_mesh("ep")


@each_holder
def test_wrong_requests_are_refused_as_by_the_functions(build: Callable[..., MeshLookups]) -> None:
    """Unknown names, wrong types, sets and a wrong order are the errors of the functions."""
    wrong: Any
    with fake_world(16):
        found: Any = build(FSDP2Config(), EXPERTS)
        with pytest.raises(UnknownAxisError, match=r"no axis 'dp_pc' \(did you mean 'dp_cp'\?\)"):
            found.flat_mesh("dp_pc")
        for wrong in (None, 3, {"dp_cp", "tp"}, ("tp", 3), [["tp"]], b"tp", iter(("tp",))):
            with pytest.raises(MeshTypeError):
                found.submesh(wrong)
        for wrong in ((), "", ("tp", "tp"), ("tp", "dp")):
            with pytest.raises(MeshArgumentError):
                found.submesh(wrong)
        found.close()
        for name in ("flat_mesh", "submesh", "fsdp_mesh"):
            with pytest.raises(ProcessGroupDestroyedError, match="build the mesh again"):
                LOOKUPS[name](found)


def test_a_strategy_without_fully_shard_has_lookups_too() -> None:
    """With megatron_fsdp the axes of its mesh are found."""
    with fake_world(8), MeshContext.build(MegatronFSDPConfig(), ParallelismSizes(tp_size=2, cp_size=2)) as context:
        assert context.flat_mesh("dp_cp").mesh.tolist() == [0, 2, 4, 6]
        assert context.submesh(("dp", "tp")).mesh.tolist() == [[0, 1], [4, 5]]
