"""Our meshes equal those that torch makes, so that each can be used in place of the other."""

from __future__ import annotations

import inspect
import warnings
from itertools import combinations
from typing import Any

import pytest
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from automodel_mesh import compat
from automodel_mesh.testing import fake_world
from tests.compat import plain

# One test for all shapes: each test is a process, and torch's own slicing imports torch._dynamo in each.
SHAPES = [(2, 2, 2), (1, 4, 2), (4, 1, 2), (2, 4, 1), (1, 8, 1), (8, 1, 1)]


def test_roots_slices_and_flattened_axes_equal_those_of_torch() -> None:
    """Meshes with the same ranks, names and layout are equal and have equal hashes."""
    names = ("a", "b", "c")
    with fake_world(8, rank=3):
        for shape in SHAPES:
            ours = compat.init_device_mesh("cpu", shape, mesh_dim_names=names)
            theirs = init_device_mesh("cpu", shape, mesh_dim_names=names)
            assert ours == theirs
            assert hash(ours) == hash(theirs)
            for count in (1, 2):
                for some in combinations(names, count):
                    assert compat.slice_mesh(ours, some) == theirs[some]
            for some in combinations(names, 2):
                name = "_".join(some)
                assert compat.flatten(compat.slice_mesh(ours, some), name) == plain.flatten(theirs[some], name)


def test_a_mixed_slice_equals_the_one_of_torch() -> None:
    """A slice of native and flattened axes equals torch's, if torch can make it, and gives no warning."""
    with fake_world(8, rank=3):
        ours = compat.init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("a", "b", "c"))
        theirs = init_device_mesh("cpu", (2, 2, 2), mesh_dim_names=("a", "b", "c"))
        compat.flatten(compat.slice_mesh(ours, ("b", "c")), "bc")
        plain.flatten(theirs["b", "c"], "bc")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning about slicing flattened axes, which ours does not give
            expected = theirs["a", "bc"]
        assert compat.slice_mesh(ours, ("a", "bc")) == expected


def test_derived_meshes_inherit_how_the_root_orders_ranks() -> None:
    """A slice of a torch mesh with `preserve_rank_order` has it too, as torch's own slice does."""
    if "preserve_rank_order" not in inspect.signature(DeviceMesh).parameters:
        pytest.skip("this torch has one way to order ranks only")
    preserving: dict[str, Any] = {"preserve_rank_order": True}
    with fake_world(8, rank=3):
        ranks = [[0, 1, 2, 3], [4, 5, 6, 7]]
        root, other = (DeviceMesh("cpu", ranks, mesh_dim_names=("a", "b"), **preserving) for _ in range(2))
        assert compat.slice_mesh(root, "b") == other["b"]
        assert compat.slice_mesh(root, "b") != DeviceMesh("cpu", ranks, mesh_dim_names=("a", "b"))["b"]
        assert compat.flatten(root, "ab") == plain.flatten(other, "ab")
