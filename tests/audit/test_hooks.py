"""The audit as an action of GitHub and as a hook of pre-commit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from automodel_mesh.audit.torch_names import recorded_releases
from automodel_mesh.cli import main
from tests.pages import blocks

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[2]
ACTION = (ROOT / "action.yml").read_text(encoding="utf-8")
HOOKS = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
INSTALL, AUDIT = (
    textwrap.dedent(block) for block in re.findall(r"^      run: \|\n((?:        .*\n)+)", ACTION, re.MULTILINE)
)
DEFAULTS = dict(re.findall(r"^  ([a-z-]+):\n    description: .*\n    default: (.*)\n", ACTION, re.MULTILINE))

BREAKS = "from torch import no_such_name\n"


def run_action(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run the last step of the action in a folder, as GitHub does, with the command of this environment."""
    command = folder / "temp/automodel-mesh/bin/automodel-mesh"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m automodel_mesh "$@"\n')
    command.chmod(0o755)
    values = {name: value.strip('"') for name, value in DEFAULTS.items()}
    values |= {name.replace("_", "-"): value for name, value in given.items()}
    inputs = {name.upper().replace("-", "_"): value for name, value in values.items()}
    environment = {**os.environ, **inputs, "RUNNER_TEMP": str(folder / "temp"), "PYTHONPATH": str(ROOT)}
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", AUDIT]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make folders with files that break and that do not."""
    for name, text in {"a b/breaks.py": BREAKS, "src/breaks.py": BREAKS, "src/fits.py": "import torch\n"}.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "code"


def test_the_action_reads_the_checkout_by_default(folder: Path) -> None:
    """Without inputs, all of the checkout is read, and what breaks fails the step."""
    done = run_action(folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\na b/breaks.py:1:" in done.stdout
    assert "\nsrc/breaks.py:1:" in done.stdout


def test_each_input_of_the_action_has_its_effect(folder: Path) -> None:
    """Paths are on lines, with spaces in them; releases, baseline and SARIF file are handed on."""
    done = run_action(folder, paths="\na b\nsrc/fits.py\n", releases=">=2.9,<2.11", sarif_file="out of it.sarif")
    assert (done.returncode, done.stderr) == (1, "")
    assert "src/breaks.py" not in done.stdout
    (result,) = json.loads((folder / "out of it.sarif").read_text())["runs"][0]["results"]
    assert result["properties"]["breaks"] == [one for one in recorded_releases() if one.startswith(("2.9.", "2.10."))]


def test_the_action_takes_a_baseline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a baseline that has all findings, the step passes."""
    monkeypatch.chdir(folder)
    assert main(["audit", "src", "--write-baseline", "base.json"]) == 0
    assert run_action(folder, paths="src", baseline="base.json").returncode == 0


def test_the_action_can_pass_whatever_it_finds(folder: Path) -> None:
    """With fail-on: never the step passes, and shows what breaks."""
    done = run_action(folder, fail_on="never")
    assert done.returncode == 0
    assert "src/breaks.py:1:" in done.stdout


def test_the_action_hands_every_input_to_a_step() -> None:
    """Each input is read in one place, into the environment of a step, and never in a command."""
    names = re.findall(r"^  ([a-z-]+):\n    description:", ACTION, re.MULTILINE)
    assert names == [*DEFAULTS]
    read = re.findall(r"^        ([A-Z_]+): \$\{\{ inputs\.([a-z-]+) \}\}$", ACTION, re.MULTILINE)
    assert sorted(read) == sorted((name.upper().replace("-", "_"), name) for name in names)
    assert "${{" not in INSTALL + AUDIT
    assert all(f"${variable}" in INSTALL + AUDIT for variable, _ in read)


def test_the_page_names_what_there_is() -> None:
    """The examples of the how-to page use inputs of the action, and ids of hooks, that exist."""
    workflow, configuration = blocks((ROOT / "docs/how-to/audit.md").read_text(encoding="utf-8"), "yaml")
    (given,) = re.findall(r"automodel-mesh@v0.1.0\n    with:\n((?:      .*\n)+)", workflow)
    inputs = re.findall(r"^      ([a-z-]+):", given, re.MULTILINE)
    assert inputs
    assert set(inputs) <= set(DEFAULTS)
    ids = set(re.findall(r"^- id: (.*)", HOOKS, re.MULTILINE))
    assert set(re.findall(r"- id: (.*)", configuration)) < ids


def test_the_hooks_run_the_command() -> None:
    """Each hook calls the command of this package with the files as arguments, in one process."""
    hooks = HOOKS.split("\n- id: ")[1:]
    assert len(hooks) == 2
    for hook in hooks:
        assert "\n  entry: automodel-mesh audit\n" in hook
        assert "\n  types: [python]\n  require_serial: true" in hook
        assert "pass_filenames" not in hook
    script = re.search(r'^automodel-mesh = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert script is not None
    assert script[1] == main.__module__
