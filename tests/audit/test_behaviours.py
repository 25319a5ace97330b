"""The known behaviours are those of the installed torch, on every release."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh import compat
from automodel_mesh.audit.behaviours import BEHAVIOURS, Behaviour
from automodel_mesh.testing import run_ranks
from tests.audit.programs import CASES, ROOT_AXES
from tests.compat import plain
from tests.plain_torch import build, observed, program, result_of

RELEASE = str(compat.TORCH_VERSION)
NAMED = {behaviour.program: behaviour for behaviour in BEHAVIOURS}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.program)
def test_torch_does_what_is_recorded(behaviour: Behaviour) -> None:
    """The call has the result that is recorded for the installed release."""
    if behaviour.program == "dynamo":  # another test may have imported it into this process
        command = [sys.executable, "-m", "tests.plain_torch", behaviour.program]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        found = done.stdout.splitlines()[-1].rpartition(": ")[2]
    else:
        (found,) = run_ranks(result_of, 1, program(behaviour), backend=None)
    assert found == behaviour.result(RELEASE)


def variables() -> dict[str, Any]:
    """Make what the programs of the rules use, with torch's own functions."""
    root = build()
    assert root.mesh_dim_names == ROOT_AXES
    slices = {"hsdp": plain.slice_mesh(root, ("dp", "cp")), "line": plain.slice_mesh(root, "tp")}
    plain.flatten(slices["hsdp"], "dp_cp")
    plain.flatten(plain.slice_mesh(root, ("dp", "tp")), "dp_tp")
    plain.flatten(root, "all")
    others = {"name": "cp", "names": ("x", "y"), "chosen": {"x": "fake"}, "init_device_mesh": plain.init_device_mesh}
    return {"root": root, "mesh": root, "part": slices["hsdp"], **slices, **others}


def in_a_word(result: str) -> str:
    """Reduce a result to what shows in an expression alone: an error, a warning, a dictionary that is empty."""
    seen = re.match(r"\w+Error|absent|empties your dictionary", result)
    return f"{seen[0] if seen else 'works'}{', warns' if result.endswith('warns') else ''}"


@pytest.mark.parametrize(("name", "affected"), [case[:2] for case in CASES if case[0] != "coordinate"])
def test_what_a_rule_finds_is_affected(name: str, affected: tuple[str, ...]) -> None:
    """The expressions that a rule finds raise or warn on the installed release as it is recorded."""

    def effect(text: str) -> str:
        plain.forget_meshes()
        made = variables()
        eval(text, made)  # noqa: S307 - it is our own
        return "works" if made["chosen"] else "empties your dictionary"

    def effects() -> dict[str, str]:
        plain.restore_torch()
        return {text: observed(partial(effect, text)) for text in affected}

    (found,) = run_ranks(effects, 1, backend=None)
    assert found == dict.fromkeys(affected, in_a_word(NAMED[name].result(RELEASE)))
