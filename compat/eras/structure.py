"""Checks that the installed torch is built the way its version number says.

Vendor builds carry code of one release under the number of another; everything that follows from the version
would then be wrong, so the gate asks here before it loads an era.
"""

from __future__ import annotations

import inspect

import torch
from torch.distributed import device_mesh

from automodel_mesh.compat.eras.support import MINIMUM_TORCH, NEWEST_TESTED_TORCH, torch_at_least
from automodel_mesh.errors import UnsupportedTorchError


def markers() -> dict[str, bool]:
    """Look for the private names that tell the eras and their variants apart.

    Returns:
        For each marker, whether the installed torch has it.
    """
    mesh_class = device_mesh.DeviceMesh
    registry = getattr(device_mesh, "_mesh_resources", None)
    layouts = getattr(torch.distributed, "_mesh_layout", None)
    return {
        "the registry's child_to_root_mapping": hasattr(registry, "child_to_root_mapping"),
        "DeviceMesh._get_root_mesh": hasattr(mesh_class, "_get_root_mesh"),
        "DeviceMesh(_layout=...)": "_layout" in inspect.signature(mesh_class.__init__).parameters,
        "the layout class _FlatLayout": hasattr(layouts, "_FlatLayout"),
    }


def expected_markers() -> dict[str, bool]:
    """Say which markers a torch of the installed version number should have.

    Returns:
        The keys of `markers()`, with what the release of this number has.
    """
    on_the_mesh = torch_at_least("2.10")
    return {
        "the registry's child_to_root_mapping": not on_the_mesh,
        "DeviceMesh._get_root_mesh": on_the_mesh,
        "DeviceMesh(_layout=...)": on_the_mesh,
        "the layout class _FlatLayout": torch_at_least("2.13"),
    }


def check_structure() -> None:
    """Refuse a torch whose structure is not the one its version number stands for.

    Raises:
        UnsupportedTorchError: a marker is missing, or one of another release is there. The message lists both.
    """
    found, expected = markers(), expected_markers()
    wrong = [
        f"{name} is {'there' if found[name] else 'missing'} (expected: {'there' if expected[name] else 'absent'})"
        for name in expected
        if found[name] != expected[name]
    ]
    if wrong:
        raise UnsupportedTorchError(
            f"torch {torch.__version__} is not built the way its version says: {'; '.join(wrong)}. automodel-mesh "
            f"supports the releases {MINIMUM_TORCH} to {NEWEST_TESTED_TORCH}, and newer ones of the same structure. "
            "Install a released torch, or report this build."
        )
