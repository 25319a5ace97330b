"""Errors: what torch raises in the same place is caught by the same handlers, and no error needs a living world."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from automodel_mesh import compat
from automodel_mesh.testing import fake_world
from tests.compat import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh

NAMES = ("dp", "tp")


def named(api: ModuleType) -> DeviceMesh:
    """Build a mesh of 8 ranks with names."""
    mesh: DeviceMesh = api.init_device_mesh("cpu", (2, 4), mesh_dim_names=NAMES)
    return mesh


REQUESTS: dict[str, Callable[[ModuleType], object]] = {
    "a repeated name": lambda api: api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("a", "a")),
    "too few names": lambda api: api.init_device_mesh("cpu", (2, 4), mesh_dim_names=("a",)),
    "a device with an index": lambda api: api.init_device_mesh("cuda:0", (8,)),
    "more ranks than there are": lambda api: api.init_device_mesh("cpu", (16,)),
    "an override of an unknown axis": lambda api: api.init_device_mesh("cpu", (8,), backend_override={"x": "fake"}),
    "an override given twice": lambda api: api.init_device_mesh(
        "cpu", (8,), mesh_dim_names=("a",), backend_override={"a": "fake", 0: "fake"}
    ),
    "a slice by an unknown name": lambda api: api.slice_mesh(named(api), "x"),
    "a slice by descending names": lambda api: api.slice_mesh(named(api), ("tp", "dp")),
    "a slice of a mesh without names": lambda api: api.slice_mesh(api.init_device_mesh("cpu", (2, 4)), "x"),
    "a group by name in a mesh without names": lambda api: api.get_group(api.init_device_mesh("cpu", (2, 4)), "x"),
    "a group of an unknown name": lambda api: api.get_group(named(api), "x"),
    "a group of an index out of range": lambda api: api.get_group(named(api), 7),
    "a group of no axis": lambda api: api.get_group(named(api)),
    "flattening a mesh without names": lambda api: api.flatten(api.init_device_mesh("cpu", (2, 4)), "x"),
    "flattening under a taken name": lambda api: api.flatten(named(api), "tp"),
    "splitting an unknown axis": lambda api: api.unflatten(named(api), "x", (2, 2), ("a", "b")),
    "splitting an axis out of range": lambda api: api.unflatten(named(api), 5, (2, 2), ("a", "b")),
    "splitting into a wrong product": lambda api: api.unflatten(named(api), 1, (2, 3), ("a", "b")),
    "splitting into too few names": lambda api: api.unflatten(named(api), 1, (2, 2), ("a",)),
    "joining what overlaps": lambda api: api.concatenate([named(api)] * 2),
    "joining nothing": lambda api: api.concatenate([]),
    "a group outside the mesh": lambda api: api.get_group(api.init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES), 0),
}
"""Requests that we refuse, as functions of torch's calls or ours."""


@pytest.mark.parametrize("what", REQUESTS)
def test_a_handler_written_for_torch_catches_our_error(what: str) -> None:
    """An error of ours is a subclass of the one that the installed torch raises in its place."""
    with fake_world(8, rank=5), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            REQUESTS[what](plain)
        except (AttributeError, TypeError):
            theirs: type[Exception] = Exception  # this release has no such call, or no such argument
        except Exception as error:  # noqa: BLE001 - whatever torch raises is what is asked for
            theirs = type(error)
        else:
            theirs = Exception
    with fake_world(8, rank=5), pytest.raises(theirs) as caught:
        REQUESTS[what](compat)
    assert isinstance(caught.value, (ValueError, RuntimeError))
    if not what.startswith("a group outside"):
        assert isinstance(caught.value, compat.MeshArgumentError)


@pytest.mark.parametrize("detail", [False, True])
def test_an_error_about_a_destroyed_world_needs_no_world(monkeypatch: pytest.MonkeyPatch, detail: bool) -> None:
    """With `TORCH_DISTRIBUTED_DEBUG=DETAIL` too, where torch's repr of a mesh asks the world, the error is ours."""
    with fake_world(8, rank=5):
        root = named(compat)
        flat = compat.flatten(root, "all")
        part = compat.slice_mesh(root, "tp")
        outside = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=NAMES)
    if detail:
        monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", "DETAIL")
    for mesh, shown in ((root, "dp=2, tp=4"), (flat, "all=8"), (part, "tp=4"), (outside, "dp=2, tp=2")):
        requests: list[Callable[[], object]] = [
            lambda mesh=mesh: compat.slice_mesh(mesh, "x"),  # type: ignore[misc]
            lambda mesh=mesh: compat.find_submesh(mesh, "x"),  # type: ignore[misc]
            lambda mesh=mesh: compat.get_group(mesh, 0),  # type: ignore[misc]
            lambda mesh=mesh: compat.flatten(mesh, "y"),  # type: ignore[misc]
            lambda mesh=mesh: compat.unflatten(mesh, 0, (2, 1), ("p", "q")),  # type: ignore[misc]
            lambda mesh=mesh: compat.concatenate([mesh]),  # type: ignore[misc]
            lambda mesh=mesh: compat.list_process_groups(mesh),  # type: ignore[misc]
        ]
        for request in requests:
            with pytest.raises(compat.ProcessGroupDestroyedError, match=rf"DeviceMesh\({shown}\)"):
                request()
        with fake_world(8), pytest.raises(TypeError, match="names="):
            compat.slice_mesh(named(compat), mesh)  # type: ignore[arg-type]
