"""`backport`: what it gives to each release, and what it leaves of torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import compat
from automodel_mesh.compat import backporting
from automodel_mesh.compat.eras import newest as features
from tests.compat import newest, plain

THREADS = 8
HERE = compat.backport(dry_run=True)


def state_of_torch() -> dict[str, int]:
    """Return the identity of each attribute of `DeviceMesh`, and of `init_device_mesh` in each module of torch."""
    modules = {name: module for name, module in list(sys.modules.items()) if name.startswith("torch.")}
    made = {name: getattr(module, "__dict__", {}).get("init_device_mesh") for name, module in modules.items()}
    return {name: id(value) for name, value in [*vars(DeviceMesh).items(), *made.items()] if value is not None}


# --- what it gives


@pytest.mark.ranks(8)
def test_the_table_says_what_this_torch_does_itself() -> None:
    """Plain torch has the features that the table says it has since this release, and no others."""
    plain.restore_torch()
    assert newest.features_found() == set(HERE.present)


@pytest.mark.ranks(8)
def test_every_feature_is_there_with_backport() -> None:
    """With `backport`, this torch has all features but those that the result calls impossible."""
    result = compat.backport()
    assert newest.features_found() == newest.PROBES.keys() - result.impossible.keys()
    assert {*result.installed, *result.present, *result.impossible} == newest.PROBES.keys()


@pytest.mark.release_independent
def test_the_signatures_are_those_of_the_newest_torch() -> None:
    """Each function has the parameters of the newest torch's, with their kinds and defaults."""

    def parameters(function: Any) -> list[tuple[Any, ...]]:
        function = function.__func__ if isinstance(function, staticmethod) else function
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]

    ours = {name: each for name, each in vars(backporting.Newest).items() if inspect.isfunction(each)}
    for name, function in {**ours, "_concatenate": vars(backporting.Newest)["_concatenate"]}.items():
        assert parameters(function) == parameters(vars(DeviceMesh)[name]), name
    assert parameters(backporting.init_device_mesh) == parameters(device_mesh.init_device_mesh)


@pytest.mark.ranks(1)
def test_the_order_of_ranks_is_kept_or_refused() -> None:
    """`preserve_rank_order=True` is a `ValueError` that says what to do, where torch sorts the ranks of groups."""
    with compat.backport() as result:
        assert "preserve_rank_order" in inspect.signature(DeviceMesh).parameters
        if result.impossible:
            with pytest.raises(ValueError, match="give the ranks in ascending order"):
                DeviceMesh("cpu", [0], preserve_rank_order=True)
        assert DeviceMesh("cpu", [0], preserve_rank_order=False).size() == 1


@pytest.mark.ranks(4)
def test_abort_spares_the_default_group_and_can_be_repeated() -> None:
    """It ends the groups of a mesh that torch made, for those that `backport` adds it to."""
    root = plain.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    with compat.backport() as result:
        if "`mesh.abort`" not in result.installed:
            return
        ours = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        for mesh in (root, ours):
            flat = plain.flatten(mesh, "all")
            dist.barrier()  # an abort waits for no rank, and another one may still connect
            newest.abort(mesh)
            newest.abort(mesh)
            with pytest.raises(compat.ProcessGroupDestroyedError, match="closed"):
                compat.get_group(flat)
        dist.barrier()


# --- what it leaves


def test_the_import_changes_nothing_of_this() -> None:
    """Importing the package does not apply it."""
    names = sorted(backporting.FEATURES)
    program = f"""
from torch.distributed.device_mesh import DeviceMesh
before = {{name: vars(DeviceMesh).get(name) for name in {names}}}
import automodel_mesh.compat.backporting, automodel_mesh.mesh
assert all(vars(DeviceMesh).get(name) is value for name, value in before.items())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_torch_is_restored_exactly() -> None:
    """At the end of the block, or after an error in it, torch's class and modules have the identical attributes."""
    before = state_of_torch()
    with compat.backport() as result:
        assert (state_of_torch() == before) is (not result.installed)
    assert state_of_torch() == before
    with pytest.raises(ZeroDivisionError), compat.backport():
        _ = 1 / 0
    assert state_of_torch() == before


def test_a_dry_run_changes_nothing() -> None:
    """It returns what the call returns, and changes nothing, as a context manager too."""
    before = state_of_torch()
    with compat.backport(dry_run=True) as result:
        assert state_of_torch() == before
        with compat.backport() as called:
            inside = state_of_torch()
            with compat.backport(dry_run=True):
                pass
            assert state_of_torch() == inside
        assert str(called) == str(result)
    assert state_of_torch() == before


def test_calls_within_blocks_count() -> None:
    """Torch is restored at the end of the outermost block; a plain call in a block lasts."""
    before = state_of_torch()
    with compat.backport() as outer:
        inside = state_of_torch()
        with compat.backport():
            assert state_of_torch() == inside
        assert state_of_torch() == inside
    assert state_of_torch() == before
    outer.__exit__(None, None, None)
    with compat.backport():
        compat.backport()
    assert state_of_torch() == inside
    with compat.backport():
        pass
    assert state_of_torch() == inside


def test_threads_can_use_it_at_once() -> None:
    """In the block of each thread torch is changed, and after the last one it is restored."""
    before = state_of_torch()
    with compat.backport():
        inside = state_of_torch()
    ready = threading.Barrier(THREADS)

    def use(_: int) -> bool:
        ready.wait()
        same: list[bool] = []
        for _ in range(20):
            with compat.backport():
                same.append(state_of_torch() == inside)
        return all(same)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(use, range(THREADS)))
    assert state_of_torch() == before


IMPORTED_MEANWHILE = """
import sys
from torch.distributed import device_mesh
from automodel_mesh.compat import backport

torchs = device_mesh.init_device_mesh
assert "torch.distributed.tensor" not in sys.modules
with backport():
    import torch.distributed.tensor as tensor
    assert tensor.init_device_mesh is device_mesh.init_device_mesh
assert tensor.init_device_mesh is device_mesh.init_device_mesh is torchs
"""


def test_modules_imported_meanwhile_are_restored_too() -> None:
    """A module of torch's that is first imported in the block has torch's function afterwards."""
    subprocess.run([sys.executable, "-c", IMPORTED_MEANWHILE], check=True, timeout=100)


def test_what_others_have_replaced_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that someone else sets in the block is not replaced at its end, and still works."""
    with compat.backport():
        ours = DeviceMesh.get_coordinate
        monkeypatch.setattr(DeviceMesh, "get_coordinate", partial(ours))
        theirs = DeviceMesh.get_coordinate
    assert DeviceMesh.get_coordinate is theirs
    with compat.backport():
        pass
    assert DeviceMesh.get_coordinate is theirs


def test_the_result_is_readable() -> None:
    """Printed, it has a line for each feature, and the reason for each that is impossible."""
    lines = str(HERE).splitlines()
    assert len(lines) == 1 + len(features.SINCE) + len(features.IMPOSSIBLE)
    assert all(any(why in line for line in lines) for why in HERE.impossible.values())


# --- errors


@pytest.mark.ranks(4)
def test_errors_can_be_caught_as_those_of_the_newest_torch() -> None:
    """What the newest torch refuses is refused with `backport`, by an error of the class that it raises."""
    compat.backport()
    root = device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    nameless = DeviceMesh("cpu", torch.arange(4))
    for call, error in newest.REFUSED.values():
        with pytest.raises(error):
            call(root, nameless)
        dist.barrier()
