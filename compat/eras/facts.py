"""Small differences inside an era: each with its reason, and when it can go.

`python -m tests.leftovers` reads the sentences on when: once the floor, `support.MINIMUM_TORCH`, is there, it lists the
fact and its uses. Then delete the constant and, where it is used, the branch that is never taken any more.
"""

from __future__ import annotations

from typing import Final

from automodel_mesh.compat.eras.support import torch_at_least

ABORT_IS_FOR_NCCL_ONLY: Final = not torch_at_least("2.7")
"""2.6 refuses to abort a group of any other backend than NCCL. Delete when the floor reaches 2.7."""

GROUPS_END_UNDER_THE_GIL: Final = not torch_at_least("2.8")
"""2.6 and 2.7 hold the GIL while a group waits for the threads of its gloo backend, which may need it to end.

Delete when the floor reaches 2.8: the groups end by themselves."""

GROUPS_ARE_KEPT_AS_RANKS: Final = not torch_at_least("2.8")
"""2.6 and 2.7 keep a mesh's groups as tuples of tag, ranks and name, later ones as names alone.

Delete when the floor reaches 2.8: the names alone."""

LAYOUT_IS_A_LIST_OF_AXES: Final = torch_at_least("2.13")
"""2.13 split `_MeshLayout` into a list of `_FlatLayout`s; before it is one nested pair of sizes and strides.

Delete when the floor reaches 2.13: keep the newer branch."""

SIZE_ONE_STRIDE: Final = 1 if torch_at_least("2.11") else 0
"""The stride torch gives a layout that folded to a single rank: CuTe's 0 in 2.10, 1 from 2.11 on.

Only equality with torch's own meshes depends on it. Delete when the floor reaches 2.11: write 1."""

OVERLAP_IS_FOUND_BY_LISTING: Final = torch_at_least("2.10") and not torch_at_least("2.13")
"""2.10 to 2.12 list all ranks of a mesh's layout, twice for each mesh, to see whether axes overlap: most of the time it
takes to make one in a large world. Later ones compare strides. We know it beforehand.

Delete when the floor reaches 2.13: torch's own check is as good."""

ROOT_HOLDS_ITS_GROUPS: Final = torch_at_least("2.11")
"""2.11 gave the root mesh `_pg_registry`, where `torch.compile` looks process groups up by name.

Delete when the floor reaches 2.11: always fill it."""

PRESERVES_RANK_ORDER: Final = torch_at_least("2.15")
"""2.15 gave `DeviceMesh` the keyword `preserve_rank_order`, which derived meshes inherit and which takes part in
equality. Delete when the floor reaches 2.15: always pass it on."""
