"""Fixtures of the tests that read a package index."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.tracking.package_index import VARIABLES, PackageIndex, serve


@pytest.fixture
def default_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's own settings, and put temporary files into `tmp_path / "temporary"`."""
    for name in (*VARIABLES, "AUTOMODEL_MESH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def index(tmp_path: Path, default_settings: None) -> Generator[PackageIndex, None, None]:
    """Serve an index with torch 2.15.0."""
    (tmp_path / "files").mkdir()
    with serve(tmp_path / "files") as served:
        yield served
