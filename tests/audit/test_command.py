"""`automodel-mesh audit`: its arguments, its exit status, its outputs, baselines, and that it needs no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh.audit import command
from automodel_mesh.audit.findings import Audit, Finding, Note, Unread
from automodel_mesh.audit.torch_names import recorded_releases
from automodel_mesh.cli import main
from tests.audit.findings import BLOCK_MASK, NEW, OLD, RELEASES, audit_of, finding
from tests.terminals import on_a_terminal

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[2]
HARMLESS = finding(file="src/train.py", line=7, breaks=(), guarded=OLD, guard="except ImportError, line 8")
UNSURE = finding(kind="changed-behaviour", breaks=(), cannot_tell=NEW[:1])

WITHOUT_TORCH = """
import sys
# Python refuses to import them. All but packaging are extras, or read TOML, which Python 3.10 cannot.
sys.modules.update(dict.fromkeys(["torch", "numpy", "tomllib", "tomli", "rich", "argcomplete", "pytest"]))
from automodel_mesh.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Found:
    """Stands in for the reader of code: returns these findings, and keeps what it was asked."""

    def __init__(self, *findings: Finding, **fields: Any) -> None:
        self.answer = audit_of(*findings, **fields)
        self.asked: list[tuple[list[Path], tuple[str, ...]]] = []

    def __call__(self, paths: Sequence[Path], releases: Sequence[str]) -> Audit:
        """Return the answer."""
        self.asked.append((list(paths), tuple(releases)))
        return self.answer


Finds = Callable[..., Found]


@pytest.fixture
def finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finds:
    """Let the command find given findings, in a folder that has src/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/train.py").touch()

    def prepare(*findings: Finding, **fields: Any) -> Found:
        found = Found(*findings, **fields)
        monkeypatch.setattr(command, "audit", found)
        monkeypatch.setattr(command, "recorded_releases", lambda: RELEASES)
        return found

    return prepare


def test_all_recorded_releases_are_the_default(finds: Finds) -> None:
    """All paths are read, for all releases that are recorded or those that are chosen."""
    found = finds(finding())
    Path("train.py").touch()
    main(["audit", "src", "train.py"])
    main(["audit", "src", "--releases", ">=2.9.1,<2.11"])
    paths, releases = zip(*found.asked, strict=True)
    assert paths == ([Path("src"), Path("train.py")], [Path("src")])
    assert releases == (RELEASES, ("2.9.1", "2.10.0"))


@pytest.mark.parametrize(
    ("findings", "unread", "statuses"),
    [
        ((), (), (0, 0, 0)),
        ((HARMLESS,), (), (0, 0, 0)),
        ((UNSURE,), (), (0, 1, 0)),
        ((), (Unread("src/a.py", "it is no Python"),), (0, 1, 0)),
        ((finding(),), (), (1, 1, 0)),
    ],
)
def test_the_exit_status_is_that_of_fail_on(
    findings: tuple[Finding, ...], unread: tuple[Unread, ...], statuses: tuple[int, ...], finds: Finds
) -> None:
    """What breaks fails by default; `cannot-tell` fails for that too, also for unread files; `never` fails nothing."""
    finds(*findings, files=("src/train.py",), unread=unread)
    assert main(["audit", "src"]) == statuses[0]
    assert tuple(main(["audit", "src", "--fail-on", on]) for on in ("breaks", "cannot-tell", "never")) == statuses


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["src", "--releases", "2.99"], "'2.99' is not a recorded torch release"),
        (["src", "--baseline", "none.json"], "none.json cannot be read: No such file or directory"),
        (["src", "--write-baseline", "no/none.json"], "no/none.json cannot be written"),
        (["src", "--sarif", "no/none.sarif"], "no/none.sarif cannot be written"),
    ],
)
def test_wrong_arguments_give_2_and_a_reason(
    arguments: list[str], reason: str, finds: Finds, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is on stderr, and stdout is empty."""
    finds(finding())
    assert main(["audit", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"automodel-mesh: {reason}" in printed.err


def test_nothing_to_read_is_no_success(finds: Finds, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without Python files gives 2: a wrong path in CI must not pass for ever."""
    finds(files=())
    Path("src/train.py").rename("src/train.txt")
    assert main(["audit", "src"]) == 2
    assert capsys.readouterr().err == "automodel-mesh: there is no Python file in src\n"


@pytest.mark.parametrize("output", [[], ["--markdown"], ["--json"]])
def test_what_the_code_takes_care_of_is_shown_with_all(
    output: list[str], finds: Finds, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --all it is in no output; the text says how many there are."""
    finds(finding(), HARMLESS)
    main(["audit", "src", "--sarif", "few.sarif", *output])
    few = capsys.readouterr().out
    main(["audit", "src", "--all", "--sarif", "all.sarif", *output])
    every = capsys.readouterr().out
    assert HARMLESS.guard not in few
    assert HARMLESS.guard in every
    assert ("1 more finding is not shown: the code takes care of it" in few) == (output != ["--json"])
    assert "takes care of" not in every
    numbers = [len(json.loads(Path(name).read_text())["runs"][0]["results"]) for name in ("few.sarif", "all.sarif")]
    assert numbers == [1, 2]


def test_json_has_the_documented_keys(finds: Finds, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one document with the keys that the module describes, in their order."""
    finds(finding(), notes=(Note("src/train.py", 1, "delete it"),))
    main(["audit", "src", "--json"])
    read = json.loads(capsys.readouterr().out)
    text = command.__doc__ or ""
    assert list(read) == re.findall(r"^    (\w+) {2,}", text, re.MULTILINE)
    assert list(read["findings"][0]) == re.findall(r"^        (\w+) {2,}", text, re.MULTILINE)


def test_a_baseline_is_a_start(finds: Finds, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in a baseline is not shown and does not fail; what is new does."""
    finds(finding(), UNSURE, HARMLESS)
    assert main(["audit", "src", "--write-baseline", "base.json"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "automodel-mesh: 2 findings written to base.json\n")
    assert main(["audit", "src", "--baseline", "base.json", "--fail-on", "cannot-tell"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\n\nfits 2.6 - 2.15\n")
    assert printed.err == ""
    finds(finding(line=99), UNSURE, finding(name="torch.other"))
    assert main(["audit", "src", "--baseline", "base.json"]) == 1
    printed = capsys.readouterr()
    assert "torch.other" in printed.out
    assert BLOCK_MASK not in printed.out
    assert printed.err == ""


def test_an_entry_that_no_longer_occurs_can_be_deleted(finds: Finds, capsys: pytest.CaptureFixture[str]) -> None:
    """Entries of what was read and not found are named; not those of other files, unread files and other releases."""
    gone = [finding(line=1), finding(line=2)]
    elsewhere = finding(file="tests/test_train.py")
    broken = finding(file="src/broken.py")
    other_release = finding(file="src/old.py", breaks=OLD[:1])
    finds(*gone, elsewhere, broken, other_release)
    assert main(["audit", "src", "--write-baseline", "base.json"]) == 0
    capsys.readouterr()
    finds(releases=RELEASES[1:], other_files=1, unread=(Unread("src/broken.py", "why"),))
    main(["audit", "src", "--baseline", "base.json"])
    told = f"src/train.py has no missing-name {BLOCK_MASK} any more, 2 times: it can be deleted"
    assert capsys.readouterr().err == f"automodel-mesh: base.json: {told}\n"


def test_notes_on_comments_are_told(finds: Finds, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with a comment is on stderr, with its place, whether it is an error or not."""
    notes = (Note("src/a.py", 3, "gives no reason", is_error=True), Note("src/b.py", 4, "delete it"))
    finds(other_files=1, notes=notes)
    assert main(["audit", "src"]) == 0
    assert capsys.readouterr().err == (
        "automodel-mesh: src/a.py:3: error: gives no reason\nautomodel-mesh: src/b.py:4: note: delete it\n"
    )


# --- with the reader of code


SOURCE = """\
import torch
from torch import no_such_name
from torch.distributed import no_such_name as other  # audit: ignore[no_such_name] only for this test
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with a file that breaks on all releases, and one that uses no torch."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(SOURCE)
    (tmp_path / "src" / "other.py").write_text("import os\n")
    return tmp_path


def audit_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, where torch and all extras cannot be imported."""
    line = [sys.executable, "-c", WITHOUT_TORCH, "audit", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_code_is_read_without_torch(folder: Path) -> None:
    """Where there is neither torch nor an extra, real code is read, and a comment is followed."""
    done = audit_in(folder, "src", "--sarif", "audit.sarif")
    assert (done.returncode, done.stderr) == (1, "")
    assert "src/train.py:2:" in done.stdout
    assert "src/train.py:3:" not in done.stdout
    assert "\n1 other file " in done.stdout
    (result,) = json.loads((folder / "audit.sarif").read_text())["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("src/train.py", 2)
    assert audit_in(folder, "src/other.py").returncode == 0
    done = audit_in(folder, "src", "--json", "--releases", "newest")
    assert json.loads(done.stdout)["verdicts"] == {recorded_releases()[-1]: "breaks"}


def test_a_terminal_shows_colours_in_a_table_of_100_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All releases fit, in one line for each file, and verdicts have colours if they may."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    program = "import sys\nfrom automodel_mesh.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    status, seen, _ = on_a_terminal(program, ["audit", str(folder / "src")])
    assert status == 1
    assert "\x1b[1;31mNO" in seen
    plain = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", seen).splitlines()]
    row = next(line for line in plain if "train.py" in line)
    assert row.split()[1:] == ["NO"] * len(recorded_releases())
    assert len(row) <= 100
