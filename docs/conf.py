"""Configuration of Sphinx, and the directive that reads the matrix and the ledger, so that no page repeats them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from importlib import metadata
from itertools import groupby
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any
from unittest import mock

import tomllib
from packaging.version import Version
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from automodel_mesh import cli
from automodel_mesh.audit.behaviours import BEHAVIOURS
from automodel_mesh.compat.eras.newest import IMPOSSIBLE, SINCE
from automodel_mesh.compat.eras.support import era_name
from automodel_mesh.topology import plan
from automodel_mesh.topology.drawing import drawing
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.tracking.ledger import load_ledger
from automodel_mesh.tracking.uses import public_callers

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))
from tests import results  # noqa: E402 - found in the checkout, and is not installed
from tests.audit_proof import table as audit_proof  # noqa: E402
from tests.downstream import table as downstream  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from docutils import nodes
    from sphinx.application import Sphinx

    from automodel_mesh.tracking.ledger import Entry, Ledger

project = "automodel-mesh"
author = "The automodel-mesh authors"
project_copyright = author
try:
    release = version = metadata.version("automodel-mesh")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    release = version = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "docs.tables"]
exclude_patterns = ["_build", "benchmarks/headlines.md"]  # the latter is a part of benchmarks/index.md
html_theme = "furo"
html_title = f"automodel-mesh {version}".strip()  # in the sidebar of each page
html_static_path = ["static"]
html_css_files = ["pages.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings are Google style, in Markdown's spirit: a single backtick means code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Torch releases", "notes_style"), ("Source", "notes_style")]
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88  # a longer signature has a line for each parameter
autodoc_type_aliases = {
    "BackendChoice": "BackendChoice",
    "Layout": "Layout",
    "DistributedStrategyConfig": "DistributedStrategyConfig",
}

MATRIX = CHECKOUT / "ci_matrix" / "torch.toml"
RAISED = r"\b(\w*Error|Unsupported)\b"
"""The classes of errors in the results of torch's calls."""


def labelled_rows() -> list[tuple[str, dict[str, Any]]]:
    """Read the matrix; the newest patch of a release has the short name, as in noxfile.py."""
    rows = sorted(tomllib.loads(MATRIX.read_text())["rows"], key=lambda row: Version(row["torch"]))
    short = {row["torch"]: ".".join(row["torch"].split(".")[:2]) for row in rows}
    newest = {short[row["torch"]]: row["torch"] for row in rows}
    return [(short[row["torch"]] if newest[short[row["torch"]]] == row["torch"] else row["torch"], row) for row in rows]


def code(words: list[str]) -> str:
    """Write words as code, with commas between."""
    return ", ".join(f"`{word}`" for word in words)


def drawing_of(axes: str) -> list[str]:
    """Draw axes of eight ranks on two nodes, or with `experts` those of the expert mesh, as a notebook shows them."""
    experts = axes == "experts"
    sizes = ParallelismSizes(dp_replicate_size=2, tp_size=2, ep_size=4 if experts else 1)
    planned = plan("fsdp2", sizes, 8, ranks_per_node=4)
    return ["```{raw} html", drawing(planned, ("ep_shard", "ep") if experts else axes.split(",")), "```"]


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
    found: dict[tuple[str, str], list[str]] = {}
    for _, row in labelled_rows():
        for failure in row.get("expected_failures", {}).items():
            found.setdefault(failure, []).append(row["torch"])
    lines = [f"| `{test}` | {', '.join(releases)} | {reason} |" for (test, reason), releases in found.items()]
    return ["| test | torch | reason |", "|---" * 3 + "|", *lines] if found else ["None."]


def command_help() -> list[str]:
    """Show what `automodel-mesh --help` prints, and the same of each command."""
    names = re.findall(r"^    ([a-z][a-z-]*) ", help_text(), re.MULTILINE)
    lines: list[str] = []
    for command in ([], *([name] for name in names)):
        title = " ".join(["automodel-mesh", *command])
        lines += [f"### {title}", "", "```text", *help_text(*command).splitlines(), "```", ""]
    return lines


def help_text(*command: str) -> str:
    """Return what `--help` of a command prints, 100 columns wide and without colours."""
    printed = io.StringIO()
    terminal = mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1")
    with terminal, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return printed.getvalue()


def known_releases() -> list[str]:
    """List the releases of the ledger as `2.9`, oldest first."""
    versions = map(Version, load_ledger().releases)
    return list(dict.fromkeys(f"{version.major}.{version.minor}" for version in versions))


def behaviour_table() -> list[str]:
    """Show what torch's own calls do: a column for the releases that do the same, and a line for each call."""
    columns = [
        [", ".join(releases), *(re.sub(RAISED, r"`\1`", result) for result in results)]
        for results, releases in groupby(
            known_releases(), lambda release: [each.result(release) for each in BEHAVIOURS]
        )
    ]
    head, *rows = zip(["", *(each.title for each in BEHAVIOURS)], *columns, strict=True)
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def backport_table() -> list[str]:
    """Show what `backport` gives to each release, since when torch does it itself, and what is impossible."""
    return [
        "| | in torch from | before, with `backport()` |",
        "|---" * 3 + "|",
        *(f"| {feature} | {since} | ✓ |" for feature, since in SINCE.items()),
        *(f"| {feature} | {each.since} | no |" for feature, each in IMPOSSIBLE.items()),
    ]


def backport_obstacles() -> list[str]:
    """Say why some things are impossible."""
    return [f"- {feature}, before {each.since}: {each.why}." for feature, each in IMPOSSIBLE.items()]


def downstream_table() -> list[str]:
    """Show what other packages do on plain torch's meshes and on ours."""
    return results.table("downstream", ("plain torch", "with our meshes"), but="downstream-backport")


def downstream_backport() -> list[str]:
    """Show what other packages do on plain torch's meshes, without `backport` and with it."""
    return results.table("downstream-backport", ("without", "with `backport()`"))


def downstream_failures() -> list[str]:
    """Show the reasons of what does not work there."""
    lines = ["| package | torch | what | meshes | why |", "|---" * 5 + "|"]
    for failure in downstream.load()["failures"]:
        what = "; ".join("all" if name == "*" else name.replace("*", "…") for name in failure["what"])
        meshes = "both" if len(failure["meshes"]) > 1 else "plain torch" if failure["meshes"] == ["plain"] else "ours"
        lines.append(f"| {failure['package']} | {', '.join(failure['torch'])} | {what} | {meshes} | {failure['why']} |")
    return lines


def drop_in_table() -> list[str]:
    """Show what NeMo AutoModel does with its own modules and with ours."""
    return results.table("drop-in", ("with its own modules", "with ours"))


def ledger_table() -> list[str]:
    """Show what each release has under the names of the ledger: a letter for each thing that a name has been."""
    ledger = load_ledger()
    lines = [f"| name | {' | '.join(ledger.releases)} |", "|---" * (len(ledger.releases) + 1) + "|"]
    for entry in ledger.entries:
        forms = [known.get(entry.name) for known in ledger.forms.values()]
        seen = list(dict.fromkeys(form for form in forms if form is not None))
        letters = ["" if form is None else ascii_uppercase[seen.index(form)] for form in forms]
        lines.append(f"| `{short_name(entry)}` | {' | '.join(letters)} |")
    return lines


def ledger_entries() -> list[str]:
    """Show each entry of the ledger, by the module that defines the name."""
    ledger, lines = load_ledger(), list[str]()
    for module in dict.fromkeys(entry.name.partition(":")[0] for entry in ledger.entries):
        lines += [f"### {module}", ""]
        for entry in ledger.entries:
            if entry.name.partition(":")[0] == module:
                lines += [*ledger_entry(ledger, entry), ""]
    return lines


def short_name(entry: Entry) -> str:
    """Name an entry without its module, but for what is the module's own."""
    module, _, path = entry.name.partition(":")
    return path if len(path) > 1 else f"{module.rpartition('.')[2]}{'.*' if path else ''}"


def signatures(ledger: Ledger, entry: Entry) -> list[str]:
    """Show the signatures that a name has had, each with the releases that have it."""
    spans: dict[str, list[str]] = {}
    for release, forms in ledger.forms.items():
        if entry.name in forms and not entry.is_list_of_members:
            spans.setdefault(forms[entry.name].signature, []).append(release)
    return [
        f"`{signature}`: {releases[0]}{f' to {releases[-1]}' if len(releases) > 1 else ''}"
        for signature, releases in spans.items()
    ]


def ledger_entry(ledger: Ledger, entry: Entry) -> list[str]:
    """Show a name: when it is needed, what for, and what to do when it goes."""
    needed = f"from {entry.since}" if entry.since else "on every release"
    needed += (
        f" until {entry.until}" if entry.until and entry.since else f" before {entry.until}" if entry.until else ""
    )
    through = f", through `{entry.through}`" if entry.through else ""
    reached = code(list(public_callers(entry.used_by))) or "tests alone"
    return [
        f"`{short_name(entry)}` - needed {needed}{through}",
        f": {entry.use} *If it goes or changes:* {entry.remedy}",
        f"  Used by {code(list(entry.used_by))}; reaches {reached}.",
        *(f"  {line}." for line in ["; ".join(signatures(ledger, entry))] if line),
    ]


class FromData(SphinxDirective):
    """`{from-data} releases`, for one: a part of a page that is made from the project's data at build time."""

    required_arguments = 1
    optional_arguments = 1
    PARTS: dict[str, Callable[..., list[str]]] = {  # noqa: RUF012 - docutils reads classes, not instances
        "drawing": drawing_of,
        "releases": release_table,
        "cuda": cuda_table,
        "expected-failures": failure_table,
        "behaviours": behaviour_table,
        "audit-accuracy": audit_proof.accuracy,
        "audit-breaking": audit_proof.breaking,
        "audit-dates": audit_proof.dates,
        "audit-wrong": audit_proof.wrong,
        "backport": backport_table,
        "backport-obstacles": backport_obstacles,
        "downstream": downstream_table,
        "downstream-backport": downstream_backport,
        "downstream-failures": downstream_failures,
        "drop-in": drop_in_table,
        "command-help": command_help,
        "ledger-table": ledger_table,
        "ledger-entries": ledger_entries,
    }

    def run(self) -> list[nodes.Node]:
        """Make the part."""
        for file in (
            MATRIX,
            *(CHECKOUT / "automodel_mesh").rglob("*.py"),
            *(CHECKOUT / "compat").glob("ledger.*"),
            CHECKOUT / "compat/eras/newest.py",
            *results.FOLDER.glob("*.json"),
            downstream.PATH,
            audit_proof.PATH,
        ):
            self.env.note_dependency(str(file))
        return self.parse_text_to_nodes(
            "\n".join(self.PARTS[self.arguments[0]](*self.arguments[1:])), allow_section_headings=True
        )


def text_where_it_is_defined(*event: Any) -> None:
    """Describe data that its module imports with the text below its definition; autodoc shows that of its class."""
    _, what, name, _, _, lines = event
    if what != "data":
        return
    modules = [module for module in sorted(sys.modules) if module.partition(".")[0] == "automodel_mesh"]
    for texts in (ModuleAnalyzer.for_module(module).find_attr_docs() for module in modules):
        if text := texts.get(("", name.rpartition(".")[2])):
            lines[:] = text


def plain_names(*event: Any) -> list[str | None]:
    """Write a type alias in a signature by its name; Sphinx 9 writes the repr of what it puts in its place."""
    *_, signature, returned = event
    return [text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text) for text in (signature, returned)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive, and what autodoc needs."""
    app.add_directive("from-data", FromData)
    app.connect("autodoc-process-signature", plain_names)
    app.connect("autodoc-process-docstring", text_where_it_is_defined, priority=600)  # after napoleon
    return {"parallel_read_safe": True}
