"""With `backport`: the cases of slicing, flattening, splitting and joining that torch tests of its own newest release.

torch's wheels do not bring its tests, so these are ours, case by case.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import compat
from automodel_mesh.compat import worlds
from tests.compat import newest
from tests.compat.oracle import Grid
from tests.compat.test_torchs_calls import check_groups

CUBE = Grid((2, 2, 2))
pytestmark = pytest.mark.ranks(8)


@pytest.fixture(autouse=True)
def _with_backport() -> None:
    compat.backport()


def new(*sizes: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    """Make a mesh with the newest torch's function."""
    return newest.init_device_mesh("cpu", sizes, mesh_dim_names=names)


def cube(*names: str) -> DeviceMesh:
    """Make a mesh of three axes of two ranks."""
    return new(2, 2, 2, names=names or ("dp", "cp", "tp"))


def check(mesh: DeviceMesh, names: tuple[str, ...], axes: list[tuple[int, ...]], root: DeviceMesh) -> None:
    """Require names, ranks, groups and root of what was derived from a mesh of three axes of two ranks."""
    assert mesh.mesh_dim_names == names
    assert mesh.mesh.tolist() == CUBE.mesh(axes, dist.get_rank())
    assert newest.get_root_mesh(mesh) is root
    check_groups(mesh)


@contextmanager
def warnings_of_the_newest_ignored() -> Generator[None, None, None]:
    """Slice flattened axes from the root, of which the newest torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- slicing


def test_a_mesh_without_names_is_not_sliced() -> None:
    """It raises a `RuntimeError`, as torch does."""
    with pytest.raises(RuntimeError, match="names"):
        newest.slice_mesh(new(2, 4), "DP")


def test_an_unknown_name_is_not_sliced() -> None:
    """It raises a `KeyError`, for one of several names too, and on a mesh of one axis."""
    mesh = new(2, 4, names=("DP", "TP"))
    for names in ("PP", ("PP",), ("DP", "PP")):
        with pytest.raises(KeyError, match="PP"):
            newest.slice_mesh(mesh, names)
    with pytest.raises(KeyError, match="dim0"):
        newest.slice_mesh(new(8, names=("dp",)), "dim0")


def test_one_axis_is_sliced() -> None:
    """Of meshes of one, two and three axes; of one axis it is the mesh itself."""
    line = new(8, names=("dp",))
    assert newest.slice_mesh(line, "dp") is line
    rank, flat = dist.get_rank(), new(2, 4, names=("DP", "TP"))
    assert newest.slice_mesh(flat, "TP").mesh.tolist() == list(range(rank // 4 * 4, rank // 4 * 4 + 4))
    assert newest.slice_mesh(flat, "DP").mesh.tolist() == [rank % 4, rank % 4 + 4]
    root = cube("Replicate", "Shard", "TP")
    for dim, name in enumerate(("Replicate", "Shard", "TP")):
        check(newest.slice_mesh(root, name), (name,), [(dim,)], root)


def test_two_axes_are_sliced_by_a_tuple_and_by_a_list() -> None:
    """Both give equal meshes, and axes of these are sliced again."""
    root = cube("Replicate", "Shard", "TP")
    names: tuple[str, ...] = ("Replicate", "Shard")
    by_list: DeviceMesh = root[list(names)]  # type: ignore[index] # torch's types do not have lists
    by_tuple = newest.slice_mesh(root, names)
    assert by_list == by_tuple
    check(by_tuple, names, [(0,), (1,)], root)
    check(newest.slice_mesh(by_tuple, "Shard"), ("Shard",), [(1,)], root)
    check(newest.slice_mesh(by_list, "Replicate"), ("Replicate",), [(0,)], root)


def test_axes_with_a_gap_are_sliced_and_not_in_another_order() -> None:
    """The ranks, and the local rank along each axis, are right; descending order raises a `KeyError`."""
    root = cube()
    part = newest.slice_mesh(root, ("dp", "tp"))
    check(part, ("dp", "tp"), [(0,), (2,)], root)
    assert part.get_local_rank("dp") == dist.get_rank() // 4
    assert part.mesh[part.get_local_rank("dp")].tolist() == newest.slice_mesh(root, "tp").mesh.tolist()
    with pytest.raises(KeyError):
        newest.slice_mesh(root, ("tp", "dp"))


def test_a_slice_makes_no_group() -> None:
    """Neither the first time nor again."""
    root = cube()
    groups = worlds.live_process_groups()
    for _ in range(2):
        newest.slice_mesh(root, ("dp", "tp"))
        newest.slice_mesh(root, "cp")
    assert worlds.live_process_groups() == groups


# --- flattening


def test_a_mesh_of_one_axis_is_flattened() -> None:
    """To its own name it is itself, also where it has a part of the world."""
    for size in (8, 4):
        line = new(size, names=("default",))
        assert newest.flatten(line) is newest.flatten(line, "default") is line


def test_axes_are_flattened() -> None:
    """Contiguous ones or not, with the names joined by `_` or another one; again it makes no group."""
    root = cube()
    for names, axes, name in ((("dp", "cp"), (0, 1), None), (("dp", "tp"), (0, 2), None), (("cp", "tp"), (1, 2), "d")):
        part = newest.slice_mesh(root, names)
        flat = newest.flatten(part, name)
        check(flat, (name or "_".join(names),), [axes], root)
        groups = worlds.live_process_groups()
        assert newest.flatten(part, name) is newest.flattened_meshes(root)[name or "_".join(names)] is flat
        assert worlds.live_process_groups() == groups
    with warnings_of_the_newest_ignored():
        check(newest.slice_mesh(root, ("dp_cp", "tp")), ("dp_cp", "tp"), [(0, 1), (2,)], root)
    for part, taken in ((root, "dp"), (newest.slice_mesh(root, ("cp", "tp")), "dp_tp")):
        with pytest.raises(ValueError, match="taken|exists|created before"):
            newest.flatten(part, taken)


def test_flattened_axes_are_flattened_again() -> None:
    """A replicated and a flattened axis are folded, also where another axis has one rank."""
    names = ("dp_replicate", "dp_shard", "cp", "tp")
    root = new(2, 2, 2, 1, names=names)
    whole = newest.flatten(newest.slice_mesh(root, names[:3]), "dp_cp")
    newest.flatten(newest.slice_mesh(root, names[1:3]), "dp_shard_cp")
    assert whole.mesh.tolist() == list(range(8))
    assert newest.get_root_mesh(whole) is root
    with warnings_of_the_newest_ignored():
        newest.flatten(newest.slice_mesh(root, ("dp_replicate", "dp_shard_cp")), "dp")
        assert newest.slice_mesh(root, ("dp", "tp")).shape == (8, 1)


def test_a_mesh_of_a_part_of_the_world_is_flattened_and_sliced() -> None:
    """Four axes of one rank, on the rank that is in it."""
    names = ("dp_replicate", "dp_shard", "cp", "tp")
    root = new(1, 1, 1, 1, names=names)
    if dist.get_rank() == 0:
        newest.flatten(newest.slice_mesh(root, ("dp_shard", "cp")), "dp_cp")
        with warnings_of_the_newest_ignored():
            assert newest.slice_mesh(root, ("dp_replicate", "dp_cp", "tp")).shape == (1, 1, 1)


def test_a_mesh_is_put_together_of_native_and_flattened_axes() -> None:
    """The flattened axis is the inner or the outer one, and its group is found by its name."""
    for parts, name, both in ((("cp", "tp"), "cp_tp", ("dp", "cp_tp")), (("dp", "cp"), "dp_cp", ("dp_cp", "tp"))):
        root = cube()
        flat = newest.flatten(newest.slice_mesh(root, parts))
        with warnings_of_the_newest_ignored():
            mesh = newest.slice_mesh(root, both)
            assert newest.slice_mesh(root, name).get_group() is flat.get_group() is root.get_group(name)
        check(mesh, both, [(0,), (1, 2)] if both[0] == "dp" else [(0, 1), (2,)], root)


# --- splitting


def test_an_axis_of_two_is_split() -> None:
    """The other axis keeps its ranks and group; the root does not have the new names."""
    root = new(4, 2, names=("dp", "tp"))
    split = newest.unflatten(root, 0, (2, 2), ("dp_shard", "dp_replicate"))
    check(split, ("dp_shard", "dp_replicate", "tp"), [(0,), (1,), (2,)], root)
    assert newest.slice_mesh(split, "tp").get_group() is newest.slice_mesh(root, "tp").get_group()
    with pytest.raises(KeyError):
        newest.slice_mesh(root, "dp_shard")


def test_a_world_is_split_several_times() -> None:
    """For experts too, under the same names with other sizes, and what was split is split again."""
    root = new(8, names=("world",))
    dense = newest.unflatten(root, 0, (2, 2, 2), ("dp", "cp", "tp"))
    sparse = newest.unflatten(root, "world", (2, 2, 2), ("dp", "ep", "ep_tp"))
    for one, other in (("cp", "ep"), ("tp", "ep_tp")):
        assert newest.slice_mesh(dense, one).mesh.tolist() == newest.slice_mesh(sparse, other).mesh.tolist()
    wide = newest.unflatten(root, 0, (4, 2, 1), ("dp", "cp", "tp"))
    split = newest.unflatten(wide, 0, (2, 2), ("dp_shard", "dp_replicate"))
    assert split.mesh_dim_names == ("dp_shard", "dp_replicate", "cp", "tp")
    for name in ("cp", "tp"):
        assert newest.slice_mesh(wide, name).get_group() is newest.slice_mesh(split, name).get_group()
    for mesh in (dense, sparse, wide, split):
        assert newest.get_root_mesh(mesh) is root
        check_groups(mesh)


def test_new_axes_get_backends_of_their_own() -> None:
    """The fake backend, which communicates with nobody, and gloo."""
    worlds.register_fake_backend()
    root = new(8, names=("world",))
    split = newest.unflatten(root, 0, (1, 8), ("pp", "spmd"), backend_override={"pp": "fake", "spmd": "gloo"})
    again = newest.unflatten(split, 1, (2, 4), ("dp", "tp"), backend_override={"dp": "gloo", "tp": "fake"})
    found = {name: dist.get_backend(again.get_group(name)) for name in ("pp", "dp", "tp")}
    assert found == {"pp": "fake", "dp": "gloo", "tp": "fake"}
    assert dist.get_backend(split.get_group("spmd")) == "gloo"


def test_sizes_and_names_that_do_not_fit_are_refused() -> None:
    """A wrong product is a `ValueError`, a name too few a `RuntimeError`, another axis a `ValueError`."""
    root = new(4, 2, names=("dp", "tp"))
    for dim, sizes, names, error in (
        (0, (3, 2), ("a", "b"), ValueError),
        (0, (2, 2), ("a",), RuntimeError),
        (2, (2, 2), ("a", "b"), ValueError),
        ("cp", (2, 2), ("a", "b"), ValueError),
    ):
        with pytest.raises(error):
            newest.unflatten(root, dim, sizes, names)


# --- joining


def test_slices_are_joined() -> None:
    """To the whole mesh again, or to a part of it, with the groups there are."""
    root = new(2, 4, names=("dp", "tp"))
    whole = newest.concatenate([newest.slice_mesh(root, "dp"), newest.slice_mesh(root, "tp")])
    assert whole == root
    groups = worlds.live_process_groups()
    three = cube("pp", "dp", "tp")
    made = worlds.live_process_groups()
    part = newest.concatenate([newest.slice_mesh(three, "dp"), newest.slice_mesh(three, "tp")])
    check(part, ("dp", "tp"), [(1,), (2,)], three)
    assert part.get_group("dp") is newest.slice_mesh(three, ("dp", "tp")).get_group("dp") is three.get_group("dp")
    assert newest.concatenate([newest.slice_mesh(three, ("pp", "dp")), newest.slice_mesh(three, "tp")]) == three
    assert worlds.live_process_groups() == made
    assert groups.keys() <= made.keys()


def test_axes_that_overlap_are_not_joined() -> None:
    """It raises a `RuntimeError`."""
    root = cube()
    with pytest.raises(RuntimeError):
        newest.concatenate([newest.slice_mesh(root, ("dp", "cp")), newest.slice_mesh(root, "cp")])
