"""The fixture `api`: `automodel_mesh.compat`, or torch's own calls to show where they fail."""

from __future__ import annotations

from types import ModuleType

import pytest

from automodel_mesh import compat
from tests.compat import plain


@pytest.fixture
def api(request: pytest.FixtureRequest) -> ModuleType:
    """The functions under test: ours, or torch's own with `--plain-torch`."""
    if request.config.getoption("--plain-torch"):
        plain.restore_torch()
        return plain
    return compat
