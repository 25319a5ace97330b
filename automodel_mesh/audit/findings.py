"""What an audit finds: uses of torch that some releases do not have, and the verdict for each file and release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Verdict: TypeAlias = Literal["fits", "cannot tell", "breaks"]
VERDICTS: Final[tuple[Verdict, ...]] = ("fits", "cannot tell", "breaks")
"""The least serious first."""

Kind: TypeAlias = Literal["missing-name", "missing-argument", "changed-behaviour"]
When: TypeAlias = Literal["import", "call"]


@dataclass(frozen=True)
class Finding:
    """A use of torch that does not do the same on all releases of an audit.

    Attributes:
        file: the path of the file, as a path below the folder that was given, or as the file was given.
        line: the line, from 1.
        column: the column, from 1, in characters.
        kind: `missing-name`, `missing-argument` or `changed-behaviour`.
        name: what is used, as a dotted path: `torch.distributed.tensor.DTensor`; for an argument
            `torch.distributed.device_mesh.init_device_mesh(backend_override)`.
        breaks: the releases on which this raises an error, oldest first.
        cannot_tell: the releases on which it may, or gives another result.
        guarded: the releases that do not have it, but where the code does not get here, or handles the error.
        when: `import` if this runs when the file is imported, `call` if it runs when a function is called.
        message: what is missing or different where, in a sentence.
        guard: what protects it on the guarded releases, such as `except ImportError, line 12`; if there are none, the
            check that nothing can be told of; empty if there is neither.
        instead: what to use on all releases; empty if nothing is known.
    """

    file: str
    line: int
    column: int
    kind: Kind
    name: str
    breaks: tuple[str, ...]
    cannot_tell: tuple[str, ...]
    guarded: tuple[str, ...]
    when: When
    message: str
    guard: str = ""
    instead: str = ""

    @property
    def is_harmless(self) -> bool:
        """Whether the code takes care of it on all releases."""
        return not self.breaks and not self.cannot_tell

    def verdict(self, release: str) -> Verdict:
        """Return the verdict of this use alone on a release."""
        if release in self.breaks:
            return "breaks"
        return "cannot tell" if release in self.cannot_tell else "fits"


@dataclass(frozen=True)
class Unread:
    """A file that could not be read.

    Attributes:
        file: its path.
        why: the reason, in a sentence.
    """

    file: str
    why: str


@dataclass(frozen=True)
class Note:
    """What is to be said of a comment `# audit: ignore[NAME] reason`.

    Attributes:
        file: the path of its file.
        line: its line, from 1.
        text: what is wrong, in a sentence.
        is_error: whether the comment is not written as it must be, and so ignores nothing.
    """

    file: str
    line: int
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        releases: the torch releases, oldest first.
        files: the paths of all files that were read and use torch, sorted.
        findings: in the order of files and lines, with those that the code takes care of.
        unread: the files that could not be read, which makes their verdict `cannot tell`.
        other_files: how many files were read that do not use torch.
        notes: what is to be said of comments that ignore findings.
    """

    releases: tuple[str, ...]
    files: tuple[str, ...]
    findings: tuple[Finding, ...]
    unread: tuple[Unread, ...] = ()
    other_files: int = 0
    notes: tuple[Note, ...] = ()

    def verdict(self, release: str, file: str | None = None) -> Verdict:
        """Return the most serious verdict on a release, of one file or of all."""
        found: Iterable[Verdict] = (one.verdict(release) for one in self.findings if file is None or one.file == file)
        unread = any(file is None or one.file == file for one in self.unread)
        worst = max((VERDICTS.index(one) for one in found), default=0)
        return VERDICTS[max(worst, int(unread))]
