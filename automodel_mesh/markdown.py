"""Writes any text into Markdown, so that nothing of it is read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable

from automodel_mesh.terminal import one_line


def code(text: str) -> str:
    """Make a code span of any text; nothing of an empty one."""
    text = one_line(text)
    if not text:
        return ""
    marks = "`" * (longest_run(text) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{padding}{text}{padding}{marks}"


def codes(texts: Iterable[str]) -> str:
    """Make code spans with commas between."""
    return ", ".join(map(code, texts))


def prose(text: str) -> str:
    """Keep code spans as they are, and escape what else is Markdown, HTML, or the mention of a user."""
    parts = re.split(r"((`+)(?!`).*?(?<!`)\2(?!`))", one_line(text))
    # The pattern's two groups follow each piece between: plain, code, its backticks, plain, ...
    plain = [re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", part).replace("@", "@<!-- -->") for part in parts[::3]]
    spans = [*parts[1::3], ""]
    return "".join(piece for pair in zip(plain, spans, strict=True) for piece in pair)


def longest_run(text: str) -> int:
    """Count the backticks of the longest run of them."""
    return max(map(len, re.findall("`+", text)), default=0)
