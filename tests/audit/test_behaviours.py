"""The known behaviours are those of the installed torch, on every release."""

from __future__ import annotations

import pytest

from automodel_mesh import compat
from automodel_mesh.audit.behaviours import BEHAVIOURS, Behaviour
from automodel_mesh.testing import run_ranks
from tests.plain_torch import program, result_of

RELEASE = str(compat.TORCH_VERSION)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.program)
def test_torch_does_what_is_recorded(behaviour: Behaviour) -> None:
    """The call has the result that is recorded for the installed release."""
    (found,) = run_ranks(result_of, 1, program(behaviour), backend=None)
    assert found == behaviour.result(RELEASE)
