"""What sessions found is written, read and shown as it was."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from tests import results

pytestmark = pytest.mark.release_independent

ROW = {"what": "trains", "plain": "hangs", "ours": "works | here"}


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    """The file has the date, the versions and the rows; a second run replaces it."""
    for rows in ([], [ROW]):
        path = results.record("downstream-pytest-2.9", ["pytest"], rows, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name] == ["downstream-pytest-2.9.json"]
    (result,) = results.read("downstream", tmp_path)
    assert result.packages == {"pytest": pytest.__version__, "torch": metadata.version("torch").partition("+")[0]}
    assert result.rows == [ROW]
    assert json.loads(path.read_text())["date"] == result.date


def test_results_are_by_package_and_the_oldest_torch_first(tmp_path: Path) -> None:
    """2.10 comes after 2.9, and sessions of another prefix are left out."""
    for package, torch_version in (("b", "2.10.0"), ("b", "2.9.1"), ("a", "2.15.0")):
        session = f"downstream-{package}-{torch_version}"
        entry = {"session": session, "date": "2026-11-27", "python": "3.12.1", "rows": [ROW]}
        (tmp_path / f"{session}.json").write_text(
            json.dumps({**entry, "packages": {package: "1", "torch": torch_version}})
        )
    results.record("drop-in-0.7.0-2.9", [], [ROW], tmp_path)
    lines = results.table("downstream", ("plain torch", "ours"), tmp_path)
    assert lines[0] == "| package | torch | what | plain torch | ours | run on |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| a 1", "2.15.0"],
        ["| b 1", "2.9.1"],
        ["| b 1", "2.10.0"],
    ]
    assert lines[2].endswith(r"| trains | hangs | works \| here | 2026-11-27 |")


def test_a_row_has_what_was_tried_and_both_results(tmp_path: Path) -> None:
    """A row without one of them is refused, before anything is written."""
    with pytest.raises(KeyError, match="plain"):
        results.record("downstream-pytest-2.9", [], [{"what": "trains", "ours": "works"}], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert results.table("downstream", ("", ""), tmp_path) == ["Not run yet."]
