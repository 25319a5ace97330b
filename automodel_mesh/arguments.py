"""Arguments that several subcommands have, and how `--help` shows what is around them."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable

__all__ = ["HelpFormatter", "whole_number"]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills the paragraphs of descriptions and epilogs, and keeps the lines of lists: those that are indented."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = (_filled(paragraph, width - len(indent)) for paragraph in text.split("\n\n"))
        return textwrap.indent("\n\n".join(filled), indent)


def _filled(paragraph: str, width: int) -> str:
    """Fill a paragraph, or the second column of a list; the commands of a list can be copied as long as they are."""
    if "\n " not in paragraph:
        return textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)
    lines: list[str] = []
    for line in paragraph.splitlines():
        first_column = re.match(r" +\S.*? {2,}|  {8,}", line)
        indent = " " * len(first_column[0]) if first_column else ""
        lines += textwrap.wrap(line, width, subsequent_indent=indent) if first_column else [line]
    return "\n".join(lines)


def whole_number(least: int) -> Callable[[str], int]:
    """Return a type for argparse: a whole number of at least so much."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number

    return read
