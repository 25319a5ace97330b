"""What the subcommands share of writing to terminals, which rich makes readable where it is installed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import ModuleType

ERASE_LINE: Final = "\r\x1b[2K"
"""Puts the cursor at the beginning of its line, which is empty then."""


def rich_module(name: str) -> ModuleType | None:
    """Import a module of rich; `None` where rich, an extra, is not installed.

    Args:
        name: Its name without `rich.`, such as `"console"`.
    """
    try:
        return import_module(f"rich.{name}")
    except ImportError:
        return None
