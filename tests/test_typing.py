"""mypy and pyright, on a user's programs, with the wheel that a user installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.pages import blocks
from tests.test_packaging import ROOT, build, copy_checkout

pytestmark = pytest.mark.release_independent

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = '[tool.pyright]\ntypeCheckingMode = "strict"\nreportUnnecessaryTypeIgnoreComment = "error"\n'


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Make a folder with the README's programs and `typed_user.py`, and an environment with the wheel and torch."""
    folder = tmp_path / "user"
    venv.create(folder / ".venv", symlinks=True)
    (site,) = (folder / ".venv").glob("lib/python*/site-packages")
    wheel = build("wheel", copy_checkout(tmp_path / "checkout"), tmp_path / "wheel")
    shutil.unpack_archive(wheel, site, "zip")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for number, program in enumerate(blocks(README, "python")):
        (folder / f"readme_{number}.py").write_text(program)
    shutil.copy(ROOT / "tests/typed_user.py", folder)
    (folder / "pyproject.toml").write_text(CONFIGURATION)
    return folder


def run_checker(folder: Path, *command: str) -> None:
    """Run a type checker on a user's programs; it must have nothing to say."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_programs_pass_mypy(user: Path) -> None:
    """The README's code and each use in `typed_user.py` pass `mypy --strict`; each line marked as an error is one."""
    pytest.importorskip("mypy", reason="needs mypy: `nox -s typing` runs it")
    run_checker(user, "mypy", "--strict", "--python-executable", str(user / ".venv/bin/python"), ".")


def test_a_users_programs_pass_pyright(user: Path) -> None:
    """The README's code and each use in `typed_user.py` pass pyright, as strict as it can be."""
    pytest.importorskip("pyright", reason="needs pyright: `nox -s typing` runs it")
    run_checker(user, "pyright", "--warnings", "--pythonpath", str(user / ".venv/bin/python"))
