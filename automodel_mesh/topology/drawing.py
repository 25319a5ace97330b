"""The drawing of a mesh in a notebook: SVG inside HTML, of the same panels as `automodel-mesh plan --picture`."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from automodel_mesh.topology.panels import COLUMNS, KEY, Cell, NodeRow, Panel, drawn_axes, panel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from automodel_mesh.topology.description import MeshDescription

__all__ = ["drawing"]

_CELL: Final = 26  # pixels
_LABEL: Final = 60  # pixels left of a node, for its name
_GAP: Final = 8


def drawing(mesh: MeshDescription, axes: Sequence[str] = ()) -> str:
    """Draw, in HTML, which ranks of which nodes are one group, for the axes of `drawn_axes`.

    Empty if all axes have one rank.
    """
    panels = [panel(mesh, axis) for axis in drawn_axes(mesh, axes)]
    if not panels:
        return ""
    figures = "".join(f'<figure style="margin:0 1.5em 1em 0">{_figure(each)}</figure>' for each in panels)
    return f'<div style="display:flex;flex-wrap:wrap">{figures}</div><p>{KEY}</p>'


def _figure(each: Panel) -> str:
    across = min(COLUMNS, max(len(row.cells) for row in each.nodes))
    parts: list[str] = []
    top = _GAP // 2
    for row, lines in zip(each.nodes, each.lines, strict=True):
        parts.extend(_node(row, across, lines, top))
        top += lines * _CELL + _GAP
    width = _LABEL + across * _CELL + _GAP
    picture = f'<svg width="{width}" height="{top}" font-family="sans-serif">{"".join(parts)}</svg>'
    title = f"<b>{escape(each.title)}</b>{' (expert mesh)' if each.in_expert_mesh else ''}"
    note = f"<br><small>{escape(each.note)}</small>" if each.note else ""
    return f"<figcaption>{title}{note}</figcaption>{picture}"


def _node(row: NodeRow, across: int, lines: int, top: int) -> Iterator[str]:
    frame = f'x="{_LABEL - 2}" y="{top - 2}" width="{across * _CELL + 4}" height="{lines * _CELL + 4}"'
    yield f'<rect {frame} rx="4" fill="none" stroke="#777777"/>'
    label = f'x="{_LABEL - 8}" y="{top + lines * _CELL / 2 + 4:g}" text-anchor="end" font-size="12" fill="currentColor"'
    yield f"<text {label}>node {row.node:,}</text>"
    for place, cell in enumerate(row.cells):
        yield _square(cell, _LABEL + place % COLUMNS * _CELL, top + place // COLUMNS * _CELL)


def _square(cell: Cell, left: int, top: int) -> str:
    colour, ink = cell.colours
    middle = left + _CELL // 2
    square = f'<rect x="{left + 1}" y="{top + 1}" width="{_CELL - 2}" height="{_CELL - 2}" fill="{colour}"/>'
    texts = f'text-anchor="middle" fill="{ink}"'
    letter = f'<text x="{middle}" y="{top + 12}" {texts} font-size="11" font-weight="bold">{cell.letters}</text>'
    return f'{square}{letter}<text x="{middle}" y="{top + 22}" {texts} font-size="9">{cell.rank}</text>'
