"""Meshes in a world whose default group is bound to a device, so that torch splits its communicator where it can."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes, compat
from automodel_mesh.compat import splitting, worlds
from automodel_mesh.compat.backends import devices_of
from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.splitting import Way, way_to_make
from automodel_mesh.errors import RanksDisagreeError
from automodel_mesh.testing import run_ranks
from tests import toy_device
from tests.compat import plain
from tests.compat.oracle import Grid

RANKS = 4
SHAPE = (2, 2)
WORLDS = ["gloo", "cuda:gloo", "cpu:gloo,cuda:gloo", "cpu:gloo,cuda:other"]


@pytest.fixture(autouse=True)
def _other() -> None:
    """Register `other`, which is gloo by another name."""
    dist.Backend.register_backend("other", toy_device.make_gloo, devices=["cpu", "cuda"])


def bind() -> None:
    """Bind the default group to a GPU, as `device_id=` does where there is one; gloo needs none."""
    world: Any = dist.group.WORLD
    world.bound_device_id = torch.device("cuda", 0)


def check_meshes(kind: str = "cuda", **options: Any) -> None:
    """Build meshes over the world and a part of it, and derive from them; compare ranks, communicate, and close."""
    grid, rank = Grid(SHAPE), dist.get_rank()
    root = compat.init_device_mesh(kind, SHAPE, mesh_dim_names=("x", "y"), **options)
    split = compat.unflatten(compat.flatten(root, "all"), "all", (1, RANKS), ("a", "b"))
    part = compat.init_device_mesh(kind, (2,), mesh_dim_names=("p",), ranks=[0, 3])
    expected: dict[tuple[Any, str], Any] = {
        (root, "x"): grid.group((0,), rank),
        (root, "y"): grid.group((1,), rank),
        (root, "all"): range(RANKS),
        (split, "a"): [rank],
    }
    if rank in {0, 3}:
        expected[part, "p"] = [0, 3]
    for (mesh, name), ranks in expected.items():
        group = compat.get_group(mesh, name)
        assert dist.get_process_group_ranks(group) == list(ranks)
        if "cpu" in dist.get_backend_config(group):
            total = torch.tensor([rank])
            dist.all_reduce(total, group=group)
            assert total.item() == sum(ranks), (name, dist.get_backend_config(group))
    for mesh in (root, part):
        compat.destroy_process_groups(mesh)


@pytest.mark.parametrize("backend", WORLDS)
def test_meshes_in_a_bound_world(backend: str) -> None:
    """Whether or not torch can split the default group, each axis has its ranks, again after all was destroyed."""

    def body() -> None:
        bind()
        for override in (None, {"y": backend}, {"y": "other"}, {"x": "cuda:gloo"}):
            check_meshes(backend_override=override)
        assert len(worlds.live_process_groups()) == 1
        with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2)) as context:
            assert len(context.process_groups()) > 1

    run_ranks(body, RANKS, backend=backend)


@pytest.mark.parametrize("backend", ["toyccl", "toy:toyccl", "cpu:gloo,toy:toyccl"])
def test_meshes_in_a_world_that_is_bound_to_an_accelerator(backend: str) -> None:
    """The default group is bound by `device_id=`, and split where the release can split it."""
    toy_device.register()

    def body() -> None:
        device = torch.device("toy", int(os.environ["RANK"]))
        try:
            dist.init_process_group(backend, device_id=device)
        except ValueError as error:
            pytest.skip(f"this torch binds a default group to CUDA devices only: {error}")
        assert getattr(dist.group.WORLD, "bound_device_id") == device  # noqa: B009 - missing in torch's stubs
        for override in (None, {"y": backend}, {"y": "toy:gloo"}, {"x": "cpu:gloo,toy:gloo"}):
            check_meshes("toy", backend_override=override)
        assert len(worlds.live_process_groups()) == 1

    run_ranks(body, RANKS, backend=None)


@pytest.mark.parametrize("backend", WORLDS)
@pytest.mark.parametrize("debug", ["OFF", "DETAIL"])
def test_groups_of_a_backend_that_splits_inside_new_group(backend: str, debug: str) -> None:
    """All ranks take part in `new_group` where it splits, as NCCL does, and the members alone where it does not.

    No backend here does it, so gloo is made to say that it does, and to count the calls. Under DETAIL it has a wrapper,
    which splits on some releases.
    """
    calls: list[torch.device] = []

    def body() -> None:
        plain.set_debug_level(debug)
        gloo: Any = dist.ProcessGroupGloo
        gloo.supports_splitting = True
        gloo.perform_nocolor_split = lambda _, device: calls.append(device)
        dist.init_process_group(backend)
        bind()
        different = "cuda:gloo" if "other" in backend else "cuda:other"
        assert way_to_make(different) is Way.BY_MEMBERS
        assert way_to_make() is not Way.BY_MEMBERS or debug == "DETAIL"
        compat.init_device_mesh("cuda", SHAPE, mesh_dim_names=("x", "y"), backend_override={"y": different})
        # Along x there are two groups, and a rank is in one of them. Along y each group is made by its members.
        assert calls == [torch.device("cuda", 0)] * (way_to_make() is Way.BY_ALL_RANKS)
        check_meshes()

    run_ranks(body, RANKS, backend=None)


def test_a_rank_that_is_bound_alone_is_told() -> None:
    """Ranks that would make the groups in different ways get an error that says so; nothing hangs, nothing is made."""

    def body() -> None:
        gloo: Any = dist.ProcessGroupGloo
        gloo.supports_splitting, gloo.perform_nocolor_split = True, lambda *_: None
        if dist.get_rank() == 2:
            bind()
        with pytest.raises(RanksDisagreeError, match=r"rank 2 asks for .*, by new_group on all ranks"):
            compat.init_device_mesh("cuda", SHAPE)
        if dist.get_rank() != 2:
            bind()
        check_meshes()

    run_ranks(body, RANKS, backend="cpu:gloo,cuda:other")


class Bound:
    """A default group that is bound to a GPU, with backends that it could have there."""

    bound_device_id = torch.device("cuda", 0)

    def __init__(self, backend: str, *, splits: bool) -> None:
        served = devices_of(backend)
        self._device_types = list(map(torch.device, served))
        self._backends = {kind: self.Backend(name, splits=splits) for kind, name in served.items()}

    class Backend:
        """One of its backends: those for a GPU split inside `new_group` as well."""

        def __init__(self, name: str, *, splits: bool) -> None:
            self._name = name
            self.supports_splitting = splits
            if name != "gloo":
                self.perform_nocolor_split = print

        def name(self) -> str:
            """Return the name of the implementation."""
            return self._name

    def _get_backend(self, device: torch.device) -> Backend:
        return self._backends[device.type]


ALL = Way.BY_ALL_RANKS
SPLIT = Way.BY_SPLITTING
MEMBERS = Way.BY_MEMBERS


@pytest.mark.parametrize(
    ("default", "splits", "backend", "options", "expected"),
    [
        ("nccl", True, None, None, (SPLIT, SPLIT)),
        ("nccl", True, "nccl", None, (SPLIT, SPLIT)),
        ("nccl", True, None, object(), (SPLIT, SPLIT)),
        ("nccl", True, "cuda:nccl", None, (ALL, ALL)),
        ("nccl", True, "gloo", None, (MEMBERS, MEMBERS)),
        ("nccl", True, "cpu:gloo", None, (MEMBERS, MEMBERS)),
        ("nccl", False, None, None, (MEMBERS, MEMBERS)),
        ("cuda:nccl", True, None, None, (ALL, SPLIT)),
        ("cuda:nccl", True, "nccl", None, (ALL, ALL)),
        ("cpu:gloo,cuda:nccl", True, None, None, (ALL, SPLIT)),
        ("cpu:gloo,cuda:nccl", True, None, object(), (ALL, ALL)),
        ("cpu:gloo,cuda:nccl", True, "nccl", None, (ALL, ALL)),
        ("cpu:gloo,cuda:nccl", True, "cpu:gloo", None, (MEMBERS, MEMBERS)),
        ("gloo", True, None, None, (MEMBERS, SPLIT)),
    ],
)
def test_the_way_with_nccl(  # noqa: PLR0917 - a row of the table
    monkeypatch: pytest.MonkeyPatch,
    default: str,
    splits: bool,
    backend: str | None,
    options: object,
    expected: tuple[Way, Way],
) -> None:
    """How groups are made where the default group is bound to a GPU, which is mocked, before torch 2.14 and since.

    `split_group` is used where torch's code makes right groups; `new_group` on all ranks where it splits NCCL's
    communicator; and on the members alone where it does not, so that no rank waits for one that does not split.
    """
    monkeypatch.setattr(dist, "get_backend", lambda *_: default)
    monkeypatch.setattr(splitting, "accelerator", lambda: "cuda")
    monkeypatch.setattr(splitting, "current_world", lambda: Bound(default, splits=splits))
    for known in (False, True):
        monkeypatch.setattr(facts, "SPLITS_ANY_BACKEND", known)
        assert way_to_make(backend, options) is expected[known]
