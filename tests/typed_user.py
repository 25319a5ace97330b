"""A user's program, for type checkers: what the public functions return, and which calls are errors.

`test_typing.py` runs mypy and pyright on it, against the wheel. They report each comment that ignores an error where
there is none, so a line with such a comment is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from typing_extensions import Self, assert_type

from automodel_mesh import (
    DistributedSetup,
    FSDP2Config,
    MeshAxisName,
    MeshContext,
    ParallelismSizes,
    accepts_distributed_setup,
    compat,
    get_flat_mesh,
    get_fsdp_dp_mesh,
    get_submesh,
    resolve_distributed_setup,
)


class Model:
    """A framework's loader, decorated in each of the ways that keep its kind."""

    @accepts_distributed_setup
    @classmethod
    def from_pretrained(
        cls, path: str, *, revision: str = "main", distributed_setup: DistributedSetup | None = None, **kwargs: Any
    ) -> Self:
        """Load a model by its name."""
        return cls()

    @classmethod
    @accepts_distributed_setup
    def from_config(cls, config: object, *, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> Self:
        """Make a model of a configuration."""
        return cls()

    @accepts_distributed_setup
    @staticmethod
    def count(path: str, *, distributed_setup: DistributedSetup | None = None) -> int:
        """Count the parameters of a model."""
        return 0


class Derived(Model):
    """A model for one task."""


@accepts_distributed_setup
def load(path: str, *, revision: str = "main", distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> int:
    """Load a model."""
    return 0


def use_lookups(found: MeshContext | DistributedSetup, names: list[str]) -> None:
    """Look meshes up by methods, which never return `None`, and by functions."""
    assert_type(found.device_mesh, DeviceMesh | None)
    assert_type(found.root_mesh(), DeviceMesh)
    assert_type(found.expert_mesh(), DeviceMesh)
    assert_type(found.flat_mesh("dp"), DeviceMesh)
    assert_type(found.flat_mesh(MeshAxisName.DP_CP), DeviceMesh)
    assert_type(found.submesh(("dp_cp", "tp")), DeviceMesh)
    assert_type(found.submesh(names), DeviceMesh)
    assert_type(found.fsdp_mesh(), DeviceMesh)
    found.flat_mesh(names)  # type: ignore[arg-type]
    found.submesh(3)  # type: ignore[arg-type]
    root = found.root_mesh()
    assert_type(get_flat_mesh(root, "dp"), DeviceMesh)
    assert_type(get_submesh(root, names), DeviceMesh)
    assert_type(get_submesh(root, [MeshAxisName.DP, MeshAxisName.TP]), DeviceMesh)
    assert_type(get_fsdp_dp_mesh(root), DeviceMesh)
    assert_type(compat.slice_mesh(root, names), DeviceMesh)
    assert_type(compat.flatten(root, "all", dims=names), DeviceMesh)
    assert_type(compat.flattened_meshes(root), Mapping[str, DeviceMesh])
    assert_type(compat.get_group(root, "tp"), ProcessGroup)
    get_flat_mesh(found.device_mesh, "dp")  # type: ignore[arg-type]


def use_calls_of_the_newest_torch(mesh: DeviceMesh) -> None:
    """Call what `backport` adds, on any torch."""
    found = compat.newest(mesh)
    assert_type(found, compat.NewestDeviceMesh)
    assert_type(found["dp", "tp"]["tp"], compat.NewestDeviceMesh)
    assert_type(found._flatten("all", backend_override="gloo"), compat.NewestDeviceMesh)
    split = found._unflatten("dp", (2, 2), ("a", "b"), backend_override={"a": "gloo"})
    assert_type(split, compat.NewestDeviceMesh)
    assert_type(compat.NewestDeviceMesh._concatenate([split["a"], mesh]), compat.NewestDeviceMesh)
    assert_type(split._get_root_mesh()._flatten_mapping, dict[str, DeviceMesh])
    assert_type(split._is_current_rank_part_of_mesh(), bool)
    assert_type(split.get_coordinate(), tuple[int, ...] | None)
    assert_type(split.get_all_groups(), list[ProcessGroup])
    split.abort()
    split._unflatten("dp", 2, ("a",))  # type: ignore[arg-type]
    with compat.backport(dry_run=True) as result:
        assert_type(result.installed, tuple[str, ...])
        assert_type(result.impossible, Mapping[str, str])


def build(names: list[str]) -> None:
    """Build with lists of names and ranks, and with a mistyped keyword."""
    sizes = ParallelismSizes(tp_size=2, cp_size=2)
    with MeshContext.build(FSDP2Config(), sizes, ranks=[0, 1, 2, 3], separate_groups=names) as context:
        assert_type(context, MeshContext)
    with DistributedSetup.build("fsdp2", sizes, {"pp_schedule": "gpipe"}, timeout_minutes=5) as setup:
        assert_type(setup, DistributedSetup)
    root = compat.init_device_mesh("cpu", [2, 4], mesh_dim_names=names, backend_override={"tp": "gloo", 0: "gloo"})
    assert_type(compat.unflatten(root, -1, [2, 2], names), DeviceMesh)
    ParallelismSizes(dp_shard_size=2)  # type: ignore[call-arg]
    ParallelismSizes(tp_size="2")  # type: ignore[arg-type]
    FSDP2Config(sequence_paralel=True)  # type: ignore[call-arg]
    MeshContext.build(FSDP2Config(), timeout=5)  # type: ignore[call-arg]
    MeshContext.build(FSDP2Config(), separate_groups={"dp"})  # type: ignore[arg-type]
    MeshContext.build("fsdp2")  # type: ignore[arg-type]


def load_models(setup: DistributedSetup, mesh: DeviceMesh) -> None:
    """Call the decorated loaders: their own parameters and results are typed."""
    assert_type(Model.from_pretrained("x", revision="y", distributed_setup=setup), Model)
    assert_type(Derived.from_pretrained("x", device_mesh=mesh), Derived)
    assert_type(Derived().from_config({}, distributed_setup=setup), Derived)
    assert_type(Model.count("x", distributed_setup=setup), int)
    assert_type(load("x", revision="y", device_mesh=mesh), int)
    Model.from_pretrained("x", revision=3)  # type: ignore[arg-type]
    Model.from_pretrained("x", distributed_setup="fsdp2")  # type: ignore[arg-type]
    Model.from_config()  # type: ignore[call-arg]
    Model.count("x", distributed_setup=setup, revision="main")  # type: ignore[call-arg]
    load(revision="y")  # type: ignore[call-arg]
    found, rest = resolve_distributed_setup(setup, revision="main")
    assert_type(found, DistributedSetup | None)
    assert_type(rest, dict[str, Any])


def use_sequences(names: Sequence[str], context: MeshContext) -> None:
    """Any sequence of names is accepted."""
    assert_type(context.submesh(names), DeviceMesh)
