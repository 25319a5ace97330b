"""The workflows of .github: pinned actions, few permissions, no text of others in commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
HASHED = re.compile(r"[\w/-]+@[0-9a-f]{40} # v\d+(\.\d+)+")

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])


@each_workflow
def test_actions_are_pinned_to_a_hash(path: Path) -> None:
    """Each action is given by the hash of a commit, with its version beside it; one action has one hash everywhere."""
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    assert [line for line in used if not HASHED.fullmatch(line)] == []
    everywhere = {line for other in WORKFLOWS for line in re.findall(r"uses: (.*)", other.read_text())}
    assert len({line.partition("@")[0] for line in everywhere}) == len(everywhere)


@each_workflow
def test_no_job_has_more_rights_than_it_is_given(path: Path) -> None:
    """A workflow begins without rights or with that of reading, and no checkout keeps its credentials."""
    text = path.read_text()
    top = text.partition("\njobs:\n")[0]
    assert re.search(r"^permissions:(\n  contents: read$| \{\}$)", top, re.MULTILINE)
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


@each_workflow
def test_commands_hold_no_expressions(path: Path) -> None:
    """Commands read values from the environment: an expression inside of one could become a command itself."""
    commands = re.findall(r"^ *(?:- )?run: (\|\n(?:(?: {10,}.*)?\n)+|.*\n)", path.read_text(), re.MULTILINE)
    assert commands
    assert [command for command in commands if "${{" in command] == []


def test_lint_checks_every_file_of_github() -> None:
    """`nox -s lint` runs zizmor, and checks each YAML file in .github, and the action, against its schema."""
    noxfile = (ROOT / "noxfile.py").read_text()
    assert 'session.run("zizmor", ' in noxfile
    (table,) = re.findall(r"^SCHEMAS: Final = \{\n(.*?)^\}", noxfile, re.MULTILINE | re.DOTALL)
    patterns = re.findall(r': "(.*)",', table)
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert found == {ROOT / "action.yml", *(ROOT / ".github").rglob("*.yml")}
