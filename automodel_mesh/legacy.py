"""The names of an older generation of NeMo AutoModel's mesh module, for code that is written against it.

Taking one of them gives a `DeprecationWarning` at the line that does. Each module that takes some is warned once,
however many it takes; importing this module without taking a name gives no warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from automodel_mesh.nemo import older_mesh
from automodel_mesh.nemo.old_names import serve_old_names

if TYPE_CHECKING:
    # All of its names, the underscored ones too, which an import by name would not offer to others.
    from automodel_mesh.nemo.older_mesh import *  # noqa: F403
else:
    __getattr__ = serve_old_names(__name__, {name: getattr(older_mesh, name) for name in older_mesh.__all__})

__all__ = ["STRATEGY_MAP", "MeshAxisName", "MeshContext"]  # noqa: F405 - from the star


def __dir__() -> list[str]:
    return sorted({*globals(), *older_mesh.__all__})
