"""What the subcommands share for output on terminals, with and without rich."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from automodel_mesh.exit_status import UNUSABLE

if TYPE_CHECKING:
    from types import ModuleType

ERASE_LINE: Final = "\r\x1b[2K"
"""Empties the line of the cursor, and moves the cursor to its beginning."""

# The tabulator and the newline stay; the characters from U+061C on change the direction of text, or end a line. Python
# reads bytes of file names that are no text as surrogates, which it cannot write.
_CONTROLS: Final = (*range(9), *range(11, 32), *range(127, 160), 0x61C, *range(0x200E, 0x2010), *range(0x2028, 0x202F))
_SURROGATES: Final = range(0xD800, 0xE000)
_VISIBLE: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*_CONTROLS, *range(0x2066, 0x206A), *_SURROGATES)
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
    tell(f"for {use}: pip install 'automodel-mesh[cli]'")


def tell(text: str) -> None:
    """Write a text and a newline to stderr, with the name of the command before it; control characters are escaped."""
    sys.stderr.write(f"automodel-mesh: {visible(text)}\n")


def refuse(reason: str) -> int:
    """Say on stderr why a command cannot do its work, and return the exit status of that, `UNUSABLE`."""
    tell(reason)
    return UNUSABLE


def visible(text: str) -> str:
    """Escape the control characters of a text, which a terminal or a browser would act on."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Put a text on one line, each white space a single space, and escape its control characters."""
    return visible(" ".join(text.split()))


def terminal_width() -> int:
    """Return how many columns the terminal has."""
    return shutil.get_terminal_size().columns


def write(text: str) -> None:
    """Write a text and a newline to stdout; characters that its encoding does not have are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def write_json(document: dict[str, Any]) -> None:
    """Write a JSON document to stdout."""
    write(json.dumps(document, indent=2))
