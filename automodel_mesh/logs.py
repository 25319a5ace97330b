"""`AUTOMODEL_MESH_LOG`: prints what this library logs, for programs that do not set up logging themselves."""

from __future__ import annotations

import logging
from typing import Final

from automodel_mesh.checks import nearest, shown
from automodel_mesh.errors import MeshArgumentError

_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def print_logs(level: str) -> None:
    """Print to standard error what the library logs at a level or above, and pass it to no other handler.

    Args:
        level: a name of the module `logging`, such as `"INFO"`, in any case.

    Raises:
        MeshArgumentError: there is no such level.
    """
    if level.upper() not in _LEVELS:
        raise MeshArgumentError(
            f"AUTOMODEL_MESH_LOG={shown(level)} is no level{nearest(level.upper(), _LEVELS)}: give one of "
            f"{', '.join(_LEVELS)}, or unset it"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("automodel_mesh")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False  # or a handler of the program would print each line again
