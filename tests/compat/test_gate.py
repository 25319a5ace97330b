"""Which torch is let in, and which era serves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from automodel_mesh import compat
from automodel_mesh.compat.eras import support

CHECKOUT = Path(__file__).parents[2]


def import_compat(preparation: str) -> subprocess.CompletedProcess[str]:
    """Import the package in a fresh process, after some preparation of torch."""
    code = (
        f"import torch\nfrom torch.distributed import device_mesh\n{preparation}\nfrom automodel_mesh import compat\n"
    )
    code += "print(compat.ERA_NAME, compat.TORCH_VERSION)"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("release", "era"),
    [
        ("2.6", "since_2_06"),
        ("2.9.1", "since_2_06"),
        ("2.10", "since_2_10"),
        ("2.15.0", "since_2_10"),
        ("3.1", "since_2_10"),
    ],
)
def test_each_release_has_its_era(release: str, era: str) -> None:
    """The newest era whose first release is not newer than the torch serves it; torches of the future get the last."""
    assert support.era_name(Version(release)) == era


def test_an_older_torch_is_refused() -> None:
    """A torch below the floor is refused at import, with what was found and what is supported."""
    result = import_compat("torch.__version__ = '2.5.1+cu121'")
    assert result.returncode == 1
    assert "UnsupportedTorchError: automodel-mesh found torch 2.5.1+cu121; it supports torch 2.6" in result.stderr


def test_a_build_whose_structure_belies_its_version_is_refused() -> None:
    """A vendor build that carries another release's meshes is refused, with what is there and what should be."""
    other = "2.9.0" if compat.torch_at_least("2.10") else "2.10.0"
    result = import_compat(f"torch.__version__ = '{other}a0+vendor25.11'")
    assert result.returncode == 1
    assert f"UnsupportedTorchError: torch {other}a0+vendor25.11 is not built the way its version says" in result.stderr
    assert "DeviceMesh._get_root_mesh is" in result.stderr


def test_a_newer_torch_of_known_structure_is_accepted() -> None:
    """A release nobody has tested yet is accepted when the structural markers are those of the newest era."""
    result = import_compat("torch.__version__ = '2.99.0.dev20300101+cpu'")
    if compat.torch_at_least("2.13"):
        assert result.stdout.split() == ["since_2_10", "2.99.0"], result.stderr
    else:
        assert "UnsupportedTorchError" in result.stderr


def test_the_installed_torch_is_one_that_is_listed() -> None:
    """The version constants fit together, and builds of a release count as that release."""
    assert Version("2.6") == compat.MINIMUM_TORCH <= compat.TORCH_VERSION
    assert Version(Version(torch.__version__).base_version) == compat.TORCH_VERSION
    assert compat.torch_at_least("2.6")
    assert compat.torch_at_least(str(compat.TORCH_VERSION))
    assert not compat.torch_at_least("99.0")
