"""Small differences between the releases of one era: a constant for each, with its reason, and when to delete it.

`python -m tests.leftovers` reads the sentences on when to delete one. Once the floor, `support.MINIMUM_TORCH`, is that
release, it lists the constant and its uses. Then delete them, and the branches that are never taken.
"""

from __future__ import annotations

from typing import Final

from automodel_mesh.compat.eras.support import torch_at_least

ABORT_IS_FOR_NCCL_ONLY: Final = not torch_at_least("2.7")
"""2.6 raises an error on aborting a group of any backend but NCCL. Delete when the floor reaches 2.7."""

GROUPS_END_UNDER_THE_GIL: Final = not torch_at_least("2.8")
"""2.6 and 2.7 hold the GIL while a group waits for the threads of its gloo backend, which may need the GIL to finish.

Delete when the floor reaches 2.8: torch releases the GIL itself."""

GROUPS_ARE_KEPT_AS_RANKS: Final = not torch_at_least("2.8")
"""2.6 and 2.7 store a mesh's groups as tuples of tag, ranks and name, later releases as names only.

Delete when the floor reaches 2.8: keep the names only."""

FRAMES_CAN_BE_SKIPPED: Final = torch_at_least("2.7")
"""From 2.7 on `torch.compile` can be kept out of a function's frame and of all that it calls.

Delete when the floor reaches 2.7: always do so."""

LAYOUT_IS_A_LIST_OF_AXES: Final = torch_at_least("2.13")
"""From 2.13 on `_MeshLayout` is a list of `_FlatLayout`s; before, it is one nested pair of sizes and strides.

Delete when the floor reaches 2.13: keep the branch for the list."""

SIZE_ONE_STRIDE: Final = 1 if torch_at_least("2.11") else 0
"""The stride of torch's layout for an axis of size 1: 0 in 2.10, as in CuTe, and 1 from 2.11 on.

Only equality with torch's own meshes depends on it. Delete when the floor reaches 2.11: write 1."""

OVERLAP_IS_FOUND_BY_LISTING: Final = torch_at_least("2.10") and not torch_at_least("2.13")
"""2.10 to 2.12 list all ranks of a mesh's layout, twice for each mesh, to check that axes do not overlap, which takes
most of the time of making a mesh in a large world. Later releases compare strides. The axes that we give never overlap.

Delete when the floor reaches 2.13: torch's own check is fast."""

ROOT_HOLDS_ITS_GROUPS: Final = torch_at_least("2.11")
"""From 2.11 on the root mesh has `_pg_registry`, in which `torch.compile` looks up process groups by name.

Delete when the floor reaches 2.11: always fill it."""

PRESERVES_RANK_ORDER: Final = torch_at_least("2.15")
"""From 2.15 on a mesh can have its ranks in any order: `DeviceMesh` has the keyword `preserve_rank_order`, which
derived meshes inherit and which equality compares. Before, torch sorts the ranks of the groups of a mesh.

Delete when the floor reaches 2.15: always pass it on, and accept every order."""

SPLITS_ANY_BACKEND: Final = torch_at_least("2.14")
"""Before 2.14, `split_group` makes right groups only from a default group of the backend "nccl" alone: 2.6 to 2.11 ask
it for the backend of CUDA; 2.6 and 2.7 leave out the backends of other devices; 2.8 asserts that it has one name; 2.9
to 2.13 give the options of one backend to all, and from 2.10 on copy them, which those of gloo do not allow.

Delete when the floor reaches 2.14: always compare the backends."""
