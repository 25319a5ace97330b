"""`slice_mesh`, on the root and on any derived mesh."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FrameType, ModuleType

import pytest
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from automodel_mesh.testing import fake_world
from tests.compat.oracle import Grid

NAMES = ("dp", "cp", "tp")
GRID = Grid((2, 2, 2))


@pytest.mark.ranks(8)
def test_a_slice_shows_its_axes_and_uses_the_groups_there_are(api: ModuleType) -> None:
    """A slice has the ranks of its axes, their groups and the root, and creates no process group."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    groups, rank = worlds.live_process_groups(), dist.get_rank()
    for names, axes in {("dp", "cp"): [(0,), (1,)], ("dp", "tp"): [(0,), (2,)], ("tp",): [(2,)]}.items():
        part = api.slice_mesh(root, names)
        assert part.mesh.tolist() == GRID.mesh(axes, rank)
        assert part.mesh_dim_names == names
        assert api.get_root_mesh(part) is root
        for dim, axis in enumerate(axes):
            assert dist.get_process_group_ranks(api.get_group(part, dim)) == GRID.group(axis, rank)
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_a_slice_of_a_slice_keeps_the_true_root(api: ModuleType) -> None:
    """Slicing a slice works, and the root is that of the first mesh, even for a third slice."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    two = api.slice_mesh(root, ("dp", "cp"))
    one = api.slice_mesh(two, "cp")
    assert api.get_root_mesh(one) is root
    assert one.mesh.tolist() == GRID.group((1,), dist.get_rank())


@pytest.mark.ranks(8)
def test_a_flattened_axis_is_sliced_from_the_root_and_from_any_slice(api: ModuleType) -> None:
    """The name of a flattened axis works on the root, on its slices, and together with native axes."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    flat = api.flatten(api.slice_mesh(root, ("dp", "cp")), "dp_cp")
    rank = dist.get_rank()
    assert api.slice_mesh(root, "dp_cp").mesh.tolist() == flat.mesh.tolist()
    mixed = api.slice_mesh(root, ("dp_cp", "tp"))
    assert mixed.mesh.tolist() == GRID.mesh([(0, 1), (2,)], rank)
    assert api.get_root_mesh(mixed) is root
    from_part = api.slice_mesh(api.slice_mesh(root, ("cp", "tp")), ("dp_cp", "tp"))
    assert from_part.mesh.tolist() == GRID.mesh([(0, 1), (2,)], rank)


@pytest.mark.ranks(8)
def test_a_non_contiguous_flattened_axis_keeps_its_ranks(api: ModuleType) -> None:
    """A flattened axis of axes that are not contiguous is sliced with the right ranks and the right group."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    api.flatten(api.slice_mesh(root, ("dp", "tp")), "dp_tp")
    rank = dist.get_rank()
    for source in (root, api.slice_mesh(root, ("cp", "tp"))):
        line = api.slice_mesh(source, "dp_tp")
        assert line.mesh.tolist() == GRID.group((0, 2), rank)
        assert dist.get_process_group_ranks(api.get_group(line)) == GRID.group((0, 2), rank)
    assert api.slice_mesh(root, ("dp_tp", "cp")).mesh.tolist() == GRID.mesh([(0, 2), (1,)], rank)


@pytest.mark.ranks(8)
def test_an_fsdp_mesh_of_native_and_flattened_axes_is_sliced() -> None:
    """`("dp_replicate", "dp_shard_cp")` is sliced without a new group and has the same root."""
    names = ("dp_replicate", "dp_shard", "cp", "tp")
    root = compat.init_device_mesh("cpu", (2, 2, 2, 1), mesh_dim_names=names)
    compat.flatten(compat.slice_mesh(root, ("dp_shard", "cp")), "dp_shard_cp")
    groups = worlds.live_process_groups()
    mesh = compat.slice_mesh(root, ("dp_replicate", "dp_shard_cp"))
    assert mesh.mesh.tolist() == Grid((2, 2, 2, 1)).mesh([(0,), (1, 2)], dist.get_rank())
    assert compat.get_root_mesh(mesh) is root
    assert worlds.live_process_groups() == groups


@pytest.mark.ranks(8)
def test_the_same_request_again_returns_the_same_object(api: ModuleType) -> None:
    """The same axes, given as a string, a tuple or a str enum, give one object; all names in order the mesh itself."""
    root = api.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
    assert api.slice_mesh(root, ("dp", "cp")) is api.slice_mesh(root, ("dp", "cp"))
    assert api.slice_mesh(root, "tp") is api.slice_mesh(root, ("tp",))
    assert api.slice_mesh(root, NAMES) is root


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("pp", KeyError, r"no axis 'pp': .* \['dp', 'cp', 'tp'\].*\['dp_cp'\]"),
        (("dp", "x", "y"), KeyError, r"no axis 'x', 'y'"),
        ((), ValueError, r"names is empty: give a list or tuple of names"),
        ([], ValueError, r"names is empty: give a list or tuple of names"),
        (("dp", "dp"), ValueError, r"repeats dp"),
        (("cp", "dp"), ValueError, r"not in ascending order"),
        (("tp", "dp_cp"), ValueError, r"not in ascending order"),
        (("dp_cp", "cp"), ValueError, r"overlap"),
        (("dp", 2), TypeError, r"names\[1\]=2 is of type int: give a name"),
    ],
)
def test_names_that_make_no_slice_are_refused(names: object, error: type[Exception], message: str) -> None:
    """Unknown, repeated, overlapping and unordered names are refused, with the axes of the mesh and what to do."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        compat.flatten(compat.slice_mesh(root, ("dp", "cp")), "dp_cp")
        with pytest.raises(error, match=message):
            compat.slice_mesh(root, names)  # type: ignore[arg-type]


def test_a_native_axis_of_the_root_is_not_an_axis_of_its_slice() -> None:
    """On a slice, its own axes and the flattened axes can be sliced, and the root's other native axes cannot."""
    with fake_world(8):
        root = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=NAMES)
        with pytest.raises(KeyError, match="no axis 'dp'"):
            compat.slice_mesh(compat.slice_mesh(root, ("cp", "tp")), "dp")


def test_an_argument_that_is_not_a_mesh_is_refused() -> None:
    """An argument that is not a mesh is named in the error."""
    with fake_world(2), pytest.raises(TypeError, match=r"expected a torch DeviceMesh, got str: 'tp'"):
        compat.slice_mesh("tp", "tp")  # type: ignore[arg-type]


@pytest.mark.ranks(8)
def test_slicing_on_a_rank_outside_the_mesh_is_refused() -> None:
    """Slicing on a rank outside the mesh is an error that names the rank, not an IndexError."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    if dist.get_rank() < 4:
        assert compat.slice_mesh(root, "tp").size() == 2
    else:
        with pytest.raises(compat.RankNotInMeshError, match=f"rank {dist.get_rank()} is not in"):
            compat.slice_mesh(root, "tp")


def calls_to_slice(world: int) -> int:
    """Count the Python functions that run while a first slice is made in a world of this many ranks."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    with fake_world(world):
        root = compat.init_device_mesh("cpu", (2, world // 4, 2), mesh_dim_names=NAMES)
        compat.slice_mesh(root, ("dp", "tp"))  # what is imported or made only once is not counted
        sys.setprofile(count)
        try:
            compat.slice_mesh(root, ("dp", "cp"))
        finally:
            sys.setprofile(None)
    return calls


def test_the_work_of_a_first_slice_does_not_grow_with_the_world() -> None:
    """The number of Python calls for a first slice is the same in a world of any size."""
    assert calls_to_slice(1024) <= calls_to_slice(64)


DYNAMO_PROBE = """
import sys
from automodel_mesh import compat
from automodel_mesh.compat import worlds
from tests.compat import plain
if "plain" in sys.argv:
    plain.restore_torch()
api = plain if "plain" in sys.argv else compat
worlds.init_fake_world(8)
root = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("dp", "tp"))
api.slice_mesh(root, "tp")
api.flatten(root, "all")
print("torch._dynamo" in sys.modules)
"""


def test_building_and_slicing_do_not_import_dynamo(api: ModuleType) -> None:
    """The first slice of a process does not import `torch._dynamo`, which takes 0.8 s and 150 MB."""
    # A fresh interpreter: other tests of this process may have imported it.
    which = "plain" if api is not compat else "ours"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DYNAMO_PROBE, which],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["False"], done.stderr
