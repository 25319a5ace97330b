"""Root meshes: shapes, names, and one process group for each distinct set of ranks."""

from __future__ import annotations

import enum
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat import plain
from tests.compat.oracle import Grid


class Name(str, enum.Enum):
    """Axis names as frameworks write them."""

    DP = "dp"
    CP = "cp"
    TP = "tp"


def ranks_of(group: dist.ProcessGroup) -> list[int]:
    """Return the global ranks in a group."""
    return dist.get_process_group_ranks(group)


@pytest.mark.ranks(8)
def test_a_root_shows_the_ranks_in_row_major_order_and_so_do_its_groups(api: ModuleType) -> None:
    """A root of shape (2, 2, 2) has the ranks 0 to 7 in order, and each axis's group is its line through this rank."""
    mesh = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("dp", "cp", "tp"))
    grid, rank = Grid((2, 2, 2)), dist.get_rank()
    assert mesh.mesh.tolist() == grid.mesh([(0,), (1,), (2,)], rank)
    for dim, name in enumerate(("dp", "cp", "tp")):
        assert ranks_of(api.get_group(mesh, name)) == grid.group((dim,), rank)
        assert ranks_of(api.get_group(mesh, dim)) == grid.group((dim,), rank)


@pytest.mark.ranks(8)
def test_the_whole_world_uses_the_default_group() -> None:
    """An axis over all ranks gets the default process group, not a copy of it."""
    mesh = compat.init_device_mesh("cpu", (1, 8, 1), mesh_dim_names=("pp", "dp", "tp"))
    assert compat.get_group(mesh, "dp") is dist.group.WORLD


@pytest.mark.ranks(8)
def test_axes_of_one_rank_share_one_group(api: ModuleType) -> None:
    """All axes of size 1 have the same real group of this rank alone, in which collectives write their outputs."""
    mesh = api.init_device_mesh("cpu", (1, 4, 1, 2, 1), mesh_dim_names=("a", "b", "c", "d", "e"))
    single = api.get_group(mesh, "a")
    assert ranks_of(single) == [dist.get_rank()]
    assert all(api.get_group(mesh, name) is single for name in ("c", "e"))
    assert len(worlds.live_process_groups()) == 1 + 1 + 2  # default, single, b, d
    gathered = [torch.zeros(2)]
    dist.all_gather(gathered, torch.ones(2), group=single)
    assert gathered[0].tolist() == [1.0, 1.0]


@pytest.mark.ranks(8)
def test_plain_names_are_stored_whatever_kind_of_string_was_given(api: ModuleType) -> None:
    """String enums name axes, and the mesh remembers them as the strings they equal."""
    mesh = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=tuple(Name))
    assert mesh.mesh_dim_names == ("dp", "cp", "tp")
    assert [str(name) for name in api.slice_mesh(mesh, (Name.DP, Name.TP)).mesh_dim_names] == ["dp", "tp"]


@pytest.mark.ranks(4)
def test_a_mesh_needs_no_names(api: ModuleType) -> None:
    """A mesh without names has shape, coordinate and groups by index."""
    mesh = api.init_device_mesh("cpu", (2, 2))
    assert mesh.mesh_dim_names is None
    assert ranks_of(api.get_group(mesh, 1)) == Grid((2, 2)).group((1,), dist.get_rank())


@pytest.mark.ranks(8)
def test_a_mesh_of_part_of_the_world_leaves_the_other_ranks_outside(api: ModuleType) -> None:
    """Ranks beyond the mesh get a mesh without a coordinate; the others get the groups of their axes."""
    mesh = api.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    rank = dist.get_rank()
    if rank < 4:
        assert tuple(api.get_coordinate(mesh)) == (rank // 2, rank % 2)
        assert ranks_of(api.get_group(mesh, "dp")) == Grid((2, 2)).group((0,), rank)
    else:
        assert api.get_coordinate(mesh) is None
        for ask in (api.get_group, api.slice_mesh):
            with pytest.raises((IndexError, RuntimeError), match=f"rank {rank} is not in"):
                ask(mesh, "dp")


@pytest.mark.ranks(4)
def test_backend_override_reaches_the_groups_of_its_axis(api: ModuleType) -> None:
    """An axis named in `backend_override` gets groups of that backend, and the caller's mapping is left alone."""
    worlds.register_fake_backend()
    override: dict[Any, Any] = {"tp": "fake"}
    mesh = api.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"), backend_override=override)
    assert dist.get_backend(api.get_group(mesh, "dp")) == "gloo"
    assert dist.get_backend(api.get_group(mesh, "tp")) == "fake"
    assert override == {"tp": "fake"}


def test_options_and_their_timeout_reach_every_group_of_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options go to each `new_group` call of their axis, with the timeout inside them, which c10d would overwrite.

    NCCL's options, because they are the only public ones; no NCCL communicator can be made here, so the calls are
    recorded.
    """
    if not dist.is_nccl_available():
        pytest.skip("this torch build has no NCCL, and so no public options class")
    options = dist.ProcessGroupNCCL.Options()
    plain.set_timeout(options, timedelta(seconds=77))
    calls: list[tuple[Any, ...]] = []
    real = dist.new_group

    def record(ranks: list[int], timeout: Any, backend: Any, pg_options: Any, **rest: Any) -> Any:
        calls.append((ranks, timeout, backend, pg_options))
        return real(ranks, **rest)

    with fake_world(8):
        monkeypatch.setattr(dist, "new_group", record)
        compat.init_device_mesh("cpu", (2, 4), backend_override={0: options, 1: ("gloo", options)})
    assert calls == [
        ([0, 4], timedelta(seconds=77), None, options),
        ([0, 1, 2, 3], timedelta(seconds=77), "gloo", options),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mesh_shape": (3, 4)}, ValueError, r"has 12 ranks, but the world has 8"),
        ({"mesh_shape": (0, 8)}, ValueError, r"mesh_shape\[0\]=0 is less than 1: give an int of at least 1"),
        ({"mesh_shape": ("2", 4)}, TypeError, r"mesh_shape\[0\]='2' is of type str: give an int of at least 1"),
        ({"mesh_shape": (True, 8)}, TypeError, r"mesh_shape\[0\]=True is of type bool: give an int of at least 1"),
        ({"mesh_shape": ()}, ValueError, r"mesh_shape is empty: give a list or tuple of sizes"),
        ({"mesh_shape": (2, 4), "mesh_dim_names": ("a", "a")}, ValueError, r"mesh_dim_names=.* repeats a"),
        ({"mesh_shape": (2, 4), "mesh_dim_names": ("a",)}, ValueError, r"2 sizes \(2, 4\) but 1 names"),
        (
            {"mesh_shape": (2, 4), "mesh_dim_names": ("a", 1)},
            TypeError,
            r"mesh_dim_names\[1\]=1 is of type int: give a name",
        ),
        (
            {"mesh_shape": (2, 4), "mesh_dim_names": ()},
            ValueError,
            r"mesh_dim_names is empty: give a list or tuple of names",
        ),
        ({"device_type": "cuda:0", "mesh_shape": (8,)}, ValueError, r"without an index.*'cuda:0'"),
        ({"mesh_shape": (8,), "backend_override": {"x": "gloo"}}, ValueError, r"the key 'x'; valid keys are 0 to 0"),
        ({"mesh_shape": (8,), "backend_override": {0: 3}}, TypeError, r"a backend override is .* got 3"),
        (
            {"mesh_shape": (8,), "mesh_dim_names": ("a",), "backend_override": {0: "gloo", "a": "gloo"}},
            ValueError,
            r"names axis 0 twice",
        ),
    ],
)
def test_bad_arguments_are_refused_before_any_group_is_made(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A request that cannot be fulfilled names the input and what was there, and makes no process group."""
    device_type = arguments.pop("device_type", "cpu")
    with fake_world(8):
        before = worlds.live_process_groups()
        with pytest.raises(error, match=message):
            compat.init_device_mesh(device_type, **arguments)
        assert worlds.live_process_groups() == before


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple), st.integers(0, 10**6))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_shape_has_the_right_groups(shape: tuple[int, ...], pick: int) -> None:
    """Over many shapes and ranks, each axis's group is the oracle's and no rank set has two groups."""
    grid = Grid(shape)
    rank = pick % grid.world
    with fake_world(grid.world, rank):
        mesh = compat.init_device_mesh("cpu", shape)
        axes = [(dim,) for dim in range(len(shape))]
        for dim, axis in enumerate(axes):
            assert ranks_of(compat.get_group(mesh, dim)) == grid.group(axis, rank)
        everything = {*grid.distinct_groups(axes, rank), tuple(range(grid.world))}
        assert sorted(worlds.live_process_groups().values()) == sorted(everything)
