"""The ledger would have told in time: cut off before a release, it says what that release was going to break."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.version import Version

from automodel_mesh.compat import NEWEST_TESTED_TORCH
from automodel_mesh.tracking.compare import compare
from automodel_mesh.tracking.findings import Comparison
from automodel_mesh.tracking.ledger import load_ledger
from automodel_mesh.tracking.reading import read_sources
from automodel_mesh.tracking.sources import Sources, SourcesError

INSTALLED = Version(metadata.version("torch")).base_version
MESHES = "torch.distributed.device_mesh:"
LAYOUTS = "torch.distributed._mesh_layout:"


def sources_of(release: str, paths: tuple[str, ...]) -> Sources:
    """Read a release: the installed one if it is that, on the newest release else from the package index."""
    if release == INSTALLED:
        return read_sources("installed", paths)
    if Version(INSTALLED) != NEWEST_TESTED_TORCH:
        pytest.skip(f"the sessions of torch {release} and of torch {NEWEST_TESTED_TORCH} read it")
    try:
        return read_sources(release, paths)
    except SourcesError as error:
        pytest.skip(f"torch {release} is not installed, and cannot be read from an index: {error}")


def no_sources(release: str) -> Sources:
    """Stand for an index that cannot be reached: what is tested here needs no text of older releases."""
    raise SourcesError(f"{release} is not read here")


def foresight(cut: str, release: str) -> Comparison:
    """Compare a release with the ledger as it was when another was the newest."""
    ledger = load_ledger()
    return compare(ledger.cut(cut), sources_of(release, ledger.paths), fetch=no_sources)


def test_the_installed_release_is_known() -> None:
    """To the ledger as it is there is nothing new about a release of the matrix."""
    ledger = load_ledger()
    found = compare(ledger, read_sources("installed", ledger.paths), fetch=no_sources)
    assert (found.verdict, found.recorded, found.findings) == ("known", True, ())


@pytest.mark.parametrize(
    ("cut", "release", "expected"),
    [
        (
            "2.9",
            "2.10.0",  # the registry goes, which breaks us, and meshes know their root
            {
                f"{MESHES}_MeshEnv.child_to_root_mapping": ("vanished", "breaks"),
                f"{MESHES}_MeshEnv.root_to_flatten_mapping": ("vanished", "breaks"),
                f"{MESHES}_MeshEnv.flatten_name_to_root_dims": ("vanished", "breaks"),
                f"{MESHES}DeviceMesh._get_root_mesh": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._flatten_mapping": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._unflatten": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh._concatenate": ("appeared", "needs a look"),
            },
        ),
        (
            "2.12",
            "2.13.0",  # there is a new layout class, and the old one is made with other arguments
            {
                f"{LAYOUTS}_FlatLayout": ("appeared", "needs a look"),
                f"{LAYOUTS}_MeshLayout": ("signature", "breaks"),
                f"{LAYOUTS}_MeshLayout.sizes_and_strides": ("vanished", "breaks"),
                f"{LAYOUTS}_MeshLayout.check_non_overlap": ("vanished", "breaks"),
            },
        ),
        (
            "2.14",
            "2.15.0",  # meshes take a parameter that derived ones inherit, and can be aborted
            {
                f"{MESHES}DeviceMesh.__init__": ("signature", "needs a look"),
                f"{MESHES}DeviceMesh._preserve_rank_order": ("appeared", "needs a look"),
                f"{MESHES}DeviceMesh.abort": ("appeared", "needs a look"),
            },
        ),
    ],
)
def test_the_ledger_would_have_told(cut: str, release: str, expected: dict[str, tuple[str, str]]) -> None:
    """What a release took away, changed or brought is found by a ledger that ends before it, and rated."""
    found = foresight(cut, release)
    told = {finding.name: (finding.change, finding.verdict) for finding in found.findings}
    assert told == told | expected
    harmful = "breaks" if "breaks" in {verdict for _, verdict in expected.values()} else "needs a look"
    assert (found.torch, found.recorded, found.verdict) == (release, False, harmful)


def test_the_new_parameter_of_2_15_is_shown() -> None:
    """The finding on the constructor shows both signatures, the new one with `preserve_rank_order`."""
    (constructor,) = (
        finding for finding in foresight("2.14", "2.15.0").findings if finding.name == f"{MESHES}DeviceMesh.__init__"
    )
    assert "preserve_rank_order=False" in constructor.after
    assert "preserve_rank_order" not in constructor.before
