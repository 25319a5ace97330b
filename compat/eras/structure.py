"""Checks that the installed torch has the private names that releases of its version number have.

Vendor builds can have the code of one release under the version number of another. An era module chosen by the version
would then be wrong, so the gate calls `check_structure` before it imports one.
"""

from __future__ import annotations

import inspect

import torch
from torch.distributed import device_mesh

from automodel_mesh.compat.eras.support import MINIMUM_TORCH, NEWEST_TESTED_TORCH, torch_at_least
from automodel_mesh.errors import UnsupportedTorchError


def markers() -> dict[str, bool]:
    """Look for the private names that distinguish the eras and their variants.

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
    """Return which markers a torch of the installed version number should have.

    Returns:
        The keys of `markers()`, each with whether the release of this number has it.
    """
    stored_on_meshes = torch_at_least("2.10")
    return {
        "the registry's child_to_root_mapping": not stored_on_meshes,
        "DeviceMesh._get_root_mesh": stored_on_meshes,
        "DeviceMesh(_layout=...)": stored_on_meshes,
        "the layout class _FlatLayout": torch_at_least("2.13"),
    }


def check_structure() -> None:
    """Refuse a torch whose markers are not those of its version number.

    Raises:
        UnsupportedTorchError: a marker is missing, or a marker of another release is found. The message lists them.
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
