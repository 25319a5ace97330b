"""`automodel-mesh releases`: what it lists is what the tests run on and what the code does, and needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from automodel_mesh.compat.eras import facts
from automodel_mesh.compat.eras.support import era_name
from automodel_mesh.tracking import releases
from automodel_mesh.tracking.releases import supported_releases
from tests.terminals import on_a_terminal
from tests.test_ci_matrix import RELEASES

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = """
import importlib.metadata as metadata, sys
sys.modules.update(dict.fromkeys(["torch", "tomllib", "tomli"]))  # Python refuses to import them
find = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return find(name)
metadata.version = version
from automodel_mesh.cli import main
sys.exit(main(sys.argv[1:]))
"""


def document() -> dict[str, Any]:
    """Run `automodel-mesh releases --json` where there is no torch."""
    line = [sys.executable, "-c", WITHOUT_TORCH, "releases", "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_the_releases_are_those_that_are_tested() -> None:
    """The releases are those of ci_matrix/torch.toml, and each has the era that the library chooses on it."""
    found = supported_releases()
    assert [Version(release.torch) for release in found] == RELEASES
    assert [release.era for release in found] == [era_name(version) for version in RELEASES]


def test_each_fact_is_named_at_the_release_that_changes_it() -> None:
    """The first sentence of each fact is at each release that the fact compares with, and nothing else is there."""
    source = Path(facts.__file__).read_text(encoding="utf-8")
    expected: dict[str, int] = {}
    for compared, text in re.findall(r'^[A-Z_]+: Final = ([^\n]*)\n"""(.*?)"""', source, re.DOTALL | re.MULTILINE):
        sentence = re.split(r"(?<=\.)\s", " ".join(text.split()))[0]
        for release in re.findall(r'torch_at_least\("([\d.]+)"\)', compared):
            first = min(version for version in RELEASES if version >= Version(release))
            expected[f"{first}: {sentence}"] = 1
    assert len(expected) >= len([name for name in vars(facts) if name.isupper()])
    listed = [f"{release.torch}: {sentence}" for release in supported_releases() for sentence in release.differs]
    assert sorted(listed) == sorted(expected)


def test_json_has_the_documented_keys_and_needs_no_torch() -> None:
    """--json prints the keys that the module describes, without torch and without a reader of TOML."""
    keys = re.findall(r"^    (?:    )?(\w+) {2,}", releases.__doc__ or "", re.MULTILINE)
    read = document()
    assert [*read, *read["releases"][0]] == keys
    assert (read["schema"], read["installed"], read["releases"][0]["names_changed"]) == (1, None, None)
    assert all(isinstance(release["names_changed"], int) for release in read["releases"][1:])


def test_text_has_a_line_for_each_difference() -> None:
    """The text has each release once, its differences below each other, and the installed torch."""
    status, _, text = on_a_terminal(WITHOUT_TORCH, ["releases"], piped=True)
    assert status == 0
    starts = [line.split()[0] for line in text.splitlines() if re.match(r"\d", line)]
    assert starts == [str(version) for version in RELEASES]
    assert text.rstrip().endswith("installed: no torch")
