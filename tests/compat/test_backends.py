"""Which backends are refused for a mesh, on all ranks alike and before a process group is made, and which are not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, compat
from automodel_mesh.compat import worlds
from automodel_mesh.compat.backends import check_backend, checked_backend
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.testing import run_ranks
from tests import toy_device
from tests.compat import plain

RANKS = 4


def make_nothing(*_: Any) -> None:
    """Stand for the function that makes a backend, where none is made."""


@pytest.mark.parametrize(
    ("backend", "kind", "message"),
    [
        ("nccl", "cpu", "backend 'nccl' cannot serve a mesh on 'cpu': it serves cuda. Backends that can: gloo"),
        ("cuda:nccl", "cpu", "backend 'cuda:nccl' cannot serve a mesh on 'cpu': it serves cuda"),
        ("cpu:nccl", "cpu", "backend 'cpu:nccl' cannot serve a mesh on 'cpu'"),
        ("xpu:nccl", "xpu", "backend 'xpu:nccl' cannot serve a mesh on 'xpu'"),
        ("gloo", "xpu", "backend 'gloo' cannot serve a mesh on 'xpu': it serves cpu, cuda"),
        ("cpu:gloo", "cuda", "backend 'cpu:gloo' cannot serve a mesh on 'cuda': it serves cpu."),
        (
            "gloo",
            "toy",
            "cannot serve a mesh on 'toy': it serves cpu, cuda. Backends that can: toyccl, toypy. Give one",
        ),
        ("toyccl", "cpu", "backend 'toyccl' cannot serve a mesh on 'cpu': it serves toy"),
        ("toy:toyccl", "cpu", "backend 'toy:toyccl' cannot serve a mesh on 'cpu'"),
        ("cpu:toyccl", "cpu", "backend 'cpu:toyccl' cannot serve a mesh on 'cpu'"),
        ("cpu:gloo,cpu:gloo", "cpu", "backend 'cpu:gloo,cpu:gloo' cannot be read .*with each device once"),
        ("cpu:gloo,", "cpu", "backend 'cpu:gloo,' cannot be read"),
        ("cpu:gloo:gloo", "cpu", "backend 'cpu:gloo:gloo' cannot be read"),
        ("gpu:gloo,cpu:gloo", "cpu", "torch knows no device type 'gpu'"),
        ("cpu:gloo, cuda:gloo", "cpu", "torch knows no device type ' cuda'"),
        ("undefined", "cpu", "backend 'undefined' is not known to torch"),
        ("cpu:undefined", "cpu", "backend 'undefined' is not known to torch"),
        ("glooo", "cpu", r"backend 'glooo' is not known to torch \(did you mean 'gloo'\?\): give one of gloo"),
    ],
)
def test_a_backend_that_cannot_serve_the_device_is_refused(
    backend: str, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what the backend serves and which others there are (NCCL and a GPU are taken to be here)."""
    toy_device.register()
    monkeypatch.setattr(dist, "is_backend_available", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MeshArgumentError, match=message):
        check_backend(backend, kind)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (None, "cpu"),
        (None, "npu"),
        ("gloo", "cpu"),
        ("GLOO", "cuda"),
        ("cpu:gloo", "cpu"),
        ("cuda:gloo", "cuda"),
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cpu:gloo,cuda:nccl", "cuda"),
        ("nccl", "cuda"),
        ("mps:gloo", "mps"),
        ("cpu:gloo,toy:gloo", "toy"),
        ("toyccl", "toy"),
        ("cpu:gloo,toy:toypy", "toy"),
        ("fake", "cpu"),
        ("fake", "toy"),
        ("fake", "meta"),
        ("gloo", "meta"),
        ("gloo", "hpu_of_nobody"),
        ("unsaid", "cpu"),
        ("unsaid", "toy"),
        ("Nobody_Has_Heard_Of_It", "cuda"),
    ],
)
def test_no_other_backend_is_refused(backend: str | None, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves the device passes; so does a backend that has not said what it serves, and any for an unknown device.

    NCCL and a GPU are taken to be here.
    """
    toy_device.register()
    worlds.register_fake_backend()
    with pytest.warns(UserWarning, match="unspecified, assum"):
        dist.Backend.register_backend("unsaid", make_nothing)
    dist.Backend.register_backend("nobody_has_heard_of_it", make_nothing, devices=["cuda"])
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_backend(backend, kind)


def test_a_backend_of_an_installed_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that a package offers by an entry point is loaded by asking for it, on the releases that do so."""
    (tmp_path / "offered.py").write_text(
        "import torch.distributed as dist\n"
        "def register():\n"
        "    dist.Backend.register_backend('offered', print, devices=['cpu'])\n"
    )
    (tmp_path / "offered-1.dist-info").mkdir()
    (tmp_path / "offered-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    (tmp_path / "offered-1.dist-info" / "entry_points.txt").write_text(
        "[torch.distributed.backends]\noffered = offered:register\nbroken = offered:missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        served = checked_backend("offered")
    except MeshArgumentError as error:
        served = {}
        assert "backend 'offered' is not known to torch" in str(error)  # noqa: PT017 - on the releases that do not
    dist.BackendConfig(dist.Backend("cpu:offered"))  # torch itself loads it here, if it does so
    assert served == ({"cpu": "offered"} if "offered" in dist.Backend.backend_list else {})
    if served:
        with pytest.raises(MeshArgumentError, match=r"backend 'broken' cannot be read \(Failed to load"):
            checked_backend("broken")


@pytest.mark.ranks(RANKS)
def test_refusals_are_alike_on_all_ranks_and_leave_nothing() -> None:
    """Each function that makes groups refuses on every rank, those outside the mesh included, and works afterwards."""
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"))
    groups = worlds.live_process_groups()
    refused: dict[str, Any] = {
        "a mesh": partial(compat.init_device_mesh, "cpu", (4,), backend_override={0: "nccl"}),
        "a part of the world": partial(compat.init_device_mesh, "cpu", (2,), backend_override={0: "cuda:gloo"}),
        "flatten": partial(compat.flatten, root, "other", backend_override="cuda:gloo"),
        "unflatten": partial(compat.unflatten, root, "x", (1, 2), ("a", "b"), backend_override={"b": "cuda:gloo"}),
        "refold": partial(compat.refold, root, ("x", "y"), (1, 4), ("c", "d"), backend_override={"d": "cuda:gloo"}),
        "a context": partial(
            MeshContext.build, FSDP2Config(), ParallelismSizes(tp_size=2), backend_override={"dp_cp": "cuda:gloo"}
        ),
    }
    for call in refused.values():
        with pytest.raises(MeshArgumentError, match="cannot serve a mesh on 'cpu'|needs a GPU|without it"):
            call()
        assert worlds.live_process_groups() == groups
        total = torch.ones(1)
        dist.all_reduce(total, group=compat.get_group(compat.flatten(root, "all")))
        assert total.item() == RANKS


def test_a_wrong_backend_is_refused_before_a_world_is_started() -> None:
    """`init_device_mesh` looks at the backends before it initialises the default group."""
    with pytest.raises(MeshArgumentError, match="cannot serve a mesh on 'cpu'"):
        compat.init_device_mesh("cpu", (1,), backend_override={0: "cuda:gloo"})
    assert not dist.is_initialized()


def use_fake_groups() -> None:
    """Make an axis with fake groups, and communicate over all axes."""
    worlds.register_fake_backend()
    root = compat.init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "y"), backend_override={"y": "fake"})
    flat = compat.flatten(root, "all", backend_override="fake")
    for mesh, name, ranks in ((root, "x", 2), (root, "y", 1), (flat, "all", 1)):
        total = torch.ones(1)
        dist.all_reduce(total, group=compat.get_group(mesh, name))
        assert total.item() == ranks, name
    assert dist.get_backend(compat.get_group(root, "y")) == "fake"
    assert dist.get_backend(compat.get_group(root, "x")) == "gloo"


@pytest.mark.parametrize("level", ["OFF", "DETAIL"])
def test_fake_groups_work_at_every_debug_level(level: str) -> None:
    """An axis with fake groups works in a real world; DETAIL, under which torch fails to make them, included."""

    def body() -> None:
        plain.set_debug_level(level)
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        use_fake_groups()
        dist.barrier()

    run_ranks(body, RANKS)


@pytest.mark.parametrize("level", ["OFF", "DETAIL"])
def test_fake_worlds_work_at_every_debug_level(level: str) -> None:
    """A fake world, and the meshes in it, work under DETAIL too, where torch crashes on some releases."""
    plain.set_debug_level(level)
    worlds.init_fake_world(8, rank=3)
    root = compat.init_device_mesh("cpu", (2, 4), mesh_dim_names=("x", "y"))
    dist.all_reduce(torch.ones(1), group=compat.get_group(root, "y"))
    compat.flatten(root, "all")
    dist.destroy_process_group()
