"""`automodel-mesh migrate`: files, output and exit statuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh.cli import main
from automodel_mesh.migrating.report import SCHEMA
from tests.terminals import on_a_terminal

pytestmark = pytest.mark.release_independent

BEFORE = (
    "from torch.distributed.device_mesh import DeviceMesh\n\n\ndef f(mesh: DeviceMesh):\n"
    "    return mesh._flatten('dp')\n"
)
AFTER = BEFORE.replace("import DeviceMesh\n", "import DeviceMesh\nfrom automodel_mesh.compat import flatten\n").replace(
    "mesh._flatten(", "flatten(mesh, "
)
LEFT = "from torch.distributed.device_mesh import DeviceMesh\n\nprint(x._flatten('dp'))\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file to change."""
    (tmp_path / "code.py").write_text(BEFORE)
    return tmp_path


def test_by_default_and_with_diff_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The changes and what is left are listed, and the status is 1; with `--diff` what is left goes to stderr."""
    (folder / "left.py").write_text(LEFT)
    assert main(["migrate", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}/code.py:5: mesh._flatten('dp') -> flatten(mesh, 'dp')"
    assert lines[1].startswith(f"{folder}/left.py:3: left: x._flatten('dp'): whether it is a mesh")
    assert lines[2] == "1 change in 1 file, 1 left"
    assert main(["migrate", str(folder), "--diff"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("--- a/")
    assert "left.py" not in out
    assert "left.py:3: left:" in err
    assert (folder / "code.py").read_text() == BEFORE


def test_a_diff_is_coloured_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that go are red, and those that come green, with the text that a pipe gets; with NO_COLOR none is."""
    pytest.importorskip("rich")
    monkeypatch.delenv("NO_COLOR", raising=False)
    program = "import sys\nfrom automodel_mesh.cli import main\nsys.exit(main(sys.argv[1:]))"
    (folder / "code.py").write_text(f"# a bell, \a, and a [red]comment[/red] of {'many words ' * 20}\n{BEFORE}")
    line = ["migrate", str(folder), "--diff"]
    status, seen, _ = on_a_terminal(program, line, columns=80)
    assert status == 1
    assert "\x1b[31m-    return mesh._flatten('dp')\x1b[0m\n" in seen
    assert "\x1b[32m+    return flatten(mesh, 'dp')\x1b[0m\n" in seen
    piped = on_a_terminal(program, line, piped=True)[2]
    plain = re.sub(r"\x1b\[[\d;]*m", "", seen)
    assert plain.startswith(piped.replace("\a", "\\x07"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in on_a_terminal(program, line)[1]


def test_write_changes_the_files_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is changed, with status 0, and keeps its permissions; then there is nothing to do."""
    file = folder / "code.py"
    file.chmod(0o751)
    assert main(["migrate", str(folder), "--write"]) == 0
    assert file.read_text() == AFTER
    assert file.stat().st_mode & 0o777 == 0o751
    assert [one.name for one in folder.iterdir()] == ["code.py"]
    assert capsys.readouterr().out.endswith("1 change in 1 file, 1 written, 0 left\n")
    for option in ([], ["--write"], ["--diff"]):
        assert main(["migrate", str(folder), *option]) == 0
    assert file.read_text() == AFTER


@pytest.mark.parametrize("content", [BEFORE, BEFORE.replace("\n", "\r\n"), BEFORE.rstrip("\n"), f"x = 1\f\n{BEFORE}"])
def test_git_applies_the_diff(content: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The diff makes of the file what `--write` makes of it, whatever ends its lines."""
    file = folder / "code.py"
    file.write_bytes(content.encode())
    main(["migrate", str(file), "--diff"])
    patch = capsys.readouterr().out.replace(str(folder).lstrip("/") + "/", "")
    done = subprocess.run(["git", "apply", "-"], input=patch.encode(), cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    patched = file.read_bytes()
    file.write_bytes(content.encode())
    main(["migrate", str(file), "--write"])
    assert file.read_bytes() == patched != content.encode()


def test_json_has_each_file_with_something_to_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document has changes, what is left and problems, by file."""
    (folder / "bad.py").write_text(f"{BEFORE}def g(:\n")
    (folder / "other.py").write_text("print(1)\n")
    (folder / "left.py").write_text(LEFT)
    assert main(["migrate", str(folder), "--json"]) == 1
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == SCHEMA
    bad, code, left = document["files"]
    assert "line 6" in bad["problem"]
    assert code["changes"] == [{"line": 5, "before": "mesh._flatten('dp')", "after": "flatten(mesh, 'dp')"}]
    assert (code["written"], code["problem"], code["left"]) == (False, "", [])
    assert [one["line"] for one in left["left"]] == [3]


def test_encodings_stay(folder: Path) -> None:
    """A declared encoding and a byte order mark are kept; a file that is not in its encoding is not changed."""
    declared = f"# coding: latin-1\n# \xe9\n{BEFORE}".encode("latin-1")
    marked = b"\xef\xbb\xbf" + BEFORE.encode()
    broken = f"# \xe9\n{BEFORE}".encode("latin-1")
    for name, content in {"a": declared, "b": marked, "c": broken}.items():
        (folder / f"{name}.py").write_bytes(content)
    assert main(["migrate", str(folder), "--write"]) == 1
    assert (folder / "a.py").read_bytes() == f"# coding: latin-1\n# \xe9\n{AFTER}".encode("latin-1")
    assert (folder / "b.py").read_bytes() == b"\xef\xbb\xbf" + AFTER.encode()
    assert (folder / "c.py").read_bytes() == broken


def test_links_stay(folder: Path) -> None:
    """One that is found in a folder is left out; of one that is named, the file that it leads to is written."""
    target = folder / "target"
    target.write_text(BEFORE)
    (folder / "link.py").symlink_to(target)
    assert main(["migrate", str(folder), "--write"]) == 0
    assert target.read_text() == BEFORE
    assert main(["migrate", str(folder / "link.py"), "--write"]) == 0
    assert (folder / "link.py").is_symlink()
    assert target.read_text() == AFTER


def test_a_read_only_file_is_not_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays, the report says so, and the status is 1."""
    (folder / "code.py").chmod(0o444)
    assert main(["migrate", str(folder), "--write"]) == 1
    assert (folder / "code.py").read_text() == BEFORE
    assert "code.py: it is read-only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "why"), [("missing", "does not exist"), ("a.ipynb", "notebook"), ("empty", "no Python file")]
)
def test_nothing_to_work_on_is_status_2(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stdout is empty, and stderr says why."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.ipynb").touch()
    assert main(["migrate", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert why in err


def test_without_libcst_the_command_says_what_to_install(folder: Path) -> None:
    """The status is 2."""
    program = "import sys; sys.modules['libcst'] = None; from automodel_mesh.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", program, "migrate", str(folder)]
    root = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'automodel-mesh[migrate]'" in done.stderr
