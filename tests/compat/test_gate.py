"""Which torch releases are supported, and which era module is used for each."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from packaging.version import Version

from automodel_mesh import compat
from automodel_mesh.compat import MINIMUM_TORCH, NEWEST_TESTED_TORCH
from automodel_mesh.compat.eras import support
from automodel_mesh.testing import run_ranks
from tests.test_ci_matrix import RELEASES

CHECKOUT = Path(__file__).parents[2]
OTHERS = [
    *((str(first), "DeviceMesh._get_root_mesh") for first, era in support.ERAS if era != compat.ERA_NAME),
    (str(MINIMUM_TORCH if compat.torch_at_least("2.13") else NEWEST_TESTED_TORCH), "the layout class _FlatLayout"),
]
"""Releases with another structure than the installed one, each with a marker that differs."""


def import_with(version: str) -> str:
    """Import the package with a version of torch that is made up; return what it chose, or the error.

    In a fork, which has imported torch already: a fresh process needs 2 s for that.
    """

    def imported() -> str:
        ours = [name for name in sys.modules if name.split(".")[0] == "automodel_mesh"]
        setattr(torch, "__version__", version)  # noqa: B010 - its type is not str
        with mock.patch.dict(sys.modules):
            for name in ours:
                del sys.modules[name]
            try:
                fresh = importlib.import_module("automodel_mesh.compat")
            except ImportError as error:
                return f"{type(error).__name__}: {error}"
            return f"{fresh.ERA_NAME} {fresh.TORCH_VERSION}"

    (said,) = run_ranks(imported, 1, backend=None)
    return str(said)


@pytest.mark.checkout
@pytest.mark.parametrize("release", [str(release) for release in RELEASES] + ["99.1"])
def test_each_release_has_its_era(release: str) -> None:
    """A release gets the newest era that begins at or before it; future releases get the last era."""
    modules = {path.stem: path.stem.split("_") for path in (CHECKOUT / "compat/eras").glob("since_*.py")}
    begins = {Version(f"{major}.{minor}"): module for module, (_, major, minor) in modules.items()}
    assert support.era_name(Version(release)) == begins[max(first for first in begins if first <= Version(release))]


def test_an_older_torch_is_refused() -> None:
    """A torch just below the floor is refused at import, with what was found and what is supported."""
    floor = compat.MINIMUM_TORCH
    older = f"{floor.major}.{floor.minor - 1}.1+cu121" if floor.minor else f"{floor.major - 1}.99.1+cu121"
    said = import_with(older)
    assert said.startswith(f"UnsupportedTorchError: automodel-mesh found torch {older}; it supports torch {floor}")


@pytest.mark.parametrize(("other", "marker"), OTHERS)
def test_a_build_with_the_structure_of_another_release_is_refused(other: str, marker: str) -> None:
    """A vendor build with the meshes of another release is refused, with the found and the expected markers."""
    said = import_with(f"{other}a0+vendor25.11")
    assert said.startswith(f"UnsupportedTorchError: torch {other}a0+vendor25.11 is not built the way its version says")
    assert f"{marker} is" in said


def test_a_newer_torch_of_known_structure_is_accepted() -> None:
    """An untested newer release is accepted if its markers are those of the newest era."""
    said = import_with("2.99.0.dev20300101+cpu")
    if compat.torch_at_least("2.13"):
        assert said == f"{support.ERAS[-1][1]} 2.99.0"
    else:
        assert said.startswith("UnsupportedTorchError")


def test_the_installed_torch_is_one_that_is_listed() -> None:
    """The version constants are consistent, and builds of a release count as that release."""
    assert compat.MINIMUM_TORCH <= compat.TORCH_VERSION
    assert support.ERAS[0][0] <= compat.MINIMUM_TORCH <= compat.NEWEST_TESTED_TORCH
    assert Version(Version(torch.__version__).base_version) == compat.TORCH_VERSION
    assert compat.torch_at_least(str(compat.MINIMUM_TORCH))
    assert compat.torch_at_least(str(compat.TORCH_VERSION))
    assert not compat.torch_at_least("99.0")
