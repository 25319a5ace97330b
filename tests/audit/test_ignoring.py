"""Comments `# audit: ignore[NAME] reason` leave out findings."""

from __future__ import annotations

import pytest

from automodel_mesh.audit.ignoring import apply_ignores
from tests.audit.findings import BLOCK_MASK, finding

pytestmark = pytest.mark.release_independent

FILE = "src/train.py"


@pytest.mark.parametrize("name", [BLOCK_MASK, "BlockMask", "missing-name", "other, BlockMask", " BlockMask "])
def test_a_finding_is_named_by_its_path_its_last_part_or_its_kind(name: str) -> None:
    """Each way to name a finding leaves it out; of several names with commas between, one is enough."""
    source = f"from torch.x import BlockMask  # audit: ignore[{name}] only used from 2.10 on\n"
    ignored = apply_ignores(source, [finding(line=1)], FILE)
    assert (ignored.findings, ignored.notes) == ((), ())


def test_an_argument_is_named_by_the_function_and_the_argument() -> None:
    """The last part of an argument's name is the function with the argument in brackets."""
    name = "torch.distributed.device_mesh.init_device_mesh(backend_override)"
    found = finding(line=1, name=name, kind="missing-argument")
    source = "init_device_mesh(backend_override={})  # audit: ignore[{}] not called before 2.9\n"
    for written in (name, "init_device_mesh(backend_override)"):
        assert apply_ignores(source.replace("[{}]", f"[{written}]"), [found], FILE).findings == ()
    assert apply_ignores(source.replace("[{}]", "[backend_override)]"), [found], FILE).findings == (found,)


@pytest.mark.parametrize("comment", ["# noqa: F401 # audit: ignore[BlockMask] why", "#audit:ignore[BlockMask] why"])
def test_other_comments_may_be_on_the_line(comment: str) -> None:
    """The comment is found behind others, and without spaces."""
    assert apply_ignores(f"import torch  {comment}\n", [finding(line=1)], FILE).findings == ()


def test_another_name_or_another_line_is_not_ignored() -> None:
    """A comment leaves out what it names, on its own line only; one that leaves out nothing is noted."""
    source = "a = 1  # audit: ignore[BlockMask] why\nb = 2  # audit: ignore[Other] why\nc = 3\n"
    findings = [finding(line=2), finding(line=3)]
    ignored = apply_ignores(source, findings, FILE)
    assert ignored.findings == tuple(findings)
    assert [(note.file, note.line, note.is_error) for note in ignored.notes] == [(FILE, 1, False), (FILE, 2, False)]
    assert "called Other" in ignored.notes[1].text


STATEMENT = """\
import os
from torch.distributed import (  # audit: ignore[BlockMask] why
    # the masks
    BlockMask,

    OtherMask,
)
BlockMask
"""


def test_the_first_line_of_a_statement_is_for_all_of_its_lines() -> None:
    """On the first line of a statement of several lines it is for all of them, and not for the next statement."""
    left = apply_ignores(STATEMENT, [finding(line=line) for line in range(1, 9)], FILE).findings
    assert [one.line for one in left] == [1, 8]
    inside = STATEMENT.replace("  # audit: ignore[BlockMask] why", "").replace("k,", "k,  # audit: ignore[BlockMask] w")
    left = apply_ignores(inside, [finding(line=line) for line in range(1, 9)], FILE).findings
    assert [one.line for one in left] == [1, 2, 3, 5, 7, 8]


def test_a_line_of_its_own_is_not_for_the_next_statement() -> None:
    """A comment above a statement leaves nothing out of it, and is noted."""
    found = finding(line=2)
    ignored = apply_ignores("# audit: ignore[BlockMask] why\nBlockMask\n", [found], FILE)
    assert ignored.findings == (found,)
    assert [note.line for note in ignored.notes] == [1]


BLOCKS = """\
def load(  # audit: ignore[BlockMask] why
    mask=BlockMask,
):
    return BlockMask


if BlockMask:  # audit: ignore[BlockMask] why

    BlockMask(
        '''
        BlockMask''')
"""


def test_the_head_of_a_block_is_a_statement_of_its_own() -> None:
    """A comment at a `def` or an `if` is for its head, and not for the lines in the block."""
    left = apply_ignores(BLOCKS, [finding(line=line) for line in (1, 2, 3, 4, 7, 9, 11)], FILE).findings
    assert [one.line for one in left] == [4, 9, 11]


@pytest.mark.parametrize(
    ("comment", "missing"),
    [
        ("# audit: ignore", "names nothing"),
        ("# audit: ignore BlockMask", "names nothing"),
        ("# audit: ignore[] why", "names nothing"),
        ("# audit: ignore[BlockMask]", "gives no reason"),
        ("# audit: ignore[BlockMask]  ", "gives no reason"),
    ],
)
def test_a_comment_needs_a_name_and_a_reason(comment: str, missing: str) -> None:
    """Without one of them it ignores nothing, and the note is an error that says how to write it."""
    found = finding(line=2)
    ignored = apply_ignores(f"\nimport torch  {comment}\n", [found], FILE)
    assert ignored.findings == (found,)
    (note,) = ignored.notes
    assert (note.file, note.line, note.is_error) == (FILE, 2, True)
    assert missing in note.text
    assert "write # audit: ignore[NAME] REASON" in note.text


@pytest.mark.parametrize(
    "source",
    [
        "'# audit: ignore[BlockMask] why'\n",
        'f"{1}# audit: ignore[BlockMask] why"\n',
        "'''\n# audit: ignore[BlockMask] why\n'''\n",
        "import torch  # audit: ignored[BlockMask] why\n",
    ],
)
def test_only_comments_count(source: str) -> None:
    """The same text in a string, and a longer word, ignore nothing and get no note."""
    findings = [finding(line=line) for line in (1, 2)]
    ignored = apply_ignores(source, findings, FILE)
    assert (ignored.findings, ignored.notes) == (tuple(findings), ())


def test_a_text_that_is_no_python_loses_no_finding() -> None:
    """Where comments cannot be read, nothing is ignored, and the note is an error."""
    found = finding(line=1)
    ignored = apply_ignores("x = (  # audit: ignore[BlockMask] why\n", [found], FILE)
    assert ignored.findings == (found,)
    assert [note.is_error for note in ignored.notes] == [True]
