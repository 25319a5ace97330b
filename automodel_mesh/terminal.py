"""What the subcommands share for output on terminals, with and without rich."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import ModuleType

ERASE_LINE: Final = "\r\x1b[2K"
"""Empties the line of the cursor, and moves the cursor to its beginning."""

# The tabulator and the newline stay; the characters from U+061C on change the direction of text, or end a line.
_CONTROLS: Final = (*range(9), *range(11, 32), *range(127, 160), 0x61C, *range(0x200E, 0x2010), *range(0x2028, 0x202F))
_VISIBLE: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in (*_CONTROLS, *range(0x2066, 0x206A))
}


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


def hint_at_rich(use: str) -> None:
    """Say on stderr what to install, where rich would have been used.

    Args:
        use: what it would show, such as `"a table"`.
    """
    sys.stderr.write(f"automodel-mesh: for {use}: pip install 'automodel-mesh[cli]'\n")


def visible(text: str) -> str:
    """Escape the control characters of a text, which a terminal or a browser would act on."""
    return text.translate(_VISIBLE)


def write_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()
