"""CONTRIBUTING.md's steps for adding and dropping torch releases, run in copies of the checkout: `nox -s releases`.

The commands of its code blocks are run unchanged, except those that need another torch than the installed one. `nox` is
started with options to install nothing and to use this environment, which has all that it needs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.version import Version

from automodel_mesh.compat import NEWEST_TESTED_TORCH, TORCH_VERSION
from tests.leftovers import CHECKOUT, Leftover, current_floor, floors_of_facts, leftovers
from tests.test_ci_matrix import RELEASES, label
from tests.test_packaging import copy_checkout
from tests.tracking.test_command import make_wheel

CONTRIBUTING = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PREPARATION = 'set -euo pipefail; nox() { python -m nox --no-venv --no-install "$@"; }\n'
LISTS_LEFTOVERS = "python -m tests.leftovers"


def section(title: str) -> str:
    """Return a section of CONTRIBUTING.md."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert isinstance(text, str)
    return text


def blocks_to_run(text: str) -> list[str]:
    """Return the code blocks that can run on the installed torch; at least one cannot."""
    blocks = [
        textwrap.dedent(block) for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    ]
    need_others = [block for block in blocks if needs_another_torch(block)]
    assert 0 < len(need_others) < len(blocks) / 2
    return [block for block in blocks if block not in need_others]


def needs_another_torch(block: str) -> bool:
    """Return whether the sessions of a block install other releases than the newest."""
    releases = set(re.findall(r"(?:tests|plain)-([\d.]+)", block))
    return "nox -t matrix" in block or "minimums" in block or bool(releases - {label(TORCH_VERSION)})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the checkout."""
    assert TORCH_VERSION == NEWEST_TESTED_TORCH, "the steps are tried on the newest release"
    return copy_checkout(tmp_path / "checkout")


def run(script: str, checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a copy of the checkout, whose modules come before those of the installed package."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout), **variables}
    environment.pop("AUTOMODEL_MESH_PASSED", None)
    return subprocess.run(
        ["bash", "-c", PREPARATION + script],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def succeed(script: str, checkout: Path, **variables: str) -> str:
    """Run a script that must succeed, and return what it printed."""
    done = run(script, checkout, **variables)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sessions_in_the_docs(checkout: Path) -> set[str]:
    """Return the tests sessions in the table of releases of the built documentation."""
    page = (checkout / "docs/_build/html/compatibility.html").read_text(encoding="utf-8")
    return set(re.findall(r"\btests-[\d.]*\d", page))


def without_lines(places: list[Leftover]) -> set[tuple[str, str]]:
    """Return places without their lines, which change when something before them is deleted."""
    return {(place.path, place.remedy) for place in places}


def test_the_steps_drop_releases(checkout: Path) -> None:
    """After the commands, lint, types, docs and the contract pass, and what people still have to delete is listed."""
    text = section("Dropping torch releases")
    blocks = blocks_to_run(text)
    assert any("nox -s lint typing docs" in block and "-- tests/compat\n" in block for block in blocks)
    lists: list[str] = []
    for block in blocks:
        if block.startswith(LISTS_LEFTOVERS):
            done = run(block, checkout)
            assert (done.returncode, done.stderr) == (1, "")
            lists.append(done.stdout)
        else:
            succeed(block, checkout)

    floor = current_floor(checkout)
    assert floor > current_floor(CHECKOUT)
    foreseen, left = leftovers(CHECKOUT, floor), leftovers(checkout, floor)
    assert lists == ["".join(f"{place}\n" for place in places) for places in (foreseen, left)]
    assert without_lines(left) < without_lines(foreseen)
    done_by_commands = without_lines(foreseen) - without_lines(left)
    assert {path for path, _ in done_by_commands if path not in text} == set()
    facts = {name for name, goes in floors_of_facts(CHECKOUT).items() if goes <= floor}
    assert facts == {match[1] for place in left if (match := re.match(r"delete ([A-Z_]+), as", place.remedy))}
    assert facts

    succeed("python -m pytest --numprocesses=2 tests/test_ci_matrix.py tests/tracking/test_ledger.py", checkout)
    assert sessions_in_the_docs(checkout) == {f"tests-{label(release)}" for release in RELEASES if release >= floor}


def test_the_steps_add_a_release(checkout: Path, tmp_path: Path) -> None:
    """After the commands, a new torch is in the matrix, the ledger, the docs and the sessions of nox."""
    text = section("Adding a torch release")
    (new,) = re.findall(r'^ *torch = "([\d.]+)"', text, re.MULTILINE)
    assert Version(new) > TORCH_VERSION
    wheel = make_wheel(tmp_path / "index" / "torch", new)  # the installed torch under the new number
    (wheel.parent / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>')
    index = {"PIP_INDEX_URL": str(tmp_path / "index"), "AUTOMODEL_MESH_CACHE": str(tmp_path / "cache")}
    blocks = blocks_to_run(text)
    assert any("nox -s lint typing docs" in block for block in blocks)
    for block in blocks:
        succeed(block, checkout, **index)

    tests = "tests/test_ci_matrix.py tests/test_leftovers.py tests/tracking/test_ledger.py tests/compat/test_gate.py"
    succeed(f"python -m pytest --numprocesses=2 {tests}", checkout)
    assert f"tests-{Version(new).major}.{Version(new).minor}" in sessions_in_the_docs(checkout)
