"""For all tests: the pytest plugin for ranks, the expected failures of each release, the option `--plain-torch`."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from automodel_mesh.compat import TORCH_VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest_plugins = ["automodel_mesh.testing"]

MATRIX = Path(__file__).parents[1] / "ci_matrix" / "torch.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--plain-torch`, which runs tests/compat on torch's own calls, to show where they fail."""
    parser.addoption("--plain-torch", action="store_true", help="run tests/compat on torch's own calls")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the matrix expects to fail on the installed release, with the reason given there."""
    rows = tomllib.loads(MATRIX.read_text())["rows"]
    expected: dict[str, str] = next(
        (row.get("expected_failures", {}) for row in rows if row["torch"] == str(TORCH_VERSION)), {}
    )
    for item in items:
        reason = expected.get(item.nodeid) or expected.get(item.nodeid.partition("[")[0])
        if reason:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_collection_finish() -> None:
    """Let the garbage collector skip what the tests' modules have made: each test is a fork of this process.

    A full collection in a fork copies the memory that it looks at, 40 MB, which takes 0.1 s.
    """
    gc.collect()
    gc.freeze()
