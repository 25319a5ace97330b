"""The `automodel-mesh` command, run in a process: exit status, text, JSON, and behaviour without the extras."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh.cli import main
from automodel_mesh.compat import MINIMUM_TORCH, backport
from automodel_mesh.doctor.checks import CHECKS
from tests.terminals import on_a_terminal

ROOT = Path(__file__).parents[1]

FAILING_RUN = """
import sys
from automodel_mesh.cli import main
from automodel_mesh.doctor.checks import Check

def fine(world):
    pass

def broken(world):
    if world.rank == 1:
        print("written before")
        raise ValueError("[bold]rank one[/bold] is wrong")

checks = [Check("fine", "Nothing is promised.", fine), Check("broken", "Everything is promised.", broken)]
sys.exit(main(sys.argv[1:], checks=checks))
"""

# Python refuses to import a module that is None in sys.modules.
WITHOUT_EXTRAS = """
import sys
sys.modules.update(dict.fromkeys(["rich", "pytest", "_pytest", "numpy", "hypothesis"]))
from automodel_mesh.cli import main
sys.exit(main(sys.argv[1:]))
"""

OLD_TORCH = """
import runpy, sys
import torch
torch.__version__ = "2.5.1"
runpy.run_module("automodel_mesh", run_name="__main__", alter_sys=True)
"""


def command(*arguments: str, program: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command, or a program that calls it, in a process of its own."""
    start = ["-m", "automodel_mesh"] if program is None else ["-c", program]
    line = [sys.executable, *start, *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def check_document(document: dict[str, Any]) -> None:
    """Assert that a JSON report has the documented keys, and values of their types."""
    keys = ["schema", "passed", "environment", "ranks", "mesh_shape", "hosts", "seconds", "checks", "backport"]
    assert list(document) == keys
    assert document["schema"] == 1
    environment = document["environment"]
    named = {"automodel_mesh", "torch", "python", "platform", "era", "minimum_torch", "newest_tested_torch"}
    assert set(environment) == named
    assert all(isinstance(text, str) and text for text in environment.values())
    assert isinstance(document["seconds"], float)
    assert document["backport"] == list(backport(dry_run=True).installed)
    for check in document["checks"]:
        assert list(check) == ["name", "promise", "status", "seconds", "failures", "groups"]
        assert check["status"] in {"passed", "failed", "not run"}
        for failure in check["failures"]:
            assert list(failure) == ["rank", "kind", "error", "traceback", "output", "seconds"]


def test_all_checks_pass_on_the_installed_torch() -> None:
    """On the installed torch all checks of the doctor pass, its last line says so, and it exits with 0."""
    done = command("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "8 local gloo ranks as pp=2, dp=2, tp=2" in done.stdout
    assert "FAILED" not in done.stdout
    changed = backport(dry_run=True).installed
    assert ("after compat.backport():" in done.stdout) is bool(changed)
    assert all(f"\n    {feature}\n" in done.stdout for feature in changed)
    assert re.search(r"^ok +\d+\.\d\d s  unflatten-stage +Each pipeline stage", done.stdout, re.MULTILINE)
    assert re.search(r"^all \d+ checks passed on 8 ranks in \d+\.\d s$", done.stdout.splitlines()[-1])


@pytest.mark.release_independent
def test_json_is_one_document_and_needs_no_extras() -> None:
    """Without rich, pytest and NumPy the doctor works; --json gives one document, and progress on stderr."""
    done = command("doctor", "--ranks", "4", "--json", program=WITHOUT_EXTRAS)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    check_document(document)
    assert document["passed"] is True
    assert document["ranks"] == 4
    assert document["mesh_shape"] == [2, 2, 1]
    assert [check["name"] for check in document["checks"]] == _names()
    assert all(check["status"] == "passed" and not check["failures"] for check in document["checks"])
    assert done.stderr.count("ok ") == len(document["checks"])
    assert "NumPy" not in done.stderr


@pytest.mark.release_independent
def test_a_failing_check_is_reported_with_its_rank_traceback_and_output() -> None:
    """A failing check exits with 1 and is reported with its rank, traceback and output."""
    done = command("doctor", "--ranks", "2", program=FAILING_RUN)
    assert done.returncode == 1
    assert re.search(r"^ok .* fine ", done.stdout, re.MULTILINE)
    assert re.search(r"^FAILED .* broken ", done.stdout, re.MULTILINE)
    assert "broken: rank 1 raised ValueError: [bold]rank one[/bold] is wrong" in done.stdout
    assert "in broken" in done.stdout
    assert "output of rank 1:" in done.stdout
    assert "written before" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 of 2 checks did not pass on 2 ranks")


@pytest.mark.release_independent
def test_json_has_the_failures_of_a_check() -> None:
    """In JSON a failing check has its rank, the error, the traceback, and what the rank wrote."""
    done = command("doctor", "--ranks", "2", "--json", program=FAILING_RUN)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    check_document(document)
    assert document["passed"] is False
    assert [check["status"] for check in document["checks"]] == ["passed", "failed"]
    cause = document["checks"][1]["failures"][0]
    assert (cause["rank"], cause["kind"]) == (1, "raised")
    assert "is wrong" in cause["error"]
    assert "in broken" in cause["traceback"]
    assert "written before" in cause["output"]


@pytest.mark.release_independent
def test_a_terminal_with_rich_shows_a_table() -> None:
    """On a terminal with rich there is a table, and the text of failures is unchanged."""
    pytest.importorskip("rich")
    status, seen, _ = on_a_terminal(FAILING_RUN, ["doctor", "--ranks", "2"])
    assert status == 1
    assert "┃" in seen
    assert "[bold]rank one[/bold] is wrong" in seen
    assert "1 of 2 checks did not pass" in seen


@pytest.mark.release_independent
def test_a_terminal_without_rich_shows_the_running_check() -> None:
    """On a terminal without rich a line names the running check, and is erased when the check ends."""
    program = FAILING_RUN.replace("import sys\n", "import sys\nsys.modules['rich'] = None\n", 1)
    status, seen, _ = on_a_terminal(program, ["doctor", "--ranks", "2"])
    assert status == 1
    assert "\r\x1b[2Kchecking broken ...\r\x1b[2KFAILED" in seen
    assert "┃" not in seen


@pytest.mark.release_independent
def test_list_prints_each_check_with_its_promise(capsys: pytest.CaptureFixture[str]) -> None:
    """--list prints each check with its promise, and runs none."""
    assert main(["doctor", "--list"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == _names()
    assert "flatten-noncontiguous   Axes that are not contiguous" in text


@pytest.mark.release_independent
def test_list_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """--list --json prints the same as one document."""
    assert main(["doctor", "--list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [check["name"] for check in document["checks"]] == _names()
    assert all(set(check) == {"name", "promise"} for check in document["checks"])


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "COMMAND"),
        (("unknown",), "unknown"),
        (("doctor", "--ranks", "0"), "'0' is not a whole number of at least 1"),
        (("doctor", "--ranks", "-8"), "'-8' is not a whole number of at least 1"),
        (("doctor", "--ranks", "100000000"), "100000000 local ranks cannot be started"),
        (("doctor", "--tp", "2"), "--tp: only for the ranks of a launcher"),
        (("doctor", "--ranks", "2", "--under-launcher"), "give one of them"),
        (("doctor", "--ranks", "some"), "'some' is not a whole number"),
        (("doctor", "--timeout", "0"), "'0' is not a number of seconds above 0"),
        (("doctor", "--timeout", "nan"), "'nan' is not a number of seconds"),
        (("doctor", "--timeout", "inf"), "'inf' is not a number of seconds"),
        (("doctor", "--unknown"), "--unknown"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...], complaint: str) -> None:
    """Wrong arguments exit with 2, name what is wrong on stderr, and leave stdout empty."""
    done = command(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stdout == ""


@pytest.mark.release_independent
def test_an_unsupported_torch_exits_with_2_and_a_message() -> None:
    """A torch that is too old exits with 2 and a message instead of a traceback, and leaves stdout empty."""
    done = command("doctor", "--json", program=OLD_TORCH)
    assert done.returncode == 2
    assert f"found torch 2.5.1; it supports torch {MINIMUM_TORCH} and newer" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.release_independent
@pytest.mark.parametrize(
    "line",
    [
        "doctor --ranks 2",
        "doctor --ranks 2 --json",
        "doctor --list",
        "plan --world-size 8",
        "releases",
        "track installed",
        "--help",
    ],
)
def test_a_reader_that_leaves_gets_no_traceback(line: str) -> None:
    """If the reader of stdout leaves, the command ends with 141, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        arguments = [sys.executable, "-m", "automodel_mesh", *line.split()]
        done = subprocess.run(arguments, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert done.returncode == 141 or line == "--help"  # where argparse ignores it
    assert not re.search("Traceback|BrokenPipe|Exception", done.stderr)


@pytest.mark.release_independent
def test_version_is_one_line() -> None:
    """--version prints one line with the name and the version."""
    done = command("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"automodel-mesh (\d+\.\S+|\(not installed\))\n", done.stdout)


@pytest.mark.release_independent
def test_help_names_each_command_and_needs_no_torch() -> None:
    """The help names each command, and needs neither torch nor any extra."""
    done = command("--help", program=WITHOUT_EXTRAS.replace('["rich"', '["torch", "requests", "pypi_simple", "rich"'))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^    doctor +check the contract", done.stdout, re.MULTILINE)
    assert re.search(r"^    plan +say what a mesh needs", done.stdout, re.MULTILINE)
    assert re.search(r"^    releases +list the supported", done.stdout, re.MULTILINE)
    assert re.search(r"^    track +say what a torch", done.stdout, re.MULTILINE)


@pytest.mark.release_independent
def test_help_explains_each_exit_status() -> None:
    """The help of the command says what each exit status means."""
    done = command("doctor", "--help")
    assert done.returncode == 0
    assert "Exit status: 0 all checks passed" in done.stdout


def _names() -> list[str]:
    return [check.name for check in CHECKS]
