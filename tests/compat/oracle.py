"""The expected ranks of a mesh, computed with NumPy on a grid of ranks, without meshes or layouts.

A grid is cut into *atoms*, its smallest axes. An axis of a mesh is a tuple of atoms, outermost first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Atoms = tuple[int, ...]
Sources = dict[str, Atoms]
"""For each axis, by name, the atoms of the grid that it folds."""

# A copy: the tests must not take the folded axes from the code under test.
FSDP2_AXES: Sources = {
    "pp": (0,),
    "dp_replicate": (1,),
    "dp_shard": (2,),
    "cp": (3,),
    "tp": (4,),
    "dp": (1, 2),
    "dp_shard_cp": (2, 3),
    "dp_cp": (1, 2, 3),
}


@dataclass(frozen=True)
class Grid:
    """A grid of the ranks 0, 1, 2, ... in row-major order."""

    shape: tuple[int, ...]

    @property
    def world(self) -> int:
        """Number of ranks."""
        return math.prod(self.shape)

    def size(self, axis: Atoms) -> int:
        """Number of ranks along an axis."""
        return math.prod(self.shape[atom] for atom in axis)

    def mesh(self, axes: Sequence[Atoms], rank: int) -> list[object]:
        """Return the nested list of ranks that a mesh with these axes shows on `rank`."""
        ranks = np.arange(self.world).reshape(self.shape)
        coordinate = np.argwhere(ranks == rank)[0]
        # Atoms of one rank do not change positions, and may be part of several axes.
        wanted = [atom for axis in axes for atom in axis if self.shape[atom] > 1]
        others = [atom for atom in range(len(self.shape)) if atom not in wanted]
        front = np.transpose(ranks, (*others, *wanted))[tuple(coordinate[atom] for atom in others)]
        nested: Any = front.reshape([self.size(axis) for axis in axes])
        return list(nested.tolist())

    def group(self, axis: Atoms, rank: int) -> list[int]:
        """Return the ranks that share a group with `rank` along an axis, in the order of the axis."""
        found = self.mesh([axis], rank)
        return [int(str(one)) for one in found]

    def distinct_groups(self, axes: Sequence[Atoms], rank: int) -> set[tuple[int, ...]]:
        """Return the distinct rank sets among the groups of `rank` along some axes."""
        return {tuple(sorted(self.group(axis, rank))) for axis in axes}
