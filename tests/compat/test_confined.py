"""Private names of torch are used in `compat/` only, and the ledger lists exactly these uses."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from automodel_mesh.audit.package import Package
from automodel_mesh.tracking.ledger import Entry, load_ledger
from automodel_mesh.tracking.uses import OURS, Use, compat_sources, uses_in

CHECKOUT = Path(__file__).parents[2]
WRITES_ABOUT_THE_LEDGER = ("automodel_mesh/audit/", "tests/audit/", "tests/tracking/", "tests/compat/test_confined.py")
"""Where names of the ledger may stand in strings: audit looks for them in other code."""
PLAIN_TORCH = (
    "tests/compat/newest.py",
    "tests/compat/plain.py",
    "tests/downstream/plain.py",
    "tests/typed_user.py",
)
"""Torch's own calls, which tests, benchmarks and programs use, or compare ours with: private ones, by purpose."""


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return the entries of the ledger, which is read once."""
    return load_ledger().entries


def sources() -> dict[str, str]:
    """Return the text of every Python file of the project outside `compat/`, hidden folders and builds, by its path."""
    found: dict[str, str] = {}
    for path in sorted(CHECKOUT.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).parts
        hidden = any(part.startswith(".") or part in {"build", "dist"} for part in parts)
        in_compat = parts[0] == "compat" or parts[:2] == ("automodel_mesh", "compat")
        if not hidden and not in_compat and "/".join(parts) not in PLAIN_TORCH:
            found["/".join(parts)] = path.read_text()
    return found


def names_of_our_own(tree: ast.AST) -> set[str]:
    """Return the names that some code defines: functions, classes, variables and attributes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def violations(texts: dict[str, str]) -> list[str]:
    """List the uses of private torch names in some files: names of the ledger, and those not defined in them."""
    of_torch = {entry.identifier for entry in entries() if entry.identifier.startswith("_")} - {"__init__"}
    ours = set[str]().union(*(names_of_our_own(ast.parse(text)) for text in texts.values()))

    def is_wrong(path: str, use: Use) -> bool:
        if use.how == "string":
            return use.name in of_torch and not path.startswith(WRITES_ABOUT_THE_LEDGER)
        return use.name in of_torch or use.how == "import" or use.name not in ours

    return [
        f"{path}, line {use.line}: {use.name}"
        for path, text in texts.items()
        for use in uses_in(text, path)
        if is_wrong(path, use)
    ]


@functools.cache
def uses_in_compat() -> tuple[Use, ...]:
    """Return the uses of private names in `compat/`, and of the public ones that the ledger has."""
    public = {name for entry in entries() for name in (entry.through or entry.identifier,) if not name.startswith("_")}
    return tuple(use for module, text in compat_sources().items() for use in uses_in(text, module, public))


def is_about(entry: Entry, use: Use) -> bool:
    """Return whether an entry is about the name in a use: keywords and strings with their names are parameters."""
    if use.name != (entry.through or entry.identifier):
        return False
    parameters = {other.identifier for other in entries() if other.is_parameter}
    names_a_parameter = use.how == "keyword" or (use.how == "string" and use.name in parameters)
    return use.how == "import" or names_a_parameter == entry.is_parameter


@pytest.mark.checkout
def test_no_private_torch_name_outside_compat() -> None:
    """No file outside `compat/` imports or touches a private torch name, by attribute, keyword or string."""
    found = violations(sources())
    assert not found, "move these into compat/:\n" + "\n".join(found)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    "code",
    [
        "from torch.testing._internal import x",
        "import torch._C",
        "mesh._flatten('a')",
        "import torch\ntorch.distributed.distributed_c10d._world",
        "getattr(mesh, '_get_root_mesh')",
        "hasattr(mesh, '_layout')",
        "DeviceMesh('cpu', ranks, _init_backend=False)",
        "mesh._a_name_that_no_ledger_has",
    ],
)
def test_each_kind_of_private_use_is_found(code: str) -> None:
    """Each kind of use of a private name is a violation."""
    assert violations({"automodel_mesh/x.py": code})


def test_every_private_name_has_an_entry_in_the_ledger() -> None:
    """Each private name of torch that `compat/` uses has an entry in the ledger."""
    missing = [use for use in uses_in_compat() if not any(is_about(entry, use) for entry in entries())]
    assert not missing, "enter these in compat/ledger.toml:\n" + "\n".join(map(str, missing))


def test_every_entry_of_the_ledger_lists_the_functions_that_use_it() -> None:
    """An entry lists exactly the functions that use its name; with `through`, some of those that use that name."""
    wrong: list[str] = []
    for entry in entries():
        found = {use.place for use in uses_in_compat() if use.how != "import" and is_about(entry, use)}
        stated = set(entry.used_by)
        if not stated or (stated != found if entry.through is None else not stated <= found):
            wrong.append(f"{entry.name}: it says {sorted(stated)}, and the code {sorted(found)}")
    assert not wrong, "correct `used_by` in compat/ledger.toml, or remove the entry:\n" + "\n".join(wrong)


@pytest.mark.release_independent
def test_the_ledger_has_what_an_audit_reads() -> None:
    """The reader of `automodel-mesh audit`, which follows types too, finds no private name that the ledger lacks."""
    known = {part for entry in entries() for part in re.split(r"\W", f"{entry.name} {entry.through}")}
    read = {
        part
        for _, reader in Package([CHECKOUT / "automodel_mesh" / "compat"]).readers()
        for use in reader.uses
        for part in use.path.split(".")
        if part.startswith("_") and not part.startswith(("__", OURS))
    }
    assert len(read) > 20
    assert read - known == set()


@pytest.mark.release_independent
def test_versions_are_compared_in_one_place() -> None:
    """Only files that show the version of the installed torch read it, and only `support.py` parses it."""
    readers = {path.rpartition("/")[2] for path, text in sources().items() if "torch.__version__" in text}
    allowed = {
        "report.py",
        "worlds.py",
        "test_testing.py",
        "test_gate.py",
        "test_confined.py",
        "test_cli.py",
        "reading.py",  # of audit, which looks for such code
        "test_guards.py",
        "test_torch_names.py",  # asks which release is recorded
        "truth.py",
    }
    assert readers <= allowed
    inside = [path.name for path in sorted((CHECKOUT / "compat").rglob("*.py")) if "Version(" in path.read_text()]
    assert inside == ["support.py"]
