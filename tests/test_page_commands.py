"""The command lines of the pages, in a folder that has what they are about."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from automodel_mesh import compat
from automodel_mesh.cli import main
from tests.pages import blocks

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

Shell: TypeAlias = "Callable[[str], subprocess.CompletedProcess[str]]"


def page(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a function that runs a block as it is, in the test's folder, with the commands of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(block: str) -> subprocess.CompletedProcess[str]:
        line = ["bash", "-euc", block]
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    return run


# --- how-to/audit.md

BLOCK_MASK = "from torch.distributed.pipelining.microbatch import BlockMask\n"
"""Breaks on 2.6 to 2.9."""
(ACCEPTED,) = blocks(page("how-to/audit.md"), "python")
AUDITS = [block for block in blocks(page("how-to/audit.md"), "bash") if block.startswith("automodel-mesh audit src")]


@pytest.fixture
def src(tmp_path: Path) -> None:
    """Make the folder that the commands audit."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/breaks.py").write_text(BLOCK_MASK)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("index", "status", "verdict"),
    [(0, 1, ", breaks on 2.6 - 2.9"), (1, 1, ", breaks on 2.8, 2.9"), (2, 0, "fits 2.6")],
)
def test_audit_as_the_page_writes_it(index: int, status: int, verdict: str, src: None, shell: Shell) -> None:
    """Each block of docs/how-to/audit.md has the status and verdict of the text; a baseline has all findings."""
    done = shell(AUDITS[index])
    assert done.returncode == status, done.stderr
    assert verdict in done.stdout.splitlines()[-1]


@pytest.mark.release_independent
@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_a_program_reads_the_results_as_the_page_writes_it(src: None, shell: Shell) -> None:
    """The last block of docs/how-to/audit.md prints the verdict for each release."""
    _, _, _, block = AUDITS
    verdicts = json.loads(shell(block).stdout)
    assert {"2.9.1": "breaks", "2.10.0": "fits"}.items() <= verdicts.items()


@pytest.mark.release_independent
@pytest.mark.parametrize(("line", "status"), [(ACCEPTED, 0), (ACCEPTED.partition("#")[0], 1)])
def test_an_accepted_place_is_left_out(line: str, status: int, tmp_path: Path) -> None:
    """The line of docs/how-to/audit.md is no finding, and is one without its comment."""
    (tmp_path / "code.py").write_text(line)
    assert main(["audit", str(tmp_path)]) == status


# --- how-to/migrate.md


@pytest.mark.release_independent
def test_migrate_as_the_page_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of docs/how-to/migrate.md list, show and make the change from its first block to its second."""
    text = page("how-to/migrate.md")
    before, after = blocks(text, "python")
    commands = re.findall(r"automodel-mesh (migrate train\.py.*?)$", "\n".join(blocks(text, "bash")), re.MULTILINE)
    commands += re.findall(r"`automodel-mesh\s(migrate\strain\.py\s--\w+)`", text)
    assert [command.split()[2:] for command in commands] == [[], ["--diff"], ["--write"]]
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(before)
    printed = []
    for command, status in zip(commands, (1, 1, 0), strict=True):
        assert Path("train.py").read_text() == before
        assert main(command.split()) == status
        printed.append(capsys.readouterr().out)
    assert 'root_of(dp).get_group("dp") -> get_group(root_of(dp), "dp")' in printed[0]
    assert "\n+def" not in printed[1]
    assert "\n+    return get_root_mesh(mesh)\n" in printed[1]
    assert Path("train.py").read_text() == after


# --- how-to/backport.md

TRAIN = """\
import os, sys
from torch.distributed.device_mesh import DeviceMesh
os.write(1, f"{sys.argv[1:]} {hasattr(DeviceMesh, 'abort')}\\n".encode())
"""


@pytest.mark.release_independent
def test_run_as_the_page_writes_it(shell: Shell, tmp_path: Path) -> None:
    """Each line of docs/how-to/backport.md runs the program with its arguments and the newest calls, on two ranks."""
    (tmp_path / "package").mkdir()
    for name in ("train.py", "package/train.py"):
        (tmp_path / name).write_text(TRAIN)
    (block,) = blocks(page("how-to/backport.md"), "bash")
    done = shell(block.replace("--nproc-per-node 8", "--nproc-per-node 2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['--tp', '8'] True"] * (1 + 2 + 2)


# --- eras.md


def test_the_markers_of_the_installed_torch_are_those_of_the_table(
    shell: Shell,
) -> None:
    """The first command of docs/eras.md prints what the column of the installed release has."""
    text = page("eras.md")
    done = shell(blocks(text, "bash")[0])
    assert done.returncode == 0, done.stderr
    found = re.findall(r": (True|False)", done.stdout)
    lines = re.findall(r"^\|.*$", text[text.index("print(markers())") : text.index("\nRun on")], re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    column = max(number for number in range(1, len(head)) if compat.torch_at_least(head[number].split()[0]))
    assert [{"there": "True", "absent": "False"}[row[column]] for row in rows] == found


# --- command.md


@pytest.mark.release_independent
def test_completion_is_switched_on_as_the_page_writes_it(shell: Shell) -> None:
    """After the line of docs/command.md, the shell completes `automodel-mesh`."""
    pytest.importorskip("argcomplete")
    (block,) = blocks(page("command.md"), "bash")
    done = shell(f"{block}\ncomplete -p automodel-mesh")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"complete .* automodel-mesh\n", done.stdout)


# --- how-to/check-a-launch.md


def without_measurements(report: str) -> list[str]:
    """Return what a report of doctor has on every machine: the mesh, the checks, and the axes with their sizes."""
    mesh, checks, axes = (r"fsdp2 on .*", r"ok +[\d.]+ s +(.*)", r"([a-z_, ]+ +\d+ +\d+) +\d.*")
    return [line for pattern in (mesh, checks, axes) for line in re.findall(f"^{pattern}$", report, re.MULTILINE)]


@pytest.mark.release_independent
def test_doctor_reports_what_the_page_shows(shell: Shell) -> None:
    """The command of docs/how-to/check-a-launch.md makes the report below it, but for what is measured."""
    command, report, *_ = blocks(page("how-to/check-a-launch.md"), "text")
    done = shell(f"{command.rstrip()} --timeout 240")
    assert done.returncode == 0, done.stderr
    shown = without_measurements(report)
    assert len(shown) == 1 + 9 + 5
    assert without_measurements(done.stdout) == shown
