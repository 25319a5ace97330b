"""What commands print on terminals of several widths: no word is broken where there is room for it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.terminals import on_a_terminal

pytestmark = pytest.mark.release_independent

PROGRAM = "import sys\nfrom automodel_mesh.cli import main\nsys.exit(main(sys.argv[1:]))"
FRAME = re.compile("[\N{BOX DRAWINGS LIGHT HORIZONTAL}-\N{BOX DRAWINGS LIGHT ARC UP AND RIGHT}]")

LINES = [
    "plan --world-size 64 --tp 8 --pp 2 --gpus-per-node 8",
    "plan --world-size 1024 --tp 8 --pp 4 --cp 2 --ep 16 --dp-replicate 2 --rank 37",
    "plan --world-size 64 --suggest",
    "releases",
]


def printed(line: str, columns: int) -> str:
    """Return what a command prints on a terminal with rich, without colours."""
    pytest.importorskip("rich")
    status, seen, _ = on_a_terminal(PROGRAM, line.split(), columns=columns)
    assert status == 0
    return re.sub(r"\x1b\[[\d;]*m", "", seen)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("columns", [80, 100, 120])
def test_tables_keep_their_words(line: str, columns: int) -> None:
    """A table has the words that it has where everything fits, and none of its lines is wider than the terminal."""
    seen = printed(line, columns)
    rows = [text for text in seen.splitlines() if FRAME.search(text)]
    assert max(map(len, rows or [""])) <= columns
    wanted = set(FRAME.sub(" ", printed(line, 1000)).split())
    assert set(FRAME.sub(" ", seen).split()) == wanted


@pytest.mark.parametrize("line", LINES)
def test_a_terminal_that_is_too_narrow_shows_all_of_a_table(line: str) -> None:
    """Where the longest words do not fit beside each other, they are broken, and no letter is left out."""
    letters = [re.sub(r"\s", "", FRAME.sub("", printed(line, columns))) for columns in (40, 1000)]
    assert sorted(letters[0]) == sorted(letters[1])


@pytest.mark.parametrize("command", ["", "audit", "doctor", "migrate", "plan", "releases", "run", "track"])
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fills_its_paragraphs(command: str, columns: int) -> None:
    """No line of a paragraph is wider than the terminal, and each is as full as it can be; examples stay whole."""
    text = printed(f"{command} --help", columns)
    for paragraph in text.split("\n\n"):
        lines = paragraph.splitlines()
        if re.match(r"usage|examples|.*:\n", paragraph) or any(line.startswith(" ") for line in lines):
            continue
        assert max(map(len, lines)) <= columns
        for line, following in pairwise(lines):
            assert len(f"{line} {following.split()[0]}") > columns - 2


def test_wide_characters_take_two_columns() -> None:
    """A name in Chinese is shown whole."""
    pytest.importorskip("rich")
    program = (
        "from automodel_mesh.tables import Table, show\n"
        "show([Table('files', ('file', 'verdict'), (('\\u6a21\\u578b\\u5e76\\u884c.py', 'fits'),), is_dense=True)])"
    )
    _, seen, _ = on_a_terminal(program, [], columns=40)
    assert "\u6a21\u578b\u5e76\u884c.py  fits" in seen
