"""What the subcommands share for output on terminals, with and without rich."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import ModuleType

ERASE_LINE: Final = "\r\x1b[2K"
"""Empties the line of the cursor, and moves the cursor to its beginning."""


def rich_module(name: str) -> ModuleType | None:
    """Import a module of rich, which is an extra.

    Args:
        name: its name without `rich.`, such as `"console"`.

    Returns:
        The module; `None` if rich is not installed.
    """
    try:
        return import_module(f"rich.{name}")
    except ImportError:
        return None
