"""What the newest tested torch does on a mesh, and since which release: `backport` gives it to older ones.

`python -m tests.leftovers` reads the releases. Once the floor, `support.MINIMUM_TORCH`, is one of them, it lists the
line: delete it, and its name in `compat/backporting.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

SINCE: Final[Mapping[str, str]] = {
    "`mesh[...]` of a slice, without a warning": "2.10",
    "`mesh[...]` of a flattened axis that is not contiguous": "2.13",
    "`mesh._flatten(backend_override=...)`": "2.9",
    "`mesh._flatten` to a name in use is an error": "2.10",
    "`mesh._flatten` of one axis to its own name gives the mesh itself": "2.10",
    "`mesh._unflatten` of an axis by its index": "2.10",
    "`mesh._unflatten` of an axis by its name": "2.12",
    "`DeviceMesh._concatenate`": "2.10",
    "`mesh._get_root_mesh`": "2.10",
    "`root._flatten_mapping`": "2.10",
    "`mesh._is_current_rank_part_of_mesh`": "2.11",
    "`mesh.get_group`, `get_all_groups`: of each axis of every mesh": "2.10",
    "`mesh.get_coordinate` as a tuple": "2.11",
    "`mesh.abort`": "2.15",
    "`init_device_mesh(backend_override=...)`": "2.9",
    "`DeviceMesh(preserve_rank_order=False)`": "2.15",
}
"""What can be given to older releases, each with the first release whose torch does it itself."""


class Obstacle(NamedTuple):
    """Why something cannot be given to older releases.

    Attributes:
        since: the first release whose torch does it itself.
        why: the reason, and what to do instead.
    """

    since: str
    why: str


IMPOSSIBLE: Final[Mapping[str, Obstacle]] = {
    "`DeviceMesh(preserve_rank_order=True)`": Obstacle(
        "2.15", "torch sorts the ranks of each process group; the keyword is refused: give ascending ranks"
    ),
    "`DeviceMesh(backend_override=...)`": Obstacle(
        "2.9", "the constructor makes the groups with the default backend: use `init_device_mesh`"
    ),
    "`mesh._layout`, `mesh._rank_map`": Obstacle(
        "2.10", "a mesh has no layout, only the tensor of its ranks: read `mesh.mesh`"
    ),
}
"""What cannot be given to older releases."""
