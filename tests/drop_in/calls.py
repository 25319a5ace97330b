"""The same calls of NeMo AutoModel's modules and of ours, side by side: the results are equal, or differ on purpose.

The packages of nemo-automodel on the index have no tests of these modules, so these calls are compared instead, on
version 0.7.0.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh import compat
from automodel_mesh.testing import fake_world
from tests.drop_in.names import PACKAGE, load_data
from tests.results import Row

Call = Callable[["Side"], object]


class Side:
    """The modules of one of both."""

    def __init__(self, package: str) -> None:
        self.config: Any = import_module(f"{package}.config")
        self.mesh: Any = import_module(f"{package}.mesh")
        self.mesh_utils: Any = import_module(f"{package}.mesh_utils")
        self.pipelining: Any = import_module(f"{package}.pipelining.config")

    def sizes(self, **sizes: Any) -> Any:
        """Ask for sizes."""
        return self.mesh.ParallelismSizes(**sizes)

    def setup(self, strategy: Any = "fsdp2", arguments: Any = None, **sizes: Any) -> Any:
        """Build a setup."""
        return self.config.DistributedSetup.build(strategy, self.sizes(**sizes), **arguments or {})

    def root(self, **sizes: Any) -> DeviceMesh:
        """Build the mesh of FSDP2."""
        mesh: DeviceMesh = self.setup(**sizes).mesh_context.device_mesh
        return mesh


def plain(value: object) -> object:
    """Return a result in a form that can be compared: meshes by axes and ranks, configurations by their fields."""
    if isinstance(value, DeviceMesh):
        return [tuple(map(str.__str__, value.mesh_dim_names or ())), value.mesh.tolist()]
    if isinstance(value, enum.Enum):
        return str(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return kind, {name: field for name, field in fields.items() if name not in NOT_COMPARED.get(kind, ())}
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


# Fields that the classes of one of both have, by class. Our context has a process group too: see `ddp_group` below.
NOT_COMPARED = {
    "DistributedSetup": ("parallelism_sizes",),
    "MegatronFSDPConfig": ("sequence_parallel", "tp_plan"),
    "MeshContext": ("_handle", "process_group"),
}


def outcome(call: Call, side: Side) -> object:
    """Return the result of a call, or the error it raised."""
    try:
        return plain(call(side))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return error


SIZES: dict[str, dict[str, int]] = {
    "dp": {},
    "tp": {"tp_size": 2},
    "hsdp": {"dp_replicate_size": 2},
    "cp": {"cp_size": 2},
    "hsdp-tp": {"dp_replicate_size": 2, "tp_size": 2},
    "pp-tp": {"pp_size": 2, "tp_size": 2},
    "cp-tp": {"cp_size": 2, "tp_size": 2},
    "ep": {"ep_size": 4},
    "pp-ep-tp": {"pp_size": 2, "ep_size": 2, "tp_size": 2},
    "hsdp-cp": {"dp_replicate_size": 2, "cp_size": 2},
    "given": {"dp_size": 4, "tp_size": 2},
}
AXES = ("pp", "dp", "dp_replicate", "dp_shard", "dp_shard_cp", "dp_cp", "cp", "tp", "ep", "no_such_axis")
CONTEXT = ("pp_size", "pp_enabled", "tp_size", "cp_size", "ep_size", "dp_size", "dp_replicate_size", "dp_shard_size")
PAIRS = [("dp_replicate", "dp_shard"), ("dp_shard", "tp"), ("dp_replicate", "dp_shard_cp"), ("pp", "tp"), ("cp", "tp")]


def at(value: Any, call: Callable[[Side, Any], object]) -> Call:
    """Return a call with a value."""
    return lambda side: call(side, value)


def _calls_of_meshes() -> Iterator[tuple[str, Call]]:
    for name, sizes in SIZES.items():
        yield f"sizes of {name}", at(sizes, lambda s, z: [getattr(s.setup(**z).mesh_context, size) for size in CONTEXT])
        yield f"meshes of {name}", at(sizes, lambda s, z: [s.root(**z), s.setup(**z).mesh_context.moe_mesh])
        yield f"mesh for fully_shard of {name}", at(sizes, lambda s, z: s.mesh_utils.get_fsdp_dp_mesh(s.root(**z)))
        yield f"settings of {name}", at(sizes, lambda s, z: s.setup(**z))
        if sizes.get("dp_replicate_size", 1) > 1:
            yield f"axis names of {name}", at(sizes, lambda s, z: s.setup(**z).mesh_context.pipeline_axis_kwargs())
        for axis in AXES:
            both = (sizes, axis)
            yield f"{axis} of {name}", at(both, lambda s, v: s.mesh_utils.get_flat_mesh(s.root(**v[0]), v[1]))
            size_of = at(both, lambda s, v: s.mesh._get_axis_size(s.root(**v[0]), v[1]))  # noqa: SLF001
            yield f"size of {axis} of {name}", size_of
        for pair in PAIRS:
            yield f"{pair} of {name}", at((sizes, pair), lambda s, v: s.mesh_utils.get_submesh(s.root(**v[0]), v[1]))
    part = {"arguments": {"ranks": [0, 1, 2, 3], "world_size": 4}, "tp_size": 2}
    yield "a part of the world", at(part, lambda s, v: s.setup(**v).mesh_context.device_mesh)
    for name, degrees in {"ring and ulysses": (2, 2), "a wrong ring": (2, 4)}.items():
        yield name, at(degrees, _split_context)
    for strategy, feature in itertools.product(("ddp", "mfsdp"), ("tp_size", "pp_size", "ep_size", "cp_size")):
        one = at((strategy, feature), lambda s, v: s.setup(v[0], **{v[1]: 2}).mesh_context.device_mesh)
        yield f"{strategy} with {feature}", one


def _split_context(side: Side, degrees: tuple[int, int]) -> object:
    ring, ulysses = degrees
    return side.mesh_utils.create_ring_ulysses_mesh(side.root(cp_size=4), ring_degree=ring, ulysses_degree=ulysses)


def _calls_of_settings() -> Iterator[tuple[str, Call]]:
    for tail, kind in CONFIGS:
        yield f"{kind}()", at((tail, kind), lambda s, v: getattr(getattr(s, v[0]), v[1])())
    for name in ("fsdp2", "FSDP2", "megatron_fsdp", "megatron-fsdp", "mfsdp", "ddp", "fsdp3"):
        yield f"strategy {name}", at(name, lambda s, v: s.setup(v))
        yield f"_resolve_strategy_config {name}", at(name, lambda s, v: s.config._resolve_strategy_config(v))  # noqa: SLF001
    for options in ({"sequence_parallel": True}, {"no_such_option": 1}):
        yield f"options {options}", at(options, lambda s, v: s.config._resolve_strategy_config("fsdp2", **v))  # noqa: SLF001
    for value in SCOPES:
        yield f"scope {value!r}", at(value, lambda s, v: s.config.normalize_activation_checkpointing_scope(v))
        yield f"scope {value!r} of DDP", at(value, lambda s, v: s.config.DDPConfig(activation_checkpointing_scope=v))
    for arguments in SETUPS:
        yield f"build {arguments}", at(arguments, lambda s, v: s.setup(**v))
    odd = ("model",)
    yield (
        "an unknown axis",
        at(odd, lambda s, v: s.mesh.MeshContext(compat.init_device_mesh("cpu", (8,), mesh_dim_names=v))),
    )
    yield "no meshes", lambda s: [s.mesh.MeshContext(), [getattr(s.mesh.MeshContext(), size) for size in CONTEXT]]
    yield "axis names without meshes", lambda s: s.mesh.MeshContext().parallelize_axis_kwargs()
    yield "replaced context", lambda s: dataclasses.replace(s.setup(tp_size=2).mesh_context, cp_ring_degree=2)
    yield "axes", lambda s: {name: str(axis.value) for name, axis in s.mesh.MeshAxisName.__members__.items()}
    yield "valid axes", lambda s: sorted(str.__str__(axis) for axis in s.mesh._VALID_AXIS_NAMES)  # noqa: SLF001


CONFIGS = [
    ("config", "FSDP2Config"),
    ("config", "DDPConfig"),
    ("config", "MoEParallelizerConfig"),
    ("config", "MultimodalDistributedConfig"),
    ("pipelining", "PipelineConfig"),
    ("mesh", "ParallelismSizes"),
]
SCOPES: list[Any] = [
    None,
    "",
    "all",
    "Vision+audio",
    ["vision", "language"],
    "visoin",
    ["all", "audio"],
    3,
    [3],
    "auto",
]
SETUPS: list[dict[str, Any]] = [
    {"arguments": {"pipeline_config": {}}},
    {"arguments": {"moe_parallel_config": {}}},
    {"arguments": {"pipeline_config": {"pp_batch_size": 4}}, "pp_size": 2},
    {"arguments": {"moe_parallel_config": {"wrap_outer_model": False}}, "ep_size": 2},
    {"arguments": {"activation_checkpointing": "selective"}},
    {"tp_size": 3},
    {"ep_size": 3},
]
CALLS = dict(itertools.chain(_calls_of_meshes(), _calls_of_settings()))


# --- what differs on purpose, by the `case` in ci_matrix/nemo.toml

DIFFERENT: dict[str, Call] = {
    "size_zero": lambda s: s.setup(tp_size=0).mesh_context.tp_size,
    "dp_size_that_does_not_fill": lambda s: s.mesh_utils._infer_dp_size(  # noqa: SLF001
        3, world_size=8, non_dp_size=2, expression="tp_size", factors=(2,)
    ),
    "replicas_alone": lambda s: s.root(dp_replicate_size=8),
    "invalid_field": lambda s: (
        s.setup(s.config.MegatronFSDPConfig(zero_dp_strategy=7)).strategy_config.zero_dp_strategy
    ),
    "checkpointing_of_the_strategy": lambda s: (
        s.setup(s.config.FSDP2Config(activation_checkpointing=True)).activation_checkpointing
    ),
    "full_checkpointing": lambda s: s.setup(arguments={"activation_checkpointing": "full"}).activation_checkpointing,
    "single_replica_axis": lambda s: s.setup(tp_size=2).mesh_context._dp_axis_names(),  # noqa: SLF001
    "megatron_without_context": lambda s: s.mesh_utils.get_flat_mesh(
        s.setup("mfsdp").mesh_context.device_mesh, "dp_cp"
    ),
    "ddp_group": lambda s: s.setup("ddp").mesh_context.process_group is None,
    "ranks_alone": lambda s: s.setup(arguments={"ranks": [0, 1, 2]}).mesh_context.device_mesh,
    "descending_ranks": lambda s: s.setup(arguments={"ranks": [1, 0], "world_size": 2}).mesh_context.device_mesh,
    "strategy_of_another_type": lambda s: s.setup(3),
}


# --- compare


def check() -> Iterator[tuple[Row, bool]]:
    """Make all calls of both; see `python -m tests.drop_in`."""
    warnings.simplefilter("ignore")  # of NeMo AutoModel and its dependencies
    sides = Side(PACKAGE), Side("automodel_mesh")
    wrong = [*_not_alike(*sides)]
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    row = {"what": "results of calls, or the classes of their errors", "plain": str(2 * len(CALLS))}
    yield row | {"ours": f"{len(wrong)} differ" if wrong else "equal"}, not wrong
    cases = [row["case"] for row in load_data()["behaviours"] if "case" in row]
    alike = [name for name in cases if name not in DIFFERENT or not _differ(DIFFERENT[name], *sides)]
    right = not alike and len(cases) == len(DIFFERENT)
    row = {"what": "calls that differ on purpose", "plain": str(len(cases))}
    yield row | {"ours": f"the same: {', '.join(alike)}" if alike else "all differ"}, right


def _not_alike(theirs: Side, ours: Side) -> Iterator[str]:
    """Yield the calls that give another result, or an error of another class that is no subclass."""
    for name, call in CALLS.items():
        for rank in (0, 7):
            there, here = (_in_a_world(rank, call, side) for side in (theirs, ours))
            alike = isinstance(here, type(there)) if isinstance(there, Exception) else here == there
            if not alike:
                yield f"{name}, rank {rank}: {str(there)[:300]} there, {str(here)[:300]} here"


def _differ(call: Call, theirs: Side, ours: Side) -> bool:
    """Tell whether a call gives another result, or an error on one side only."""
    there, here = (_in_a_world(0, call, side) for side in (theirs, ours))
    return repr(there) != repr(here) and not (isinstance(there, Exception) and isinstance(here, type(there)))


def _in_a_world(rank: int, call: Call, side: Side) -> object:
    with fake_world(8, rank):
        return outcome(call, side)
