"""Imports the era module for the installed torch, once, when `automodel_mesh.compat` is imported."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from automodel_mesh.compat.eras.interface import Era
from automodel_mesh.compat.eras.structure import check_structure
from automodel_mesh.compat.eras.support import TORCH_VERSION, era_name

if TYPE_CHECKING:
    from automodel_mesh.compat.eras import since_2_06, since_2_10

    # Here mypy and pyright check each era module against the interface; a test checks that none is missing.
    ERA_MODULES: tuple[Era, ...] = (since_2_06, since_2_10)

ERA_NAME: Final = era_name(TORCH_VERSION)
"""Name of the era module in use."""

check_structure()

era: Final = cast(Era, import_module(f"automodel_mesh.compat.eras.{ERA_NAME}"))
"""The era module of the installed torch: all that differs between torch releases."""
