"""What is the same for each command of `automodel-mesh`: help, streams, Ctrl-C, completion, its page in the docs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from automodel_mesh.cli import main
from automodel_mesh.exit_status import INTERRUPTED, PIPE_CLOSED, UNUSABLE
from tests.terminals import on_a_terminal

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/command.md").read_text(encoding="utf-8")
START = f"{sys.executable} -m automodel_mesh"
SHOWS_COLOURS = re.compile(r"\x1b\[[\d;]*3\dm")

# Starts ranks that wait for ever, with SIGINT as in a terminal: a shell ignores it in background processes.
WAITS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from automodel_mesh.cli import main
from automodel_mesh.doctor.checks import Check

def waits(world):
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)

if sys.argv[1] == "while ranks start":
    os.register_at_fork(after_in_parent=lambda: os.killpg(0, signal.SIGINT))
sys.exit(main(["doctor", "--ranks", "2"], checks=[Check("waits", "Nothing is promised.", waits)]))
"""

FINE = """
import sys
from automodel_mesh.cli import main
from automodel_mesh.doctor.checks import Check

checks = [Check("fine", "Nothing is promised.", lambda world: None)]
sys.exit(main(["doctor", "--ranks", "1"], checks=checks))
"""


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return what `--help` prints."""
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the names of all commands, from the help."""
    return re.findall(r"^    ([a-z][a-z-]*) ", help_of(capsys), re.MULTILINE)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell."""
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_the_help_of_each_command_has_examples_and_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of each command, and of the whole, shows examples that can be parsed, and names the exit statuses."""
    names = commands(capsys)
    assert {"audit", "doctor", "migrate", "plan", "releases", "run", "track"} == set(names)
    for command in ([], *([name] for name in names)):
        text = help_of(capsys, *command)
        (examples,) = re.findall(r"^examples:\n((?:  .*\n)+)", text, re.MULTILINE)
        assert all(re.match("  (automodel-mesh|torchrun .*-m automodel_mesh) ", line) for line in examples.splitlines())
        assert len(examples.splitlines()) >= 3
        statuses = text.partition("\nExit status: ")[2]
        assert {"0", "2"} <= set(re.findall(r"\b(\d+)\s\w", statuses))


def test_the_page_shows_every_command_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    """The page of the command is made from `--help`, and its table has the statuses that all commands share."""
    assert "```{from-data} command-help" in PAGE
    table = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert table == [0, 1, UNUSABLE, INTERRUPTED, PIPE_CLOSED]
    overview = help_of(capsys).partition("Exit status: ")[2]
    assert [int(number) for number in re.findall(r"\b(\d+)\s(?!of)\w", overview)] == table


@pytest.mark.parametrize("command", ["--version", "--help", "doctor --list", "track installed", "doctor --ranks 1"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(command: str, closed: str) -> None:
    """With stdout or stderr closed, a command does its work, and its exit status is that of its result."""
    done = shell(f"{START} {command} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) is (">&- " not in f"{closed} " or closed == "2>&-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize(
    "command", ["doctor --list", "doctor --list --json", "track installed", "track installed --json"]
)
def test_a_full_disk_is_told_in_one_line(command: str) -> None:
    """If stdout cannot be written, the exit status is 2, and stderr has the reason on one line."""
    done = shell(f"{START} {command} > /dev/full")
    assert done.returncode == UNUSABLE
    assert re.fullmatch(r"automodel-mesh: .*No space left on device\n", done.stderr)


@pytest.mark.parametrize("when", ["while ranks start", "while ranks work"])
def test_an_interrupt_ends_doctor_and_its_ranks(when: str, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to the ranks too, ends them and the doctor with 130, without a traceback."""
    works = tmp_path / "works"
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, when, str(works)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if when == "while ranks work":
        while not works.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (INTERRUPTED, "\nautomodel-mesh: interrupted\n")
    assert "Traceback" not in out
    with pytest.raises(ProcessLookupError):  # no rank is left
        os.killpg(process.pid, 0)


def test_no_color_turns_colours_of_doctor_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR the doctor prints no colours on a terminal."""
    pytest.importorskip("rich")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert SHOWS_COLOURS.search(on_a_terminal(FINE, [])[1])
    monkeypatch.setenv("NO_COLOR", "1")
    status, seen, _ = on_a_terminal(FINE, [])
    assert status == 0
    assert "all 1 checks passed" in seen
    assert not SHOWS_COLOURS.search(seen)


def test_a_terminal_without_rich_is_told_what_to_install() -> None:
    """Where rich would show a table or colours, its extra is named on the last line, on stderr; a pipe gets no hint."""
    hint = "pip install 'automodel-mesh[cli]'"
    without = "import sys\nsys.modules['rich'] = None\n"
    status, seen, _ = on_a_terminal(without + FINE, [])
    assert status == 0
    assert seen.splitlines()[-1] == f"automodel-mesh: for a table: {hint}"
    track = "from automodel_mesh.cli import main\nsys.exit(main(['track', 'installed']))"
    status, seen, _ = on_a_terminal(without + track, [])
    assert status == 0
    assert seen.splitlines()[-1] == f"automodel-mesh: for colours: {hint}"
    _, seen, piped = on_a_terminal(without + track, [], piped=True)
    assert hint not in seen + piped


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("automodel-mesh ", {"doctor", "track"}),
        ("automodel-mesh doc", {"doctor"}),
        ("automodel-mesh doctor --", {"--json", "--list", "--ranks", "--timeout"}),
        ("automodel-mesh track --mark", {"--markdown"}),
    ],
)
def test_a_shell_completes_commands_and_options(line: str, wanted: set[str], tmp_path: Path) -> None:
    """A shell that asks as argcomplete's scripts do gets the commands and options that fit."""
    pytest.importorskip("argcomplete")
    answer = tmp_path / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    program = [sys.executable, "-m", "automodel_mesh"]
    done = subprocess.run(program, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert wanted <= {one.strip() for one in answer.read_text().split("\n")}


def test_without_argcomplete_a_shell_gets_no_traceback() -> None:
    """Without the extra there is nothing to complete, and no traceback in the middle of a command line."""
    program = "import sys\nsys.modules['argcomplete'] = None\nfrom automodel_mesh.cli import main\nmain(['--version'])"
    environment = {**os.environ, "_ARGCOMPLETE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
