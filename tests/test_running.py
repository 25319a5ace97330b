"""`automodel-mesh run`: a program runs as with `python`, with `backport` in use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import beside
from torch.distributed.device_mesh import DeviceMesh

class Pickled:
    pass

if __name__ == "__main__":
    import pickle
    assert type(pickle.loads(pickle.dumps(Pickled()))) is Pickled
    print(json.dumps([sys.argv, sys.path[0], beside.VALUE, hasattr(DeviceMesh, "abort"), __file__]))
"""

FAILS = """
def fail():
    open("no such file")

fail()
"""

MESH = """
import os
import torch.distributed as dist
from torch.distributed import init_device_mesh
from torch.distributed.device_mesh import DeviceMesh

root = init_device_mesh("cpu", (4,), mesh_dim_names=("world",), backend_override={"world": "gloo"})
split = root._unflatten("world", (2, 2), ("dp", "tp"))
joined = DeviceMesh._concatenate([split["dp"], split["tp"]])
assert joined.mesh.tolist() == [[0, 1], [2, 3]], joined
assert joined._get_root_mesh() is root
os.write(1, f"\\n{dist.get_rank()} is at {joined.get_coordinate()}\\n".encode())
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a package, whose module is the program, and programs."""
    package = tmp_path / "package"
    package.mkdir()
    for name, text in {"program": PROGRAM, "fails": FAILS, "mesh": MESH, "leaves": "import sys; sys.exit(7)"}.items():
        (package / f"{name}.py").write_text(text)
    for place in (tmp_path, package):
        (place / "beside.py").write_text("VALUE = 5\n")
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m automodel_mesh run` in the folder."""
    command = [sys.executable, "-m", "automodel_mesh", "run", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)


def test_a_file_runs_as_the_main_program(folder: Path) -> None:
    """It is `__main__`, with its arguments and its folder, and has what `backport` gives."""
    done = start(folder, "package/program.py", "--tp", "8", "-m", "x")
    assert (done.returncode, done.stderr) == (0, "")
    argv, path, value, has_abort, file = json.loads(done.stdout)
    assert argv == ["package/program.py", "--tp", "8", "-m", "x"]
    assert (path, value, has_abort, file) == (str(folder / "package"), 5, True, "package/program.py")


def test_a_module_runs_as_the_main_program(folder: Path) -> None:
    """With `-m`, it is found from the current folder."""
    done = start(folder, "-m", "package.program", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    argv, path, value, has_abort, file = json.loads(done.stdout)
    assert argv == [file, "--help"]
    assert (path, value, has_abort, file) == (str(folder), 5, True, str(folder / "package/program.py"))


def test_an_error_shows_the_programs_frames_only(folder: Path) -> None:
    """The traceback is what `python` prints for the program, and so is the exit status."""
    (ours, pythons) = (
        start(folder, "package/fails.py"),
        subprocess.run([sys.executable, "package/fails.py"], cwd=folder, capture_output=True, text=True, check=False),
    )
    assert ours.returncode == pythons.returncode == 1
    assert ours.stderr.replace(str(folder) + "/", "") == pythons.stderr.replace(str(folder) + "/", "")
    assert "No such file or directory: 'no such file'" in ours.stderr


def test_the_exit_status_is_that_of_the_program(folder: Path) -> None:
    """`sys.exit` of the program gives the status."""
    assert start(folder, "package/leaves.py").returncode == 7


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("nothing.py",), 2, "automodel-mesh: there is no file 'nothing.py'\n"),
        (("-m", "no_module"), 1, "ImportError: No module named no_module\n"),
        ((), 2, "the following arguments are required: PROGRAM"),
    ],
)
def test_a_program_that_is_not_there(folder: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    """It is an error that says so, without frames of ours."""
    done = start(folder, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "running.py" not in done.stderr


def test_torchrun_starts_it_on_each_rank(folder: Path) -> None:
    """As torchrun's module it runs a program of the newest torch on real ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [*launcher, "-m", "automodel_mesh", "run", "package/mesh.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    for rank, place in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert f"{rank} is at {place}" in done.stdout
