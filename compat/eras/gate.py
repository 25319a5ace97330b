"""The gate: picks the era of the installed torch, once, when `automodel_mesh.compat` is imported."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from automodel_mesh.compat.eras.interface import Era
from automodel_mesh.compat.eras.structure import check_structure
from automodel_mesh.compat.eras.support import TORCH_VERSION, era_name

ERA_NAME: Final = era_name(TORCH_VERSION)
"""Name of the era module in use."""

check_structure()

era: Final = cast(Era, import_module(f"automodel_mesh.compat.eras.{ERA_NAME}"))
"""The bookkeeping of the installed torch."""
