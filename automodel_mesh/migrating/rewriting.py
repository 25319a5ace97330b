"""`rewrite`: Python code with private calls of torch's meshes in, code that uses this library out; needs libcst."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import libcst as cst

from automodel_mesh.migrating import imports, nemo_lines
from automodel_mesh.migrating.equivalents import CLASS_NAME, equivalents
from automodel_mesh.migrating.notes import Change, Left
from automodel_mesh.migrating.transformer import Rewriter

__all__ = ["Change", "Left", "Rewriting", "rewrite"]


@dataclass(frozen=True)
class Rewriting:
    """What `rewrite` returns.

    Attributes:
        source: the code as it is now; the same as before if there are no changes.
        changes: what was rewritten, in the order of the lines.
        left: what was not, in the order of the lines.
    """

    source: str
    changes: tuple[Change, ...]
    left: tuple[Left, ...]


def rewrite(source: str) -> Rewriting:
    """Rewrite calls of torch's meshes that have a sure equivalent in `automodel_mesh.compat`, and NeMo's import lines.

    Formatting and comments stay. A second call with the result changes nothing. Neither torch nor the code is run.

    Args:
        source: the code of a Python module.

    Returns:
        The code as it is now, what was changed, and what was left.

    Raises:
        SyntaxError: `source` is not Python code; it has the line.
    """
    if not _telling().search(source):
        return Rewriting(source, (), ())
    try:
        wrapper = cst.MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    except cst.ParserSyntaxError as error:
        raise SyntaxError(error.message, (None, error.raw_line, error.raw_column, error.context)) from error
    rewriter = Rewriter(wrapper)
    module = wrapper.module.visit(rewriter)
    changes, left = rewriter.notes.changes, rewriter.notes.left
    if not changes:
        return Rewriting(source, (), left)
    if rewriter.uses_compat:
        module = module.with_changes(body=imports.with_imports(module.body, rewriter.needed(None)))
        module = imports.without_unused(wrapper, cst.parse_module(module.code))
    return Rewriting(module.code, changes, left)


@cache
def _telling() -> re.Pattern[str]:
    """Return what finds the code that there may be something to do in."""
    words = {*equivalents().private, *equivalents().sources, CLASS_NAME, nemo_lines.PACKAGE, nemo_lines.OURS}
    return re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")
