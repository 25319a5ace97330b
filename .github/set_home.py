"""Writes where the project lives into a checkout that is about to be built: `[project.urls]`, and the README's links.

    python .github/set_home.py https://github.com/OWNER/NAME v0.1.0

A page of the package index can show absolute links only. The checkout itself names no home, so that a fork, or a
project that moves, publishes links to itself: the release workflow runs this with its own repository and tag.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?![a-z]+:|#)([^)\s]+)(\))")
"""A link or a picture whose target is a path; the group after the text is that path."""


def absolute(text: str, home: str, tag: str) -> str:
    """Make the links of a Markdown text absolute.

    Args:
        text: the text, with links relative to the root of the repository.
        home: the address of the repository.
        tag: the tag whose files they name.
    """
    return LINK.sub(
        lambda link: f"{link[1]}{link[2]}{home}/{'raw' if link[1] else 'blob'}/{tag}/{link[3]}{link[4]}", text
    )


def urls(home: str) -> str:
    """Write the table `[project.urls]`."""
    pages = {
        "Repository": home,
        "Documentation": f"{home}/tree/HEAD/docs",
        "Changelog": f"{home}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
    return "".join(["[project.urls]\n", *(f'{name} = "{url}"\n' for name, url in pages.items()), "\n"])


def main(home: str, tag: str) -> None:
    """Write both."""
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), home, tag), encoding="utf-8")
    text = project.read_text(encoding="utf-8")
    if "[project.urls]" in text:
        sys.exit("set_home.py: pyproject.toml has [project.urls] already; run this in a fresh checkout")
    project.write_text(text.replace("[project.scripts]\n", f"{urls(home)}[project.scripts]\n"), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
