"""Code written for NeMo AutoModel's mesh layer runs here once its import lines are changed, as the how-to says.

The names and signatures of NeMo AutoModel are read from ci_matrix/nemo_api.json. `nox -s drop-in` compares that file
with the packages, and runs what needs them.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from automodel_mesh import mesh_utils
from tests.drop_in.names import PACKAGE, Names, differences, is_known, load_data, load_record, ours_of
from tests.drop_in.tables import PAGE as PATH
from tests.drop_in.tables import page_with_tables
from tests.pages import blocks, run

PAGE = PATH.read_text(encoding="utf-8")
RECORD = load_record()
DATA = load_data()
MODULES = [(version, tail) for version, modules in RECORD.items() for tail in modules]

# The API that NeMo AutoModel's documentation gave before 0.7.0: what can be given by position, by the name here.
DOCUMENTED = {
    "automodel_mesh.mesh": {
        "MeshContext": "(device_mesh=None, moe_mesh=None)",
        "MeshContext.build": "(strategy_config, parallelism_sizes=None, world_size=None)",
        "MeshContext.from_meshes": "(device_mesh, moe_mesh=None)",
        "MeshContext.pipeline_axis_kwargs": "()",
        "_get_axis_size": "(mesh, axis, default=1)",
        "_optional_axis": "(mesh, axis)",
        "_validate_mesh_axis_names": "(mesh_context)",
    },
    "automodel_mesh.mesh_utils": {
        "get_flat_mesh": "(device_mesh, name)",
        "get_fsdp_dp_mesh": "(device_mesh, dp_replicate_name=None, dp_shard_cp_name=None)",
        "get_submesh": "(device_mesh, names)",
        "_MeshSpec": "(shape, axes, flattened_axes={})",
        "_create_device_meshes": "(strategy_config, parallelism, world_size)",
        "_create_fsdp2_device_mesh": "(parallelism, world_size)",
        "_create_megatron_fsdp_device_mesh": "(parallelism, world_size)",
        "_create_moe_mesh": "(device_mesh, ep_shard_size, ep_size)",
        "_degree": "(value)",
        "_infer_dp_size": "(dp_size, world_size, non_dp_size, expression, factors)",
        "_init_named_mesh": "(spec)",
        "_mesh_device_type": "()",
        "_register_flattened_axes": "(device_mesh, flattened_axes)",
        "_require_size_one": "(strategy_name, size, feature_name)",
        "_unflatten_compat": "(flat_mesh, axis, sizes, names)",
        "_validate_mesh_spec": "(spec)",
    },
    "automodel_mesh.config": {
        "DistributedSetup.build": "(strategy='fsdp2', parallelism_sizes=None, pipeline_config=None, "
        "moe_parallel_config=None, activation_checkpointing=False, world_size=None)",
    },
    "automodel_mesh.nemo.older_mesh": {
        "MeshContext": "(strategy_config=None, pipeline_config=None, moe_config=None, activation_checkpointing=False, "
        "device_mesh=None, moe_mesh=None)",
        "MeshContext.from_meshes": "(device_mesh, moe_mesh=None, *, strategy_config=None, pipeline_config=None, "
        "moe_config=None, activation_checkpointing=False)",
        "_validate_distributed_setup": "(mesh_context)",
        "_validate_mesh_dim_names": "(mesh_context)",
    },
}
PROPERTIES = ("pp_size", "pp_enabled", "tp_size", "cp_size", "ep_size", "dp_size", "dp_replicate_size")


@pytest.mark.parametrize(("version", "tail"), MODULES)
def test_every_name_is_here_with_its_parameters_and_defaults(version: str, tail: str) -> None:
    """Whatever a call of a version gives, by position or name, is taken here, and what it leaves out means the same."""
    found = differences(tail, RECORD[version][tail], ours_of(version, tail))
    assert [each for each in found if not is_known(each.name, version)] == []


@pytest.mark.release_independent
def test_every_known_difference_is_one() -> None:
    """An entry of ci_matrix/nemo.toml that no name needs is to be deleted."""
    found: dict[str, set[str]] = {}
    for version, tail in MODULES:
        here = differences(tail, RECORD[version][tail], ours_of(version, tail))
        found.setdefault(version, set()).update(each.name for each in here)
    assert set(DATA["left_out"]) <= set.union(*found.values())
    for row in DATA["signatures"]:
        for version in row["versions"]:
            assert any(fnmatch(name, row["name"]) for name in found[version]), row["name"]


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        ("(device_mesh, name, more)", [("more", "missing")]),
        ("(name, device_mesh)", [("name", "another position"), ("device_mesh", "another position")]),
        ("(device_mesh)", [("name", "needed here")]),
        ("(device_mesh, name='tp')", [("name", "default None in place of 'tp'")]),
        ("(device_mesh, *, name)", []),
    ],
)
def test_a_difference_of_a_signature_is_found(theirs: str, what: list[tuple[str, str]]) -> None:
    """A parameter that is missing, elsewhere, needed or of another default is found, and one by name alone is not."""
    found = differences("mesh_utils", {"get_flat_mesh": theirs}, mesh_utils)
    assert [each.name for each in found] == [f"mesh_utils.get_flat_mesh.{name}" for name, _ in what]
    assert all(text in each.what for each, (_, text) in zip(found, what, strict=True))
    missing = differences("mesh_utils", {"get_mesh": "()"}, mesh_utils)
    assert [(each.name, each.what) for each in missing] == [("mesh_utils.get_mesh", "missing")]


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_documented_api_is_unchanged(module: str) -> None:
    """What NeMo AutoModel's documentation gave before 0.7.0 is taken too, by position or by name."""
    names: Names = DOCUMENTED[module]
    assert differences(module, names, importlib.import_module(module)) == []


@pytest.mark.release_independent
def test_the_contexts_have_the_documented_properties() -> None:
    """The contexts of both versions have a property for every size."""
    current, old = find("automodel_mesh.mesh", "MeshContext")(), find("automodel_mesh.legacy", "MeshContext")()
    assert [getattr(current, name) for name in PROPERTIES] == [1, False, 1, 1, 1, None, None]
    assert [getattr(old, name) for name in PROPERTIES] == [1, False, 1, 1, 1, None, None]
    assert current.dp_shard_size == old.dp_shard_size == 1


def find(module: str, path: str) -> Any:
    """Return an attribute of a module, or of a class in it; old names warn."""
    with warnings.catch_warnings():
        if module == "automodel_mesh.legacy":
            warnings.simplefilter("ignore", DeprecationWarning)
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    return found


@pytest.mark.release_independent
def test_the_tables_of_the_page_are_current() -> None:
    """They are what `nox -s drop-in` makes of the data."""
    assert page_with_tables(PAGE) == PAGE
    for row in (*DATA["signatures"], *DATA["behaviours"]):
        assert f"| {row['there']} | {row['here']} | {row['why']} |" in PAGE
    for name, why in DATA["left_out"].items():
        assert f"| `{name}` | {why} |" in PAGE
    assert all(f"`{name}`" in PAGE for name in RECORD["0.7.0"]["mesh"] if "." not in name)


@pytest.mark.release_independent
def test_the_page_says_what_replaces_each_old_name() -> None:
    """It has a row for each, with the replacement that the warning names, and the replacement exists."""
    older = importlib.import_module("automodel_mesh.nemo.older_mesh")
    section = PAGE.partition("## Code for the older `mesh` module")[2]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    rows = {there.strip(" `"): re.findall(r"`(.*?)`", here) for there, here in cells}
    assert rows.keys() == {*older.__all__}
    legacy = importlib.import_module("automodel_mesh.legacy")
    for name, replacements in rows.items():
        with pytest.warns(DeprecationWarning, match="older generation") as caught:
            exec(f"legacy.{name}", {"__name__": name, "legacy": legacy})  # noqa: S102 - a module of its own
        assert re.findall(r"automodel_mesh\.(?!legacy)[\w.]*\w", str(caught[0].message)) == replacements
        for replacement in replacements:
            module, _, attribute = replacement.rpartition(".")
            assert find(module, attribute) is not None


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
        assert changed == [(old, new) for old, new in pairs if old.startswith(f"from {PACKAGE}")]
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
