"""`automodel_mesh.legacy`: the older `MeshContext`, its checks and conversions, and the warning on its names."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pickle
import runpy
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import compat, get_flat_mesh, get_fsdp_dp_mesh, mesh
from automodel_mesh.compat import worlds
from automodel_mesh.config import (
    STRATEGY_MAP,
    DDPConfig,
    DistributedSetup,
    FSDP2Config,
    MegatronFSDPConfig,
    MoEParallelizerConfig,
    PipelineConfig,
)
from automodel_mesh.nemo import older_mesh as _legacy
from automodel_mesh.nemo.older_mesh import MeshContext, _validate_distributed_setup, _validate_mesh_dim_names
from automodel_mesh.testing import fake_world
from automodel_mesh.topology.sizes import ParallelismSizes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

OLD_NAMES = [
    "STRATEGY_MAP",
    "_VALID_AXIS_NAMES",
    "MeshAxisName",
    "MeshContext",
    "_get_axis_size",
    "_optional_axis",
    "_validate_distributed_setup",
    "_validate_mesh_dim_names",
]

# --- the warning


def run_module(path: Path, text: str) -> list[warnings.WarningMessage]:
    """Write a module, import it, and return every warning."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return list(caught)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("from automodel_mesh.legacy import MeshContext", 1),
        ("import sys\nfrom automodel_mesh.legacy import STRATEGY_MAP, MeshAxisName, MeshContext, _optional_axis", 2),
        ("\nfrom automodel_mesh.legacy import (\n    STRATEGY_MAP,\n    MeshContext,\n)", 2),
        ("from automodel_mesh.legacy import *\nMeshContext()", 1),
        ("def use():\n    import automodel_mesh.legacy as old\n    old.MeshContext()\n    old.STRATEGY_MAP\nuse()", 3),
        ("import importlib\nold = importlib.import_module('automodel_mesh.legacy')\nold.MeshContext()", 3),
        ("from automodel_mesh.legacy import MeshContext\nfrom automodel_mesh.legacy import STRATEGY_MAP", 1),
        ("from automodel_mesh.mesh import MeshContext\nfrom automodel_mesh.mesh import STRATEGY_MAP", 2),
        ("from automodel_mesh.mesh import _validate_mesh_dim_names, _validate_distributed_setup", 1),
        ("from automodel_mesh.mesh import _validate_distributed_setup", 1),
    ],
)
def test_an_importing_module_is_warned_once_at_its_own_line(tmp_path: Path, text: str, line: int) -> None:
    """A module that uses old names, any number and in any way, gets one `DeprecationWarning` with its file and line."""
    (warning,) = run_module(tmp_path / "user.py", text)
    assert warning.category is DeprecationWarning
    assert (warning.filename, warning.lineno) == (str(tmp_path / "user.py"), line)
    assert "use automodel_mesh." in str(warning.message)


def test_each_importing_module_is_warned(tmp_path: Path) -> None:
    """A second module is warned too, at its own line; one that is run again is not warned again."""
    text = "from automodel_mesh.legacy import MeshContext, STRATEGY_MAP"
    (first,) = run_module(tmp_path / "first.py", text)
    (second,) = run_module(tmp_path / "second.py", "\n" + text)
    assert [Path(first.filename).name, first.lineno] == ["first.py", 1]
    assert [Path(second.filename).name, second.lineno] == ["second.py", 2]
    assert run_module(tmp_path / "second.py", text) == []


def test_every_use_raises_if_warnings_are_errors() -> None:
    """If warnings are errors, each use of an old name raises, even the second."""
    for _ in range(2):
        with pytest.raises(DeprecationWarning, match=r"automodel_mesh\.legacy\.MeshContext is of an older generation"):
            importlib.import_module("automodel_mesh.legacy").MeshContext()


def test_current_names_give_no_warning() -> None:
    """Importing any module, taking current names and asking for unknown names gives no warning.

    Warnings are errors in these tests.
    """
    for name in (
        "mesh",
        "mesh_utils",
        "config",
        "pipelining.config",
        "loaders",
        "init_utils",
        "legacy",
        "nemo.older_mesh",
    ):
        importlib.import_module(f"automodel_mesh.{name}")
    for name in ("MeshAxisName", "MeshContext", "_VALID_AXIS_NAMES", "_get_axis_size", "_optional_axis"):
        assert getattr(mesh, name) is not None
    legacy = importlib.import_module("automodel_mesh.legacy")
    for module in (legacy, mesh):
        assert not hasattr(module, "__path__")
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'MeshContxt'"):
            _ = module.MeshContxt
    assert set(OLD_NAMES) <= set(dir(legacy))


def test_a_script_sees_the_warning_at_its_line(tmp_path: Path) -> None:
    """With Python's default filters, which show a `DeprecationWarning` for scripts only, a script shows it once."""
    library, script = tmp_path / "library.py", tmp_path / "train.py"
    library.write_text("from automodel_mesh.legacy import MeshContext")
    script.write_text("import library\n\nfrom automodel_mesh.legacy import MeshContext, STRATEGY_MAP")
    sys.path.insert(0, str(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
        runpy.run_path(str(script), run_name="__main__")
    assert [(warning.filename, warning.lineno) for warning in caught] == [(str(script), 3)]


def test_the_old_names_are_the_current_objects() -> None:
    """A name that both modules have is the same object, so that code can use both."""
    legacy = importlib.import_module("automodel_mesh.legacy")
    with pytest.deprecated_call():
        old = {name: getattr(legacy, name) for name in OLD_NAMES}
    assert old["STRATEGY_MAP"] is mesh.STRATEGY_MAP is STRATEGY_MAP  # type: ignore[attr-defined]
    for name in ("_VALID_AXIS_NAMES", "MeshAxisName", "_get_axis_size", "_optional_axis"):
        assert old[name] is getattr(mesh, name)
    assert old["_validate_mesh_dim_names"] is mesh._validate_mesh_axis_names  # noqa: SLF001
    assert old["MeshContext"] is MeshContext
    assert issubclass(MeshContext, mesh.MeshContext)
    assert set(_legacy.__all__) == set(OLD_NAMES)


# --- the context


@pytest.mark.release_independent
def test_a_context_without_meshes_has_the_defaults() -> None:
    """Sizes are 1, those of dp and of its replicas `None`, and there are no settings."""
    context = MeshContext()
    assert (context.pp_size, context.tp_size, context.cp_size, context.ep_size) == (1,) * 4
    assert (context.dp_size, context.dp_replicate_size, context.pp_enabled) == (None, None, False)
    assert (context.strategy_config, context.pipeline_config, context.moe_config) == (None, None, None)
    assert context.device_mesh is context.moe_mesh is None
    assert context.activation_checkpointing is False
    assert context == MeshContext.from_meshes(None) == pickle.loads(pickle.dumps(context))
    assert context.parallelize_axis_kwargs() == mesh.MeshContext().parallelize_axis_kwargs()


def grid(**axes: int) -> DeviceMesh:
    """Build a mesh with these axes."""
    return compat.init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))


def test_settings_come_first_and_meshes_last() -> None:
    """Positional arguments are those of the older module; every field can be given by keyword, replaced and changed."""
    with fake_world(8):
        meshes = grid(pp=2, dp_shard=2, tp=2), grid(ep_shard=4, ep=2)
        settings: list[Any] = [FSDP2Config(), PipelineConfig(), MoEParallelizerConfig(), True]
        given: list[Any] = [*settings, *meshes]
        context = MeshContext(*given)
        names = ("strategy_config", "pipeline_config", "moe_config", "activation_checkpointing")
        keywords = dict(zip(names, settings, strict=True))
        assert context == MeshContext(device_mesh=meshes[0], moe_mesh=meshes[1], **keywords)
        assert context == MeshContext.from_meshes(*meshes, **keywords)
        assert [getattr(context, name) for name in (*names, "device_mesh", "moe_mesh")] == given
        assert dataclasses.replace(context, activation_checkpointing=False) != context
        assert dataclasses.replace(context) == context
        context.strategy_config = None
        assert context != MeshContext.from_meshes(*meshes, **keywords)


def test_an_older_context_is_a_current_context() -> None:
    """It is an instance of the current class, with the same sizes and axis names, and a setup accepts it."""
    with fake_world(16):
        current = mesh.MeshContext.build(
            FSDP2Config(), ParallelismSizes(dp_replicate_size=2, tp_size=2, cp_size=2, ep_size=2)
        )
        old = MeshContext.from_meshes(current.device_mesh, current.moe_mesh, strategy_config=FSDP2Config())
        assert isinstance(old, mesh.MeshContext)
        for size in ("pp_size", "tp_size", "cp_size", "ep_size", "dp_size", "dp_replicate_size", "dp_shard_size"):
            assert getattr(old, size) == getattr(current, size)
        assert old._dp_axis_names() == ("dp_replicate", "dp_shard_cp")  # noqa: SLF001
        assert old.pipeline_axis_kwargs() == current.pipeline_axis_kwargs()
        assert old.parallelize_axis_kwargs() == current.parallelize_axis_kwargs()
        assert DistributedSetup(strategy_config=FSDP2Config(), mesh_context=old).device_mesh is current.device_mesh
        current.close()


def test_unknown_axis_names_are_refused() -> None:
    """A mesh with an axis that is not a `MeshAxisName` is refused when the context is made, and after a change."""
    with fake_world(8):
        odd = grid(dp=2, model=4)
        with pytest.raises(ValueError, match=r"device_mesh has the axes \['dp', 'model'\]"):
            MeshContext(device_mesh=odd)
        context = MeshContext.from_meshes(grid(dp=8))
        _validate_mesh_dim_names(context)
        context.moe_mesh = odd
        with pytest.raises(ValueError, match=r"moe_mesh has the axes \['dp', 'model'\].*\['model'\]"):
            _validate_mesh_dim_names(context)


# --- settings that contradict the meshes

REFUSED: list[tuple[dict[str, Any], dict[str, int], dict[str, int], str]] = [
    ({"strategy_config": MegatronFSDPConfig()}, {"pp": 2, "dp": 4}, {}, "megatron_fsdp: pp_size=2.*give pp_size=1"),
    ({"strategy_config": MegatronFSDPConfig()}, {"dp": 8}, {"ep": 8}, "megatron_fsdp: ep_size=8.*give ep_size=1"),
    (
        {"strategy_config": MegatronFSDPConfig(sequence_parallel=True)},
        {"dp": 4, "tp": 2},
        {},
        "sequence_parallel=True.*megatron_fsdp.*give .*sequence_parallel=False",
    ),
    ({"strategy_config": DDPConfig()}, {"dp": 4, "tp": 2}, {}, "ddp: tp_size=2.*give tp_size=1"),
    ({"strategy_config": DDPConfig()}, {"pp": 2, "dp": 4}, {}, "ddp: pp_size=2.*give pp_size=1"),
    ({"strategy_config": DDPConfig()}, {"dp": 4, "cp": 2}, {}, "ddp: cp_size=2.*give cp_size=1"),
    ({"strategy_config": DDPConfig()}, {"dp": 8}, {"ep_shard": 4, "ep": 2}, "ddp: ep_size=2.*give ep_size=1"),
    (
        {"strategy_config": DDPConfig()},
        {"dp_replicate": 2, "dp_shard": 4},
        {},
        "ddp: dp_replicate_size=2.*give dp_replicate_size=1 or None",
    ),
    (
        {"strategy_config": FSDP2Config(), "pipeline_config": PipelineConfig()},
        {"dp_shard": 8},
        {},
        r"pipeline_config=PipelineConfig\(.*needs pp_size > 1, but pp_size=1.*pipeline_config=None",
    ),
    (
        {"strategy_config": FSDP2Config(), "moe_config": MoEParallelizerConfig()},
        {"dp_shard": 8},
        {},
        r"^moe_config=MoEParallelizerConfig\(.*needs ep_size > 1, but ep_size=1.*moe_config=None",
    ),
    (
        {"strategy_config": MegatronFSDPConfig(), "activation_checkpointing": "selective"},
        {"dp": 8},
        {},
        "activation_checkpointing='selective', but megatron_fsdp",
    ),
]


@pytest.mark.parametrize(("settings", "axes", "moe_axes", "message"), REFUSED)
def test_settings_that_do_not_fit_the_meshes_are_refused(
    settings: dict[str, Any], axes: dict[str, int], moe_axes: dict[str, int], message: str
) -> None:
    """With a strategy, a context is checked when made; one changed later, by `_validate_distributed_setup`."""
    with fake_world(8):
        meshes: dict[str, Any] = {"device_mesh": grid(**axes), "moe_mesh": grid(**moe_axes) if moe_axes else None}
        for make in (MeshContext, MeshContext.from_meshes):
            with pytest.raises(ValueError, match=message):
                make(**meshes, **settings)
        unchecked: dict[str, Any] = {**settings, "strategy_config": None}
        context = MeshContext(**meshes, **unchecked)
        context.strategy_config = settings["strategy_config"]
        for check in (_validate_distributed_setup, MeshContext.to_distributed_setup):
            with pytest.raises(ValueError, match=message):
                check(context)


@pytest.mark.parametrize("wrong", ["fsdp2", FSDP2Config, object()])
def test_an_object_that_is_not_a_strategy_is_refused(wrong: Any) -> None:
    """The error lists the classes and shows the given object."""
    with pytest.raises(TypeError, match=rf"strategy_config=.* is of type {type(wrong).__name__}: .*FSDP2Config"):
        MeshContext(strategy_config=wrong)


def test_settings_that_fit_the_meshes_are_accepted() -> None:
    """Each strategy accepts meshes with its axes, and settings that fit them."""
    with fake_world(8):
        moe = {"moe_mesh": grid(ep_shard=4, ep=2), "moe_config": MoEParallelizerConfig()}
        fitting: list[dict[str, Any]] = [
            {"strategy_config": FSDP2Config(sequence_parallel=True), "device_mesh": grid(dp_shard=4, tp=2)},
            {"strategy_config": FSDP2Config(), "device_mesh": grid(dp_replicate=2, dp_shard=4), **moe},
            {
                "strategy_config": FSDP2Config(),
                "device_mesh": grid(pp=2, dp_shard=4),
                "pipeline_config": PipelineConfig(),
            },
            {"strategy_config": MegatronFSDPConfig(), "device_mesh": grid(dp=2, cp=2, tp=2)},
            {"strategy_config": DDPConfig(), "device_mesh": grid(dp=8), "activation_checkpointing": "selective"},
            {"strategy_config": DDPConfig()},
        ]
        for keywords in fitting:
            context = MeshContext(**keywords)
            _validate_distributed_setup(context)
            context.pipeline_config, context.moe_config = PipelineConfig(), None
            if context.pp_size == 1:
                with pytest.raises(ValueError, match="pipeline_config"):
                    _validate_distributed_setup(context)


# --- conversion to and from a setup

SETUPS: list[dict[str, Any]] = [
    {},
    {"strategy": FSDP2Config(sequence_parallel=True), "parallelism_sizes": ParallelismSizes(tp_size=2, cp_size=2)},
    {
        "parallelism_sizes": ParallelismSizes(dp_size=8, pp_size=2, ep_size=4, dp_replicate_size=2),
        "pipeline_config": {"pp_batch_size": 4},
        "activation_checkpointing": "selective",
    },
    {"strategy": "megatron_fsdp", "parallelism_sizes": ParallelismSizes(tp_size=2), "activation_checkpointing": True},
    {"strategy": DDPConfig(static_graph=True), "parallelism_sizes": ParallelismSizes(dp_size=16)},
]


@pytest.mark.parametrize("arguments", SETUPS)
def test_a_setup_converted_to_an_older_context_and_back_is_equal(arguments: dict[str, Any]) -> None:
    """The setup is equal, with the same meshes, and closing either of the two destroys the groups."""
    with fake_world(16):
        before = worlds.live_process_groups()
        setup = DistributedSetup.build(**arguments)
        context = MeshContext.from_distributed_setup(setup)
        assert context.strategy_config is setup.strategy_config
        assert context.pipeline_config is setup.pipeline_config
        assert context.moe_config is setup.moe_parallel_config
        assert context.activation_checkpointing == setup.activation_checkpointing
        assert context.process_group is setup.mesh_context.process_group
        assert context.process_groups() == setup.mesh_context.process_groups()
        back = context.to_distributed_setup()
        assert back == setup
        assert type(back.mesh_context) is mesh.MeshContext
        assert (back.device_mesh, back.moe_mesh) == (setup.device_mesh, setup.moe_mesh)
        assert back.device_mesh is setup.device_mesh
        assert MeshContext.from_distributed_setup(back) == context
        context.close()
        assert worlds.live_process_groups() == before
        setup.close()
        back.close()


def test_an_older_context_converted_to_a_setup_and_back_is_equal() -> None:
    """Settings and meshes are the same; the sizes of the setup are always those of the meshes."""
    with fake_world(8):
        keywords: dict[str, Any] = {"strategy_config": FSDP2Config(), "activation_checkpointing": True}
        context = MeshContext.from_meshes(grid(dp_replicate=2, dp_shard=2, tp=2), **keywords)
        setup = context.to_distributed_setup()
        assert setup.parallelism_sizes == ParallelismSizes(dp_replicate_size=2, tp_size=2)
        again = MeshContext.from_distributed_setup(setup)
        assert again == context
        again.device_mesh = grid(dp=4, cp=2)
        assert again.to_distributed_setup().parallelism_sizes == ParallelismSizes(dp_size=4, cp_size=2)
        topology = DistributedSetup.from_device_mesh(grid(tp=8))
        assert MeshContext.from_distributed_setup(topology).to_distributed_setup() == topology
        assert MeshContext().to_distributed_setup() == DistributedSetup()


@pytest.mark.release_independent
def test_a_setup_without_meshes_keeps_its_sizes_when_converted() -> None:
    """Without meshes, the settings are checked against the requested sizes."""
    sizes = ParallelismSizes(pp_size=2, ep_size=2)
    described = DistributedSetup(
        strategy_config=FSDP2Config(),
        parallelism_sizes=sizes,
        pipeline_config=PipelineConfig(),
        moe_parallel_config=MoEParallelizerConfig(),
    )
    context = MeshContext.from_distributed_setup(described)
    assert (context.pp_size, context.ep_size) == (1, 1)
    assert context.to_distributed_setup() == described


def test_a_rank_outside_the_model_can_convert_contexts() -> None:
    """A rank outside the model has its sizes too, so the conversions work on every rank."""
    with fake_world(8, rank=7):
        setup = DistributedSetup.build(parallelism_sizes=ParallelismSizes(pp_size=2, ep_size=2), ranks=range(4))
        context = MeshContext.from_distributed_setup(setup)
        assert not context.is_member
        assert (context.pp_size, context.ep_size) == (2, 2)
        assert context.to_distributed_setup() == setup
        setup.close()


@pytest.mark.ranks(8)
def test_an_older_context_builds_and_closes_as_a_current_one_does() -> None:
    """`build` keeps the strategy, the meshes work, and leaving the block destroys only the groups that it created."""
    before = worlds.live_process_groups()
    with MeshContext.build(FSDP2Config(), ParallelismSizes(tp_size=2, cp_size=2), timeout_minutes=1) as context:
        assert type(context) is MeshContext
        assert context.strategy_config == FSDP2Config()
        root = context.device_mesh
        assert root is not None
        total = torch.tensor(1)
        dist.all_reduce(total, group=compat.get_group(get_flat_mesh(root, "tp")))
        assert total.item() == 2
        assert get_fsdp_dp_mesh(root).mesh_dim_names == ("dp_shard_cp",)
    assert worlds.live_process_groups() == before
