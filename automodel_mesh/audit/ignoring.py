"""Leaves out the findings that comments `# audit: ignore[NAME] reason` in the code name."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from automodel_mesh.audit.findings import Finding, Note

_COMMENT: Final = re.compile(r"#\s*audit:\s*ignore\b\s*(?:\[(?P<names>[^\]]*)\])?(?P<reason>.*)")
_WRITE: Final = "write # audit: ignore[NAME] REASON, with a name or a kind from the report"
_BETWEEN_STATEMENTS: Final = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}


@dataclass(frozen=True)
class Ignored:
    """What is left after comments have been followed.

    Attributes:
        findings: those that no comment names.
        notes: on comments without a name or a reason, which are errors, and on comments that ignore nothing.
    """

    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class _Comment:
    """A comment that ignores findings of its line, and of the statement that begins there."""

    line: int
    names: tuple[str, ...]
    reason: str

    def names_one(self, finding: Finding) -> bool:
        return not set(self.names).isdisjoint({finding.name, _last_part(finding.name), finding.kind})


def apply_ignores(source: str, findings: Sequence[Finding], file: str) -> Ignored:
    """Leave out the findings that a comment names.

    A comment is for its line, and on the first line of a statement for all lines of it; the head of a `def`, `if` or
    `with` is a statement of its own. It names a finding by its dotted path, the last part of that, or its kind.

    Args:
        source: the text of a file.
        findings: what was found in it.
        file: the path of the file, for the notes.

    Returns:
        The other findings, and notes on comments.
    """
    if "audit:" not in source:
        return Ignored(tuple(findings), ())
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError) as error:
        return Ignored(tuple(findings), (Note(file, 1, f"comments cannot be read: {error}", is_error=True),))
    comments = list(_comments(tokens))
    firsts = _first_lines(tokens)
    left: list[Finding] = []
    used: set[_Comment] = set()
    for finding in findings:
        lines = {finding.line, firsts.get(finding.line, finding.line)}
        naming = [one for one in comments if one.line in lines and one.reason and one.names_one(finding)]
        used.update(naming)
        if not naming:
            left.append(finding)
    return Ignored(tuple(left), tuple(_notes([one for one in comments if one not in used], file)))


def _comments(tokens: Sequence[tokenize.TokenInfo]) -> Iterator[_Comment]:
    for token in tokens:
        if token.type == tokenize.COMMENT and (match := _COMMENT.search(token.string)):
            names = tuple(filter(None, (name.strip() for name in (match["names"] or "").split(","))))
            yield _Comment(token.start[0], names, match["reason"].strip())


def _first_lines(tokens: Sequence[tokenize.TokenInfo]) -> dict[int, int]:
    """Return the first line of the statement, for each line of those that have several."""
    firsts: dict[int, int] = {}
    first = 0
    for token in tokens:
        if token.type == tokenize.NEWLINE:
            firsts.update(dict.fromkeys(range(first + 1, token.start[0] + 1), first))
            first = 0
        elif not first and token.type not in _BETWEEN_STATEMENTS:
            first = token.start[0]
    return firsts


def _notes(unused: Sequence[_Comment], file: str) -> Iterator[Note]:
    for comment in unused:
        if not comment.names:
            yield Note(file, comment.line, f"this comment names nothing to ignore: {_WRITE}", is_error=True)
        elif not comment.reason:
            yield Note(file, comment.line, f"this comment gives no reason: {_WRITE}", is_error=True)
        else:
            yield Note(file, comment.line, f"nothing to ignore here is called {' or '.join(comment.names)}: delete it")


def _last_part(name: str) -> str:
    """Return the last part of a dotted path, with the argument in brackets if it has one."""
    path, bracket, argument = name.partition("(")
    return path.rpartition(".")[2] + bracket + argument
