"""Forked ranks, leak checks and fake worlds for suites of code that uses process groups, with and without pytest.

A `conftest.py` loads the pytest plugin with ``pytest_plugins = ["automodel_mesh.testing"]``; `plugin.py` describes its
markers and fixtures, and is the only module here that needs pytest.

PYTEST_DONT_REWRITE: no assertion in here is one of a test.
"""

from __future__ import annotations

from automodel_mesh.testing.ranks import run_ranks
from automodel_mesh.testing.report import RankFailure, RanksFailed
from automodel_mesh.testing.worlds import DeviceBackend, LeakError, fake_world, leak_check, unavailable_reason

__all__ = [
    "DeviceBackend",
    "LeakError",
    "RankFailure",
    "RanksFailed",
    "fake_world",
    "leak_check",
    "run_ranks",
    "unavailable_reason",
]

pytest_plugins = ["automodel_mesh.testing.plugin"]  # read by pytest, when a conftest.py names this package
