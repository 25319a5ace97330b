"""Reads and runs the code blocks of the documentation."""

from __future__ import annotations

import contextlib
import io
import re


def blocks(page: str, language: str) -> list[str]:
    """Return a page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def all_blocks(page: str) -> list[tuple[str, str]]:
    """Return a page's blocks in order, each with its language, but for directives such as `{toctree}`."""
    return re.findall(r"^ *```(?:\{code-block\} )?(\w+)\n(.*?)^ *```$", page, flags=re.DOTALL | re.MULTILINE)


def run(name: str, text: str) -> str:
    """Run a script as `__main__` and return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, name, "exec"), {"__name__": "__main__"})  # noqa: S102 - it is our own
    return printed.getvalue()
