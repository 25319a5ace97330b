"""Code written for NeMo AutoModel's mesh layer runs here once its import lines are changed, as the how-to says."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.pages import blocks, run

PAGE = (Path(__file__).parents[1] / "docs/how-to/replacing-nemo-automodel.md").read_text(encoding="utf-8")
THERE = "nemo_automodel.components.distributed"

# What the documentation of NeMo AutoModel gives for each module, by the module's name here, and the arguments that
# functions and classes can be given by position. None: no arguments, or none that are documented.
Arguments = str | None
NAMES: dict[str, dict[str, Arguments]] = {
    "automodel_mesh": {
        "DDPConfig": None,
        "DistributedSetup": None,
        "FSDP2Config": None,
        "MegatronFSDPConfig": None,
        "ParallelismSizes": None,
        "PipelineConfig": None,
        "initialize_distributed": "backend",
    },
    "automodel_mesh.mesh": {
        "MeshAxisName": None,
        "MeshContext": "device_mesh moe_mesh",
        "ParallelismSizes": None,
        "_VALID_AXIS_NAMES": None,
        "_get_axis_size": "mesh axis default",
        "_optional_axis": "mesh axis",
        "_validate_mesh_axis_names": "mesh_context",
    },
    "automodel_mesh.mesh_utils": {
        "get_flat_mesh": "device_mesh name",
        "get_fsdp_dp_mesh": "device_mesh dp_replicate_name dp_shard_cp_name",
        "get_submesh": "device_mesh names",
        "_MeshSpec": "shape axes flattened_axes",
        "_create_device_meshes": "strategy_config parallelism world_size",
        "_create_fsdp2_device_mesh": "parallelism world_size",
        "_create_megatron_fsdp_device_mesh": "parallelism world_size",
        "_create_moe_mesh": "device_mesh ep_shard_size ep_size",
        "_degree": "value",
        "_infer_dp_size": "dp_size world_size non_dp_size expression factors",
        "_init_named_mesh": "spec",
        "_mesh_device_type": "",
        "_register_flattened_axes": "device_mesh flattened_axes",
        "_require_size_one": "strategy_name size feature_name",
        "_unflatten_compat": "flat_mesh axis sizes names",
        "_validate_mesh_spec": "spec",
    },
    "automodel_mesh.config": {
        "DDPConfig": None,
        "DistributedSetup": None,
        "DistributedStrategyConfig": None,
        "FSDP2Config": None,
        "MegatronFSDPConfig": None,
        "MoEParallelizerConfig": None,
    },
    "automodel_mesh.init_utils": {
        "DistInfo": None,
        "get_local_rank_preinit": "",
        "get_local_world_size_preinit": "",
        "get_rank_safe": "",
        "get_world_size_safe": "",
        "initialize_distributed": "backend timeout_minutes",
    },
    "automodel_mesh.pipelining.config": {"PipelineConfig": None},
    "automodel_mesh.legacy": {
        "MeshAxisName": None,
        "MeshContext": "strategy_config pipeline_config moe_config activation_checkpointing device_mesh moe_mesh",
        "STRATEGY_MAP": None,
        "_VALID_AXIS_NAMES": None,
        "_get_axis_size": "mesh axis default",
        "_optional_axis": "mesh axis",
        "_validate_distributed_setup": "mesh_context",
        "_validate_mesh_dim_names": "mesh_context",
    },
}
METHODS: dict[tuple[str, str], str] = {
    ("automodel_mesh.mesh", "MeshContext.build"): "strategy_config parallelism_sizes world_size",
    ("automodel_mesh.mesh", "MeshContext.from_meshes"): "device_mesh moe_mesh",
    ("automodel_mesh.mesh", "MeshContext.parallelize_axis_kwargs"): "self",
    ("automodel_mesh.mesh", "MeshContext.pipeline_axis_kwargs"): "self",
    ("automodel_mesh.mesh", "MeshContext._dp_axis_names"): "self",
    ("automodel_mesh.config", "DistributedSetup.build"): (
        "strategy parallelism_sizes pipeline_config moe_parallel_config activation_checkpointing world_size"
    ),
    ("automodel_mesh.legacy", "MeshContext.from_meshes"): "device_mesh moe_mesh",
}
PROPERTIES = ("pp_size", "pp_enabled", "tp_size", "cp_size", "ep_size", "dp_size", "dp_replicate_size")


def find(module: str, path: str) -> Any:
    """Return an attribute of a module, or of a class in it; old names warn."""
    with warnings.catch_warnings():
        if module == "automodel_mesh.legacy":
            warnings.simplefilter("ignore", DeprecationWarning)
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    return found


def positional(function: Any) -> list[str]:
    """Return the names of the arguments that can be given by position."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("module", NAMES)
def test_each_module_offers_the_documented_names(module: str) -> None:
    """Every name exists, and accepts the documented arguments in the documented order, by position or by name."""
    for name, arguments in NAMES[module].items():
        found = find(module, name)
        if arguments is not None:
            assert positional(found)[: len(arguments.split())] == arguments.split(), name
    for (home, path), arguments in METHODS.items():
        if home == module:
            assert positional(find(module, path))[: len(arguments.split())] == arguments.split(), path


@pytest.mark.release_independent
def test_the_contexts_have_the_documented_properties() -> None:
    """The contexts of both versions have a property for every size; only the current one has `dp_shard_size`."""
    current, old = find("automodel_mesh.mesh", "MeshContext")(), find("automodel_mesh.legacy", "MeshContext")()
    assert [getattr(current, name) for name in PROPERTIES] == [1, False, 1, 1, 1, None, None]
    assert [getattr(old, name) for name in PROPERTIES] == [1, False, 1, 1, 1, None, None]
    assert current.dp_shard_size == 1
    assert find("automodel_mesh.mesh_utils", "_MeshSpec")((2,), ("tp",)).flattened_axes == {}


def table_rows() -> list[list[str]]:
    """Return the cells of every row of the page's tables, without the heads."""
    return [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `")]


@pytest.mark.release_independent
def test_the_page_has_the_table_of_these_names() -> None:
    """Each row of the how-to names a module of NeMo AutoModel, the one to use here, and exactly its names."""
    rows = [row for row in table_rows() if len(row) == 3]
    listed: dict[str, set[str]] = {}
    for there, here, names in rows:
        (old,), (new,) = re.findall(r"`(.*?)`", there), re.findall(r"`(.*?)`", here)
        listed.setdefault(new, set()).update(re.findall(r"`(.*?)`", names))
        if old.startswith(THERE) and new != "automodel_mesh.legacy":
            assert old.replace(THERE, "automodel_mesh") == new
    assert listed == {module: set(names) for module, names in NAMES.items()}


@pytest.mark.release_independent
def test_the_page_says_what_replaces_each_old_name() -> None:
    """It has a row for each, with the replacement that the warning names, and the replacement exists."""
    rows = {row[0].strip(" `"): re.findall(r"`(.*?)`", row[1]) for row in table_rows() if len(row) == 2}
    assert rows.keys() == NAMES["automodel_mesh.legacy"].keys()
    legacy = importlib.import_module("automodel_mesh.legacy")
    for name, replacements in rows.items():
        with pytest.warns(DeprecationWarning, match="older generation") as caught:
            exec(f"legacy.{name}", {"__name__": name, "legacy": legacy})  # noqa: S102 - a module of its own
        assert re.findall(r"automodel_mesh\.(?!legacy)[\w.]*\w", str(caught[0].message)) == replacements
        for replacement in replacements:
            module, _, found = replacement.rpartition(".")
            assert find(module, found) is not None


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, str]:
    """Write the page's scripts into files, run the page's commands on them, and return the changed files."""
    before = dict(zip(("train.py", "old.py"), blocks(PAGE, "python"), strict=True))
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    for command in blocks(PAGE, "bash"):
        subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True, timeout=60)
    after = {name: (tmp_path / name).read_text() for name in before}
    for name, text in before.items():
        pairs = list(zip(text.splitlines(), after[name].splitlines(), strict=True))
        changed = [(old, new) for old, new in pairs if old != new]
        assert changed == [(old, new) for old, new in pairs if old.startswith(f"from {THERE}")]
        assert all(new.startswith("from automodel_mesh") for _, new in changed)
    return after


@pytest.mark.release_independent
@pytest.mark.parametrize("name", ["train.py", "old.py"])
def test_the_command_changes_import_lines_alone(scripts: dict[str, str], name: str) -> None:
    """After the page's one command nothing of NeMo AutoModel is left, and no other line has changed."""
    assert "nemo_automodel" not in scripts[name]


@pytest.mark.ranks(8)
def test_the_changed_scripts_run(scripts: dict[str, str]) -> None:
    """On eight ranks they print what the page says; old names warn once, at the line that imports them."""
    outputs = dict(zip(scripts, blocks(PAGE, "text"), strict=True))
    warned: dict[str, list[tuple[type[Warning], int]]] = {}
    for name, text in scripts.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            printed = run(name, text)
        assert printed == ("" if dist.get_rank() else outputs[name])
        warned[name] = [(warning.category, warning.lineno) for warning in caught]
    (line,) = (number for number, text in enumerate(scripts["old.py"].splitlines(), 1) if "legacy" in text)
    assert warned == {"train.py": [], "old.py": [(DeprecationWarning, line)]}
    dist.barrier()  # no rank leaves while another still works
