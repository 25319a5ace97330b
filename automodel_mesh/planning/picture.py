"""Draws a plan with matplotlib, an extra: nodes and their ranks, one colour and letter for each group of an axis.

matplotlib is imported when a picture is drawn, so that this module imports without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from automodel_mesh.topology.panels import COLUMNS, KEY, Cell, Panel, drawn_axes, panel

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from automodel_mesh.topology.plans import MeshPlan

__all__ = ["draw", "figure_of"]

_CELL: Final = 0.46  # inches
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
    across = min(plan.ranks_per_node, COLUMNS)
    column_width = max(_LABEL + across + _GAP, 13.0)
    width = column_width * max(1, len(drawn))
    height = _TOP + _KEY + max((sum(map(_height, column)) for _, column in drawn), default=0)
    figure = Figure(figsize=(width * _CELL, height * _CELL))
    FigureCanvasAgg(figure)
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set_xlim(0, width)
    canvas.set_ylim(height, 0)
    canvas.axis("off")
    canvas.text(0.3, 0.55, plan.heading, fontsize=13, weight="bold", va="center")
    for index, (name, column) in enumerate(drawn):
        left, top = 0.3 + index * column_width, _TOP
        canvas.text(left, top - 0.35, name, fontsize=11, color="#555555", va="center")
        for each in column:
            _draw_panel(canvas, each, left, top, across)
            top += _height(each)
    canvas.text(0.3, height - 0.7, KEY.replace(". ", ".\n"), fontsize=9, color="#555555", va="center")
    return figure


def _height(each: Panel) -> float:
    return _TITLE + sum(lines + 0.25 for lines in each.lines) + (_NOTE if each.note else 0) + _GAP / 2


def _draw_panel(canvas: Axes, each: Panel, left: float, top: float, across: int) -> None:
    from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415

    canvas.text(left, top + _TITLE / 2, each.title, fontsize=10.5, weight="bold", va="center")
    top += _TITLE
    for row, lines in zip(each.nodes, each.lines, strict=True):
        frame = (left + _LABEL - 0.06, top - 0.06)
        style = "round,pad=0,rounding_size=0.12"
        canvas.add_patch(
            FancyBboxPatch(
                frame, across + 0.12, lines + 0.12, boxstyle=style, facecolor="none", edgecolor="#777777", lw=0.9
            )
        )
        canvas.text(left + _LABEL - 0.25, top + lines / 2, f"node {row.node:,}", fontsize=8.5, va="center", ha="right")
        for place, cell in enumerate(row.cells):
            _draw_cell(canvas, cell, left + _LABEL + place % COLUMNS, top + place // COLUMNS)
        top += lines + 0.25
    if each.note:
        canvas.text(left + _LABEL, top + _NOTE / 2 - 0.1, each.note, fontsize=8.5, color="#555555", va="center")


def _draw_cell(canvas: Axes, cell: Cell, left: float, top: float) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    colour, ink = cell.colours
    canvas.add_patch(Rectangle((left + 0.04, top + 0.04), 0.92, 0.92, facecolor=colour, edgecolor="none"))
    canvas.text(left + 0.5, top + 0.34, cell.letters, fontsize=9, weight="bold", color=ink, ha="center", va="center")
    size = 7 if cell.rank < 10_000 else 5
    canvas.text(left + 0.5, top + 0.73, str(cell.rank), fontsize=size, color=ink, ha="center", va="center")
