"""What sessions found is written, read and shown as it was."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from tests import results

pytestmark = pytest.mark.release_independent

ROW = {"what": "reads", "plain": "hangs", "ours": "works | here"}


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
    """2.10 comes after 2.9, releases with one result share a line, and sessions of another prefix are left out."""
    for package, release, plain in (
        ("b", "2.10.0", "hangs"),
        ("b", "2.9.1", "hangs"),
        ("b", "2.6.0", "works"),
        ("a", "2.6.0", "hangs"),
    ):
        session = f"downstream-{package}-{release}"
        packages, rows = {package: "1", "torch": release}, [{"what": "trains", "plain": plain, "ours": "hangs"}, ROW]
        date = "2026-11-26" if release == "2.6.0" else "2026-11-27"
        entry = {"session": session, "date": date, "python": "3.12.1", "rows": rows, "packages": packages}
        (tmp_path / f"{session}.json").write_text(json.dumps(entry))
    results.record("drop-in-0.7.0-2.9", [], [ROW], tmp_path)
    of_a = [
        "**a 1**, run on 2026-11-26",
        "",
        "| what | torch | plain torch | ours |",
        "|---|---|---|---|",
        "| trains | 2.6.0 | hangs | the same |",
        r"| reads | 2.6.0 | hangs | works \| here |",
        "",
    ]
    assert results.table("downstream", ("plain torch", "ours"), tmp_path) == [
        *of_a,
        "**b 1**, run on 2026-11-26 and 2026-11-27",
        "",
        "| what | torch | plain torch | ours |",
        "|---|---|---|---|",
        "| trains | 2.6.0 | works | hangs |",
        "| trains | 2.9.1, 2.10.0 | hangs | the same |",
        r"| reads | 2.6.0, 2.9.1, 2.10.0 | hangs | works \| here |",
        "",
    ]
    assert results.table("downstream", ("plain torch", "ours"), tmp_path, but="downstream-b") == of_a


def test_a_row_has_what_was_tried_and_both_results(tmp_path: Path) -> None:
    """A row without one of them is refused, before anything is written."""
    with pytest.raises(KeyError, match="plain"):
        results.record("downstream-pytest-2.9", [], [{"what": "trains", "ours": "works"}], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert results.table("downstream", ("", ""), tmp_path) == ["Not run yet."]
