"""Configuration of Sphinx, and the directives that read ci_matrix/torch.toml, so that no page repeats it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib
from packaging.version import Version
from sphinx.util.docutils import SphinxDirective

from automodel_mesh.compat.support import era_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from docutils import nodes
    from sphinx.application import Sphinx

project = "automodel-mesh"
author = "The automodel-mesh authors"
project_copyright = author
try:
    release = version = metadata.version("automodel-mesh")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    release = version = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "benchmarks/results.md"]  # the latter is a part of benchmarks/index.md
html_theme = "furo"
html_title = "automodel-mesh"

myst_heading_anchors = 3

# Docstrings are Google style, in Markdown's spirit: a single backtick means code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Torch releases", "notes_style"), ("Source", "notes_style")]
# __all__ decides, and its order: what a page documents is what the module offers.
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    "BackendChoice": "BackendChoice",
    "Layout": "Layout",
    "DistributedStrategyConfig": "DistributedStrategyConfig",
}

MATRIX = Path(__file__).parents[1] / "ci_matrix" / "torch.toml"


def labelled_rows() -> list[tuple[str, dict[str, Any]]]:
    """Read the matrix; the newest patch of a release has the short name, as in noxfile.py."""
    rows = sorted(tomllib.loads(MATRIX.read_text())["rows"], key=lambda row: Version(row["torch"]))
    short = {row["torch"]: ".".join(row["torch"].split(".")[:2]) for row in rows}
    newest = {short[row["torch"]]: row["torch"] for row in rows}
    return [(short[row["torch"]] if newest[short[row["torch"]]] == row["torch"] else row["torch"], row) for row in rows]


def code(words: list[str]) -> str:
    """Write words as code, with commas between."""
    return ", ".join(f"`{word}`" for word in words)


def release_table() -> list[str]:
    """Show what the tests sessions run: one line for each row of the matrix."""
    lines = ["| torch | tested on Python | its wheel wants | backends | era module | session |", "|---" * 6 + "|"]
    for label, row in labelled_rows():
        lines.append(
            f"| {row['torch']} | {row['python']} | `{row['requires_python']}` | {code(row['backends'])} "
            f"| `{era_name(Version(row['torch']))}` | `nox -s tests-{label}` |"
        )
    return lines


def cuda_table() -> list[str]:
    """Show the cuda sessions: one line for each row of the matrix."""
    lines = ["| torch | Python | backends | session |", "|---" * 4 + "|"]
    for label, row in labelled_rows():
        lines.append(f"| {row['torch']} | {row['python']} | {code(row['cuda_backends'])} | `nox -s cuda-{label}` |")
    return lines


def failure_table() -> list[str]:
    """Show the failures that the matrix expects, each with its reason."""
    found = [
        f"| {row['torch']} | `{test}` | {reason} |"
        for _, row in labelled_rows()
        for test, reason in row.get("expected_failures", {}).items()
    ]
    return ["| torch | test | reason |", "|---|---|---|", *found] if found else ["None."]


class MatrixTable(SphinxDirective):
    """`{matrix-table} releases`, `cuda` or `expected-failures`: a table made from the matrix at build time."""

    required_arguments = 1
    TABLES: dict[str, Callable[[], list[str]]] = {  # noqa: RUF012 - docutils reads classes, not instances
        "releases": release_table,
        "cuda": cuda_table,
        "expected-failures": failure_table,
    }

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        self.env.note_dependency(str(MATRIX))
        return self.parse_text_to_nodes("\n".join(self.TABLES[self.arguments[0]]()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("matrix-table", MatrixTable)
    return {"parallel_read_safe": True}
