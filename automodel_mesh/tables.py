"""Tables as text, Markdown, HTML, and with rich on terminals: the same rows for each."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from automodel_mesh.terminal import rich_module, write

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Table", "as_html", "as_markdown", "as_text", "show"]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: a line above it.
        columns: the headings.
        rows: the cells, as many in each row as there are columns.
        numbers: the columns with numbers, which are aligned at the right.
        styles: on terminals, the style of rich for each cell with this text, such as `{"fails": "bold red"}`.
        is_dense: whether a terminal shows it without lines between the columns, because there are many. Tables whose
            words do not fit with lines are shown so too, and the others beside them.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    styles: Mapping[str, str] = field(default_factory=dict[str, str])
    is_dense: bool = False


def as_text(table: Table) -> str:
    """Return a table as lines of plain text: its title, its headings, and a line for each row."""
    widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    lines = [table.title]
    for row in (table.columns, *table.rows):
        cells = zip(table.columns, row, widths, strict=True)
        padded = (cell.rjust(width) if name in table.numbers else cell.ljust(width) for name, cell, width in cells)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """Return a table in Markdown, below its title."""
    rules = tuple("--:" if name in table.numbers else "---" for name in table.columns)
    rows = (_escaped(table.columns), rules, *map(_escaped, table.rows))
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)])


def as_html(table: Table) -> str:
    """Return a table in HTML, with its title as the caption."""
    align = {name: ' style="text-align:right"' if name in table.numbers else "" for name in table.columns}
    head = "".join(f"<th{align[name]}>{html.escape(name)}</th>" for name in table.columns)
    rows = (zip(table.columns, row, strict=True) for row in table.rows)
    body = "".join(
        f"<tr>{''.join(f'<td{align[name]}>{html.escape(cell)}</td>' for name, cell in row)}</tr>" for row in rows
    )
    caption = html.escape(table.title)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show(parts: Iterable[str | Table], *, markdown: bool = False) -> None:
    """Write lines and tables to stdout, with an empty line between.

    Args:
        parts: a string for a paragraph, or a table.
        markdown: whether to write Markdown. By default a terminal gets the tables of rich, if it is installed, and
            everything else plain text.
    """
    console = rich_module("console") if sys.stdout.isatty() and not markdown else None
    if console is not None:
        _show_with_rich(console.Console(highlight=False), list(parts))
        return
    table_text = as_markdown if markdown else as_text
    written = (part if isinstance(part, str) else table_text(part) for part in parts)
    write("\n\n".join(written))


def _show_with_rich(console: Console, parts: Sequence[str | Table]) -> None:
    from rich.table import Table as RichTable  # noqa: PLC0415 - an extra, and used on terminals only
    from rich.text import Text  # noqa: PLC0415

    tables = [part for part in parts if isinstance(part, Table)]
    framed = all(not table.is_dense and _widths(table, console.width, framed=True) for table in tables)
    look: dict[str, Any] = {} if framed else {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0)}
    for number, part in enumerate(parts):
        if number:
            console.print()
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
            continue
        widths = _widths(part, console.width, framed=framed)
        table = RichTable(title=Text(part.title, style="bold"), title_justify="left", **look)
        for index, name in enumerate(part.columns):
            table.add_column(
                name,
                justify="right" if name in part.numbers else "left",
                overflow="fold",
                no_wrap=not index,
                width=widths[index] if widths else None,
            )
        for row in part.rows:
            table.add_row(*(Text(cell, style=part.styles.get(cell, "")) for cell in row))
        console.print(table)


def _widths(table: Table, width: int, *, framed: bool) -> list[int] | None:
    """Say how wide each column is: as its longest word at least, and more while there is room and it has more.

    rich takes room from the widest columns alone, and so breaks words of one while others have room to spare.

    Args:
        table: the table.
        width: that of the terminal.
        framed: whether there are lines between the columns.

    Returns:
        The widths; `None` if the longest words do not fit beside each other.
    """
    from rich.cells import cell_len  # noqa: PLC0415

    columns = list(zip(table.columns, *table.rows, strict=True))
    available = width - (3 * len(columns) + 1 if framed else 2 * (len(columns) - 1))
    widths = [max(cell_len(word) for cell in cells for word in cell.split() or [""]) for cells in columns]
    wanted = [max(cell_len(line) for cell in cells for line in cell.splitlines() or [""]) for cells in columns]
    if sum(widths) > available:
        return None
    while (spare := available - sum(widths)) and widths != wanted:
        for index in [each for each in range(len(widths)) if widths[each] < wanted[each]][:spare]:
            widths[index] += 1
    return widths


def _escaped(cells: Sequence[str]) -> tuple[str, ...]:
    """Escape what Markdown would read as the end of a cell, or as emphasis around the name of an axis."""
    return tuple(cell.replace("|", "\\|").replace("_", "\\_") for cell in cells)
