"""Fixtures of the tests that read a package index: those of `tests/tracking/`."""

from __future__ import annotations

from tests.tracking.conftest import default_settings, index

__all__ = ["default_settings", "index"]
