"""`MeshContext`, `MeshAxisName` and `ParallelismSizes`; closing; subsets of the ranks."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

import automodel_mesh
from automodel_mesh import (
    DDPConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshAxisName,
    MeshContext,
    ParallelismSizes,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
    get_submesh,
)
from automodel_mesh.compat import worlds
from automodel_mesh.config import DistributedStrategyConfig
from automodel_mesh.errors import ProcessGroupDestroyedError, RankNotInMeshError
from automodel_mesh.testing import fake_world

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ["pp", "dp", "dp_replicate", "dp_shard", "dp_shard_cp", "dp_cp", "cp", "tp", "ep", "ep_shard"]


def new_group(ranks: list[int]) -> dist.ProcessGroup | None:
    """Create a process group as a user does, on all ranks; return `None` on a rank outside."""
    group = dist.new_group(ranks)
    return group if isinstance(group, dist.ProcessGroup) else None


# --- names


@pytest.mark.release_independent
@pytest.mark.parametrize("text", AXES)
def test_an_axis_name_equals_its_string(text: str) -> None:
    """It compares, hashes, prints, formats and joins as that string, on every Python."""
    name = MeshAxisName(text)
    assert isinstance(name, str)
    assert name == text
    assert hash(name) == hash(text)
    assert str(name) == f"{name}" == "{}".format(name) == "%s" % name == text  # noqa: UP031, UP032
    assert f"{name:>15}" == f"{text:>15}"
    assert f"{name}_group" == text + "_group"
    by_member: dict[str, int] = {name: 1}
    assert by_member[text] == {text: 1}[name] == 1
    assert json.dumps([name]) == json.dumps([text])


@pytest.mark.release_independent
def test_each_documented_axis_has_a_name() -> None:
    """There is a member for each axis that NeMo AutoModel documents, with its name in capitals."""
    assert [str(name) for name in MeshAxisName] == AXES
    assert [name.name for name in MeshAxisName] == [text.upper() for text in AXES]


@pytest.mark.release_independent
def test_an_axis_name_survives_pickle_and_copy() -> None:
    """The result is the same member, with every pickle protocol."""
    for name in MeshAxisName:
        assert all(
            pickle.loads(pickle.dumps(name, protocol)) is name for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        )
        assert copy.deepcopy(name) is name


def test_an_axis_name_and_its_string_look_up_the_same_mesh() -> None:
    """Lookups by the member and by the string return the same object."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2)) as context:
        root = context.device_mesh
        assert root is not None
        assert get_flat_mesh(root, MeshAxisName.TP) is get_flat_mesh(root, "tp")
        assert get_flat_mesh(root, MeshAxisName.DP_CP) is get_flat_mesh(root, "dp_cp")
        mixed = (MeshAxisName.DP_REPLICATE, MeshAxisName.DP_SHARD_CP)
        assert get_submesh(root, mixed) is get_submesh(root, ("dp_replicate", "dp_shard_cp"))
        assert all(type(name) is str for name in get_submesh(root, mixed).mesh_dim_names or ())


# --- requested sizes


@pytest.mark.release_independent
def test_sizes_are_compared_by_value_and_given_by_keyword() -> None:
    """They have defaults, cannot be given by position or changed, and equal sizes compare equal."""
    sizes = ParallelismSizes(tp_size=2)
    assert dataclasses.astuple(ParallelismSizes()) == (None, None, 1, 1, 1, 1)
    assert sizes == ParallelismSizes(tp_size=2)
    assert hash(sizes) == hash(ParallelismSizes(tp_size=2))
    with pytest.raises(TypeError, match="positional"):
        ParallelismSizes(2)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        sizes.tp_size = 4  # type: ignore[misc]


@pytest.mark.release_independent
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ParallelismSizes)])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-3, ValueError), ("8", TypeError), (2.0, TypeError), (True, TypeError), (None, TypeError)],
)
def test_sizes_are_checked_when_made(field: str, value: Any, error: type[Exception]) -> None:
    """Anything but an int of at least 1 is an error with the field; `None` is valid if the size can be inferred."""
    arguments: dict[str, Any] = {field: value}
    if value is None and field in {"dp_size", "dp_replicate_size"}:
        assert getattr(ParallelismSizes(**arguments), field) is None
        return
    with pytest.raises(error, match=rf"{field}={value!r}"):
        ParallelismSizes(**arguments)


# --- contexts without meshes of their own


@pytest.mark.release_independent
def test_a_context_without_a_mesh_has_the_defaults() -> None:
    """Sizes are 1, those of dp and of its replicas `None`; closing and listing groups are no errors."""
    context = MeshContext()
    assert (context.pp_size, context.tp_size, context.cp_size, context.ep_size, context.dp_shard_size) == (1,) * 5
    assert (context.dp_size, context.dp_replicate_size) == (None, None)
    assert not context.pp_enabled
    assert context.is_member
    assert context.device_mesh is context.moe_mesh is None
    assert context.process_group is None
    assert context.process_groups() == []
    assert context == MeshContext() == MeshContext.from_meshes(None)
    context.close()
    context.abort()
    assert context.parallelize_axis_kwargs() == {
        "dp_axis_names": ("dp_shard_cp",),
        "cp_axis_name": None,
        "tp_axis_name": None,
        "ep_axis_name": None,
        "ep_shard_axis_names": None,
    }


def test_unknown_axis_names_are_refused() -> None:
    """A mesh with an axis of no strategy, or with no names, is refused with the known names."""
    with fake_world(8):
        odd = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "model"))
        good = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
        unnamed = compat.init_device_mesh("cpu", (8,))
        with pytest.raises(ValueError, match=r"device_mesh has the axes \['dp', 'model'\].*\['model'\].*'dp_shard_cp'"):
            MeshContext(odd)
        with pytest.raises(ValueError, match=r"moe_mesh has the axes \['dp', 'model'\]"):
            MeshContext.from_meshes(good, odd)
        with pytest.raises(ValueError, match="device_mesh .*without names"):
            MeshContext(unnamed)


def test_wrapped_meshes_are_read_and_never_closed() -> None:
    """The sizes of existing meshes are read, and closing or aborting destroys nothing."""
    with fake_world(16):
        built = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2, pp_size=2, ep_size=4))
        wrapped = MeshContext.from_meshes(built.device_mesh, built.moe_mesh)
        assert (wrapped.pp_size, wrapped.dp_size, wrapped.cp_size, wrapped.tp_size, wrapped.ep_size) == (2, 2, 2, 2, 4)
        assert wrapped == dataclasses.replace(built, strategy_config=None)
        assert wrapped.process_groups() == built.process_groups()
        groups = worlds.live_process_groups()
        with wrapped:
            pass
        wrapped.abort()
        assert worlds.live_process_groups() == groups
        assert built.device_mesh is not None
        assert get_flat_mesh(built.device_mesh, "tp").size() == 2
        built.close()


def test_meshes_of_torch_s_making_can_be_wrapped() -> None:
    """The sizes of a mesh that torch made are read, and the lookups work on it."""
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  # what users of torch call

    with fake_world(8):
        mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp_shard", "tp"))
        context = MeshContext.from_meshes(mesh)
        assert (context.dp_shard_size, context.tp_size, context.cp_size, context.dp_size) == (2, 4, 1, None)
        assert dist.get_process_group_ranks(compat.get_group(get_flat_mesh(mesh, "tp"))) == [0, 1, 2, 3]
        before = worlds.live_process_groups()
        context.close()
        assert worlds.live_process_groups() == before


def test_a_model_local_group_is_kept() -> None:
    """The caller's own process group is kept, and closing does not destroy it."""
    with fake_world(8):
        group = new_group([0, 1])
        with MeshContext(process_group=group) as context:
            assert context.process_group is group
        assert dist.get_process_group_ranks(group) == [0, 1]
        assert MeshContext(None, None, group) == context


# --- axis names for other builders


@pytest.mark.parametrize(
    ("sizes", "dp_axes", "ep", "ep_shard"),
    [
        ({"tp_size": 2}, ("dp_shard_cp",), None, None),
        ({"dp_replicate_size": 2}, ("dp_replicate", "dp_shard_cp"), None, None),
        ({"dp_replicate_size": 2, "cp_size": 2, "ep_size": 4}, ("dp_replicate", "dp_shard_cp"), "ep", ("ep_shard",)),
        ({"pp_size": 2, "ep_size": 2}, ("dp_shard_cp",), "ep", ("ep_shard",)),
    ],
)
def test_axis_names_are_handed_on_as_keywords(
    sizes: dict[str, int], dp_axes: tuple[str, ...], ep: str | None, ep_shard: tuple[str, ...] | None
) -> None:
    """The axes for FSDP include the replicas' if there are several, and missing axes are `None`."""
    with fake_world(16), MeshContext.build(FSDP2Config(), ParallelismSizes(**sizes)) as context:
        expected = {
            "dp_axis_names": dp_axes,
            "cp_axis_name": "cp",
            "tp_axis_name": "tp",
            "ep_axis_name": ep,
            "ep_shard_axis_names": ep_shard,
        }
        assert context.parallelize_axis_kwargs() == expected
        assert context.pipeline_axis_kwargs() == {"pp_axis_name": "pp", **expected}
        root = context.device_mesh
        assert root is not None
        assert get_submesh(root, dp_axes).mesh_dim_names == dp_axes


# --- closing


CONFIGS: list[tuple[DistributedStrategyConfig, ParallelismSizes]] = [
    (FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2, pp_size=2, ep_size=2)),
    (MegatronFSDPConfig(), ParallelismSizes(tp_size=2, cp_size=2)),
]


@pytest.mark.ranks(8)
def test_closing_destroys_exactly_what_was_built() -> None:
    """The default group and groups of others still work; closing twice is no error; lookups then raise."""
    (mine,) = (group for pair in range(0, 8, 2) if (group := new_group([pair, pair + 1])) is not None)
    before = worlds.live_process_groups()
    for config, sizes in CONFIGS:
        context = MeshContext.build(config, sizes)
        made = {group.name for group in context.process_groups() if group.made_here}
        assert worlds.live_process_groups().keys() - before.keys() == made
        root = context.device_mesh
        assert root is not None
        line = get_flat_mesh(root, "dp_cp")
        context.close()
        context.close()
        assert worlds.live_process_groups() == before
        questions: list[Callable[[], object]] = [
            context.process_groups,
            lambda root=root: get_flat_mesh(root, "tp"),  # type: ignore[misc]
            lambda line=line: compat.get_group(line),  # type: ignore[misc]
            lambda root=root: get_fsdp_dp_mesh(root),  # type: ignore[misc]
        ]
        for question in questions:
            with pytest.raises(ProcessGroupDestroyedError, match="closed.*build the mesh again"):
                question()
    total = torch.tensor(1)
    dist.all_reduce(total, group=mine)
    assert total.item() == 2
    dist.barrier()


@pytest.mark.ranks(8)
def test_another_context_over_the_same_ranks_stays_usable() -> None:
    """Closing one of two equal contexts leaves the groups of the other working."""
    first, second = (MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) for _ in range(2))
    first.close()
    assert second.device_mesh is not None
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total, group=compat.get_group(second.device_mesh, "tp"))
    assert total.item() == 4 * (dist.get_rank() // 2) + 1
    second.close()


def test_contexts_can_be_closed_in_any_order() -> None:
    """After closing the first of two contexts, a third one can be built while the second is open."""
    with fake_world(8):
        first, second = (MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) for _ in range(2))
        first.close()
        third = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2))
        second.close()
        assert third.device_mesh is not None
        assert compat.get_group(third.device_mesh, "tp").size() == 2
        third.close()
        assert len(worlds.live_process_groups()) == 1


def test_an_error_inside_the_block_closes_and_is_passed_on() -> None:
    """Leaving the block by an exception destroys the groups, and the exception is raised."""
    with fake_world(8):
        before = worlds.live_process_groups()
        with (
            pytest.raises(KeyError, match="lost"),
            MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context,
        ):
            raise KeyError("lost")
        assert worlds.live_process_groups() == before
        with pytest.raises(ProcessGroupDestroyedError):
            context.process_groups()


def test_a_context_whose_world_is_gone_can_be_closed() -> None:
    """After `destroy_process_group`, closing and aborting are no errors, even after another `init_process_group`."""
    with fake_world(8):
        closed, aborted = (MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) for _ in range(2))
        dist.destroy_process_group()
    closed.close()
    aborted.abort()
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
        groups = worlds.live_process_groups()
        closed.close()
        aborted.abort()
        assert worlds.live_process_groups() == groups
        root, gone = context.device_mesh, closed.device_mesh
        assert root is not None
        assert gone is not None
        with pytest.raises(ProcessGroupDestroyedError):
            get_flat_mesh(gone, "tp")
        assert compat.get_root_mesh(get_flat_mesh(root, "tp")) is root


@pytest.mark.ranks(8)
def test_aborting_covers_derived_and_expert_axes() -> None:
    """Every group created here is destroyed, without waiting for ranks that do not abort at the same time."""
    before = worlds.live_process_groups()
    context = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2, pp_size=2, ep_size=2))
    if dist.get_rank() == 3:
        dist.barrier()  # the others have aborted before they come here
    context.abort()
    assert worlds.live_process_groups() == before
    with pytest.raises(ProcessGroupDestroyedError):
        context.process_groups()
    context.abort()
    context.close()
    if dist.get_rank() != 3:
        dist.barrier()


# --- models on some ranks


@pytest.mark.ranks(8)
def test_two_models_on_disjoint_ranks_have_meshes_of_their_own() -> None:
    """Each has its own topology on its ranks; on the ranks of the other, `is_member` is false and lookups raise."""
    before = worlds.live_process_groups()
    rank = dist.get_rank()
    teacher_sizes = ParallelismSizes(dp_replicate_size=2, cp_size=2, ep_size=2)
    student = MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), ranks=[0, 1, 2, 3])
    teacher = MeshContext.build(FSDP2Config(), teacher_sizes, ranks=range(4, 8))
    mine, other = (student, teacher) if rank < 4 else (teacher, student)
    assert (mine.is_member, other.is_member) == (True, False)
    root = mine.device_mesh
    assert root is not None
    first = 0 if rank < 4 else 4
    assert root.mesh.flatten().tolist() == [first, first + 1, first + 2, first + 3]
    wanted = {
        "tp": [[0, 1], [0, 1], [2, 3], [2, 3], [4], [5], [6], [7]],
        "dp": [[0, 2], [1, 3], [0, 2], [1, 3], [4, 6], [5, 7], [4, 6], [5, 7]],
        "dp_cp": [[0, 2], [1, 3], [0, 2], [1, 3], *[[4, 5, 6, 7]] * 4],
    }
    for axis, expected in wanted.items():
        group = compat.get_group(get_flat_mesh(root, axis))
        assert dist.get_process_group_ranks(group) == get_flat_mesh(root, axis).mesh.tolist() == expected[rank]
        total = torch.tensor(rank)
        dist.all_reduce(total, group=group)
        assert total.item() == sum(expected[rank])
    assert (mine.tp_size, mine.cp_size, mine.dp_size, mine.ep_size) == ((2, 1, 2, 1) if rank < 4 else (1, 2, 2, 2))
    if rank >= 4:
        assert teacher.moe_mesh is not None
        assert teacher.moe_mesh.mesh.tolist() == [[4, 5], [6, 7]]
        assert get_fsdp_dp_mesh(root).mesh_dim_names == ("dp_replicate", "dp_shard_cp")
    check_refusals(other)
    for context in (student, teacher):
        context.close()
    assert worlds.live_process_groups() == before


def check_refusals(context: MeshContext) -> None:
    """Check that `is_member` of a context is false, and that it refuses what only members have."""
    mesh = context.device_mesh
    assert mesh is not None
    assert mesh.get_coordinate() is None
    assert context.process_groups() == []
    assert context.moe_mesh is None
    questions: list[Callable[[], object]] = [
        lambda: get_flat_mesh(mesh, "tp"),
        lambda: get_submesh(mesh, ("dp_shard", "tp")),
        lambda: get_fsdp_dp_mesh(mesh),
        lambda: compat.get_group(mesh, "tp"),
        lambda: compat.get_group(mesh, 0),
    ]
    for question in questions:
        with pytest.raises(RankNotInMeshError, match=f"rank {dist.get_rank()} is not in .*Ask on those ranks only"):
            question()


@pytest.mark.parametrize("ask", [get_flat_mesh, compat.get_group, lambda mesh, axis: get_submesh(mesh, (axis, "tp"))])
def test_derived_axes_are_refused_outside_as_native_ones_are(ask: Callable[[DeviceMesh, str], object]) -> None:
    """The error says that the rank is outside, not that the axis does not exist."""
    with fake_world(8, 6), MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), ranks=range(4)) as context:
        assert context.device_mesh is not None
        for axis in ("dp", "dp_cp", "dp_shard_cp"):
            with pytest.raises(RankNotInMeshError, match="rank 6 is not in"):
                ask(context.device_mesh, axis)


def test_sizes_are_the_same_inside_and_outside() -> None:
    """On a rank outside, a context has the same sizes as on its members, those of derived axes too."""
    sizes = ParallelismSizes(tp_size=2, dp_replicate_size=2)
    read = []
    for rank in (1, 6):
        with fake_world(8, rank), MeshContext.build(FSDP2Config(), sizes, ranks=range(4)) as context:
            read.append((context.tp_size, context.dp_shard_size, context.dp_replicate_size, context.dp_size))
    assert read == [(2, 1, 2, 2)] * 2


@pytest.mark.ranks(8)
def test_chosen_ranks_need_not_be_contiguous() -> None:
    """A mesh can be built over any ascending ranks of the world, in their order."""
    ranks = [0, 2, 3, 7]
    sizes = ParallelismSizes(tp_size=2)
    with MeshContext.build(FSDP2Config(), sizes, ranks=ranks, timeout_minutes=1) as context:
        assert context.is_member == (dist.get_rank() in ranks)
        if context.is_member:
            assert context.device_mesh is not None
            group = compat.get_group(context.device_mesh, "tp")
            assert dist.get_process_group_ranks(group) == ([0, 2] if dist.get_rank() in {0, 2} else [3, 7])
            total = torch.tensor(dist.get_rank())
            dist.all_reduce(total, group=compat.get_group(context.device_mesh, "dp"))
            assert total.item() == (3 if dist.get_rank() in {0, 3} else 9)
    assert len(worlds.live_process_groups()) == 1


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        ([3, 2, 1, 0], ValueError, "strictly ascending"),
        ([0, 1, 1, 2], ValueError, "repeats"),
        ([5, 6, 7, 8], ValueError, r"ranks\[3\]=8 is outside the world.*0 to 7"),
        ([], ValueError, "ranks is empty"),
        ([0, 1, 2], ValueError, r"len\(ranks\)=3 is not divisible by tp_size .*Give tp_size as one of 1, 3"),
        (["0", "1"], TypeError, r"ranks\[0\]='0' is of type str"),
    ],
)
def test_invalid_ranks_are_refused(ranks: list[int], error: type[Exception], message: str) -> None:
    """The error says which rank is wrong, and no group is created."""
    with fake_world(8):
        with pytest.raises(error, match=message):
            MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2), ranks=ranks)
        assert len(worlds.live_process_groups()) == 1


def test_a_ddp_context_outside_lists_no_groups() -> None:
    """On a rank outside, a DDP context has no group, and lists none."""
    with fake_world(8, 5), MeshContext.build(DDPConfig(), ranks=range(4)) as context:
        assert not context.is_member
        assert context.process_group is None
        assert context.process_groups() == []


# --- the package


@pytest.mark.release_independent
def test_every_name_of_the_package_resolves() -> None:
    """The names in `__all__` are imported when they are used, and other names raise AttributeError."""
    for name in automodel_mesh.__all__:
        value = getattr(automodel_mesh, name)
        assert isinstance(value, types.UnionType) or getattr(value, "__name__", name) == name
    taken: dict[str, object] = {}
    exec("from automodel_mesh import *", taken)  # noqa: S102 - it is our own
    assert taken.keys() - {"__builtins__"} == set(automodel_mesh.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'MeshContexts'"):
        automodel_mesh.MeshContexts  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.release_independent
def test_importing_the_package_does_not_import_torch() -> None:
    """Importing the package does not import torch, so that `--version` is fast."""
    code = "import sys, automodel_mesh; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


BUILD_AND_LOOK_UP = """
import sys
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, get_flat_mesh, get_fsdp_dp_mesh, get_submesh
with MeshContext.build(FSDP2Config(), ParallelismSizes()) as context:
    root = context.device_mesh
    get_flat_mesh(root, "tp"), get_flat_mesh(root, "dp_cp"), get_fsdp_dp_mesh(root)
    get_submesh(root, ("dp_shard", "tp")), get_submesh(root, ("dp_replicate", "dp_shard_cp"))
    context.process_groups()
print("torch._dynamo" in sys.modules)
"""


def test_building_and_looking_up_do_not_import_dynamo() -> None:
    """The first context of a process and its lookups do not import `torch._dynamo`, which takes 0.8 s and 150 MB."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", BUILD_AND_LOOK_UP], check=True, capture_output=True, text=True
    )
    assert found.stdout.splitlines()[-1] == "False"  # gloo writes there too
