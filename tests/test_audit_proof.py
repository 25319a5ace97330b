"""ci_matrix/audit.toml is complete, and the programs of tests/audit_proof/ find what they should in small packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audit_proof import table
from tests.audit_proof.compare import compare, precision, recall
from tests.audit_proof.names import look_up
from tests.test_ci_matrix import RELEASES, label, list_sessions

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: list[dict[str, Any]] = table.load()["packages"]

MODULES = {
    "__init__": "",
    "breaks": "import torch\n\nfrom torch.nn import (\n    Linear,\n    NoSuchThing,\n)\n\nvalue = torch.no_such_value",
    "behind": "from small.breaks import NoSuchThing\n\nclass A(NoSuchThing): ...\n\nimport torch.no_such.below",
    "guarded": "import torch\ntry:\n    from torch.nn import NoSuchThing\nexcept ImportError:\n    pass",
    "missing": "import no_such_package.below\nfrom torch import no_such_name",
    "refuses": "raise ImportError('needs another torch')",
    "calls": "import torch\ndef make():\n    return torch.no_such_function()\nmake()",
    "type_error": "import torch\ntorch.zeros(1, no_such_argument=1)\ntorch.no_such_later_name",
    "skips": "import torch\n@torch.library.custom_op('no colons', mutates_args=())\ndef f(x: torch.Tensor) -> int: 1\n"
    "class A:\n    g = torch.zeros(1, no_such=1)\n    h = torch.no_such_attribute\nz = torch.zeros(f)",
    "compiles": "import torch\nfrom torch.nn import no_such_function\ncompiled = torch.compile(no_such_function)",
    "derives": "import torch\nfrom torch.nn import no_such_base\nclass A(no_such_base): ...\ntorch.zeros(A)\n"
    "torch.no_such_name_behind",
    "later": "import torch\ndef make():\n    return torch.no_such_function()",
}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Import the modules of a small package, each as `truth.py` does."""
    place = tmp_path_factory.mktemp("packages")
    (place / "small").mkdir()
    for name, source in MODULES.items():
        (place / "small" / f"{name}.py").write_text(source)
    command = [sys.executable, "-m", "tests.audit_proof.truth", str(place), str(place / "truth.json")]
    environment = {"PYTHONPATH": f"{place}:{ROOT}", "PATH": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300, capture_output=True)
    found: dict[str, Any] = json.loads((place / "truth.json").read_text())
    return found


def test_each_line_that_breaks_is_found(truth: dict[str, Any]) -> None:
    """The lines behind the first one and in modules that import a broken one are found; guarded lines are not.

    Where a stand-in for a name does not help, the statement is left out: in `type_error` and `skips`.
    """
    broken = {(each["file"], each["line"], each["end"], each["name"], each["in_function"]) for each in truth["broken"]}
    assert broken == {
        ("small/breaks.py", 3, 6, "torch.nn.NoSuchThing", False),
        ("small/breaks.py", 8, 8, "torch.no_such_value", False),
        ("small/behind.py", 5, 5, "torch.no_such", False),
        ("small/behind.py", 5, 5, "torch.no_such.below", False),
        ("small/missing.py", 2, 2, "torch.no_such_name", False),
        ("small/compiles.py", 2, 2, "torch.nn.no_such_function", False),
        ("small/derives.py", 2, 2, "torch.nn.no_such_base", False),
        ("small/derives.py", 5, 5, "torch.no_such_name_behind", False),
        ("small/calls.py", 3, 3, "torch.no_such_function", True),
        ("small/type_error.py", 2, 2, "", False),
        ("small/type_error.py", 3, 3, "torch.no_such_later_name", False),
        ("small/skips.py", 2, 2, "", False),
        ("small/skips.py", 5, 5, "", False),
        ("small/skips.py", 6, 6, "torch.no_such_attribute", False),
    }


def test_what_was_run_to_its_end_and_what_was_not(truth: dict[str, Any]) -> None:
    """A missing package is stood in for; what the package refuses, or torch of a stand-in, is no fault of a name."""
    assert {file: each["cause"] for file, each in truth["failed"].items()} == {
        "small/refuses.py": "refuses",
    }
    assert len(truth["imported"]) == len(MODULES) - 1


def finding(file: str, line: int, when: str = "import", **releases: tuple[str, ...]) -> dict[str, Any]:
    """Return a finding of an audit."""
    said = {"breaks": (), "cannot_tell": (), "guarded": (), **releases}
    return {"file": file, "line": line, "name": "torch.x", "when": when, **said}


def test_findings_are_compared_with_the_truth(truth: dict[str, Any]) -> None:
    """A finding in a statement counts at its first line; one in a function that is not called does not count."""
    here = (truth["torch"],)
    found = compare(
        truth,
        [
            finding("small/breaks.py", 5, breaks=here),
            finding("small/breaks.py", 8, cannot_tell=here),
            finding("small/behind.py", 5, breaks=("0.1.0",)),
            finding("small/guarded.py", 3, breaks=here),
            finding("small/calls.py", 3, "call", breaks=here),
            finding("small/later.py", 3, "call", breaks=here),
            finding("small/refuses.py", 1, breaks=here),
        ],
    )
    assert found.files == {"right": 2, "false": 1, "missed": 6, "fits": 2}
    assert found.lines == {"right": 2, "false": 1, "missed": 11, "fits": 0}
    assert found.excluded == {"refuses": 1}
    answers = {(each["file"], each["line"]): (each["predicted"], each["true"]) for each in found.wrong}
    assert answers["small/breaks.py", 8] == ("cannot tell", "breaks")
    assert answers["small/guarded.py", 3] == ("breaks", "fits")
    assert answers["small/type_error.py", 2] == ("nothing", "breaks")
    assert (precision(found.lines), recall(found.lines)) == (2 / 3, 2 / 13)


def test_names_are_looked_up_as_python_does() -> None:
    """A module is imported, and what only an instance may have is not decided."""
    names = {
        "torch.nn.Linear": True,
        "torch.nn.no_such": False,
        "torch.no_such.below": False,
        "torch.Tensor.no_such": None,
    }
    assert look_up(list(names)) == names


@pytest.mark.parametrize("package", PACKAGES, ids=map(table.requirement, PACKAGES))
def test_a_package_is_complete(package: dict[str, Any]) -> None:
    """It has one version, says what it declares, and has no other keys."""
    assert {"name", "version", "declares"} <= package.keys() <= {"name", "version", "declares", "parts", "beside"}
    assert all(each.count("==") == 1 for each in package.get("beside", []))


def test_a_wrong_answer_that_is_known_is_complete() -> None:
    """It names a package, releases, what the audit says there, and a reason."""
    for entry in table.load().get("known_wrong", []):
        assert entry.keys() == {"package", "torch", "file", "name", "predicted", "why"}
        assert len(entry["why"].split()) > 2


def test_what_is_recorded_is_known() -> None:
    """All wrong answers in the results have a reason."""
    for result in table.read():
        for row in result["rows"]:
            release = table.label(result["torch"])
            assert [each for each in row["wrong"] if table.known(row["package"], release, each) is None] == []


def test_sessions_are_the_rows() -> None:
    """There is one audit-downstream session for each release, with a Python that the packages take."""
    sessions = list_sessions("-t", "audit-downstream")
    assert set(sessions) == {f"audit-downstream-{label(release)}" for release in RELEASES}
    assert {entry["python"] for entry in sessions.values()} <= {"3.11", "3.12", "3.13"}
