"""Draws a plan with matplotlib, an extra: nodes and their ranks, one colour and letter for each group of an axis.

matplotlib is imported when a picture is drawn, so that this module imports without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from string import ascii_uppercase
from typing import TYPE_CHECKING, Final

from automodel_mesh.planning.panels import Panel, drawn_axes, panel
from automodel_mesh.topology.plan_tables import heading

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from automodel_mesh.topology.plans import MeshPlan

__all__ = ["draw", "figure_of"]

# Okabe and Ito's palette, which people with any kind of colour blindness can tell apart; the letters say the same.
COLOURS: Final = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#999999")
_DARK: Final = {"#0072B2"}

_CELL: Final = 0.46  # inches
_COLUMNS: Final = 16  # ranks beside each other; a larger node has several lines
_LABEL: Final = 1.9  # cells left of a node, for its name
_TITLE: Final = 1.1
_NOTE: Final = 0.7
_GAP: Final = 0.8
_TOP: Final = 1.7
_KEY: Final = 1.4


def draw(plan: MeshPlan, path: Path, axes: Sequence[str] = ()) -> None:
    """Draw a plan into a file.

    Args:
        plan: the plan.
        path: the file; its suffix says the format, `.svg` or `.png`.
        axes: the axes to draw; see `drawn_axes`.

    Raises:
        KeyError: There is no such axis.
        OSError: The file cannot be written.
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl  # noqa: PLC0415

    # The same plan gives the same file, and its text stays text.
    with mpl.rc_context({"svg.hashsalt": "automodel-mesh", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        figure_of(plan, axes).savefig(path, dpi=160, metadata=metadata)


def figure_of(plan: MeshPlan, axes: Sequence[str] = ()) -> Figure:
    """Return the drawing: the axes of the root mesh in a column, those of the expert mesh beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    panels = [panel(plan, axis) for axis in drawn_axes(plan, axes)]
    columns = [[each for each in panels if each.in_expert_mesh == experts] for experts in (False, True)]
    drawn = [(name, column) for name, column in zip(("root mesh", "expert mesh"), columns, strict=True) if column]
    across = min(plan.ranks_per_node, _COLUMNS)
    column_width = max(_LABEL + across + _GAP, 13.0)
    width = column_width * max(1, len(drawn))
    height = _TOP + _KEY + max((sum(map(_height, column)) for _, column in drawn), default=0)
    figure = Figure(figsize=(width * _CELL, height * _CELL))
    FigureCanvasAgg(figure)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_xlim(0, width)
    canvas.set_ylim(height, 0)
    canvas.axis("off")
    canvas.text(0.3, 0.55, heading(plan), fontsize=13, weight="bold", va="center")
    for index, (name, column) in enumerate(drawn):
        left, top = 0.3 + index * column_width, _TOP
        canvas.text(left, top - 0.35, name, fontsize=11, color="#555555", va="center")
        for each in column:
            _draw_panel(canvas, each, left, top, across)
            top += _height(each)
    key = "A square is a rank, a frame is a node.\nSquares of a panel with the same letter and colour are one group."
    canvas.text(0.3, height - 0.7, key, fontsize=9, color="#555555", va="center")
    return figure


def _lines(each: Panel) -> list[int]:
    """Return how many lines of squares each node of a panel needs."""
    return [max(1, ceil(len(row.cells) / _COLUMNS)) for row in each.nodes]


def _height(each: Panel) -> float:
    return _TITLE + sum(lines + 0.25 for lines in _lines(each)) + (_NOTE if each.note else 0) + _GAP / 2


def _draw_panel(canvas: Axes, each: Panel, left: float, top: float, across: int) -> None:
    from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415

    canvas.text(left, top + _TITLE / 2, each.title, fontsize=10.5, weight="bold", va="center")
    top += _TITLE
    for row, lines in zip(each.nodes, _lines(each), strict=True):
        frame = (left + _LABEL - 0.06, top - 0.06)
        style = "round,pad=0,rounding_size=0.12"
        canvas.add_patch(
            FancyBboxPatch(
                frame, across + 0.12, lines + 0.12, boxstyle=style, facecolor="none", edgecolor="#777777", lw=0.9
            )
        )
        canvas.text(left + _LABEL - 0.25, top + lines / 2, f"node {row.node:,}", fontsize=8.5, va="center", ha="right")
        for place, cell in enumerate(row.cells):
            _draw_cell(canvas, cell.rank, cell.group, left + _LABEL + place % _COLUMNS, top + place // _COLUMNS)
        top += lines + 0.25
    if each.note:
        canvas.text(left + _LABEL, top + _NOTE / 2 - 0.1, each.note, fontsize=8.5, color="#555555", va="center")


def _draw_cell(canvas: Axes, rank: int, group: int, left: float, top: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    colour = COLOURS[group % len(COLOURS)]
    ink = "white" if colour in _DARK else "black"
    canvas.add_patch(Rectangle((left + 0.04, top + 0.04), 0.92, 0.92, facecolor=colour, edgecolor="none"))
    canvas.text(left + 0.5, top + 0.34, letters(group), fontsize=9, weight="bold", color=ink, ha="center", va="center")
    size = 7 if rank < 10_000 else 5
    canvas.text(left + 0.5, top + 0.73, str(rank), fontsize=size, color=ink, ha="center", va="center")


def letters(number: int) -> str:
    """Return A to Z for 0 to 25, then AA, AB and so on."""
    before, last = divmod(number, len(ascii_uppercase))
    return (letters(before - 1) if before else "") + ascii_uppercase[last]
