"""The fixture `api`: `automodel_mesh.compat`, the newest torch's calls, or plain torch to show where it fails."""

from __future__ import annotations

from types import ModuleType

import pytest

from automodel_mesh import compat
from tests.compat import newest, plain


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses `api` on our functions and on the newest torch's calls, or on torch's own calls only."""
    if "api" in metafunc.fixturenames:
        which = ["plain"] if metafunc.config.getoption("--plain-torch") else ["compat", "newest"]
        metafunc.parametrize("api", which, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests of the newest torch's calls that fail on the newest torch, where `backport` changes nothing."""
    items[:] = [item for item in items if not is_left_out(item)]


def is_left_out(item: pytest.Item) -> bool:
    """Tell whether a test uses the newest torch's calls and fails on the newest torch itself."""
    parameters = getattr(item, "callspec", None)
    on_newest = parameters is not None and parameters.params.get("api") == "newest"
    return on_newest and not newest.DIFFERS.isdisjoint({item.name, item.name.partition("[")[0]})


@pytest.fixture
def api(request: pytest.FixtureRequest) -> ModuleType:
    """The functions under test: ours; or the newest torch's calls, with `backport`; or torch's own."""
    if request.param == "plain":
        plain.restore_torch()
        return plain
    if request.param == "newest":
        compat.backport()
        return newest
    return compat
