"""What is changed in a module and what is left, while it is rewritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import libcst as cst
from libcst.metadata import PositionProvider

from automodel_mesh.migrating.guards import code_of, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Change:
    """A piece of code that was rewritten.

    Attributes:
        line: its line, from 1, in the code as it was.
        before: the code as it was, on one line.
        after: the code as it is now.
    """

    line: int
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """A piece of code that was left as it is, since no equivalent is sure.

    Attributes:
        line: its line, from 1, in the code as it was.
        code: the code, or the first line of it.
        why: the reason, and what to do.
    """

    line: int
    code: str
    why: str


class Notes:
    """Collects the changes of a module, and what is left.

    Args:
        wrapper: the module, as it was.
    """

    def __init__(self, wrapper: cst.MetadataWrapper) -> None:
        self._wrapper = wrapper
        self._changes: list[tuple[cst.CSTNode, Change]] = []
        self._left: list[tuple[cst.CSTNode, Left]] = []

    @property
    def changes(self) -> tuple[Change, ...]:
        """What was changed, in the order of the lines."""
        return tuple(sorted((change for _, change in self._changes), key=lambda one: one.line))

    @property
    def left(self) -> tuple[Left, ...]:
        """What was left, in the order of the lines."""
        return tuple(sorted((left for _, left in self._left), key=lambda one: one.line))

    def mark(self) -> tuple[int, int]:
        """Return what to give to `changes_since` and `forget_since` later."""
        return len(self._changes), len(self._left)

    def changes_since(self, mark: tuple[int, int]) -> Sequence[Change]:
        """Return the changes since a mark was taken."""
        return [change for _, change in self._changes[mark[0] :]]

    def forget_since(self, mark: tuple[int, int]) -> None:
        """Forget what was noted since a mark was taken."""
        del self._changes[mark[0] :], self._left[mark[1] :]

    def change(self, node: cst.CSTNode, changed: Sequence[cst.CSTNode]) -> None:
        """Note what has become of a node, in place of changes inside it."""
        inside = set(map(id, _all_nodes(node)))
        self._changes = [one for one in self._changes if id(one[0]) not in inside]
        after = "; ".join(map(_on_one_line, changed))
        self._changes.append((node, Change(self._line(node), _on_one_line(node), after)))

    def leave(self, node: cst.CSTNode, why: str) -> None:
        """Note that a node is left, in place of what is left inside it for the same reason."""
        inside = set(map(id, _all_nodes(node)))
        self._left = [one for one in self._left if id(one[0]) not in inside or one[1].why != why]
        self._left.append((node, Left(self._line(node), first_line(node), why)))

    def forget(self, node: cst.CSTNode) -> None:
        """Forget that a node is left."""
        self._left = [one for one in self._left if one[0] is not node]

    @cached_property
    def _positions(self) -> Mapping[cst.CSTNode, Any]:
        return self._wrapper.resolve(PositionProvider)

    def _line(self, node: cst.CSTNode) -> int:
        line: int = self._positions[node].start.line
        return line


def _all_nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _all_nodes(child)


def _on_one_line(node: cst.CSTNode) -> str:
    bare = node.with_changes(leading_lines=()) if hasattr(node, "leading_lines") else node
    return " ".join(code_of(bare).split())
